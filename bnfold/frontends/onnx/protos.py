"""Everything that a `ModelProto` holds, wherever it stands: graphs, nodes, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import onnx
import onnx_ir as ir

COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
COUNTABLE = frozenset(ir.DataType) - {ir.DataType.UNDEFINED, ir.DataType.STRING, *COMPLEX}


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph, those that training runs, and the bodies of control flow in them and in functions."""
    for graph in (
        proto.graph,
        *(each for info in proto.training_info for each in (info.initialization, info.algorithm)),
    ):
        yield graph
        yield from _nested(graph.node)
    for function in proto.functions:
        yield from _nested(function.node)


def _nested(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for graph in bodies(node):
            yield graph
            yield from _nested(graph.node)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that stand in the attributes of a node."""
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of all graphs and functions."""
    for graph in graphs(proto):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The stored tensors, those of the main graph first and in order; of sparse ones the values and the indices."""
    for graph in graphs(proto):
        yield from graph.initializer
        yield from _dense(graph.sparse_initializer)
    for node in nodes(proto):
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            yield from _dense(attribute.sparse_tensors)
            yield from _dense([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])


def _dense(sparse: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def nbytes(tensor: onnx.TensorProto) -> int | None:
    """The bytes of a tensor of whole-byte real numbers; None for any other."""
    if tensor.data_type not in COUNTABLE:
        return None
    bits = ir.DataType(tensor.data_type).bitwidth
    return prod(tensor.dims) * bits // 8 if bits % 8 == 0 else None
