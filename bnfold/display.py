"""What a record looks like outside Python: to a program, on one line, in a notebook.

    plain({"ratio": math.inf})                       # {"ratio": "inf"}
    table("2 of 3 folded", ("name", "into"), rows)   # HTML that needs nothing else

A table is for the last line of a notebook's cell. What a model is called is text in it wherever it stands: cleaned, cut
where it is long, escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from bnfold.errors import clean

MOST_ROWS = 50
LONGEST_CELL = 120
LONGEST_LINE = 160
FEW = 3
_LEFT = ' style="text-align: left"'


def plain(value: Any) -> Any:
    """The value in what JSON can hold: numpy's numbers become Python's, non-finite ones "nan", "inf" and "-inf"."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def placed(name: str, module: str | None) -> str:
    """A node in the user's words: its module, with its own name."""
    return f"{module} ({name})" if module else name


def brief(text: str, longest: int = LONGEST_LINE) -> str:
    """The text cleaned, on one line of at most so many characters."""
    line = clean(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def some(names: Sequence[str]) -> str:
    """`a, b, c and 4 more`."""
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {more} more" if more > 0 else "")


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table under its title, of as many rows as a notebook can show; a last line counts the others."""
    found = list(rows)
    lines = [_line("th", header), *(_line("td", row) for row in found[:MOST_ROWS])]
    if len(found) > MOST_ROWS:
        lines.append(_line("td", (f"… and {len(found) - MOST_ROWS} more", *[""] * (len(header) - 1))))
    return f"<table><caption{_LEFT}>{escape(brief(title))}</caption>{''.join(lines)}</table>"


def _line(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}{_LEFT}>{escape(brief(cell, LONGEST_CELL))}</{tag}>' for cell in cells)}</tr>"
