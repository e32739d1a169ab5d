"""From an exported program to an ONNX model, with every batch norm still in it.

torch's exporter folds Conv and BatchNormalization itself when it optimises, in float32 and without a word: that is
switched off. What it notes of this machine (stack traces, paths) is taken out; module paths stay.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.export import ExportedProgram

from bnfold.errors import MissingDependency, Rejected
from bnfold.frontends.torch.capture import first_line, quiet

BFLOAT16_OPSET = 22
KEPT_METADATA = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")


def to_onnx(program: ExportedProgram, *, opset: int | None = None, axes: tuple[tuple[int | str, ...], ...] = ()) -> Any:
    """The program as an `onnx_ir.Model`, unfolded; its tensors are views of the program's.

    `opset` None is the exporter's own choice, or, for bfloat16, 22, where convolutions have this type. `axes` names the
    dynamic axes, one tuple of sizes and names per input; without it the first axis of the inputs is `batch`.
    Raises `Rejected` where an operator has no ONNX form, `MissingDependency` without onnxscript.
    """
    stored = (*program.state_dict.values(), *program.constants.values())
    if opset is None and any(isinstance(each, torch.Tensor) and each.dtype == torch.bfloat16 for each in stored):
        opset = BFLOAT16_OPSET
    try:
        with quiet():
            exported = torch.onnx.export(
                program, (), dynamo=True, optimize=False, verbose=False, opset_version=opset, external_data=False
            )
    except ImportError as error:
        raise MissingDependency(f"the export needs a package: {error}", hint="pip install onnxscript") from error
    except Exception as error:
        raise Rejected(
            f"torch cannot express the program in ONNX: {first_line(error.__cause__ or error)}",
            code="onnx-export",
            hint="try another --opset, or replace the operator",
        ) from error
    assert exported is not None, "the exporter returns a program"
    _strip(exported.model)
    _name_axes(exported.model, axes)
    return exported.model


def _name_axes(model: Any, axes: tuple[tuple[int | str, ...], ...]) -> None:
    """Give dynamic axes the caller's names, in every value: torch's are symbols such as s77. An axis that was to be
    dynamic, and that torch found to be of one size only, has that number for a symbol."""
    names: dict[str, str] = {}
    for position, value in enumerate(model.graph.inputs):
        given = axes[position] if position < len(axes) else ("batch",)
        for size, name in zip(value.shape or (), given, strict=False):
            if isinstance(name, str) and not isinstance(size, int) and size.value and not size.value.isdigit():
                names.setdefault(size.value, name)
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
        for value in values:
            for axis, size in enumerate(value.shape or ()):
                if not isinstance(size, int) and size.value:
                    named = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size.value)
                    value.shape[axis] = int(named) if named.isdigit() else named


def _strip(model: Any) -> None:
    """Keep the module path of each node, drop all else that the exporter noted."""
    for graph in model.graphs():
        for node in graph:
            _keep(node.metadata_props, KEPT_METADATA)
            for value in node.outputs:
                _keep(value.metadata_props, ())
        for value in (*graph.inputs, *graph.initializers.values()):
            _keep(value.metadata_props, ())


def _keep(metadata: Any, keys: tuple[str, ...]) -> None:
    for key in [key for key in metadata if key not in keys]:
        del metadata[key]
