"""`docs/flags.md`: its tables of every flag are made from the commands themselves, the rest is written by hand. A group
of flags that several commands take stands once.

python tests/flag_page.py        brings the page up to date
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from bnfold.cli.commands import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "flags.md"

BEGIN, END = "## Commands\n", "## Inputs and sizes\n"
"""What stands before the first and from the second on is written by hand."""

HELP = """| `-h`, `--help` | | | Show the commands and exit; behind a command, its flags. |
| `--install-completion`, `--show-completion` | | | Complete commands and flags in the shell, or show what that takes. |

"""

Commands = Mapping[str, Callable[..., Any]]

TABLE = "| Flag | Takes | Without it | What it does |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Flag:
    """A flag as the page tells of it, or an argument: that has no `names`. `group` None: it is the command's own."""

    name: str
    names: tuple[str, ...]
    takes: str
    default: str
    told: str
    group: str | None

    @property
    def row(self) -> str:
        return f"| {', '.join(f'`{each}`' for each in self.names)} | {self.takes} | {self.default} | {self.told} |\n"


def commands() -> Commands:
    """What typer calls, by the name of the command."""
    return {each.name or each.callback.__name__: each.callback for each in app.registered_commands if each.callback}


def page(written: str, called: Commands) -> str:
    """The page of these commands, with what is written by hand before and behind the tables."""
    flags = {name: list(flags_of(each)) for name, each in called.items()}
    own = "".join(flag.row for flag in flags_of(app.registered_callback.callback))
    parts = [written[: written.index(BEGIN)], f"{BEGIN}\n### `bnfold`\n\n{TABLE}{own}{HELP}"]
    parts += [_command(name, called[name].__doc__, flags) for name in called]
    parts += [_group(group, flags) for group in _groups(flags)]
    return "".join([*parts, written[written.index(END) :]])


def flags_of(command: Callable[..., Any]) -> Iterator[Flag]:
    """The flags and arguments of a command, in the order in which typer is given them."""
    hints = get_type_hints(command, include_extras=True) if not hasattr(command, "__wrapped__") else {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind, info = get_args(hints.get(name, parameter.annotation))
        # in an Annotated the first name is where the default would be otherwise
        names = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
        names = names or [f"--{name.replace('_', '-')}"]
        if isinstance(info, ArgumentInfo):
            metavar, needed = info.metavar or name.upper(), parameter.default is inspect.Parameter.empty
            metavar += "..." if get_origin(kind) is list else ""
            yield Flag(name, (), metavar if needed else f"[{metavar}]", "", info.help, None)
        else:
            names = [each for part in names for each in part.split("/")]
            default = "" if info.is_eager else _default(parameter.default)
            yield Flag(name, tuple(names), _takes(kind, info), default, info.help, info.rich_help_panel)


def _takes(kind: Any, info: OptionInfo) -> str:
    """What stands behind the flag, and its bounds; nothing where the flag stands alone."""
    if kind is bool:
        return ""
    words = get_args(kind) if get_origin(kind) is Literal else (info.metavar or "").split("|")
    *first, last = (f"`{word}`" for word in words)
    named = f"{', '.join(first)} or {last}" if first else last
    if info.max is not None:
        return f"{named}, from {info.min:g} to {info.max:g}"
    return named if info.min is None else f"{named}, at least {info.min:g}"


def _default(value: Any) -> str:
    """What holds where the flag is not given; nothing where the text says it, or nothing holds."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None or value == [] else f"`{value}`"


def _command(name: str, told: str | None, flags: Mapping[str, list[Flag]]) -> str:
    words = " ".join([f"bnfold {name}", *(flag.takes for flag in flags[name] if not flag.names)])
    own = "".join(flag.row for flag in flags[name] if flag.names and flag.group is None)
    groups = ", ".join(
        f"[{group}](#{group.lower().replace(' ', '-')})"
        for group in _groups(flags)
        if any(flag.group == group for flag in flags[name])
    )
    table = f"{TABLE}{own}\n" if own else ""
    return f"### `{words}`\n\n{told}\n\n{table}{'And' if own else 'Takes'} the flags of: {groups}.\n\n"


def _groups(flags: Mapping[str, list[Flag]]) -> list[str]:
    """The groups of flags that commands share, that of every command last."""
    takers: dict[str, set[str]] = {}
    for name, those in flags.items():
        for flag in those:
            if flag.group is not None:
                takers.setdefault(flag.group, set()).add(name)
    return sorted(takers, key=lambda group: len(takers[group]) == len(flags))


def _group(group: str, flags: Mapping[str, list[Flag]]) -> str:
    """A group, with those flags together that the same commands have."""
    takers: dict[Flag, list[str]] = {}
    for name, those in flags.items():
        for flag in those:
            if flag.group == group:
                takers.setdefault(flag, []).append(name)
    parts = [f"## {group}\n\n"]
    for names in dict.fromkeys(map(tuple, takers.values())):
        every = "Every command" if len(names) == len(flags) else ", ".join(f"`{name}`" for name in names)
        rows = "".join(flag.row for flag in takers if tuple(takers[flag]) == names)
        parts.append(f"{every}:\n\n{TABLE}{rows}\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), commands()))
