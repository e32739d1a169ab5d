"""Sparse initializers are read as the dense tensors that they are, and written as they came unless a fold changed them.

onnx_ir knows no sparse tensors, and drops them without a word.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from bnfold.errors import Rejected

MOST_BYTES = 1 << 30
"""Of one sparse tensor, were it dense."""


class SparseTensor(ir.Tensor[NDArray[Any]]):
    """A dense tensor, and the sparse one in the file that it is."""

    def __init__(self, array: NDArray[Any], stored: onnx.SparseTensorProto) -> None:
        values = stored.values
        super().__init__(array, name=values.name, doc_string=values.doc_string or None)
        self.stored = stored


def densified(proto: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, dict[str, SparseTensor]]:
    """The model with a declaration in the place of each sparse initializer, and what these hold, by name.

    A model without any is given back as it is; another is copied. Raises `Rejected` (`invalid-model`, `limit`).
    """
    if not proto.graph.sparse_initializer:
        return proto, {}
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    found = {}
    for stored in proto.graph.sparse_initializer:
        tensor = SparseTensor(_dense(stored, name), stored)
        found[stored.values.name] = tensor
        declared = changed.graph.initializer.add(name=stored.values.name, data_type=stored.values.data_type)
        declared.dims[:] = stored.dims
    del changed.graph.sparse_initializer[:]
    return changed, found


def _dense(stored: onnx.SparseTensorProto, name: str) -> NDArray[Any]:
    """The numbers; `indices` are one number for each value, or one for each value and axis."""
    sizes = tuple(stored.dims)
    if min(sizes, default=0) < 0 or prod(sizes) * 8 > MOST_BYTES:
        message = f"{name} is refused: the sparse tensor {stored.values.name!r} would be too large"
        raise Rejected(message, code="limit")
    try:
        values, indices = numpy_helper.to_array(stored.values).reshape(-1), numpy_helper.to_array(stored.indices)
        places = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), sizes)
        dense = np.zeros(prod(sizes), values.dtype)
        if len(places) != len(values) or (len(places) and places.min() < 0):
            raise ValueError("as many places as values")
        dense[places] = values
    except (ValueError, IndexError, TypeError) as error:
        message = f"{name} is damaged: the sparse tensor {stored.values.name!r} contradicts itself"
        raise Rejected(message, code="invalid-model") from error
    return dense.reshape(sizes)


def restore(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Write the initializers that are still what a sparse tensor was as that tensor."""
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
