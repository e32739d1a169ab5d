"""The commands, one function each: load → normalise → fold → verify → report and bench → save.

A function fills the `Run` that it is given as it goes, so that a failure still reports all that was known. It prints
nothing, and raises a `BnfoldError` for whatever is not success. Nothing is written unless the check agreed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bnfold import saving
from bnfold.dialects import Dialect, dialect_of, onnx_dialect, torch_dialect
from bnfold.errors import GateMissed, NoVerdict, Rejected, UsageError
from bnfold.folding import FoldOptions
from bnfold.graph import Reason
from bnfold.loading import Loaded, Source, load, sha256
from bnfold.loading.suggestions import command
from bnfold.measurement import bench_options, measured
from bnfold.outcome import FoldReport
from bnfold.programs import as_program
from bnfold.reports import baseline as baselines
from bnfold.reports.findings import findings
from bnfold.reports.ranges import ranges
from bnfold.run import CheckOptions, ExternalFile, FileRecord, OutputOptions, Run, RunOptions
from bnfold.verification import Side, check_folded, check_models, derived_again, enforce
from bnfold.verify.inputs import parse_input
from bnfold.verify.meters import Tolerance
from bnfold.verify.result import Layer, Status, Verdict, Verification


def run_fold(
    run: Run,
    path: Path,
    *,
    source: Source = Source(),
    run_options: RunOptions = RunOptions(),
    fold_options: FoldOptions = FoldOptions(),
    check: CheckOptions = CheckOptions(),
    output: OutputOptions = OutputOptions(),
    certificate: Path | None = None,
) -> None:
    """Fold a model file into one of the same kind; with `certificate`, only if it is proved, and write the proof."""
    loaded = _load(run, path, source)
    if loaded.kind not in ("onnx", "pt2") or _wants_onnx(loaded, output):
        message = f"{path} is a {loaded.kind}: fold writes the kind that it reads, and only .onnx and .pt2 have one"
        raise UsageError(message, code="fold-needs-graph", hint=command(path, source, guess=loaded.input_guess))
    dialect = dialect_of(loaded.model)
    out = _output_path(loaded, output, dialect.suffix, folded=True)
    if certificate is not None:
        saving.certificate_path(certificate, (*loaded.files, out))
        if not check.enabled:
            raise UsageError("--certificate needs the check", code="certificate-unchecked", hint="leave out --no-check")
    work = _Work(run, run_options, fold_options, check)
    folded = work.checked_fold(dialect, loaded.model)
    if certificate is not None:
        _need_proof(run)
    _write(run, dialect, folded, out, output)
    if certificate is not None and not output.dry_run:
        written = Side(dialect, _read(run, out, Source()).model)
        _certify(run, Side(dialect, loaded.model), written, certificate)


def run_export(
    run: Run,
    path: Path,
    *,
    source: Source = Source(),
    run_options: RunOptions = RunOptions(),
    fold_options: FoldOptions = FoldOptions(),
    check: CheckOptions = CheckOptions(),
    output: OutputOptions = OutputOptions(),
    opset: int | None = None,
    dtype: str = "float32",
    simplify: bool = False,
    bench: bool = False,
) -> None:
    """Turn any model file into a folded ONNX file."""
    loaded = _load(run, path, source)
    dialect = onnx_dialect()
    out = _output_path(loaded, output, dialect.suffix, folded=False)
    unfolded, program = _unfolded(run, loaded, source, run_options, opset, dtype)
    work = _Work(run, run_options, fold_options, check)
    result = work.checked_fold(dialect, unfolded, None if program is None else Side(torch_dialect(), program))
    if simplify:
        result = work.simplified(dialect, result)
    if bench:
        contenders = {"original": unfolded, "folded": result}
        run.bench = measured(run, dialect, contenders, bench_options(run_options, dialect))
    _write(run, dialect, result, out, output)


def export_program(
    run: Run, program: Any, out: Path, *, fold_options: FoldOptions, check: CheckOptions, opset: int | None = None
) -> None:
    """Write an exported program as a folded ONNX file."""
    with run.stage("export"):
        unfolded = _exported(program, opset)
    work = _Work(run, RunOptions(), fold_options, check)
    result = work.checked_fold(onnx_dialect(), unfolded, Side(torch_dialect(), program))
    _write(run, onnx_dialect(), result, out, OutputOptions(out))


def run_inspect(
    run: Run,
    path: Path,
    *,
    source: Source = Source(),
    run_options: RunOptions = RunOptions(),
    fold_options: FoldOptions = FoldOptions(),
    baseline: Path | None = None,
    accept: tuple[str, ...] = (),
) -> None:
    """Say what would fold and why the rest would not; nothing is run, changed or written.

    Raises `PolicyViolation` where a batch norm that folded in the report `baseline` would not, for a reason whose code
    is not in `accept`.
    """
    former = baselines.read(baseline) if baseline else None
    side = _side(_load(run, path, source), source, run_options)
    _, report = _fold(run, side.dialect, side.model, fold_options)
    if former is not None:
        found = baselines.regressions(report, former, accept)
        run.findings += found
        baselines.enforce(report, former, found)


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
    first, second = _pair(run, reference, candidate, source)
    if certificate is not None:
        saving.certificate_path(certificate, (*first.files, *second.files))
    sides = [_side(loaded, source, run_options) for loaded in (first, second)]
    given = rtol is not None or atol is not None
    with run.stage("check"):
        run.check = check_models(
            *sides,
            run_options=run_options,
            check=check,
            tolerance=Tolerance(rtol or 0.0, atol or 0.0) if given else None,
            min_top1=min_top1,
        )
    enforce(run.check)
    if certificate is not None:
        _need_proof(run)
        _certify(run, sides[0], sides[1], certificate)


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
    from bnfold.reports import certificate

    given = certificate.read(path)
    if reference is None or candidate is None:
        run.warn(
            "models-not-read",
            f"{path} is a certificate that does not contradict itself; nothing is shown of any model: name REFERENCE "
            "and CANDIDATE to derive it again",
        )
        return
    sides = [_side(loaded, source, run_options) for loaded in _pair(run, reference, candidate, source)]
    if sides[0].dialect.kind != given.kind or sides[1].dialect.kind != given.kind:
        raise UsageError(f"{path} is about models of the kind {given.kind}", code="certificate-kind")
    with run.stage("derive again"):
        found, document = _derived(run, sides[0], sides[1], given.report, given.seed)
        if found.passed and (differs := certificate.difference(given.document, document)):
            layer = Layer("L0", Status.FAIL, f"the certificate is not of these models: {differs}")
            sentence = f"not equivalent by this certificate: {differs}"
            found = replace(found, verdict=Verdict.FAILED, sentence=sentence, layers=(layer, *found.layers[1:]))
        run.check = found
    enforce(run.check)


def _pair(run: Run, reference: Path, candidate: Path, source: Source) -> tuple[Loaded, Loaded]:
    first = _load(run, reference, source)
    second = _read(run, candidate, source)
    run.output = _record(second)
    return first, second


def _need_proof(run: Run) -> None:
    """Raise unless there is something to certify."""
    if run.check is None or run.check.verdict is not Verdict.PROVED or run.check.report is None:
        raise NoVerdict("there is no proof to certify: the models are verified equivalent", code="not-proved")


def _certify(run: Run, original: Side, folded: Side, path: Path) -> None:
    """Write the certificate of what was proved, derived once more from the models as they are in the files."""
    from bnfold.reports import certificate

    assert run.check is not None, "only what was checked is certified"
    assert run.check.report is not None, "only a proof is certified"
    with run.stage("certify"):
        found, document = _derived(run, original, folded, run.check.report, run.check.seed)
        enforce(found)
        with saving.atomic(path) as temporary:
            temporary.write_text(certificate.render(document), encoding="utf-8")


def _derived(
    run: Run, original: Side, folded: Side, report: FoldReport, seed: int
) -> tuple[Verification, dict[str, Any]]:
    """L0 and L1 by these records, and the certificate that they give."""
    from bnfold.reports import certificate

    assert run.input is not None, "the reference was read"
    assert run.output is not None, "the candidate was read or written"
    found, records, ulps = derived_again(original, folded, report, seed)
    document = certificate.document(run.input, run.output, records, ulps, kind=original.dialect.kind, seed=seed)
    return found, document


def run_bench(
    run: Run,
    paths: tuple[Path, ...],
    *,
    source: Source = Source(),
    run_options: RunOptions = RunOptions(),
    batches: tuple[int, ...] = (1,),
    budget: float = 60.0,
    processes: int = 10,
    runtime: Literal["onnxruntime", "torch"] = "onnxruntime",
    dtype: Literal["keep", "float16"] = "keep",
    gates: tuple[str, ...] = (),
) -> None:
    """Measure models against the first; one model alone is measured against its own fold. With `dtype` float16 all are
    converted, after the fold."""
    from bnfold.benchmark import parse_gates

    rules = parse_gates(gates)
    loaded = [_load(run, paths[0], source), *(_read(run, path, source) for path in paths[1:])]
    dialect = torch_dialect() if runtime == "torch" else onnx_dialect()
    models = [_runnable(run, one, source, run_options, dialect) for one in loaded]
    contenders = dict(zip(_distinct(paths), models, strict=True))
    if len(models) == 1:
        work = _Work(run, run_options, FoldOptions(), CheckOptions(enabled="proved" in gates))
        contenders = {"original": models[0], "folded": work.checked_fold(dialect, models[0])}
    if dtype == "float16":
        with run.stage("convert"):
            contenders = {name: dialect.as_float16(model) for name, model in contenders.items()}
    options = bench_options(run_options, dialect, batches=batches, budget=budget, processes=processes)
    run.bench = measured(run, dialect, contenders, options)
    proved = run.check is not None and run.check.verdict is Verdict.PROVED
    if failures := [failure for rule in rules if (failure := rule.missed(run.bench.contenders[-1], proved=proved))]:
        raise GateMissed("; ".join(failures))


def _runnable(run: Run, loaded: Loaded, source: Source, run_options: RunOptions, dialect: Dialect) -> Any:
    """A loaded model in this dialect."""
    if dialect.kind == "onnx":
        return _unfolded(run, loaded, source, run_options, None, "keep")[0]
    if loaded.kind == "onnx":
        message = f"{loaded.path} is ONNX, which torch does not run"
        raise UsageError(message, code="not-for-torch", hint="--runtime onnxruntime")
    return as_program(loaded, source, run_options)


def _distinct(paths: tuple[Path, ...]) -> list[str]:
    """A name for each path; a file given twice is told apart by a number."""
    return [f"{path} ({paths[:i].count(path) + 1})" if path in paths[:i] else str(path) for i, path in enumerate(paths)]


@dataclass(frozen=True)
class _Work:
    """One fold as the flags ask for it."""

    run: Run
    run_options: RunOptions
    fold_options: FoldOptions
    check: CheckOptions

    def checked_fold(self, dialect: Dialect, model: Any, source: Side | None = None) -> Any:
        """The folded model. Raises `NotEquivalent` or `NoVerdict` if the check does not agree."""
        folded, report = _fold(self.run, dialect, model, self.fold_options)
        if self.check.enabled:
            with self.run.stage("check"):
                sides = Side(dialect, model), Side(dialect, folded)
                self.run.check = check_folded(*sides, report, self.fold_options, self.run_options, self.check, source)
            enforce(self.run.check)
        return folded

    def simplified(self, dialect: Dialect, model: Any) -> Any:
        """What onnxsim makes of the folded model, checked against it."""
        from bnfold.simplifying import simplify

        with self.run.stage("simplify"):
            result = simplify(model)
            self.run.after = dialect.facts(result)
        if self.check.enabled:
            with self.run.stage("check the simplified model"):
                sides = Side(dialect, model), Side(dialect, result)
                enforce(check_models(*sides, run_options=self.run_options, check=self.check))
        return result


def _load(run: Run, path: Path, source: Source) -> Loaded:
    """Read the model that the command is about."""
    loaded = _read(run, path, source)
    run.input = _record(loaded)
    return loaded


def _read(run: Run, path: Path, source: Source) -> Loaded:
    with run.stage(f"load {path.name}"):
        loaded = load(path, source)
    for note in loaded.notes:
        run.warn("loading", note)
    return loaded


def _record(loaded: Loaded) -> FileRecord:
    return _file_record(loaded.kind, loaded.model, loaded.sha256, loaded.files)


def _file_record(kind: str, model: Any, digest: str, files: tuple[Path, ...]) -> FileRecord:
    """`files` are the model's, the model itself first; `digest` is the SHA-256 of that one."""
    path, *data = files
    return FileRecord(
        path=str(path),
        kind=kind,
        sha256=digest,
        bytes=path.stat().st_size,
        ir_version=model.ir_version if kind == "onnx" else None,
        opsets=dict(model.opset_imports) if kind == "onnx" else {},
        external=tuple(ExternalFile(str(file), sha256(file), file.stat().st_size) for file in data),
    )


def _wants_onnx(loaded: Loaded, output: OutputOptions) -> bool:
    return loaded.kind == "pt2" and output.out is not None and output.out.suffix.lower() == ".onnx"


def _output_path(loaded: Loaded, output: OutputOptions, suffix: str, *, folded: bool) -> Path:
    force = output.force or output.dry_run
    return saving.output_path(loaded.path, output.out, suffix=suffix, folded=folded, force=force, inputs=loaded.files)


def _side(loaded: Loaded, source: Source, run_options: RunOptions) -> Side:
    """A loaded model in a form that runs."""
    model = loaded.model if loaded.kind == "onnx" else as_program(loaded, source, run_options)
    return Side(dialect_of(model), model)


def _unfolded(
    run: Run, loaded: Loaded, source: Source, run_options: RunOptions, opset: int | None, dtype: str
) -> tuple[Any, Any | None]:
    """The ONNX model with every batch norm still in it, and the program that it was exported from."""
    if loaded.kind == "onnx":
        if opset not in (None, loaded.model.opset_imports.get("")):
            raise UsageError(f"{loaded.path} is ONNX already: its opset is kept", code="opset-kept")
        return loaded.model, None
    from bnfold.frontends import torch

    with run.stage("export"):
        program = as_program(loaded, source, run_options)
        if dtype == "float32" and torch.is_half(program):
            program = torch.as_float32(program)
            run.warn(
                "converted", "the model is stored in half precision and exported in float32 (--dtype keep: as it is)"
            )
        if not torch.dynamic_axes(program):
            run.warn("fixed-size", "every input size is fixed to the example's, the batch too")
        return _exported(program, opset, tuple(parse_input(text).shape for text in run_options.inputs)), program


def _exported(program: Any, opset: int | None, axes: tuple[tuple[int | str, ...], ...] = ()) -> Any:
    """What the exporter writes, less what it computes from constants (for Conv3d, a bias of a wrong shape)."""
    from bnfold.frontends import onnx, torch

    if training := torch.batch_statistics(program):
        count = f"{len(training)} batch norm{'s' if len(training) > 1 else ''}"
        raise Rejected(
            f"{count} of the program use the statistics of the batch, which an export would drop: {training[0]}",
            code="batch-statistics",
            hint="call model.eval() before torch.export.export",
        )
    model = torch.to_onnx(program, opset=opset, axes=axes)
    if opset is not None and model.opset_imports[""] != opset:
        message = f"torch's exporter writes opset {model.opset_imports['']} of this model, not {opset}"
        raise Rejected(message, code="opset-unavailable", hint=f"--opset {model.opset_imports['']}")
    onnx.normalise(model)
    onnx.tidy(model)
    return model


def _fold(run: Run, dialect: Dialect, model: Any, options: FoldOptions) -> tuple[Any, FoldReport]:
    with run.stage("fold"):
        run.before = dialect.facts(model)
        folded, run.fold = dialect.fold(model, options)
        run.after = dialect.facts(folded)
        stored = dialect.evidence(model), dialect.evidence(folded)
        run.findings += findings(*stored, run.fold)
        run.ranges = ranges(*stored, run.fold)
    for copied in run.fold.copies:
        takers = ", ".join(site.module or site.name for site in copied.operators)
        run.warn("copied-weight", f"a shared weight is copied for {takers}: {copied.nbytes} bytes more")
    excluded = sum(
        outcome.refusal is not None and outcome.refusal.reason is Reason.EXCLUDED for outcome in run.fold.outcomes
    )
    if options.include and excluded == len(run.fold.outcomes) > 0:
        run.warn("nothing-included", f"--include {' '.join(options.include)} names no batch norm of the model")
    return folded, run.fold


def _write(run: Run, dialect: Dialect, model: Any, out: Path, output: OutputOptions) -> None:
    if output.dry_run:
        return
    if output.provenance and run.fold is not None:
        model = dialect.annotate(model, run.fold)
    with run.stage("save"):
        files = dialect.write(out, model)
        run.output = _file_record(dialect.kind, model, sha256(out), files)
