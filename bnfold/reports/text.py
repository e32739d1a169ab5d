"""What every report for people shares: names that cannot play tricks, and figures that read well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

WIDTH = 80
"""Of what people read where the width of their terminal is not known."""


def size(count: int | None) -> str:
    """Bytes for people: `44.6 MB`."""
    if count is None:
        return "?"
    if count < 1000:
        return f"{count} B"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.3g} {' kMGT'[power]}B"


def number(count: int | None) -> str:
    """A count for people: `1,234`."""
    return "?" if count is None else f"{count:,}"


def figure(value: float | None) -> str:
    """A measured figure for people: three digits."""
    return "?" if value is None else f"{value:.3g}"


def layer_names(layers: Iterable[str]) -> list[str]:
    """The layers of a check by name; one that is there a second time compares an export with its program."""
    names: list[str] = []
    for layer in layers:
        names.append(f"{layer} export" if layer in names else layer)
    return names


def duration(seconds: float | None) -> str:
    """Seconds for people: `1.24 ms`."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def plural(count: int, noun: str) -> str:
    """`1 batch norm`, `2 batch norms`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean "x"?` for the known word that is nearest, or nothing."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that is nearest, None where none is near."""
    return next(iter(get_close_matches(word, known, n=1)), None)
