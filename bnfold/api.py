"""bnfold in Python: the verbs of the command line on models in memory.

    folded = bnfold.fold(module, example_inputs)      # or a path, an ONNX model, an exported program, a GraphModule
    folded.report.raise_if_unfolded(accept=["read-by-nonlinearity"])
    bnfold.check(module, folded.model, example_inputs)

What goes in is never changed, and comes out as the same kind of thing. The library prints nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from bnfold import pipeline
from bnfold.dialects import dialect_of
from bnfold.errors import Rejected, UsageError
from bnfold.folding import FoldOptions
from bnfold.loading import Source
from bnfold.loading import load as load_file
from bnfold.moments import DriftReport
from bnfold.outcome import FoldReport
from bnfold.reports.files import reported
from bnfold.reports.findings import findings
from bnfold.reports.text import plural
from bnfold.run import CheckOptions, Finding, OutputOptions, Run, RunOptions
from bnfold.verification import Side, check_models
from bnfold.verify.meters import Tolerance
from bnfold.verify.result import Verification

if TYPE_CHECKING:
    from bnfold.benchmark import Benchmark

M = TypeVar("M")


@dataclass(frozen=True)
class Folded(Generic[M]):
    """A folded model of the kind that went in, and what became of each of its batch norms."""

    model: M
    report: FoldReport

    def __repr__(self) -> str:
        return f"Folded({type(self.model).__name__}, {self.report.folded} of {len(self.report.norms)} batch norms)"

    def _repr_html_(self) -> str:
        """The table of the report, for notebooks."""
        return self.report._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """What `report.to_dict` gives, and under `model` the name of the model's class."""
        return {"model": type(self.model).__name__, **self.report.to_dict()}


@dataclass(frozen=True, repr=False)
class Inspection(FoldReport):
    """What would become of each batch norm, and what is to know about its numbers.

    `findings` have `code`, `severity` (error, warning, note), `message`, `remedy`, `affine` (the id of a row) and
    `channels`. They are None where statistics cannot be told from a module: it was given without `example_inputs`.
    """

    findings: tuple[Finding, ...] | None = None

    def __repr__(self) -> str:
        return f"Inspection({self._counted})"

    def to_dict(self) -> dict[str, Any]:
        """What a `FoldReport` gives, and `findings` with the keys of the JSON report."""
        found = self.findings
        return {**super().to_dict(), "findings": None if found is None else [each.to_dict() for each in found]}

    @property
    def _counted(self) -> str:
        told = "" if not self.findings else f", {plural(len(self.findings), 'finding')}"
        return f"{self.folded} of {plural(len(self.norms), 'batch norm')} would fold{told}"


@dataclass(frozen=True)
class Recalibrated(Generic[M]):
    """A module with the statistics of its data, and how far its old ones stood from them."""

    model: M
    report: DriftReport

    def __repr__(self) -> str:
        return f"Recalibrated({type(self.model).__name__}, {self.report})"

    def _repr_html_(self) -> str:
        """The table of the report, for notebooks."""
        return self.report._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """What `report.to_dict` gives, and under `model` the name of the model's class."""
        return {"model": type(self.model).__name__, **self.report.to_dict()}


def fold(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    merge: Literal["auto", "never"] = "auto",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    max_growth: float = 1.10,
    leftover: Literal["keep", "affine"] = "keep",
) -> Folded[Any]:
    """Fold every batch norm that can be folded exactly, and merge linear operators that make one.

    `model` is an `nn.Module` in eval mode, a `GraphModule`, an `ExportedProgram`, an `onnx_ir.Model`, an
    `onnx.ModelProto` or the path of a file that holds one. A module is captured by `torch.export` with `example_inputs`
    (a tuple of tensors; their first axis becomes dynamic); without them it is traced symbolically. `include` and
    `exclude` are globs over node or module paths; `max_growth` bounds the copies of shared weights. With
    `leftover="affine"` a batch norm that stays becomes a product and a sum. With `merge="auto"` parallel branches and
    chains of linear operators become one operator where that needs no more multiply-adds.

    Raises `UsageError` for a module in train mode, `Rejected` for what cannot be read or captured.
    """
    options = _options(include, exclude, max_growth, leftover, merge)
    if isinstance(model, str | Path):
        model = load(model)
    if _is_proto(model):
        from bnfold.frontends import onnx

        folded, report = onnx.fold_model(onnx.from_proto(model), options)
        return Folded(onnx.to_proto(folded), report)
    if _is_module(model):
        from bnfold.frontends import torch

        return Folded(*torch.fold_module(model, _tuple(example_inputs), options))
    return Folded(*dialect_of(model).fold(model, options))


def export(
    model: Any,
    out: str | Path,
    example_inputs: Sequence[Any] | None = None,
    *,
    opset: int | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    max_growth: float = 1.10,
    leftover: Literal["keep", "affine"] = "keep",
    merge: Literal["auto", "never"] = "auto",
    check: bool = True,
    report: str | Path | Iterable[str | Path] = (),
) -> Run:
    """Write a model as a folded ONNX file and return all that is known of it: `.fold`, `.check`, `.before`, `.after`,
    `.findings`, `.warnings`.

    `model` is the path of any model file, an `nn.Module` in eval mode (with `example_inputs`, as `fold` takes them) or
    an `ExportedProgram`. An existing model file at `out` is replaced. `opset` None is the exporter's own. `include`,
    `exclude`, `max_growth`, `leftover` and `merge` are those of `fold`. Half precision that a file
    stores becomes float32; a module or a program keeps its number types. `report` names files to write the report to,
    in the kind of their suffix (`.json`, `.html`, `.md`, `.xml`); they are written where this raises, too.

    Raises `NotEquivalent` or `NoVerdict`, and writes nothing, if the check does not agree, unless `check` is off;
    `Rejected` for what cannot be read or captured, `MissingDependency` where a package is missing.
    """
    run = Run("export")
    options = _options(include, exclude, max_growth, leftover, merge)
    output, checks = OutputOptions(Path(out)), CheckOptions(enabled=check)
    is_file = isinstance(model, str | Path)
    reports = [Path(path) for path in ([report] if isinstance(report, str | Path) else report)]
    with reported(run, reports, (Path(model), Path(out)) if is_file else (Path(out),)):
        if is_file:
            pipeline.run_export(run, Path(model), fold_options=options, output=output, check=checks, opset=opset)
        else:
            program = _captured(model, example_inputs)
            pipeline.export_program(run, program, Path(out), fold_options=options, check=checks, opset=opset)
    return run


def inspect(model: Any, example_inputs: Sequence[Any] | None = None) -> Inspection:
    """What `fold` would do with every batch norm, why it would leave some, and what is unusual about the numbers.

    `model` and `example_inputs` are what `fold` takes. Raises what `fold` raises.
    """
    if isinstance(model, str | Path):
        model = load(model)
    if _is_module(model) and example_inputs is None:
        return _inspected(fold(model).report, None)
    if _is_module(model):
        model = _captured(model, example_inputs)
    if _is_proto(model):
        from bnfold.frontends import onnx

        model = onnx.from_proto(model)
    dialect = dialect_of(model)
    folded, report = dialect.fold(model, FoldOptions())
    return _inspected(report, tuple(findings(dialect.evidence(model), dialect.evidence(folded), report)))


def _inspected(report: FoldReport, found: tuple[Finding, ...] | None) -> Inspection:
    return Inspection(**{each.name: getattr(report, each.name) for each in fields(report)}, findings=found)


def check(
    reference: Any,
    candidate: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    level: Literal["auto", "static", "full"] = "auto",
    rtol: float | None = None,
    atol: float | None = None,
    min_top1: float | None = None,
    seed: int = 0,
) -> Verification:
    """Compare two models: paths, ONNX models, exported programs, or modules (with `example_inputs`) in any combination.

    `reference` is the original and `candidate` the model that is to compute the same; inputs and outputs are matched by
    name, else by position. With `level="static"` nothing is executed, with
    `level="full"` a layer that had to be skipped is no verdict. `rtol` and `atol` are a tolerance of the caller's:
    `|candidate - reference| <= atol + rtol * |reference|` for each element. `min_top1`
    in [0, 1] is how many of the decisions must agree. `seed` chooses the inputs.

    A verdict that is not `proved` or `verified` is returned, not raised; see `bnfold.testing.assert_equivalent`. Raises
    `UsageError` for a module without `example_inputs` or in train mode, `Rejected` for what cannot be read or captured.
    """
    given = rtol is not None or atol is not None
    return check_models(
        _side(reference, example_inputs),
        _side(candidate, example_inputs),
        run_options=RunOptions(seed=seed),
        check=CheckOptions(level=level),
        tolerance=Tolerance(rtol or 0.0, atol or 0.0) if given else None,
        min_top1=min_top1,
    )


def bench(
    *models: Any,
    example_inputs: Sequence[Any] | None = None,
    batch: int | Sequence[int] = 1,
    budget: float = 60.0,
    processes: int = 10,
    runtime: Literal["onnxruntime", "torch"] = "onnxruntime",
    dtype: Literal["keep", "float16"] = "keep",
    threads: int = 1,
) -> Benchmark:
    """Measure models against the first; one alone is measured against its own fold.

    `models` are files or modules. Files are measured in fresh processes: with `runtime` in onnxruntime, or in torch,
    eager and compiled; with `dtype` as stored, or converted to float16. `batch` is one size or several, of which the
    first is spoken of; `budget` is in seconds for all `processes`, `threads` for each. An `nn.Module` in eval mode is
    measured as it is, by torch in this process, on its `example_inputs`, in as many bursts as `processes` says; that
    torch compiles it first (half a minute, where nothing of it is in torch's cache) does not count.

    Raises `UsageError` where modules and files are mixed, `NoVerdict` where a model does not run.
    """
    if models and all(map(_is_module, models)):
        if (batch, runtime, dtype) != (1, "onnxruntime", "keep"):
            raise UsageError(
                "a module is measured by torch as it is, on its example_inputs: batch, runtime and dtype are for files"
            )
        return _bench_modules(models, _tuple(example_inputs), budget, processes, threads)
    if not all(isinstance(model, str | Path) for model in models):
        raise UsageError("bench takes files, or modules with example_inputs; save a model to measure it in processes")
    run = Run("bench", hashed=False)
    pipeline.run_bench(
        run,
        tuple(map(Path, models)),
        run_options=RunOptions(threads=threads),
        batches=(batch,) if isinstance(batch, int) else tuple(batch),
        budget=budget,
        processes=processes,
        runtime=runtime,
        dtype=dtype,
    )
    assert run.bench is not None, "run_bench measures or raises"
    return run.bench


def _bench_modules(
    modules: Sequence[Any], example_inputs: tuple[Any, ...] | None, budget: float, processes: int, threads: int
) -> Benchmark:
    if example_inputs is None:
        raise UsageError("bench needs example_inputs to run a module")
    from bnfold.benchmark import BenchOptions, measure_live
    from bnfold.frontends import torch

    names = [f"{type(module).__name__} {number}" for number, module in enumerate(modules, start=1)]
    if len(modules) == 1:
        names, modules = ["original", "folded"], (*modules, fold(modules[0], example_inputs).model)
    facts = [torch.facts(_captured(module, example_inputs)) for module in modules]
    options = BenchOptions(budget=budget, processes=processes, threads=threads)
    return measure_live(dict(zip(names, zip(modules, facts, strict=True), strict=True)), example_inputs, options)


def recalibrate(module: Any, data: Iterable[Any]) -> Recalibrated[Any]:
    """Give every batch norm the mean and the variance of all that it reads when the module runs on the data.

    For a network whose moving averages are stale. `module` is an `nn.Module` in eval mode. `data` holds batches, each a
    tensor, a tuple of positional arguments or a dict of named ones, on any device. Mean and unbiased variance are those
    of all values of a channel, N·H·W of them, pooled in float64, in the network whose statistics are all corrected (Wu
    and Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576). A batch norm that is called several times gets
    the moments of all calls; one that is never called, or that stores no statistics, stays, and `report.left` says so.
    Parameters and other buffers stay as they are. `num_batches_tracked` becomes 0, since no training step is in the new
    statistics; where momentum is None, so that training would go on from it, the number of calls that were pooled.

    The data is read once more than there are batch norms on the longest way through the network, or less often where
    that suffices, and one batch alone is read twice. So `data` must give the same batches again: a list, or a
    `DataLoader` without random transforms. What is stored is what the last pass found again, to 8 units of rounding.

    Raises `UsageError` for a part in train mode, for data that can be read only once or does not fit, and for one value
    per channel; `Rejected` where a batch norm reads what is not finite (`non-finite`), or something else in every pass
    (`unsettled`).
    """
    if not _is_module(module):
        raise UsageError(f"recalibrate takes an nn.Module, not {type(module).__name__}")
    from bnfold.frontends import torch

    return Recalibrated(*torch.recalibrate_module(module, data))


def load(path: str | Path, *, source: Source = Source()) -> Any:
    """The model in a file: an `onnx_ir.Model`, an `ExportedProgram` or an `nn.Module` in eval mode, told by content.

    `path` is a model file of any kind. `source` holds what the command line asks for a file that needs more: the code
    of its network, trust in a pickle. Raises `Rejected` for what cannot be read or is not trusted.
    """
    return load_file(Path(path), source).model


def save(model: Any, path: str | Path) -> None:
    """Write an ONNX model or an exported program, whole or not at all.

    `model` is an `onnx_ir.Model`, an `onnx.ModelProto` or an `ExportedProgram`; an existing file at `path` is replaced.
    Raises `Rejected` for any other model, `EnvironmentFailure` where the disk does not take it.
    """
    if _is_proto(model):
        from bnfold.frontends import onnx

        model = onnx.from_proto(model)
    if _is_module(model):
        hint = "bnfold.export(module, 'model.onnx', example_inputs), or torch.export.save of the exported program"
        raise Rejected("a module is no file: save its export", code="not-a-model", hint=hint)
    dialect_of(model).write(Path(path), model)


def _options(
    include: Iterable[str],
    exclude: Iterable[str],
    max_growth: float,
    leftover: Literal["keep", "affine"],
    merge: Literal["auto", "never"],
) -> FoldOptions:
    if merge not in ("auto", "never"):
        raise UsageError(f"merge is 'auto' or 'never', not {merge!r}")
    if leftover not in ("keep", "affine"):
        raise UsageError(f"leftover is 'keep' or 'affine', not {leftover!r}")
    return FoldOptions(tuple(include), tuple(exclude), max_growth, leftover, merge)


def _side(model: Any, example_inputs: Sequence[Any] | None) -> Side:
    if isinstance(model, str | Path):
        model = load(model)
    if _is_proto(model):
        from bnfold.frontends import onnx

        model = onnx.from_proto(model)
    if _is_module(model):
        model = _captured(model, example_inputs)
    return Side(dialect_of(model), model)


def _captured(model: Any, example_inputs: Sequence[Any] | None) -> Any:
    """The exported program of a module; a program is taken as it is."""
    if not _is_module(model):
        return model
    examples = _tuple(example_inputs)
    if examples is None:
        raise UsageError("a module needs example inputs: a tuple of tensors that it accepts")
    if model.training:
        raise UsageError("the module is in train mode; call model.eval() first", hint="model.eval()")
    from bnfold.frontends import torch

    return torch.capture(model, examples)


def _tuple(example_inputs: Sequence[Any] | None) -> tuple[Any, ...] | None:
    if hasattr(example_inputs, "shape"):
        raise UsageError("the example inputs are a tuple of tensors, not a tensor", hint="write (tensor,)")
    return None if example_inputs is None else tuple(example_inputs)


def _is_module(model: Any) -> bool:
    return "torch" in sys.modules and isinstance(model, sys.modules["torch"].nn.Module)


def _is_proto(model: Any) -> bool:
    return type(model).__name__ == "ModelProto"
