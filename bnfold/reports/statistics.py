"""A batch norm's health: which of its channels have numbers that no sound training gives, and what follows from them.

Each check looks at one batch norm and gives what it has to say as `Remark`s; it costs a few passes over arrays of one
number per channel. Channels that an earlier check explains are left out of the later ones: a channel has one cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import StoredNorm
from bnfold.graph import Reason
from bnfold.reports.conditions import Condition
from bnfold.reports.limits import (
    ALL_NOISE,
    DEVIATIONS,
    FLOAT16_LARGEST,
    LEAST_KEPT,
    MOST,
    NEGLIGIBLE,
    OUTLYING,
    ROUNDED,
    SMALL_WEIGHTS,
    STALE,
    USUAL_EPSILON,
)

Channels = NDArray[np.bool_]
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Remark:
    """What one check says of a batch norm; no `channels`: of all. `text` goes on behind the channels and the name."""

    condition: Condition | Reason
    severity: str
    text: str
    channels: Channels | None = None


@dataclass(frozen=True, eq=False)
class InFront:
    """The linear operator that makes what a batch norm reads, and the largest weight of each channel, `(channels,)`."""

    name: str
    largest: Wide


def unknown() -> InFront | None:
    """Nothing is known of what is in front of a batch norm."""
    return None


@dataclass(frozen=True, eq=False)
class Looked:
    """A batch norm with its numbers in float64, each of shape `(channels,)`; `stays` says that it did not fold, and
    `front` looks at the operator in front of it."""

    norm: StoredNorm
    stays: bool
    front: Callable[[], InFront | None] = unknown

    @cached_property
    def numbers(self) -> Wide:
        """Gamma, beta, mean and variance, one row each."""
        norm = self.norm
        return np.stack([np.asarray(row, np.float64) for row in (norm.gamma, norm.beta, norm.mean, norm.variance)])

    @cached_property
    def infinite(self) -> Channels:
        return np.asarray(~np.isfinite(self.numbers).all(axis=0))

    @cached_property
    def not_positive(self) -> Channels:
        return np.asarray(~self.infinite & (self.numbers[3] + self.norm.epsilon <= 0))

    @cached_property
    def sound(self) -> Channels:
        return ~self.infinite & ~self.not_positive

    @cached_property
    def dead(self) -> Channels:
        """Zero at every input: by gamma and beta, or by the ReLU that is the only reader."""
        gamma, beta = self.numbers[:2]
        cut = (beta <= -DEVIATIONS * np.abs(gamma)) & self.norm.rectified
        return np.asarray(self.sound & (((gamma == 0) & (beta == 0)) | cut))

    @cached_property
    def constant(self) -> Channels:
        return np.asarray(self.sound & (self.numbers[0] == 0) & ~self.dead)

    @cached_property
    def live(self) -> Channels:
        return self.sound & ~self.dead & ~self.constant


def remarks(norm: StoredNorm, *, stays: bool, front: Callable[[], InFront | None] = unknown) -> Iterator[Remark]:
    """What is unusual about a batch norm that is a fixed map: its settings, its place, then its statistics."""
    looked = Looked(norm, stays, front)
    yield from _settings(norm)
    alike = len({np.shape(each) for each in (norm.gamma, norm.beta, norm.mean, norm.variance)}) == 1
    if 0 < norm.dropout < 1:
        measured = alike and norm.unmixed and not _untrained(norm)
        yield _noise(norm.dropout, _noisier(looked) if measured else _expected(norm.dropout))
    if not alike or norm.mean.size == 0:
        return
    yield from _broken(looked)
    if _untrained(norm):
        text = "has a running mean of 0 and a running variance of 1 in every channel, as before the first training step"
        yield Remark(Condition.UNTRAINED, "warning", text)
        return
    yield from _young(looked)
    yield from _variances(looked)
    yield from _outputs(looked)


def _settings(norm: StoredNorm) -> Iterator[Remark]:
    low, high = USUAL_EPSILON
    if not low <= norm.epsilon <= high:
        text = f"has an epsilon of {norm.epsilon:.3g}, outside {low:g} to {high:g}"
        yield Remark(Condition.UNUSUAL_EPSILON, "note", text)
    if norm.kept is not None and norm.kept < LEAST_KEPT:
        text = f"would keep only {norm.kept:.3g} of its running statistics at each training step"
        yield Remark(Condition.UNUSUAL_MOMENTUM, "note", text)


def _noise(probability: float, how_much: str) -> Remark:
    text = f"reads what a dropout of {probability:.3g} has passed: its stored variance is that of noisier inputs"
    return Remark(Condition.DROPOUT_BEFORE_NORM, "note", f"{text}, {how_much}")


def _expected(probability: float) -> str:
    return f"{1 / (1 - probability):.3g} times as large where they are independent and of mean 0"


def _noisier(looked: Looked) -> str:
    """How much of the stored variance `v` is noise in the worst channel, where every number read was dropped or scaled.

    With the probability `p` of dropping, the mean `m` is that at inference, and `v = (s + m²) / (1 - p) - m²` for the
    variance `s` at inference; so `s / v = (1 - p) - p m² / v`.
    """
    mean, variance = looked.numbers[2:]
    noisy, dropped = looked.live & (variance > 0), looked.norm.dropout
    if not noisy.any():
        return _expected(dropped)
    left = np.full(variance.shape, np.inf)
    left[noisy] = (1 - dropped) - dropped * np.square(mean[noisy]) / variance[noisy]
    worst = int(left.argmin())
    numbers = f"channel {worst}, by its mean of {mean[worst]:.3g} and variance of {variance[worst]:.3g}"
    if left[worst] < ALL_NOISE:
        return f"and noise alone in {numbers}, if it was measured with the dropout on"
    return f"{1 / left[worst]:.3g} times as large as without it in {numbers}"


def _untrained(norm: StoredNorm) -> bool:
    """Whether no step has changed the statistics. One without epsilon is frozen: it stores no statistics at all."""
    return norm.epsilon > 0 and not np.any(norm.mean) and bool(np.all(norm.variance == 1))


def _young(looked: Looked) -> Iterator[Remark]:
    """Whether much of the running statistics is still the mean of 0 and the variance of 1 that they began with.

    A variance smaller than that part of 1 has not been averaged so: `torch.optim.swa_utils.update_bn` counts batches
    too, but weighs them alike, and a network may have begun with statistics of its own.
    """
    kept, batches = looked.norm.kept, looked.norm.batches or 0
    if kept is None or not 0 < kept < 1 or batches <= 0:
        return
    begun = kept**batches
    if begun > STALE and not np.any(looked.numbers[3][looked.sound] < begun * (1 - ROUNDED)):
        steps = "1 batch" if batches == 1 else f"{batches} batches"
        text = (
            f"has counted {steps} with a momentum of {1 - kept:.3g}: {kept:.3g}^{batches} = {100 * begun:.3g} % of its "
            "running statistics is still the mean 0 and the variance 1 that they begin with"
        )
        yield Remark(Condition.FEW_BATCHES, _by_part(begun), text)


def _broken(looked: Looked) -> Iterator[Remark]:
    for reason, channels in (
        (Reason.VARIANCE_NOT_POSITIVE, looked.not_positive),
        (Reason.NON_FINITE, looked.infinite),
    ):
        if channels.any():
            yield Remark(reason, "error", reason.message, channels)


def _variances(looked: Looked) -> Iterator[Remark]:
    variance = looked.numbers[3]
    if not looked.live.any():
        return
    yield from _near_zero(looked)
    huge = looked.sound & (variance > FLOAT16_LARGEST)
    if huge.any():
        text = f"the running variance reaches {variance[huge].max():.3g}, beyond what float16 holds"
        yield Remark(Condition.HUGE_VARIANCE, "warning", text, huge)


def _near_zero(looked: Looked) -> Iterator[Remark]:
    variance, epsilon = looked.numbers[3], looked.norm.epsilon
    median = float(np.median(variance[looked.live]))
    negligible = looked.live & (variance < NEGLIGIBLE * epsilon)
    outlying = looked.live & (variance < OUTLYING * median) & ~negligible
    for still, limit in (
        (negligible, f"{NEGLIGIBLE:g} times epsilon ({epsilon:.3g}), so epsilon sets the scale, which is"),
        (outlying, f"{OUTLYING:g} times the median channel's ({median:.3g}), with a scale of"),
    ):
        if still.any():
            text = (
                f"the running variance is {_range(variance[still])}, below {limit} {_range(_scales(looked)[still])}: "
                f"{_cause(looked, still)}"
            )
            yield Remark(Condition.NEAR_ZERO_VARIANCE, _by_share(still), text, still)


def _range(numbers: Wide) -> str:
    """`3`, or `3 to 5` for several."""
    low, high = (f"{number:.3g}" for number in (numbers.min(), numbers.max()))
    return low if low == high else f"{low} to {high}"


def _cause(looked: Looked, still: Channels) -> str:
    """Why channels hardly varied: the weights that make them are small, where that is known; it may be their input."""
    front = looked.front()
    if front is not None:
        usual, largest = float(np.median(front.largest[looked.live])), float(front.largest[still].max())
        if largest <= SMALL_WEIGHTS * usual:
            least = f"at least {usual / largest:.3g} times smaller than the median channel's" if largest else "0"
            return f"the weights of {front.name} in front of it are {least}"
    return "its input hardly varied in training, or the weights in front of it are tiny"


def _outputs(looked: Looked) -> Iterator[Remark]:
    if looked.dead.any():
        text = "the output is zero for every input: gamma and beta are 0, or the ReLU behind it never fires"
        yield Remark(Condition.DEAD_CHANNELS, _by_share(looked.dead), text, looked.dead)
    if looked.constant.any():
        text = "gamma is 0, so the output is beta for every input"
        yield Remark(Condition.CONSTANT_CHANNELS, _by_share(looked.constant), text, looked.constant)
    scales = _scales(looked)
    over = scales > FLOAT16_LARGEST
    if looked.stays and over.any():
        text = f"the scale gamma / sqrt(variance + eps) is up to {scales.max():.3g}, which float16 does not hold"
        yield Remark(Condition.FLOAT16_OVERFLOW, "warning", text, over)


def _scales(looked: Looked) -> Wide:
    """`|gamma| / sqrt(variance + eps)`, 0 where that is no number."""
    gamma, _, _, variance = looked.numbers
    positive = np.where(looked.sound, variance + looked.norm.epsilon, 1.0)
    return np.asarray(np.where(looked.sound, np.abs(gamma), 0.0) / np.sqrt(positive))


def _by_share(channels: Channels) -> str:
    return "warning" if channels.mean() > MOST else "note"


def _by_part(begun: float) -> str:
    return "warning" if begun > MOST else "note"


def indices(channels: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(index) for index in np.flatnonzero(channels))


def told(channels: Channels) -> str:
    """`channel 3`, `5 of 64 channels`."""
    (places,) = np.nonzero(channels)
    return f"channel {places[0]}" if len(places) == 1 else f"{len(places)} of {len(channels)} channels"
