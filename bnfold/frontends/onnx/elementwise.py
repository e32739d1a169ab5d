"""Add, Sub, Mul, Div by a constant, and Neg: an affine map, where the constant is one number per channel.

Which operand is the constant one, and along which axis of the data it varies. An operator that would broadcast its data
is no affine: without it the result had another shape. So sizes and ranks must be known, not only look alike.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from bnfold.algebra import Array, ChannelAffine
from bnfold.frontends.onnx.constants import Constant
from bnfold.frontends.onnx.lenses import Looker
from bnfold.frontends.onnx.walking import FLOATS
from bnfold.graph import Reason

OLDEST = 7
OPERATORS = ("Add", "Sub", "Mul", "Div", "Neg")


def data_port(node: ir.Node, look: Looker) -> int | None:
    """The only operand that is known at run time; None where the operator is no affine map of it."""
    constants = [None if value is None else look.constant(value) for value in node.inputs]
    if None in node.inputs or sum(constant is None for constant in constants) != 1:
        return None
    port = constants.index(None)
    if node.op_type == "Neg":
        data = node.inputs[port]
        return port if data is not None and look.dtype(data) in FLOATS else None
    other = constants[1 - port] if len(constants) == 2 else None
    divides_by_data = node.op_type == "Div" and port == 1
    return port if other is not None and other.dtype in FLOATS and not divides_by_data else None


def affine(node: ir.Node, port: int, look: Looker) -> ChannelAffine | Reason:
    """The map of a node of which `data_port` says where its data is."""
    if look.version(node) < OLDEST:
        return Reason.OLD_OPSET
    data = node.inputs[port]
    if node.attributes or data is None:
        return Reason.UNSUPPORTED_ATTRIBUTE
    if node.op_type == "Neg":
        return ChannelAffine(-np.ones(1), np.zeros(1), None)
    other = node.inputs[1 - port]
    constant = None if other is None else look.constant(other)
    assert constant is not None, "one operand is constant"
    axis = _axis(constant, look.shape(data))
    if isinstance(axis, Reason):
        return axis
    scale, shift = _numbers(node.op_type, constant.array().reshape(-1), first=port == 1)
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return Reason.NON_FINITE
    return ChannelAffine(scale, shift, axis)


def _axis(constant: Constant, shape: tuple[int | str | None, ...] | None) -> int | Reason | None:
    """The axis of the data along which the constant varies; None for one number."""
    if shape is None:
        return None if constant.shape == () else Reason.AXIS_UNKNOWN
    if len(constant.shape) > len(shape):
        return Reason.NOT_PER_CHANNEL
    varying = [axis for axis, size in enumerate(constant.shape) if size != 1]
    if not varying:
        return None
    axis = varying[0] + len(shape) - len(constant.shape)
    if shape[axis] == constant.shape[varying[0]] == prod(constant.shape) > 0:
        return axis
    return Reason.NOT_PER_CHANNEL if len(varying) > 1 or isinstance(shape[axis], int) else Reason.AXIS_UNKNOWN


def _numbers(op_type: str, constant: Array, first: bool) -> tuple[Array, Array]:
    """Scale and shift; `first` says that the constant is the first operand."""
    one, zero = np.ones_like(constant), np.zeros_like(constant)
    match op_type:
        case "Add":
            return one, constant
        case "Sub":
            return (-one, constant) if first else (one, -constant)
        case "Mul":
            return constant, zero
        case _:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                return one / constant, zero
