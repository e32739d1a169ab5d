"""bnfold in Python: the verbs of the command line on models in memory.

    folded = bnfold.fold(module, example_inputs)      # or a path, an ONNX model, an exported program, a GraphModule
    folded.report.raise_if_unfolded(accept=["read-by-nonlinearity"])
    bnfold.check(module, folded.model, example_inputs)

What goes in is never changed, and comes out as the same kind of thing. The library prints nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from bnfold import pipeline
from bnfold.dialects import dialect_of
from bnfold.errors import UsageError
from bnfold.folding import FoldOptions, FoldReport
from bnfold.loading import Source
from bnfold.loading import load as load_file
from bnfold.run import CheckOptions, OutputOptions, Run, RunOptions
from bnfold.verification import check_models
from bnfold.verify.compare import Tolerance
from bnfold.verify.result import Verification

M = TypeVar("M")


@dataclass(frozen=True)
class Folded(Generic[M]):
    """A folded model of the kind that went in, and what became of each of its batch norms."""

    model: M
    report: FoldReport

    def __repr__(self) -> str:
        return f"Folded({type(self.model).__name__}, {self.report.folded} of {len(self.report.outcomes)} batch norms)"


def fold(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    merge: Literal["auto", "never"] = "auto",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    max_growth: float = 1.10,
) -> Folded[Any]:
    """Fold every batch norm that can be folded exactly.

    `model` is an `nn.Module` in eval mode, a `GraphModule`, an `ExportedProgram`, an `onnx_ir.Model`, an
    `onnx.ModelProto` or the path of a file that holds one. A module is captured by `torch.export` with `example_inputs`
    (a tuple of tensors; their first axis becomes dynamic); without them it is traced symbolically. `include` and
    `exclude` are globs over node or module paths; `max_growth` bounds the copies of shared weights.

    Raises `UsageError` for a module in train mode, `Rejected` for what cannot be read or captured.
    """
    if merge not in ("auto", "never"):
        raise UsageError(f"merge is 'auto' or 'never', not {merge!r}")
    options = FoldOptions(tuple(include), tuple(exclude), max_growth)
    if isinstance(model, str | Path):
        model = load_file(Path(model)).model
    family = type(model).__module__.split(".")[0]
    if family == "onnx":
        from bnfold.frontends import onnx

        folded, report = onnx.fold_model(onnx.from_proto(model), options)
        return Folded(onnx.to_proto(folded), report)
    if "torch" in sys.modules and isinstance(model, sys.modules["torch"].nn.Module):
        from bnfold.frontends import torch

        examples = tuple(example_inputs) if example_inputs is not None else None
        if isinstance(model, sys.modules["torch"].fx.GraphModule):
            return Folded(*torch.fold_graph_module(model, options, examples))
        return Folded(*torch.fold_module(model, examples, options))
    return Folded(*dialect_of(model).fold(model, options))
