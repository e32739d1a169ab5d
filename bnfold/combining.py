"""Merging is addition, and composition of two linear operators.

    added(first, second)      `first(x) + second(x)` as one operator
    composed(second, first)   `second(first(x))` as one operator
    linear(affine, like)      an affine, or the identity, as an operator of one tap per channel

Kernels of different size are embedded in the larger one, and groups of different number become as many as both have in
common. The numbers are worked out in float64 when they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np

from bnfold.algebra import Array, ChannelAffine, LinearOp, Parameters
from bnfold.graph import Reason
from bnfold.window import Window


def added(first: LinearOp, second: LinearOp) -> LinearOp | Reason:
    """`first(x) + second(x)`; `Reason` where they make outputs of different shapes."""
    axes = [(op.in_axis, op.out_axis, op.in_channels, op.out_channels) for op in (first, second)]
    if axes[0] != axes[1]:
        return Reason.AXIS_DIFFERS
    window = None if first.window is None or second.window is None else first.window.union(second.window)
    if window is None:
        return Reason.WINDOWS_DIFFER
    groups = gcd(first.groups, second.groups)

    def stored() -> Parameters:
        taps, bias = (
            sum(each) for each in zip(*(_embedded(op, groups, window) for op in (first, second)), strict=True)
        )
        return Parameters(taps, bias)

    return _made(first, second, groups, window, ("sum", first.source, second.source), stored)


def composed(second: LinearOp, first: LinearOp) -> LinearOp | Reason:
    """`second(first(x))`; one of them must have a single tap."""
    if (first.out_axis, first.out_channels) != (second.in_axis, second.in_channels):
        return Reason.AXIS_DIFFERS
    window = None if first.window is None or second.window is None else second.window.behind(first.window)
    if window is None:
        return Reason.WINDOWS_DIFFER
    if second.bordered and np.any(first.evaluate().bias != 0):
        return Reason.PADDED_BORDER
    groups = gcd(first.groups, second.groups)

    def stored() -> Parameters:
        inner, outer = first.evaluate(), second.evaluate()
        taps = np.einsum("gomt,gmis->goits", _regrouped(outer.taps, groups), _regrouped(inner.taps, groups))
        moved = (outer.taps * inner.bias.reshape(second.groups, 1, -1, 1)).sum(axis=(2, 3)).reshape(-1)
        return Parameters(taps.reshape(*taps.shape[:3], -1), outer.bias + moved)

    return _made(first, second, groups, window, ("product", first.source, second.source), stored)


def linear(affine: ChannelAffine | None, like: LinearOp) -> LinearOp | Reason:
    """An affine of what `like` reads as an operator beside it; None is the identity."""
    if like.window is None or like.in_axis != like.out_axis or like.in_channels != like.out_channels:
        return Reason.AXIS_DIFFERS
    channels, axis = like.in_channels, like.in_axis
    nothing = ChannelAffine(np.ones(1), np.zeros(1), None)
    map_ = (affine or nothing).onto(channels, axis)
    if (map_.axis, map_.channels) != (axis, channels):
        return Reason.AXIS_DIFFERS
    return LinearOp(
        channels,
        channels,
        channels,
        axis,
        axis,
        bordered=False,
        source=("affine", map_.digest),
        stored=lambda: Parameters(map_.scale.reshape(-1, 1, 1, 1), map_.shift),
        window=Window.point(len(like.window.kernel)),
    )


def work(op: LinearOp) -> int:
    """Multiply-adds of one output place."""
    assert op.window is not None, "only what has a window is merged"
    return op.out_channels * (op.in_channels // op.groups) * op.window.taps


def cancellation(parts: Sequence[LinearOp], whole: LinearOp) -> float:
    """How many times larger the terms are than their sum: the largest `Σ‖Wᵢ‖₁ / ‖ΣWᵢ‖₁` of an output channel."""
    sizes = [_magnitudes(part) for part in parts]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sum(sizes) / _magnitudes(whole)
    return float(np.nanmax(ratios, initial=1.0))


def _magnitudes(op: LinearOp) -> Array:
    magnitudes: Array = np.abs(op.evaluate().taps).sum(axis=(2, 3)).reshape(-1)
    return magnitudes


def _made(first: LinearOp, second: LinearOp, groups: int, window: Window, source: object, stored: object) -> LinearOp:
    return LinearOp(
        first.in_channels,
        second.out_channels,
        groups,
        first.in_axis,
        second.out_axis,
        bordered=window.bordered or window.fixed is not None,
        source=(source,),
        stored=stored,  # type: ignore[arg-type]
        window=window,
    )


def _embedded(op: LinearOp, groups: int, window: Window) -> tuple[Array, Array]:
    """The parameters of an operator in fewer groups and a larger window."""
    assert op.window is not None, "only what has a window is merged"
    parameters = op.evaluate()
    taps = _regrouped(parameters.taps, groups)
    wide = np.zeros((*taps.shape[:3], window.taps))
    wide[..., op.window.places(window)] = taps
    return wide, parameters.bias


def _regrouped(taps: Array, groups: int) -> Array:
    """The same map in fewer groups: what was apart has zeros between."""
    each = len(taps) // groups
    if each == 1:
        return taps
    outs, inputs, count = taps.shape[1:]
    wide = np.zeros((groups, each, outs, each, inputs, count))
    split = taps.reshape(groups, each, outs, inputs, count)
    for index in range(each):
        wide[:, index, :, index] = split[:, index]
    return wide.reshape(groups, each * outs, each * inputs, count)
