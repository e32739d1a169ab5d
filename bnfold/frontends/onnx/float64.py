"""The same model in double precision: what the check runs as the truth.

Every float tensor, every declared float type and every operator that names a float type becomes DOUBLE. Only ε stays
what it is: the file stores it as float32, and so does every runtime. The result is for a reference executor; some
operators have no such type in the standard (the scales of Resize).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.frontends.onnx import walking

LARGE = 1 << 16
TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "stash_type")
FLOAT_BY_DEFAULT = {
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
    "BlackmanWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
}


def as_float64(model: ir.Model, *, lazily: bool = False) -> ir.Model:
    """A new model in which every float is a double; the input is not changed.

    `lazily` large tensors are converted whenever they are read, and not kept.
    """
    wide = model.clone()
    for graph in walking.graphs(wide):
        _widen_values(graph.inputs)
        _widen_values(graph.initializers.values())
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _widen_tensor(value.const_value, lazily)
    for node in walking.nodes(wide):
        _widen_values(node.outputs)
        _widen_node(node)
    return wide


def in_parts(wide: ir.Model) -> tuple[onnx.ModelProto, Mapping[str, NDArray[Any]]]:
    """What `as_float64` gave, as a proto without its large tensors and these, uncopied, by name. It is used up."""
    stored = wide.graph.initializers
    large = {
        name: value.const_value
        for name, value in stored.items()
        if value.const_value is not None and value.const_value.size >= LARGE and not value.is_graph_input()
    }
    for name in large:
        stored.pop(name).const_value = None  # graphs are cycles, which keep what they hold until somebody looks
    return ir.to_proto(wide), _Arrays(large)


class _Arrays(Mapping[str, NDArray[Any]]):
    """The numbers of tensors by name, read when they are asked for."""

    def __init__(self, tensors: Mapping[str, ir.TensorProtocol]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._tensors[name].numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _widen_values(values: Iterable[ir.Value]) -> None:
    for value in values:
        if value.type is not None:
            value.type = _widen_type(value.type)


def _widen_type(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    if isinstance(kind, ir.TensorType):
        return ir.TensorType(ir.DataType.DOUBLE, denotation=kind.denotation) if kind.dtype in walking.FLOATS else kind
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        return type(kind)(_widen_type(kind.elem_type), denotation=kind.denotation)
    return kind


def _widen_tensor(tensor: ir.TensorProtocol, lazily: bool = False) -> ir.TensorProtocol:
    if tensor.dtype not in walking.FLOATS or tensor.dtype == ir.DataType.DOUBLE:
        return tensor

    def widened() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(np.float64), name=tensor.name)

    if lazily and tensor.size >= LARGE:
        return ir.LazyTensor(widened, ir.DataType.DOUBLE, ir.Shape(tensor.shape.numpy()), name=tensor.name)
    return widened()


def _widen_node(node: ir.Node) -> None:
    if node.domain not in walking.STANDARD_DOMAINS:
        return
    for name, attribute in list(node.attributes.items()):
        if not attribute.is_ref():
            _widen_attribute(node, name, attribute)
    if node.op_type in FLOAT_BY_DEFAULT and FLOAT_BY_DEFAULT[node.op_type] not in node.attributes:
        name = FLOAT_BY_DEFAULT[node.op_type]
        node.attributes[name] = ir.AttrInt64(name, ir.DataType.DOUBLE.value)
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(np.zeros(1)))


def _widen_attribute(node: ir.Node, name: str, attribute: ir.Attr) -> None:
    if attribute.type == ir.AttributeType.TENSOR:
        node.attributes[name] = ir.AttrTensor(name, _widen_tensor(attribute.as_tensor()))
    elif name in TYPE_ATTRIBUTES and attribute.value in [dtype.value for dtype in walking.FLOATS]:
        node.attributes[name] = ir.AttrInt64(name, ir.DataType.DOUBLE.value)
    elif node.op_type == "Constant" and name in ("value_float", "value_floats"):
        del node.attributes[name]
        tensor = ir.Tensor(np.array(np.asarray(attribute.value, dtype=np.float32), dtype=np.float64))
        node.attributes["value"] = ir.AttrTensor("value", tensor)
