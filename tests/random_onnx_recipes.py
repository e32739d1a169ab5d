"""What a random ONNX model is made of: one recipe per kind of operator, with the attributes that matter to an affine.

A recipe adds a few nodes to a `Scope` and returns its value, or raises `Undrawable` where it fits nothing there.
`LINEAR`, `AFFINE`, `PASSAGE` and `OTHER` say what is drawn and how often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from random_onnx_scope import Scope, Undrawable, Value

Recipe = Callable[[Scope], Value]


# linear operators


def _kernel(s: Scope, sizes: Sequence[int]) -> tuple[list[int], dict[str, Any]]:
    kernel = [s.size(1, 1 if s.maybe(0.45) else 3) for _ in sizes]
    more: dict[str, Any] = {}
    if s.maybe(0.2):
        more["auto_pad"] = s.one("SAME_UPPER", "SAME_LOWER", "VALID")
    elif s.maybe(0.4):
        more["pads"] = [s.size(0, 1) for _ in range(2 * len(sizes))]
    if s.maybe(0.3):
        more["strides"] = [s.size(1, 2) for _ in sizes]
    if s.maybe(0.2) and "auto_pad" not in more:
        more["dilations"] = [s.size(1, 2) for _ in sizes]
    return kernel, more


def convolution(s: Scope) -> Value:
    """Conv or ConvTranspose of rank 1 to 3."""
    x = s.pick(lambda value: 3 <= value.rank <= 5)
    channels, transposed = x.shape[1], s.maybe(0.3)
    groups = s.one(1, 1, channels, s.one(*[each for each in range(1, channels + 1) if channels % each == 0]))
    made = channels if s.maybe(0.3) else s.size(1, max(1, 6 // groups)) * groups
    kernel, more = _kernel(s, x.shape[2:])
    if transposed and s.maybe(0.3) and "strides" in more:
        more["output_padding"] = [s.size(0, step - 1) for step in more["strides"]]
    if s.maybe(0.5) or groups > 1:
        more["group"] = groups
    if s.maybe(0.5):
        more["kernel_shape"] = kernel
    shape = (channels, made // groups, *kernel) if transposed else (made, channels // groups, *kernel)
    inputs = [x, s.constant(s.numbers(*shape), x.dtype, "w")]
    if s.maybe(0.5):
        inputs.append(s.constant(s.numbers(made), x.dtype, "b"))
    elif s.maybe(0.1) and s.opset >= 9:
        zeros = s.node("Expand", s.constant(0.0, x.dtype), s.integers(made))
        inputs.append(zeros)
    return s.node("ConvTranspose" if transposed else "Conv", *inputs, channel=1, **more)


def gemm(s: Scope) -> Value:
    """Gemm with every attribute and every shape of C."""
    x = s.pick(lambda value: value.rank == 2)
    more: dict[str, Any] = {name: s.one(0.5, 2.0, -1.0) for name in ("alpha", "beta") if s.maybe(0.3)}
    more |= {name: 1 for name in ("transA", "transB") if s.maybe(0.3)}
    rows, inner = x.shape[::-1] if "transA" in more else x.shape
    made = inner if s.maybe(0.3) else s.size(1, 6)
    weight = s.constant(s.numbers(*((made, inner) if "transB" in more else (inner, made))), x.dtype, "w")
    if s.maybe(0.3) and s.opset >= 11:
        return s.node("Gemm", x, weight, channel=1, **more)
    shape = s.one((made,), (made,), (1, made), (rows, 1), (), (1,), (rows, made))
    return s.node("Gemm", x, weight, s.constant(s.numbers(*shape), x.dtype, "b"), channel=1, **more)


def matmul(s: Scope) -> Value:
    """MatMul with a constant on either side, with a bias or without."""
    x = s.pick(lambda value: value.rank >= 1)
    left, made = s.maybe(0.25), x.shape[-1] if s.maybe(0.3) and x.rank else s.size(1, 6)
    if left and x.rank < 2:
        raise Undrawable("matmul")
    shape = (made, x.shape[-2]) if left else (x.shape[-1], made)
    if s.maybe(0.15):
        shape = (s.one(1, x.shape[0], 2), *shape)
    weight = s.constant(s.numbers(*shape), x.dtype, "w")
    y = s.node("MatMul", *((weight, x) if left else (x, weight)), channel=x.rank - (2 if left else 1))
    if s.maybe(0.5):
        return y
    bias = s.constant(s.numbers(*s.one((made, 1) if left else (made,), broadcastable(s, y.shape))), x.dtype, "b")
    return s.node("Add", *((bias, y) if s.maybe(0.3) else (y, bias)), channel=y.channel)


def linear(s: Scope) -> Value:
    """One of the three."""
    return s.one(convolution, convolution, convolution, gemm, matmul)(s)


# affines


def batch_norm(s: Scope) -> Value:
    """BatchNormalization at inference."""
    x = s.pick(lambda value: value.rank >= 2)
    channels = x.shape[1]
    dtype = TensorProto.FLOAT if s.opset >= 15 and s.maybe(0.4) else x.dtype
    arrays = (s.scales([channels]), s.shifts([channels]), s.shifts([channels]), s.random.uniform(0.3, 2, channels))
    more: dict[str, Any] = {"epsilon": s.one(1e-3, 0.1, 1e-8)} if s.maybe(0.3) else {}
    more |= {"momentum": 0.7} if s.maybe(0.1) else {}
    more |= {"training_mode": 0} if s.maybe(0.1) and s.opset >= 14 else {}
    more |= {"spatial": 1} if s.maybe(0.1) and s.opset < 9 else {}
    gamma, beta, mean = (s.constant(array, dtype, "s") for array in arrays[:3])
    variance = s.constant(arrays[3], dtype, "v")
    return s.node("BatchNormalization", x, gamma, beta, mean, variance, channel=1, **more)


def broadcastable(s: Scope, shape: Sequence[int]) -> tuple[int, ...]:
    """Any shape that broadcasts to this one, at times one that data of size one is broadcast to."""
    found = [s.one(1, size) if size > 1 or s.maybe(0.85) else s.size(1, 3) for size in shape]
    return tuple(found[s.size(0, len(found)) :])


def _constant_shape(s: Scope, x: Value) -> tuple[int, ...]:
    chance = s.random.random()
    if chance < 0.15 or not x.rank:
        return (1,) * s.size(0, x.rank)
    if chance < 0.3:
        return broadcastable(s, x.shape)
    if chance < 0.35:
        return (1, *broadcastable(s, x.shape)[-x.rank :]) if s.maybe(0.5) else (1,) * (x.rank + 1)
    axis = x.channel if x.channel is not None and s.maybe(0.85) else s.size(0, x.rank - 1)
    shape = [1] * x.rank
    shape[axis] = x.shape[axis]
    return tuple(shape[axis if s.maybe(0.5) else 0 :])


def elementwise(s: Scope) -> Value:
    """Add, Sub, Mul or Div with a constant in either place, or Neg."""
    x = s.pick()
    op = s.one("Add", "Sub", "Mul", "Mul", "Div", "Neg")
    if op == "Neg":
        return s.node("Neg", x, channel=x.channel)
    shape = _constant_shape(s, x)
    numbers = s.scales(shape) if op in ("Mul", "Div") else s.shifts(shape)
    if op == "Div":
        numbers = np.where(numbers == 0, 1.0, numbers)
    constant = s.constant(numbers, x.dtype, "k")
    first = s.maybe(0.35) and (op != "Div" or s.maybe(0.3))
    return s.node(op, *((constant, x) if first else (x, constant)), channel=x.channel)


def by_hand(s: Scope) -> Value:
    """A batch norm in five operators, the constant ones computed by the graph."""
    x = s.pick(lambda value: value.rank >= 2)
    axis = x.channel if x.channel is not None else 1
    shape = [1] * x.rank
    shape[axis] = x.shape[axis]
    shape = shape[axis:] if s.maybe(0.5) else shape
    mean, gamma, beta = (
        s.constant(array, x.dtype, "h") for array in (s.numbers(*shape), s.scales(shape), s.shifts(shape))
    )
    variance = s.constant(s.random.uniform(0.3, 2, shape), x.dtype, "v")
    deviation = s.node("Sqrt", s.node("Add", variance, s.constant(1e-5, x.dtype)))
    y = s.node("Sub", x, mean, channel=axis)
    y = s.node("Div", y, deviation, channel=axis) if s.maybe(0.5) else _times_reciprocal(s, y, deviation)
    return s.node("Add", s.node("Mul", gamma, y, channel=axis), beta, channel=axis)


def _times_reciprocal(s: Scope, y: Value, deviation: Value) -> Value:
    return s.node("Mul", y, s.node("Reciprocal", deviation), channel=y.channel)


# passages


def plain(s: Scope) -> Value:
    """Identity, Dropout, Cast between floats."""
    x = s.pick()
    op = s.one("Identity", "Dropout", "Cast")
    if op == "Dropout":
        count = s.one(1, 1, 2) if s.opset >= 10 else 1
        more = {"ratio": 0.3} if s.opset < 12 and s.maybe(0.5) else {}
        made = s.several("Dropout", x, count=1, channel=x.channel, **more)[0]
        if count == 2:
            s.nodes[-1].output.append(s.settings.fresh("mask"))
        return made
    if op == "Cast":
        return s.node(
            "Cast", x, channel=x.channel, to=s.one(x.dtype, TensorProto.FLOAT, TensorProto.DOUBLE, s.settings.dtype)
        )
    return s.node("Identity", x, channel=x.channel)


def transpose(s: Scope) -> Value:
    x = s.pick(lambda value: value.rank >= 2)
    order = [int(axis) for axis in s.random.permutation(x.rank)]
    if s.maybe(0.3):
        order = list(range(x.rank))
        order[-1], order[-2] = order[-2], order[-1]
    twins = [axis for axis, size in enumerate(x.shape) if x.channel not in (None, axis) and size == x.shape[x.channel]]
    if twins and s.maybe(0.6):  # a mistaken axis is refused unless sizes coincide
        twin, order = s.one(*twins), list(range(x.rank))
        order[x.channel], order[twin] = twin, x.channel
        return s.node("Transpose", x, perm=order, channel=s.one(x.channel, twin))
    if s.maybe(0.1):
        return s.node("Transpose", x, channel=None if x.channel is None else x.rank - 1 - x.channel)
    return s.node("Transpose", x, perm=order, channel=None if x.channel is None else order.index(x.channel))


def _new_shape(s: Scope, shape: Sequence[int]) -> list[int]:
    """The sizes with neighbours merged, sizes split, and ones put in or left out."""
    sizes = list(shape)
    for _ in range(s.size(1, 3)):
        place, what = s.size(0, max(len(sizes) - 1, 0)), s.size(0, 3)
        if what == 0 and place + 1 < len(sizes):
            sizes[place : place + 2] = [sizes[place] * sizes[place + 1]]
        elif what == 1 and sizes:
            divisors = [each for each in range(1, sizes[place] + 1) if sizes[place] % each == 0]
            first = s.one(*divisors)
            sizes[place : place + 1] = [first, sizes[place] // first]
        elif what == 2 and sizes:
            sizes = [prod(sizes[:place]), *sizes[place:]] if place else [*sizes[:1], prod(sizes[1:])]
        elif 1 in sizes and s.maybe(0.5):
            sizes.remove(1)
    return sizes[:6]


def reshape(s: Scope) -> Value:
    x = s.pick(lambda value: value.rank >= 1)
    sizes = _new_shape(s, x.shape)
    if prod(sizes) != x.array.size or len(sizes) > 5 or not sizes:
        raise Undrawable("reshape")
    channel = next(
        (axis for axis, size in enumerate(sizes) if x.channel is not None and size == x.shape[x.channel]), None
    )
    wanted = [
        0 if s.maybe(0.5) and axis < x.rank and size == x.shape[axis] else size for axis, size in enumerate(sizes)
    ]
    if s.maybe(0.5):
        wanted[s.size(0, len(sizes) - 1)] = -1
    if s.maybe(0.2) and wanted[0] != -1 and sizes[0] == x.shape[0] and s.opset >= 10:
        return s.node("Reshape", x, _computed_shape(s, x, wanted), channel=channel)
    return s.node("Reshape", x, s.integers(*wanted), channel=channel)


def _computed_shape(s: Scope, x: Value, wanted: Sequence[int]) -> Value:
    """The first size measured by the graph, as exporters write it."""
    batch = s.node("Gather", replace(s.node("Shape", x), dtype=TensorProto.INT64), s.integers(0))
    for value in s.values[-2:]:
        s.values.remove(value)
        s.constants.append(replace(value, dtype=TensorProto.INT64))
    rest = s.integers(*[x.shape[axis + 1] if size == 0 else size for axis, size in enumerate(wanted[1:])] or [1])
    return s.node("Concat", replace(batch, dtype=TensorProto.INT64), rest, axis=0)


def flatten(s: Scope) -> Value:
    x = s.pick(lambda value: value.rank >= 2)
    low = -x.rank if s.opset >= 11 else 0
    return s.node("Flatten", x, channel=1, **({"axis": s.size(low, x.rank)} if s.maybe(0.4) else {}))


def _with_axes(s: Scope, op: str, x: Value, axes: Sequence[int], since: int, channel: int | None, **more: Any) -> Value:
    """An operator whose axes became an input with an opset."""
    if s.opset < since:
        return s.node(op, x, channel=channel, axes=list(axes), **more)
    return s.node(op, x, s.integers(*axes), channel=channel, **more)


def squeeze(s: Scope) -> Value:
    x = s.pick(lambda value: 1 in value.shape and value.rank > 1)
    axes = [axis for axis, size in enumerate(x.shape) if size == 1 and s.maybe(0.7)]
    if not axes:
        return s.node("Squeeze", x)
    channel = None if x.channel is None or x.channel in axes else x.channel - sum(axis < x.channel for axis in axes)
    given = [axis - x.rank if s.maybe(0.3) and s.opset >= 11 else axis for axis in axes]
    return _with_axes(s, "Squeeze", x, given, 13, channel)


def unsqueeze(s: Scope) -> Value:
    x = s.pick(lambda value: value.rank < 5)
    axis = s.size(0, x.rank)
    channel = None if x.channel is None else x.channel + (axis <= x.channel)
    return _with_axes(s, "Unsqueeze", x, [axis - x.rank - 1 if s.maybe(0.3) and s.opset >= 11 else axis], 13, channel)


def cut(s: Scope) -> Value:
    """Slice."""
    x = s.pick(lambda value: value.rank >= 1)
    axis = _axis(s, x)
    size = x.shape[axis]
    start, end, step = s.size(-size, size - 1), s.one(s.size(-size, size), 1 << 60), s.one(1, 1, 2)
    if s.maybe(0.3) and s.opset >= 10:
        start, end, step = s.one(-1, size - 1), s.one(-(1 << 60), -size - 1, 0), s.one(-1, -2)
    named = axis - x.rank if s.maybe(0.3) and s.opset >= 10 else axis
    if s.opset < 10:
        return s.node("Slice", x, channel=x.channel, starts=[start], ends=[end], axes=[axis])
    inputs = [s.integers(number) for number in (start, end, named, step)]
    return s.node("Slice", x, *inputs[: 3 if step == 1 else 4], channel=x.channel)


def _axis(s: Scope, x: Value) -> int:
    return x.channel if x.channel is not None and s.maybe(0.5) else s.size(0, x.rank - 1)


def split(s: Scope) -> Value:
    """Split; often each piece goes its own way and all are joined again."""
    x = s.pick(lambda value: value.rank >= 1 and max(value.shape) > 1)
    axis = _axis(s, x)
    size = x.shape[axis]
    if size < 2:
        raise Undrawable("split")
    first = s.size(1, size - 1)
    sizes = [first, size - first] if size < 3 or s.maybe(0.6) else [1, 1, size - 2]
    inputs: list[Value] = [x]
    more: dict[str, Any] = {"axis": axis - x.rank if s.maybe(0.3) and s.opset >= 11 else axis}
    if size % 2 == 0 and s.maybe(0.3):
        sizes = [size // 2, size // 2]
        more |= {"num_outputs": 2} if s.opset >= 18 else {"split": sizes} if s.opset < 13 else {}
        inputs += [s.integers(*sizes)] if 13 <= s.opset < 18 else []
    elif s.opset < 13:
        more["split"] = sizes
    else:
        inputs.append(s.integers(*sizes))
    pieces = s.several("Split", *inputs, count=len(sizes), channel=x.channel, **more)
    treat = s.one(_light, _mixing, _mixing, _scaled, lambda _, piece: piece)
    pieces = [treat(s, piece) for piece in pieces]
    return s.node("Concat", *pieces, axis=axis, channel=x.channel) if s.maybe(0.7) else s.one(*pieces)


def _light(s: Scope, x: Value) -> Value:
    """The value, or an affine or another operator of its shape on it."""
    treat = s.one(_scaled, _mixing, lambda *_: s.node("Relu", x, channel=x.channel), lambda *_: x)
    return treat(s, x)


def _scaled(s: Scope, x: Value) -> Value:
    return s.node("Mul", x, s.constant(s.scales(()), x.dtype, "k"), channel=x.channel)


def _mixing(s: Scope, x: Value) -> Value:
    """A linear operator that keeps the shape."""
    if x.rank < 2:
        raise Undrawable("mixing")
    if x.rank > 2 and s.maybe(0.7):
        weight = s.constant(s.numbers(x.shape[1], x.shape[1], *[1] * (x.rank - 2)), x.dtype, "w")
        return s.node("Conv", x, weight, channel=1)
    weight = s.constant(s.numbers(x.shape[-1], x.shape[-1]), x.dtype, "w")
    return s.node("MatMul", x, weight, channel=x.rank - 1)


def _sibling(s: Scope, x: Value) -> Value:
    """What the operator that made the value makes with another weight."""
    maker = next((node for node in s.nodes if x.name in node.output), None)
    if maker is None or maker.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return _mixing(s, x)
    known = {each.name: each for scope in s._chain() for each in (*scope.values, *scope.constants)}
    inputs = [known[name] for name in maker.input]
    place = next((index for index, each in enumerate(inputs) if each not in s.values), 1)
    inputs[place] = s.constant(s.numbers(*inputs[place].shape), inputs[place].dtype, "w")
    attributes = {each.name: helper.get_attribute_value(each) for each in maker.attribute}
    return s.node(maker.op_type, *inputs, channel=x.channel, **attributes)


def gather(s: Scope) -> Value:
    x = s.pick(lambda value: value.rank >= 1)
    axis = _axis(s, x)
    size = x.shape[axis]
    if s.maybe(0.3):
        number = s.constant(np.array(s.size(-size if s.opset >= 11 else 0, size - 1)), TensorProto.INT64, "i")
        channel = None if x.channel in (None, axis) else x.channel - (axis < x.channel)
        return s.node("Gather", x, number, axis=axis, channel=channel)
    index = s.random.permutation(size) if s.maybe(0.5) else s.random.integers(0, size, s.size(1, 4))
    return s.node("Gather", x, s.integers(*map(int, index)), axis=axis, channel=x.channel)


def pool(s: Scope) -> Value:
    x = s.pick(lambda value: 3 <= value.rank <= 5)
    kernel, more = _kernel(s, x.shape[2:])
    average = s.maybe(0.5)
    if average and s.maybe(0.4):
        more["count_include_pad"] = 1
    if s.maybe(0.25) and s.opset >= 10 and "auto_pad" not in more:
        more["ceil_mode"] = 1
    if s.opset < (19 if average else 10):
        more.pop("dilations", None)
    if "pads" in more:
        more["pads"] = [min(pad, size - 1) for pad, size in zip(more["pads"], kernel * 2, strict=True)]
    return s.node("AveragePool" if average else "MaxPool", x, channel=x.channel, kernel_shape=kernel, **more)


def global_pool(s: Scope) -> Value:
    x = s.pick(lambda value: value.rank >= 3)
    return s.node(s.one("GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool"), x, channel=x.channel)


def reduced(s: Scope) -> Value:
    x = s.pick(lambda value: value.rank >= 2)
    op = s.one("ReduceMean", "ReduceMean", "ReduceMax", "ReduceSum")
    axes = sorted({s.size(0, x.rank - 1) for _ in range(s.size(1, 2))})
    if s.maybe(0.6) and x.rank > 2:
        axes = list(range(2, x.rank))
    keep = s.one(0, 1)
    channel = None if x.channel is None or x.channel in axes else x.channel
    if channel is not None and not keep:
        channel -= sum(axis < channel for axis in axes)
    given = [axis - x.rank if s.maybe(0.3) and s.opset >= 11 else axis for axis in axes]
    if s.maybe(0.08):
        return s.node(op, x, keepdims=keep)
    return _with_axes(s, op, x, given, 13 if op == "ReduceSum" else 18, channel, keepdims=keep)


def resize(s: Scope) -> Value:
    x = s.pick(lambda value: 3 <= value.rank <= 4)
    scales = [1.0, 1.0, *(s.one(1.0, 2.0, 0.5, 1.5) for _ in x.shape[2:])]
    if s.maybe(0.1):
        scales[s.size(0, 1)] = 2.0
    mode = s.one("nearest", "linear")
    if s.opset < 9:
        return s.node("Upsample", x, channel=x.channel, mode=mode, scales=scales)
    given = s.constant(np.array(scales), TensorProto.FLOAT, "r")
    if s.opset < 11:
        return s.node("Upsample" if s.opset < 10 else "Resize", x, given, channel=x.channel, mode=mode)
    more: dict[str, Any] = {"mode": mode}
    where = s.one("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_crop_and_resize", None)
    more |= {"coordinate_transformation_mode": where} if where else {}
    more |= {"nearest_mode": s.one("floor", "ceil", "round_prefer_ceil")} if s.maybe(0.3) and mode == "nearest" else {}
    region = s.constant(np.zeros(0), TensorProto.FLOAT, "r") if s.opset < 13 else None
    if where == "tf_crop_and_resize":
        ends = [1.0 if scale == 1 else 1.3 for scale in scales]
        region = s.constant(np.array([0.0] * x.rank + ends), TensorProto.FLOAT, "r")
        more["extrapolation_value"] = s.one(0.0, 2.0)
    if s.maybe(0.3):
        sizes = s.integers(*[int(size * scale) for size, scale in zip(x.shape, scales, strict=True)])
        return s.node(
            "Resize",
            x,
            region,
            None if s.opset >= 13 else s.constant(np.zeros(0), TensorProto.FLOAT),
            sizes,
            channel=x.channel,
            **more,
        )
    return s.node("Resize", x, region, given, channel=x.channel, **more)


def rectified(s: Scope) -> Value:
    x = s.pick()
    op = s.one("Relu", "Relu", "LeakyRelu", "PRelu")
    if op == "LeakyRelu":
        return s.node(op, x, channel=x.channel, **({"alpha": s.one(0.3, -0.5)} if s.maybe(0.6) else {}))
    if op == "PRelu":
        slopes = [
            each if each == x.shape[axis - len(x.shape)] else 1 for axis, each in enumerate(_constant_shape(s, x))
        ]
        return s.node(
            op, x, s.constant(s.numbers(*slopes[-x.rank :] if x.rank else ()), x.dtype, "p"), channel=x.channel
        )
    return s.node(op, x, channel=x.channel)


def padded(s: Scope) -> Value:
    x = s.pick(lambda value: value.rank >= 2)
    modes = ["constant", "constant", "edge", "reflect", *(["wrap"] if s.opset >= 19 else [])]
    mode = s.one(*modes)
    first = 0 if s.maybe(0.1) else min(2, x.rank - 1)
    room = [size - 1 if mode == "reflect" else size for size in x.shape]
    pads = [s.size(0, min(1, room[axis])) if axis >= first else 0 for axis in range(x.rank)] * 2
    if s.maybe(0.1) and mode == "constant" and x.shape[-1] > 2:
        pads[-1] = -1
    more: dict[str, Any] = {"mode": mode} if mode != "constant" or s.maybe(0.5) else {}
    value = s.one(None, 0.0, 0.75)
    if s.opset < 11:
        more |= {"value": value} if value is not None else {}
        return s.node("Pad", x, channel=x.channel, pads=pads, **more)
    inputs = [s.integers(*pads)]
    if s.opset >= 18 and s.maybe(0.3):
        half = x.rank
        inputs = (
            [s.integers(*pads[2:half], *pads[half + 2 :]), None, s.integers(*range(2, half))]
            if half > 2 and not any(pads[:2])
            else inputs
        )
    if value is not None:
        fill = s.constant(value, x.dtype)
        inputs[1:2] = [fill]
    return s.node("Pad", x, *inputs, channel=x.channel, **more)


# joins


def _partner(s: Scope, x: Value) -> Value:
    """A value that goes together with another: of the same shape, or broadcast to it."""
    alike = [each for each in s.values if each.shape == x.shape and each.dtype == x.dtype]
    what = s.size(0, 7)
    if what == 0 and len(alike) > 1:
        return s.one(*alike)
    if what == 1 and x.rank >= 3:
        return s.node("GlobalAveragePool", x, channel=x.channel)
    if what == 2:
        fitting = [each for each in s.values if each.dtype == x.dtype and _fits(each.shape, x.shape)]
        return s.one(*fitting)
    return _light(s, x) if what == 3 else _mixing(s, x) if what == 4 else _sibling(s, x)


def _fits(shape: Sequence[int], onto: Sequence[int]) -> bool:
    try:
        return np.broadcast_shapes(shape, onto) is not None
    except ValueError:
        return False


def added(s: Scope) -> Value:
    x = s.pick()
    other = _partner(s, x)
    op = s.one("Add", "Add", "Sub", "Sum")
    terms = [x, other] if s.maybe(0.6) else [other, x]
    if op == "Sum" and s.opset >= 8 and s.maybe(0.5):
        terms.append(_partner(s, x))
    return s.node("Add" if op == "Sum" and s.opset < 8 else op, *terms, channel=_hint(terms))


def _hint(terms: Sequence[Value]) -> int | None:
    """The likely channel axis of a broadcast result."""
    widest = max(terms, key=lambda term: (term.rank, term.channel is not None))
    return widest.channel


def gated(s: Scope) -> Value:
    x = s.pick()
    other = _partner(s, x)
    if s.maybe(0.5):
        other = s.node("Sigmoid", other, channel=other.channel)
    terms = [x, other] if s.maybe(0.6) else [other, x]
    return s.node(s.one("Mul", "Mul", "Div"), *terms, channel=_hint(terms))


def product(s: Scope) -> Value:
    """A matrix product of two run-time values."""
    x = s.pick(lambda value: value.rank >= 2)
    order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    other = s.node("Transpose", _partner(s, x), perm=order)
    return s.node("MatMul", *((x, other) if s.maybe(0.5) else (other, x)))


def concat(s: Scope) -> Value:
    x = s.pick(lambda value: value.rank >= 1)
    parts = [x, *(_partner(s, x) for _ in range(s.size(1, 2)))]
    parts = [parts[int(index)] for index in s.random.permutation(len(parts))]
    axis = _axis(s, x)
    return s.node("Concat", *parts, axis=axis - x.rank if s.maybe(0.3) and s.opset >= 11 else axis, channel=x.channel)


def opaque(s: Scope) -> Value:
    x = s.pick()
    op = s.one("Sigmoid", "Tanh", "Exp", "Softmax", "Clip")
    if op == "Softmax":
        return s.node(op, x, channel=x.channel, **({"axis": s.size(0, x.rank - 1)} if x.rank else {}))
    if op == "Clip" and s.opset < 11:
        return s.node(op, x, channel=x.channel, min=-1.0, max=1.0)
    inputs = [s.constant(-1.0, x.dtype), s.constant(1.0, x.dtype)] if op == "Clip" else []
    return s.node(op, x, *inputs, channel=x.channel)


# bodies


def branches(s: Scope) -> Value:
    """An If whose bodies capture a value of the graph."""
    if s.kind != "graph":
        raise Undrawable("if")
    x = s.pick()
    bodies = [_body(s, x) for _ in range(2)]
    flag = next(each for each in s.constants if each.name == "flag")
    y = s.node("If", flag, channel=x.channel, then_branch=bodies[0], else_branch=bodies[1])
    s.constants.remove(y)
    s.values.append(replace(y, dtype=x.dtype))
    return s.values[-1]


def _body(s: Scope, x: Value) -> onnx.GraphProto:
    body = Scope(s.settings, "body", s)
    y = body.node("Identity", x, channel=x.channel) if s.maybe(0.3) else x
    for _ in range(s.size(1, 3)):
        body.values = [each for each in body.values if each.name == y.name] or body.values
        y = _same_shape(body, y)
    output = helper.make_tensor_value_info(y.name, y.dtype, [None] * y.rank)
    return helper.make_graph(body.nodes, s.settings.fresh("body"), [], [output], body.stored)


def _same_shape(s: Scope, x: Value) -> Value:
    shape = [1] * x.rank
    channel = x.channel if x.channel is not None else (1 if x.rank > 1 else None)
    if channel is not None:
        shape[channel] = x.shape[channel]
    kind = s.size(0, 3)
    if kind == 0 and x.rank >= 3:
        weight = s.constant(s.numbers(x.shape[1], x.shape[1], *[1] * (x.rank - 2)), x.dtype, "w")
        return s.node("Conv", x, weight, channel=1)
    if kind == 1 and x.rank >= 2:
        arrays = [
            s.constant(each, x.dtype, "s") for each in (s.scales([x.shape[1]]), *(s.shifts([x.shape[1]]) for _ in "bm"))
        ]
        return s.node(
            "BatchNormalization", x, *arrays, s.constant(s.random.uniform(0.3, 2, x.shape[1]), x.dtype, "v"), channel=1
        )
    if kind == 2:
        return s.node("Relu", x, channel=x.channel)
    return s.node("Mul", x, s.constant(s.scales(shape), x.dtype, "k"), channel=x.channel)


def called(s: Scope) -> Value:
    """A function of the model, called once or twice; at times it is given its weights."""
    if s.kind != "graph":
        raise Undrawable("call")
    x = s.pick(lambda value: value.rank >= 2)
    body = Scope(s.settings, "function", s)
    given = replace(x, name=s.settings.fresh("arg"))
    body.values.append(given)
    scale = s.constant(s.scales((x.shape[-1],)), x.dtype, "k") if s.maybe(0.4) else None
    y = given
    if scale is not None:
        passed = replace(scale, name=s.settings.fresh("arg"))
        body.values.append(passed)
        y = body.node("Mul", y, passed, channel=x.channel)
    for _ in range(s.size(2, 3)):
        y = _same_shape(body, y)
    name = s.settings.fresh("Local")
    arguments = [each.name for each in body.values[: 1 + (scale is not None)]]
    opsets = [helper.make_opsetid("", s.opset)]
    s.settings.functions.append(helper.make_function("local", name, arguments, [y.name], body.nodes, opsets))
    inputs = [x] if scale is None else [x, scale]
    z = s.node(name, *inputs, domain="local", channel=x.channel)
    return s.node(name, z, *inputs[1:], domain="local", channel=x.channel) if s.maybe(0.3) else z


LINEAR: dict[Recipe, float] = {linear: 6, convolution: 4}
AFFINE: dict[Recipe, float] = {batch_norm: 6, elementwise: 6, by_hand: 1.5}
PASSAGE: dict[Recipe, float] = {
    **dict.fromkeys((plain, transpose, reshape, flatten, squeeze, unsqueeze, cut, split, gather), 1.0),
    **dict.fromkeys((pool, global_pool, reduced, resize, rectified, padded), 1.0),
    added: 2.0,
    concat: 2.0,
    gated: 1.2,
    product: 0.7,
}
OTHER: dict[Recipe, float] = {opaque: 1.0, branches: 0.25, called: 0.25}
