"""What the commands share, one function a stage: read, export, fold, write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold import saving
from bnfold.dialects import Dialect
from bnfold.errors import Rejected, UsageError
from bnfold.folding import FoldOptions
from bnfold.graph import NO_STATISTICS, TRACK, Reason
from bnfold.loading import Loaded, Source, load, sha256
from bnfold.outcome import FoldReport
from bnfold.programs import as_program
from bnfold.reports.findings import findings
from bnfold.reports.ranges import ranges
from bnfold.reports.text import plural
from bnfold.run import ExternalFile, FileRecord, OutputOptions, Run, RunOptions

if TYPE_CHECKING:
    from bnfold.model import Port
    from bnfold.verify.inputs import InputSpec


def load_input(run: Run, path: Path, source: Source) -> Loaded:
    """Read the model that the command is about."""
    loaded = read(run, path, source)
    run.input = record(run, loaded)
    return loaded


def read(run: Run, path: Path, source: Source) -> Loaded:
    """Read a model file of any kind."""
    with run.stage(f"load {path.name}"):
        loaded = load(path, source)
    for note in loaded.notes:
        run.warn("loading", note)
    return loaded


def record(run: Run, loaded: Loaded) -> FileRecord:
    """What the reports say of a file that was read."""
    return _file_record(run, loaded.kind, loaded.model, loaded.files)


def _file_record(run: Run, kind: str, model: Any, files: tuple[Path, ...]) -> FileRecord:
    """`files` are the model's, the model itself first."""
    path, *data = files

    def digest(file: Path) -> str | None:
        return sha256(file) if run.hashed else None

    return FileRecord(
        path=str(path),
        kind=kind,
        sha256=digest(path),
        bytes=path.stat().st_size,
        ir_version=model.ir_version if kind == "onnx" else None,
        opsets=dict(model.opset_imports) if kind == "onnx" else {},
        external=tuple(ExternalFile(str(file), digest(file), file.stat().st_size) for file in data),
    )


def output_path(loaded: Loaded, output: OutputOptions, suffix: str, *, folded: bool) -> Path:
    """Where the output goes; refused before any work is done if it cannot go there."""
    force = output.force or output.dry_run
    return saving.output_path(loaded.path, output.out, suffix=suffix, folded=folded, force=force, inputs=loaded.files)


def graph(loaded: Loaded, source: Source, run_options: RunOptions) -> Any:
    """A loaded model as a graph: ONNX, or an exported program."""
    return loaded.model if loaded.kind == "onnx" else as_program(loaded, source, run_options)


def unfolded(
    run: Run, loaded: Loaded, source: Source, run_options: RunOptions, opset: int | None, dtype: str
) -> tuple[Any, Any | None]:
    """The ONNX model with every batch norm still in it, and the program that it was exported from."""
    if loaded.kind == "onnx":
        if opset not in (None, loaded.model.opset_imports.get("")):
            raise UsageError(f"{loaded.path} is ONNX already: its opset is kept", code="opset-kept")
        return loaded.model, None
    from bnfold.frontends import torch
    from bnfold.verify.inputs import HALF, parse_input

    with run.stage("export"):
        program = as_program(loaded, source, run_options)
        if dtype == "float32" and torch.is_half(program):
            if half := [text for text in run_options.inputs if parse_input(text).dtype in HALF]:
                message = f"--input {half[0]} is in half precision, and the export is in float32"
                raise UsageError(message, code="bad-input", hint="leave the type out, or --dtype keep")
            program = torch.as_float32(program)
            run.warn(
                "converted", "the model is stored in half precision and exported in float32 (--dtype keep: as it is)"
            )
        if not torch.dynamic_axes(program):
            run.warn("fixed-size", f"every input size is fixed to the example's, the batch too{_freed(run_options)}")
        for axis in _fixed(torch.signature(program).inputs, [parse_input(text) for text in run_options.inputs]):
            run.warn("fixed-size", f"{axis}: the network takes no other size")
        return exported(program, opset, tuple(parse_input(text).shape for text in run_options.inputs)), program


def _fixed(ports: Sequence[Port], specs: Sequence[InputSpec]) -> Iterator[str]:
    """The axes that were to be of any size and are not, though another one is."""
    for port, spec in zip(ports, specs, strict=False):
        pairs = list(zip(port.shape or (), spec.shape, strict=False))
        if not all(isinstance(size, int) for size, _ in pairs):
            yield from (
                f"{word} of {port.name} is fixed to {size}"
                for size, word in pairs
                if isinstance(size, int) and isinstance(word, str)
            )


def _freed(run_options: RunOptions) -> str:
    """How to ask for a batch of any size, where the inputs were given."""
    rest = [text.partition(",")[2] for text in run_options.inputs]
    return f"; for any batch: {' '.join(f'-i batch,{each}' for each in rest)}" if rest and all(rest) else ""


def exported(program: Any, opset: int | None, axes: tuple[tuple[int | str, ...], ...] = ()) -> Any:
    """What the exporter writes, less what it computes from constants (for Conv3d, a bias of a wrong shape)."""
    from bnfold.frontends import onnx, torch

    if training := torch.batch_statistics(program):
        raise _by_the_batch(training)
    model = torch.to_onnx(program, opset=opset, axes=axes)
    if opset is not None and model.opset_imports[""] != opset:
        message = f"torch's exporter writes opset {model.opset_imports['']} of this model, not {opset}"
        raise Rejected(message, code="opset-unavailable", hint=f"--opset {model.opset_imports['']}")
    if mixed := onnx.mixed_types(model):
        raise Rejected(
            f"the program has no valid ONNX form, since its types do not go together: {mixed}",
            code="mixed-types",
            hint="give the example inputs the type of the weights",
        )
    onnx.normalise(model)
    onnx.tidy(model)
    return model


def _by_the_batch(training: Sequence[tuple[str, bool]]) -> Rejected:
    """Why a program with these batch norms is not exported; each with whether it has running statistics."""
    first, untracked = training[0][0], [name for name, running in training if not running]
    verb, hint = "uses" if len(training) == 1 else "use", "call model.eval() before torch.export.export"
    norms = f"{plural(len(training), 'batch norm')} of the program {verb}"
    message = f"{norms} the statistics of the batch, which an export would drop: {first}"
    if len(untracked) == len(training):
        message, hint = f"{message}; {NO_STATISTICS}", TRACK
    elif untracked:
        message, hint = f"{message}; {untracked[0]}: {NO_STATISTICS}", f"{hint}; {untracked[0]}: {TRACK}"
    return Rejected(message, code="batch-statistics", hint=hint)


def fold(run: Run, dialect: Dialect, model: Any, options: FoldOptions) -> tuple[Any, FoldReport]:
    """A folded clone and its report, with findings and counts noted."""
    with run.stage("fold"):
        run.before = dialect.facts(model)
        folded, run.fold = dialect.fold(model, options)
        run.after = dialect.facts(folded)
        stored = dialect.evidence(model), dialect.evidence(folded)
        run.findings += findings(*stored, run.fold)
        run.ranges = cache(partial(ranges, *stored, run.fold))
    for copied in run.fold.copies:
        takers = ", ".join(site.module or site.name for site in copied.operators)
        run.warn("copied-weight", f"a shared weight is copied for {takers}: {copied.nbytes} bytes more")
    excluded = sum(
        outcome.refusal is not None and outcome.refusal.reason is Reason.EXCLUDED for outcome in run.fold.outcomes
    )
    if options.include and excluded == len(run.fold.outcomes) > 0:
        run.warn("nothing-included", f"--include {' '.join(options.include)} names no batch norm of the model")
    return folded, run.fold


def write(run: Run, dialect: Dialect, model: Any, out: Path, output: OutputOptions) -> None:
    """Write the model, unless the flags say not to."""
    if output.dry_run:
        return
    if output.provenance and run.fold is not None:
        model = dialect.annotate(model, run.fold)
    with run.stage("save"):
        files = dialect.write(out, model)
        run.output = _file_record(run, dialect.kind, model, files)
