"""Changing a model: parameters are stored, values take each other's place, what nobody reads any more is removed.

A parameter that somebody else reads too is copied, and equal copies of one parameter are one tensor. New names are
unlike any name of the model. What was unused before stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.lenses import Slot
from bnfold.frontends.onnx.spilling import raw
from bnfold.frontends.onnx.training import is_trained
from bnfold.window import Window

_OPERATORS = {"scale": "Mul", "shift": "Add"}


class Store:
    """Where new parameters go."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._taken: set[str] | None = None
        self._copies: dict[Hashable, ir.Value] = {}
        self._functions = walking.function_graphs(model)

    def put(self, slot: Slot, array: NDArray[Any], weight: ir.Value) -> None:
        """Let an input hold the array: in the tensor it reads if nobody else does, else in a new one.

        `weight` is the weight of the operator; a new bias is named and placed after it.
        """
        node = slot.node
        if slot.index >= len(node.inputs):
            node.resize_inputs(slot.index + 1)
        old = node.inputs[slot.index]
        origin, role = (old, "folded") if old is not None else (weight, "bias")
        key = (origin, role, array.dtype, array.shape, sha256(raw(array)).digest())
        if key not in self._copies:
            if old is not None and _is_sole_reader(node, old):
                _replace_tensor(old, array)
                return
            self._copies[key] = self._new(origin, _name(origin, role), array)
        node.replace_input_with(slot.index, self._copies[key])

    def add_bias(self, node: ir.Node, array: NDArray[Any], weight: ir.Value) -> None:
        """Put an Add with a bias behind a node that has no input for one."""
        result, graph = node.outputs[0], node.graph
        assert graph is not None, "a node of the model is in a graph"
        add = ir.node("Add", [None, None], name=self._fresh(f"{node.name or result.name}_bias"))
        add.outputs[0].name = self._fresh(f"{result.name}_biased")
        graph.insert_after(node, add)
        take_place(result, add.outputs[0], self._fresh)
        add.replace_input_with(0, result)
        self.put(Slot(add, 1), array, weight)

    def lower(self, node: ir.Node, name: str, terms: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
        """Put a Mul by `scale`, an Add of `shift`, or both in the place of a batch norm of that name."""
        result, graph = node.outputs[0], node.graph
        assert graph is not None, "a node of the model is in a graph"
        made: list[ir.Node] = []
        for role, array in terms.items():
            data, own = made[-1].outputs[0] if made else node.inputs[0], self._fresh(f"{name}_{role}")
            term = self._new(result, f"{own}_value", array)
            made.append(ir.node(_OPERATORS[role], [data, term], name=own))
            made[-1].outputs[0].name = self._fresh(f"{own}_result")
            made[-1].metadata_props.update(node.metadata_props)
        graph.insert_before(node, made)
        last, kept = made[-1].outputs[0], result.name
        take_place(result, last)
        graph.remove(node, safe=True)
        last.name, last.type, last.shape = kept, result.type, result.shape
        return tuple(str(each.name) for each in made)

    def _new(self, origin: ir.Value, name: str, array: NDArray[Any]) -> ir.Value:
        graph = origin.graph
        assert graph is not None, "a parameter of the model is in a graph"
        tensor = ir.Tensor(array, name=self._fresh(name))
        if graph in self._functions:  # a function has no initializers
            constant = ir.node("Constant", [], {"value": tensor}, name=self._fresh(f"{tensor.name}_node"))
            constant.outputs[0].name = tensor.name
            graph.insert_before(graph[0], constant)
            return constant.outputs[0]
        value = ir.Value(name=tensor.name, const_value=tensor)
        graph.initializers[str(tensor.name)] = value
        if self._model.ir_version < 4 and graph is self._model.graph:  # then every initializer must be declared
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            graph.inputs.append(value)
        return value

    def _fresh(self, base: str) -> str:
        if self._taken is None:
            self._taken = walking.all_names(self._model)
        return walking.unused(base, self._taken)


def _is_sole_reader(node: ir.Node, value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_output() and len(value.uses()) == 1


def _replace_tensor(value: ir.Value, array: NDArray[Any]) -> None:
    value.const_value = ir.Tensor(array, name=value.name)
    if value.shape is not None:
        value.shape = ir.Shape(array.shape)


def _name(origin: ir.Value, role: str) -> str:
    """`conv.weight` gets `conv.bias`, anything else a suffix."""
    name = origin.name or "parameter"
    if role == "bias" and name.endswith("weight"):
        return name.removesuffix("weight") + "bias"
    return f"{name}_{role}"


def take_place(old: ir.Value, new: ir.Value, rename: Callable[[str], str] | None = None) -> None:
    """Let every reader of `old` read `new`; an output of the graph keeps its name, type and shape.

    `rename` makes a name for `old` where it stays in the graph.
    """
    is_output, name = old.is_graph_output(), old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if not is_output:
        return
    old.name = rename(f"{name}_unbiased") if rename else None
    new.name, new.type, new.shape, new.doc_string = name, old.type, old.shape, old.doc_string
    new.metadata_props.update(old.metadata_props)


def is_fixed(value: ir.Value) -> bool:
    """Whether a value has a name that the model's interface gives it."""
    return value.is_graph_output() or value.is_graph_input() or value.is_initializer()


def skip(node: ir.Node, data: ir.Value) -> None:
    """Remove a node: who reads its result reads `data`. An output of the graph needs a name that is its own."""
    result, graph = node.outputs[0], node.graph
    assert graph is not None, "a node of the model is in a graph"
    if result.is_graph_output() and (is_fixed(data) or data.graph is not graph):
        copy = ir.node("Identity", [data], name=node.name)
        graph.insert_before(node, copy)
        take_place(result, copy.outputs[0])
    else:
        take_place(result, data)
    graph.remove(node, safe=True)


def drop(node: ir.Node, ports: tuple[int, ...]) -> None:
    """Remove some terms of a sum; where one is left, who reads the sum reads that one."""
    left = [value for port, value in enumerate(node.inputs) if port not in ports]
    if len(left) == 1 and left[0] is not None:
        skip(node, left[0])
        return
    for port, value in enumerate(left):
        node.replace_input_with(port, value)
    node.resize_inputs(len(left))


def set_window(node: ir.Node, window: Window, groups: int) -> None:
    """Write where the taps of a convolution sit, and in how many groups they are."""
    if not window.kernel:
        return
    node.attributes.pop("auto_pad", None)
    sizes = {
        "kernel_shape": window.kernel,
        "strides": window.stride,
        "dilations": window.dilation,
        "pads": (*window.before, *window.after),
    }
    for name, values in sizes.items():
        node.attributes[name] = ir.AttrInt64s(name, values)
    node.attributes["group"] = ir.AttrInt64("group", groups)


@dataclass(frozen=True)
class Unused:
    """What nobody read before anything was changed."""

    nodes: frozenset[ir.Node]
    values: frozenset[ir.Value]

    @classmethod
    def of(cls, model: ir.Model) -> Unused:
        """Look at a model that is about to be changed."""
        values = {value for graph in walking.graphs(model) for value in graph.initializers.values() if _is_idle(value)}
        return cls(frozenset(filter(walking.is_dead, walking.nodes(model))), frozenset(values))


def sweep(model: ir.Model, before: Unused) -> None:
    """Remove the nodes and initializers that nobody reads any more, but no input that a caller may give, nothing that
    training changes, and no batch norm: every one is told of."""
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in roots:
        _sweep_nodes(graph, before)
    for graph in walking.graphs(model):
        for name, value in list(graph.initializers.items()):
            offered = is_trained(value) or (value.is_graph_input() and model.ir_version >= 4)
            if not _is_idle(value) or value in before.values or offered:
                continue
            del graph.initializers[name]
            if value.is_graph_input():
                graph.inputs.remove(value)


def _sweep_nodes(graph: ir.Graph, before: Unused) -> None:
    for node in reversed(list(graph)):
        for body in walking.bodies(node):
            _sweep_nodes(body, before)
        is_kept = node in before.nodes or walking.is_standard(node, "BatchNormalization")
        if walking.is_dead(node) and not is_kept:
            graph.remove(node, safe=True)


def _is_idle(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output()
