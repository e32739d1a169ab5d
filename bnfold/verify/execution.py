"""Both models on the same inputs, in float64 and in the runtime: the figures of L2 and L4.

What cannot be prepared or run is a refusal with its reason, kept until a layer is asked for. For a fold, a model that
fails where the original runs has been broken; for any other pair it only means that there is nothing to compare.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from bnfold.errors import MissingDependency, NoVerdict
from bnfold.model import Arrays, Runner, Signature
from bnfold.verify.anatomy import Tissue
from bnfold.verify.compare import EndToEnd, Meter, Semantics, Tolerance, has_finite
from bnfold.verify.inputs import InputSpec, Probe, numpy_dtype, with_inputs
from bnfold.verify.licence import paired
from bnfold.verify.probes import ProbeOptions, Probes, make_probes
from bnfold.verify.result import Layer, RuntimeRecord, Status

Level = Literal["auto", "static", "full"]

SEMANTICS_LIMIT = 1e-11
RATIO_LIMIT, RATIO_WARNING = 4.0, 2.0


@dataclass(frozen=True, eq=False)
class Subject:
    """One of the two models. `exact` and `actual` are called at most once, and only if the level executes anything.

    They return the model executed in float64, and in the runtime with its own optimisations off, or raise `NoVerdict`
    or `MissingDependency`. `decides` says that the model rounds or decides inside (QuantizeLinear, TopK, ArgMax…),
    where the smallest error may turn into a large one. `tissue` opens the model; without it there is no L3.
    """

    signature: Signature
    exact: Callable[[], Runner]
    actual: Callable[[], Runner]
    decides: bool = False
    tissue: Callable[[], Tissue] | None = None


@dataclass(frozen=True)
class CheckPlan:
    """How to check. `inputs` and `probes` say what to run, `tolerance` replaces the ratio, `min_top1` adds a demand.

    `facts` are what must be equal beyond the interface (IR version, metadata…), one text each, for both models.
    `runtime` is reported as it is; `save_failure` is a folder for the input that showed a difference.
    """

    level: Level = "auto"
    inputs: Sequence[InputSpec] = ()
    probes: ProbeOptions = field(default_factory=ProbeOptions)
    tolerance: Tolerance | None = None
    min_top1: float | None = None
    semantics_limit: float = SEMANTICS_LIMIT
    facts: tuple[Sequence[str], Sequence[str]] = ((), ())
    runtime: RuntimeRecord | None = None
    save_failure: Path | None = None


@dataclass
class Machine:
    """One way to execute one model: prepared at the first run, and never again after a refusal.

    `needed` says that a missing package is an error, not a refusal. It speaks the names of the reference: what it is
    given and what it returns are renamed and cast on the way.
    """

    prepare: Callable[[], Runner]
    reference: Signature
    own: Signature
    needed: bool = False
    refusal: str | None = None
    elapsed_s: float = 0.0
    _runner: Runner | None = None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays | None:
        """The outputs by the reference's names, or None: then `refusal` says why."""
        if self.refusal:
            return None
        start = time.perf_counter()
        try:
            self._runner = self._runner or self.prepare()
            results = self._runner(self.renamed(feeds))
        except (NoVerdict, MissingDependency) as error:
            if self.needed and isinstance(error, MissingDependency):
                raise
            self.refusal = str(error)
            return None
        finally:
            self.elapsed_s += time.perf_counter() - start
        return {mine.name: results[own.name] for mine, own in paired(self.reference.outputs, self.own.outputs)}

    def renamed(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """The numbers by the names, and in the types, of the model's own inputs."""
        ports = paired(self.reference.inputs, self.own.inputs)
        return {own.name: feeds[mine.name].astype(numpy_dtype(own.dtype), copy=False) for mine, own in ports}

    def accepts(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run to see whether an input is accepted: raises `NoVerdict`, and the machine stays usable."""
        results, refusal = self.run(feeds), self.refusal
        if results is None:
            self.refusal = refusal if self._runner is None else None
            raise NoVerdict(str(refusal), code="cannot-run")
        return results


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
    probes: tuple[Probe, ...] = ()
    semantics: Semantics = field(default_factory=Semantics)
    ran: list[Probe] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ends = EndToEnd(self.plan.tolerance)
        self.between: EndToEnd | None = None

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
        )

    def run(self) -> None:
        """Choose the inputs by what the original accepts, then run everything on each."""
        try:
            probes = self._probes()
        except NoVerdict as error:
            self.no_inputs = str(error)
            return
        self.note, self.probes = probes.note, probes.probes
        for probe in probes.probes:
            self._run(probe)

    def _probes(self) -> Probes:
        signature = with_inputs(self.exact.reference, self.plan.inputs)
        try:
            return make_probes(signature, self.actual.accepts, self.plan.probes)
        except NoVerdict:
            if not self.actual.refusal:
                raise
            return make_probes(signature, self.exact.accepts, self.plan.probes)

    def first_feeds(self) -> Arrays:
        """The first input; where nobody accepts any, the first that the interface allows. Raises `NoVerdict`."""
        if self.probes:
            return self.probes[0].feeds
        signature = with_inputs(self.exact.reference, self.plan.inputs)
        return make_probes(signature, dict, self.plan.probes).probes[0].feeds

    def _run(self, probe: Probe) -> None:
        truth = self.exact.run(probe.feeds)
        if truth is None:
            return
        self.not_finite += [name for name, value in truth.items() if value.size and not has_finite(value)]
        self.ran.append(probe)
        if (found := self.semantic.run(probe.feeds)) is not None:
            self.semantics.add(truth, found)
        before = self.actual.run(probe.feeds)
        after = self.candidate.run(probe.feeds) if before is not None else None
        if before is not None and after is not None:
            self.ends.add(truth, before, after)

    @property
    def obstacle(self) -> str | None:
        """Why the layers allow no verdict: a reference that is not finite, a candidate that does not run."""
        if self.not_finite and not self.semantics.compared:
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
            limit=self.plan.semantics_limit if measured else None,
            elapsed_s=self.exact.elapsed_s + self.semantic.elapsed_s,
        )

    def _semantic_status(self) -> tuple[Status, str]:
        if refusal := self.no_inputs or self.exact.refusal:
            return Status.SKIPPED, refusal
        if self.semantic.refusal:
            return self._broken(self.semantic.refusal)
        if not self.semantics.compared:
            return Status.SKIPPED, "nothing was compared: the outputs are empty or not finite"
        figure, output = self.semantics.figure, self.semantics.output
        if figure <= self.plan.semantics_limit:
            return Status.PASS, f"equal in float64 to {figure:.1e} {self.note}"
        because = f"output {output} differs in float64 by {figure:.2g} of its largest value"
        return (Status.FAIL if self.strict else Status.WARN), because

    def _broken(self, refusal: str) -> tuple[Status, str]:
        if self.strict:
            return Status.FAIL, f"the folded model cannot run where the original does: {refusal}"
        return Status.SKIPPED, f"the candidate cannot run: {refusal}"

    def end_to_end_layer(self) -> Layer:
        """L4."""
        status, because = self._end_to_end_status()
        ratios = [row.ratio for row in (self.between or self.ends).results() if row.ratio is not None]
        return Layer(
            "L4",
            status,
            because,
            figure=max(ratios, default=None),
            limit=RATIO_LIMIT if ratios and not self.plan.tolerance else None,
            elapsed_s=self.actual.elapsed_s + self.candidate.elapsed_s,
        )

    def _end_to_end_status(self) -> tuple[Status, str]:
        if refusal := self.no_inputs or self.actual.refusal or self.exact.refusal:
            return Status.SKIPPED, refusal
        if self.candidate.refusal:
            return self._broken(self.candidate.refusal)
        compared = [meter for meter in self.ends.meters.values() if meter.compared or meter.mismatch]
        if not compared:
            return Status.SKIPPED, "nothing was compared: the outputs are empty or the original's are not finite"
        complaints = [found for meter in compared for found in self._complaints(meter)]
        if not complaints:
            return Status.PASS, self._agreement()
        status, because = min(complaints, key=lambda complaint: [Status.FAIL, Status.WARN].index(complaint[0]))
        if self.decides and status is Status.FAIL:
            return self._between_status(f"{because}; the model rounds or decides inside, so that says nothing")
        return status, because

    def _between_status(self, nothing: str) -> tuple[Status, str]:
        """The judgement from stretch to stretch, where the model could be cut at its decisions."""
        self.between = self.look_between()
        if self.between is None:
            return Status.SKIPPED, nothing
        complaints = [found for meter in self.between.meters.values() for found in self._complaints(meter)]
        status, because = min(
            complaints, key=lambda each: [Status.FAIL, Status.WARN].index(each[0]), default=(None, "")
        )
        if status is not None:
            return status, f"from one decision to the next, {because}"
        ratios = [row.ratio for row in self.between.results() if row.ratio is not None]
        figure = f"the error against float64 is {max(ratios):.2f} times the original's" if ratios else "nothing differs"
        return Status.PASS, f"from one decision to the next, {figure}"

    def _agreement(self) -> str:
        ratios = [row.ratio for row in self.ends.results() if row.ratio is not None]
        if self.plan.tolerance:
            return f"within the given tolerance {self.note}"
        if not ratios:
            return f"all decisions are the same {self.note}"
        return f"the error against float64 is {max(ratios):.2f} times that of the original {self.note}"

    def _complaints(self, meter: Meter) -> Iterator[tuple[Status, str]]:
        """Everything that is wrong with one output."""
        row = meter.result()
        if meter.mismatch:
            yield Status.FAIL, f"output {row.name} {meter.mismatch}"
        if meter.is_decision and row.differ:
            yield Status.FAIL, f"output {row.name} differs in {row.differ} of {row.compared} values"
        if self.plan.tolerance:
            if meter.beyond:
                yield Status.FAIL, f"output {row.name} is beyond the tolerance in {meter.beyond} values"
        elif row.ratio is not None and row.ratio > RATIO_WARNING:
            status = Status.FAIL if row.ratio > RATIO_LIMIT else Status.WARN
            yield status, f"output {row.name} is {row.ratio:.2f} times as far from float64 as the original's"
        if (wanted := self.plan.min_top1) is not None and not meter.is_decision and row.compared:
            agreement = 1 - row.differ / row.compared
            if agreement < wanted:
                yield Status.FAIL, f"output {row.name} has the same top-1 in {agreement:.4f} of rows, not {wanted:g}"
