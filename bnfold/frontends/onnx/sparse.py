"""Sparse tensors are read as the dense ones that they are, and written as they came unless a fold changed them.

They are initializers of the main graph, or what a Constant there holds. onnx_ir knows no sparse
tensors, and drops them without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from bnfold.errors import Rejected
from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.constants import constant_tensor
from bnfold.frontends.onnx.protos import executed

MOST_BYTES = 1 << 30
"""Of one sparse tensor, were it dense."""


class SparseTensor(ir.Tensor[NDArray[Any]]):
    """A dense tensor, and the sparse one in the file that it is."""

    def __init__(self, array: NDArray[Any], stored: onnx.SparseTensorProto) -> None:
        values = stored.values
        super().__init__(array, name=values.name, doc_string=values.doc_string or None)
        self.stored = stored


def are_misplaced(proto: onnx.ModelProto) -> bool:
    """Whether there are sparse tensors elsewhere than in initializers and constants of the main graph."""
    main, *inner = executed(proto)
    other = [node for body in (*inner, *proto.functions) for node in body.node]
    other += [node for node in main.node if not _holds_sparse(node)]
    return any(graph.sparse_initializer for graph in inner) or any(
        attribute.type in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS)
        for node in other
        for attribute in node.attribute
    )


def _holds_sparse(node: onnx.NodeProto) -> bool:
    """Whether the node is a Constant that is a sparse tensor."""
    plain = node.op_type == "Constant" and node.domain in walking.STANDARD_DOMAINS and len(node.output) == 1
    return plain and [attribute.name for attribute in node.attribute] == ["sparse_value"]


def densified(proto: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, dict[str, SparseTensor]]:
    """The model with a declaration in the place of each sparse tensor, and what these hold, by the name of the value.

    A model without any is given back as it is; another is copied. Raises `Rejected` (`invalid-model`, `limit`).
    """
    if not proto.graph.sparse_initializer and not any(map(_holds_sparse, proto.graph.node)):
        return proto, {}
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    found = {}
    for stored in proto.graph.sparse_initializer:
        found[stored.values.name] = SparseTensor(_dense(stored, stored.values.name, name), stored)
        declared = changed.graph.initializer.add(name=stored.values.name, data_type=stored.values.data_type)
        declared.dims[:] = stored.dims
    del changed.graph.sparse_initializer[:]
    for node in filter(_holds_sparse, changed.graph.node):
        stored = onnx.SparseTensorProto()
        stored.CopyFrom(node.attribute[0].sparse_tensor)
        found[node.output[0]] = SparseTensor(_dense(stored, node.output[0], name), stored)
        _turn(node.attribute[0], "value", onnx.TensorProto(data_type=stored.values.data_type, dims=[0]))
    return changed, found


def _turn(attribute: onnx.AttributeProto, name: str, tensor: onnx.TensorProto | onnx.SparseTensorProto) -> None:
    """Let the attribute of a Constant be a dense or a sparse tensor."""
    dense = isinstance(tensor, onnx.TensorProto)
    attribute.ClearField("sparse_tensor" if dense else "t")
    attribute.name, attribute.type = name, attribute.TENSOR if dense else attribute.SPARSE_TENSOR
    (attribute.t if dense else attribute.sparse_tensor).CopyFrom(tensor)


def fill(model: ir.Model, sparse: Mapping[str, SparseTensor]) -> None:
    """Let the values that were declared hold their tensors."""
    for name, tensor in sparse.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = tensor
    for node in model.graph if sparse else ():
        own = node.outputs[0].name if walking.is_standard(node, "Constant") else None
        if own is not None and own in sparse:
            said = node.attributes["value"].doc_string
            node.attributes["value"] = ir.AttrTensor("value", sparse[own], doc_string=said)


def _dense(stored: onnx.SparseTensorProto, own: str, name: str) -> NDArray[Any]:
    """The numbers; `indices` are one number for each value, or one for each value and axis."""
    sizes = tuple(stored.dims)
    if min(sizes, default=0) < 0 or prod(sizes) * 8 > MOST_BYTES:
        message = f"{name} is refused: the sparse tensor {own!r} would be too large"
        raise Rejected(message, code="limit")
    if any(each.data_location == onnx.TensorProto.EXTERNAL for each in (stored.values, stored.indices)):
        message = f"{name} holds the sparse tensor {own!r} in another file, which bnfold does not read"
        raise Rejected(message, code="unsupported-model")
    try:
        values, indices = numpy_helper.to_array(stored.values).reshape(-1), numpy_helper.to_array(stored.indices)
        places = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), sizes)
        dense = np.zeros(prod(sizes), values.dtype)
        if len(places) != len(values) or (len(places) and places.min() < 0):
            raise ValueError("as many places as values")
        dense[places] = values
    except (ValueError, LookupError, TypeError) as error:
        message = f"{name} is damaged: the sparse tensor {own!r} contradicts itself"
        raise Rejected(message, code="invalid-model") from error
    return dense.reshape(sizes)


def restore(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Write the tensors of the main graph that are still what a sparse tensor was as that tensor."""
    kept = {
        value.name: value.const_value.stored
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, SparseTensor)
    }
    for index in reversed(range(len(proto.graph.initializer) if kept else 0)):
        if proto.graph.initializer[index].name in kept:
            del proto.graph.initializer[index]
    for name, stored in kept.items():
        again = proto.graph.sparse_initializer.add()
        again.CopyFrom(stored)
        again.values.name = name or ""
    for node, written in zip(model.graph, proto.graph.node, strict=True):
        held = constant_tensor(node) if walking.is_standard(node, "Constant") else None
        if isinstance(held, SparseTensor):
            _turn(written.attribute[0], "sparse_value", held.stored)
