"""Help in groups, without drawing: the flags of a command under the headings of their groups."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from bnfold.errors import UsageError


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
        near = get_close_matches(name, self.commands, n=1)
        meant, helped = (f"; did you mean {near[0]}?", f"bnfold {near[0]} --help") if near else ("", "bnfold --help")
        hint = f"bnfold fold {name}" if Path(name).exists() else helped
        raise UsageError(f"there is no command {name!r}{meant}", code="unknown-command", hint=hint)
