"""Help in groups, without drawing: the flags of a command under the headings of their groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from bnfold.errors import UsageError
from bnfold.reports.text import did_you_mean, nearest


class Command(TyperCommand):
    """A command whose help lists its flags group by group, its own first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                own = "Arguments" if parameter.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


class Commands(TyperGroup):
    """The commands, in the order in which they are defined; an unknown one is answered with what was meant."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(ctx, args)
        known = list(self.commands)
        near = nearest(name, known)
        hint = f"bnfold fold {name}" if Path(name).exists() else f"bnfold {near} --help" if near else "bnfold --help"
        raise UsageError(f"there is no command {name!r}{did_you_mean(name, known)}", code="unknown-command", hint=hint)
