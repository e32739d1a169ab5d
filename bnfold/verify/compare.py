"""How two results are compared: against float64, and never where there is nothing to compare.

`Semantics` gathers the difference of two float64 executions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]


def is_float(value: Array) -> bool:
    """Whether an array is compared by its errors, not for equality."""
    return bool(np.issubdtype(value.dtype, np.floating)) or value.dtype == ml_dtypes.bfloat16


def has_finite(value: Array) -> bool:
    """Whether there is anything to compare in an array that is not empty."""
    return not is_float(value) or bool(np.isfinite(value.astype(np.float64)).any())


def pattern(values: Array) -> Array:
    """Where there is a number (0), NaN (2), +∞ (1) or −∞ (−1)."""
    return np.where(np.isnan(values), 2, np.where(np.isinf(values), np.sign(values), 0))


def relative_difference(expected: Array, found: Array, usual: float = 0.0) -> float | None:
    """The largest difference over the largest magnitude, or over `usual` if that is larger.

    Infinite where shape, NaN or an integer differ.

    None where nothing can be compared: an empty array, or one without a finite value.
    """
    if expected.shape != found.shape:
        return float("inf")
    if expected.size == 0:
        return None
    if not is_float(expected):
        return 0.0 if np.array_equal(expected, found) else float("inf")
    finite = np.isfinite(expected)
    if not finite.any():
        return None
    if not np.array_equal(pattern(expected), pattern(found)):
        return float("inf")
    gap = float(np.abs(expected[finite] - found[finite]).max())
    scale = max(_largest(expected), usual)
    return gap / scale if gap and scale else (float("inf") if gap else 0.0)


def _largest(values: Array) -> float:
    """The largest finite magnitude; 0 where there is none."""
    if not is_float(values):
        return 0.0
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


@dataclass
class Semantics:
    """The worst relative difference of two float64 executions, and where it was.

    A difference is relative to the largest value of the output for this input or for the first input, whichever is
    larger: an input of tiny numbers must not turn the rounding of a large bias into a difference.
    """

    figure: float = 0.0
    output: str = ""
    compared: int = 0
    usual: dict[str, float] = field(default_factory=dict)

    def add(self, expected: Arrays, found: Arrays) -> None:
        """Take in one input's outputs, which have the same names."""
        for name, value in expected.items():
            usual = self.usual.setdefault(name, _largest(value))
            difference = relative_difference(value, found[name], usual)
            if difference is None:
                continue
            self.compared += 1
            if difference > self.figure or not self.output:
                self.figure, self.output = max(difference, self.figure), name
