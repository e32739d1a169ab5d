"""One set of verbs for every kind of model, so that a command is written once.

`dialect_of(model)` answers with a `Dialect`: how models of this kind are folded, counted, run and written. A framework
is imported when its dialect is first asked for, so work on ONNX never imports torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bnfold import saving
from bnfold.errors import Rejected, UsageError
from bnfold.evidence import Contents, Evidence
from bnfold.folding import FoldOptions
from bnfold.model import ModelFacts, Runner, Signature, StoredSize
from bnfold.outcome import FoldReport
from bnfold.run import RunOptions

if TYPE_CHECKING:
    from bnfold.verify.anatomy import Part, Tissue


@dataclass(frozen=True)
class Dialect:
    """What bnfold does with a model of one kind. Nothing here changes the model that is passed in.

    `fold` gives a folded clone and its report; `evidence` reads what is stored, and `contents` every node, on another
    path than the one that folds; `complaint` is what the checker of the format has against a model; `size` counts the
    floats that are stored, and the bytes of all tensors; `identity` lists what a fold must keep (versions, metadata);
    `decides` says that the model rounds or decides inside; `as_float16` is the model with every floating-point tensor
    in half precision, `as_float64` in double, and `exact` executes it so (the `executor`); `exact_as_exported` does
    with scalars as ONNX stores them, and `rounded_constants` names the operators of which an export has other
    constants; `actual` executes the model as it is in the `runtime`, graph optimisations off, and `optimised` with
    those that the runtime has by default (None: it has none); `tissue` takes it apart (its parts run the same ways);
    `annotate` is the model with a note of what was folded; `write` saves atomically and returns the files.
    """

    kind: str
    suffix: str
    runtime: str
    executor: str
    fold: Callable[[Any, FoldOptions], tuple[Any, FoldReport]]
    facts: Callable[[Any], ModelFacts]
    size: Callable[[Any], StoredSize]
    signature: Callable[[Any], Signature]
    evidence: Callable[[Any], Evidence]
    contents: Callable[[Any], Contents]
    complaint: Callable[[Any], str | None]
    identity: Callable[[Any], list[str]]
    decides: Callable[[Any], bool]
    as_float64: Callable[[Any], Any]
    as_float16: Callable[[Any], Any]
    exact: Callable[[Any], Runner]
    exact_as_exported: Callable[[Any], Runner]
    rounded_constants: Callable[[Any], tuple[str, ...]]
    actual: Callable[[Any, RunOptions], Runner]
    optimised: Callable[[Any, RunOptions], Runner] | None
    tissue: Callable[[Any, RunOptions], Tissue]
    annotate: Callable[[Any, FoldReport], Any]
    write: Callable[[Path, Any], tuple[Path, ...]]

    def version(self) -> str:
        """The installed version of the runtime, which has another name where it is built for GPUs."""
        for name in (self.runtime, f"{self.runtime}-gpu"):
            with suppress(metadata.PackageNotFoundError):
                return metadata.version(name)
        return "not installed"


def onnx_dialect() -> Dialect:
    """`onnx_ir.Model`, run by onnxruntime; in float64 by the reference evaluator."""
    from bnfold.frontends import onnx

    def exact(model: Any) -> Runner:
        from bnfold.verify.float64 import float64_runner

        return float64_runner(*onnx.in_parts(onnx.as_float64(model)))

    def as_float16(model: Any) -> Any:
        from bnfold.runtime import to_float16

        return onnx.from_proto(to_float16(onnx.to_proto(model)))

    def runtime(model: Any, options: RunOptions, *, optimise: bool) -> Runner:
        from bnfold.runtime import session

        opened = partial(
            session,
            provider=options.provider,
            provider_options=options.settings,
            threads=options.threads,
            optimise=optimise,
        )
        if onnx.is_one_file(model):
            return opened(onnx.to_bytes(model))
        with TemporaryDirectory() as folder:  # the runtime finds tensors in files only beside a model in a file
            return opened(onnx.save(model, Path(folder) / "model.onnx")[0])

    actual = partial(runtime, optimise=False)

    def tissue(model: Any, options: RunOptions) -> Tissue:
        from bnfold.verify.anatomy import Part, Tissue
        from bnfold.verify.float64 import record

        opened = onnx.Cutting(model)

        def cut(*place: Any) -> Part:
            part = opened.cut(*place)

            def store(path: Path) -> None:
                saving.write_onnx(path, part)

            return Part(
                exact=lambda: exact(part),
                actual=lambda: actual(part, replace(options, threads=1)),
                magnitudes=lambda: actual(onnx.with_magnitudes(part), replace(options, threads=1)),
                store=store,
            )

        ports = onnx.signature(model)
        return Tissue(
            inputs=tuple(port.name for port in ports.inputs),
            outputs={port.name: port.name for port in ports.outputs},
            floats=opened.floats,
            sizes=opened.sizes,
            record=lambda feeds, visit: record(*onnx.in_parts(onnx.as_float64(model, lazily=True)), feeds, visit),
            steps=opened.steps,
            cut=cut,
            suffix=".onnx",
        )

    return Dialect(
        kind="onnx",
        suffix=".onnx",
        runtime="onnxruntime",
        executor="onnx.reference in float64",
        fold=onnx.fold_model,
        facts=onnx.facts,
        size=onnx.size,
        signature=onnx.signature,
        evidence=onnx.evidence,
        contents=onnx.contents,
        complaint=onnx.complaint,
        identity=onnx.identity,
        decides=onnx.decides,
        as_float64=onnx.as_float64,
        as_float16=as_float16,
        exact=exact,
        exact_as_exported=exact,
        rounded_constants=lambda model: (),
        actual=actual,
        optimised=partial(runtime, optimise=True),
        tissue=tissue,
        annotate=onnx.annotate,
        write=saving.write_onnx,
    )


def torch_dialect() -> Dialect:
    """`torch.export.ExportedProgram`, run by torch itself."""
    from bnfold.frontends import torch

    def tissue(program: Any, options: RunOptions) -> Tissue:
        from bnfold.verify.anatomy import Part, Tissue

        opened = torch.Cutting(program)
        ports = torch.signature(program)

        def cut(*place: Any) -> Part:
            part = opened.cut(*place)

            def store(path: Path) -> None:
                saving.write_program(path, part.program())

            return Part(part.exact, part.actual, part.magnitudes, store)

        return Tissue(
            inputs=tuple(port.name for port in ports.inputs),
            outputs=dict(zip((port.name for port in ports.outputs), opened.outputs, strict=True)),
            floats=opened.floats,
            sizes=opened.sizes,
            record=opened.record,
            steps=opened.steps,
            cut=cut,
            suffix=".pt2",
        )

    return Dialect(
        kind="pt2",
        suffix=".pt2",
        runtime="torch",
        executor="torch in float64",
        fold=torch.fold_program,
        facts=torch.facts,
        size=torch.size,
        signature=torch.signature,
        evidence=torch.evidence,
        contents=torch.contents,
        complaint=lambda program: None,
        identity=lambda program: [],
        decides=torch.decides,
        as_float64=torch.as_float64,
        as_float16=torch.as_float16,
        exact=lambda program: torch.runner(torch.as_float64(program), torch.signature(program)),
        exact_as_exported=lambda program: torch.runner(torch.as_exported(program), torch.signature(program)),
        rounded_constants=torch.rounded_constants,
        actual=lambda program, _: torch.runner(program, torch.signature(program)),
        optimised=None,
        tissue=tissue,
        annotate=_no_metadata,
        write=saving.write_program,
    )


def _no_metadata(program: Any, report: FoldReport) -> Any:
    raise UsageError("--provenance needs a file with metadata, which a .pt2 has not", code="no-metadata")


def dialect_of(model: Any) -> Dialect:
    """The dialect of a loaded model, told without importing a framework that the model does not come from."""
    family = type(model).__module__.split(".")[0]
    if family == "onnx_ir":
        return onnx_dialect()
    if family == "torch" and isinstance(model, sys.modules["torch"].export.ExportedProgram):
        return torch_dialect()
    raise Rejected(f"{type(model).__name__} is no model that bnfold reads", code="not-a-model")
