"""A program node by node, as it stands: every operator, every argument, and what reads what.

Arguments are bound by the operators' own schemas; no lens is used. What a fold may rewrite without a change is one
spelling here: a Dropout that does nothing is seen through, an item of a tuple is an output of what made it, and a view
is a reshape.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from bnfold.evidence import Contents, Held, Move, Operation, Read, Tensor, Wire
from bnfold.frontends.torch.evidence import written_by
from bnfold.frontends.torch.program import STORED, written_names
from bnfold.frontends.torch.running import to_array

_RESHAPES = ("view", "reshape", "_unsafe_view")
_MOVES = (*_RESHAPES, "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze")
_SUMS = ("add", "add_", "sub", "sub_")
_MIXES = (*_SUMS, "rsub", "subtract", "mul", "mul_", "multiply", "div", "div_", "true_divide", "neg", "mm", "matmul")
_DATA = {"addmm": "mat1", "linear": "input"}


def contents(program: ExportedProgram) -> Contents:
    """Everything that a program does, by the names of its nodes."""
    reader = _Reader(program)
    calls = [node for node in program.graph.nodes if node.op in ("call_function", "get_attr")]
    operations = {node.name: reader.operation(node) for node in calls if not reader.is_seen_through(node)}
    idle = frozenset(node.name for node in calls if reader.is_seen_through(node))
    return Contents(operations, dict(reader.results()), reader.defaults, idle)


class _Reader:
    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        placeholders = program.graph.find_nodes(op="placeholder")
        specs = dict(zip(placeholders, program.graph_signature.input_specs, strict=True))
        stored = {**program.constants, **program.state_dict}
        names = written_names(program)
        written = {each for node in program.graph.nodes for each in written_by(node)}
        self.defaults: dict[str, Tensor] = {}
        self._known: dict[fx.Node, Read] = {}
        for node, spec in specs.items():
            tensor = stored.get(spec.target) if spec.kind in STORED else None
            if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
                number = sum(isinstance(read, Wire) for read in self._known.values())
                other = spec.kind is not InputKind.USER_INPUT
                self._known[node] = Wire(f"stored {spec.target}", given=True) if other else Wire("", number, given=True)
            elif node in written or spec.target in names:
                self.defaults[str(spec.target)] = to_array(tensor)
                self._known[node] = Wire(f"stored {spec.target}", given=True)
            else:
                self._known[node] = Held(str(spec.target), to_array(tensor))
        self._fixed = {node for node, read in self._known.items() if isinstance(read, Held)}
        for node in program.graph.nodes:  # first to last, so that no later question goes deep
            if node.op == "call_function" and node.all_input_nodes and self._fixed.issuperset(node.all_input_nodes):
                self._fixed.add(node)

    def operation(self, node: fx.Node) -> Operation:
        if node.op == "get_attr":
            part = getattr(self._program.graph_module, str(node.target), None)
            text = str(part.graph) if isinstance(part, fx.GraphModule) else repr(part)
            return Operation("get_attr", {"holds": sha256(text.encode()).hexdigest()}, {})
        name, arguments = _bound(node)
        reads: dict[str, Read] = {}
        texts = {key: self._text(value, key, reads) for key, value in arguments.items()}
        attributes = {key: text for key, text in texts.items() if key not in reads and arguments[key] is not None}
        data = self._data(name, arguments)
        plain = name.rpartition("::")[2]
        adds = plain in _SUMS and data is None and len(reads) == 2 and arguments.get("alpha", 1) == 1
        move, copies = _move(plain, node, arguments), plain == "clone"
        name = "aten::reshape" if plain in _RESHAPES else name
        return Operation(
            name, attributes, reads, _outputs(node), data or ("input" if move or copies else None), move, adds, copies
        )

    def _text(self, value: Any, key: str, reads: dict[str, Read]) -> str:
        """An argument without its values, which go to `reads` under its name."""
        if isinstance(value, fx.Node):
            reads[key] = self.read(value)
            return "a value"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(self._text(each, f'{key}.{i}', reads) for i, each in enumerate(value))}]"
        return repr(value)

    def read(self, node: fx.Node) -> Read:
        """What a value is."""
        port = 0
        while node not in self._known:
            if self.is_seen_through(node):
                port = node.args[1] if node.target is operator.getitem else port  # type: ignore[assignment]
                node = node.args[0]  # type: ignore[assignment]
            else:
                return Wire(node.name, port)
        return self._known[node]

    def is_seen_through(self, node: fx.Node) -> bool:
        """A Dropout at inference, or an item of a tuple that an operator makes."""
        if node.target is operator.getitem:
            front, index = node.args
            made = isinstance(front, fx.Node) and isinstance(front.target, torch._ops.OpOverload)
            return made and isinstance(index, int)
        name, arguments = _bound(node) if isinstance(node.target, torch._ops.OpOverload) else ("", {})
        is_dropout = name.rpartition("::")[2] in ("dropout", "dropout_", "feature_dropout", "alpha_dropout")
        return is_dropout and arguments.get("train") is False

    def _data(self, name: str, arguments: dict[str, Any]) -> str | None:
        plain = name.rpartition("::")[2]
        if "batch_norm" in plain or ("conv" in plain and "weight" in arguments):
            return "input"
        if plain in _DATA:
            return _DATA[plain]
        values = {key: value for key, value in arguments.items() if isinstance(value, fx.Node)}
        open_keys = [key for key, value in values.items() if value not in self._fixed]
        scalars = any(isinstance(arguments.get(key), (int, float)) for key in ("input", "other"))
        single = len(open_keys) == 1 and (len(values) > 1 or scalars or plain == "neg")
        return open_keys[0] if plain in _MIXES and single else None

    def results(self) -> Iterator[tuple[str, tuple[Read, ...]]]:
        """What the program gives out, and every value that is written and read by nobody."""
        (values,) = self._program.graph.output_node().args
        pairs = list(zip(values, self._program.graph_signature.output_specs, strict=True))
        yield "", tuple(self._result(value) for value, spec in pairs if spec.kind is OutputKind.USER_OUTPUT)
        for value, spec in pairs:
            if spec.kind is not OutputKind.USER_OUTPUT:
                yield f"{spec.kind.name} {spec.target}", (self._result(value),)
        for node in self._program.graph.nodes:
            if not node.users and isinstance(node.target, torch._ops.OpOverload) and any(written_by(node)):
                yield f"effect of {node.name}", (Wire(node.name),)

    def _result(self, value: Any) -> Read:
        if isinstance(value, fx.Node):
            return self.read(value)
        return None if value is None else Held("", np.asarray(value))


def _bound(node: fx.Node) -> tuple[str, dict[str, Any]]:
    """The operator and all its arguments by name, those that were not given too."""
    if not isinstance(node.target, torch._ops.OpOverload):
        name = getattr(node.target, "__qualname__", str(node.target))
        return name, {**{str(i): value for i, value in enumerate(node.args)}, **node.kwargs}
    schema = node.target._schema
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
    plain = schema.name.rpartition("::")[2]
    found = {}
    for argument in schema.arguments:
        name = "input" if argument.name == "self" else argument.name
        name = "shape" if plain in _RESHAPES and name == "size" else name
        found[name] = given.get(argument.name, argument.default_value if argument.has_default_value() else None)
    return schema.name, found


def _outputs(node: fx.Node) -> int:
    return len(node.target._schema.returns) if isinstance(node.target, torch._ops.OpOverload) else 1


def _move(plain: str, node: fx.Node, arguments: dict[str, Any]) -> Move | None:
    before, after = (_shape(each) for each in (arguments.get("input"), node))
    if before is None or after is None:
        return None
    if plain in _MOVES:
        return Move(None, before, after)
    order = list(range(len(before)))
    if plain == "permute":
        return Move(tuple(axis % len(order) for axis in arguments["dims"]))
    if plain in ("transpose", "t", "numpy_T"):
        one, other = (arguments.get(key, default) for key, default in (("dim0", 0), ("dim1", -1)))
        if len(order) < 2 or (plain != "transpose" and len(order) != 2):
            return None
        order[one], order[other] = order[other], order[one]
        return Move(tuple(order))
    return None


def _shape(value: Any) -> tuple[int | str, ...] | None:
    held = value.meta.get("val") if isinstance(value, fx.Node) else None
    if not isinstance(held, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else str(size) for size in held.shape)
