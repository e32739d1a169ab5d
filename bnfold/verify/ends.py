"""What the runtime's results say: complaints about outputs (L4), and whose doing they are (L5).

A result is complained of when it is further from float64 than the original's with the runtime's optimisations off. L5
takes the same measure of both models with those on: what goes wrong only then is the runtime's own doing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from bnfold.verify.compare import Arrays
from bnfold.verify.draws import Neighbours, draw_again
from bnfold.verify.machines import Machine, Subject
from bnfold.verify.meters import EndToEnd, Meter, Tolerance, loose_axes
from bnfold.verify.plan import RATIO_LIMIT, RATIO_WARNING, CheckPlan
from bnfold.verify.result import Layer, Status

Complaint = tuple[Status, str]


def worst_complaint(ends: EndToEnd, plan: CheckPlan, whose: str = "the original's") -> Complaint | None:
    """The first failure among all outputs, else the first warning; None if all is well."""
    found = [complaint for meter in ends.meters.values() for complaint in _complaints(meter, plan, whose)]
    return min(found, key=lambda complaint: complaint[0] is not Status.FAIL, default=None)


def _complaints(meter: Meter, plan: CheckPlan, whose: str) -> Iterator[Complaint]:
    """Everything that is wrong with one output."""
    row = meter.result()
    if meter.mismatch:
        yield Status.FAIL, f"output {row.name} {meter.mismatch}"
    if differ := meter.decided.differ:
        yield Status.FAIL, f"output {row.name} differs in {differ} of {meter.decided.compared} values or rows"
    if plan.tolerance:
        if meter.beyond:
            yield Status.FAIL, f"output {row.name} is beyond the tolerance in {meter.beyond} values"
    elif row.ratio is not None and row.ratio > RATIO_WARNING:
        status = Status.FAIL if row.ratio > RATIO_LIMIT else Status.WARN
        yield status, f"output {row.name} is {row.ratio:.3g} times as far from float64 as {whose}"
    yield from _ranks(meter, plan.min_top1)


def _ranks(meter: Meter, wanted: float | None) -> Iterator[Complaint]:
    """Ranks that differ by more than rounding explains are told; only `--min-top1` makes a failure of them."""
    first, five = meter.first, meter.five
    same = 1 - first.differ / first.compared if first.compared else 1.0
    if wanted is not None and same < wanted:
        yield Status.FAIL, f"output {meter.name} has the same top-1 in {same:.4f} of rows, not {wanted:g}"
    elif first.differ or five.differ:
        which = f"top-1 in {first.differ}" if first.differ else f"top-5 in {five.differ}"
        yield Status.WARN, f"output {meter.name} has another {which} of {first.compared} rows"


def agreement(ends: EndToEnd, plan: CheckPlan, note: str) -> str:
    """What may be said where there is no complaint."""
    if plan.tolerance:
        return f"within the given tolerance {note}"
    if (ratio := ends.worst_ratio) is None:
        return f"all decisions are the same {note}"
    rounding = next((meter.rounding for meter in ends.meters.values() if meter.result().ratio == ratio), None)
    most, floor = ("at most ", f", or a rounding of {rounding} where that is more,") if rounding else ("", "")
    said = f"the error against float64 is {most}{ratio:.2f} times that of the original{floor} {note}"
    moved = max((found.moved for meter in ends.meters.values() for found in meter.typical.values()), default=None)
    return said if moved is None else f"{said}, which rounding alone takes {moved:.1e} of its size away from float64"


def ratio_layer(name: str, status: Status, because: str, plan: CheckPlan, *ends: EndToEnd) -> Layer:
    """A layer whose figure is the largest ratio."""
    ratio = max((each.worst_ratio for each in ends if each.worst_ratio is not None), default=None)
    return Layer(name, status, because, ratio, None if ratio is None or plan.tolerance else RATIO_LIMIT)


@dataclass
class Tuned:
    """Both models with the runtime's optimisations on.

    `before` and `after` compare each with the original with them off, `between` the two with each other: a candidate is
    only wrong by both.
    """

    reference: Machine
    candidate: Machine
    before: EndToEnd
    after: EndToEnd
    between: EndToEnd

    @classmethod
    def of(cls, reference: Subject, candidate: Subject, tolerance: Tolerance | None) -> Tuned | None:
        """None if neither runtime has optimisations; a model whose runtime has none runs as it does without."""
        if reference.optimised is None and candidate.optimised is None:
            return None
        first, second = (
            Machine(subject.optimised or subject.actual, reference.signature, subject.signature)
            for subject in (reference, candidate)
        )
        loose = loose_axes(reference.signature) if reference.decides or candidate.decides else {}
        return cls(first, second, *(EndToEnd(tolerance, reference.stored.coarsest, loose) for _ in range(3)))

    def add(self, feeds: Mapping[str, NDArray[Any]], exact: Arrays, plain: Arrays) -> None:
        """Run one input; `plain` is what the original gave with optimisations off."""
        first, second = self.reference.run(feeds), self.candidate.run(feeds)
        if first is not None:
            self.before.add(exact, plain, first)
        if second is not None:
            self.after.add(exact, plain, second)
        if first is not None and second is not None:
            self.between.add(exact, first, second)

    def draw_again(self, neighbours: Neighbours, exact: Machine, plain: Machine) -> None:
        """Look whether what is complained of is chance; `plain` is the original with the optimisations off."""
        for ends, first, second in (
            (self.before, plain, self.reference),
            (self.after, plain, self.candidate),
            (self.between, self.reference, self.candidate),
        ):
            draw_again(ends, neighbours, exact, first, second, RATIO_LIMIT)

    def layer(self, plain: Complaint | None, plan: CheckPlan, decides: bool, strict: bool) -> Layer:
        """L5; `plain` is what L4 complains of, with optimisations off."""
        status, because = self._status(_is_failure(plain), plan, strict)
        if decides and status is Status.FAIL:
            status, because = Status.WARN, f"{because}; the model rounds or decides inside, so that says nothing"
        layer = ratio_layer("L5", status, because, plan, self.before, self.after)
        return replace(layer, elapsed_s=self.reference.elapsed_s + self.candidate.elapsed_s)

    def _status(self, wrong_without: bool, plan: CheckPlan, strict: bool) -> Complaint:
        original = _trouble(self.reference, plan, self.before)
        candidate = _trouble(self.candidate, plan, self.after, *[self.between] * (not original))
        if original:
            also = "; so does the candidate's" if candidate else ""
            return Status.WARN, f"the runtime's own optimisations break the original: {original}{also}"
        if not candidate:
            return Status.PASS, "the runtime's own optimisations change neither"
        if wrong_without:
            return Status.WARN, "the candidate is wrong with the runtime's own optimisations as it is without"
        if self.candidate.refusal and not strict:
            return Status.SKIPPED, f"with the runtime's own optimisations the candidate cannot run: {candidate}"
        return Status.FAIL, f"the runtime's own optimisations break the candidate, not the original: {candidate}"


def _is_failure(complaint: Complaint | None) -> bool:
    return complaint is not None and complaint[0] is Status.FAIL


def _trouble(machine: Machine, plan: CheckPlan, *comparisons: EndToEnd) -> str | None:
    """What goes wrong with a model when the optimisations are on, by all comparisons, if anything."""
    if machine.refusal:
        return machine.refusal
    found = [worst_complaint(ends, plan, "the original's with them off") for ends in comparisons]
    return found[0][1] if found[0] is not None and all(map(_is_failure, found)) else None
