"""What the owner of a model should know about its numbers, whether or not anything folds.

`findings` looks at what a model stores before and after folding, and at nothing else: batch norms that no sound
training gives (`statistics`), and numbers that the type of a folded operator, float16 or int8 cannot hold well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredLinear, Tensor
from bnfold.graph import Reason
from bnfold.outcome import FoldReport, Outcome
from bnfold.reports.conditions import Condition
from bnfold.reports.report import identified
from bnfold.reports.statistics import FLOAT16_LARGEST, Channels, indices, remarks, told
from bnfold.run import Finding

# The smallest number of full precision, by the name of its type.
SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}

LARGE_CANCELLATION = 1000.0
"""The terms of a merged kernel are so many times larger than their sum."""

PART = 1 << 20
"""How many weights are looked at together."""

LARGE_SPREAD = 32.0
"""One int8 scale has 127 steps for the largest channel; a channel so many times smaller has less than four of them."""


def findings(original: Evidence, folded: Evidence, report: FoldReport) -> list[Finding]:
    """What is unusual about the batch norms, and about the parameters that folding made."""
    return [*_norms(original, report), *_operators(original, folded, report), *_cancelled(report)]


def _finding(
    condition: Condition | Reason, severity: str, message: str, affine: str | None, channels: Channels | None = None
) -> Finding:
    numbers = () if channels is None else indices(channels)
    return Finding(condition.code, severity, message, condition.remedy, affine, numbers)


def _cancelled(report: FoldReport) -> Iterator[Finding]:
    for merged in report.merges:
        if merged.cancellation is not None and merged.cancellation >= LARGE_CANCELLATION:
            name, bits = merged.into.module or merged.into.name, np.log2(merged.cancellation)
            message = f"the branches merged into {name} cancel: {bits:.0f} bits of some kernel are lost"
            yield _finding(Condition.CANCELLATION, "warning", message, None)


def _norms(original: Evidence, report: FoldReport) -> Iterator[Finding]:
    for identity, outcome in identified(report):
        if outcome.refusal and outcome.refusal.reason is Reason.BATCH_STATISTICS:
            message = f"{_name(outcome)}: {Reason.BATCH_STATISTICS.message}"
            yield _finding(Reason.BATCH_STATISTICS, "warning", message, identity)
        elif norm := original.norms.get(outcome.site.name):
            for remark in remarks(norm, stays=not outcome.folded):
                where = _name(outcome)
                if remark.channels is not None:
                    where = f"{told(remark.channels)} of {where}:"
                message = f"{where} {remark.text}"
                yield _finding(remark.condition, remark.severity, message, identity, remark.channels)


def _name(outcome: Outcome) -> str:
    return outcome.site.module or outcome.site.name


def _operators(original: Evidence, folded: Evidence, report: FoldReport) -> Iterator[Finding]:
    """What folding did to the numbers of each operator that took an affine in, with the first affine that it took."""
    takers: dict[str, str] = {}
    for identity, outcome in identified(report):
        for site in outcome.into:
            takers.setdefault(site.name, identity)
    for name, identity in takers.items():
        before, after = original.linears.get(name), folded.linears.get(name)
        if before is not None and after is not None:
            yield from _changed(name, identity, before, after)


def _changed(name: str, identity: str, before: StoredLinear, after: StoredLinear) -> Iterator[Finding]:
    """Three looks at the channels of the operator as it is now, and one at how it was where they show something."""
    weights, small = _looked(after)
    largest = _with_bias(weights, after.bias)
    over = largest > FLOAT16_LARGEST
    if small.any() or over.any():
        then, was_small = _looked(before)
        if then.shape == weights.shape:
            small = small & ~was_small
            over = over & ~(_with_bias(then, before.bias) > FLOAT16_LARGEST)
    if small.any():
        message = f"{told(small)} of {name}: a folded number is too small for the full precision of its type"
        yield _finding(Condition.SUBNORMAL, "warning", message, identity, small)
    if over.any():
        message = f"{told(over)} of {name}: a folded number is up to {largest[over].max():.3g}, beyond float16"
        yield _finding(Condition.FLOAT16_OVERFLOW, "warning", message, identity, over)
    yield from _spread(name, identity, weights)


def _spread(name: str, identity: str, largest: NDArray[np.float64]) -> Iterator[Finding]:
    """The channels that a scale for the whole tensor would be made for, where it leaves half of the others little."""
    used = largest[np.isfinite(largest) & (largest > 0)]
    if not used.size:
        return
    median = float(np.median(used))
    if used.max() > LARGE_SPREAD * median:
        wide = largest > LARGE_SPREAD * median
        message = (
            f"{told(wide)} of {name}: folded weights are up to {used.max() / median:.3g} times the median channel's"
        )
        yield _finding(Condition.SCALE_SPREAD, "note", message, identity, wide)


def _with_bias(weights: NDArray[Any], bias: Tensor | None) -> NDArray[np.float64]:
    """The largest magnitude of each output channel, given that of its weights."""
    wide = np.asarray(weights, np.float64)
    return wide if bias is None or bias.size != wide.size else np.maximum(wide, np.abs(bias.reshape(-1)))


def _looked(linear: StoredLinear) -> tuple[NDArray[np.float64], Channels]:
    """Of each output channel: the largest magnitude of its weights, and whether a weight or its bias is subnormal. A
    bounded part of the weights at a time."""
    weight, bias = _by_channel(linear), linear.bias
    count = len(weight)
    largest, small = np.zeros(count), np.zeros(count, np.bool_)
    step = max(1, PART // max(weight.shape[1], 1))
    for start in range(0, count, step):
        rows = np.abs(weight[start : start + step])
        largest[start : start + step] = rows.max(axis=1, initial=0)
        small[start : start + step] = is_subnormal(rows).any(axis=1)
    if bias is not None and bias.size == count:
        small |= is_subnormal(np.abs(bias.reshape(-1)))
    return largest, small


def _by_channel(linear: StoredLinear) -> NDArray[Any]:
    """The weight with a row for each output channel."""
    weight = linear.weight
    if linear.layout == "conv_transpose":
        grouped = weight.reshape(linear.groups, -1, *weight.shape[1:])
        return np.moveaxis(grouped, 2, 1).reshape(linear.groups * weight.shape[1], -1)
    if linear.layout == "matmul":
        return np.moveaxis(weight, -1, 0).reshape(weight.shape[-1], -1)
    return weight.reshape(weight.shape[0], -1)


def is_subnormal(magnitudes: Tensor) -> Channels:
    """Which magnitudes are too small for the full precision of their type, but not zero."""
    smallest = np.asarray(SMALLEST_NORMAL.get(magnitudes.dtype.name, 0.0), magnitudes.dtype)
    with np.errstate(invalid="ignore"):  # a NaN is neither
        return np.asarray((magnitudes > 0) & (magnitudes < smallest))
