"""Whether a result that is further from float64 than the original's is so by chance.

Some networks magnify the rounding of a few numbers until it fills the output. One run of each of two models is then one
draw each from the same wide distribution, and their ratio says nothing. So both are run again on inputs that are one
rounding away, and what is typical is compared: the median of the ratios of all draws of the one to all draws of the
other (the estimator of Hodges and Lehmann, 1963, for a shift of logarithms). What is wrong with a model is wrong in
every draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np

from bnfold.verify.compare import Arrays, moved_by_rounding
from bnfold.verify.machines import Machine
from bnfold.verify.meters import EndToEnd, Meter, Typical

DRAWS = (16, 64)
"""So many, beside the input itself, and so many more where these few do not settle it."""

CLEAR = 4.0
"""What is beyond the limit by this factor after the first draws is not chance."""

MOST_BYTES = 1 << 20
"""Of the results of one input in float64. They are held for every draw; of larger ones the pooled ratio has many
numbers, and stands."""


def draw_again(
    ends: EndToEnd, neighbours: Neighbours, exact: Machine, reference: Machine, candidate: Machine, limit: float
) -> None:
    """Where the ratio of an output is beyond the limit, judge the inputs that make it so by what is typical near them,
    if that is within it; one that is wrong typically lets the ratio stand."""
    for meter in ends.meters.values():
        while not meter.mismatch and (meter.result().ratio or 0.0) > limit and (index := meter.furthest) is not None:
            typical = neighbours.at(index).within(meter, limit, exact, reference, candidate)
            if typical is None:
                meter.typical.clear()
                break
            meter.typical[index] = typical


class Neighbours:
    """What lies around the inputs that were compared, in their order; worked out when it is asked for, and once."""

    def __init__(self, feeds: Sequence[Arrays]) -> None:
        self._feeds = feeds
        self._known: dict[int, _Near] = {}

    def at(self, index: int) -> _Near:
        """Around the input of this number."""
        if index not in self._known:
            self._known[index] = _Near(self._feeds[index])
        return self._known[index]


class _Near:
    """An input and others that are one rounding away, and what machines make of each."""

    def __init__(self, feeds: Arrays) -> None:
        self._source = moved_by_rounding(feeds, range(sum(DRAWS)), widened=False)
        self._inputs = [feeds]
        self._results: dict[Machine, list[Arrays]] = {}

    def within(
        self, meter: Meter, limit: float, exact: Machine, reference: Machine, candidate: Machine
    ) -> Typical | None:
        """What is typical of an output, if it is within the limit. The truth near the first input is only worked out
        where that of the first does not decide: both models move with it."""
        first = self._run(exact, 1)
        if not first or sum(value.nbytes for value in first[0].values()) > MOST_BYTES:
            return None
        for most in (1 + DRAWS[0], 1 + sum(DRAWS)):
            self._inputs += islice(self._source, max(most - len(self._inputs), 0))
            before, after = self._run(reference, most), self._run(candidate, most)
            if before is None or after is None or len(before) == 1:
                return None
            roughly = _typical(meter, first * len(before), before, after)
            if roughly.ratio > limit * CLEAR:
                return None
            truths = self._run(exact, most) if roughly.ratio <= limit else None
            if truths and (found := _typical(meter, truths, before, after)).ratio <= limit:
                return found
        return None

    def _run(self, machine: Machine, most: int) -> list[Arrays] | None:
        """What it makes of the first inputs, so many at most; None where it does not run one of them."""
        results = self._results.setdefault(machine, [])
        for feeds in self._inputs[len(results) : most]:
            if (found := machine.run(feeds)) is None:
                return None
            results.append(found)
        return results[:most]


def _typical(meter: Meter, truths: Sequence[Arrays], *results: Sequence[Arrays]) -> Typical:
    draws = [_errors(meter, *each) for each in zip(truths, *results, strict=True)]
    before, after = np.transpose(draws)
    if not np.isfinite(before).all():
        return Typical(math.inf, math.inf)
    return Typical(float(np.median(np.divide.outer(after, before))), float(before.max()))


def _errors(like: Meter, truth: Arrays, reference: Arrays, candidate: Arrays) -> tuple[float, float]:
    """How far one draw of each is from float64: infinite for a candidate that no error explains, both where nothing
    could be compared."""
    name, meter = like.name, Meter(like.name, stored=like.stored)
    meter.add(truth[name], reference[name], candidate[name])
    found = meter.result()
    if meter.mismatch:
        return meter.floor, math.inf
    if found.rmse_reference is None or found.rmse_candidate is None:
        return math.inf, math.inf
    return max(found.rmse_reference, meter.floor), max(found.rmse_candidate, meter.floor)
