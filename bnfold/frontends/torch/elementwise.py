"""An affine written out: an addition, subtraction, product or quotient with a constant.

`elementwise_affines` finds the operators with a constant operand, `read` makes a `ChannelAffine` of one: one number for
the whole value, or one number per index of one axis. The operator must leave the shape and the dtype of its data alone:
a constant that would broadcast the data, or promote it, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from bnfold.algebra import Array, ChannelAffine
from bnfold.frontends.torch.aliasing import reads_shape_only
from bnfold.frontends.torch.calls import Call, words
from bnfold.frontends.torch.constants import FLOATS, Constant, Constants
from bnfold.frontends.torch.shapes import Facts
from bnfold.graph import Reason

Maps = Callable[[Array], tuple[Array, Array]]
"""From the constant to scale and shift."""


def _scaled(constant: Array) -> tuple[Array, Array]:
    return constant, np.zeros_like(constant)


def _divided(constant: Array) -> tuple[Array, Array]:
    with np.errstate(divide="ignore"):
        return 1 / constant, np.zeros_like(constant)


def _shifted(sign: float, factor: float) -> Maps:
    return lambda constant: (np.full_like(constant, sign), factor * constant)


_DATA_FIRST: dict[str, Maps] = {
    **dict.fromkeys(("mul", "multiply"), _scaled),
    **dict.fromkeys(("div", "true_divide", "truediv"), _divided),
    "add": _shifted(1, 1),
    **dict.fromkeys(("sub", "subtract"), _shifted(1, -1)),
    "rsub": _shifted(-1, 1),
}
_DATA_LAST: dict[str, Maps] = {
    **dict.fromkeys(("mul", "multiply"), _scaled),
    "add": _shifted(1, 1),
    **dict.fromkeys(("sub", "subtract"), _shifted(-1, 1)),
    "rsub": _shifted(1, -1),
}
_NEGATIONS = ("neg", "negative")


@dataclass(frozen=True)
class Elementwise:
    """`data`, the argument `operand` of its call, and the constant operand: a number or a node."""

    data: fx.Node
    operand: str
    constant: Any
    maps: Maps
    plain: bool


def _spelt(call: Call, is_constant: Callable[[fx.Node], bool]) -> Elementwise | None:
    """The affine that a call spells, if exactly one of its operands is constant."""
    left, right = call.get("input"), call.get("other")
    if call.operator in _NEGATIONS:
        runs = isinstance(left, fx.Node) and not is_constant(left)
        return Elementwise(left, "input", 1.0, _shifted(-1, 0), plain=True) if runs else None
    for operand, data, constant, table in (("input", left, right, _DATA_FIRST), ("other", right, left, _DATA_LAST)):
        fixed = is_constant(constant) if isinstance(constant, fx.Node) else _is_number(constant)
        if call.operator in table and isinstance(data, fx.Node) and not is_constant(data) and fixed:
            known = set(call.arguments) <= words("input other alpha") and call.get("alpha", 1) == 1
            return Elementwise(data, operand, constant, table[call.operator], known)
    return None


def elementwise_affines(
    calls: Mapping[fx.Node, Call | None], constants: Constants, facts: Facts
) -> dict[fx.Node, Elementwise]:
    """Operators with one constant operand and one of floats; what is computed with sizes is no tensor."""
    found: dict[fx.Node, Elementwise] = {}
    numbers: set[fx.Node] = set()
    for node, call in calls.items():
        if reads_shape_only(node) or (node.all_input_nodes and numbers.issuperset(node.all_input_nodes)):
            numbers.add(node)
        affine = None if call is None else _spelt(call, constants.is_constant)
        if affine is None or affine.data in numbers or affine.data in constants.names:
            continue
        if _is_float(facts.dtype(affine.data)):
            found[node] = affine
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read(affine: Elementwise, facts: Facts, find: Callable[[Any], Constant | Reason]) -> ChannelAffine | Reason:
    """The affine map, or why it is none that could go."""
    if not affine.plain:
        return Reason.UNSUPPORTED_ATTRIBUTE
    dtype, shape = facts.dtype(affine.data), facts.shape(affine.data)
    if dtype is None:
        return Reason.AXIS_UNKNOWN
    if _is_number(affine.constant):
        return _affine(affine, np.asarray(affine.constant, dtype=np.float64), shape)
    constant = find(affine.constant)
    if isinstance(constant, Reason):
        return constant
    widened = constant.dtype is not dtype and (shape == () or constant.shape != ())
    if widened and torch.promote_types(dtype, constant.dtype) is not dtype:
        return Reason.UNSUPPORTED_ATTRIBUTE
    if constant.shape == () and shape is None and constant.dtype is not dtype:
        return Reason.AXIS_UNKNOWN
    return _affine(affine, constant.array(), shape)


def _is_float(dtype: torch.dtype | None) -> bool:
    """Whether a value may be one of floats, as far as is known."""
    return dtype is None or dtype in FLOATS


def _affine(affine: Elementwise, constant: Array, shape: Sequence[Any] | None) -> ChannelAffine | Reason:
    if not np.isfinite(constant).all():
        return Reason.NON_FINITE
    placed = _per_index(constant, shape)
    if isinstance(placed, Reason):
        return placed
    axis, numbers = placed
    scale, shift = affine.maps(numbers)
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return Reason.NON_FINITE
    return ChannelAffine(scale, shift, axis)


def _per_index(constant: Array, shape: Sequence[Any] | None) -> tuple[int | None, Array] | Reason:
    """The axis of the data along which the constant varies, and its numbers; no axis where it is one number."""
    wide = [axis for axis, size in enumerate(constant.shape) if size != 1]
    if shape is None:
        return (None, constant.reshape(1)) if not wide and constant.ndim < 2 else Reason.AXIS_UNKNOWN
    offset = len(shape) - constant.ndim
    if offset < 0 or not constant.size:
        return Reason.NOT_PER_CHANNEL
    sizes = {axis: shape[offset + axis] for axis in wide}
    if not all(isinstance(size, int) for size in sizes.values()):
        return Reason.AXIS_UNKNOWN
    if any(size != constant.shape[axis] for axis, size in sizes.items()):
        return Reason.NOT_PER_CHANNEL
    varying = [axis for axis in wide if len(wide) == 1 or (np.ptp(constant, axis=axis) != 0).any()]
    if len(varying) > 1:
        return Reason.NOT_PER_CHANNEL
    if not varying:
        return None, constant.reshape(-1)[:1]
    others = tuple(axis for axis in range(constant.ndim) if axis != varying[0])
    return offset + varying[0], constant.max(axis=others)
