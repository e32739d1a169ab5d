"""OnnxGraph: an onnx_ir model as the rules see it.

Nodes are `ir.Node`, values are `ir.Value`, wherever in the model they live. Questions are answered here; what changes
the model is in `storing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx.defs
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.algebra import ChannelAffine, LinearOp
from bnfold.frontends.onnx import elementwise, lenses, passages, sites, walking
from bnfold.frontends.onnx.constants import MAX_DEPTH, Constant, Constants, is_quantised
from bnfold.frontends.onnx.lenses import Slot, Spelling
from bnfold.frontends.onnx.rounding import is_finite, rounded
from bnfold.frontends.onnx.spilling import spilled
from bnfold.frontends.onnx.storing import Store, drop, set_window, skip
from bnfold.graph import Extent, Reading, Reason, SharedWeight, Site, Use


@dataclass(frozen=True, eq=False)
class Rounded:
    """The parameters of `op` in the types that the node will hold; `bias` is None where none is written."""

    op: LinearOp
    weight: NDArray[Any]
    bias: NDArray[Any] | None


class OnnxGraph:
    """`Graph[ir.Node, ir.Value]` over a model, which it changes in place.

    `names` are the names of the nodes as the user knows them, where the model was normalised since.
    """

    def __init__(
        self, model: ir.Model, names: Mapping[ir.Node, str] | None = None, constants: Constants | None = None
    ) -> None:
        self._model = model
        self._names = names if names is not None else walking.site_names(model)
        self._constants = constants or Constants(model)
        self._versions = walking.opset(model)
        self._calls = {(function.domain, function.name) for function in model.functions.values()}
        self._readings: dict[ir.Node, Reading] = {}
        self._spellings: dict[ir.Node, Spelling | Reason] = {}
        self._biases: dict[ir.Node, tuple[Slot, Constant] | None] = {}
        self._rounded: dict[ir.Node, Rounded] = {}
        self._positions = {node: index for index, node in enumerate(walking.nodes(model))}
        self._store = Store(model)

    def affines(self) -> Sequence[ir.Node]:
        return [
            node for node in walking.nodes(self._model) if self.is_norm(node) or self._affine_port(node) is not None
        ]

    def is_norm(self, node: ir.Node) -> bool:
        return self._is(node, "BatchNormalization")

    def position(self, node: ir.Node) -> int:
        return self._positions[node]

    def inputs(self, node: ir.Node) -> Sequence[ir.Value]:
        return [value for value in (node.inputs[index] for index in self._ports(node)) if value is not None]

    def outputs(self, node: ir.Node) -> Sequence[ir.Value]:
        reading = self.read(node)
        if isinstance(reading, (LinearOp, ChannelAffine)) or self.added_bias(node):
            return [self.result(node)]
        return node.outputs if isinstance(reading, Reason) else passages.made(node)

    def site(self, node: ir.Node) -> Site:
        return Site(self._names[node], node.op_type, sites.module(node), sites.source(node))

    def data(self, node: ir.Node) -> ir.Value:
        value = node.inputs[self._data_port(node)]
        assert value is not None, "an operator that was read has data"
        return value

    def result(self, node: ir.Node) -> ir.Value:
        bias = self.added_bias(node)
        return (bias[0].node if bias else node).outputs[0]

    def producer(self, value: ir.Value) -> ir.Node | None:
        node = value.producer()
        return None if node is None else self._whole(node)

    def uses(self, value: ir.Value) -> Sequence[Use[ir.Node] | Reason]:
        found: list[Use[ir.Node] | Reason] = [Reason.IS_GRAPH_OUTPUT] if value.is_graph_output() else []
        for reader, index in walking.content_uses(value):
            whole = self._whole(reader)
            if reader.graph is not value.graph:
                found.append(Reason.CAPTURED_BY_SUBGRAPH)
            else:
                found.append((whole, self._port(reader, index) if whole is reader else None))
        return found

    def read(self, node: ir.Node) -> Reading:
        if node not in self._readings:
            self._readings[node] = self._read(node)
        return self._readings[node]

    def fits(self, node: ir.Node, op: LinearOp) -> Reason | None:
        spelling = self._spelled(node)
        parameters = op.evaluate()
        if not (np.isfinite(parameters.taps).all() and np.isfinite(parameters.bias).all()):
            return Reason.NON_FINITE
        kernel = spelling.weight.shape[2:] if op.window is None else op.window.kernel
        weight = rounded(spelling.stored(parameters.taps, kernel), spelling.weight.dtype)
        bias = None
        if spelling.bias is not None or np.any(parameters.bias != 0):
            dtype = (spelling.bias or spelling.weight).dtype
            bias = rounded(parameters.bias.reshape(-1, *spelling.bias_shape[1:]), dtype)
        if not (is_finite(weight) and (bias is None or is_finite(bias))):
            return Reason.OVERFLOW
        self._rounded[node] = Rounded(op, spilled(weight), bias)
        return None

    def inserts(self, node: ir.Node, op: LinearOp) -> bool:
        slotless = self._spelled(node).bias_slot is None
        return slotless and bool(np.any(op.evaluate().bias != 0))

    def shared(self, node: ir.Node) -> SharedWeight | None:
        slot = self._spelled(node).weight_slot
        value = slot.node.inputs[slot.index]
        if value is None:
            return None
        nbytes = self._spelled(node).weight.size * self._spelled(node).weight.dtype.itemsize
        readers = len({reader for reader, _ in walking.content_uses(value)}) + value.is_graph_output()
        if readers > 1:
            return SharedWeight(value, int(nbytes), readers)
        return SharedWeight(value, int(nbytes), readers + 1) if _computed_from_shared(value) else None

    def parameter_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in walking.stored_tensors(self._model))

    def extent(self, value: ir.Value) -> Extent | None:
        shape, dtype = self.shape(value), self.dtype(value)
        sizes = [] if shape is None else [size for size in (1, *shape[1:]) if isinstance(size, int)]
        if shape is None or dtype is None or len(sizes) != len(shape):
            return None
        return Extent(prod(sizes), int(prod(sizes) * dtype.itemsize))

    def joins(self) -> Sequence[ir.Node]:
        names = ("Add", "Sub", "Sum", *lenses.SPELLINGS)
        return [node for node in walking.nodes(self._model) if self._is(node, *names)]

    def movers(self) -> Sequence[ir.Node]:
        return [node for node in walking.nodes(self._model) if self._is(node, *passages.MOVERS)]

    def lowers(self, node: ir.Node, affine: ChannelAffine) -> bool:
        terms = self._terms(node, affine) if node.graph is self._model.graph else {}
        return bool(terms) and all(is_finite(term) for term in terms.values())

    def write(self, node: ir.Node, op: LinearOp) -> None:
        """Write the parameters of `op`, which `fits` has accepted, in the node's own spelling with unit factors."""
        spelling = self._spelled(node)
        new = self._rounded.pop(node, None)
        if new is None or new.op is not op:
            assert self.fits(node, op) is None, "only what fits is written"
            new = self._rounded.pop(node)
        for name in ("alpha", "beta"):
            node.attributes.pop(name, None)
        if op.window is not None and (op.window, op.groups) != (spelling.window, spelling.grid[0]):
            set_window(node, op.window, op.groups)
        weight = node.inputs[spelling.weight_slot.index]
        assert weight is not None, "an operator that was read has a weight"
        self._store.put(spelling.weight_slot, new.weight, weight)
        if new.bias is None:
            return
        if spelling.bias_slot is not None:
            self._store.put(spelling.bias_slot, new.bias, weight)
        else:
            self._store.add_bias(node, new.bias, weight)

    def bypass(self, node: ir.Node) -> None:
        bias = self.added_bias(node)
        skip(bias[0].node if bias else node, self.data(node))

    def undo(self, first: ir.Node, last: ir.Node) -> None:
        skip(last, self.data(first))

    def drop(self, node: ir.Node, ports: tuple[int, ...]) -> None:
        drop(node, ports)

    def lower(self, node: ir.Node, affine: ChannelAffine) -> tuple[str, ...]:
        return self._store.lower(node, self._names[node], self._terms(node, affine))

    def _terms(self, node: ir.Node, affine: ChannelAffine) -> dict[str, NDArray[Any]]:
        """What the result of a batch norm is multiplied by and what is added, in its type; empty if not known."""
        result = self.result(node)
        rank, dtype = self.rank(result), self.dtype(result)
        if rank is None or dtype not in walking.FLOATS:
            return {}
        return {role: rounded(numbers, dtype) for role, numbers in affine.terms(rank).items()}

    # What lenses ask.

    def constant(self, value: ir.Value) -> Constant | None:
        """The value, if it is known before the model runs."""
        return self._constants.of(value)

    def why_not(self, value: ir.Value) -> Reason:
        """Why it is not."""
        return self._constants.why_not(value)

    def rank(self, value: ir.Value) -> int | None:
        """The rank that follows from the inputs of the model."""
        return self._constants.inferred.rank(value)

    def shape(self, value: ir.Value) -> tuple[int | str | None, ...] | None:
        """The sizes that follow from the inputs of the model."""
        return self._constants.inferred.shape(value)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The type that follows from the inputs of the model."""
        return self._constants.inferred.dtype(value)

    def version(self, node: ir.Node) -> int:
        """The version of the default domain for the node."""
        return self._versions.get(node, walking.model_opset(self._model))

    def added_bias(self, node: ir.Node) -> tuple[Slot, Constant] | None:
        """The bias of a MatMul: a constant per channel that the only reader of its result adds."""
        if not self._is(node, "MatMul"):
            return None
        if node not in self._biases:
            self._biases[node] = self._find_bias(node)
        return self._biases[node]

    def _find_bias(self, node: ir.Node) -> tuple[Slot, Constant] | None:
        value, position = node.outputs[0], lenses.matrix_position(node, self)
        readers = walking.content_uses(value)
        if isinstance(position, Reason) or value.is_graph_output() or len(readers) != 1:
            return None
        add, index = readers[0]
        matrix, data = node.inputs[position], node.inputs[1 - position]
        other = add.inputs[1 - index] if self._is(add, "Add") and add.graph is node.graph else None
        if other is None or matrix is None or data is None or add.attributes:
            return None
        weight, bias = self.constant(matrix), self.constant(other)
        if weight is None or bias is None or prod(weight.shape[:-2]) != 1:
            return None
        found = lenses.is_bias(node, position, weight, bias, self.rank(data))
        return (Slot(add, 1 - index), bias) if found else None

    # How nodes are spelled.

    def _whole(self, node: ir.Node) -> ir.Node:
        """The MatMul of which this Add is the bias; any other node is itself."""
        if not self._is(node, "Add"):
            return node
        for value in node.inputs:
            maker = None if value is None else value.producer()
            bias = None if maker is None else self.added_bias(maker)
            if maker is not None and bias is not None and bias[0].node is node:
                return maker
        return node

    def _read(self, node: ir.Node) -> Reading:
        if is_quantised(node):
            return Reason.QUANTISED
        if self.is_norm(node):
            return lenses.batch_norm(node, self)
        if (port := self._affine_port(node)) is not None:
            return elementwise.affine(node, port, self)
        spelling = self._spelling(node)
        if isinstance(spelling, Spelling):
            return spelling.operator()
        crosses = spelling is Reason.NOT_LINEAR and self._is(node, *passages.PASSAGES)
        return passages.passage(node, self) if crosses else spelling

    def _affine_port(self, node: ir.Node) -> int | None:
        """The data of an elementwise affine; None for any other node, the bias of a MatMul too."""
        if not self._is(node, *elementwise.OPERATORS) or self._whole(node) is not node:
            return None
        return elementwise.data_port(node, self)

    def _data_port(self, node: ir.Node) -> int:
        """The input that an affine or a linear operator maps."""
        if self._is(node, *lenses.SPELLINGS):
            return self._spelled(node).data
        return self._affine_port(node) or 0

    def _ports(self, node: ir.Node) -> Sequence[int]:
        """The inputs that count as data: of a passage those it maps, of any other node all."""
        if isinstance(self.read(node), (LinearOp, ChannelAffine, Reason)):
            return [index for index, value in enumerate(node.inputs) if value is not None]
        return passages.mapped(node)

    def _port(self, node: ir.Node, index: int) -> int | None:
        """The number of an input among those that count as data, None where it is a parameter."""
        ports, reading = self._ports(node), self.read(node)
        if isinstance(reading, (LinearOp, ChannelAffine)) and index != self._data_port(node):
            return None
        return ports.index(index) if index in ports else None

    def _spelled(self, node: ir.Node) -> Spelling:
        spelling = self._spelling(node)
        assert isinstance(spelling, Spelling), "only an operator that was read is folded into"
        return spelling

    def _spelling(self, node: ir.Node) -> Spelling | Reason:
        if node not in self._spellings:
            self._spellings[node] = self._spell(node)
        return self._spellings[node]

    def _spell(self, node: ir.Node) -> Spelling | Reason:
        if self._is(node, *lenses.SPELLINGS):
            return lenses.SPELLINGS[node.op_type](node, self)
        known = onnx.defs.has(node.op_type, "" if node.domain in walking.STANDARD_DOMAINS else node.domain)
        return Reason.NOT_LINEAR if known and not self._is_call(node) else Reason.UNKNOWN_OPERATOR

    def _is(self, node: ir.Node, *op_types: str) -> bool:
        return walking.is_standard(node, *op_types) and not self._is_call(node)

    def _is_call(self, node: ir.Node) -> bool:
        return (node.domain, node.op_type) in self._calls


def _computed_from_shared(value: ir.Value) -> bool:
    """Whether a weight is computed from a value that other nodes read too."""
    for _ in range(MAX_DEPTH):
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None:
            return False
        value = node.inputs[0]
        if len(walking.content_uses(value)) > 1 or value.is_graph_output():
            return True
    return True
