"""Mean and variance per channel: pooled over batches without cancellation, and compared with those that were stored.

    moments = Moments.of(counts, means, squares) + Moments.of(…)
    drift = drift_of("layer1.bn", stored, moments.statistics, epsilon)

Everything here is float64 numpy and knows nothing of modules.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.display import brief, plain, table

Floats = NDArray[np.float64]

LONGEST_NAME = 30
"""Of a batch norm, in a line about all of them."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a batch norm stores: mean and variance of each channel, both `(channels,)` in float64."""

    mean: Floats
    variance: Floats

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.variance).all())

    def near(self, other: Statistics, epsilon: float, tolerance: float) -> bool:
        """Whether the other ones differ by no more than `tolerance`, relative to mean and deviation. What is not finite
        in both does not differ."""
        with np.errstate(invalid="ignore", over="ignore"):
            spread = self.variance + epsilon
            means = np.abs(self.mean - other.mean) <= tolerance * (np.abs(self.mean) + np.sqrt(spread))
            variances = np.abs(self.variance - other.variance) <= tolerance * spread
        broken = [~np.isfinite(each.mean + each.variance) for each in (self, other)]
        return bool(((means & variances) | (broken[0] & broken[1])).all())


@dataclass(frozen=True, eq=False)
class Moments:
    """Of `count` values per channel, which came in `calls` parts: the mean, and the sum of the squared distances from
    it, both `(channels,)` in float64."""

    count: int
    calls: int
    mean: Floats
    squares: Floats

    def __add__(self, other: Moments) -> Moments:
        """The moments of all values of both (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
        computing sample variances", 1979): nothing large is subtracted from something as large."""
        count = self.count + other.count
        with np.errstate(invalid="ignore", over="ignore"):
            apart = other.mean - self.mean
            mean = self.mean + apart * (other.count / count)
            squares = self.squares + other.squares + apart**2 * (self.count * other.count / count)
        return Moments(count, self.calls + other.calls, mean, squares)

    @property
    def statistics(self) -> Statistics:
        """The mean and the unbiased variance; there must be two values per channel."""
        return Statistics(self.mean, self.squares / (self.count - 1))


@dataclass(frozen=True)
class Drift:
    """How far the stored statistics of one batch norm stood from those of `count` values per channel.

    A deviation σ is `sqrt(variance + epsilon)`, what the batch norm divides by. `mean_max` and `mean_rms` are over
    channels of (new mean - old mean) / old σ, in absolute value; `variance_low` and `variance_high` are the extremes of
    (new σ / old σ)². In the worst channel a normal distribution of the new moments diverges most from one of the old:
    by `divergence` nats (Kullback and Leibler). A figure is NaN where what was stored was not finite.
    """

    name: str
    channels: int
    count: int
    mean_max: float
    mean_rms: float
    variance_low: float
    variance_high: float
    worst_channel: int
    divergence: float


def drift_of(name: str, count: int, old: Statistics, new: Statistics, epsilon: float) -> Drift:
    """The drift from the old statistics to the new ones, which `count` values per channel gave."""
    with np.errstate(all="ignore"):
        shift = np.abs(new.mean - old.mean) / np.sqrt(old.variance + epsilon)
        ratio = (new.variance + epsilon) / (old.variance + epsilon)
        divergence = (shift**2 + ratio - 1 - np.log(ratio)) / 2
        return Drift(
            name=name,
            channels=len(shift),
            count=count,
            mean_max=float(shift.max()),
            mean_rms=float(np.sqrt(np.mean(shift**2))),
            variance_low=float(ratio.min()),
            variance_high=float(ratio.max()),
            worst_channel=int(divergence.argmax()),
            divergence=float(divergence.max()),
        )


@dataclass(frozen=True)
class Untouched:
    """A batch norm whose statistics stay as they were, and why: a stable code and a sentence ("it" is the layer)."""

    name: str
    code: str
    message: str


@dataclass(frozen=True)
class DriftReport:
    """One row per batch norm: those that were measured, in the order of their first call, and those left.

    `passes` is how often all of the data was read; the last pass found again what the one before it had stored.
    """

    layers: tuple[Drift, ...]
    left: tuple[Untouched, ...]
    passes: int

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON holds it; numbers that it cannot hold are the strings "nan" and "inf"."""
        found: dict[str, Any] = plain(asdict(self))
        return found

    def __repr__(self) -> str:
        worst = sorted(self.layers, key=_divergence)[-1:]
        return f"DriftReport({'; '.join([self._counted(), *map(_sentence, worst)])})"

    def _repr_html_(self) -> str:
        """A table for notebooks: per batch norm how far it had drifted, then those that were left."""
        measured = [(layer.name, _range(layer), f"{layer.divergence:.2g}") for layer in self.layers]
        left = [(row.name, f"left: {row.code}", "") for row in self.left]
        return table(self._counted(), ("batch norm", "drift", "divergence (nats)"), [*measured, *left])

    def _counted(self) -> str:
        times = f"{self.passes} pass{'es' * (self.passes != 1)}"
        return f"{len(self.layers)} of {len(self.layers) + len(self.left)} batch norms in {times}"


def _divergence(layer: Drift) -> float:
    """What it is sorted by: a layer whose statistics were broken diverges most."""
    return math.inf if math.isnan(layer.divergence) else layer.divergence


def _sentence(layer: Drift) -> str:
    return f"most in {brief(layer.name, LONGEST_NAME)}: {_range(layer)}"


def _range(layer: Drift) -> str:
    return (
        f"means moved by up to {layer.mean_max:.2g} σ, "
        f"variances became {layer.variance_low:.2g} to {layer.variance_high:.2g} times what they were"
    )
