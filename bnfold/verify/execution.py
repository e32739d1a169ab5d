"""Both models on the same inputs, in float64 and in the runtime: the figures of L2, L4 and L5.

What cannot be prepared or run is a refusal with its reason, kept until a layer is asked for. For a fold, a model that
fails where the original runs has been broken; for any other pair it only means that there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from bnfold.errors import NoVerdict
from bnfold.model import Arrays, Runner
from bnfold.verify.budget import too_large
from bnfold.verify.compare import Semantics, has_finite, moved_by_rounding
from bnfold.verify.draws import Neighbours, draw_again
from bnfold.verify.ends import Tuned, agreement, ratio_layer, worst_complaint
from bnfold.verify.inputs import Probe, with_inputs
from bnfold.verify.machines import Machine, Subject, narrowed, release
from bnfold.verify.meters import EndToEnd, loose_axes
from bnfold.verify.plan import RATIO_LIMIT, CheckPlan
from bnfold.verify.probes import MANY_NUMBERS, Probes, make_probes
from bnfold.verify.result import Layer, Status


@dataclass
class Execution:
    """Runs the four machines over all inputs and turns what they gave into layers. `strict`: the second is a fold."""

    exact: Machine
    semantic: Machine
    actual: Machine
    candidate: Machine
    plan: CheckPlan
    strict: bool
    decides: bool
    note: str = ""
    look_between: Callable[[], EndToEnd | None] = lambda: None
    no_inputs: str | None = None
    tuned: Tuned | None = None
    too_large: Mapping[str, str] = field(default_factory=dict)
    stored: str = ""
    probes: tuple[Probe, ...] = ()
    ran: list[Probe] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ends = EndToEnd(self.plan.tolerance, self.stored, loose_axes(self.exact.reference) if self.decides else {})
        self.between: EndToEnd | None = None
        self.semantics = Semantics(self.plan.semantics_limit)

    @classmethod
    def of(
        cls, reference: Subject, candidate: Subject, semantic: Callable[[], Runner], plan: CheckPlan, *, strict: bool
    ) -> Execution:
        """The four machines of a reference and a candidate; `semantic` is what L2 executes against the reference."""
        first, second = reference.signature, candidate.signature
        return cls(
            Machine(reference.exact, first, first),
            Machine(semantic, first, second),
            Machine(reference.actual, first, first, needed=not strict),
            Machine(candidate.actual, first, second, needed=not strict),
            plan,
            strict,
            reference.decides or candidate.decides,
            tuned=Tuned.of(reference, candidate, plan.tolerance),
            too_large=too_large(reference, candidate, plan.level),
            stored=reference.stored.coarsest,
        )

    def run(self) -> None:
        """Choose the inputs by what the original accepts, then run on each everything that memory allows."""
        if {"L2", "L4"} <= self.too_large.keys():
            return
        try:
            probes = self._probes()
        except NoVerdict as error:
            self.no_inputs = str(error)
            return
        self.note, self.probes = probes.note, probes.probes
        truths = [truth for probe in probes.probes if (truth := self._run_exact(probe)) is not None]
        release(self.exact, self.semantic)
        if "L4" not in self.too_large:
            self._run_actual(truths)

    def _probes(self) -> Probes:
        signature = narrowed(with_inputs(self.exact.reference, self.plan.inputs), self.candidate.own)
        try:
            return make_probes(signature, self._accepts, self.plan.probes)
        except NoVerdict:
            if not self.actual.refusal:
                raise
            return make_probes(signature, self.exact.accepts, self.plan.probes)

    def first_feeds(self) -> Arrays:
        """The first input; where nobody accepts any, the first that the interface allows. Raises `NoVerdict`."""
        if "L3" in self.too_large:
            raise NoVerdict(self.too_large["L3"], code="cannot-run")
        if self.probes:
            return self.probes[0].feeds
        signature = with_inputs(self.exact.reference, self.plan.inputs)
        return make_probes(signature, dict, self.plan.probes).probes[0].feeds

    def _accepts(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run in the runtime, and in float64 too where that is cheap: it may refuse sizes that the runtime takes."""
        if "L4" in self.too_large:
            return self.exact.accepts(feeds)
        results = self.actual.accepts(feeds)
        if sum(value.size for value in feeds.values()) < MANY_NUMBERS:
            try:
                self.exact.accepts(feeds)
            except NoVerdict:
                if not self.exact.refusal:
                    raise
        return results

    def _run_exact(self, probe: Probe) -> Arrays | None:
        truth = self.exact.run(probe.feeds)
        if truth is None:
            return None
        self.not_finite += [name for name, value in truth.items() if value.size and not has_finite(value)]
        self.ran.append(probe)
        if "L2" not in self.too_large and (found := self.semantic.run(probe.feeds)) is not None:
            self.semantics.add(truth, found, lambda: self._moved(probe))
        return truth

    def _moved(self, probe: Probe) -> list[Arrays]:
        """The reference again, on inputs that are one rounding of float64 away."""
        results = [self.exact.run(feeds, as_given=True) for feeds in moved_by_rounding(probe.feeds)]
        return [result for result in results if result is not None]

    def _run_actual(self, truths: list[Arrays]) -> None:
        """Without the runtime's optimisations, then with them; only the models of one of these are held at a time."""
        plain: list[tuple[Probe, Arrays, Arrays]] = []
        for probe, truth in zip(self.ran, truths, strict=True):
            before = self.actual.run(probe.feeds)
            after = self.candidate.run(probe.feeds) if before is not None else None
            if before is not None and after is not None:
                self.ends.add(truth, before, after)
                plain.append((probe, truth, before))
        neighbours = Neighbours([probe.feeds for probe, *_ in plain])
        judged = not (self.decides or self.plan.tolerance)
        if judged:
            draw_again(self.ends, neighbours, self.exact, self.actual, self.candidate, RATIO_LIMIT)
        release(self.exact, self.actual, self.candidate)
        if self.tuned is not None and "L5" not in self.too_large:
            for probe, truth, before in plain:
                self.tuned.add(probe.feeds, truth, before)
            if judged:
                self.tuned.draw_again(neighbours, self.exact, self.actual)
            release(self.exact, self.actual, self.tuned.reference, self.tuned.candidate)

    @property
    def obstacle(self) -> str | None:
        """Why the layers allow no verdict: a reference that is not finite, a candidate that does not run."""
        if self.not_finite and not (self.semantics.compared or self.ends.compared):
            return f"the reference is not finite: output {self.not_finite[0]} holds nothing but NaN and infinities"
        if self.candidate.refusal and not self.actual.refusal and not self.strict:
            return f"the candidate cannot run where the reference does: {self.candidate.refusal}"
        return None

    def semantic_layer(self) -> Layer:
        """L2."""
        status, because = self._semantic_status()
        measured = self.semantics.compared > 0
        return Layer(
            "L2",
            status,
            because,
            figure=self.semantics.figure if measured else None,
            limit=self.semantics.allowed if measured else None,
            elapsed_s=self.exact.elapsed_s + self.semantic.elapsed_s,
        )

    def _semantic_status(self) -> tuple[Status, str]:
        if refusal := self.too_large.get("L2") or self.no_inputs or self.exact.refusal:
            return Status.SKIPPED, refusal
        if self.semantic.refusal:
            return self._broken(self.semantic.refusal)
        semantics = self.semantics
        if not semantics.compared:
            because = (*semantics.chaotic, "the outputs are empty or not finite")[0]
            return Status.SKIPPED, f"nothing was compared: {because}"
        figure, output = semantics.figure, semantics.output
        if figure <= semantics.allowed:
            return self._equal()
        because = f"output {output} differs in float64 by {figure:.2g} of its largest value"
        return (Status.FAIL if self.strict else Status.WARN), because

    def _equal(self) -> tuple[Status, str]:
        """What may be said where nothing that could be compared differs."""
        semantics, note = self.semantics, self.note
        if len(semantics.chaotic) >= semantics.compared:
            return Status.SKIPPED, f"little was compared: {semantics.chaotic[0]}"
        if semantics.allowed > semantics.limit:
            note += f"; rounding alone explains {semantics.allowed:.1e}"
        if semantics.chaotic:
            note += f"; {len(semantics.chaotic)} outputs not compared: {semantics.chaotic[0]}"
        return Status.PASS, f"equal in float64 to {semantics.figure:.1e} {note}"

    def _broken(self, refusal: str) -> tuple[Status, str]:
        if self.strict:
            return Status.FAIL, f"the folded model cannot run where the original does: {refusal}"
        return Status.SKIPPED, f"the candidate cannot run: {refusal}"

    def end_to_end_layer(self) -> Layer:
        """L4."""
        status, because = self._end_to_end_status()
        measured = replace(self.plan, tolerance=None) if self.between else self.plan
        return replace(
            ratio_layer("L4", status, because, measured, self.between or self.ends), elapsed_s=self._elapsed()
        )

    def _elapsed(self) -> float:
        return self.actual.elapsed_s + self.candidate.elapsed_s

    def _end_to_end_status(self) -> tuple[Status, str]:
        if refusal := self.too_large.get("L4") or self.no_inputs or self.actual.refusal or self.exact.refusal:
            return Status.SKIPPED, refusal
        if self.candidate.refusal and self.ends.compared and not self.strict:
            return Status.FAIL, f"the candidate refuses some inputs that the original takes: {self.candidate.refusal}"
        if self.candidate.refusal:
            return self._broken(self.candidate.refusal)
        if not self.ends.compared:
            return Status.SKIPPED, "nothing was compared: the outputs are empty or the original's are not finite"
        complaint = worst_complaint(self.ends, self.plan)
        if complaint is None:
            return Status.PASS, agreement(self.ends, self.plan, self.note)
        if self.decides and complaint[0] is Status.FAIL:
            return self._between_status(f"{complaint[1]}; the model rounds or decides inside, so that says nothing")
        return complaint

    def _between_status(self, nothing: str) -> tuple[Status, str]:
        """The judgement from stretch to stretch, where the model could be cut at its decisions."""
        self.between = self.between or self.look_between()
        if self.between is None:
            return Status.SKIPPED, nothing
        if complaint := worst_complaint(self.between, self.plan):
            return complaint[0], f"from one decision to the next, {complaint[1]}"
        return Status.PASS, f"from one decision to the next, {agreement(self.between, self.plan, self.note)}"

    def runtime_layers(self) -> list[Layer]:
        """L5, if the runtime has optimisations of its own."""
        if self.tuned is None:
            return []
        if "L5" in self.too_large:
            return [Layer("L5", Status.SKIPPED, self.too_large["L5"])]
        if not self.ends.compared:
            return [Layer("L5", *self._end_to_end_status())]
        return [self.tuned.layer(worst_complaint(self.ends, self.plan), self.plan, self.decides, self.strict)]
