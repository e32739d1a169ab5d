"""What the operators give that exporters leave on constants, and how large it is before it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.frontends.onnx import walking

Arrays = Sequence[NDArray[Any]]
Size = Callable[[ir.Node, Arrays], int]


def _broadcast(node: ir.Node, inputs: Arrays) -> int:
    return prod(np.broadcast_shapes(*(array.shape for array in inputs)))


def _first(node: ir.Node, inputs: Arrays) -> int:
    return inputs[0].size


def _total(node: ir.Node, inputs: Arrays) -> int:
    return sum(array.size for array in inputs)


def _rank(node: ir.Node, inputs: Arrays) -> int:
    return max(1, inputs[0].ndim)


def _expanded(node: ir.Node, inputs: Arrays) -> int:
    return prod(np.broadcast_shapes(inputs[0].shape, tuple(int(size) for size in inputs[1])))


def _filled(node: ir.Node, inputs: Arrays) -> int:
    return prod(int(size) for size in inputs[0])


def _tiled(node: ir.Node, inputs: Arrays) -> int:
    return prod((inputs[0].size, *(int(times) for times in inputs[1])))


def _gathered(node: ir.Node, inputs: Arrays) -> int:
    return inputs[0].size * max(1, inputs[1].size)


MOVES: dict[str, Size] = {
    **dict.fromkeys(("Identity", "Cast", "CastLike", "Reshape", "Transpose"), _first),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Flatten", "Slice"), _first),
    **dict.fromkeys(("Shape", "Size"), _rank),
    "Concat": _total,
    "Gather": _gathered,
    "Expand": _expanded,
    "ConstantOfShape": _filled,
    "Tile": _tiled,
    "Where": _broadcast,
}
ARITHMETIC: dict[str, Size] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"), _broadcast),
    **dict.fromkeys(("Sqrt", "Reciprocal", "Neg", "Abs", "Exp", "Log"), _first),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL2", "ReduceSumSquare"), _first),
}
COMPUTED = MOVES | ARITHMETIC
"""How many elements the result has, by operator."""


def compute(node: ir.Node, version: int, inputs: Arrays, dtype: ir.DataType) -> NDArray[Any]:
    """The first output of a node of `COMPUTED` in this version of the operator set, of type `dtype`, or float64 where
    that is a float. Raises what numpy and onnx's reference implementation do where there is no result."""
    with np.errstate(all="ignore"):
        if node.op_type in ("Cast", "CastLike"):
            return inputs[0].astype(_wide_type(dtype))
        if node.op_type == "Expand":
            sizes = tuple(int(length) for length in inputs[1])
            return np.array(np.broadcast_to(inputs[0], np.broadcast_shapes(inputs[0].shape, sizes)))
        if node.op_type == "ConstantOfShape":
            return _fill(node, tuple(int(length) for length in inputs[0]), dtype)
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        if node.op_type in FREQUENT:
            return FREQUENT[node.op_type](inputs, attributes)
        from onnx.reference.ops import load_op  # 0.1 s, needed only for what is rare

        return np.asarray(load_op("", node.op_type, version).eval(*inputs, **attributes))


def _reshaped(inputs: Arrays, attributes: Mapping[str, Any]) -> NDArray[Any]:
    data, sizes = inputs
    kept = not attributes.get("allowzero", 0)
    return data.reshape([data.shape[axis] if kept and size == 0 else int(size) for axis, size in enumerate(sizes)])


def _joined(inputs: Arrays, attributes: Mapping[str, Any]) -> NDArray[Any]:
    return np.concatenate(inputs, attributes["axis"])


def _transposed(inputs: Arrays, attributes: Mapping[str, Any]) -> NDArray[Any]:
    return np.transpose(inputs[0], attributes.get("perm"))


def _squeezed(inputs: Arrays, attributes: Mapping[str, Any]) -> NDArray[Any]:
    return np.squeeze(inputs[0], _axes(inputs, attributes))


def _unsqueezed(inputs: Arrays, attributes: Mapping[str, Any]) -> NDArray[Any]:
    return np.expand_dims(inputs[0], _axes(inputs, attributes) or ())


def _axes(inputs: Arrays, attributes: Mapping[str, Any]) -> tuple[int, ...] | None:
    """An input since opset 13, an attribute before."""
    axes = inputs[1] if len(inputs) > 1 else attributes.get("axes")
    return None if axes is None else tuple(int(axis) for axis in axes)


def _picked(inputs: Arrays, attributes: Mapping[str, Any]) -> NDArray[Any]:
    return np.asarray(np.take(inputs[0], inputs[1], attributes.get("axis", 0)))


def _sum(inputs: Arrays, attributes: Mapping[str, Any]) -> NDArray[Any]:
    return np.asarray(np.add(*inputs))


def _difference(inputs: Arrays, attributes: Mapping[str, Any]) -> NDArray[Any]:
    return np.asarray(np.subtract(*inputs))


def _product(inputs: Arrays, attributes: Mapping[str, Any]) -> NDArray[Any]:
    return np.asarray(np.multiply(*inputs))


FREQUENT = {
    "Reshape": _reshaped,
    "Transpose": _transposed,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Concat": _joined,
    "Gather": _picked,
    "Add": _sum,
    "Sub": _difference,
    "Mul": _product,
}
"""What nearly every model holds."""


def _wide_type(dtype: ir.DataType) -> Any:
    return np.float64 if dtype in walking.FLOATS else dtype.numpy()


def _fill(node: ir.Node, shape: tuple[int, ...], dtype: ir.DataType) -> NDArray[Any]:
    value = node.attributes.get("value")
    number = value.as_tensor().numpy().reshape(-1)[0] if value else 0
    return np.full(shape, number).astype(_wide_type(dtype))
