"""Ratios of running times, with the uncertainty that they deserve.

Timings inside one process are alike, those of two processes are not: memory lands elsewhere, the machine has moved on.
So the interval comes from a hierarchical bootstrap: processes are drawn first, then blocks of rounds within each, for
rounds that follow each other are alike too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CONFIDENCE = 0.95
SMALLEST_EFFECT = 0.02
FEWEST_PROCESSES = 2
_DRAWS = 1000
_BLOCKS = 40
_NORMAL = 1.960
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""The 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom."""


class Comparison(StrEnum):
    """What may be said of two contenders. Faster: the second needs less time than the first."""

    FASTER = "faster"
    SLOWER = "slower"
    NO_MEASURABLE_DIFFERENCE = "no_measurable_difference"
    NO_VERDICT = "no_verdict"


@dataclass(frozen=True)
class Interval:
    """A ratio of times and the interval that covers it with 95 % confidence."""

    ratio: float
    low: float
    high: float

    @property
    def excludes_one(self) -> bool:
        """Whether the two cannot be taken for equal."""
        return self.low > 1 or self.high < 1


def ratio_interval(processes: Sequence[Array], *, seed: int = 0) -> Interval | None:
    """The time of the first over that of the second; one array of shape `(rounds, 2)`, in seconds, per process.

    The estimate is the geometric mean over processes of the ratio of medians. A bootstrap over few processes is too
    narrow, so the interval is widened as Student's t is wider than the normal distribution. None for fewer than two
    processes.
    """
    rounds = [_blocks(times) for times in processes if len(times)]
    count = len(rounds)
    if count < FEWEST_PROCESSES:
        return None
    estimate = float(np.mean([_log_ratio(times) for times in rounds]))
    random = np.random.default_rng(seed)
    within = np.stack([_log_ratio(times[random.integers(0, len(times), (_DRAWS, len(times)))]) for times in rounds])
    chosen = random.integers(0, count, (_DRAWS, count))
    draws = within[chosen, random.integers(0, _DRAWS, (_DRAWS, count))].mean(axis=1)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    wider = _student(count - 1) / _NORMAL * (count / (count - 1)) ** 0.5
    bounds = (estimate + wider * (float(edge) - estimate) for edge in (low, high))
    return Interval(float(np.exp(estimate)), *(float(np.exp(bound)) for bound in bounds))


def _blocks(times: Array) -> Array:
    """At most `_BLOCKS` rows, each the median of rounds that follow each other."""
    return np.stack([np.median(block, axis=0) for block in np.array_split(times, min(len(times), _BLOCKS))])


def _log_ratio(times: Array) -> Array:
    """Of arrays `(…, rounds, 2)`, the logarithm of the ratio of medians."""
    medians = np.log(np.median(times, axis=-2))
    return np.asarray(medians[..., 0] - medians[..., 1])


def _student(freedom: int) -> float:
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL * (1 + 1.3 / freedom)


def judge(interval: Interval | None, control: Interval | None) -> Comparison:
    """What an interval allows to say, given the interval of a contender against itself."""
    if interval is None or control is None or control.excludes_one:
        return Comparison.NO_VERDICT
    if interval.low > 1 and interval.ratio >= 1 + SMALLEST_EFFECT:
        return Comparison.FASTER
    if interval.high < 1 and interval.ratio <= 1 / (1 + SMALLEST_EFFECT):
        return Comparison.SLOWER
    return Comparison.NO_MEASURABLE_DIFFERENCE


def percentile(times: Array, quantile: float) -> float | None:
    """A quantile of some times in seconds; None where fewer than five of them lie beyond it."""
    enough = len(times) * min(quantile, 1 - quantile) >= 5 if quantile != 0.5 else len(times) > 0
    return float(np.quantile(times, quantile)) if enough else None
