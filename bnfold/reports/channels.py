"""What the weights of a linear operator are like, output channel by output channel.

It says what integer weights lose. A scale for the whole tensor is made for the channel with the largest weight. A scale
for each channel is made for the largest weight of the channel, and the rounding of all others against their root mean
square grows as the one over the other: the crest factor. A fold into the operator in front of a batch norm scales whole
channels and keeps it; one into the operator behind, and a merge, do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import StoredLinear, Tensor
from bnfold.reports.limits import SMALLEST_NORMAL
from bnfold.reports.statistics import Channels

PART = 1 << 20
"""How many weights are looked at together."""

Magnitudes = NDArray[np.float64]
"""One for each output channel, of shape `(channels,)`."""


def magnitudes(linear: StoredLinear) -> tuple[Magnitudes, Channels]:
    """Of each output channel: the largest magnitude of its weights, and whether a weight or its bias is subnormal."""
    weight, bias = _by_channel(linear), linear.bias
    largest, small = np.zeros(len(weight)), np.zeros(len(weight), np.bool_)
    with np.errstate(invalid="ignore"):  # a NaN stays one
        for part, rows in _parts(weight):
            largest[part] = rows.max(axis=1, initial=0)
            small[part] = is_subnormal(rows).any(axis=1)
    if bias is not None and bias.size == len(weight):
        small |= is_subnormal(np.abs(bias.reshape(-1)))
    return largest, small


def crests(linear: StoredLinear) -> Magnitudes:
    """The crest factor of each output channel: the largest magnitude of its weights over their root mean square. NaN
    where no weight is other than zero, or one is not finite."""
    weight = _by_channel(linear)
    found = np.zeros(len(weight))
    with np.errstate(divide="ignore", invalid="ignore"):
        for part, rows in _parts(weight):
            wide = rows.astype(np.float64)
            largest = wide.max(axis=1, initial=0, keepdims=True)
            found[part] = np.sqrt(weight.shape[1] / np.square(wide / largest).sum(axis=1))
    return found


def usable(values: Magnitudes) -> Magnitudes:
    """Those that are above zero and finite: what a median is taken of."""
    return values[np.isfinite(values) & (values > 0)]


def _parts(weight: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Magnitudes of a bounded number of weights, whole channels, and which channels they are."""
    step = max(1, PART // max(weight.shape[1], 1))
    for start in range(0, len(weight), step):
        part = slice(start, min(start + step, len(weight)))
        yield part, np.abs(weight[part])


def _by_channel(linear: StoredLinear) -> NDArray[Any]:
    """The weight with a row for each output channel."""
    weight = linear.weight
    if linear.layout == "conv_transpose":
        grouped = weight.reshape(linear.groups, -1, *weight.shape[1:])
        return np.moveaxis(grouped, 2, 1).reshape(linear.groups * weight.shape[1], -1)
    if linear.layout == "matmul":
        return np.moveaxis(weight, -1, 0).reshape(weight.shape[-1], -1)
    return weight.reshape(weight.shape[0], -1)


def is_subnormal(magnitudes: Tensor) -> Channels:
    """Which magnitudes are too small for the full precision of their type, but not zero."""
    smallest = np.asarray(SMALLEST_NORMAL.get(magnitudes.dtype.name, 0.0), magnitudes.dtype)
    with np.errstate(invalid="ignore"):  # a NaN is neither
        return np.asarray((magnitudes > 0) & (magnitudes < smallest))
