"""`TorchGraph`: an fx graph as rules see it, over exported programs and the user's GraphModules alike.

A value is the `fx.Node` that makes it, but where a node makes a tuple, its items are the values. A frozen batch norm,
spelt out as `x * scale + shift`, is one node: the addition. A matrix product and the addition of its bias are one node
as well: the product, of which the sum is the result. What differs between the two dialects is given to the
constructor: the stored tensors, the facts about values, and the `Writer` that puts new tensors where they belong.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bnfold.algebra import Array, ChannelAffine, LinearOp
from bnfold.frontends.torch.aliasing import (
    as_out_of_place,
    bare_name,
    mutated,
    ownership,
    reads_shape_only,
    written_state,
)
from bnfold.frontends.torch.biases import added_biases
from bnfold.frontends.torch.calls import Call, Stored, call_of, hooked, tensor_arguments
from bnfold.frontends.torch.constants import FLOATS, Constant, Constants, is_quantised
from bnfold.frontends.torch.elementwise import elementwise_affines
from bnfold.frontends.torch.elementwise import read as read_elementwise
from bnfold.frontends.torch.frozen import frozen_norms
from bnfold.frontends.torch.lenses import LENSES, is_norm, norm_of, weight_of
from bnfold.frontends.torch.parameters import Held, held_by, is_computed_product, linear_op, weight_readers
from bnfold.frontends.torch.passages import makes_tuple, passage_of
from bnfold.frontends.torch.places import module_path, source_line
from bnfold.frontends.torch.rounding import rounded
from bnfold.frontends.torch.shapes import Facts
from bnfold.frontends.torch.shaping import MOVERS
from bnfold.frontends.torch.sight import QUOTIENTS, Sight, inputs_of
from bnfold.frontends.torch.spelling import spell
from bnfold.frontends.torch.writer import NewParameters, Writer
from bnfold.graph import Extent, Reading, Reason, SharedWeight, Site, Use
from bnfold.rules import compose
from bnfold.travel import Same

_SUMS = frozenset(("add", "sub", "subtract", "rsub"))
_JOINS = _SUMS | LENSES.keys()
_SHAPE_GIVERS = ("view_as", "reshape_as", "expand_as")


class TorchGraph:
    """The `Graph` protocol over `graph`. Nothing is changed before the verbs are called."""

    def __init__(
        self,
        graph: fx.Graph,
        modules: Mapping[str, nn.Module],
        names: Mapping[fx.Node, str],
        tensors: Mapping[str, torch.Tensor],
        facts: Facts,
        writer: Callable[[TorchGraph], Writer],
        written: frozenset[str] = frozenset(),
    ) -> None:
        self.graph = graph
        self.modules = modules
        self.pinned = mutated(graph, modules)
        self.ownership = ownership(graph, modules)
        self.constants = Constants(graph, names, tensors, self.pinned, written | written_state(graph, modules))
        self._facts = facts
        self._calls: dict[fx.Node, Call | None] = {}
        self._uses: dict[fx.Node, Sequence[Use[fx.Node] | Reason]] = {}
        self._spelt = {node: spell(node, modules) for node in graph.nodes}
        self._elementwise = elementwise_affines(self._spelt, self.constants, facts)
        self._frozen = frozen_norms(self._elementwise)
        self._scalings = {scaling: addition for addition, scaling in self._frozen.items()}
        self._added = added_biases(self._elementwise, self._spelt, self._products(), self.constants, facts)
        self._sums = {added.node: product for product, added in self._added.items()}
        self._norms = {*self._find_norms(), *self._captured()}
        self._affines = [*self._listed(), *self._captured()]
        calls = (call for node in graph.nodes if (call := self.call(node)) is not None)
        self._readers = weight_readers(calls, self.constants)
        self._positions = {node: index for index, node in enumerate(graph.nodes)}
        self.writer = writer(self)

    # what a rule may ask

    def affines(self) -> Sequence[fx.Node]:
        return self._affines

    def is_norm(self, node: fx.Node) -> bool:
        return node in self._norms

    def position(self, node: fx.Node) -> int:
        return self._positions[node]

    def inputs(self, node: fx.Node) -> Sequence[fx.Node]:
        call = self._crossed(node)
        return tensor_arguments(node) if call is None else inputs_of(call)

    def outputs(self, node: fx.Node) -> Sequence[fx.Node]:
        items = [user for user in node.users if user.users and _item(user) is not None]
        return items if self._makes_tuple(node) and items else [self.result(node)]

    def site(self, node: fx.Node) -> Site:
        name = node.name if node.graph is self.graph else f"{self._owner(node)}.{node.name}"
        return Site(name, self._operator(node), module_path(node), source_line(node))

    def data(self, node: fx.Node) -> fx.Node:
        if node in self._frozen:
            return self._data_of(self._frozen[node])
        if node in self._elementwise:
            return self._data_of(node)
        if self._crossed(node) is not None:
            return self._inputs_now(node)[0]
        call = self.call(node)
        assert call is not None, "only affines and linear operators have data"
        value = call.get(self._data_name(call))
        assert isinstance(value, fx.Node), "data is a value of the graph"
        return value

    def result(self, node: fx.Node) -> fx.Node:
        if node in self._added:
            return self._added[node].node
        call = self.call(node)
        if call is None or not is_norm(call) or not _returns_tuple(node):
            return node
        return next((user for user in node.users if _item(user) == 0), node)

    def producer(self, value: fx.Node) -> fx.Node | None:
        if value.op in ("placeholder", "get_attr"):
            return None
        if value in self._sums:
            return self._sums[value]
        maker = value.args[0] if _item(value) is not None else None
        return maker if isinstance(maker, fx.Node) and self._makes_tuple(maker) else value

    def uses(self, value: fx.Node) -> Sequence[Use[fx.Node] | Reason]:
        if value not in self._uses:
            found: list[Use[fx.Node] | Reason] = [Reason.MUTATED_IN_PLACE] if value in self.pinned else []
            self._uses[value] = found + [use for reader in value.users for use in self._reads(reader, value)]
        return self._uses[value]

    def read(self, node: fx.Node) -> Reading:
        if node.graph is not self.graph:
            return Reason.CAPTURED_BY_SUBGRAPH
        if node.op == "call_module" and hooked(self.modules[str(node.target)]):
            return Reason.HOOKED
        if node in self._frozen:
            return self._read_frozen(node)
        if node in self._elementwise:
            return self._read_elementwise(node)
        call = self.call(node)
        if crossed := self._crossed(node):
            return self._read_passage(node, crossed)
        if call is None:
            return Reason.UNKNOWN_OPERATOR if node in self._norms else _opaque(node)
        return self._read_norm(node, call) if is_norm(call) else self._read_linear(node, call)

    def fits(self, node: fx.Node, op: LinearOp) -> Reason | None:
        parameters = op.evaluate()
        window, own = op.window, self._held(node).form.window
        if window is not None and window != own and window.before != window.after:
            return Reason.WINDOWS_DIFFER  # torch pads both sides alike
        for numbers, dtype in zip((parameters.taps, parameters.bias), self._held(node).dtypes, strict=True):
            largest = np.abs(numbers).max(initial=0.0)
            if not np.isfinite(largest):
                return Reason.NON_FINITE
            if not rounded(largest, dtype).isfinite():
                return Reason.OVERFLOW
        return None

    def inserts(self, node: fx.Node, op: LinearOp) -> bool:
        held = self._held(node)
        return held.form.bias is None and held.bias is None and bool(np.any(op.evaluate().bias != 0))

    def shared(self, node: fx.Node) -> SharedWeight | None:
        weight = self._held(node).weight
        readers = self._readers.get(weight.key, 1)
        if weight.name is None or readers < 2:
            return None
        return SharedWeight(weight.key, weight.tensor.nbytes, readers)

    def parameter_bytes(self) -> int:
        tensors = [tensor for tensor in self.constants.tensors.values() if tensor.layout is torch.strided]
        return sum({tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}.values())

    def extent(self, value: fx.Node) -> Extent | None:
        shape, dtype = self._facts.shape(value), self._facts.dtype(value)
        sizes = [] if shape is None else [size for size in (1, *shape[1:]) if isinstance(size, int)]
        if shape is None or dtype is None or len(sizes) != len(shape):
            return None
        return Extent(prod(sizes), prod(sizes) * dtype.itemsize)

    def joins(self) -> Sequence[fx.Node]:
        calls = ((node, self.call(node) or self._spelt[node]) for node in self.graph.nodes)
        return [node for node, call in calls if call is not None and call.operator in _JOINS]

    def movers(self) -> Sequence[fx.Node]:
        return [node for node, call in self._spelt.items() if call is not None and call.operator in MOVERS]

    def lowers(self, node: fx.Node, affine: ChannelAffine) -> bool:
        terms = self._terms(node, affine)
        return bool(terms) and all(bool(term.isfinite().all()) for term in terms.values())

    # the verbs

    def write(self, node: fx.Node, op: LinearOp) -> None:
        held = self._held(node)
        form, weight, bias = held.form, held.weight, held.bias
        parameters, dtypes, device = op.evaluate(), held.dtypes, weight.tensor.device
        kernel = weight.shape[2:] if op.window is None else op.window.kernel
        new_weight = rounded(weight_of(form, parameters.taps, kernel), dtypes[0]).to(device)
        new_bias = rounded(parameters.bias, dtypes[1]).to(device)
        needless = bias is None and not new_bias.any()
        added = self._added.get(node)
        new = NewParameters(form, weight, bias, new_weight, None if needless else new_bias, added)
        if op.window is not None and (op.window, op.groups) != (form.window, form.groups):
            new = replace(new, window=op.window, groups=op.groups)
        self.writer.write(node, new)
        self._forget()

    def bypass(self, node: fx.Node) -> None:
        last = self._added[node].node if node in self._added else node
        self.writer.bypass(last, self.result(node), self.data(node))
        self._forget()

    def undo(self, first: fx.Node, last: fx.Node) -> None:
        self.writer.bypass(last, last, self.data(first))
        self._forget()

    def drop(self, node: fx.Node, ports: tuple[int, ...]) -> None:
        (left,) = (value for port, value in enumerate(self._inputs_now(node)) if port not in ports)
        self._own_memory(node)
        self.writer.bypass(node, node, left)
        self._forget()

    def _own_memory(self, node: fx.Node) -> None:
        """Sums that write to one that loses a term do so no more: what is left of it may be smaller than its result."""
        for reader in node.users:
            call = self._spelt.get(reader)
            if call is not None and call.operator in _SUMS:
                if self.ownership.written.pop(reader, None) is not None:
                    as_out_of_place(reader)
                self._own_memory(reader)

    def lower(self, node: fx.Node, affine: ChannelAffine) -> tuple[str, ...]:
        names = self.writer.lower(node, self.result(node), self.data(node), self._terms(node, affine))
        self._forget()
        return names

    def _forget(self) -> None:
        """A verb was called: what is known of who reads what may be so no more."""
        self._calls.clear()
        self._uses.clear()

    def _terms(self, node: fx.Node, affine: ChannelAffine) -> dict[str, torch.Tensor]:
        """What the result of a batch norm is multiplied by and what is added, in its dtype; empty if not known."""
        result = self.result(node)
        rank, dtype, device = self._facts.rank(result), self._facts.dtype(result), self._device(node)
        if rank is None or dtype not in FLOATS:
            return {}
        return {role: rounded(numbers, dtype).to(device) for role, numbers in affine.terms(rank).items()}

    def _device(self, node: fx.Node) -> torch.device:
        """Where the constants of a batch norm are."""
        call = self.call(node)
        argument = self._elementwise[node].constant if call is None else call.get("running_mean")
        constant = self.constants.find(argument) if isinstance(argument, (fx.Node, Stored)) else None
        return constant.tensor.device if isinstance(constant, Constant) else torch.device("cpu")

    # how it is read

    def dropouts(self) -> Iterator[fx.Node]:
        """Every Dropout of a value that nobody writes and that is no input."""
        for node in list(self.graph.nodes):
            call = self._spelt.get(node)
            if not node.users or call is None or "dropout" not in call.operator or node in self.pinned:
                continue
            reading = self.read(node)
            if isinstance(reading, Same) and reading.idle and self.data(node).op != "placeholder":
                yield node

    def may_go(self, node: fx.Node) -> bool:
        """Whether the node does nothing but make its value, so that it goes with its last reader."""
        known = self._spelt.get(node) is not None or self.call(node) is not None or reads_shape_only(node)
        return known and node not in self.pinned

    def call(self, node: fx.Node) -> Call | None:
        if node not in self._calls:
            self._calls[node] = call_of(node, self.modules)
        return self._calls[node]

    def _listed(self) -> Iterator[fx.Node]:
        """Every affine but a part of another one: a frozen norm's product, and the bias of a matrix product."""
        for node in self.graph.nodes:
            affine = self._elementwise.get(node)
            alone = affine is not None and node not in self._scalings and node not in self._sums
            if node in self._norms or alone:
                yield node

    def _products(self) -> dict[fx.Node, Call]:
        """The matrix products that have no argument for a bias, unless their results are written."""
        calls = ((node, self.call(node)) for node in self.graph.nodes if node not in self.pinned)
        return {node: call for node, call in calls if call is not None and call.operator in ("mm", "matmul")}

    def _find_norms(self) -> Iterator[fx.Node]:
        """Batch norms over values; one over a weight (weight standardisation) is a part of that weight."""
        for node in self.graph.nodes:
            call = self.call(node)
            known = call is not None and is_norm(call) and not self.constants.is_constant(node)
            if known or node in self._frozen or (call is None and self._is_norm_module(node)):
                yield node

    def _is_norm_module(self, node: fx.Node) -> bool:
        """Whether a called module is a batch norm whose class may do more than that."""
        return node.op == "call_module" and isinstance(self.modules[str(node.target)], nn.modules.batchnorm._BatchNorm)

    def _captured(self) -> Iterator[fx.Node]:
        """Batch norms inside the subgraphs of higher-order operators."""
        for _, part in self._subgraphs():
            modules = dict(part.named_modules())
            for node in part.graph.nodes:
                call = call_of(node, modules)
                if call is not None and is_norm(call):
                    yield node

    def _subgraphs(self) -> Iterator[tuple[str, fx.GraphModule]]:
        return ((name, part) for name, part in self.modules.items() if name and isinstance(part, fx.GraphModule))

    def _operator(self, node: fx.Node) -> str:
        if node.graph is not self.graph or node in self._frozen:
            return "batch_norm"
        if call := self.call(node):
            return call.operator
        return type(self.modules[str(node.target)]).__name__ if node.op == "call_module" else bare_name(node)

    def _owner(self, node: fx.Node) -> str:
        return next(name for name, part in self._subgraphs() if part.graph is node.graph)

    def _data_of(self, node: fx.Node) -> fx.Node:
        """What an elementwise affine maps now: another node once the one that it read is gone."""
        call = spell(node, self.modules)
        assert call is not None, "an elementwise affine is spelt"
        data: fx.Node = call.get(self._elementwise[node].operand)
        return data

    def _inputs_now(self, node: fx.Node) -> Sequence[fx.Node]:
        """What a passage maps now: other nodes once those that it read are gone."""
        call = spell(node, self.modules)
        assert call is not None, "a passage is spelt"
        return inputs_of(call)

    def _crossed(self, node: fx.Node) -> Call | None:
        """The call of a node that is to be read as a passage: an operator without constant weights."""
        call, known = self._spelt.get(node), self.call(node)
        if call is None or node in self._elementwise or not inputs_of(call):
            return None
        if call.operator in QUOTIENTS and self.constants.is_constant(call.get("input")):
            return None
        run_time = not any(self.constants.is_constant(each) for each in tensor_arguments(node))
        return call if known is None or (is_computed_product(known) and run_time) else None

    def _makes_tuple(self, node: fx.Node) -> bool:
        call = self._spelt.get(node)
        return _returns_tuple(node) or (call is not None and makes_tuple(call))

    def _read_passage(self, node: fx.Node, call: Call) -> Reading:
        items = [_item(user) for user in node.users if user.users]
        known = tuple(item for item in items if item is not None)
        taken = known if self._makes_tuple(node) and known and len(known) == len(items) else None
        return passage_of(Sight(call, node, self._facts, taken, self.constants.integers))

    def _data_name(self, call: Call) -> str:
        return "mat1" if call.operator == "addmm" else "input"

    def _reads(self, reader: fx.Node, value: fx.Node) -> list[Use[fx.Node] | Reason]:
        if reader.op == "output":
            return [Reason.IS_GRAPH_OUTPUT]
        if reads_shape_only(reader):
            return []
        if isinstance(reader.target, torch._ops.HigherOrderOperator):
            return [Reason.CAPTURED_BY_SUBGRAPH]
        if reader in self._scalings:
            return [(self._scalings[reader], 0)]
        call, count = self.call(reader), tensor_arguments(reader).count(value)
        if reader not in self._elementwise and (call is None or self._crossed(reader) is not None):
            return self._crossing(reader, value)
        if reader in self._elementwise or call is None:
            return [(reader, 0)]
        as_data = call.get(self._data_name(call)) is value
        ports: list[int | None] = [0] * as_data + [None] * (count > as_data)
        return [(reader, port) for port in ports]

    def _crossing(self, reader: fx.Node, value: fx.Node) -> list[Use[fx.Node] | Reason]:
        """The ports by which an operator reads a value; one that gives its shape alone is not read."""
        ports: list[int | None] = [port for port, given in enumerate(self.inputs(reader)) if given is value]
        call = self._spelt[reader]
        beside = tensor_arguments(reader).count(value) - len(ports)
        shape_only = call is not None and call.operator in _SHAPE_GIVERS
        return [(reader, port) for port in [*ports, *[None] * (0 if shape_only else beside)]]

    def _read_norm(self, node: fx.Node, call: Call) -> ChannelAffine | Reason:
        if _returns_tuple(node) and any(_item(user) != 0 for user in node.users):
            return Reason.EXTRA_OUTPUTS
        if self.data(node) in self.pinned:
            return self._changed_by(self.data(node))
        return norm_of(call, self._array)

    def _read_elementwise(self, node: fx.Node) -> ChannelAffine | Reason:
        if self._data_of(node) in self.pinned:
            return self._changed_by(self._data_of(node))
        return read_elementwise(self._elementwise[node], self._facts, self.constants.find)

    def _changed_by(self, value: fx.Node) -> Reason:
        """What changes a value that is pinned: an operator, or a hook that sees it and may do anything."""
        return Reason.MUTATED_IN_PLACE if value in self._written_by_operators else Reason.HOOKED

    @cached_property
    def _written_by_operators(self) -> frozenset[fx.Node]:
        bare = {name: nn.Identity() if hooked(part) else part for name, part in self.modules.items()}
        return mutated(self.graph, bare)

    def _read_frozen(self, node: fx.Node) -> ChannelAffine | Reason:
        product, addition = self._read_elementwise(self._frozen[node]), self._read_elementwise(node)
        if isinstance(product, Reason) or isinstance(addition, Reason):
            return product if isinstance(product, Reason) else addition
        return compose(addition, product) or Reason.NOT_PER_CHANNEL

    def _held(self, node: fx.Node) -> Held:
        call = self.call(node)
        assert call is not None, "only a linear operator holds parameters"
        held = self._holds(node, call)
        assert isinstance(held, Held), "a linear operator holds constants"
        return held

    def _holds(self, node: fx.Node, call: Call) -> Held | Reason:
        """The constants of a linear operator, with the bias that is added behind it."""
        held, added = held_by(call, self.constants), self._added.get(node)
        return held if added is None or isinstance(held, Reason) else replace(held, bias=added.constant)

    def _read_linear(self, node: fx.Node, call: Call) -> LinearOp | Reason:
        held = self._holds(node, call)
        return held if isinstance(held, Reason) else linear_op(held, self._facts.rank(call.get(held.form.data)))

    def _array(self, argument: Any) -> Array | Reason:
        constant = self.constants.find(argument)
        return constant if isinstance(constant, Reason) else constant.array()


def _opaque(node: fx.Node) -> Reason:
    """Why a node that no lens reads is no linear operator."""
    if is_quantised(node):
        return Reason.QUANTISED
    namespace = node.target.namespace if isinstance(node.target, torch._ops.OpOverload) else "aten"
    return Reason.NOT_LINEAR if namespace in ("aten", "prims", "prim") else Reason.UNKNOWN_OPERATOR


def _returns_tuple(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and len(node.target._schema.returns) > 1


def _item(node: fx.Node) -> int | None:
    """Which item of a tuple a node takes; None where it is no such node."""
    index = node.args[1] if node.op == "call_function" and node.target is operator.getitem else None
    return index if isinstance(index, int) else None
