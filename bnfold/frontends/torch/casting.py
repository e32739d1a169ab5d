"""A program in another number type.

`as_float64` is the reference that every comparison is made against; `cast` also turns half-precision programs into
float32 ones for export. Stored tensors, the dtypes that nodes ask for, and all recorded types change together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from bnfold.frontends.torch.capture import quiet
from bnfold.frontends.torch.constants import with_dtype
from bnfold.frontends.torch.program import ProgramShelf, copied_graph

CONSTANTS = frozenset(
    (
        *("gelu", "gelu_", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "selu", "selu_"),
        *("rms_norm", "_fused_rms_norm"),
    )
)
"""√2, √(2/π), 1/6, α and λ of SELU, and an epsilon that is that of the type; measured, they are off by 1e-9 to 6e-7."""


def as_float64(program: ExportedProgram) -> ExportedProgram:
    """The program with every float tensor, input, output and intermediate value in float64."""
    return cast(program, torch.float64)


def as_float32(program: ExportedProgram) -> ExportedProgram:
    """The program with every float tensor, input, output and intermediate value in float32."""
    return cast(program, torch.float32)


def as_float16(program: ExportedProgram) -> ExportedProgram:
    """The program with every float tensor, input, output and intermediate value in float16."""
    return cast(program, torch.float16)


def cast(program: ExportedProgram, dtype: torch.dtype) -> ExportedProgram:
    """The program with every float tensor, input, output and intermediate value in `dtype`. The given one stays."""
    with quiet():
        return _cast(program, dtype)


def _cast(program: ExportedProgram, dtype: torch.dtype) -> ExportedProgram:
    shelf = ProgramShelf.of(program)
    shared: dict[int, Tensor] = {}
    for name, tensor in shelf.tensors.items():
        shelf.tensors[name] = shared.setdefault(id(tensor), converted_tensor(tensor, dtype))
    with shelf.mode:
        _convert_graph(shelf.module, dtype)
    result = shelf.program()
    result._example_inputs = _example_inputs(program, dtype)
    return result


def as_exported(program: ExportedProgram) -> ExportedProgram:
    """The program in float64 with every scalar as ONNX stores it, in float32: epsilons, slopes, factors, defaults too.

    Against this a correct export differs by the rounding of float64 alone, unless it holds `rounded_constants`.
    """
    wide = as_float64(program)
    for module in wide.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                _round_scalars(node)
            module.recompile()
    return wide


def rounded_constants(program: ExportedProgram) -> tuple[str, ...]:
    """The operators of a program that an export spells with constants of its own, in float32, which torch has exact."""
    names = {
        _bare(node) for module in program.graph_module.modules() for node in getattr(module, "graph", fx.Graph()).nodes
    }
    return tuple(sorted(names & CONSTANTS))


def _bare(node: fx.Node) -> str:
    return node.target._schema.name.split("::")[-1] if isinstance(node.target, torch._ops.OpOverload) else ""


def _round_scalars(node: fx.Node) -> None:
    if node.op != "call_function":
        return
    node.args = fx.node.map_aggregate(node.args, _as_float32)
    node.kwargs = fx.node.map_aggregate(node.kwargs, _as_float32)
    if isinstance(node.target, torch._ops.OpOverload):
        for argument in node.target._schema.arguments[len(node.args) :]:
            if argument.name not in node.kwargs and isinstance(argument.default_value, float):
                node.update_kwarg(argument.name, _as_float32(argument.default_value))


def _as_float32(value: Any) -> Any:
    return float(np.float32(value)) if isinstance(value, float) else value


def is_half(program: ExportedProgram) -> bool:
    """Whether the program stores half-precision tensors."""
    return any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in program.state_dict.values())


def converted_tensor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A float tensor in another float type; anything else as it is."""
    if not tensor.is_floating_point() or tensor.dtype is dtype:
        return tensor
    changed = tensor.detach().to(dtype)
    return nn.Parameter(changed, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else changed


def _convert_graph(module: fx.GraphModule, dtype: torch.dtype) -> None:
    """Rewrite the dtypes that nodes ask for and those that are recorded; subgraphs are replaced by copies."""
    for name, part in list(module.named_children()):
        if isinstance(part, fx.GraphModule):
            copied = copied_graph(part)
            _convert_graph(copied, dtype)
            setattr(module, name, copied)
    for node in module.graph.nodes:
        node.args = with_dtype(tuple(node.args), dtype)
        node.kwargs = with_dtype(dict(node.kwargs), dtype)
        value = node.meta.get("val")
        if _makes_floats(node, value):
            node.update_kwarg("dtype", dtype)
        node.meta["val"] = tree_map_only(Tensor, lambda tensor: converted_tensor(tensor, dtype), value)
        node.meta.pop("tensor_meta", None)
    module.recompile()


def _makes_floats(node: fx.Node, value: object) -> bool:
    """Whether a node makes floats of the default type out of nothing (`zeros`, `arange`)."""
    if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(value, Tensor) or node.all_input_nodes:
        return False
    return value.is_floating_point() and any(argument.name == "dtype" for argument in node.target._schema.arguments)


def _example_inputs(program: ExportedProgram, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda tensor: converted_tensor(tensor, dtype), program.example_inputs)
