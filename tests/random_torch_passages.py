"""Operators that an affine may cross, and some that look as if it could."""

from __future__ import annotations

import operator
from typing import Any

import torch
from random_torch_builder import Builder, Op, Unfit
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

aten = torch.ops.aten


def spatial_axes(b: Builder, value: fx.Node) -> int:
    """How many axes of pixels a value has that a convolution or a pool can read."""
    if b.rank(value) not in (3, 4, 5):
        raise Unfit("no image")
    return b.rank(value) - 2


def kept_channel(b: Builder, made: fx.Node, value: fx.Node) -> fx.Node:
    """The channels of a result that may have gained axes on the left."""
    axis = b.channel[value]
    b.channel[made] = None if axis is None else axis + b.rank(made) - b.rank(value)
    return made


def _without(axis: int | None, at: int) -> int | None:
    """Where an axis is after axis `at` went."""
    return None if axis is None or axis == at else axis - (axis > at)


def unchanged(b: Builder, value: fx.Node) -> fx.Node:
    usual = [
        *((target, ()) for target in (nn.Identity(), nn.Dropout(0.5), torch.clone, "clone", "contiguous", "detach")),
        *((target, (0.5, False)) for target in (F.dropout, aten.dropout.default)),
        ("to", (b.dtype,)),
        ("double", ()),
    ]
    rare = [
        *((target, ()) for target in ("float", aten.alias.default, "half" if b.chance(0.1) else "double")),
        ("to", (torch.float32,)),
        ("expand", (-1,) * b.rank(value)),
        ("expand", (2, *[-1] * b.rank(value))),
    ]
    target, args = b.pick(*usual) if b.chance(0.9) else b.pick(*rare)
    return kept_channel(b, b.call(target, value, *args), value)


def permuted(b: Builder, value: fx.Node) -> fx.Node:
    rank, axis = b.rank(value), b.channel[value]
    order = list(range(rank))
    kind = b.random.random()
    if kind >= 0.6:
        one, other = b.random.randrange(rank), b.random.randrange(rank)
        order[one], order[other] = order[other], order[one]
        moved = None if axis is None else order.index(axis)
        return b.call(b.pick("transpose", torch.transpose, aten.transpose.int), value, one, other - rank, axis=moved)
    if kind < 0.4 and rank > 2:
        order = [0, *range(2, rank), 1] if axis == 1 else [0, rank - 1, *range(1, rank - 1)]
    else:
        b.random.shuffle(order)
    moved = None if axis is None else order.index(axis)
    return b.call(b.pick("permute", torch.permute, aten.permute.default), value, tuple(order), axis=moved)


def flattened(b: Builder, value: fx.Node) -> fx.Node:
    axis = b.channel[value] if b.channel[value] in (0, 1) else None
    if b.chance(0.3):
        return b.call(nn.Flatten(), value, axis=1)
    target = b.pick("flatten", torch.flatten, aten.flatten.using_ints)
    return b.call(target, value, b.pick(1, 1, 2, 0, -2), b.pick(-1, -1, -2, 2), axis=axis)


def reshaped(b: Builder, value: fx.Node) -> fx.Node:
    """Two axes become one, one becomes two, or all but the first or the last become one."""
    shape, axis = list(b.shape(value)), b.channel[value]
    kind = b.random.random()
    if kind < 0.25 and len(shape) > 2:
        at = b.random.randrange(1, len(shape) - 1)
        wanted = [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
        axis = axis if axis is None or axis <= at else axis - 1
    elif kind < 0.65:
        at = b.random.randrange(1, len(shape))
        divisor = b.pick(*(d for d in (1, 2, 3) if shape[at] % d == 0))
        halves = b.pick((shape[at] // divisor, divisor), (divisor, shape[at] // divisor))
        wanted = [*shape[:at], *halves, *shape[at + 1 :]]
        axis = None if axis is None else axis + (axis >= at) * b.pick(0, 1)
    else:
        wanted, axis = ([shape[0], -1], 1) if kind < 0.8 else ([-1, shape[-1]], 1)
    spelling = b.random.random()
    if spelling < 0.4 and -1 not in wanted:
        wanted[0] = -1
    elif spelling < 0.7 and wanted[0] == shape[0]:
        source = value if b.chance(0.7) else b.graph.find_nodes(op="placeholder")[0]
        wanted[0] = b.call("size", source, 0)
    target = b.pick("view", "reshape", torch.reshape, aten.view.default, aten.reshape.default)
    return b.call(target, value, tuple(wanted), axis=axis)


def unflattened(b: Builder, value: fx.Node) -> fx.Node:
    at, axis = b.random.randrange(1, b.rank(value)), b.channel[value]
    size = b.shape(value)[at]
    first = b.pick(*(d for d in (1, 2, 3) if size % d == 0))
    moved = None if axis is None else axis + (axis > at)
    if b.chance(0.3):
        return b.call(nn.Unflatten(at, (first, size // first)), value, axis=moved)
    return b.call(b.pick("unflatten", torch.unflatten), value, at, (first, -1), axis=moved)


def squeezed(b: Builder, value: fx.Node) -> fx.Node:
    rank, axis = b.rank(value), b.channel[value]
    ones = [i for i, size in enumerate(b.shape(value)) if size == 1 and i]
    if ones and b.chance(0.7):
        at = b.pick(*ones)
        arguments = b.pick((at,), (at,), (at - rank,), ())
        moved = _without(axis, at) if arguments else None
        return b.call(b.pick("squeeze", torch.squeeze), value, *arguments, axis=moved)
    at = b.random.randrange(rank + 1)
    moved = None if axis is None else axis + (axis >= at)
    return b.call(b.pick("unsqueeze", torch.unsqueeze, aten.unsqueeze.default), value, at, axis=moved)


def sliced(b: Builder, value: fx.Node) -> fx.Node:
    """A part of one axis, in every spelling that torch has."""
    rank, axis = b.rank(value), b.channel[value]
    at = b.random.randrange(rank)
    size, kind = b.shape(value)[at], b.random.random()
    start, before = b.random.randrange(size), (slice(None),) * at
    if kind < 0.3:
        picked = b.pick(slice(start, None), slice(None, -1), slice(None, None, 2), slice(-2, None), slice(0, start + 1))
        return b.call(operator.getitem, value, (*before, picked), axis=axis)
    if kind < 0.4:
        return b.call(operator.getitem, value, (*before, b.pick(start, -1)), axis=_without(axis, at))
    if kind < 0.5:
        return b.call(b.pick("narrow", torch.narrow), value, at, start, size - start, axis=axis)
    if kind < 0.6:
        target = b.pick("select", torch.select, aten.select.int)
        return b.call(target, value, at, start - size, axis=_without(axis, at))
    if kind < 0.8:
        bounds = b.pick((start,), (start, 9999), (0, -1), (0, size, 2))
        return b.call(aten.slice.Tensor, value, at - rank, *bounds, axis=axis)
    if kind < 0.9:
        index = b.hold(torch.tensor([b.random.randrange(size) for _ in range(b.random.randint(1, size + 1))]))
        return b.call(b.pick("index_select", torch.index_select), value, at, index, axis=axis)
    return b.call(b.pick(torch.flip, "flip"), value, (at,), axis=axis)


def split(b: Builder, value: fx.Node, at: int) -> list[fx.Node]:
    """The pieces of a value along an axis; of many, every other one. Slices are pieces as well."""
    axis, size, kind = b.channel[value], b.shape(value)[at], b.random.random()
    if kind < 0.25:
        cut = b.random.randrange(1, size)
        bounds = b.pick(((0, cut), (cut, size)), ((0, cut), (cut, size)), ((0, cut), (cut - 1, size), (0, size)))
        return [b.call(aten.slice.Tensor, value, at, *bound, axis=axis) for bound in bounds]
    if kind < 0.5:
        pieces = b.call(b.pick("chunk", torch.chunk, aten.chunk.default), value, 2, at)
    elif kind < 0.65:
        pieces = b.call(b.pick("split", torch.split), value, b.pick(1, 2), at)
    elif kind < 0.85:
        cut = b.random.randrange(1, size)
        pieces = b.call(b.pick(torch.split, aten.split_with_sizes.default), value, [cut, size - cut], at)
    else:
        pieces, axis = b.call(b.pick("unbind", torch.unbind), value, at), _without(axis, at)
    count = len(b.values[pieces])
    return [b.call(operator.getitem, pieces, index, axis=axis) for index in range(count) if count < 4 or index % 2]


def piece(b: Builder, value: fx.Node) -> fx.Node:
    """One of the pieces; nobody reads the others."""
    axis = b.channel[value]
    return b.pick(*split(b, value, axis if axis is not None and b.chance(0.7) else b.random.randrange(b.rank(value))))


def pooled(b: Builder, value: fx.Node) -> fx.Node:
    spatial = spatial_axes(b, value)
    kernel, stride = b.pick(2, 2, 3, 1), b.pick(1, 2, None)
    padding, ceil, counted = b.pick(0, 0, 1), b.chance(0.3), b.chance(0.5)
    if b.chance(0.35):
        function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[spatial - 1]
        if b.chance(0.4):
            kind = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[spatial - 1]
            return b.call(kind(kernel, stride, padding, ceil_mode=ceil), value, axis=1)
        if b.chance(0.1):
            pair = b.call(function, value, kernel, stride, padding, ceil_mode=ceil, return_indices=True)
            return b.call(operator.getitem, pair, 0, axis=1)
        return b.call(function, value, kernel, stride, padding, b.pick(1, 1, 2), ceil_mode=ceil, axis=1)
    if b.chance(0.4):
        kind = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[spatial - 1]
        return b.call(kind(kernel, stride, padding, ceil, counted), value, axis=1)
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[spatial - 1]
    divisor = {"divisor_override": b.pick(1, 3, 4)} if spatial > 1 and b.chance(0.15) else {}
    return b.call(function, value, kernel, stride, padding, ceil, counted, axis=1, **divisor)


def adaptive(b: Builder, value: fx.Node) -> fx.Node:
    place, size = spatial_axes(b, value) - 1, b.pick(1, 1, 2, 3)
    if b.chance(0.5):
        return b.call((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[place](size), value, axis=1)
    average = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    largest = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
    return b.call(b.pick(average, average, largest)[place], value, size, axis=1)


def reduced(b: Builder, value: fx.Node) -> fx.Node:
    rank, axis = b.rank(value), b.channel[value]
    pixels = tuple(a for a in range(1, rank) if a != axis)
    axes = b.pick(pixels, pixels, tuple(a - rank for a in pixels), (rank - 1,), (b.random.randrange(rank),))
    keep, gone = b.chance(0.5), [a % rank for a in axes]
    moved = None if axis is None or axis in gone else axis - (0 if keep else sum(a < axis for a in gone))
    target = b.pick("mean", torch.mean, aten.mean.dim) if b.chance(0.7) else b.pick("amax", torch.amax, "sum", "amin")
    if b.chance(0.5):
        return b.call(target, value, axes, keep, axis=moved)
    return b.call(target, value, axes, keepdim=keep, axis=moved)


def resized(b: Builder, value: fx.Node) -> fx.Node:
    spatial = spatial_axes(b, value)
    smooth = ("linear", "bilinear", "trilinear")[spatial - 1]
    keywords: dict[str, Any] = {
        "mode": b.pick("nearest", smooth, "nearest-exact", "area", *["bicubic"] * (spatial == 2))
    }
    if keywords["mode"] in (smooth, "bicubic"):
        keywords["align_corners"] = b.pick(True, False, None)
    kind = b.random.random()
    if kind < 0.5:
        return b.call(F.interpolate, value, scale_factor=b.pick(2, 1.5, 0.5), axis=1, **keywords)
    if kind < 0.75:
        return b.call(nn.Upsample(scale_factor=2, **keywords), value, axis=1)
    return b.call(F.interpolate, value, b.pick(2, 4), axis=1, **keywords)


def rectified(b: Builder, value: fx.Node) -> fx.Node:
    axis, kind = b.channel[value], b.random.random()
    if kind < 0.5:
        return b.call(b.pick(nn.ReLU(), F.relu, "relu", torch.relu, aten.relu.default), value, axis=axis)
    if kind < 0.75:
        slope = b.pick(0.01, 0.2, -0.5)
        target = b.pick(nn.LeakyReLU(slope), F.leaky_relu, aten.leaky_relu.default)
        return b.call(target, value, *(() if isinstance(target, nn.Module) else (slope,)), axis=axis)
    slopes = b.tensor(b.pick(1, b.shape(value)[1]))
    if b.chance(0.5):
        module = nn.PReLU(len(slopes))
        module.weight.data = slopes
        return b.call(module, value, axis=axis)
    return b.call(b.pick(F.prelu, torch.prelu), value, b.hold(slopes), axis=axis)


def padded(b: Builder, value: fx.Node) -> fx.Node:
    rank, axis, kind = b.rank(value), b.channel[value], b.random.random()
    if kind < 0.4:
        mode = b.pick("reflect", "replicate", "circular")
        return b.call(F.pad, value, [b.pick(0, 1) for _ in range(2 * (rank - 2))], mode, axis=axis)
    if kind < 0.6 and rank == 4:
        return b.call(b.pick(nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ConstantPad2d(1, 0.5)), value, axis=axis)
    amounts = [b.pick(0, 1, 1, 2) for _ in range(2 * b.random.randint(1, max(1, rank - 2)))]
    if b.chance(0.2):
        amounts = [b.pick(0, 1, -1) for _ in range(2 * rank)]
    return b.call(F.pad, value, amounts, "constant", b.pick(0.0, 0.0, None, 1.0), axis=axis)


PASSAGES: tuple[Op, ...] = (
    *(unchanged, flattened, unflattened, squeezed, sliced, piece, adaptive, resized, padded),
    *(permuted, permuted, reshaped, reshaped, pooled, reduced, rectified),
)
