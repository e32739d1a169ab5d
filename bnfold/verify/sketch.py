"""What is kept of a value that is too large to keep: its size, its moments, and a sample of its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLED = 2048
_PRIME = 1_000_003


@dataclass(frozen=True, eq=False)
class Sketch:
    """`sample` holds the same places of every array of one shape; `finite` says that nothing is NaN or infinite."""

    shape: tuple[int, ...]
    sample: NDArray[np.float64]
    finite: bool
    mean: float
    std: float
    least: float
    most: float

    @classmethod
    def of(cls, value: NDArray[Any]) -> Sketch:
        """A sketch of an array of any floating-point type."""
        flat = np.asarray(value, dtype=np.float64).reshape(-1)
        finite = flat if np.isfinite(flat.sum()) else flat[np.isfinite(flat)]
        moments = (finite.mean(), finite.std(), finite.min(), finite.max()) if finite.size else (0.0,) * 4
        places = _places(flat.size)
        return cls(value.shape, flat[places], finite.size == flat.size, *(float(moment) for moment in moments))

    @property
    def rms(self) -> float:
        return float(np.hypot(self.mean, self.std))

    @property
    def tells(self) -> bool:
        """Whether the value can be told from others: it is no single number, and not empty."""
        return self.finite and self.std > 0

    def difference(self, other: Sketch) -> float:
        """The difference of the samples where both are finite, relative to the size of the values; infinite for
        another shape or where nothing can be compared."""
        if self.shape != other.shape:
            return float("inf")
        both = np.isfinite(self.sample) & np.isfinite(other.sample)
        scale = min(self.rms, other.rms)
        if not both.any() or not scale:
            return float("inf")
        return float(np.sqrt(np.mean((self.sample[both] - other.sample[both]) ** 2)) / scale)

    def draw(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Normal numbers of these moments that stay where the value was: none below its least, none above its most."""
        drawn = self.mean + self.std * random.standard_normal(self.shape)
        return np.clip(drawn, self.least, self.most)


def _places(size: int) -> NDArray[np.int64]:
    """Places spread over an array without the rhythm of any of its axes; all of a small one."""
    if size <= SAMPLED:
        return np.arange(size)
    return np.sort(np.unique(np.arange(SAMPLED, dtype=np.int64) * _PRIME % size))
