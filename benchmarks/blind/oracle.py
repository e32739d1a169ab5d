"""What a model computes, in float64: the reference evaluator of onnx, with convolutions by torch.

Its BatchNormalization (before opset 14) and its grouped ConvTranspose are wrong, and its convolutions are slow; these
three are written here. Every float of the model becomes a double first, so that nothing rounds but the quantisers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference.op_run import OpRun
from surgery import FLOATS

Array = NDArray[Any]
CONVOLUTIONS = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)
TRANSPOSED = (
    torch.nn.functional.conv_transpose1d,
    torch.nn.functional.conv_transpose2d,
    torch.nn.functional.conv_transpose3d,
)


def as_tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


class BatchNormalization(OpRun):
    """At inference in every opset since 7, and with the statistics of the batch."""

    op_domain = ""

    def _run(self, x: Array, *arrays: Array, epsilon: float = 1e-5, training_mode: int = 0, **_: Any) -> Any:
        spread = [-1, *[1] * (x.ndim - 2)]
        gamma, beta, mean, variance = arrays
        if training_mode:
            axes = (0, *range(2, x.ndim))
            mean, variance = x.mean(axes), x.var(axes)
        divisor = np.sqrt(variance + float(np.float32(epsilon))).reshape(spread)
        result = (x - mean.reshape(spread)) / divisor * gamma.reshape(spread) + beta.reshape(spread)
        return (result, *[mean] * (len(self.onnx_node.output) - 1))


class Conv(OpRun):
    op_domain = ""

    def _run(self, x: Array, weight: Array, bias: Array | None = None, **more: Any) -> Any:
        rank = weight.ndim - 2
        strides = more.get("strides") or [1] * rank
        dilations = more.get("dilations") or [1] * rank
        reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
        pads = padding(more, x.shape[2:], reach, strides)
        around = [each for axis in reversed(range(rank)) for each in (pads[axis], pads[axis + rank])]
        padded = torch.nn.functional.pad(as_tensor(x), around)
        # torch's exporter writes a bias of two axes for a 3-D convolution; runtimes read its first numbers.
        extra = None if bias is None else as_tensor(bias).reshape(-1)[: weight.shape[0]]
        groups = more.get("group") or 1
        convolve = CONVOLUTIONS[rank - 1]
        made = convolve(padded, as_tensor(weight), extra, tuple(strides), 0, tuple(dilations), groups)
        return (made.numpy(),)


def padding(more: Mapping[str, Any], sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]) -> list[int]:
    mode = more.get("auto_pad") or "NOTSET"
    if mode == "NOTSET":
        return list(more.get("pads") or [0] * 2 * len(sizes))
    if mode == "VALID":
        return [0] * 2 * len(sizes)
    total = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(sizes, reach, strides, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return small + large if mode == "SAME_UPPER" else large + small


class ConvTranspose(OpRun):
    op_domain = ""

    def _run(self, x: Array, weight: Array, bias: Array | None = None, **more: Any) -> Any:
        rank = weight.ndim - 2
        if more.get("auto_pad", "NOTSET") != "NOTSET" or more.get("output_shape"):
            raise NotImplementedError("only explicit pads")
        strides = tuple(more.get("strides") or [1] * rank)
        dilations = tuple(more.get("dilations") or [1] * rank)
        extra = tuple(more.get("output_padding") or [0] * rank)
        pads = more.get("pads") or [0] * 2 * rank
        offset = None if bias is None else as_tensor(bias)
        spread = TRANSPOSED[rank - 1]
        full = spread(
            as_tensor(x), as_tensor(weight), offset, strides, 0, extra, more.get("group") or 1, dilations
        ).numpy()
        crop = tuple(slice(pads[i], full.shape[2 + i] - pads[rank + i]) for i in range(rank))
        return (full[(slice(None), slice(None), *crop)],)


def widen(graph: onnx.GraphProto) -> None:
    """Every float of a graph a double, those of inner graphs too."""
    for stored in graph.initializer:
        widen_tensor(stored)
    for each in (*graph.input, *graph.output):
        if each.type.tensor_type.elem_type in FLOATS:
            each.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    for node in graph.node:
        for each in node.attribute:
            if each.type == onnx.AttributeProto.TENSOR:
                widen_tensor(each.t)
            elif each.type == onnx.AttributeProto.GRAPH:
                widen(each.g)
            elif each.name == "value_float":
                each.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(np.float64(each.f))))
            elif node.op_type == "Cast" and each.name == "to" and each.i in FLOATS:
                each.i = TensorProto.DOUBLE


def widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs for these inputs."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    widen(wide.graph)
    runner = onnx.reference.ReferenceEvaluator(wide, new_ops=[BatchNormalization, Conv, ConvTranspose])
    doubles = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in feeds.items()}
    with np.errstate(all="ignore"):
        return [np.asarray(each) for each in runner.run(None, doubles)]  # type: ignore[union-attr]


def feeds(model: onnx.ModelProto, seed: int, batch: int) -> dict[str, Array]:
    """Plausible inputs: normal numbers, or none below zero for an even seed; an axis without a size has `batch`."""
    random = np.random.default_rng(seed)
    stored = {each.name for each in model.graph.initializer}
    made: dict[str, Array] = {}
    for each in model.graph.input:
        if each.name in stored:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(each.type.tensor_type.elem_type)
        shape = [axis.dim_value or batch for axis in each.type.tensor_type.shape.dim]
        numbers = random.normal(size=shape)
        if kind == np.bool_:
            made[each.name] = np.full(shape, seed % 2 == 0)
        elif kind.kind in "iu":
            made[each.name] = random.integers(0, 4, shape).astype(kind)
        else:
            made[each.name] = (np.abs(numbers) if seed % 2 == 0 else numbers).astype(kind)
    return made


def distance(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """The largest deviation relative to the largest value of the output; infinite for another shape, another integer
    or another place that is not finite."""
    if len(ours) != len(theirs):
        return float("inf")
    return max((deviation(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def deviation(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    if ours.size == 0:
        return 0.0
    if ours.dtype.kind != "f" or theirs.dtype.kind != "f":
        return 0.0 if np.array_equal(ours, theirs) else float("inf")
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return float("inf")
    finite = np.isfinite(ours)
    if not finite.any():
        return 0.0
    size = float(np.abs(ours[finite]).max()) or 1.0
    return float(np.abs(ours[finite] - theirs[finite]).max()) / size
