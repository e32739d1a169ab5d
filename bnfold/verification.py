"""Checks as commands ask for them: models of any dialect, turned into what `verify` compares.

`verify` knows callables and evidence; this page knows where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from bnfold.dialects import Dialect
from bnfold.errors import NotEquivalent, NoVerdict
from bnfold.folding import FoldOptions
from bnfold.model import Runner
from bnfold.outcome import FoldReport
from bnfold.run import CheckOptions, RunOptions
from bnfold.verify.certificate import measure
from bnfold.verify.check import (
    CheckPlan,
    Level,
    Records,
    Subject,
    Tolerance,
    check_export,
    check_fold,
    check_pair,
    conclude,
    licence_of,
    static_layers,
)
from bnfold.verify.inputs import parse_dim, parse_input
from bnfold.verify.probes import ProbeOptions
from bnfold.verify.result import Layer, RuntimeRecord, Status, Verdict, Verification
from bnfold.verify.structure import same_numbers

WAYS = (
    FoldOptions(),
    FoldOptions(merge="never"),
    FoldOptions(leftover="affine"),
    FoldOptions(merge="never", leftover="affine"),
)
"""How a model may have been folded, most usual first."""

LARGEST_FOLD = 1 << 29
"""Bytes of new weights up to which a fold is made again in memory."""


@dataclass(frozen=True)
class Side:
    """One model of a comparison, and how models of its kind are read and run."""

    dialect: Dialect
    model: Any

    def subject(self, run_options: RunOptions) -> Subject:
        """The model as the check sees it; nothing is executed yet."""
        optimised = self.dialect.optimised
        return Subject(
            self.dialect.signature(self.model),
            exact=lambda: self.dialect.exact(self.model),
            actual=lambda: self.dialect.actual(self.model, run_options),
            decides=self.dialect.decides(self.model),
            optimised=None if optimised is None else lambda: optimised(self.model, run_options),
            stored=self.dialect.size(self.model),
            tissue=lambda: self.dialect.tissue(self.model, run_options),
            contents=lambda: self.dialect.contents(self.model),
        )


def check_folded(
    original: Side,
    folded: Side,
    report: FoldReport,
    fold_options: FoldOptions,
    run_options: RunOptions,
    check: CheckOptions,
    source: Side | None = None,
) -> Verification:
    """Check a fold against the model as it was read.

    `source` is the program that `original` was exported from, if it was: then the export is checked too.
    """
    plan = plan_of(original.dialect, run_options, check)
    records = records_of(original, folded, report)
    result = _check_recorded(original, folded, records, fold_options, run_options, plan)
    if source is None or not result.passed or check.level == "static":
        return result
    program = replace(source.subject(run_options), exact=lambda: source.dialect.exact_as_exported(source.model))
    constants = source.dialect.rounded_constants(source.model)
    return _with_export(result, check_export(program, original.subject(run_options), plan, constants))


def _check_recorded(
    original: Side,
    folded: Side,
    records: Records,
    fold_options: FoldOptions,
    run_options: RunOptions,
    plan: CheckPlan,
    known: Sequence[Layer] = (),
) -> Verification:
    dialect = original.dialect

    def unrounded() -> Runner:
        return dialect.exact(dialect.fold(dialect.as_float64(original.model), fold_options)[0])

    plan = replace(plan, facts=facts_of(original, folded))
    return check_fold(original.subject(run_options), folded.subject(run_options), unrounded, records, plan, known)


def facts_of(original: Side, folded: Side) -> tuple[list[str], list[str]]:
    """What a fold must keep beyond the interface, of both models."""
    return original.dialect.identity(original.model), folded.dialect.identity(folded.model)


def derived_again(
    original: Side, folded: Side, report: FoldReport, seed: int
) -> tuple[Verification, Records, dict[tuple[str, str], float]]:
    """L0 and L1 by the records of a fold, nothing executed; with what both models hold, and the distance in ulp of each
    tensor that was written."""
    records, facts = records_of(original, folded, report), facts_of(original, folded)
    signatures = [side.dialect.signature(side.model) for side in (original, folded)]
    licensed = licence_of(signatures[0], signatures[1], records, facts)
    layer, ulps = measure(records.original, records.folded, report, seed=seed)
    verdict, sentence = conclude([licensed, layer], "static")
    return Verification(verdict, sentence, "static", seed, (licensed, layer), report=report), records, ulps


def records_of(original: Side, folded: Side, report: FoldReport) -> Records:
    """What both models hold, beside what the fold says of it."""
    dialect, models = original.dialect, (original.model, folded.model)
    (first, second), (before, after) = map(dialect.evidence, models), map(dialect.contents, models)
    return Records(first, second, report, before, after, (dialect.complaint(models[0]), dialect.complaint(models[1])))


def _with_export(fold: Verification, export: Layer) -> Verification:
    """The verdict on a fold, unless the model that was folded is not what the program computes."""
    result = replace(fold, layers=(*fold.layers, export))
    if export.status is Status.FAIL:
        return replace(result, verdict=Verdict.FAILED, sentence=f"not equivalent: {export.because}")
    return result


def check_models(
    reference: Side,
    candidate: Side,
    *,
    run_options: RunOptions,
    check: CheckOptions,
    tolerance: Tolerance | None = None,
    min_top1: float | None = None,
) -> Verification:
    """Check any two models, whoever made the second; inputs and outputs are matched by name, else by position.

    Where the second is what bnfold itself makes of the first, it is checked as a fold, by the records of that fold.
    """
    plan = replace(plan_of(candidate.dialect, run_options, check), tolerance=tolerance, min_top1=min_top1)
    if remade := _remade(reference, candidate, plan):
        records, fold_options, known = remade
        return _check_recorded(reference, candidate, records, fold_options, run_options, plan, known)
    return check_pair(reference.subject(run_options), candidate.subject(run_options), plan)


def _remade(reference: Side, candidate: Side, plan: CheckPlan) -> tuple[Records, FoldOptions, Sequence[Layer]] | None:
    """The records of the fold that makes the second model of the first, how it was folded, and L0 and L1 by them; None
    where no way of folding does.

    A model is folded in memory, so this is not tried where much of its weights changed.
    """
    if reference.dialect.kind != candidate.dialect.kind:
        return None
    dialect, blank = reference.dialect, FoldReport(())
    known = records_of(reference, candidate, blank)
    if _changed_bytes(known) > LARGEST_FOLD:
        return None
    signatures = dialect.signature(reference.model), dialect.signature(candidate.model)
    for options in WAYS:
        folded, report = dialect.fold(reference.model, options)
        if dialect.contents(folded).operations.keys() != known.after.operations.keys():
            continue
        records = replace(known, report=report)
        layers = static_layers(*signatures, records, facts_of(reference, candidate), plan.probes.seed)
        if all(layer.status is Status.PASS for layer in layers):
            return records, options, layers
    return None


def _changed_bytes(records: Records) -> int:
    """The size of the weights that are not the same in both models."""
    pairs = [(op, records.original.linears.get(name)) for name, op in records.folded.linears.items()]
    return sum(op.weight.nbytes for op, before in pairs if before is None or not same_numbers(op.weight, before.weight))


def plan_of(dialect: Dialect, run_options: RunOptions, check: CheckOptions) -> CheckPlan:
    """The flags of the command line, read. Raises `UsageError` for what cannot be meant."""
    return CheckPlan(
        level=cast(Level, check.level),
        inputs=tuple(parse_input(text) for text in run_options.inputs),
        probes=ProbeOptions(dict(parse_dim(text) for text in run_options.dims), run_options.data, run_options.seed),
        runtime=RuntimeRecord(dialect.runtime, dialect.version(), run_options.provider, "off", dialect.executor),
        save_failure=check.save_failure,
    )


def enforce(verification: Verification) -> None:
    """Raise unless the verdict is one on which a file may ship."""
    if verification.verdict is Verdict.FAILED:
        raise NotEquivalent(verification.sentence)
    if verification.verdict is Verdict.NO_VERDICT:
        raise NoVerdict(verification.sentence)
