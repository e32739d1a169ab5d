"""What the owner of a model should know about its numbers, whether or not anything folds.

`findings` looks at what a model stores before and after folding, and at nothing else: batch norms that no sound
training gives (`statistics`), and numbers that the type of a folded operator, float16 or int8 cannot hold well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredLinear, StoredNorm, Tensor
from bnfold.graph import EVALUATE, NO_STATISTICS, TRACK, Reason, Site
from bnfold.outcome import FoldReport, Outcome
from bnfold.reports.channels import crests, magnitudes, usable
from bnfold.reports.conditions import Condition
from bnfold.reports.limits import FLOAT16_LARGEST, LARGE_CANCELLATION, LARGE_CREST, LARGE_SPREAD
from bnfold.reports.report import identified
from bnfold.reports.statistics import Channels, InFront, indices, remarks, told
from bnfold.run import Finding


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
            yield _by_the_batch(outcome, identity, original.running.get(outcome.site.name))
        elif norm := original.norms.get(outcome.site.name):
            for remark in remarks(norm, stays=not outcome.folded, front=partial(_in_front, original, outcome, norm)):
                where = _name(outcome)
                if remark.channels is not None:
                    where = f"{told(remark.channels)} of {where}:"
                message = f"{where} {remark.text}"
                yield _finding(remark.condition, remark.severity, message, identity, remark.channels)


def _by_the_batch(outcome: Outcome, identity: str, running: bool | None) -> Finding:
    """`running` says whether the batch norm has running statistics: where it has none, eval() is no help."""
    message = f"{_name(outcome)}: {Reason.BATCH_STATISTICS.message}"
    found = _finding(Reason.BATCH_STATISTICS, "warning", message, identity)
    if running is None:
        return found
    if running:
        return replace(found, remedy=EVALUATE)
    return replace(found, message=f"{message}; {NO_STATISTICS}", remedy=TRACK)


def _in_front(original: Evidence, outcome: Outcome, norm: StoredNorm) -> InFront | None:
    """The operator that took a batch norm in, where it is its neighbour: then channel is channel."""
    if outcome.rule != "into-producer" or len(outcome.into) != 1:
        return None
    (site,) = outcome.into
    linear = original.linears.get(site.name)
    if linear is None or not norm.reads or norm.reads not in (site.name, linear.added):
        return None
    largest, _ = magnitudes(linear)
    return InFront(site.module or site.name, largest) if largest.shape == norm.mean.shape else None


def _name(outcome: Outcome) -> str:
    return outcome.site.module or outcome.site.name


def _operators(original: Evidence, folded: Evidence, report: FoldReport) -> Iterator[Finding]:
    """What folding did to the numbers of each operator that took an affine in, with the first affine that it took."""
    takers: dict[Site, str] = {}
    uneven = {merged.into.name for merged in report.merges}
    for identity, outcome in identified(report):
        for site in outcome.into:
            takers.setdefault(site, identity)
            if outcome.rule != "into-producer":
                uneven.add(site.name)
    for site, identity in takers.items():
        before, after = original.linears.get(site.name), folded.linears.get(site.name)
        if before is not None and after is not None:
            name = site.module or site.name
            yield from _changed(name, identity, before, after)
            if site.name in uneven:
                yield from _peaks(name, identity, before, after)


def _changed(name: str, identity: str, before: StoredLinear, after: StoredLinear) -> Iterator[Finding]:
    """Three looks at the channels of the operator as it is now, and one at how it was where they show something."""
    weights, small = magnitudes(after)
    largest = _with_bias(weights, after.bias)
    over = largest > FLOAT16_LARGEST
    if small.any() or over.any():
        then, was_small = magnitudes(before)
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
    used = usable(largest)
    if not used.size:
        return
    median = float(np.median(used))
    if used.max() > LARGE_SPREAD * median:
        wide = largest > LARGE_SPREAD * median
        message = (
            f"{told(wide)} of {name}: folded weights are up to {used.max() / median:.3g} times the median channel's"
        )
        yield _finding(Condition.SCALE_SPREAD, "note", message, identity, wide)


def _peaks(name: str, identity: str, before: StoredLinear, after: StoredLinear) -> Iterator[Finding]:
    """The channels in which few weights are far larger now than the others, where they were not before."""
    now = crests(after)
    if not (high := now > LARGE_CREST).any():
        return
    then = crests(before)
    if then.shape == now.shape:
        high &= ~(then > LARGE_CREST)
    if high.any():
        message = (
            f"{told(high)} of {name}: the largest folded weight is up to {now[high].max():.3g} times the root mean "
            "square of its channel"
        )
        yield _finding(Condition.CHANNEL_PEAK, "note", message, identity, high)


def _with_bias(weights: NDArray[np.float64], bias: Tensor | None) -> NDArray[np.float64]:
    """The largest magnitude of each output channel, given that of its weights."""
    return weights if bias is None or bias.size != weights.size else np.maximum(weights, np.abs(bias.reshape(-1)))
