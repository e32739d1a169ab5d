"""The operators that `onnx.reference` has wrong or slow, written again on one view: the windows of an array.

Wrong there: batch norm of opset 7 to 13, transposed convolution with groups, global max pooling off 2-D, layer norm
that is to compute in double.
Slow there: convolution and pooling. All of them keep the dtype of their input, which here is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_25
from onnx.reference.ops.op_max_pool import MaxPool as ReferenceMaxPool

Array = NDArray[Any]
Sizes = Sequence[int]


def windows(x: Array, kernel: Sizes, strides: Sizes, dilations: Sizes) -> Array:
    """Every window of a padded `(N, C, *spatial)` array, as a view of shape `(N, C, *kernel, *positions)`."""
    rank = len(kernel)
    steps = x.strides[2:]
    positions = [
        (x.shape[2 + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 if x.shape[2 + i] else 0
        for i in range(rank)
    ]
    return np.lib.stride_tricks.as_strided(
        x,
        shape=(*x.shape[:2], *kernel, *(max(count, 0) for count in positions)),
        strides=(*x.strides[:2], *np.multiply(steps, dilations), *np.multiply(steps, strides)),
        writeable=False,
    )


def padding(auto_pad: str, pads: Sizes | None, size: Sizes, kernel: Sizes, strides: Sizes, dilations: Sizes) -> Array:
    """`(before, after)` per spatial axis: the `pads` attribute, or what `auto_pad` makes of the input's size."""
    rank = len(kernel)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        extent = np.multiply(dilations, np.subtract(kernel, 1)) + 1
        positions = -(-np.array(size) // np.array(strides))
        total = np.maximum((positions - 1) * strides + extent - size, 0)
        before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        return np.stack([before, total - before], axis=1)
    if auto_pad == "VALID" or not pads:
        return np.zeros((rank, 2), dtype=np.int64)
    return np.array(pads, dtype=np.int64).reshape(2, rank).T


def pad(x: Array, amounts: Array, value: float = 0.0) -> Array:
    """Pad the spatial axes; negative amounts crop."""
    kept = [slice(max(-a, 0), size - max(-b, 0)) for (a, b), size in zip(amounts, x.shape[2:], strict=True)]
    cropped = x[(slice(None), slice(None), *kept)]
    return np.pad(cropped, [(0, 0), (0, 0), *np.maximum(amounts, 0).tolist()], constant_values=value)


def convolve(x: Array, weight: Array, groups: int, strides: Sizes, dilations: Sizes) -> Array:
    """Correlate a padded `(N, C, *spatial)` array with `(out, C / groups, *kernel)`."""
    kernel = weight.shape[2:]
    view = windows(x, kernel, strides, dilations)
    batch, positions = x.shape[0], view.shape[2 + len(kernel) :]
    outs, ins = weight.shape[0] // groups, weight.shape[1]
    if ins == 1:
        result = _convolve_depthwise(view, weight.reshape(groups, outs, *kernel), len(kernel))
    else:
        columns = view.reshape(batch, groups, ins * prod(kernel), prod(positions))
        result = weight.reshape(groups, outs, ins * prod(kernel)) @ columns
    return result.reshape(batch, weight.shape[0], *positions)


def _convolve_depthwise(view: Array, weight: Array, rank: int) -> Array:
    """One multiply per tap: a matrix product with one row would be slow."""
    positions = view.shape[2 + rank :]
    total = np.zeros((*view.shape[:2], weight.shape[1], *positions), dtype=view.dtype)
    for tap in np.ndindex(*weight.shape[2:]):
        factor = weight[(slice(None), slice(None), *tap)].reshape(*weight.shape[:2], *(1,) * rank)
        total += factor * view[(slice(None), slice(None), *tap)][:, :, None]
    return total


def convolve_transposed(x: Array, weight: Array, groups: int, strides: Sizes, dilations: Sizes, extra: Sizes) -> Array:
    """Spread `(N, C, *spatial)` by `(C, out / groups, *kernel)` without cropping; `extra` is output_padding."""
    batch, size, kernel = x.shape[0], x.shape[2:], weight.shape[2:]
    ins, outs = weight.shape[0] // groups, weight.shape[1]
    spread = weight.reshape(groups, ins, outs * prod(kernel)).swapaxes(1, 2) @ x.reshape(batch, groups, ins, prod(size))
    spread = spread.reshape(batch, groups * outs, *kernel, *size)
    full = [
        s * (n - 1) + d * (k - 1) + 1 + e for s, n, d, k, e in zip(strides, size, dilations, kernel, extra, strict=True)
    ]
    result = np.zeros((batch, groups * outs, *full), dtype=x.dtype)
    for tap in np.ndindex(*kernel):
        starts = np.multiply(tap, dilations)
        target = [slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, strides, size, strict=True)]
        result[(slice(None), slice(None), *target)] += spread[(slice(None), slice(None), *tap)]
    return result


def _channels(values: Array, rank: int) -> Array:
    return values.reshape(-1, *(1,) * max(rank - 2, 0))


class BatchNormalization(OpRun):
    """Opset 7 to today; `training_mode` too, because the original may hold one."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        variance: Array,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
        spatial: int = 1,
        **_old: Any,
    ) -> tuple[Array, ...]:
        if not spatial:
            raise NotImplementedError("BatchNormalization with spatial=0")
        extra: tuple[Array, ...] = ()
        if training_mode:
            axes = (0, *range(2, x.ndim))
            batch_mean, batch_variance = x.mean(axis=axes), x.var(axis=axes)
            extra = (
                mean * momentum + batch_mean * (1 - momentum),
                variance * momentum + batch_variance * (1 - momentum),
            )
            mean, variance = batch_mean, batch_variance
        scale, bias, mean, variance = (_channels(v.astype(x.dtype), x.ndim) for v in (scale, bias, mean, variance))
        return ((x - mean) / np.sqrt(variance + epsilon) * scale + bias).astype(x.dtype), *extra


class LayerNormalization(OpRun):
    """In the type of its input, whatever `stash_type` asks for; the reference knows but one."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array | None = None,
        axis: int = -1,
        epsilon: float = 1e-5,
        stash_type: int = 1,
    ) -> tuple[Array, ...]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        mean = x.mean(axis=axes, keepdims=True)
        inverse = 1 / np.sqrt(np.square(x - mean).mean(axis=axes, keepdims=True) + epsilon)
        result = (x - mean) * inverse * scale
        return (result if bias is None else result + bias, mean, inverse)[: max(len(self.output), 1)]


class Conv(OpRun):
    """Any rank, groups, dilations, `auto_pad`."""

    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sizes | None = None,
        group: int = 1,
        kernel_shape: Sizes | None = None,
        pads: Sizes | None = None,
        strides: Sizes | None = None,
    ) -> tuple[Array]:
        kernel = weight.shape[2:]
        dilations, strides = dilations or [1] * len(kernel), strides or [1] * len(kernel)
        amounts = padding(auto_pad, pads, x.shape[2:], kernel, strides, dilations)
        result = convolve(pad(x, amounts), weight, group, strides, dilations)
        return (result if bias is None else result + _channels(bias, x.ndim),)


class ConvTranspose(OpRun):
    """Any rank, groups, dilations, `output_padding`, `output_shape`, `auto_pad`."""

    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sizes | None = None,
        group: int = 1,
        kernel_shape: Sizes | None = None,
        output_padding: Sizes | None = None,
        output_shape: Sizes | None = None,
        pads: Sizes | None = None,
        strides: Sizes | None = None,
    ) -> tuple[Array]:
        rank = x.ndim - 2
        dilations, strides, extra = dilations or [1] * rank, strides or [1] * rank, output_padding or [0] * rank
        full = convolve_transposed(x, weight, group, strides, dilations, extra)
        if output_shape or auto_pad.startswith("SAME"):
            wanted = list(output_shape or np.multiply(x.shape[2:], strides))[-rank:]
            amounts = _crop_to(full.shape[2:], wanted, auto_pad)
        else:
            amounts = padding(auto_pad, pads, x.shape[2:], weight.shape[2:], strides, dilations)
        result = pad(full, -amounts)
        return (result if bias is None else result + _channels(bias, x.ndim),)


def _crop_to(full: Sizes, wanted: Sizes, auto_pad: str) -> Array:
    total = np.subtract(full, wanted)
    before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
    return np.stack([before, total - before], axis=1)


def _pool_windows(
    x: Array, kernel: Sizes, strides: Sizes, dilations: Sizes, amounts: Array, ceil_mode: int, fill: float
) -> Array:
    """Windows of a pooling operator; `ceil_mode` extends the end so that a last partial window fits."""
    amounts = amounts.copy()
    for i, size in enumerate(x.shape[2:]):
        extent, padded = dilations[i] * (kernel[i] - 1) + 1, size + amounts[i].sum()
        positions = -(-(padded - extent) // strides[i]) + 1 if ceil_mode else (padded - extent) // strides[i] + 1
        if ceil_mode and (positions - 1) * strides[i] >= size + amounts[i, 0]:
            positions -= 1
        amounts[i, 1] += max((positions - 1) * strides[i] + extent - padded, 0)
    return windows(pad(x, amounts, fill), kernel, strides, dilations)


class MaxPool(ReferenceMaxPool):
    """As the reference has it, but by windows; the reference still serves who asks for the indices."""

    def _run(  # type: ignore[override]
        self,
        x: Array,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sizes | None = None,
        kernel_shape: Sizes = (),
        pads: Sizes | None = None,
        storage_order: int = 0,
        strides: Sizes | None = None,
    ) -> tuple[Array, ...]:
        if len(self.output) > 1:
            found: tuple[Array, ...] = super()._run(  # type: ignore[no-untyped-call]
                x, auto_pad, ceil_mode, dilations, kernel_shape, pads, storage_order, strides
            )
            return found
        rank = len(kernel_shape)
        dilations, strides = dilations or [1] * rank, strides or [1] * rank
        amounts = padding(auto_pad, pads, x.shape[2:], kernel_shape, strides, dilations)
        lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
        view = _pool_windows(x, kernel_shape, strides, dilations, amounts, ceil_mode, lowest)
        return (view.max(axis=tuple(range(2, 2 + rank))),)


class AveragePool(OpRun):
    """A partial window divides by what it covers; padding counts only with `count_include_pad`, the ceil never."""

    def _run(
        self,
        x: Array,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        count_include_pad: int = 0,
        dilations: Sizes | None = None,
        kernel_shape: Sizes = (),
        pads: Sizes | None = None,
        strides: Sizes | None = None,
    ) -> tuple[Array]:
        rank = len(kernel_shape)
        dilations, strides = dilations or [1] * rank, strides or [1] * rank
        amounts = padding(auto_pad, pads, x.shape[2:], kernel_shape, strides, dilations)
        counted = np.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
        if count_include_pad:
            x, counted, amounts = pad(x, amounts), pad(counted, amounts, 1.0), np.zeros_like(amounts)
        axes = tuple(range(2, 2 + rank))
        totals, counts = (
            _pool_windows(v, kernel_shape, strides, dilations, amounts, ceil_mode, 0.0).sum(axis=axes)
            for v in (x, counted)
        )
        return (totals / counts,)


class GlobalMaxPool(OpRun):
    """The maximum over every spatial axis."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class DequantizeLinear(DequantizeLinear_25):
    """The reference begins with opset 19; the older ones do the same with fewer types."""


OPERATORS: tuple[type[OpRun], ...] = (
    BatchNormalization,
    LayerNormalization,
    Conv,
    ConvTranspose,
    MaxPool,
    AveragePool,
    GlobalMaxPool,
)

BEFORE_19: tuple[type[OpRun], ...] = (DequantizeLinear,)
"""Operators that the reference lacks in older opsets."""
