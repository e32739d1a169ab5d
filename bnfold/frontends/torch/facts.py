"""Counts of one program."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.aliasing import bare_name, reads_shape_only
from bnfold.frontends.torch.calls import call_of
from bnfold.frontends.torch.lenses import WEIGHT_NAMES, Form, form_of
from bnfold.frontends.torch.program import ProgramShelf, open_program
from bnfold.model import Cost, ModelFacts, StoredSize


def facts(program: ExportedProgram) -> ModelFacts:
    """What a program holds. `parameters` counts the numbers of all stored float tensors, tied ones once."""
    graph, _ = open_program(ProgramShelf.of(program))
    operators = [node for node in program.graph.nodes if node.op in ("call_function", "call_method", "call_module")]
    constant = {node.name for node in graph.graph.nodes if graph.constants.is_constant(node)}
    stored = size(program)
    return ModelFacts(
        batch_norms=sum(map(graph.is_norm, graph.affines())),
        nodes=len(operators),
        compute_nodes=len(computing := [node for node in operators if _computes(node) and node.name not in constant]),
        parameters=stored.floats,
        bytes=stored.nbytes,
        cost=lambda: Cost(_macs(program), _activation_bytes(computing, _batch_symbols(program))),
    )


def size(program: ExportedProgram) -> StoredSize:
    """What the program stores, tied tensors once; to be recorded, it is held whole."""
    tensors = [*program.state_dict.values(), *(t for t in program.constants.values() if isinstance(t, Tensor))]
    unique = {(t.untyped_storage().data_ptr(), t.storage_offset(), t.shape): t for t in tensors}.values()
    floats = sum(tensor.numel() for tensor in unique if tensor.is_floating_point())
    types = [str(tensor.dtype).removeprefix("torch.") for tensor in unique if tensor.numel() > 1]
    return StoredSize(floats, sum(tensor.nbytes for tensor in unique), floats, StoredSize.coarsest_of(types))


def _computes(node: fx.Node) -> bool:
    on_numbers = isinstance(node.meta.get("val"), (Tensor, tuple, list))
    return on_numbers and not reads_shape_only(node) and bare_name(node) != "getitem"


def _activation_bytes(computing: list[fx.Node], batch: set[Any]) -> int | None:
    """Bytes of all tensors that are computed from inputs, at batch 1."""
    values = [
        value for node in computing for value in pytree.tree_leaves(node.meta["val"]) if isinstance(value, Tensor)
    ]
    counts = [(value.element_size(), [_at_batch_one(size, batch) for size in value.shape]) for value in values]
    if any(None in sizes for _, sizes in counts):
        return None
    return sum(nbytes * prod(size for size in sizes if size is not None) for nbytes, sizes in counts)


def _macs(program: ExportedProgram) -> int | None:
    """Multiply-adds of the linear operators at batch 1."""
    batch = _batch_symbols(program)
    counts = [_node_macs(node, batch) for node in program.graph.nodes]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _node_macs(node: fx.Node, batch: set[Any]) -> int | None:
    call = call_of(node, {}) if node.op == "call_function" else None
    weight = call.get(WEIGHT_NAMES[call.operator]) if call and call.operator in WEIGHT_NAMES else None
    if call is None or not isinstance(weight, fx.Node):
        return 0
    shape = tuple(weight.meta["val"].shape)
    form = form_of(call, shape)
    if not isinstance(form, Form):
        return 0
    mapped = call.get(form.data) if form.layout == "conv_transpose" else node
    sizes = [_at_batch_one(size, batch) for size in mapped.meta["val"].shape]
    positions = [size for size in sizes if size is not None]
    if len(positions) < len(sizes):
        return None
    per_position = prod(shape[1:]) if form.layout != "matmul" else shape[0]
    return int(prod(positions) * per_position)


def _at_batch_one(size: Any, batch: set[Any]) -> int | None:
    if not isinstance(size, torch.SymInt):
        return int(size)
    value = size.node.expr.subs(dict.fromkeys(batch, 1))
    return int(value) if value.is_number else None


def _batch_symbols(program: ExportedProgram) -> set[Any]:
    """The symbols that are the size of axis 0 of an input."""
    values = {node.name: node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")}
    inputs = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    tensors = [values[name] for name in inputs if isinstance(values.get(name), Tensor) and values[name].dim()]
    sizes = [tensor.shape[0] for tensor in tensors]
    return {symbol for size in sizes if isinstance(size, torch.SymInt) for symbol in size.node.expr.free_symbols}
