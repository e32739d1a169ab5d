"""Checks as commands ask for them: models of any dialect, turned into what `verify` compares.

`verify` knows callables and evidence; this page knows where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from bnfold.dialects import Dialect
from bnfold.errors import NotEquivalent, NoVerdict
from bnfold.folding import FoldOptions
from bnfold.model import Runner
from bnfold.outcome import FoldReport
from bnfold.run import CheckOptions, RunOptions
from bnfold.verify.check import CheckPlan, Level, Records, Subject, Tolerance, check_export, check_fold, check_pair
from bnfold.verify.inputs import parse_dim, parse_input
from bnfold.verify.probes import ProbeOptions
from bnfold.verify.result import Layer, RuntimeRecord, Status, Verdict, Verification


@dataclass(frozen=True)
class Side:
    """One model of a comparison, and how models of its kind are read and run."""

    dialect: Dialect
    model: Any

    def subject(self, run_options: RunOptions) -> Subject:
        """The model as the check sees it; nothing is executed yet."""
        return Subject(
            self.dialect.signature(self.model),
            exact=lambda: self.dialect.exact(self.model),
            actual=lambda: self.dialect.actual(self.model, run_options),
            decides=self.dialect.decides(self.model),
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
    dialect = original.dialect

    def unrounded() -> Runner:
        return dialect.exact(dialect.fold(dialect.as_float64(original.model), fold_options)[0])

    records = records_of(original, folded, report)
    plan = plan_of(dialect, run_options, check)
    plan = replace(plan, facts=(dialect.identity(original.model), dialect.identity(folded.model)))
    result = check_fold(original.subject(run_options), folded.subject(run_options), unrounded, records, plan)
    if source is None or not result.passed or check.level == "static":
        return result
    return _with_export(result, check_export(source.subject(run_options), original.subject(run_options), plan))


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
    """Check any two models, whoever made the second; inputs and outputs are matched by name, else by position."""
    plan = replace(plan_of(candidate.dialect, run_options, check), tolerance=tolerance, min_top1=min_top1)
    return check_pair(reference.subject(run_options), candidate.subject(run_options), plan)


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
