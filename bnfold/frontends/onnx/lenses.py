"""A lens says how one operator of ONNX spells a linear operator: reading and writing are then the same for all.

Each function of `SPELLINGS` looks at a node and answers with a `Spelling` or the `Reason` there is none. Gemm's factors
and transposes, ConvTranspose's axis order, an empty bias: they end here, and no rule ever hears of them. A lens refuses
any attribute that it does not name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import onnx_ir as ir

from bnfold.algebra import Array, ChannelAffine, LinearOp, Parameters
from bnfold.frontends.onnx.constants import Constant
from bnfold.frontends.onnx.walking import FLOATS
from bnfold.graph import Reason
from bnfold.graph import batch_norm as statistics_map
from bnfold.window import Window

CONV = frozenset({"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"})
CONV_TRANSPOSE = CONV | {"output_padding", "output_shape"}
GEMM = frozenset({"alpha", "beta", "transA", "transB"})
BATCH_NORM = frozenset({"epsilon", "momentum", "spatial", "training_mode"})


@dataclass(frozen=True)
class Slot:
    """A place for a parameter: an input of a node. `factor` scales the parameter when the node runs."""

    node: ir.Node
    index: int
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Spelling:
    """How a node spells `W x + b`.

    The stored weight, reshaped to `grid`, has the axes (groups, out, in, tap), or (groups, in, out, tap) if `swapped`.
    `bias` is None where the operator has none; `bias_slot` is None where only a new node could hold one. `bias_shape`
    is the shape of a bias that is written. `window` is None where the size of the data decides what a tap sees.
    """

    data: int
    weight_slot: Slot
    weight: Constant
    bias_slot: Slot | None
    bias: Constant | None
    grid: tuple[int, int, int, int]
    swapped: bool
    in_axis: int
    out_axis: int
    bordered: bool
    bias_shape: tuple[int, ...]
    window: Window | None = None

    @property
    def out_channels(self) -> int:
        return self.grid[0] * self.grid[2 if self.swapped else 1]

    @property
    def in_channels(self) -> int:
        return self.grid[0] * self.grid[1 if self.swapped else 2]

    def operator(self) -> LinearOp:
        """The operator it spells."""
        return LinearOp(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            groups=self.grid[0],
            in_axis=self.in_axis,
            out_axis=self.out_axis,
            bordered=self.bordered,
            source=(self.weight, self.bias, self.weight_slot.factor, self.bias_slot and self.bias_slot.factor),
            stored=self._stored,
            window=self.window,
        )

    def _stored(self) -> Parameters:
        taps = self.weight.array().reshape(self.grid)
        if self.swapped:
            taps = taps.swapaxes(1, 2)
        if self.weight_slot.factor != 1:
            taps = taps * self.weight_slot.factor
        return Parameters(taps, self._bias())

    def _bias(self) -> Array:
        if self.bias is None or self.bias_slot is None:
            return np.zeros(self.out_channels)
        flat = self.bias.array().reshape(-1) * self.bias_slot.factor
        return np.broadcast_to(flat, (self.out_channels,))

    def stored(self, taps: Array, kernel: tuple[int, ...]) -> Array:
        """The weight as the node wants it, of the taps: as large as it was, or of another kernel or other channels."""
        swapped = taps.swapaxes(1, 2) if self.swapped else taps
        if swapped.shape == self.grid and kernel in ((), self.weight.shape[2:]):
            return swapped.reshape(self.weight.shape)
        groups, outer, inner, _ = swapped.shape
        leading = () if kernel else (1,) * (len(self.weight.shape) - 2)
        return swapped.reshape(*leading, groups * outer, inner, *kernel)


class Looker(Protocol):
    """What a lens may ask about the surroundings of a node."""

    def constant(self, value: ir.Value) -> Constant | None: ...
    def why_not(self, value: ir.Value) -> Reason: ...
    def rank(self, value: ir.Value) -> int | None: ...
    def shape(self, value: ir.Value) -> tuple[int | str | None, ...] | None: ...
    def dtype(self, value: ir.Value) -> ir.DataType | None: ...
    def version(self, node: ir.Node) -> int: ...
    def added_bias(self, node: ir.Node) -> tuple[Slot, Constant] | None: ...


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute that `refuses` has let through."""
    return node.attributes[name].as_int() if name in node.attributes else default


def real(node: ir.Node, name: str, default: float) -> float:
    """The float32 that the file stores, not the float64 that a program may have put into the model."""
    return float(np.float32(node.attributes[name].as_float() if name in node.attributes else default))


def refuses(node: ir.Node, named: frozenset[str]) -> bool:
    """Whether the node has an attribute that the lens does not name, or one that the caller of a function gives."""
    return any(name not in named or attribute.is_ref() for name, attribute in node.attributes.items())


def parameter(node: ir.Node, index: int, look: Looker) -> Constant | Reason | None:
    """The float constant at an input; None where the input is absent or empty."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    known = look.constant(value)
    if known is None:
        return look.why_not(value)
    return known if known.dtype in FLOATS else Reason.NOT_LINEAR


def _convolution(node: ir.Node, look: Looker, named: frozenset[str], transposed: bool) -> Spelling | Reason:
    weight, bias = parameter(node, 1, look), parameter(node, 2, look)
    if isinstance(weight, Reason) or weight is None:
        return weight or Reason.UNSUPPORTED_ATTRIBUTE
    if isinstance(bias, Reason):
        return bias
    groups, kernel = integer(node, "group", 1), weight.shape[2:]
    shaped = tuple(node.attributes["kernel_shape"].as_ints()) if "kernel_shape" in node.attributes else kernel
    if refuses(node, named) or not kernel or shaped != kernel or groups < 1 or weight.shape[0] % groups:
        return Reason.UNSUPPORTED_ATTRIBUTE
    grid = (groups, weight.shape[0] // groups, weight.shape[1], prod(kernel))
    channels = groups * grid[2] if transposed else weight.shape[0]
    if bias is not None and bias.shape != (channels,):
        return Reason.NOT_PER_CHANNEL
    bordered = _pads(node, kernel) or (transposed and _spreads(node, kernel))
    slots, window = (Slot(node, 1), Slot(node, 2)), _window(node, kernel, transposed)
    return Spelling(0, slots[0], weight, slots[1], bias, grid, transposed, 1, 1, bordered, (channels,), window)


def conv(node: ir.Node, look: Looker) -> Spelling | Reason:
    """Conv: weight (out, in / group, *kernel)."""
    return _convolution(node, look, CONV, transposed=False)


def conv_transpose(node: ir.Node, look: Looker) -> Spelling | Reason:
    """ConvTranspose: weight (in, out / group, *kernel)."""
    return _convolution(node, look, CONV_TRANSPOSE, transposed=True)


def _window(node: ir.Node, kernel: tuple[int, ...], transposed: bool) -> Window | None:
    """Where the taps sit. SAME depends on the size of the data but where the stride is one."""
    axes = len(kernel)
    stride, dilation = (_sizes(node, name, (1,) * axes) for name in ("strides", "dilations"))
    pads = _sizes(node, "pads", (0,) * 2 * axes)
    mode = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if len(stride) != axes or len(dilation) != axes or len(pads) != 2 * axes or any(size < 0 for size in pads):
        return None
    if mode == "VALID":
        pads = (0,) * 2 * axes
    elif mode.startswith("SAME"):
        if transposed or any(step != 1 for step in stride):
            return None
        spans = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        less, more = ([span // 2 for span in spans], [span - span // 2 for span in spans])
        pads = (*less, *more) if mode == "SAME_UPPER" else (*more, *less)
    names = ("output_padding", "output_shape")
    fixed = tuple((name, _sizes(node, name, ())) for name in names) if transposed else None
    return Window(kernel, stride, dilation, pads[:axes], pads[axes:], fixed)


def _sizes(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else default


def _pads(node: ir.Node, kernel: tuple[int, ...]) -> bool:
    same = "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string().startswith("SAME")
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else ()
    return any(pads) or (same and prod(kernel) > 1)


def _spreads(node: ir.Node, kernel: tuple[int, ...]) -> bool:
    """Whether outputs of a ConvTranspose differ in how much of the kernel they see."""
    strides = node.attributes["strides"].as_ints() if "strides" in node.attributes else ()
    extra = node.attributes["output_padding"].as_ints() if "output_padding" in node.attributes else ()
    return prod(kernel) > 1 or any(step != 1 for step in strides) or any(extra) or "output_shape" in node.attributes


def gemm(node: ir.Node, look: Looker) -> Spelling | Reason:
    """Gemm: `alpha A' B' + beta C`, B constant. C may be absent, one number, or one per column."""
    weight, bias = parameter(node, 1, look), parameter(node, 2, look)
    if isinstance(weight, Reason) or weight is None:
        return weight or Reason.UNSUPPORTED_ATTRIBUTE
    if isinstance(bias, Reason):
        return bias
    if refuses(node, GEMM) or len(weight.shape) != 2:
        return Reason.UNSUPPORTED_ATTRIBUTE
    swapped = not integer(node, "transB", 0)
    channels = weight.shape[1 if swapped else 0]
    if bias is not None and not _per_channel(bias.shape, channels, trailing=0, rank=2):
        return Reason.NOT_PER_CHANNEL
    weight_slot, bias_slot = Slot(node, 1, real(node, "alpha", 1.0)), Slot(node, 2, real(node, "beta", 1.0))
    in_axis = 0 if integer(node, "transA", 0) else 1
    grid, data = (1, weight.shape[0], weight.shape[1], 1), node.inputs[0]
    # Where nothing else enforces two axes it must stay: a MatMul in its place would take data of any rank.
    window = None if data is None or look.rank(data) is None else Window()
    return Spelling(0, weight_slot, weight, bias_slot, bias, grid, swapped, in_axis, 1, False, (channels,), window)


def matmul(node: ir.Node, look: Looker) -> Spelling | Reason:
    """MatMul with a constant matrix on the right (channels on the last axis) or on the left (on the last but one)."""
    position = matrix_position(node, look)
    if isinstance(position, Reason):
        return position
    weight, data = parameter(node, position, look), node.inputs[1 - position]
    if not isinstance(weight, Constant) or data is None:
        return weight if isinstance(weight, Reason) else Reason.NOT_LINEAR
    if refuses(node, frozenset()):
        return Reason.UNSUPPORTED_ATTRIBUTE
    if prod(weight.shape[:-2]) != 1 or len(weight.shape) < 2:
        return Reason.NOT_LINEAR
    rank = look.rank(data)
    if rank is None:
        return Reason.AXIS_UNKNOWN
    if rank < 2:
        return Reason.NOT_LINEAR
    back = 1 + (position == 0)
    channels = weight.shape[-1 if position else -2]
    slot, bias = look.added_bias(node) or (None, None)
    grid = (1, weight.shape[-2], weight.shape[-1], 1)
    axes = rank - back, max(rank, len(weight.shape)) - back
    shape, where = (channels,) if position else (channels, 1), Slot(node, position)
    return Spelling(1 - position, where, weight, slot, bias, grid, position == 1, *axes, False, shape, Window())


def matrix_position(node: ir.Node, look: Looker) -> int | Reason:
    """Which operand of a MatMul is the constant matrix."""
    left, right = node.inputs if len(node.inputs) == 2 else (None, None)
    if left is None or right is None:
        return Reason.UNSUPPORTED_ATTRIBUTE
    if look.constant(right):
        return 1
    if look.constant(left):
        return 0
    reasons = [look.why_not(value) for value in (right, left)]
    for reason in (Reason.QUANTISED, Reason.TRAINED):
        if reason in reasons:
            return reason
    stored = right.is_initializer() or left.is_initializer()
    return Reason.PARAMETER_NOT_CONSTANT if stored else Reason.NOT_LINEAR


def is_bias(node: ir.Node, position: int, weight: Constant, bias: Constant, rank: int | None) -> bool:
    """Whether a constant that is added to the result of a MatMul is one number per channel of it."""
    channels = weight.shape[-1 if position else -2]
    same_type = bias.dtype == weight.dtype
    fits = len(bias.shape) <= (max(rank, len(weight.shape)) if rank is not None else 1)
    return (
        same_type and fits and _per_channel(bias.shape, channels, trailing=0 if position else 1, rank=len(bias.shape))
    )


def _per_channel(shape: tuple[int, ...], channels: int, trailing: int, rank: int) -> bool:
    """Whether a constant of this shape is one number per channel, with `trailing` axes behind the channel."""
    if len(shape) > rank:
        return False
    axis = len(shape) - 1 - trailing
    return prod(shape) == 1 or (axis >= 0 and shape[axis] == prod(shape) == channels)


def batch_norm(node: ir.Node, look: Looker) -> ChannelAffine | Reason:
    """BatchNormalization of opset 7 to today, at inference. Its channel axis is 1, data of rank 1 has one channel."""
    version, data = look.version(node), node.inputs[0]
    if version < 7:
        return Reason.OLD_OPSET
    if refuses(node, BATCH_NORM) or integer(node, "spatial", 1) != 1 or len(node.inputs) != 5:
        return Reason.UNSUPPORTED_ATTRIBUTE
    if reason := _mode(node, version):
        return reason
    found = [parameter(node, index, look) for index in range(1, 5)]
    constants = [known for known in found if isinstance(known, Constant)]
    if len(constants) < 4:
        return next((reason for reason in found if isinstance(reason, Reason)), Reason.UNSUPPORTED_ATTRIBUTE)
    gamma, beta, mean, variance = (known.array() for known in constants)
    rank = None if data is None else look.rank(data)
    if rank is not None and rank < 2 and gamma.size != 1:
        return Reason.NOT_PER_CHANNEL
    return statistics_map(gamma, beta, mean, variance, real(node, "epsilon", 1e-5))


def _mode(node: ir.Node, version: int) -> Reason | None:
    """Before opset 14 it is the outputs that decide: whoever names the statistics normalises by the batch."""
    extra = [output for output in node.outputs[1:] if output.name]
    if version < 14:
        return Reason.BATCH_STATISTICS if extra else None
    if integer(node, "training_mode", 0):
        return Reason.BATCH_STATISTICS
    used = any(output.uses() or output.is_graph_output() for output in extra)
    return Reason.EXTRA_OUTPUTS if used else None


SPELLINGS: Mapping[str, Callable[[ir.Node, Looker], Spelling | Reason]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
}
