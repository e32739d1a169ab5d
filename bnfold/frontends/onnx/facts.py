"""What can be counted in a model, and what goes in and out of it."""

from __future__ import annotations

from collections.abc import Iterator, Set
from functools import partial
from math import prod

import onnx_ir as ir

from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.constants import known_types
from bnfold.frontends.onnx.inferred import Inferred
from bnfold.model import Cost, ModelFacts, Port, Signature, StoredSize

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CONSTANT_LIKE = ("Constant", "ConstantOfShape", "Shape", "Size")


def signature(model: ir.Model) -> Signature:
    """Inputs that a caller must give (those backed by an initializer are not among them), and outputs, in order."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    return Signature(tuple(map(_port, inputs)), tuple(map(_port, model.graph.outputs)))


def facts(model: ir.Model) -> ModelFacts:
    """Counts over the graph, the bodies of control flow and the functions, each counted once."""
    every = list(walking.nodes(model))
    stored, bookkeeping = size(model), _bookkeeping(every)
    return ModelFacts(
        batch_norms=sum(walking.is_standard(node, "BatchNormalization") for node in every),
        nodes=len(every),
        compute_nodes=len(every) - len(bookkeeping),
        parameters=stored.floats,
        bytes=stored.nbytes,
        cost=partial(_cost, model, every, bookkeeping),
    )


def _cost(model: ir.Model, every: list[ir.Node], bookkeeping: list[ir.Node]) -> Cost:
    inferred = known_types(model, single=True)
    linear = [node for node in every if walking.is_standard(node, *LINEAR)]
    computed = list(_computed(every, set(bookkeeping)))
    return Cost(_macs(linear, inferred), _activation_bytes(computed, inferred))


def size(model: ir.Model) -> StoredSize:
    """What the model stores; to be recorded, it is read tensor by tensor."""
    tensors = list(walking.stored_tensors(model))
    sizes = [(tensor.dtype, prod(walking.sizes(tensor))) for tensor in tensors if tensor.dtype in walking.FLOATS]
    floats = [size for _, size in sizes]
    coarsest = StoredSize.coarsest_of([dtype.numpy().name for dtype, size in sizes if size > 1])
    return StoredSize(sum(floats), sum(tensor.nbytes for tensor in tensors), max(floats, default=0), coarsest)


def _port(value: ir.Value) -> Port:
    kind = value.type
    dtype = kind.dtype.numpy().name if isinstance(kind, ir.TensorType) else str(kind or "unknown")
    if value.shape is None:
        return Port(value.name or "", dtype, None)
    return Port(value.name or "", dtype, tuple(size if isinstance(size, int) else size.value for size in value.shape))


def _bookkeeping(every: list[ir.Node]) -> list[ir.Node]:
    """The nodes that compute only from constants and shapes."""
    known: set[ir.Value] = set()
    found = []
    for node in every:
        inputs = [value for value in node.inputs if value is not None][: 1 if node.op_type == "CastLike" else None]
        constant = bool(inputs) and all(value in known or value.is_initializer() for value in inputs)
        if constant or walking.is_standard(node, *CONSTANT_LIKE):
            known.update(node.outputs)
            found.append(node)
    return found


def _computed(every: list[ir.Node], bookkeeping: Set[ir.Node]) -> Iterator[ir.Value]:
    """The values that are computed from inputs."""
    for node in every:
        if node not in bookkeeping:
            yield from (value for value in node.outputs if value.name)


def _activation_bytes(computed: list[ir.Value], inferred: Inferred) -> int | None:
    """Bytes of these values; None where a size or a type is not known."""
    total = 0
    for value in computed:
        sizes, dtype = _sizes(inferred, value), inferred.dtype(value)
        if sizes is None or dtype is None or dtype is ir.DataType.STRING:
            return None
        total += int(prod(sizes) * dtype.itemsize)
    return total


def _macs(linear: list[ir.Node], inferred: Inferred) -> int | None:
    """Multiply-adds of all matrix products and convolutions; None where a size is not known."""
    counts = [_node_macs(node, inferred) for node in linear]
    return None if None in counts else sum(count for count in counts if count is not None)


def _node_macs(node: ir.Node, inferred: Inferred) -> int | None:
    data, weight, result = (_sizes(inferred, value) for value in (*node.inputs[:2], node.outputs[0]))
    if not data or not weight or result is None:
        return None
    if node.op_type == "Conv":
        return prod(result) * prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return prod(data) * prod(weight[1:])
    turned = node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].as_int()
    return prod(result) * data[0 if turned else -1]


def _sizes(inferred: Inferred, value: ir.Value | None) -> tuple[int, ...] | None:
    shape = None if value is None else inferred.shape(value)
    if shape is None:
        return None
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else None
