"""Are two models the same? Layers of evidence, each able to say no on its own, and one verdict.

    L0  the interfaces are the same, and of a fold with records every node that they do not name
    L1  every new number is what the original's stored numbers give           (folds with records only)
    L2  executed in float64, original and unrounded fold agree
    L3  every place that differs, on its own and in the runtime, is about as far from float64 as the original's
    L4  in the runtime, the candidate is about as far from float64 as the original is
    L5  the runtime's own optimisations break neither

`check_fold` serves a fold with its records, `check_pair` any two models. Models come as `Subject`s: a signature and two
callables that prepare execution. What cannot run is a skipped layer with the reason. No evidence is not agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np

from bnfold.errors import EnvironmentFailure, NoVerdict
from bnfold.evidence import Contents, Evidence
from bnfold.model import Runner, Signature
from bnfold.outcome import FoldReport
from bnfold.verify.causes import with_causes
from bnfold.verify.certificate import derive
from bnfold.verify.execution import Execution
from bnfold.verify.forcing import between_decisions
from bnfold.verify.licence import licence, unchanged
from bnfold.verify.local import Examined, examine
from bnfold.verify.machines import Subject
from bnfold.verify.meters import Tolerance
from bnfold.verify.plan import CheckPlan, Level
from bnfold.verify.result import Layer, Status, Verdict, Verification
from bnfold.verify.structure import Structure

__all__ = ["CheckPlan", "Level", "Records", "Subject", "Tolerance", "check_export", "check_fold", "check_pair"]

LOCALISING = "L0 L1 L3 L2 L4 L5"
"""The layers in the order in which they know where a difference is."""

CONSTANTS_LIMIT = 1e-6
"""A constant in float32 is off by up to 6e-8 of itself; a wrong operator by far more."""


@dataclass(frozen=True)
class Records:
    """What a fold leaves behind: what both models store, what became of each batch norm, both models node by node, and
    what the checker of the format says of each."""

    original: Evidence
    folded: Evidence
    report: FoldReport
    before: Contents
    after: Contents
    complaints: tuple[str | None, str | None] = (None, None)

    def structure(self) -> Structure:
        """The graphs and the records side by side."""
        return Structure(self.before, self.after, self.original, self.folded, self.report)


def check_fold(
    reference: Subject,
    candidate: Subject,
    unrounded: Callable[[], Runner],
    records: Records,
    plan: CheckPlan = CheckPlan(),
    known: Sequence[Layer] = (),
) -> Verification:
    """Check a fold of `reference`; `unrounded` prepares the same fold made and executed in float64.

    `known` are L0 and L1 of these records, where somebody has derived them already.
    Raises `UsageError` for inputs that cannot be meant and `EnvironmentFailure` for a missing provider; every other
    trouble is in the verdict.
    """
    layers = [*known] or static_layers(reference.signature, candidate.signature, records, plan.facts, plan.probes.seed)
    execution = Execution.of(reference, candidate, unrounded, plan, strict=True)
    execution.look_between = lambda: between_decisions(reference, candidate, execution)
    found = _executed(layers, execution, (reference, candidate), records.report)
    return replace(found, report=records.report)


def static_layers(
    reference: Signature, candidate: Signature, records: Records, facts: tuple[Sequence[str], Sequence[str]], seed: int
) -> list[Layer]:
    """L0 and L1 of a fold: nothing is executed."""
    return [
        licence_of(reference, candidate, records, facts),
        derive(records.original, records.folded, records.report, seed=seed),
    ]


def licence_of(
    reference: Signature, candidate: Signature, records: Records, facts: tuple[Sequence[str], Sequence[str]]
) -> Layer:
    """L0 of a fold: the interfaces, and every node that the records do not name."""
    interfaces = licence(reference, candidate, facts, exactly=True)
    return unchanged(interfaces, records.structure(), records.complaints)


def check_pair(reference: Subject, candidate: Subject, plan: CheckPlan = CheckPlan()) -> Verification:
    """Check any two models, whoever made the second. Raises as `check_fold` does.

    The weights of the candidate may have been rounded, so a difference in float64 is told, not judged: L4 decides.
    """
    layers = [licence(reference.signature, candidate.signature, plan.facts, exactly=False)]
    execution = Execution.of(reference, candidate, candidate.exact, plan, strict=False)
    execution.look_between = lambda: between_decisions(reference, candidate, execution)
    return _executed(layers, execution, (reference, candidate), None)


def check_export(
    program: Subject, exported: Subject, plan: CheckPlan = CheckPlan(), constants: Sequence[str] = ()
) -> Layer:
    """L2 of an export: the program and what the exporter made of it, both executed in float64.

    ONNX stores epsilons, slopes and other scalars in float32; `program` executes with these. `constants` names
    operators that the exporter spells with constants of its own in float32: then the limit is one that these explain.
    """
    sides = (replace(subject, actual=_not_asked, optimised=None) for subject in (program, exported))
    if constants:
        plan = replace(plan, semantics_limit=CONSTANTS_LIMIT)
    strict = not (program.decides or exported.decides)
    execution = Execution.of(next(sides), next(sides), exported.exact, plan, strict=strict)
    execution.run()
    layer = execution.semantic_layer()
    stored = f"; constants of {', '.join(constants)} are in float32" if constants else ""
    return replace(layer, because=f"the export against the torch program: {layer.because}{stored}")


def _not_asked() -> Runner:
    raise NoVerdict("only float64 is asked for")


def _executed(
    layers: list[Layer], execution: Execution, models: tuple[Subject, Subject], report: FoldReport | None
) -> Verification:
    """Add the layers that execute, unless the level or the interfaces forbid it, and conclude."""
    plan, obstacle, inside = execution.plan, None, None
    if plan.level != "static" and layers[0].status is not Status.FAIL:
        execution.run()
        inside = examine(*models, execution, report)
        layers = [*layers, execution.semantic_layer(), inside.layer, execution.end_to_end_layer()]
        layers += execution.runtime_layers()
        layers = with_causes(layers, models, inside.place)
        obstacle = execution.obstacle
    verdict, sentence = conclude(layers, plan.level, obstacle, complete=inside is not None and inside.complete)
    if verdict is Verdict.FAILED and plan.save_failure and execution.ran:
        _save(plan.save_failure, execution, inside)
    return Verification(
        verdict,
        sentence,
        plan.level,
        plan.probes.seed,
        tuple(layers),
        execution.ends.results(),
        tuple(record for probe in execution.ran for record in probe.records()),
        plan.runtime if execution.ends.meters else None,
    )


def conclude(
    layers: Sequence[Layer], level: Level, obstacle: str | None = None, *, complete: bool = False
) -> tuple[Verdict, str]:
    """The verdict of some layers, in one sentence; an `obstacle` allows none but `failed`.

    `complete` says that L3 compared every place where the models differ. Of several layers that fail, the one that says
    best where speaks.
    """
    by_name = {layer.layer: layer for layer in layers}
    skipped = [layer for layer in layers if layer.status is Status.SKIPPED]
    told = "; ".join(layer.because for layer in layers if layer.layer != "L0" and layer.status is not Status.SKIPPED)
    for layer in sorted(layers, key=lambda each: LOCALISING.find(each.layer)):
        if layer.status is Status.FAIL:
            limit = f" (limit {layer.limit:.3g})" if layer.limit is not None and isfinite(layer.figure or 0) else ""
            why = f"; {layer.why}" if layer.causes else ""
            return Verdict.FAILED, f"not equivalent, by {layer.layer}: {layer.because}{limit}{why}"
    if obstacle:
        return Verdict.NO_VERDICT, f"no verdict: {obstacle}"
    if level == "full" and skipped:
        return Verdict.NO_VERDICT, f"no verdict: {skipped[0].layer} was skipped: {skipped[0].because}"
    if _passed(by_name, "L1"):
        not_run = "".join(f"; {layer.layer} skipped: {layer.because}" for layer in skipped)
        return Verdict.PROVED, f"proved: {told}{not_run}"
    if _passed(by_name, "L4", Status.WARN) or (_is_skipped(by_name, "L4") and (complete or _passed(by_name, "L2"))):
        return Verdict.VERIFIED, f"verified: {told}"
    because: dict[str, list[str]] = {}
    for layer in skipped:
        because.setdefault(layer.because, []).append(layer.layer)
    reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in because.items())
    return Verdict.NO_VERDICT, f"no verdict: {reasons or 'nothing was executed'}"


def _passed(layers: dict[str, Layer], name: str, *also: Status) -> bool:
    return name in layers and layers[name].status in (Status.PASS, *also)


def _is_skipped(layers: dict[str, Layer], name: str) -> bool:
    return name in layers and layers[name].status is Status.SKIPPED


def _save(folder: Path, execution: Execution, inside: Examined | None) -> None:
    """Keep the inputs that were run, one file each, in the form that `--data` reads, and the part that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, probe in enumerate(execution.ran):
            np.savez(folder / f"{number:02}-{probe.family.replace(':', '-')}.npz", **probe.feeds)  # type: ignore[arg-type]
        if inside is not None:
            inside.save(folder / "part")
    except OSError as error:
        raise EnvironmentFailure(f"the inputs cannot be written to {folder}: {error.strerror}") from error
