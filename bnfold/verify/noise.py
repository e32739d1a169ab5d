"""How far two results of the same thing are from float64, index by index along every axis.

    noise = Noise("float32")
    noise.add(truth, before, after)            once per sample
    noise.worst()                              Ratio(figure=43.1, axis=1, index=17)

One wrong channel shows along the channel axis, a wrong border along height or width. The batch axis is pooled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.verify.compare import pattern
from bnfold.verify.meters import EPSILONS

Array = NDArray[Any]

FEWEST = 32
"""Errors per index from which two equal noises cannot differ 8-fold by luck."""

_FLOOR = 1e-3
"""An index whose values are smaller than this part of the tensor's is as exact as if they were that large."""


@dataclass(frozen=True)
class Ratio:
    """The error of the candidate over that of the reference, where that is worst; no axis where all is pooled."""

    figure: float
    axis: int | None = None
    index: int | None = None

    def __str__(self) -> str:
        where = {None: "it", 1: f"channel {self.index}"}.get(self.axis, f"index {self.index} of axis {self.axis}")
        if self.figure == float("inf"):
            return f"{where} is NaN or infinite where the original's is not, or the other way round"
        return f"{where} is {self.figure:.3g} times as far from float64 as the original's"


@dataclass
class Noise:
    """Squared errors, summed over samples and over the first axis."""

    dtype: str
    samples: int = 0
    overflowed: bool = False
    mismatch: Ratio | None = None
    squares: list[Array] = field(default_factory=list)

    def add(self, truth: Array, before: Array, after: Array) -> None:
        """Take in one sample: in float64, as the reference has it, and as the candidate has it."""
        before, after = before.astype(np.float64), after.astype(np.float64)
        if before.shape != truth.shape or after.shape != truth.shape:
            self.mismatch = Ratio(float("inf"))
            return
        if np.any(np.isfinite(truth) & ~np.isfinite(before)):
            self.overflowed = True
            return
        if not np.array_equal(pattern(before), pattern(after)):
            self.mismatch = self.mismatch or _where_patterns_differ(before, after)
            return
        finite = np.isfinite(truth) & np.isfinite(before)
        values = [np.where(finite, value, 0.0) for value in (truth, before - truth, after - truth)]
        values = [value if value.ndim > 1 else value.reshape(1, -1) for value in values]
        sums = [np.square(value).sum(axis=0) for value in values]
        self.squares = [old + new for old, new in zip(self.squares, sums, strict=True)] if self.squares else sums
        self.samples += values[0].shape[0]

    def worst(self) -> Ratio | None:
        """The largest ratio of the axes with enough samples per index; None where there are too few altogether."""
        if self.mismatch:
            return self.mismatch
        found = list(self._ratios())
        largest = max((ratio.figure for ratio in found), default=0.0)
        near = [ratio for ratio in found if ratio.figure >= 0.8 * largest and ratio.axis is not None] or found
        return max(near, key=lambda ratio: (ratio.axis == 1, ratio.figure), default=None)

    def pooled(self) -> Ratio | None:
        """The ratio over all numbers together; None where there are too few."""
        return self.mismatch or next(self._ratios(), None)

    def _ratios(self) -> Iterator[Ratio]:
        total = self.samples * self.squares[0].size if self.squares else 0
        if total < FEWEST:
            return
        truth, before, after = (float(each.sum()) / total for each in self.squares)
        tiny = truth * _FLOOR**2
        yield Ratio(float(self._quotient(np.array(truth), np.array(before), np.array(after), tiny=tiny)))
        for axis, size in enumerate(self.squares[0].shape, start=1):
            count = total // size if size else 0
            if count < FEWEST or size < 2:
                continue
            others = tuple(each for each in range(self.squares[0].ndim) if each != axis - 1)
            truths, befores, afters = (each.sum(axis=others) / count for each in self.squares)
            quotients = self._quotient(truths, befores, afters, tiny=tiny)
            index = int(np.argmax(quotients))
            yield Ratio(float(quotients[index]), axis, index)

    def _quotient(self, truth: Array, before: Array, after: Array, *, tiny: float) -> Array:
        """Of root mean squares, each at least half a unit in the last place of the values."""
        floor = 0.5 * EPSILONS[self.dtype] * np.sqrt(np.maximum(np.maximum(truth, tiny), np.finfo(np.float64).tiny))
        before, after = (np.maximum(np.sqrt(each), floor) for each in (before, after))
        return np.asarray(after / before)


def _where_patterns_differ(before: Array, after: Array) -> Ratio:
    differs = (np.isfinite(before) != np.isfinite(after)) | (np.isnan(before) != np.isnan(after))
    if before.ndim < 2 or not differs.any():
        return Ratio(float("inf"))
    return Ratio(float("inf"), 1, int(np.argwhere(differs)[0][1]))
