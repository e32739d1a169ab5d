"""A model taken apart: its steps by name, and parts of it as models of their own.

Only the main graph is cut; a node with a body or a function behind it is one step, and what its body captures it reads.
Stored tensors belong to the steps that read them. So do sizes: what Shape and Size gave for the input at hand is stored
in a part, so that a part needs no value only to ask how large it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from math import prod

import numpy as np
import onnx_ir as ir

from bnfold.frontends.onnx import sites, walking
from bnfold.frontends.onnx.constants import constant_tensor, known_types
from bnfold.frontends.onnx.identity import DECIDING
from bnfold.model import Arrays, Step

Shape = tuple[int, ...]

JUDGES = DECIDING - {"Where"}
"""Operators that decide by the numbers they are given; Where is told by another."""


class Cutting:
    """One model, opened. Nothing here changes it; tensors are shared with its parts."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._hashes: dict[ir.Value, str] = {}

    @cached_property
    def floats(self) -> dict[str, str]:
        """The dtype of every floating-point value of the main graph that is computed or given, in topological order."""
        types = known_types(self.model)
        values = [value for value in self.model.graph.inputs if not value.is_initializer()]
        values += [value for node in self.model.graph if not _is_stored(node) for value in node.outputs]
        kinds = {value.name: types.dtype(value) for value in values if value.name}
        return {name: kind.numpy().name for name, kind in kinds.items() if kind in walking.FLOATS}

    @cached_property
    def sizes(self) -> frozenset[str]:
        """The values that hold nothing but sizes of others."""
        return frozenset(node.outputs[0].name or "" for node in self.model.graph if _gives_sizes(node))

    @cached_property
    def _makers(self) -> dict[str | None, ir.Node]:
        return {value.name: node for node in self.model.graph for value in node.outputs}

    def steps(self, sizes: Arrays) -> list[Step]:
        """The nodes of the main graph in order, less those that are stored or give a size."""
        names = walking.site_names(self.model)
        nodes = [node for node in self.model.graph if not _is_stored(node) and not _gives_sizes(node)]
        return [self._step(node, names[node], sizes) for node in nodes]

    def _step(self, node: ir.Node, name: str, sizes: Arrays) -> Step:
        read = [value for value in _reads(node) if _constant(value, sizes) is None]
        inputs = tuple(dict.fromkeys(value.name or "" for value in read))
        judges = _judges(node) and any(value is not None and value.name in self.floats for value in node.inputs)
        outputs = tuple(value.name or "" for value in node.outputs)
        key = partial(self._key, node, inputs, sizes)
        return Step(name, node.op_type, inputs, outputs, key, judges, _terms(node), sites.module(node))

    def _key(self, node: ir.Node, inputs: Sequence[str], sizes: Arrays) -> str:
        """All that a node does, in a digest."""
        values = [*node.inputs, *(list(_reads(node)) if any(walking.bodies(node)) else ())]
        opsets = repr(sorted(self.model.opset_imports.items()))
        text = [node.domain, node.op_type, str(len(node.outputs)), opsets]
        text += [self._operand(value, inputs, sizes) for value in values]
        digest = hashlib.sha256("|".join(text).encode())
        for name in sorted(node.attributes):
            digest.update(ir.serde.serialize_attribute(node.attributes[name]).SerializeToString(deterministic=True))
        if (function := self.model.functions.get(node.op_identifier())) is not None:
            digest.update(ir.serde.serialize_function(function).SerializeToString(deterministic=True))
        return digest.hexdigest()

    def _operand(self, value: ir.Value | None, inputs: Sequence[str], sizes: Arrays) -> str:
        if value is None:
            return "-"
        if value.name in inputs:
            return f"input {inputs.index(value.name)}"
        if value not in self._hashes:
            tensor = _constant(value, sizes)
            assert tensor is not None, "what is not an input of a step is stored or a size"
            shape = list(walking.sizes(tensor))
            self._hashes[value] = f"{tensor.dtype.name}{shape}{hashlib.sha256(tensor.tobytes()).hexdigest()}"
        return self._hashes[value]

    def cut(self, chosen: Sequence[Step], sizes: Arrays, inputs: Mapping[str, Shape], output: str) -> ir.Model:
        """These steps as a model of these inputs, with what they read of stored tensors and of sizes."""
        nodes = [self._makers[step.outputs[0]] for step in chosen]
        read = list(dict.fromkeys(value for node in nodes for value in _reads(node)))
        fixed = {value.name or "": tensor for value in read if (tensor := _constant(value, sizes)) is not None}
        given = {value.name: value for value in read if value.name in inputs or value.name in fixed}
        results = [value for node in nodes for value in node.outputs if value.name == output]
        imports, name = self.model.opset_imports, self.model.graph.name
        view = ir.GraphView(list(given.values()), results, nodes=nodes, opset_imports=imports, name=name)
        graph = view.clone()
        for value in list(graph.inputs):
            self._enter(graph, value, fixed, inputs)
        for value in (*graph.outputs, *(value for node in graph for value in node.outputs)):
            value.shape = None
            self._declare(value)
        functions = [function.clone() for function in self.model.functions.values()]
        return ir.Model(graph, ir_version=self.model.ir_version, functions=functions, producer_name="bnfold")

    def _enter(
        self, graph: ir.Graph, value: ir.Value, fixed: Mapping[str, ir.TensorProtocol], inputs: Mapping[str, Shape]
    ) -> None:
        """Make a value an input of the part, or a stored tensor of it."""
        name = value.name or ""
        if name in fixed:
            graph.inputs.remove(value)
            value.const_value = fixed[name]
            graph.initializers[name] = value
        else:
            value.shape = ir.Shape(inputs[name])
            self._declare(value)

    def _declare(self, value: ir.Value) -> None:
        if value.name in self.floats:
            value.type = ir.TensorType(ir.DataType.from_numpy(_numpy_dtype(self.floats[value.name])))


def with_magnitudes(model: ir.Model) -> ir.Model:
    """The model with the magnitude of every stored number, and of the factors of Gemm."""
    positive = model.clone()
    for value in positive.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in walking.FLOATS:
            value.const_value = _magnitude(value.const_value)
    for node in positive.graph:
        for name in ("alpha", "beta"):
            if node.op_type == "Gemm" and name in node.attributes:
                node.attributes[name] = ir.AttrFloat32(name, abs(node.attributes[name].as_float()))
    return positive


def _magnitude(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Made whenever it is read, and not kept."""

    def made() -> ir.TensorProtocol:
        return ir.Tensor(np.abs(tensor.numpy()), name=tensor.name)

    return ir.LazyTensor(made, tensor.dtype, ir.Shape(walking.sizes(tensor)), name=tensor.name)


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values of the main graph that a node reads, those that its bodies capture too."""
    yield from (value for value in node.inputs if value is not None)
    for body in walking.bodies(node):
        for inner in body.all_nodes():
            yield from (value for value in inner.inputs if value is not None and value.graph is node.graph)
        for nested in (body, *body.subgraphs()):
            yield from (value for value in nested.outputs if value.graph is node.graph)


def _gives_sizes(node: ir.Node) -> bool:
    return walking.is_standard(node, "Shape", "Size")


def _is_stored(node: ir.Node) -> bool:
    return walking.is_standard(node, "Constant") and constant_tensor(node) is not None


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    return constant_tensor(node) if node is not None and _is_stored(node) else None


def _constant(value: ir.Value, sizes: Arrays) -> ir.TensorProtocol | None:
    if value.name in sizes:
        return ir.Tensor(np.asarray(sizes[value.name]), name=value.name)
    tensor = _stored(value)
    return ir.Tensor(tensor.numpy(), name=value.name) if tensor is not None and not value.is_initializer() else tensor


def _numpy_dtype(name: str) -> np.dtype[np.generic]:
    return ir.DataType.BFLOAT16.numpy() if name == "bfloat16" else np.dtype(name)


def _judges(node: ir.Node) -> bool:
    if walking.is_standard(node, "Cast") and "to" in node.attributes:
        return ir.DataType(node.attributes["to"].as_int()) not in walking.FLOATS
    return walking.is_standard(node, *JUDGES)


def _terms(node: ir.Node) -> int:
    """How many products one result of a linear operator with stored weights is the sum of."""
    if not walking.is_standard(node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    stored = [None if value is None else _stored(value) for value in node.inputs]
    index = 0 if stored[0] is not None and node.op_type == "MatMul" else 1
    weight, rest = stored[index], stored[2:]
    if weight is None or stored[1 - index] is not None or None in rest:
        return 0
    shape = walking.sizes(weight)
    if node.op_type == "MatMul":
        return shape[-1] if index == 0 else shape[-2] if len(shape) > 1 else 0
    if node.op_type == "Gemm":
        turned = "transB" in node.attributes and node.attributes["transB"].as_int()
        return shape[1] if turned else shape[0]
    return prod(shape[1:] if node.op_type == "Conv" else (shape[0], *shape[2:]))
