"""What each command means: its flags, and the work that they ask for.

A command does nothing itself. It returns a `Job`, and `conduct` sees to its end.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from bnfold.cli.flags import (
    CheckFlags,
    FoldFlags,
    InputFlags,
    PolicyFlags,
    ReportFlags,
    RunFlags,
    SourceFlags,
    Texts,
    explained,
    flat,
)
from bnfold.cli.help import Command, Commands
from bnfold.cli.job import Job
from bnfold.errors import NoVerdict, UsageError
from bnfold.run import CheckOptions, Run

app = typer.Typer(
    cls=Commands,
    name="bnfold",
    rich_markup_mode=None,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Model = Annotated[Path, typer.Argument(help="The model file.", show_default=False)]
_out = partial(typer.Option, "-o", "--out", show_default=False)
_certificate = typer.Option(
    "--certificate", metavar="OUT.json", help="Write the proof here; without the verdict proved nothing is written."
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from bnfold.reports.environment import tool_version

        typer.echo(f"bnfold {tool_version()}")
        raise typer.Exit


_version = typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)


@app.callback()
def root(version: Annotated[bool, _version] = False) -> None:
    """Fold batch normalisation out of inference graphs, prove that nothing changed, measure what it bought."""


@app.command(cls=Command)
@flat
def export(
    model: Model,
    source: SourceFlags,
    run: RunFlags,
    fold: FoldFlags,
    policy: PolicyFlags,
    check: CheckFlags,
    report: ReportFlags,
    out: Annotated[Path | None, _out(metavar="OUT.onnx", help="Where to; else MODEL with the suffix .onnx.")] = None,
    opset: Annotated[int | None, typer.Option(metavar="N", min=7, help="The ONNX opset; the exporter's own.")] = None,
    dtype: Annotated[Literal["float32", "keep"], typer.Option(help="The number type of the export.")] = "float32",
    simplify: Annotated[bool, typer.Option("--simplify/--no-simplify", help="Run onnxsim on the result.")] = False,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure the result too.")] = False,
) -> Job:
    """Turn any model file into a folded ONNX file."""

    def work(record: Run) -> None:
        from bnfold import pipeline

        pipeline.run_export(
            record,
            model,
            source=source.source(record.typed),
            run_options=run.options(),
            fold_options=fold.options(),
            check=check.options(),
            output=fold.output(out),
            opset=opset,
            dtype=dtype,
            simplify=simplify,
            bench=bench,
        )

    return Job("export", report, work, (model, *([out] if out else [])), policy)


@app.command(cls=Command)
@flat
def fold(
    model: Model,
    source: SourceFlags,
    run: RunFlags,
    fold: FoldFlags,
    policy: PolicyFlags,
    check: CheckFlags,
    report: ReportFlags,
    out: Annotated[
        Path | None, _out(metavar="OUT", help="Where to; else MODEL with .folded before its suffix.")
    ] = None,
    certificate: Annotated[Path | None, _certificate] = None,
) -> Job:
    """Fold an .onnx or .pt2 file into one of its kind."""

    def work(record: Run) -> None:
        from bnfold import pipeline

        pipeline.run_fold(
            record,
            model,
            source=source.source(given=run.words()),
            run_options=run.options(),
            fold_options=fold.options(),
            check=check.options(),
            output=fold.output(out),
            certificate=certificate,
        )

    return Job("fold", report, work, (model, *(path for path in (out, certificate) if path)), policy)


@app.command(cls=Command)
@flat
def inspect(
    model: Model,
    source: SourceFlags,
    inputs: InputFlags,
    policy: PolicyFlags,
    report: ReportFlags,
    fail_on: Annotated[
        Texts,
        typer.Option("--fail-on", metavar="CODE|error|warning", help="Exit 3 on such a finding; repeatable."),
    ] = [],  # noqa: B006
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", metavar="REPORT.json", help="Exit 3 if a batch norm stays that folded in this report."
        ),
    ] = None,
) -> Job:
    """Say what would fold, what would not, and why."""

    def work(record: Run) -> None:
        from bnfold import pipeline

        pipeline.run_inspect(
            record,
            model,
            source=source.source(record.typed),
            run_options=inputs.options(),
            baseline=baseline,
            accept=tuple(policy.accept),
        )

    return Job("inspect", report, work, (model,), policy, baseline=baseline, fail_on=tuple(fail_on))


@app.command(cls=Command)
@flat
def check(
    source: SourceFlags,
    run: RunFlags,
    report: ReportFlags,
    reference: Annotated[Path | None, typer.Argument(metavar="REFERENCE", help="The original model.")] = None,
    candidate: Annotated[Path | None, typer.Argument(metavar="CANDIDATE", help="The model to compare.")] = None,
    level: Annotated[
        Literal["auto", "static", "full"],
        typer.Option(help="static: no execution; full: a skipped layer is no verdict."),
    ] = "auto",
    rtol: Annotated[float | None, typer.Option(metavar="X", min=0.0, help="Your own relative tolerance.")] = None,
    atol: Annotated[float | None, typer.Option(metavar="X", min=0.0, help="Your own absolute tolerance.")] = None,
    min_top1: Annotated[
        float | None, typer.Option("--min-top1", metavar="F", min=0.0, max=1.0, help="Least agreement of decisions.")
    ] = None,
    certificate: Annotated[Path | None, _certificate] = None,
    verify_certificate: Annotated[
        Path | None,
        typer.Option(
            "--verify-certificate", metavar="CERT.json", help="Derive again what a certificate says, nothing executed."
        ),
    ] = None,
    save_failure: Annotated[
        Path | None,
        typer.Option("--save-failure", metavar="DIR", help="Keep the inputs and the smallest part that fails here."),
    ] = None,
) -> Job:
    """Show whether two models are equivalent."""

    def work(record: Run) -> None:
        from bnfold import checking

        if verify_certificate is not None and certificate is not None:
            raise UsageError("a certificate is written or verified, not both", code="certificate-twice")
        if verify_certificate is not None and (reference is None) == (candidate is None):
            given, options = source.source(record.typed), run.options()
            checking.run_verify_certificate(
                record, verify_certificate, reference, candidate, source=given, run_options=options
            )
            return
        if reference is None or candidate is None:
            raise UsageError(
                "bnfold check needs two models, REFERENCE and CANDIDATE",
                code="missing-argument",
                hint=f"bnfold check {reference or 'model.onnx'} model.folded.onnx",
            )
        checking.run_check(
            record,
            reference,
            candidate,
            source=source.source(record.typed),
            run_options=run.options(),
            check=CheckOptions(level=level, save_failure=save_failure),
            rtol=rtol,
            atol=atol,
            min_top1=min_top1,
            certificate=certificate,
        )

    paths = (reference, candidate, certificate, verify_certificate)
    return Job("check", report, work, tuple(path for path in paths if path))


@app.command(cls=Command)
@flat
def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="The models; the first is the reference.")],
    source: SourceFlags,
    run: RunFlags,
    report: ReportFlags,
    batch: Annotated[str, typer.Option(metavar="N[,N...]", help="The batch sizes; the first is the headline's.")] = "1",
    budget: Annotated[float, typer.Option(metavar="S", min=0.0, help="Seconds to measure for.")] = 60,
    processes: Annotated[int, typer.Option(metavar="N", min=1, help="Fresh processes to measure in.")] = 10,
    dtype: Annotated[
        Literal["keep", "float16"], typer.Option(help="The number type to measure in: as stored, or converted.")
    ] = "keep",
    runtime: Annotated[
        Literal["onnxruntime", "torch"], typer.Option(help="What runs the models; torch: eager and compiled.")
    ] = "onnxruntime",
    gate: Annotated[
        Texts,
        typer.Option(
            metavar="RULE",
            help="Exit 6 unless bn<=N, nodes<=N, macs<=N, bytes<=N or proved holds for the last model; repeatable.",
        ),
    ] = [],  # noqa: B006
) -> Job:
    """Measure models against each other."""

    def work(record: Run) -> None:
        from bnfold import pipeline

        pipeline.run_bench(
            record,
            tuple(models),
            source=source.source(record.typed),
            run_options=run.options(),
            batches=_batches(batch),
            budget=budget,
            processes=processes,
            runtime=runtime,
            dtype=dtype,
            gates=tuple(gate),
        )
        found = record.bench  # what is measured never decides about a gate
        if found is not None and found.is_spoilt and not (found.interrupted or gate):
            raise NoVerdict("no verdict: the first model does not come out equal to itself", code="control-spoilt")

    return Job("bench", report, work, tuple(models))


@app.command(cls=Command)
@flat
def explain(
    report: ReportFlags,
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE", help="The code of a reason or finding; all of them without it.", autocompletion=explained
        ),
    ] = None,
) -> Job:
    """Explain why batch norms stay and what findings mean, by code."""
    said: list[str] = []

    def work(record: Run) -> None:
        from bnfold.reports.explain import findings, lookup, render

        entries = lookup(code)
        record.findings += findings(entries)
        said.append(render(entries))

    return Job("explain", report, work, show=lambda: "".join(said))


@app.command(cls=Command)
@flat
def demo(
    report: ReportFlags,
    out: Annotated[Path | None, _out(metavar="DIR", help="A folder for the files; a fresh temporary one.")] = None,
) -> Job:
    """Inspect, fold and check a small shipped model."""
    from bnfold.cli.demo import Demo

    demonstration = Demo(out)
    return Job("demo", report, demonstration.work, show=demonstration.show)


def parse(argv: list[str]) -> Job | int:
    """The job that the command line asks for, or the exit code where typer has done everything (`--help`)."""
    parsed = typer.main.get_command(app).main(argv, prog_name="bnfold", standalone_mode=False)
    return cast("Job | int", parsed)


def _batches(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--batch {text!r} is no batch size", code="bad-batch", hint="--batch 1 or --batch 1,8,32")
    return sizes
