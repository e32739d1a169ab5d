"""A model node by node, as it stands: every operator, every attribute, and what reads what.

Read on another path than the one that folds: no lens, no computed constant. What the fold takes away before it begins
is seen through here by rule: Identity, a Dropout that does nothing, and a sequence of pieces that is a Split.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256

import numpy as np
import onnx.defs
import onnx_ir as ir

from bnfold.evidence import Contents, Held, Move, Operation, Read, Wire
from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.computing import COMPUTED
from bnfold.frontends.onnx.constants import constant_tensor, known_types
from bnfold.frontends.onnx.training import is_trained

WEIGHTED = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm")
RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def contents(model: ir.Model) -> Contents:
    """Everything that the model does, by the names that `walking.site_names` gives its nodes."""
    reader = _Reader(model)
    operations = {
        name: reader.operation(node)
        for node, name in reader.names.items()
        if not (reader.is_seen_through(node) or (walking.is_standard(node, "Constant") and reader.held(node)))
    }
    results = {scope: tuple(map(reader.read, graph.outputs)) for graph, scope in reader.scopes.items()}
    defaults = {
        str(value.name): value.const_value.numpy()
        for graph in reader.scopes
        for value in {*graph.inputs, *graph.initializers.values()}
        if value.const_value is not None and (is_trained(value) or (value.is_graph_input() and model.ir_version >= 4))
    }
    idle = frozenset(name for node, name in reader.names.items() if reader.is_seen_through(node))
    return Contents(operations, results, defaults, idle)


class _Reader:
    def __init__(self, model: ir.Model) -> None:
        self.names = walking.site_names(model)
        self.scopes = dict(_scopes(model, self.names))
        self._model = model
        self._inferred = known_types(model)
        self._opset = walking.model_opset(model)
        self._given = {
            value: Wire(scope, port, given=True)
            for graph, scope in self.scopes.items()
            for port, value in enumerate(graph.inputs)
            if model.ir_version >= 4 or value.const_value is None
        }
        self._held: dict[ir.Value, Held | None] = {}
        self._fixed: dict[ir.Value, bool] = {}

    def operation(self, node: ir.Node) -> Operation:
        if (split := self._split(node)) is not None:
            return split
        reads = {str(port): self.read(value) for port, value in enumerate(node.inputs) if value is not None}
        attributes = {name: _text(attribute) for name, attribute in node.attributes.items()}
        data, outputs = self._data(node), sum(bool(output.name) for output in node.outputs)
        adds = data is None and walking.is_standard(node, "Add", "Sub", "Sum")
        implied = _defaults(node.domain, node.op_type, self._model.opset_imports.get(node.domain, self._opset))
        return Operation(_operator(node), attributes, reads, outputs, data, self._move(node), adds, implied=implied)

    def read(self, value: ir.Value | None) -> Read:
        """What a value is, behind every node that does nothing."""
        while value is not None and (maker := value.producer()) is not None:
            if (piece := self._piece(maker)) is not None:
                return piece
            if not self.is_seen_through(maker):
                break
            value = maker.inputs[0]
        if value is None:
            return None
        if value in self._given:
            return self._given[value]
        if held := self._stored(value):
            return held
        return Wire(self.names[maker], value.index() or 0) if maker is not None else Wire(str(value.name), given=True)

    def held(self, node: ir.Node) -> bool:
        """Whether a Constant holds a tensor."""
        return constant_tensor(node) is not None

    def is_seen_through(self, node: ir.Node) -> bool:
        """Identity; a Dropout that is not told to train and whose mask nobody asks for; a taken piece of a sequence."""
        if walking.is_standard(node, "Dropout"):
            return self._rests(node)
        return walking.is_standard(node, "Identity") or self._piece(node) is not None

    def _rests(self, node: ir.Node) -> bool:
        trains = node.inputs[2] if len(node.inputs) > 2 else None
        told = None if trains is None else self._stored(trains)
        alone = not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
        return alone and self._opset >= 7 and (trains is None or (told is not None and not told.numbers.any()))

    def _stored(self, value: ir.Value) -> Held | None:
        if value not in self._held:
            maker = value.producer()
            if value.is_initializer():
                tensor = None if is_trained(value) else value.const_value
            else:
                tensor = (
                    constant_tensor(maker) if maker is not None and walking.is_standard(maker, "Constant") else None
                )
            self._held[value] = None if tensor is None else Held(str(value.name), np.asarray(tensor.numpy()))
        return self._held[value]

    def _is_fixed(self, value: ir.Value | None) -> bool:
        """Whether a value follows from stored tensors alone."""
        if value is None:
            return False
        if value not in self._fixed:
            maker = value.producer()
            self._fixed[value] = value not in self._given and (
                self._stored(value) is not None
                or (
                    maker is not None
                    and walking.is_standard(maker, *COMPUTED)
                    and bool(maker.inputs)
                    and all(map(self._is_fixed, maker.inputs[: 1 if maker.op_type == "CastLike" else None]))
                )
            )
        return self._fixed[value]

    def _data(self, node: ir.Node) -> str | None:
        if walking.is_standard(node, *WEIGHTED, *RESHAPES, "Transpose"):
            return "0"
        open_ports = [port for port, value in enumerate(node.inputs) if value is not None and not self._is_fixed(value)]
        mixes = walking.is_standard(node, "MatMul", "Add", "Sub", "Mul", "Div", "Neg")
        return str(open_ports[0]) if mixes and len(open_ports) == 1 else None

    def _move(self, node: ir.Node) -> Move | None:
        data = node.inputs[0] if node.inputs else None
        if data is None or not node.outputs:
            return None
        if walking.is_standard(node, "Transpose"):
            order, rank = node.attributes.get("perm"), self._inferred.rank(data)
            if order is not None and not order.is_ref():
                return Move(tuple(order.as_ints()))
            return None if rank is None else Move(tuple(range(rank))[::-1])
        if not walking.is_standard(node, *RESHAPES):
            return None
        shapes = [self._inferred.shape(value) for value in (data, node.outputs[0])]
        return None if None in shapes else Move(None, *(tuple(shape or ()) for shape in shapes))

    # A sequence of pieces is a Split.

    def _split(self, node: ir.Node) -> Operation | None:
        """A SplitToSequence or a Split, both with their sizes one by one."""
        if not walking.is_standard(node, "SplitToSequence", "Split") or len(node.inputs) != 2:
            return None
        sizes, readers = self._sizes(node), [use.node for use in node.outputs[0].uses()]
        if sizes is None or (node.op_type != "Split" and not all(map(self._piece, readers))):
            return None
        axis = node.attributes.get("axis")
        attributes = {"axis": "0" if axis is None else _text(axis)}
        attributes |= {name: _text(each) for name, each in node.attributes.items() if name not in ("axis", "keepdims")}
        reads: dict[str, Read] = {"0": self.read(node.inputs[0]), "1": Held("", np.array(sizes, dtype=np.int64))}
        return Operation(":Split", attributes, reads, len(sizes))

    def _sizes(self, node: ir.Node) -> list[int] | None:
        data, given = node.inputs
        held = None if given is None else self._stored(given)
        if held is None or data is None:
            return None
        sizes = [int(size) for size in held.numbers.reshape(-1)]
        if held.numbers.ndim or walking.is_standard(node, "Split"):
            return sizes
        shape, axis = self._inferred.shape(data), node.attributes.get("axis")
        at = 0 if axis is None else axis.as_int()
        size = shape[at] if shape is not None and -len(shape) <= at < len(shape) else None
        if not isinstance(size, int) or sizes[0] < 1:
            return None
        whole, rest = divmod(size, sizes[0])
        return sizes * whole + [rest] * (rest > 0)

    def _piece(self, node: ir.Node) -> Wire | None:
        """The output of the Split that a SequenceAt takes."""
        maker = node.inputs[0].producer() if walking.is_standard(node, "SequenceAt") and node.inputs[0] else None
        at = None if maker is None or node.inputs[1] is None else self._stored(node.inputs[1])
        if maker is None or at is None or not walking.is_standard(maker, "SplitToSequence") or len(maker.inputs) != 2:
            return None
        alone = all(walking.is_standard(use.node, "SequenceAt") and use.idx == 0 for use in maker.outputs[0].uses())
        sizes, position = self._sizes(maker) if alone else None, int(at.numbers.reshape(-1)[0])
        known = sizes is not None and -len(sizes) <= position < len(sizes)
        return Wire(self.names[maker], position % len(sizes)) if known and sizes else None


def _scopes(model: ir.Model, names: dict[ir.Node, str]) -> list[tuple[ir.Graph, str]]:
    """Every graph of the model with a name: none for the model's own, the node and its attribute for a body."""
    found = [(model.graph, "")]
    found += [(function.graph, f"{function.domain}:{function.name}") for function in model.functions.values()]
    for node, name in names.items():
        for attribute in node.attributes.values():
            if not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPH:
                found.append((attribute.as_graph(), f"{name}/{attribute.name}"))
            elif not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPHS:
                found += [(body, f"{name}/{attribute.name}/{i}") for i, body in enumerate(attribute.as_graphs())]
    return found


def _operator(node: ir.Node) -> str:
    domain = "" if node.domain in walking.STANDARD_DOMAINS else node.domain
    return f"{domain}:{node.op_type}" + (f":{node.overload}" if node.overload else "")


@lru_cache(maxsize=1024)
def _defaults(domain: str, op: str, version: int) -> Mapping[str, str]:
    """The attributes that an operator has where none is given, as text; none of an operator that ONNX does not know."""
    try:
        schema = onnx.defs.get_schema(op, version, "" if domain in walking.STANDARD_DOMAINS else domain)
    except onnx.defs.SchemaError:
        return {}
    protos = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    return {name: _text(ir.serde.deserialize_attribute(proto)) for name, proto in protos.items() if proto.name}


def _text(attribute: ir.Attr) -> str:
    """An attribute as text: short ones as they read, tensors by their hash, bodies by what is in them elsewhere."""
    if attribute.is_ref():
        return f"the attribute {attribute.ref_attr_name} of the function"
    match attribute.type:
        case ir.AttributeType.GRAPH | ir.AttributeType.GRAPHS:
            return "a body"
        case ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            return f"{tensor.dtype.name}{list(tensor.shape)} {sha256(tensor.tobytes()).hexdigest()}"
        case ir.AttributeType.INT | ir.AttributeType.FLOAT | ir.AttributeType.STRING:
            return repr(attribute.value)
        case ir.AttributeType.INTS | ir.AttributeType.FLOATS | ir.AttributeType.STRINGS:
            return repr(list(attribute.value))
    return sha256(ir.serde.serialize_attribute(attribute).SerializeToString(deterministic=True)).hexdigest()
