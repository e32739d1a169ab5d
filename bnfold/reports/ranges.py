"""The range of the weights that took an affine in, before and after, and what a change of it may cost.

Flags: `float16-overflow`, a number that float16 does not hold where the original had none; `subnormal`, numbers too
small for the full precision of their type where the original had fewer.
How far apart the channels of one operator are says what integer weights lose that share one scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredLinear
from bnfold.outcome import FoldReport
from bnfold.reports.findings import is_subnormal
from bnfold.reports.statistics import FLOAT16_LARGEST
from bnfold.run import Range

CHUNK = 1 << 20


def ranges(original: Evidence, folded: Evidence, report: FoldReport) -> dict[str, Range]:
    """By the name of each affine that went into operators that both models hold: the largest magnitude of their
    weights and biases before and after. Bounded parts of a tensor are looked at, each tensor once."""
    names = dict.fromkeys(site.name for outcome in report.outcomes for site in outcome.into)
    both = [name for name in names if name in original.linears and name in folded.linears]
    known = {name: (_extremes(original.linears[name]), _extremes(folded.linears[name])) for name in both}
    spreads = {name: (_spread(original.linears[name]), _spread(folded.linears[name])) for name in both}
    found = {}
    for outcome in report.outcomes:
        pairs = [known[site.name] for site in outcome.into if site.name in known]
        if pairs:
            before, after = (max(pair[side][0] for pair in pairs) for side in (0, 1))
            overflows = before <= FLOAT16_LARGEST < after
            fresh = any(now > then for (_, then), (_, now) in pairs)
            flags = ("float16-overflow",) * overflows + ("subnormal",) * fresh
            worst = max((spreads[site.name] for site in outcome.into if site.name in known), key=lambda at: at[1] or 0)
            found[outcome.site.name] = Range(before, after, flags, worst)
    return found


def _extremes(linear: StoredLinear) -> tuple[float, int]:
    """The largest finite magnitude of an operator, and how many numbers are subnormal."""
    largest, small = 0.0, 0
    for part in _parts(linear):
        numbers = np.abs(part)
        finite = numbers if np.isfinite(numbers).all() else numbers[np.isfinite(numbers)]
        largest = max(largest, float(finite.max(initial=0)))
        small += int(np.count_nonzero(is_subnormal(numbers)))
    return largest, small


def _spread(linear: StoredLinear) -> float | None:
    """How many times larger the largest weight of the largest output channel is than that of the median one, of those
    that have one: half of the channels lose log2 of it, in bits, where one integer scale serves the whole tensor."""
    weight = linear.weight
    kept: tuple[int, ...] = (0,)
    if linear.layout == "conv_transpose":
        weight, kept = weight.reshape(linear.groups, -1, *weight.shape[1:]), (0, 2)
    elif linear.layout == "matmul":
        kept = (weight.ndim - 1,)
    others = tuple(axis for axis in range(weight.ndim) if axis not in kept)
    with np.errstate(invalid="ignore"):  # a NaN is passed over
        high, low = (ends.reduce(weight, axis=others, initial=0) for ends in (np.fmax, np.fmin))
    largest = np.maximum(high.astype(np.float64), -low.astype(np.float64))
    largest = largest[(largest > 0) & np.isfinite(largest)]
    return float(largest.max() / np.median(largest)) if largest.size else None


def _parts(linear: StoredLinear) -> Iterator[NDArray[Any]]:
    for tensor in (linear.weight, linear.bias):
        flat = np.zeros(0) if tensor is None else tensor.reshape(-1)
        yield from (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
