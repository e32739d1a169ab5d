"""What a linear operator must become when batch norms are taken into it: the formulas of the certificate.

    derived(rows_of(stored), alpha, beta, taken, norms, EXTENDED)

One code for extended precision and for exact fractions, written apart from the algebra on purpose: other layout, other
order of operations, division last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import StoredLinear, StoredNorm

Array = NDArray[Any]

_PRECISION = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126), "float64": (53, -1022)}


@dataclass(frozen=True)
class Taken:
    """The batch norms that one operator took in, by the side on which they stood, each in order of composition."""

    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.after + self.before


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
    """Exact parameters in the shapes of `Rows`, and the sum of the magnitudes of the terms of each bias."""

    taps: Array
    bias: Array
    bias_terms: Array


@dataclass(frozen=True)
class Arithmetic:
    """A kind of number: how a stored array becomes one, and its square root."""

    convert: Callable[[Array], Array]
    root: Callable[[Array], Array]

    def scalar(self, value: float) -> Array:
        """One float64 as a number of this kind."""
        return self.convert(np.array(value))


class Incomplete(Exception):
    """The records do not say enough to derive an operator again."""


def ulp(value: Array, dtype: str) -> Array:
    """The unit in the last place of `dtype` at each float64 `value`, subnormals included."""
    if dtype not in _PRECISION:
        raise Incomplete(f"weights of type {dtype} have no unit in the last place that is known here")
    bits, lowest = _PRECISION[dtype]
    exponent = np.maximum(np.frexp(value)[1] - 1, lowest)
    return np.asarray(np.ldexp(1.0, exponent - bits + 1))


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


def derived(
    op: Rows, alpha: float, beta: float, affines: Taken, norms: Mapping[str, StoredNorm], number: Arithmetic
) -> Derived:
    """What `op` must become: first the batch norms before it, then those behind it, each divided by its root last."""
    taps = number.convert(op.taps) * number.scalar(alpha)
    bias = number.convert(op.bias) * number.scalar(beta)
    terms = abs(bias)
    for name in affines.before:
        scaled, offset, mean, root = (v[op.reads][:, :, None] for v in _statistics(norms[name], number))
        bias = bias + (taps * (offset - scaled * mean / root)).sum(axis=(1, 2))
        terms = terms + (abs(taps) * (abs(offset) + abs(scaled * mean / root))).sum(axis=(1, 2))
        taps = taps * scaled / root
    for name in affines.after:
        scaled, offset, mean, root = (v[op.channels] for v in _statistics(norms[name], number))
        bias = (bias - mean) * scaled / root + offset
        terms = (terms + abs(mean)) * abs(scaled) / root + abs(offset)
        taps = taps * scaled[:, None, None] / root[:, None, None]
    return Derived(taps, bias, terms)


def _statistics(norm: StoredNorm, number: Arithmetic) -> tuple[Array, Array, Array, Array]:
    """γ, β, μ and √(σ² + ε)."""
    gamma, beta, mean, variance = (number.convert(v) for v in (norm.gamma, norm.beta, norm.mean, norm.variance))
    return gamma, beta, mean, number.root(variance + number.scalar(norm.epsilon))


def _fraction_root(value: Fraction) -> Fraction:
    """The square root, to 2⁻¹⁹⁰ of its magnitude or better."""
    shift = 2 * max(0, 200 + value.denominator.bit_length() - value.numerator.bit_length())
    return Fraction(isqrt((value.numerator << shift) // value.denominator), 1 << (shift // 2))


def _as_fractions(values: Array) -> Array:
    exact = np.empty(values.shape, dtype=object)
    exact[...] = np.frompyfunc(lambda value: Fraction(float(value)), 1, 1)(values.astype(np.float64))
    return exact


EXTENDED = Arithmetic(lambda values: values.astype(np.longdouble), np.sqrt)
EXACT = Arithmetic(_as_fractions, np.frompyfunc(_fraction_root, 1, 1))
