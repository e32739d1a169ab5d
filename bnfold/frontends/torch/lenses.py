"""How torch spells a linear map and a batch norm, and nothing about graphs.

A `Form` says where a linear operator keeps its numbers; `taps_of` and `weight_of` turn a stored weight into the one
view `(group, out, in, tap)` and back. `norm_of` reads the constants of a batch norm. To add an operator: one name in
`calls.py`, one lens in `LENSES`.

**A lens refuses any argument it does not name.**
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from torch import fx

from bnfold.algebra import Array, ChannelAffine
from bnfold.frontends.torch.calls import CONVOLUTIONS, NORMS, TRANSPOSED, Call, words
from bnfold.graph import Reason, batch_norm
from bnfold.window import Window

Shape = tuple[int, ...]
Layout = Literal["conv", "conv_transpose", "matmul", "linear"]

NO_WINDOW = Window()
"""That of a matrix product: no axes, one tap."""


@dataclass(frozen=True)
class Form:
    """Where a linear operator keeps what: the names of its arguments and the layout of its weight.

    `spatial` is the number of axes behind the channel axis (0: the channel axis is the last one). `alpha` scales the
    product and `beta` the bias when the operator runs. `window` is None where the arguments do not tell it.
    """

    layout: Layout
    data: str
    weight: str
    bias: str | None
    groups: int = 1
    spatial: int = 0
    bordered: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    window: Window | None = NO_WINDOW


@dataclass(frozen=True)
class Lens:
    """The arguments that a lens understands, and what it makes of a call whose weight has this shape."""

    known: frozenset[str]
    form: Callable[[Call, Shape], Form | Reason]


def form_of(call: Call, shape: Shape) -> Form | Reason:
    """How the call spells a linear map, or why it is none."""
    lens = LENSES.get(call.operator)
    if lens is None:
        return Reason.NOT_LINEAR
    if set(call.arguments) - lens.known:
        return Reason.UNSUPPORTED_ATTRIBUTE
    return lens.form(call, shape)


def _convolution(call: Call, shape: Shape) -> Form | Reason:
    if len(shape) < 3:
        return Reason.NOT_LINEAR
    transposed = call.operator in TRANSPOSED or bool(call.get("transposed", False))
    return Form(
        layout="conv_transpose" if transposed else "conv",
        data="input",
        weight="weight",
        bias="bias",
        groups=call.get("groups", 1),
        spatial=len(shape) - 2,
        bordered=_spreads(call, shape) if transposed else _pads(call, shape),
        window=_window(call, shape[2:], transposed),
    )


def _window(call: Call, kernel: Shape, transposed: bool) -> Window | None:
    """Where the taps of a convolution sit; another border than zeros, or another way round, is like itself alone."""
    axes = len(kernel)
    stride, dilation = (_per_axis(call.get(name, 1), axes) for name in ("stride", "dilation"))
    padding = call.get("padding", 0)
    before = after = _per_axis(0 if isinstance(padding, str) else padding, axes)
    if stride is None or dilation is None or before is None or after is None:
        return None
    if padding == "same":
        spans = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        before, after = tuple(span // 2 for span in spans), tuple(span - span // 2 for span in spans)
    mode = call.get("padding_mode", "zeros")
    extra = (str(call.get("output_padding", 0)), str(call.get("output_size"))) if transposed else None
    fixed = None if extra is None and (mode == "zeros" or not any(before + after)) else (mode, extra)
    return Window(tuple(kernel), stride, dilation, before, after, fixed)


def _per_axis(value: Any, axes: int) -> Shape | None:
    """One integer per spatial axis, however few were given."""
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    sizes = given * axes if len(given) == 1 else given
    return sizes if len(sizes) == axes and all(type(size) is int for size in sizes) else None


def _pads(call: Call, shape: Shape) -> bool:
    """Whether zeros are added at the border: reflected or repeated data is as affine as the data."""
    padding = call.get("padding", 0)
    if call.get("padding_mode", "zeros") != "zeros" or padding == "valid":
        return False
    return prod(shape[2:]) > 1 if padding == "same" else _differs(padding, 0)


def _spreads(call: Call, shape: Shape) -> bool:
    """Whether outputs of a transposed convolution differ in the taps that they see."""
    reshaped = _differs(call.get("stride", 1), 1) or call.get("output_size") is not None
    return prod(shape[2:]) > 1 or reshaped or _differs((call.get("padding", 0), call.get("output_padding", 0)), 0)


def _differs(amounts: Any, neutral: int) -> bool:
    if isinstance(amounts, (tuple, list)):
        return any(_differs(amount, neutral) for amount in amounts)
    return bool(amounts != neutral)


def _linear(call: Call, shape: Shape) -> Form | Reason:
    return Form("linear", "input", "weight", "bias") if len(shape) == 2 else Reason.NOT_LINEAR


def _addmm(call: Call, shape: Shape) -> Form | Reason:
    alpha, beta = call.get("alpha", 1), call.get("beta", 1)
    if isinstance(alpha, fx.Node) or isinstance(beta, fx.Node):
        return Reason.PARAMETER_NOT_CONSTANT
    return Form("matmul", "mat1", "mat2", "input", alpha=float(alpha), beta=float(beta))


def _product(weight: str) -> Callable[[Call, Shape], Form | Reason]:
    def form(call: Call, shape: Shape) -> Form | Reason:
        return Form("matmul", "input", weight, None) if len(shape) == 2 else Reason.NOT_LINEAR

    return form


_CONVOLUTION = Lens(
    words(
        "input weight bias stride padding dilation groups transposed output_padding output_size padding_mode"
        " benchmark deterministic cudnn_enabled allow_tf32"
    ),
    _convolution,
)

LENSES: dict[str, Lens] = {
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED), _CONVOLUTION),
    "linear": Lens(frozenset({"input", "weight", "bias"}), _linear),
    "addmm": Lens(frozenset({"input", "mat1", "mat2", "alpha", "beta"}), _addmm),
    "mm": Lens(frozenset({"input", "mat2"}), _product("mat2")),
    "matmul": Lens(frozenset({"input", "other"}), _product("other")),
}

WEIGHT_NAMES = {**dict.fromkeys(LENSES, "weight"), "addmm": "mat2", "mm": "mat2", "matmul": "other"}


def channels_of(form: Form, shape: Shape) -> tuple[int, int]:
    """In and out channels of a stored weight of this shape."""
    if form.layout == "conv":
        return shape[1] * form.groups, shape[0]
    if form.layout == "conv_transpose":
        return shape[0], shape[1] * form.groups
    return (shape[1], shape[0]) if form.layout == "linear" else (shape[0], shape[1])


def taps_of(form: Form, weight: Array) -> Array:
    """A stored weight as `(group, out, in, tap)`."""
    if form.layout == "conv":
        return weight.reshape(form.groups, weight.shape[0] // form.groups, weight.shape[1], -1)
    if form.layout == "conv_transpose":
        grouped = weight.reshape(form.groups, weight.shape[0] // form.groups, weight.shape[1], -1)
        return grouped.transpose(0, 2, 1, 3)
    return (weight if form.layout == "linear" else weight.T)[None, :, :, None]


def weight_of(form: Form, taps: Array, kernel: Shape) -> Array:
    """The inverse of `taps_of`, for a kernel of this shape."""
    stored = taps.transpose(0, 2, 1, 3) if form.layout == "conv_transpose" else taps
    if form.layout in ("conv", "conv_transpose"):
        return stored.reshape(stored.shape[0] * stored.shape[1], stored.shape[2], *kernel)
    return taps[0, :, :, 0] if form.layout == "linear" else taps[0, :, :, 0].T


_NORM_ARGUMENTS = words(
    "input weight bias running_mean running_var training eps epsilon momentum exponential_average_factor cudnn_enabled"
)

_MODES = {
    "_batch_norm_with_update": True,
    "_native_batch_norm_legit_no_training": False,
    "_batch_norm_no_update": False,
}


def is_norm(call: Call) -> bool:
    return call.operator in NORMS


def trains(call: Call) -> bool:
    """Whether a batch norm takes, or may take, the statistics of the batch, and so updates the running ones."""
    return _MODES.get(call.operator, call.get("training", False)) is not False


def has_running(call: Call) -> bool:
    """Whether a batch norm is given running statistics."""
    return call.get("running_mean") is not None and call.get("running_var") is not None


def norm_refusal(call: Call) -> Reason | None:
    """Why a batch norm is no fixed map, as far as its arguments tell."""
    if set(call.arguments) - _NORM_ARGUMENTS:
        return Reason.UNSUPPORTED_ATTRIBUTE
    if trains(call) or not has_running(call):
        return Reason.BATCH_STATISTICS
    return None


def norm_of(call: Call, constant: Callable[[Any], Array | Reason]) -> ChannelAffine | Reason:
    """The affine map of a batch norm in evaluation; its channel axis is always 1 in torch."""
    if reason := norm_refusal(call):
        return reason
    mean, variance = constant(call.get("running_mean")), constant(call.get("running_var"))
    if isinstance(mean, Reason) or isinstance(variance, Reason):
        return Reason.PARAMETER_NOT_CONSTANT
    gamma = np.ones_like(mean) if call.get("weight") is None else constant(call.get("weight"))
    beta = np.zeros_like(mean) if call.get("bias") is None else constant(call.get("bias"))
    if isinstance(gamma, Reason) or isinstance(beta, Reason):
        return Reason.PARAMETER_NOT_CONSTANT
    epsilon = call.get("eps", call.get("epsilon", 1e-5))
    if isinstance(epsilon, fx.Node):
        return Reason.PARAMETER_NOT_CONSTANT
    return batch_norm(gamma, beta, mean, variance, float(epsilon))
