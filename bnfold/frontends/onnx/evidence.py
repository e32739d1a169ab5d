"""What the file stores, read again on another path than the one that folds.

Nothing here uses a lens or the numbers of `OnnxGraph`: the certificate derives every new weight from these records,
and a mistake that both paths share would stay unseen. Parameters that the model computes are evaluated by onnx's
reference implementation, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.evidence import (
    REACH,
    Elementwise,
    Evidence,
    StoredAffine,
    StoredLinear,
    StoredNorm,
    StoredOperands,
    StoredWindow,
)
from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.computing import COMPUTED, MOVES
from bnfold.frontends.onnx.constants import MAX_DEPTH, constant_tensor, known_types
from bnfold.frontends.onnx.training import is_trained

Stored = NDArray[Any]

MAX_ELEMENTS = 1 << 24
FEW = 16
"""What is computed from so many numbers is computed once, wherever a model computes it."""

_ELEMENTWISE: dict[str, tuple[Elementwise | None, Elementwise | None]] = {
    "Add": ("add", "add"),
    "Sub": ("rsub", "sub"),
    "Mul": ("mul", "mul"),
    "Div": (None, "div"),
    "Neg": (None, None),
}
"""What an operator is whose first input, or second input, is the constant one."""


_UNMIXED = (
    *("Relu", "LeakyRelu", "PRelu"),
    *("Identity", "Cast", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
)
NOISE_PASSES = ("Conv", "ConvTranspose", "Gemm", *_UNMIXED)
"""What may be between a dropout and a batch norm that it disturbs, beside a MatMul or Add of one constant: linear
layers and ReLUs (arXiv 1801.05134)."""


def evidence(model: ir.Model) -> Evidence:
    """The stored parameters of every batch norm, linear and elementwise operator that has constant ones, by node name.

    Arrays have their stored dtype, those that arithmetic computes float64. What cannot be read is left out.
    """
    names = walking.site_names(model)
    reader = _Reader(model, names)
    norms, linears, affines = {}, {}, {}
    for node in walking.nodes(model):
        if walking.is_standard(node, "BatchNormalization"):
            if norm := reader.norm(node):
                norms[names[node]] = norm
        elif walking.is_standard(node, "Conv", "ConvTranspose", "Gemm", "MatMul") and (linear := reader.linear(node)):
            linears[names[node]] = linear
    for node in walking.nodes(model):
        if walking.is_standard(node, *_ELEMENTWISE) and (affine := reader.affine(node)):
            affines[names[node]] = affine
    recorded = norms.keys() | linears.keys() | affines.keys() | {linear.added for linear in linears.values()}
    others = {name: found for node, name in names.items() if name not in recorded and (found := reader.operands(node))}
    return Evidence(norms, linears, affines, _unread(model, names), others)


def _unread(model: ir.Model, names: Mapping[ir.Node, str]) -> frozenset[str]:
    """The nodes whose values reach no output, neither of the model nor of a body or function."""
    read: set[ir.Node] = set()
    waiting = [output.producer() for graph in walking.graphs(model) for output in graph.outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in read:
            continue
        read.add(node)
        if not walking.is_standard(node, *walking.SHAPE_READERS):
            waiting += [value.producer() for value in node.inputs if value is not None]
    return frozenset(name for node, name in names.items() if node not in read)


def _window(attributes: Mapping[str, Any], kernel: tuple[int, ...]) -> StoredWindow | None:
    """What the attributes say of a window; a border that depends on the size of the data is not told by them."""
    axes, mode = len(kernel), attributes.get("auto_pad", "NOTSET")
    stride, dilation = (tuple(attributes.get(name, (1,) * axes)) for name in ("strides", "dilations"))
    before, after = np.reshape(attributes.get("pads", (0,) * 2 * axes), (2, axes))
    if mode == "VALID":
        before = after = np.zeros(axes, int)
    elif mode != "NOTSET":
        if any(step != 1 for step in stride):
            return None
        border = np.multiply(dilation, np.subtract(kernel, 1))
        before = (border + (mode == "SAME_LOWER")) // 2
        after = border - before
    extra = (*attributes.get("output_padding", ()), *attributes.get("output_shape", ()))
    return StoredWindow(stride, dilation, tuple(map(int, before)), tuple(map(int, after)), extra)


class _Reader:
    def __init__(self, model: ir.Model, names: Mapping[ir.Node, str]) -> None:
        self._model = model
        self._names = names
        self._inferred = known_types(model)
        self._results: dict[ir.Value, Stored | None] = {}
        self._answers: dict[tuple[Any, ...], Stored] = {}
        self._left = MAX_ELEMENTS
        self._biases: set[ir.Node] = set()

    def norm(self, node: ir.Node) -> StoredNorm | None:
        gamma, beta, mean, variance = (self._array(value) for value in node.inputs[1:5])
        epsilon, momentum = node.attributes.get("epsilon"), node.attributes.get("momentum")
        if gamma is None or beta is None or mean is None or variance is None or (epsilon and epsilon.is_ref()):
            return None
        dropout, unmixed = self._dropout(node.inputs[0])
        return StoredNorm(
            gamma,
            beta,
            mean,
            variance,
            float(np.float32(epsilon.value if epsilon else 1e-5)),
            kept=None if momentum is None or momentum.is_ref() else float(momentum.value),
            dropout=dropout,
            unmixed=unmixed,
            rectified=_rectified(node.outputs[0]),
            reads=self._maker(node.inputs[0]),
        )

    def _maker(self, value: ir.Value | None) -> str:
        """The name of the node that makes a value; empty for an input of the model."""
        node = None if value is None else value.producer()
        return "" if node is None else self._names[node]

    def _dropout(self, value: ir.Value | None) -> tuple[float, bool]:
        """The ratio of the dropout in front of a value, through operators that pass its noise on, and whether all of
        them are `_UNMIXED`; 0 without one."""
        unmixed = True
        for _ in range(REACH):
            node = None if value is None else value.producer()
            if node is not None and walking.is_standard(node, "Dropout"):
                return self._ratio(node), unmixed
            value = None if node is None else self._passed(node)
            unmixed = unmixed and node is not None and node.op_type in _UNMIXED
        return 0.0, False

    def _passed(self, node: ir.Node) -> ir.Value | None:
        """The one value whose noise reaches the output; None where there is none, or where it would not be the same."""
        if walking.is_standard(node, "Add", "MatMul"):
            data = [each for each in node.inputs if self._array(each) is None]
            return data[0] if len(data) == 1 else None
        return next(iter(node.inputs), None) if walking.is_standard(node, *NOISE_PASSES) else None

    def _ratio(self, node: ir.Node) -> float:
        """An attribute up to opset 11, then an input; 0.5 where neither is given."""
        attribute = node.attributes.get("ratio")
        if attribute is not None:
            return 0.0 if attribute.is_ref() else float(attribute.value)
        given = node.inputs[1] if len(node.inputs) > 1 else None
        ratio = self._array(given)
        return 0.5 if given is None else 0.0 if ratio is None or ratio.size != 1 else float(ratio.reshape(()))

    def affine(self, node: ir.Node) -> StoredAffine | None:
        """An elementwise operator with one constant operand that is no bias; all linear ones are read before."""
        constants = [self._array(value) for value in node.inputs]
        known = [index for index, constant in enumerate(constants) if constant is not None]
        if node.attributes or node in self._biases or len(known) != len(node.inputs) - 1:
            return None
        if not known:
            return StoredAffine("neg", None)
        op, constant = _ELEMENTWISE[node.op_type][known[0]], constants[known[0]]
        return None if op is None or constant is None or constant.dtype.kind in "iub" else StoredAffine(op, constant)

    def linear(self, node: ir.Node) -> StoredLinear | None:
        if node.op_type == "MatMul":
            return self._matmul(node)
        weight = self._array(node.inputs[1])
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        bias = self._array(bias_value)
        known = {name: attribute.value for name, attribute in node.attributes.items() if not attribute.is_ref()}
        if weight is None or (bias is None) != (bias_value is None) or len(known) != len(node.attributes):
            return None
        if node.op_type != "Gemm":
            if bias is not None and bias.ndim != 1:
                return None
            layout = "conv" if node.op_type == "Conv" else "conv_transpose"
            window = _window(known, weight.shape[2:])
            groups = known.get("group", 1)
            return StoredLinear(layout, weight, bias, groups=groups, window=window)  # type: ignore[arg-type]
        if bias is not None and bias.size > 1 and bias.shape[-1] != bias.size:
            return None
        alpha, beta = (float(np.float32(known.get(name, 1.0))) for name in ("alpha", "beta"))
        flat = None if bias is None else bias.reshape(-1)
        return StoredLinear("linear" if known.get("transB") else "matmul", weight, flat, alpha=alpha, beta=beta)

    def operands(self, node: ir.Node) -> StoredOperands | None:
        """The constants that an operator reads, through Identity nodes too, and those that a caller may override."""
        found = {}
        for index, value in enumerate(node.inputs):
            while value is not None and (maker := value.producer()) and walking.is_standard(maker, "Identity"):
                value = maker.inputs[0]
            tensor = None if value is None else value.const_value if value.is_initializer() else self._tensor(value)
            if tensor is not None:
                found[index] = np.asarray(tensor.numpy())
        return StoredOperands(node.op_type, found) if found else None

    def _matmul(self, node: ir.Node) -> StoredLinear | None:
        left, right = node.inputs
        on_right = self._array(right)
        weight = on_right if on_right is not None else self._array(left)
        if weight is None or weight.ndim < 2 or weight.size != weight.shape[-1] * weight.shape[-2]:
            return None
        rows, columns = weight.shape[-2:]
        matrix = weight.reshape(rows, columns)
        if on_right is not None:
            bias, added = self._added(node, left, weight.ndim, columns, (-1,))
            return StoredLinear("matmul", matrix, bias, added=added)
        bias, added = self._added(node, right, weight.ndim, rows, (-1, 1))
        return StoredLinear("linear", matrix, bias, added=added)

    def _added(
        self, node: ir.Node, data: ir.Value | None, least: int, channels: int, column: tuple[int, ...]
    ) -> tuple[Stored | None, str | None]:
        """The constant per channel that the only reader of a product adds, and the name of that reader, if any.

        `least` is the rank of the matrix: the product has that of its data, and no smaller one.
        """
        product = node.outputs[0]
        readers = _readers(product)
        while len(readers) == 1 and not product.is_graph_output() and walking.is_standard(readers[0].node, "Identity"):
            product = readers[0].node.outputs[0]
            readers = _readers(product)
        if len(readers) != 1 or product.is_graph_output() or not walking.is_standard(readers[0].node, "Add"):
            return None, None
        add, index = readers[0].node, readers[0].idx
        term = self._array(add.inputs[1 - index]) if add.graph is node.graph else None
        if term is None or (term.ndim > 1 and term.ndim > self._rank_of_product(data, least)):
            return None, None
        flat = term.reshape(-1)
        if term.size not in (1, channels) or (term.size > 1 and term.squeeze().shape != flat.shape):
            return None, None
        if term.size > 1 and np.broadcast_shapes(term.shape, flat.reshape(column).shape) != term.shape:
            return None, None
        self._biases.add(add)
        return flat, self._names[add]

    def _rank_of_product(self, data: ir.Value | None, least: int) -> int:
        rank = None if data is None else self._inferred.rank(data)
        return 1 if rank is None else max(rank, least)

    def _array(self, value: ir.Value | None, depth: int = 0) -> Stored | None:
        """The numbers of a value that is stored or computed from stored ones."""
        if value is None:
            return None
        if (tensor := self._tensor(value)) is not None:
            return np.asarray(tensor.numpy())
        if value not in self._results:
            self._results[value] = self._computed(value.producer(), depth + 1)
        return self._results[value]

    def _tensor(self, value: ir.Value) -> ir.TensorProtocol | None:
        if not value.is_initializer():
            node = value.producer()
            return constant_tensor(node) if node is not None and walking.is_standard(node, "Constant") else None
        changes = is_trained(value) or (value.is_graph_input() and self._model.ir_version >= 4)
        return None if changes else value.const_value

    def _computed(self, node: ir.Node | None, depth: int) -> Stored | None:
        """The result of a node whose inputs are all stored or computed."""
        known = node is not None and walking.is_standard(node, *COMPUTED) and depth <= MAX_DEPTH
        if node is None or not known or any(attribute.is_ref() for attribute in node.attributes.values()):
            return None
        inputs = [self._array(value, depth) for value in node.inputs[: 1 if node.op_type == "CastLike" else None]]
        arrays = [array for array in inputs if array is not None]
        return self._run(node, arrays) if len(arrays) == len(inputs) else None

    def _run(self, node: ir.Node, arrays: list[Stored]) -> Stored | None:
        try:
            kept = "iubf" if node.op_type in MOVES and not node.op_type.startswith("Cast") else "iub"
            wide = [array if array.dtype.kind in kept else array.astype(np.float64) for array in arrays]
            self._left -= COMPUTED[node.op_type](node, wide)
            if self._left < 0:
                return None
            result = self._answer(node, wide)
        except (ValueError, TypeError, IndexError, RuntimeError, NotImplementedError):
            return None  # what cannot be computed now fails in the same way when the model runs
        return result if result.dtype.kind in kept and not _casts_to_float(node) else result.astype(np.float64)

    def _answer(self, node: ir.Node, arrays: list[Stored]) -> Stored:
        """What onnx's reference implementation answers; exporters write the same small computation in many places."""
        from onnx.reference import ReferenceEvaluator  # 0.2 s, needed only where something is computed

        feeds = {f"x{position}": array for position, array in enumerate(arrays)}
        model = _one_node(node, list(feeds), walking.model_opset(self._model))

        def answer() -> Stored:
            return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])  # type: ignore[index]

        if any(array.size > FEW for array in arrays):
            return answer()
        asked = (model.SerializeToString(), *((each.dtype.str, each.shape, each.tobytes()) for each in arrays))
        if asked not in self._answers:
            self._answers[asked] = answer()
        return self._answers[asked]


def _rectified(value: ir.Value) -> bool:
    """Whether ReLUs, and nothing else, read the contents of a value."""
    readers = _readers(value)
    return bool(readers) and not value.is_graph_output() and all(walking.is_standard(r.node, "Relu") for r in readers)


def _readers(value: ir.Value) -> list[Any]:
    """Who reads the contents of a value."""
    return [use for use in value.uses() if use.node.op_type not in walking.SHAPE_READERS]


def _casts_to_float(node: ir.Node) -> bool:
    return node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) in walking.FLOATS


def _one_node(node: ir.Node, names: list[str], version: int) -> onnx.ModelProto:
    """The node alone, on doubles: a cast between floats changes nothing, and all float types are one."""
    proto = ir.serde.serialize_node(node)
    for field in ("name", "doc_string", "metadata_props", "input", "output"):
        proto.ClearField(field)
    proto.input.extend(names)
    proto.output.append("result")
    if _casts_to_float(node) or node.op_type == "CastLike":
        proto.op_type = "Identity"
        del proto.attribute[:]
    inputs = [onnx.helper.make_empty_tensor_value_info(name) for name in names]
    output = onnx.helper.make_empty_tensor_value_info("result")
    graph = onnx.helper.make_graph([proto], "node", inputs, [output])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
