"""The commands, one function each: load → normalise → fold → verify → report and bench → save.

A function fills the `Run` that it is given as it goes, so that a failure still reports all that was known. It prints
nothing, and raises a `BnfoldError` for whatever is not success. Nothing is written unless the check agreed. `check` and
what it needs lie in `checking`, which is imported where something is checked: it is a tenth of the time of a fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnfold import saving, stages
from bnfold.dialects import Dialect, dialect_of, onnx_dialect, torch_dialect
from bnfold.errors import GateMissed, UsageError
from bnfold.folding import FoldOptions
from bnfold.loading import Loaded, Source
from bnfold.loading.suggestions import command
from bnfold.programs import as_program
from bnfold.reports import baseline as baselines
from bnfold.run import CheckOptions, OutputOptions, Run, RunOptions
from bnfold.verify.result import Verdict


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
    run.hashed |= certificate is not None
    loaded = stages.load_input(run, path, source)
    if loaded.kind not in ("onnx", "pt2") or _wants_onnx(loaded, output):
        message = f"{path} is a {loaded.kind}: fold writes the kind that it reads, and only .onnx and .pt2 have one"
        raise UsageError(message, code="fold-needs-graph", hint=command(path, source, guess=loaded.input_guess))
    dialect = dialect_of(loaded.model)
    out = stages.output_path(loaded, output, dialect.suffix, folded=True)
    if certificate is not None:
        saving.certificate_path(certificate, (*loaded.files, out))
        if not check.enabled:
            raise UsageError("--certificate needs the check", code="certificate-unchecked", hint="leave out --no-check")
    work = _Work(run, run_options, fold_options, check)
    folded = work.checked_fold(dialect, loaded.model)
    if certificate is not None:
        from bnfold import checking

        checking.need_proof(run)
    stages.write(run, dialect, folded, out, output)
    if certificate is not None and not output.dry_run:
        from bnfold import checking
        from bnfold.verification import Side

        written = Side(dialect, stages.read(run, out, Source()).model)
        checking.certify(run, Side(dialect, loaded.model), written, certificate)


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
    loaded = stages.load_input(run, path, source)
    dialect = onnx_dialect()
    out = stages.output_path(loaded, output, dialect.suffix, folded=False)
    unfolded, program = stages.unfolded(run, loaded, source, run_options, opset, dtype)
    work = _Work(run, run_options, fold_options, check)
    result = work.checked_fold(dialect, unfolded, program)
    if simplify:
        result = work.simplified(dialect, result)
    if bench:
        from bnfold.measurement import bench_options, measured

        contenders = {"original": unfolded, "folded": result}
        run.bench = measured(run, dialect, contenders, bench_options(run_options, dialect))
    stages.write(run, dialect, result, out, output)


def export_program(
    run: Run, program: Any, out: Path, *, fold_options: FoldOptions, check: CheckOptions, opset: int | None = None
) -> None:
    """Write an exported program as a folded ONNX file."""
    with run.stage("export"):
        unfolded = stages.exported(program, opset)
    work = _Work(run, RunOptions(), fold_options, check)
    result = work.checked_fold(onnx_dialect(), unfolded, program)
    stages.write(run, onnx_dialect(), result, out, OutputOptions(out))


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
    model = stages.graph(stages.load_input(run, path, source), source, run_options)
    _, report = stages.fold(run, dialect_of(model), model, fold_options)
    if former is not None:
        found = baselines.regressions(report, former, accept)
        run.findings += found
        baselines.enforce(report, former, found)


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
    from bnfold.measurement import bench_options, measured

    rules = parse_gates(gates)
    loaded = [stages.load_input(run, paths[0], source), *(stages.read(run, path, source) for path in paths[1:])]
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
        only_times = "proved" in gates and len(paths) > 1
        hint = f"of several models only times are compared: bnfold check {paths[0]} {paths[-1]}" if only_times else None
        raise GateMissed("; ".join(failures), hint=hint)


def _runnable(run: Run, loaded: Loaded, source: Source, run_options: RunOptions, dialect: Dialect) -> Any:
    """A loaded model in this dialect."""
    if dialect.kind == "onnx":
        return stages.unfolded(run, loaded, source, run_options, None, "keep")[0]
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

    def checked_fold(self, dialect: Dialect, model: Any, program: Any = None) -> Any:
        """The folded model; `program` is what the model was exported from, if it was. Raises `NotEquivalent` or
        `NoVerdict` if the check does not agree."""
        folded, report = stages.fold(self.run, dialect, model, self.fold_options)
        if self.check.enabled:
            from bnfold import checking

            options = self.fold_options, self.run_options, self.check
            checking.check_fold(self.run, dialect, (model, folded), report, *options, program)
        return folded

    def simplified(self, dialect: Dialect, model: Any) -> Any:
        """What onnxsim makes of the folded model, checked against it."""
        from bnfold.simplifying import simplify

        with self.run.stage("simplify"):
            result = simplify(model)
            self.run.after = dialect.facts(result)
        if self.check.enabled:
            from bnfold import checking

            checking.check_simplified(self.run, dialect, (model, result), self.run_options, self.check)
        return result


def _wants_onnx(loaded: Loaded, output: OutputOptions) -> bool:
    return loaded.kind == "pt2" and output.out is not None and output.out.suffix.lower() == ".onnx"
