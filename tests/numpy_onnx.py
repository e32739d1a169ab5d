"""What an ONNX model computes, in float64, written down a second time.

    outputs, largest = run(model, {"x": array})

A small interpreter over protos for the operators that the random graphs use. It shares nothing with the package: each
operator is its definition in numpy. Every float is a double here, whatever type the model declares; only ε is the
float32 that the file stores. `largest` is the largest number met on the way, by which errors are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import ceil, floor
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> tuple[list[Array], float]:
    """All outputs of the model, and the largest absolute value of any float on the way."""
    values: dict[str, Array] = {"": np.array(0.0)} | dict(feeds)
    for stored in model.graph.initializer:
        values.setdefault(stored.name, as_array(stored))
    functions = {(function.domain, function.name): function for function in model.functions}
    version = version_of(model.opset_import)
    for node in model.graph.node:
        values |= evaluate(node, values, version, functions)
    floats = [array for array in values.values() if array.dtype == np.float64 and array.size]
    return [values[output.name] for output in model.graph.output], max(float(np.abs(a).max()) for a in floats)


def version_of(imports: Sequence[onnx.OperatorSetIdProto]) -> int:
    """The version of the default domain."""
    return max(each.version for each in imports if each.domain == "")


def as_array(tensor: onnx.TensorProto) -> Array:
    """The numbers of a tensor, floats as doubles."""
    array = numpy_helper.to_array(tensor)
    return array.astype(np.float64) if tensor.data_type in FLOATS else array


def evaluate(
    node: onnx.NodeProto, values: Mapping[str, Array], version: int, functions: Mapping[Any, onnx.FunctionProto]
) -> dict[str, Array]:
    """What one node makes of the values of its scope, by output name."""
    inputs = [values[name] if name else None for name in node.input]
    if (node.domain, node.op_type) in functions:
        made = _call(functions[node.domain, node.op_type], inputs, functions)
    elif node.op_type == "If":
        given = {each.name: each.g for each in node.attribute}
        made = _branch(given["then_branch" if inputs[0] else "else_branch"], values, version, functions)
    else:
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        result = OPERATORS[node.op_type](given, version, *inputs)
        made = result if isinstance(result, list) else [np.asarray(result)]
    return {name: array for name, array in zip(node.output, made, strict=False) if name}


def _call(function: onnx.FunctionProto, inputs: Sequence[Any], functions: Mapping[Any, Any]) -> list[Array]:
    scope = dict(zip(function.input, inputs, strict=True))
    for node in function.node:
        scope |= evaluate(node, scope, version_of(function.opset_import), functions)
    return [scope[name] for name in function.output]


def _branch(
    body: onnx.GraphProto, values: Mapping[str, Array], version: int, functions: Mapping[Any, Any]
) -> list[Array]:
    scope = {**values, **{stored.name: as_array(stored) for stored in body.initializer}}
    for node in body.node:
        scope |= evaluate(node, scope, version, functions)
    return [scope[output.name] for output in body.output]


Given = Mapping[str, Any]


def _text(given: Given, name: str, default: str) -> str:
    return given[name].decode() if name in given else default


def _window(given: Given, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads (all that are in front, then all that are behind)."""
    rank = len(kernel)
    return (
        list(given.get("strides", [1] * rank)),
        list(given.get("dilations", [1] * rank)),
        list(given.get("pads", [0] * 2 * rank)),
    )


def _pads(given: Given, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    strides, dilations, pads = _window(given, kernel)
    kind = _text(given, "auto_pad", "NOTSET")
    if not kind.startswith("SAME"):
        return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    found = []
    for size, length, step, gap in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((ceil(size / step) - 1) * step + (length - 1) * gap + 1 - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if kind == "SAME_UPPER" else (more, less))
    return found


def _windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """Shape (N, C, positions..., taps...)."""
    spans = [(length - 1) * gap + 1 for length, gap in zip(kernel, dilations, strict=True)]
    every = sliding_window_view(x, spans, axis=tuple(range(2, x.ndim)))
    return every[(slice(None),) * 2 + tuple(slice(None, None, step) for step in (*strides, *dilations))]


def _bias(result: Array, bias: Array | None) -> Array:
    assert bias is None or bias.shape == result.shape[1:2], "no bias is broadcast"
    return result if bias is None else result + bias.reshape(-1, *[1] * (result.ndim - 2))


def _conv(given: Given, version: int, x: Array, weight: Array, bias: Array | None = None) -> Array:
    kernel, groups = weight.shape[2:], given.get("group", 1)
    strides, dilations, _ = _window(given, kernel)
    assert x.shape[1] == groups * weight.shape[1], "no channel is broadcast"
    padded = np.pad(x, [(0, 0), (0, 0), *_pads(given, x.shape[2:], kernel)])
    seen = _windows(padded, kernel, strides, dilations)
    positions, taps = seen.shape[2 : 2 + len(kernel)], int(np.prod(kernel))
    seen = seen.reshape(x.shape[0], groups, weight.shape[1], -1, taps)
    result = np.einsum("ngipk,goik->ngop", seen, weight.reshape(groups, -1, weight.shape[1], taps))
    return _bias(result.reshape(x.shape[0], weight.shape[0], *positions), bias)


def _conv_transpose(given: Given, version: int, x: Array, weight: Array, bias: Array | None = None) -> Array:
    kernel, groups = weight.shape[2:], given.get("group", 1)
    strides, dilations, pads = _window(given, kernel)
    extra, rank = given.get("output_padding", [0] * len(kernel)), len(kernel)
    spans = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(x.shape[2:], strides, kernel, dilations, extra, strict=True)
    ]
    assert x.shape[1] == weight.shape[0], "no channel is broadcast"
    inner = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    weights = weight.reshape(groups, -1, *weight.shape[1:])
    full = np.zeros((x.shape[0], groups, weight.shape[1], *spans))
    for tap in product(*map(range, kernel)):
        at = [slice(t * d, t * d + n * s, s) for t, d, n, s in zip(tap, dilations, x.shape[2:], strides, strict=True)]
        full[(..., *at)] += np.einsum("ngi...,gio->ngo...", inner, weights[(..., *tap)])
    kind = _text(given, "auto_pad", "NOTSET")
    if kind.startswith("SAME") or "output_shape" in given:
        wanted = given.get("output_shape", [n * s for n, s in zip(x.shape[2:], strides, strict=True)])
        totals = [span - want for span, want in zip(spans, wanted, strict=True)]
        assert min(totals) >= 0, "no runtime agrees on more output than there is"
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = less + more if kind == "SAME_UPPER" else more + less
    crop = [slice(before, n - after) for before, after, n in zip(pads[:rank], pads[rank:], spans, strict=True)]
    return _bias(full.reshape(x.shape[0], -1, *spans)[(..., *crop)], bias)


def _pool(given: Given, x: Array, fill: float, reduce: Callable[[Array, Array, Array], Array]) -> Array:
    """`reduce` sees the windows, which of their elements are data, and which are data or padding."""
    kernel = given["kernel_shape"]
    strides, dilations, _ = _window(given, kernel)
    pads = _pads(given, x.shape[2:], kernel)
    beyond = [(0, 0)] * x.ndim
    for axis, ((before, after), size) in enumerate(zip(pads, x.shape[2:], strict=True)):
        free = before + size + after - (kernel[axis] - 1) * dilations[axis] - 1
        steps = ceil(free / strides[axis]) if given.get("ceil_mode") else free // strides[axis]
        steps -= steps * strides[axis] >= size + before
        beyond[axis + 2] = (0, max(steps * strides[axis] - free, 0))
    edges = [(0, 0), (0, 0), *pads]
    layers = [
        np.pad(np.pad(x, edges, constant_values=fill), beyond, constant_values=fill),
        np.pad(np.pad(np.ones_like(x), edges), beyond),
        np.pad(np.pad(np.ones_like(x), edges, constant_values=1), beyond),
    ]
    return reduce(*(_windows(each, kernel, strides, dilations) for each in layers))


def _average_pool(given: Given, version: int, x: Array) -> Array:
    taps = tuple(range(-len(given["kernel_shape"]), 0))

    def average(windows: Array, data: Array, counted: Array) -> Array:
        return windows.sum(taps) / (counted if given.get("count_include_pad") else data).sum(taps)

    return _pool(given, x, 0.0, average)


def _max_pool(given: Given, version: int, x: Array) -> Array:
    taps = tuple(range(-len(given["kernel_shape"]), 0))
    return _pool(given, x, -np.inf, lambda windows, *_: windows.max(taps))


def _batch_norm(given: Given, version: int, x: Array, *arrays: Array) -> Array:
    gamma, beta, mean, variance = (array.reshape(-1, *[1] * (x.ndim - 2)) for array in arrays)
    assert gamma.shape[0] == x.shape[1], "no statistic is broadcast"
    return (x - mean) / np.sqrt(variance + float(np.float32(given.get("epsilon", 1e-5)))) * gamma + beta


def _gemm(given: Given, version: int, a: Array, b: Array, c: Array | None = None) -> Array:
    assert a.ndim == b.ndim == 2, "Gemm is of matrices: no vector, as a Squeeze of everything would make one"
    left, right = a.T if given.get("transA") else a, b.T if given.get("transB") else b
    result = given.get("alpha", 1.0) * (left @ right)
    if c is None:
        return result
    return result + given.get("beta", 1.0) * np.broadcast_to(c, result.shape)


def _axes(given: Given, extra: Sequence[Array | None]) -> tuple[int, ...] | None:
    axes = given.get("axes", extra[0].tolist() if extra and extra[0] is not None else None)
    return None if axes is None else tuple(axes)


def _reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduced(given: Given, version: int, x: Array, *extra: Array) -> Array:
        return function(x, axis=_axes(given, extra), keepdims=bool(given.get("keepdims", 1)))

    return reduced


def _global(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda given, version, x: function(x, axis=tuple(range(2, x.ndim)), keepdims=True)


def _reshape(given: Given, version: int, x: Array, shape: Array) -> Array:
    kept = [] if given.get("allowzero") else [axis for axis, size in enumerate(shape) if size == 0]
    return x.reshape([x.shape[axis] if axis in kept else int(size) for axis, size in enumerate(shape)])


def _flatten(given: Given, version: int, x: Array) -> Array:
    axis = given.get("axis", 1)
    return x.reshape(int(np.prod(x.shape[: axis + x.ndim if axis < 0 else axis])), -1)


def _squeeze(given: Given, version: int, x: Array, *extra: Array) -> Array:
    return np.squeeze(x, _axes(given, extra))


def _unsqueeze(given: Given, version: int, x: Array, *extra: Array) -> Array:
    return np.expand_dims(x, _axes(given, extra))  # type: ignore[arg-type]


def _slice(given: Given, version: int, x: Array, *extra: Array) -> Array:
    starts, ends = (given["starts"], given["ends"]) if version < 10 else (extra[0], extra[1])
    axes = _axes(given, extra[2:]) or range(len(starts))
    steps = extra[3] if len(extra) > 3 else [1] * len(starts)
    cut = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(int(start), None if step < 0 and end < -x.shape[axis] else int(end), int(step))
    return x[tuple(cut)]


def _split(given: Given, version: int, x: Array, *extra: Array) -> list[Array]:
    axis, sizes = given.get("axis", 0), given.get("split", extra[0].tolist() if extra else None)
    if sizes is None:
        part = -(-x.shape[axis] // given["num_outputs"])
        sizes = [part] * given["num_outputs"]
    assert (extra == () and "split" not in given) or sum(sizes) == x.shape[axis], "pieces make the whole"
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _pad(given: Given, version: int, x: Array, *extra: Array | None) -> Array:
    pads = [int(each) for each in (given["pads"] if version < 11 else extra[0])]  # type: ignore[union-attr]
    value = given.get("value", 0.0) if version < 11 or len(extra) < 2 or extra[1] is None else extra[1].item()
    axes = [int(axis) for axis in extra[2]] if len(extra) > 2 and extra[2] is not None else list(range(x.ndim))
    widths = [(0, 0)] * x.ndim
    for place, axis in enumerate(axes):
        widths[axis] = (pads[place], pads[place + len(axes)])
    mode = _text(given, "mode", "constant")
    return np.pad(x, widths, **({"mode": mode} if mode != "constant" else {"constant_values": value}))


def _resize(given: Given, version: int, x: Array, *extra: Array | None) -> Array:
    """Along one axis after the other: each output is a mean of inputs, or the extrapolated value."""
    scales = given.get("scales", extra[0] if version < 11 and extra else extra[1] if len(extra) > 1 else None)
    sizes = extra[2] if len(extra) > 2 else None
    if sizes is None:
        sizes = [floor(size * float(np.float32(scale))) for size, scale in zip(x.shape, scales, strict=True)]
        factors = [float(np.float32(scale)) for scale in scales]
    else:
        factors = [int(new) / old for new, old in zip(sizes, x.shape, strict=True)]
    legacy = version < 11
    mode = _text(given, "coordinate_transformation_mode", "asymmetric" if legacy else "half_pixel")
    nearest = _text(given, "nearest_mode", "floor" if legacy else "round_prefer_floor")
    linear = _text(given, "mode", "nearest") == "linear"
    outside = np.zeros(x.shape, dtype=bool)
    for axis, (old, new, factor) in enumerate(zip(x.shape, sizes, factors, strict=True)):
        region = (0.0, 1.0) if mode != "tf_crop_and_resize" else (extra[0][axis], extra[0][axis + x.ndim])
        places = [_place(mode, index, old, int(new), factor, region) for index in range(int(new))]
        matrix = np.array([_weights(place, old, linear, nearest) for place in places])
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
        lost = np.array([mode == "tf_crop_and_resize" and not 0 <= place <= old - 1 for place in places])
        lost = lost.reshape([-1 if each == axis else 1 for each in range(x.ndim)])
        outside = np.take(outside, [0] * int(new), axis) | lost
    return np.where(outside, given.get("extrapolation_value", 0.0), x)


def _place(mode: str, index: int, old: int, new: int, factor: float, region: Sequence[float]) -> float:
    if mode == "tf_crop_and_resize":
        start, end = region
        return (start + index * (end - start) / (new - 1) if new > 1 else (start + end) / 2) * (old - 1)
    if mode == "align_corners":
        return index * (old - 1) / (new - 1) if new > 1 else 0.0
    if mode == "asymmetric" or (mode == "pytorch_half_pixel" and new == 1):
        return index / factor
    return (index + 0.5) / factor - 0.5


def _weights(place: float, size: int, linear: bool, nearest: str) -> Array:
    row = np.zeros(size)
    low = floor(place) if linear else _rounded(place, nearest)
    part = place - low if linear else 0.0
    row[min(max(low, 0), size - 1)] += 1 - part
    row[min(max(low + 1, 0), size - 1)] += part
    return row


def _rounded(place: float, mode: str) -> int:
    if mode in ("floor", "ceil"):
        return floor(place) if mode == "floor" else ceil(place)
    return ceil(place - 0.5) if mode == "round_prefer_floor" else floor(place + 0.5)


def _clip(given: Given, version: int, x: Array, *extra: Array | None) -> Array:
    low, high = (*extra, None, None)[:2] if version >= 11 else (given.get("min"), given.get("max"))
    return np.clip(x, -np.inf if low is None else low, np.inf if high is None else high)


def _softmax(given: Given, version: int, x: Array) -> Array:
    axis = given.get("axis", 1 if version < 13 else -1)
    axes: Any = tuple(range(axis % x.ndim, x.ndim)) if version < 13 else axis
    powers = np.exp(x - x.max(axes, keepdims=True))
    return powers / powers.sum(axes, keepdims=True)


def _constant(given: Given, version: int) -> Array:
    (name, value), *_ = given.items()
    kind = np.float64 if "float" in name else np.int64
    return as_array(value) if name == "value" else np.array(value, dtype=kind)


def _cast(given: Given, version: int, x: Array) -> Array:
    return x if given["to"] in FLOATS else x.astype(helper.tensor_dtype_to_np_dtype(given["to"]))


def _leaky(given: Given, version: int, x: Array) -> Array:
    return np.where(x > 0, x, given.get("alpha", float(np.float32(0.01))) * x)


def _plain(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda given, version, *inputs: function(*inputs)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Div": _plain(np.divide),
    "Pow": _plain(np.power),
    "Sum": _plain(lambda *terms: sum(terms[1:], terms[0])),
    "Neg": _plain(np.negative),
    "Sqrt": _plain(np.sqrt),
    "Reciprocal": _plain(np.reciprocal),
    "Exp": _plain(np.exp),
    "Tanh": _plain(np.tanh),
    "Sigmoid": _plain(lambda x: 1 / (1 + np.exp(-x))),
    "Relu": _plain(lambda x: np.maximum(x, 0)),
    "PRelu": _plain(lambda x, slope: np.where(x > 0, x, slope * x)),
    "LeakyRelu": _leaky,
    "Clip": _clip,
    "Softmax": _softmax,
    "MatMul": _plain(np.matmul),
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "GlobalAveragePool": _global(np.mean),
    "GlobalMaxPool": _global(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceMax": _reduce(np.max),
    "ReduceSum": _reduce(np.sum),
    "Identity": _plain(lambda x: x),
    "Dropout": _plain(lambda x, *_: x),
    "Cast": _cast,
    "Constant": _constant,
    "Shape": _plain(lambda x: np.array(x.shape, dtype=np.int64)),
    "Expand": _plain(lambda x, shape: x * np.ones(shape)),
    "Transpose": lambda given, version, x: np.transpose(x, given.get("perm")),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Split": _split,
    "Gather": lambda given, version, x, index: np.take(x, index, given.get("axis", 0)),
    "Concat": lambda given, version, *parts: np.concatenate(parts, given["axis"]),
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
}
