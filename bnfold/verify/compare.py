"""How two results are compared: against float64, and never where there is nothing to compare.

`Semantics` gathers the difference of two float64 executions. Some networks magnify rounding so much that float64 itself
is far from exact; what that explains is measured, not assumed: the original is executed again on inputs that are one
rounding of float64 away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]

EPSILON = float(np.finfo(np.float64).eps)


def is_float(value: Array) -> bool:
    """Whether an array is compared by its errors, not for equality."""
    return bool(np.issubdtype(value.dtype, np.floating)) or value.dtype == ml_dtypes.bfloat16


def has_finite(value: Array) -> bool:
    """Whether there is anything to compare in an array that is not empty."""
    return not is_float(value) or bool(np.isfinite(value.astype(np.float64)).any())


def pattern(values: Array) -> Array:
    """Where there is a number (0), NaN (2), +∞ (1) or −∞ (−1)."""
    return np.where(np.isnan(values), 2, np.where(np.isinf(values), np.sign(values), 0))


def relative_difference(expected: Array, found: Array, usual: float = 0.0) -> float | None:
    """The largest difference over the largest magnitude, or over `usual` if that is larger.

    Infinite where shape, NaN or an integer differ.

    None where nothing can be compared: an empty array, or one without a finite value.
    """
    if expected.shape != found.shape:
        return float("inf")
    if expected.size == 0:
        return None
    if not is_float(expected):
        return 0.0 if np.array_equal(expected, found) else float("inf")
    finite = np.isfinite(expected)
    if not finite.any():
        return None
    if not np.array_equal(pattern(expected), pattern(found)):
        return float("inf")
    gap = float(np.abs(expected[finite] - found[finite]).max())
    scale = max(_largest(expected), usual)
    return gap / scale if gap and scale else (float("inf") if gap else 0.0)


def _largest(values: Array) -> float:
    """The largest finite magnitude; 0 where there is none."""
    if not is_float(values):
        return 0.0
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


MOVED = 16.0
"""How many times as far as one rounding of the inputs moves the results another order of the same operations may: each
operator rounds, and the worst of a few random roundings is not the worst of all."""

CERTAIN = 30.0
"""A difference that is so many times what is allowed is one; others need not be explained any more."""

MOVED_LIMIT = 1e-6
"""What rounding may explain at most: a result that it moves farther is compared with nothing."""


@dataclass
class Semantics:
    """The worst relative difference of two float64 executions, where it was, and what is allowed there.

    A difference is relative to the largest value of the output for this input or for the first input, whichever is
    larger: an input of tiny numbers must not turn the rounding of a large bias into a difference. `limit` holds where
    rounding explains no more; `chaotic` tells of outputs where it explains too much to compare them.
    """

    limit: float
    figure: float = 0.0
    output: str = ""
    allowed: float = 0.0
    compared: int = 0
    chaotic: list[str] = field(default_factory=list)
    usual: dict[str, float] = field(default_factory=dict)

    def add(self, expected: Arrays, found: Arrays, moved: Callable[[], Sequence[Arrays]]) -> None:
        """Take in one input's outputs, which have the same names.

        `moved` executes the reference again on inputs that are one rounding away; it is asked where results differ.
        """
        again: Sequence[Arrays] | None = None
        for name, value in expected.items():
            usual = self.usual.setdefault(name, _largest(value))
            difference = relative_difference(value, found[name], usual)
            if difference is None:
                continue
            allowed = self.limit
            if allowed < difference < math.inf:
                if self._worst() > CERTAIN:
                    self.compared += 1
                    continue
                again = moved() if again is None else again
                explained = max((relative_difference(value, each[name], usual) or 0.0 for each in again), default=0.0)
                if explained * MOVED > MOVED_LIMIT:
                    self.chaotic.append(f"rounding alone moves output {name} by {explained:.1e} of its largest value")
                    continue
                allowed = max(allowed, explained * MOVED)
            self.compared += 1
            if difference / allowed > self._worst() or not self.output:
                self.figure, self.output, self.allowed = difference, name, allowed

    def _worst(self) -> float:
        return self.figure / self.allowed if self.allowed else 0.0


def moved_by_rounding(feeds: Arrays, seeds: Sequence[int] = range(5), *, widened: bool = True) -> Iterator[Arrays]:
    """Inputs one rounding of float64 away from these, each number up or down by chance; none without real numbers. Not
    `widened`, each stays in its type, and moves by an epsilon of that."""
    if not any(is_float(value) for value in feeds.values()):
        return
    for seed in seeds:
        random = np.random.default_rng(seed)
        yield {
            name: _moved(value, random, np.dtype(np.float64) if widened else value.dtype) if is_float(value) else value
            for name, value in feeds.items()
        }


def _moved(value: Array, random: np.random.Generator, dtype: np.dtype[Any]) -> Array:
    epsilon = float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    moved = value.astype(np.float64) * (1 + random.choice((-epsilon, epsilon), value.shape))
    return np.asarray(moved.astype(dtype))
