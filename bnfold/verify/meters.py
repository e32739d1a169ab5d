"""How far the runtime's results are from float64: the error of the original, that of the candidate, and their ratio.

A correct candidate is about as wrong as the original, whatever the network, so no tolerance has to be guessed. What is
no number goes through no ratio: integers, ranks, and rows that come in no order are `decisions`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from bnfold.model import Signature
from bnfold.verify.compare import Array, Arrays, is_float, pattern
from bnfold.verify.decisions import Tally, places, rows, top
from bnfold.verify.result import OutputComparison

EPSILONS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
FIVE = 5


@dataclass(frozen=True)
class Tolerance:
    """For those who must: `|candidate − reference| ≤ atol + rtol · |reference|`, element by element."""

    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True)
class Typical:
    """The typical ratio of errors over inputs that are one rounding apart, and how far rounding moved the reference at
    most, relative to the size of its values."""

    ratio: float
    moved: float


@dataclass
class Meter:
    """The errors of one output, pooled over all inputs; each input's errors are divided by the size of its values.

    `stored` is the type in which the original keeps its weights, into which a fold rounds: where the runtime computes
    in more digits, the original's error may be far below that of any fold.
    `decided` counts integers and rows, `first` and `five` whether the largest and the five largest of each row are the
    same. `mismatch` is what no error explains. `squares` has the squared errors of the original and of the candidate by
    the number of the input; for those in `typical` the typical ratio stands in for them.
    """

    name: str
    tolerance: Tolerance | None = None
    stored: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    squares: dict[int, tuple[int, float, float]] = field(default_factory=dict)
    max_abs: float = 0.0
    max_rel: float = 0.0
    decided: Tally = field(default_factory=Tally)
    first: Tally = field(default_factory=Tally)
    five: Tally = field(default_factory=Tally)
    beyond: int = 0
    mismatch: str | None = None
    inputs: int = 0
    typical: dict[int, Typical] = field(default_factory=dict)

    def add(self, exact: Array, reference: Array, candidate: Array) -> None:
        """Take in one input: the output in float64, of the original, and of the candidate."""
        self.see(reference)
        self.inputs += 1
        if candidate.shape != reference.shape:
            self.mismatch = f"has shape {list(candidate.shape)} instead of {list(reference.shape)}"
        elif not is_float(reference):
            self.decided += places(exact, reference, candidate)
        elif exact.shape == reference.shape:
            self._add_numbers(exact, reference.astype(np.float64), candidate.astype(np.float64))

    def see(self, reference: Array) -> None:
        """Note what kind of output it is."""
        if not self.dtype:
            self.dtype, self.shape = reference.dtype.name, reference.shape

    def _add_numbers(self, exact: Array, reference: Array, candidate: Array) -> None:
        """NaN and infinities must be where the original has them, unless it has them elsewhere than float64."""
        if np.any(np.isfinite(exact) & ~np.isfinite(reference)) or not np.isfinite(reference).any():
            return
        settled = pattern(exact) == pattern(reference)
        if np.any(settled & (pattern(reference) != pattern(candidate))):
            self.mismatch = "is NaN or infinite at other places than the reference"
            return
        finite = np.isfinite(reference) & np.isfinite(exact) & np.isfinite(candidate)
        if not finite.any():
            return
        truth, before, after = exact[finite], reference[finite], candidate[finite]
        scale = float(np.sqrt(np.mean(truth**2))) or 1.0
        gap = np.abs(after - before)
        one, other = (float(np.sum(((value - truth) / scale) ** 2)) for value in (before, after))
        self.squares[self.inputs - 1] = truth.size, one, other
        self.max_abs = max(self.max_abs, float(gap.max()))
        self.max_rel = max(self.max_rel, float(gap.max() / scale))
        if self.tolerance:
            self.beyond += int((gap > self.tolerance.atol + self.tolerance.rtol * np.abs(before)).sum())
        if exact.ndim == 2 and finite.all():
            self._add_ranks(exact, reference, candidate)

    def _add_ranks(self, exact: Array, reference: Array, candidate: Array) -> None:
        if exact.shape[1] > 1:
            self.first += top(1, exact, reference, candidate, self.epsilon)
        if exact.shape[1] > FIVE:
            self.five += top(FIVE, exact, reference, candidate, self.epsilon)

    @property
    def epsilon(self) -> float:
        """Of the output's type or the weights', whichever has fewer digits; 0 for what are no floats."""
        return max(EPSILONS[self.dtype], EPSILONS.get(self.stored, 0.0)) if self.dtype in EPSILONS else 0.0

    @property
    def compared(self) -> bool:
        return bool(self.squares) or self.decided.compared > 0

    @property
    def furthest(self) -> int | None:
        """The input at which the candidate's error is largest, of those that are judged by it."""
        left = self.squares.keys() - self.typical.keys()
        return max(left, key=lambda index: self.squares[index][2], default=None)

    def _errors(self, inputs: Collection[int]) -> tuple[float, float]:
        """Root mean squares of the original and of the candidate, over these inputs."""
        counts, before, after = zip(*(self.squares[index] for index in inputs), strict=True)
        return math.sqrt(sum(before) / sum(counts)), math.sqrt(sum(after) / sum(counts))

    @property
    def floor(self) -> float:
        """Half an epsilon: an error below it is as good as none."""
        return 0.5 * self.epsilon

    @property
    def rounding(self) -> str | None:
        """The type whose rounding stands in the ratio for an error that is smaller; None if both are larger."""
        left = self.squares.keys() - self.typical.keys()
        if not left or min(self._errors(left)) >= self.floor:
            return None
        return max((self.dtype, self.stored), key=lambda name: EPSILONS.get(name, 0.0))

    def _ratio(self) -> float:
        ratios = [found.ratio for found in self.typical.values()]
        if left := self.squares.keys() - self.typical.keys():
            before, after = (max(error, self.floor) for error in self._errors(left))
            ratios.append(after / before)
        return max(ratios)

    def result(self) -> OutputComparison:
        """What was found. The ratio is taken above the floor."""
        decisions = self.decided + self.first
        counts = decisions.compared, decisions.differ, decisions.excused, self.five.differ, self.five.excused
        if not self.squares:
            return OutputComparison(self.name, self.dtype, self.shape, None, None, None, None, None, *counts)
        rmse_reference, rmse_candidate = self._errors(self.squares)
        ratio = self._ratio() if self.floor else None
        errors = rmse_reference, rmse_candidate, ratio, self.max_abs, self.max_rel
        return OutputComparison(self.name, self.dtype, self.shape, *errors, *counts)


def loose_axes(signature: Signature) -> dict[str, int]:
    """The outputs whose number of rows the model finds out when it runs, and the axis that counts them.

    Nothing that goes in has such a size: it is found behind NonMaxSuppression, NonZero and their like.
    """
    known = {size for port in signature.inputs for size in port.shape or ()} - {None}
    axes = {}
    for port in signature.outputs:
        found = [i for i, size in enumerate(port.shape or ()) if not isinstance(size, int) and size not in known]
        if found or port.shape is None:
            axes[port.name] = found[0] if found else 0
    return axes


@dataclass
class EndToEnd:
    """One meter per output. `stored` is the type in which the original keeps its weights; `loose` names the outputs
    whose rows may come in any order, and the axis of the rows."""

    tolerance: Tolerance | None = None
    stored: str = ""
    loose: Mapping[str, int] = field(default_factory=dict)
    meters: dict[str, Meter] = field(default_factory=dict)

    def add(self, exact: Arrays, reference: Arrays, candidate: Arrays) -> None:
        """Take in one input's outputs, which have the same names."""
        for name, value in reference.items():
            self.meters.setdefault(name, Meter(name, self.tolerance, self.stored)).see(value)
        unordered = self._unordered(exact, reference, candidate)
        for names in unordered:
            tally = self._rows(names, exact, reference, candidate)
            for name in names:
                self.meters[name].decided += tally
        for name in reference.keys() - {name for names in unordered for name in names}:
            self.meters[name].add(exact[name], reference[name], candidate[name])

    def _unordered(self, *results: Arrays) -> list[list[str]]:
        """Outputs that have equally many rows (of one detection each, say), where these are not the same in order."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, axis in self.loose.items():
            values = [each[name] for each in results]
            others = {(*value.shape[:axis], *value.shape[axis + 1 :]) for value in values if value.ndim > axis}
            if len(others) == 1 and all(value.ndim > axis and _is_number(value) for value in values):
                groups.setdefault(tuple(value.shape[axis] for value in values), []).append(name)
        return [names for names in groups.values() if any(_moved(*(each[name] for each in results)) for name in names)]

    def _rows(self, names: list[str], exact: Arrays, reference: Arrays, candidate: Arrays) -> Tally:
        """Compare the rows of some outputs side by side, as sets."""

        def table(results: Arrays) -> Array:
            return np.concatenate([_table(results[name], self.loose[name]) for name in names], axis=1)

        widths = [_table(reference[name], self.loose[name]).shape[1] for name in names]
        floats = np.repeat([is_float(reference[name]) for name in names], widths)
        epsilon = max(self.meters[name].epsilon for name in names)
        return rows(table(exact), table(reference), table(candidate), floats, epsilon)

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


def _is_number(value: Array) -> bool:
    return is_float(value) or value.dtype.kind in "iub"


def _moved(exact: Array, reference: Array, candidate: Array) -> bool:
    """Whether two results differ by more than any rounding would make them."""
    if not exact.shape == reference.shape == candidate.shape:
        return True
    if not is_float(reference):
        return not np.array_equal(reference, candidate)
    before, after = reference.astype(np.float64), candidate.astype(np.float64)
    size = np.abs(before[np.isfinite(before)]).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        return bool(np.any(np.abs(after - before) > np.sqrt(EPSILONS[reference.dtype.name]) * size))


def _table(value: Array, axis: int) -> Array:
    rows_first = np.moveaxis(value, axis, 0).astype(np.float64)
    return rows_first.reshape(len(rows_first), int(np.prod(rows_first.shape[1:])))
