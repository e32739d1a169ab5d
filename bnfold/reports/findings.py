"""What the owner of a model should know about its numbers, whether or not anything folds.

`findings` looks at what a model stores before and after folding, and at nothing else: statistics that no training
gives, and numbers that lose their precision in the type that the folded operator has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredLinear, StoredNorm, Tensor
from bnfold.graph import Reason
from bnfold.outcome import FoldReport
from bnfold.reports.report import identified
from bnfold.run import Finding

USUAL_EPSILON = (1e-7, 1e-2)

# The smallest number of full precision, by the name of its type.
SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}

LARGE_CANCELLATION = 1000.0
"""The terms of a merged kernel are so many times larger than their sum."""

Channels = NDArray[np.bool_]


def findings(original: Evidence, folded: Evidence, report: FoldReport) -> list[Finding]:
    """What is unusual about the batch norms, and about the parameters that folding made."""
    return [*_statistics(original, report), *_subnormals(original, folded, report), *_cancelled(report)]


def _cancelled(report: FoldReport) -> Iterator[Finding]:
    for merged in report.merges:
        if merged.cancellation is not None and merged.cancellation >= LARGE_CANCELLATION:
            name, bits = merged.into.module or merged.into.name, np.log2(merged.cancellation)
            message = f"the branches merged into {name} cancel: {bits:.0f} bits of some kernel are lost"
            yield Finding("cancellation", "warning", message, "compare the outputs, or use --merge never")


def _statistics(original: Evidence, report: FoldReport) -> Iterator[Finding]:
    for identity, outcome in identified(report):
        norm = original.norms.get(outcome.site.name)
        if norm is None:
            continue
        name = outcome.site.module or outcome.site.name
        low, high = USUAL_EPSILON
        if not low <= norm.epsilon <= high:
            message = f"the epsilon of {name} is {norm.epsilon:.3g}, outside {low:g} to {high:g}"
            yield Finding("unusual-epsilon", "note", message, "look whether it was meant", identity)
        if outcome.refusal and (wrong := _wrong(norm, outcome.refusal.reason)) is not None:
            message = f"{_told(wrong)} of {name}: {outcome.refusal.reason.message}"
            yield _finding(outcome.refusal.reason, message, identity, wrong)


def _finding(reason: Reason, message: str, identity: str, channels: Channels) -> Finding:
    return Finding(reason.code, "error", message, reason.remedy, identity, _indices(channels))


def _wrong(norm: StoredNorm, reason: Reason) -> Channels | None:
    """The channels whose statistics are the reason; None for any other reason."""
    if reason is Reason.VARIANCE_NOT_POSITIVE:
        return np.less_equal(_wide(norm.variance) + norm.epsilon, 0)
    if reason is Reason.NON_FINITE:
        stored = np.stack([_wide(array) for array in (norm.gamma, norm.beta, norm.mean, norm.variance)])
        return np.asarray(~np.isfinite(stored).all(axis=0))
    return None


def _subnormals(original: Evidence, folded: Evidence, report: FoldReport) -> Iterator[Finding]:
    """Operators in which folding made numbers too small for their type's full precision."""
    takers = dict.fromkeys(site.name for outcome in report.outcomes for site in outcome.into)
    for name in takers:
        before, after = original.linears.get(name), folded.linears.get(name)
        if before is None or after is None:
            continue
        fresh = _small(after)
        if fresh.any() and (fresh := fresh & ~_small(before)).any():
            message = f"{_told(fresh)} of {name}: a folded number is too small for the full precision of its type"
            yield Finding("subnormal", "warning", message, "fold in float32 first, then convert", None, _indices(fresh))


def _small(linear: StoredLinear) -> Channels:
    """Which output channels have a weight or bias that is subnormal."""
    small = np.asarray(is_subnormal(np.abs(_by_channel(linear))).any(axis=1))
    if linear.bias is not None and linear.bias.size == small.size:
        small = small | is_subnormal(np.abs(linear.bias.reshape(-1)))
    return small


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


def _wide(array: Tensor) -> NDArray[np.float64]:
    return np.asarray(array, dtype=np.float64)


def _indices(channels: Channels) -> tuple[int, ...]:
    return tuple(int(index) for index in np.flatnonzero(channels))


def _told(channels: Channels) -> str:
    """`channel 3`, `5 of 64 channels`."""
    (places,) = np.nonzero(channels)
    return f"channel {places[0]}" if len(places) == 1 else f"{len(places)} of {len(channels)} channels"
