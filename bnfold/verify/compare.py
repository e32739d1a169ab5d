"""How two results are compared: against float64, and never where there is nothing to compare.

`Semantics` gathers the difference of two float64 executions. `EndToEnd` gathers, per output, the error of the original
and of the candidate against float64, in the arithmetic that will really run, and the ratio of the two: a correct
candidate is about as wrong as the original, whatever the network, so no tolerance has to be guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bnfold.verify.result import OutputComparison

Array = NDArray[Any]
Arrays = Mapping[str, Array]


EPSILONS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


@dataclass(frozen=True)
class Tolerance:
    """For those who must: `|candidate − reference| ≤ atol + rtol · |reference|`, element by element."""

    rtol: float = 0.0
    atol: float = 0.0


def is_float(value: Array) -> bool:
    """Whether an array is compared by its errors, not for equality."""
    return bool(np.issubdtype(value.dtype, np.floating)) or value.dtype == ml_dtypes.bfloat16


def has_finite(value: Array) -> bool:
    """Whether there is anything to compare in an array that is not empty."""
    return not is_float(value) or bool(np.isfinite(value.astype(np.float64)).any())


def same_pattern(first: Array, second: Array) -> bool:
    """NaN, +∞ and −∞ at the same places."""
    return all(
        np.array_equal(where(first), where(second))
        for where in (np.isnan, lambda v: v == np.inf, lambda v: v == -np.inf)
    )


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
    if not same_pattern(expected, found):
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


@dataclass
class Meter:
    """The errors of one output, pooled over all inputs; each input's errors are divided by the size of its values."""

    name: str
    tolerance: Tolerance | None = None
    dtype: str = ""
    shape: tuple[int, ...] = ()
    numbers: int = 0
    squares_reference: float = 0.0
    squares_candidate: float = 0.0
    max_abs: float = 0.0
    max_rel: float = 0.0
    decisions: int = 0
    differ: int = 0
    excused: int = 0
    beyond: int = 0
    mismatch: str | None = None

    def add(self, exact: Array, reference: Array, candidate: Array) -> None:
        """Take in one input: the output in float64, of the original, and of the candidate."""
        if not self.dtype:
            self.dtype, self.shape = reference.dtype.name, reference.shape
        if candidate.shape != reference.shape:
            self.mismatch = f"has shape {list(candidate.shape)} instead of {list(reference.shape)}"
        elif not is_float(reference):
            self._add_decisions(exact, reference, candidate)
        elif exact.shape == reference.shape:
            self._add_numbers(exact, reference.astype(np.float64), candidate.astype(np.float64))

    def _add_decisions(self, exact: Array, reference: Array, candidate: Array) -> None:
        """Exact equality; a difference is excused where the original itself does not agree with float64."""
        differs = reference != candidate
        undecided = exact != reference if exact.shape == reference.shape else np.ones_like(differs)
        self.decisions += reference.size
        self.excused += int((differs & undecided).sum())
        self.differ += int((differs & ~undecided).sum())

    def _add_numbers(self, exact: Array, reference: Array, candidate: Array) -> None:
        if np.any(np.isfinite(exact) & ~np.isfinite(reference)):
            return
        if not np.isfinite(reference).any():
            return
        if not same_pattern(reference, candidate):
            self.mismatch = "is NaN or infinite at other places than the reference"
            return
        finite = np.isfinite(reference) & np.isfinite(exact)
        if not finite.any():
            return
        truth, before, after = exact[finite], reference[finite], candidate[finite]
        scale = float(np.sqrt(np.mean(truth**2))) or 1.0
        gap = np.abs(after - before)
        self.numbers += truth.size
        self.squares_reference += float(np.sum(((before - truth) / scale) ** 2))
        self.squares_candidate += float(np.sum(((after - truth) / scale) ** 2))
        self.max_abs = max(self.max_abs, float(gap.max()))
        self.max_rel = max(self.max_rel, float(gap.max() / scale))
        if self.tolerance:
            self.beyond += int((gap > self.tolerance.atol + self.tolerance.rtol * np.abs(before)).sum())
        if exact.ndim == 2 and exact.shape[1] > 1 and finite.all():
            self._add_top1(exact, reference, candidate)

    def _add_top1(self, exact: Array, reference: Array, candidate: Array) -> None:
        """The largest of each row; a change is excused where the original's margin is within its own error."""
        differs = reference.argmax(axis=1) != candidate.argmax(axis=1)
        second, first = np.sort(reference, axis=1)[:, -2:].T
        undecided = first - second <= 2 * np.abs(reference - exact).max(axis=1)
        self.decisions += len(differs)
        self.excused += int((differs & undecided).sum())
        self.differ += int((differs & ~undecided).sum())

    @property
    def is_decision(self) -> bool:
        """An integer or boolean output."""
        return self.dtype not in EPSILONS

    @property
    def compared(self) -> bool:
        return self.numbers > 0 or self.decisions > 0

    def result(self) -> OutputComparison:
        """What was found. The ratio is taken above a floor of half an epsilon: below it both are as good as exact."""
        if not self.numbers:
            nothing = (None,) * 5
            return OutputComparison(
                self.name, self.dtype, self.shape, *nothing, self.decisions, self.differ, self.excused
            )
        rmse_reference, rmse_candidate = (
            float(np.sqrt(squares / self.numbers)) for squares in (self.squares_reference, self.squares_candidate)
        )
        floor = 0.5 * EPSILONS.get(self.dtype, 0.0)
        return OutputComparison(
            self.name,
            self.dtype,
            self.shape,
            rmse_reference,
            rmse_candidate,
            max(rmse_candidate, floor) / max(rmse_reference, floor) if floor else None,
            self.max_abs,
            self.max_rel,
            self.decisions,
            self.differ,
            self.excused,
        )


@dataclass
class EndToEnd:
    """One meter per output."""

    tolerance: Tolerance | None = None
    meters: dict[str, Meter] = field(default_factory=dict)

    def add(self, exact: Arrays, reference: Arrays, candidate: Arrays) -> None:
        """Take in one input's outputs, which have the same names."""
        for name, value in reference.items():
            meter = self.meters.setdefault(name, Meter(name, self.tolerance))
            meter.add(exact[name], value, candidate[name])

    @property
    def compared(self) -> bool:
        """Whether anything was."""
        return any(meter.compared or meter.mismatch for meter in self.meters.values())

    @property
    def worst_ratio(self) -> float | None:
        """The largest ratio of errors among the outputs that have one."""
        return max((row.ratio for row in self.results() if row.ratio is not None), default=None)

    def results(self) -> tuple[OutputComparison, ...]:
        """One row per output, in order."""
        return tuple(meter.result() for meter in self.meters.values())
