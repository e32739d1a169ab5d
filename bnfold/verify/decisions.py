"""What has no error to measure: ranks of a row, and rows that come in no order. Equal, unless it lay on a boundary.

A candidate may be about four times as wrong as the original is, so whatever is nearer to its boundary than both errors
together could have fallen to either side, and is excused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ALLOWED = 4.0
"""How many times as wrong as the original a candidate may be."""

_MOST_PAIRS = 4_000_000


@dataclass(frozen=True)
class Tally:
    """How many decisions were compared, how many of them differ, and how many more differ with an excuse."""

    compared: int = 0
    differ: int = 0
    excused: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.compared + other.compared, self.differ + other.differ, self.excused + other.excused)


def places(exact: Array, reference: Array, candidate: Array) -> Tally:
    """Integers and booleans, place by place; a difference is excused where the original is not what float64 is."""
    differs = reference != candidate
    undecided = exact != reference if exact.shape == reference.shape else np.ones_like(differs)
    return Tally(reference.size, int((differs & ~undecided).sum()), int((differs & undecided).sum()))


def top(count: int, exact: Array, reference: Array, candidate: Array, epsilon: float) -> Tally:
    """Whether the `count` largest of each row of `(rows, columns)` are the same.

    A difference is excused if, in the reference, all that changed places lie within the errors of the two models.
    """
    error, other = (np.abs(values - exact).max(axis=1) for values in (reference, candidate))
    error = np.maximum(error, epsilon / 2 * np.abs(reference).max(axis=1))
    margin = 2 * (error + np.minimum(other, ALLOWED * error))
    best, chosen = (np.argsort(-values, axis=1, kind="stable")[:, :count] for values in (reference, candidate))
    lowest = np.take_along_axis(reference, best[:, -1:], axis=1)[:, 0]
    differs = (np.sort(best, axis=1) != np.sort(chosen, axis=1)).any(axis=1)
    entered = np.take_along_axis(reference, chosen, axis=1).min(axis=1)
    left = np.array([_left_out(*row) for row in zip(reference, best, chosen, strict=True)])
    undecided = (lowest - entered <= margin) & (left - lowest <= margin)
    return Tally(len(differs), int((differs & ~undecided).sum()), int((differs & undecided).sum()))


def _left_out(values: Array, best: Array, chosen: Array) -> float:
    """The largest of the best values that were not chosen; −∞ if all were."""
    return float(max((values[i] for i in np.setdiff1d(best, chosen)), default=-np.inf))


def rows(exact: Array, reference: Array, candidate: Array, numbers: Array, epsilon: float) -> Tally:
    """Tables of `(rows, columns)` as sets: each row of one must be in the other, wherever it stands.

    `numbers` says which columns hold floats; the others must be equal. A row is the same if every float is, within the
    errors of both models; that of the original is measured where its rows are clearly those of float64. A row more or
    less is excused if the original has it the other way than float64. Nothing is compared where it would take too long.
    """
    if max(len(exact), len(candidate), 1) * len(reference) > _MOST_PAIRS:
        return Tally()
    scale = np.abs(reference).max(axis=0, initial=0.0)
    clearly = np.where(numbers, np.sqrt(epsilon) * scale, 0.0)
    linked = _matched(reference, exact, clearly)
    gaps = [np.abs(reference[i] - exact[j]) for i, j in enumerate(linked) if j >= 0]
    error = np.max([epsilon / 2 * scale, *gaps], axis=0)
    allowed = np.where(numbers, (1 + ALLOWED) * error, 0.0)
    lost = _matched(reference, candidate, allowed) < 0
    gained = _matched(candidate, reference, allowed) < 0
    sure, wanted = linked >= 0, _matched(candidate, exact, allowed) >= 0
    differ, excused = (
        max(int(one.sum()), int(other.sum()))  # a row that was replaced is lost on one side and gained on the other
        for one, other in ((lost & sure, gained & ~wanted), (lost & ~sure, gained & wanted))
    )
    return Tally(max(len(reference), len(candidate)), differ, excused)


def _matched(first: Array, second: Array, allowed: Array) -> NDArray[np.int64]:
    """For each row of `first` its own row of `second` that is nearest, within what is allowed; −1 where there is none.

    NaN is the same as NaN.
    """
    free = np.ones(len(second), dtype=bool)
    found = np.full(len(first), -1)
    unit = np.where(allowed > 0, allowed, 1.0)
    for index, row in enumerate(first):
        same = (second == row) | ((second != second) & (row != row))
        with np.errstate(invalid="ignore"):
            gaps = np.where(same, 0.0, np.abs(second - row))
        fits = free & (gaps <= allowed).all(axis=1)
        if fits.any():
            distance = np.where(fits, (gaps / unit).max(axis=1, initial=0.0), np.inf)
            found[index] = int(distance.argmin())
            free[found[index]] = False
    return found
