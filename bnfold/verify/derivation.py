"""What a linear operator must become when affines are taken into it: the formulas of the certificate.

    derived(rows_of(stored), alpha, beta, taken, expressions)

One code for extended precision and for exact fractions, written apart from the algebra on purpose: other layout, other
order of operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import StoredLinear
from bnfold.origin import Origin, names_of
from bnfold.verify.expression import Arithmetic, Expressions, Incomplete

Array = NDArray[Any]

_PRECISION = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126), "float64": (53, -1022)}


@dataclass(frozen=True)
class Taken:
    """The affines that one operator took in, by the side on which they stood, each in order of composition."""

    after: tuple[Origin, ...] = ()
    before: tuple[Origin, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for origin in self.after + self.before for name in names_of(origin)))


@dataclass(frozen=True)
class Rows:
    """Some output channels of a linear operator, whatever its layout: `taps` of shape `(rows, inputs, tap)`.

    `bias` is `(rows,)`, `channels` says which output each row is, `reads` `(rows, inputs)` which input each tap sees.
    """

    taps: Array
    bias: Array
    channels: Array
    reads: Array

    def select(self, rows: slice, inputs: slice = slice(None)) -> Rows:
        """A part of the rows, and of the inputs of each."""
        return Rows(self.taps[rows, inputs], self.bias[rows], self.channels[rows], self.reads[rows, inputs])


@dataclass(frozen=True)
class Derived:
    """Exact parameters in the shapes of `Rows`, the sum of the magnitudes of the terms of each bias, and how many
    affines were composed one after the other."""

    taps: Array
    bias: Array
    bias_terms: Array
    steps: int


def ulp(value: Array, dtype: str) -> Array:
    """The unit in the last place of `dtype` at each float64 `value`, subnormals included."""
    if dtype not in _PRECISION:
        raise Incomplete(f"weights of type {dtype} have no unit in the last place that is known here")
    bits, lowest = _PRECISION[dtype]
    exponent = np.maximum(np.frexp(value)[1] - 1, lowest)
    return np.asarray(np.ldexp(1.0, exponent - bits + 1))


def distance(stored: Array, exact: Array, allowance: Array, number: Arithmetic) -> Array:
    """How far each stored number is from the exact one beyond the allowance, in ulp; infinite for a NaN or infinity."""
    finite = np.isfinite(stored)
    gap = np.abs((number.convert(np.where(finite, stored, stored.dtype.type(0))) - exact).astype(np.float64))
    ulps = np.maximum(gap - allowance, 0) / ulp(exact.astype(np.float64), stored.dtype.name)
    return np.asarray(np.where(finite, ulps, np.inf))


def rows_of(op: StoredLinear) -> Rows:
    """Any stored layout by output channels; a view where the layout allows it."""
    if op.layout in ("linear", "matmul"):
        split = (op.weight if op.layout == "linear" else op.weight.T)[None, :, :, None]
    else:
        split = op.weight.reshape(op.groups, op.weight.shape[0] // op.groups, op.weight.shape[1], -1)
    if op.layout == "conv_transpose":
        split = split.swapaxes(1, 2)
    groups, outs, inputs, taps = split.shape
    channels = np.arange(groups * outs)
    bias = np.zeros(1, op.weight.dtype) if op.bias is None else op.bias.reshape(-1)
    reads = (channels // max(outs, 1) * inputs)[:, None] + np.arange(inputs)
    return Rows(split.reshape(-1, inputs, taps), np.broadcast_to(bias, len(channels)), channels, reads)


def derived(op: Rows, alpha: float, beta: float, affines: Taken, expressions: Expressions) -> Derived:
    """What `op` must become: first the affines before it, then those behind it."""
    number = expressions.number
    taps = number.convert(op.taps) * number.scalar(alpha)
    bias = number.convert(op.bias) * number.scalar(beta)
    terms, steps = abs(bias), 0
    start, stop = (op.reads.min(), op.reads.max() + 1) if op.reads.size else (0, 0)
    for origin in affines.before:
        inner = expressions.at(origin, np.arange(start, stop))
        seen = (each[op.reads - start] for each in (inner.scale, inner.shift, inner.terms))
        scale, shift, magnitude = (each[:, :, None] for each in seen)
        bias = bias + (taps * shift).sum(axis=(1, 2))
        terms = terms + (abs(taps) * magnitude).sum(axis=(1, 2))
        taps, steps = taps * scale, steps + inner.steps
    for origin in affines.after:
        outer = expressions.at(origin, op.channels)
        bias = bias * outer.scale + outer.shift
        terms = terms * abs(outer.scale) + outer.terms
        taps, steps = taps * outer.scale[:, None, None], steps + outer.steps
    return Derived(taps, bias, terms, steps)
