"""Everything that a `ModelProto` holds, wherever it stands: graphs, nodes, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import Message  # type: ignore[import-untyped]

from bnfold.frontends.onnx.walking import STANDARD_DOMAINS

COUNTABLE = frozenset(ir.DataType) - {ir.DataType.UNDEFINED, ir.DataType.STRING}


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph, those that training runs, and the bodies of control flow in them and in functions."""
    yield from executed(proto)
    for graph in (each for info in proto.training_info for each in (info.initialization, info.algorithm)):
        yield graph
        yield from _nested(graph.node)


def executed(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph, and the bodies of control flow in it and in functions."""
    yield proto.graph
    yield from _nested(proto.graph.node)
    for function in proto.functions:
        yield from _nested(function.node)
        for graph in in_attributes(function.attribute_proto):
            yield graph
            yield from _nested(graph.node)


def _nested(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for graph in bodies(node):
            yield graph
            yield from _nested(graph.node)


def within(found: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes, and those of the bodies of control flow in them."""
    for node in found:
        yield node
        for graph in bodies(node):
            yield from within(graph.node)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that stand in the attributes of a node."""
    yield from in_attributes(node.attribute)


def in_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.GraphProto]:
    """The graphs that these attributes are: of a node, or what a function takes for those that it is not given."""
    for attribute in attributes:
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
    attributes = [attribute for node in nodes(proto) for attribute in node.attribute]
    for attribute in (*attributes, *(each for function in proto.functions for each in function.attribute_proto)):
        yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
        yield from _dense(attribute.sparse_tensors)
        yield from _dense([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])


def _dense(sparse: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def nbytes(tensor: onnx.TensorProto) -> int | None:
    """The bytes of a tensor's numbers, packed where one takes less than a byte; None for text and what is no type."""
    bits = bits_of(tensor)
    return None if bits is None else -(-prod(tensor.dims) * bits // 8)


def bits_of(tensor: onnx.TensorProto) -> int | None:
    """The bits of one number; None for text and what is no type."""
    return ir.DataType(tensor.data_type).bitwidth if tensor.data_type in COUNTABLE else None


def texts(message: Message) -> Iterator[str | bytes]:
    """Everything in a message that should be text; what is none is given as bytes."""
    for field, value in message.ListFields() if not isinstance(message, onnx.TensorProto) else _beside_numbers(message):
        several = value if field.is_repeated else (value,)
        if field.type == field.TYPE_STRING:
            yield from several
        elif field.type == field.TYPE_MESSAGE:
            for each in several:
                yield from texts(each)


def words(proto: onnx.ModelProto) -> Iterator[bytes]:
    """What stands as text in the attributes of standard operators; those of others may hold anything."""
    for node in nodes(proto):
        for attribute in node.attribute if node.domain in STANDARD_DOMAINS else ():
            yield from (attribute.s, *attribute.strings)


def _beside_numbers(tensor: onnx.TensorProto) -> Iterator[tuple[Any, Any]]:
    """The fields of a tensor that are text, without a copy of its numbers."""
    for name in ("name", "doc_string", "external_data", "metadata_props"):
        yield tensor.DESCRIPTOR.fields_by_name[name], getattr(tensor, name)
