"""Whether a result that is further from float64 than the original's is so by chance.

Some networks magnify the rounding of a few numbers until it fills the output. One run of each of two models is then one
draw each from the same wide distribution, and their ratio says nothing. So both are run again on inputs that are one
rounding away, and what is typical is compared: the median of the ratios of all draws of the one to all draws of the
other (the estimator of Hodges and Lehmann, 1963, for a shift of logarithms). What is wrong with a model is wrong in
every draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.verify.compare import Arrays, moved_by_rounding, pattern
from bnfold.verify.machines import Machine
from bnfold.verify.meters import EPSILONS, EndToEnd, Typical

DRAWS = (16, 64)
"""So many, beside the input itself, and so many more where these few do not settle it."""

CLEAR = 4.0
"""What is beyond the limit by this factor after the first draws is not chance."""


def draw_again(
    ends: EndToEnd, feeds: Sequence[Arrays], exact: Machine, reference: Machine, candidate: Machine, limit: float
) -> None:
    """Where the ratio of an output is beyond the limit, judge the inputs that make it so by what is typical near them,
    if that is within it; one that is wrong typically lets the ratio stand.

    `feeds` are the inputs that `ends` has taken in, in order.
    """
    known: dict[int, _Drawn] = {}
    for name, meter in ends.meters.items():
        while not meter.mismatch and (meter.result().ratio or 0.0) > limit and (index := meter.furthest) is not None:
            if index not in known:
                known[index] = _Drawn(feeds[index], exact, reference, candidate)
            typical = known[index].within(name, limit)
            if typical is None:
                meter.typical.clear()
                break
            meter.typical[index] = typical


class _Drawn:
    """An input and others that are one rounding away, and what three machines make of each."""

    def __init__(self, feeds: Arrays, *machines: Machine) -> None:
        self._source = moved_by_rounding(feeds, range(sum(DRAWS)), widened=False)
        self._near, self._machines = [feeds], machines
        self._results: tuple[list[Arrays], ...] = tuple([] for _ in machines)

    def within(self, name: str, limit: float) -> Typical | None:
        """What is typical of an output, if it is within the limit. The truth near the first input is only worked out
        where that of the first does not decide: both models move with it."""
        for count in DRAWS:
            self._near += islice(self._source, count)
            if len(self._near) == 1 or not (self._run(0, 1) and self._run(1) and self._run(2)):
                return None
            roughly = self._typical(name, [self._results[0][0]] * len(self._near))
            if roughly.ratio > limit * CLEAR:
                return None
            if (
                roughly.ratio <= limit
                and self._run(0)
                and (found := self._typical(name, self._results[0])).ratio <= limit
            ):
                return found
        return None

    def _run(self, which: int, most: int | None = None) -> bool:
        """Let a machine run what it has not run yet, or the first of them; whether all of it ran."""
        results = self._results[which]
        for feeds in self._near[len(results) : most]:
            if (found := self._machines[which].run(feeds)) is None:
                return False
            results.append(found)
        return True

    def _typical(self, name: str, truths: Sequence[Arrays]) -> Typical:
        before, after = (
            np.array([_error(truth[name], found[name]) for truth, found in zip(truths, results, strict=True)])
            for results in self._results[1:]
        )
        if not np.isfinite(before).all():
            return Typical(float("inf"), len(self._near), float("inf"))
        return Typical(float(np.median(np.divide.outer(after, before))), len(self._near), float(before.max()))


def _error(truth: NDArray[Any], found: NDArray[Any]) -> float:
    """The root mean square of a draw's errors, relative to that of the values, and at least half an epsilon."""
    value = found.astype(np.float64)
    if value.shape != truth.shape or not np.array_equal(pattern(value), pattern(truth)):
        return float("inf")
    finite = np.isfinite(truth)
    scale = float(np.sqrt(np.mean(truth[finite] ** 2))) if finite.any() else 0.0
    gap = float(np.sqrt(np.mean((value - truth)[finite] ** 2))) if finite.any() else 0.0
    return max(gap / (scale or 1.0), 0.5 * EPSILONS.get(found.dtype.name, 0.0))
