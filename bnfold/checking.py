"""What `check` means, and what a certificate needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bnfold import saving, stages
from bnfold.dialects import Dialect, dialect_of, torch_dialect
from bnfold.errors import NoVerdict, UsageError
from bnfold.folding import FoldOptions
from bnfold.loading import Loaded, Source
from bnfold.outcome import FoldReport
from bnfold.reports import certificate as certificates
from bnfold.run import MODELS_NOT_READ, CheckOptions, Run, RunOptions
from bnfold.verification import Side, check_folded, check_models, derived_again, enforce
from bnfold.verify.meters import Tolerance
from bnfold.verify.result import Layer, Status, Verdict, Verification


def run_check(
    run: Run,
    reference: Path,
    candidate: Path,
    *,
    source: Source = Source(),
    run_options: RunOptions = RunOptions(),
    check: CheckOptions = CheckOptions(),
    rtol: float | None = None,
    atol: float | None = None,
    min_top1: float | None = None,
    certificate: Path | None = None,
) -> None:
    """Show whether two models are equivalent, whoever made the second; with `certificate`, write the proof."""
    run.hashed |= certificate is not None
    first, second = _pair(run, reference, candidate, source)
    if certificate is not None:
        saving.certificate_path(certificate, (*first.files, *second.files))
    original, other = (_side(loaded, source, run_options) for loaded in (first, second))
    given = rtol is not None or atol is not None
    with run.stage("check"):
        run.check = check_models(
            original,
            other,
            run_options=run_options,
            check=check,
            tolerance=Tolerance(rtol or 0.0, atol or 0.0) if given else None,
            min_top1=min_top1,
        )
    enforce(run.check)
    if certificate is not None:
        need_proof(run)
        certify(run, original, other, certificate)


def run_verify_certificate(
    run: Run,
    path: Path,
    reference: Path | None = None,
    candidate: Path | None = None,
    *,
    source: Source = Source(),
    run_options: RunOptions = RunOptions(),
) -> None:
    """Derive again what a certificate says of two models; without them only see that it is one, and say so."""
    run.hashed = True
    given = certificates.read(path)
    if reference is None or candidate is None:
        run.warn(
            MODELS_NOT_READ,
            f"{path} is a certificate that does not contradict itself; nothing is shown of any model: name REFERENCE "
            "and CANDIDATE to derive it again",
        )
        return
    sides = [_side(loaded, source, run_options) for loaded in _pair(run, reference, candidate, source)]
    if sides[0].dialect.kind != given.kind or sides[1].dialect.kind != given.kind:
        raise UsageError(f"{path} is about models of the kind {given.kind}", code="certificate-kind")
    with run.stage("derive again"):
        found, document = _derived(run, sides[0], sides[1], given.report, given.seed)
        if found.passed and (differs := certificates.difference(given.document, document)):
            layer = Layer("L0", Status.FAIL, f"the certificate is not of these models: {differs}")
            sentence = f"not equivalent by this certificate: {differs}"
            found = replace(found, verdict=Verdict.FAILED, sentence=sentence, layers=(layer, *found.layers[1:]))
        run.check = found
    enforce(run.check)


def _pair(run: Run, reference: Path, candidate: Path, source: Source) -> tuple[Loaded, Loaded]:
    first = stages.load_input(run, reference, source)
    second = stages.read(run, candidate, source)
    run.output = stages.record(run, second)
    return first, second


def check_fold(
    run: Run,
    dialect: Dialect,
    models: tuple[Any, Any],
    report: FoldReport,
    fold_options: FoldOptions,
    run_options: RunOptions,
    check: CheckOptions,
    program: Any = None,
) -> None:
    """Check a model and its fold, by the records of the fold; `program` is what the model was exported from. Raises
    `NotEquivalent` or `NoVerdict`."""
    with run.stage("check"):
        original, folded = (Side(dialect, model) for model in models)
        source = None if program is None else Side(torch_dialect(), program)
        run.check = check_folded(original, folded, report, fold_options, run_options, check, source)
    enforce(run.check)


def check_simplified(
    run: Run, dialect: Dialect, models: tuple[Any, Any], run_options: RunOptions, check: CheckOptions
) -> None:
    """Check a model and what another tool made of its fold. Raises `NotEquivalent` or `NoVerdict`."""
    with run.stage("check the simplified model"):
        original, simplified = (Side(dialect, model) for model in models)
        enforce(check_models(original, simplified, run_options=run_options, check=check))


def need_proof(run: Run) -> None:
    """Raise unless there is something to certify."""
    if run.check is None or run.check.verdict is not Verdict.PROVED or run.check.report is None:
        raise NoVerdict("there is no proof to certify: the models are verified equivalent", code="not-proved")


def certify(run: Run, original: Side, folded: Side, path: Path) -> None:
    """Write the certificate of what was proved, derived once more from the models as they are in the files."""
    assert run.check is not None, "only what was checked is certified"
    assert run.check.report is not None, "only a proof is certified"
    with run.stage("certify"):
        found, document = _derived(run, original, folded, run.check.report, run.check.seed)
        enforce(found)
        with saving.atomic(path) as temporary:
            temporary.write_text(certificates.render(document), encoding="utf-8")


def _derived(
    run: Run, original: Side, folded: Side, report: FoldReport, seed: int
) -> tuple[Verification, dict[str, Any]]:
    """L0 and L1 by these records, and the certificate that they give."""
    assert run.input is not None, "the reference was read"
    assert run.output is not None, "the candidate was read or written"
    found, records, ulps = derived_again(original, folded, report, seed)
    document = certificates.document(run.input, run.output, records, ulps, kind=original.dialect.kind, seed=seed)
    return found, document


def _side(loaded: Loaded, source: Source, run_options: RunOptions) -> Side:
    model = stages.graph(loaded, source, run_options)
    return Side(dialect_of(model), model)
