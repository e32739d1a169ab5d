"""A size is a fact only if the graph enforces it.

Stored `value_info` may lie: checker and runtime accept a false rank. So types are inferred again from the inputs of
the model and the sizes of its stored tensors, over a copy that holds no large tensor and none of the stored claims.
`constants.known_types` is how the others get it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from math import prod
from typing import Protocol

import onnx
import onnx.shape_inference
import onnx_ir as ir

from bnfold.frontends.onnx import walking

SMALL, FEW = 1024, 16
Known = Callable[[ir.Value], ir.TensorProtocol | None]


OPEN = "input"
"""How the names of sizes begin that the caller chooses."""


class Types(Protocol):
    """What is known of values before they are computed."""

    def shape(self, value: ir.Value) -> tuple[int | str | None, ...] | None:
        """The sizes of the value, a name or None where one is not known; None where not even the rank is."""

    def rank(self, value: ir.Value) -> int | None:
        """The number of axes, None where it is not known."""

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The type of the elements, None where it is not known."""


class Unknown:
    """The types of a model of which nothing was inferred."""

    def shape(self, value: ir.Value) -> None:
        return None

    def rank(self, value: ir.Value) -> None:
        return None

    def dtype(self, value: ir.Value) -> None:
        return None


def _nothing(value: ir.Value) -> None:
    """No computed value is known."""


class Inferred:
    """What is known of the values of the main graph before it runs. Inference runs once, when first asked.

    `known` gives the numbers of computed values where they are constant: shapes that are computed, above all. `less`
    is what is known with fewer of these numbers, and asked first. With `single` the first axis of an input that has no
    size is taken as 1.
    """

    def __init__(self, model: ir.Model, known: Known, less: Inferred | None = None, *, single: bool = False) -> None:
        self._model = model
        self._known = known
        self._less = less
        self._single = single

    def shape(self, value: ir.Value) -> tuple[int | str | None, ...] | None:
        """The sizes of the value, a name or None where one is not known; None where not even the rank is."""
        if value.is_initializer() and value.const_value is not None:
            return walking.sizes(value.const_value)
        simple = None if self._less is None else self._less.shape(value)
        if simple is not None and all(_is_settled(size) for size in simple):
            return simple
        known = self._type(value)
        if known is None or not known.HasField("shape"):
            return None
        return tuple(_size(dimension) for dimension in known.shape.dim)

    def rank(self, value: ir.Value) -> int | None:
        """The number of axes, None where it is not known."""
        if self._less is not None and (simple := self._less.rank(value)) is not None:
            return simple
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The type of the elements, None where it is not known."""
        if self._less is not None and (simple := self._less.dtype(value)) is not None:
            return simple
        known = self._type(value)
        return ir.DataType(known.elem_type) if known is not None and known.elem_type else None

    def _type(self, value: ir.Value) -> onnx.TypeProto.Tensor | None:
        if value.graph is not self._model.graph or value.name is None:
            return None
        return self._types.get(value.name)

    @cached_property
    def _types(self) -> dict[str, onnx.TypeProto.Tensor]:
        proto = skeleton(self._model, self._known)
        self._known = _nothing  # asked once; what it computed need not be held
        for value in proto.graph.input if self._single else ():
            _fix_batch(value)
        return infer(proto)


def infer(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """The tensor type of every value of the main graph for which one follows from its inputs."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except onnx.shape_inference.InferenceError:  # the operators contradict each other: nothing is known for sure
        graph = proto.graph
    return {info.name: info.type.tensor_type for info in (*graph.input, *graph.value_info, *graph.output)}


def skeleton(model: ir.Model, known: Known) -> onnx.ModelProto:
    """The model without claims, computed constants, and large tensors, which become inputs of their type and shape."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    for function in model.functions.values():
        proto.functions.append(ir.serde.serialize_function(function, create_value_info=False))
    graph = proto.graph
    graph.name = "skeleton"
    for position, value in enumerate(model.graph.inputs):
        ir.serde.serialize_value_into(graph.input.add(), value)
        _name_sizes(graph.input[-1], position)
    declared = set(model.graph.inputs)
    for value in model.graph.initializers.values():
        if value not in declared and value.const_value is not None:
            _declare(graph, value, value.const_value)
    for node in model.graph:
        if node.outputs and (tensor := known(node.outputs[0])) is not None:
            _declare(graph, node.outputs[0], tensor)
        else:
            _write_node(graph.node.add(), node)
    for value in model.graph.outputs:
        graph.output.add(name=value.name)
    drop_claims(graph.node)
    return proto


def _write_node(proto: onnx.NodeProto, node: ir.Node) -> None:
    """What inference reads of a node; exporters leave more words than that in each, and the words are not copied."""
    proto.op_type, proto.domain, proto.overload = node.op_type, node.domain, node.overload
    proto.input.extend("" if value is None else value.name or "" for value in node.inputs)
    proto.output.extend(value.name or "" for value in node.outputs)
    for attribute in node.attributes.data.values():
        write = ir.serde.serialize_reference_attribute_into if attribute.is_ref() else ir.serde.serialize_attribute_into
        write(proto.attribute.add(), attribute)


def _name_sizes(value: onnx.ValueInfoProto, position: int) -> None:
    """Give every open size a name of its own: nothing enforces that sizes of one name are equal."""
    for axis, size in enumerate(value.type.tensor_type.shape.dim):
        if not size.HasField("dim_value"):
            size.dim_param = f"{OPEN}{position}.{axis}"


def _fix_batch(value: onnx.ValueInfoProto) -> None:
    first = next(iter(value.type.tensor_type.shape.dim), None)
    if first is not None and not first.HasField("dim_value"):
        first.dim_value = 1


def _declare(graph: onnx.GraphProto, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Integers may be shapes, axes or pads; of floats only the few of a scale or a range say something about sizes."""
    sizes = walking.sizes(tensor)
    if prod(sizes) <= (FEW if tensor.dtype.is_floating_point() else SMALL):
        tensor_proto = ir.serde.serialize_tensor(tensor)
        tensor_proto.name = value.name or ""
        graph.initializer.append(tensor_proto)
        return
    declared = graph.input.add(name=value.name or "")
    declared.type.tensor_type.elem_type = tensor.dtype.value
    shape = declared.type.tensor_type.shape
    for size in sizes:
        shape.dim.add(dim_value=size)


def drop_claims(nodes: Iterable[onnx.NodeProto]) -> None:
    """Forget what the bodies of control flow claim about types; recursive."""
    for node in nodes:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                del body.value_info[:]
                for claim in (*body.input, *body.output):
                    claim.ClearField("type")
                drop_claims(body.node)


def _is_settled(size: int | str | None) -> bool:
    """Whether there is nothing more to know: it is a number, or the caller's choice."""
    return isinstance(size, int) or (size is not None and size.startswith(OPEN))


def _size(dimension: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value) if dimension.dim_value >= 0 else None  # what no value has is no knowledge
    return dimension.dim_param or None
