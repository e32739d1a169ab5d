"""Folding is composition.

An inference-time batch norm is a `ChannelAffine`, a convolution or a matrix product with constant weights is a
`LinearOp`, and `@` composes them as functions: `(f @ g)(x) == f(g(x))`.

    affine @ linear   the batch norm after the operator
    linear @ affine   the batch norm before the operator
    affine @ affine   two batch norms in a row

All numbers are float64. Nothing here knows a graph, a framework or the dtype that a result will be rounded to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """`scale[c] · x + shift[c]`, where `c` is the index along `axis` of the value (counted from 0).

    `scale` and `shift` have the shape `(channels,)`.
    """

    scale: Array
    shift: Array
    axis: int

    @classmethod
    def normalisation(
        cls, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float, axis: int
    ) -> ChannelAffine:
        """`γ (x − μ) / √(σ² + ε) + β` (Ioffe and Szegedy, 2015, algorithm 2); arrays of shape `(channels,)`."""
        scale = gamma / np.sqrt(variance + epsilon)
        return cls(scale, beta - mean * scale, axis)

    @property
    def channels(self) -> int:
        return len(self.scale)

    @property
    def shifts(self) -> bool:
        """Whether any channel is moved, not only scaled."""
        return bool(np.any(self.shift != 0))

    @cached_property
    def digest(self) -> bytes:
        """Equal for equal maps; what tells two copies of a shared weight apart before they are evaluated."""
        return hashlib.sha256(self.scale.tobytes() + self.shift.tobytes()).digest()

    @overload
    def __matmul__(self, first: ChannelAffine) -> ChannelAffine: ...
    @overload
    def __matmul__(self, first: LinearOp) -> LinearOp: ...
    def __matmul__(self, first: ChannelAffine | LinearOp) -> ChannelAffine | LinearOp:
        if isinstance(first, LinearOp):
            return first.then(self)
        return ChannelAffine(self.scale * first.scale, self.scale * first.shift + self.shift, self.axis)


@dataclass(frozen=True)
class Parameters:
    """The numbers of a `LinearOp`: `taps` of shape `(groups, out per group, in per group, tap)`, `bias` `(out,)`."""

    taps: Array
    bias: Array


@dataclass(frozen=True, eq=False)
class LinearOp:
    """`W x + b` along a channel axis: convolutions of any rank and group count, their transposes, matrix products.

    `stored` gives the parameters as they are stored and is called only when numbers are needed; `steps` are the affines
    composed since, in order. `source` names the tensors and grows with every step: two operators with an equal `source`
    have equal parameters. `bordered` says that some outputs see only a part of the kernel (padding, any transposed
    convolution wider than one tap), so that a constant added to the input is not a constant added to the output.
    """

    in_channels: int
    out_channels: int
    groups: int
    in_axis: int
    out_axis: int
    bordered: bool
    source: tuple[object, ...]
    stored: Callable[[], Parameters]
    steps: tuple[Callable[[Parameters], Parameters], ...] = ()

    def evaluate(self) -> Parameters:
        """The parameters with everything that was composed."""
        parameters = self.stored()
        for step in self.steps:
            parameters = step(parameters)
        return parameters

    def then(self, affine: ChannelAffine) -> LinearOp:
        """`affine @ self`: W'[o] = s[o] W[o], b' = s b + t."""

        def step(before: Parameters) -> Parameters:
            scale = affine.scale.reshape(self.groups, -1, 1, 1)
            return Parameters(before.taps * scale, affine.scale * before.bias + affine.shift)

        return replace(self, steps=(*self.steps, step), source=(*self.source, "after", affine.digest))

    def __matmul__(self, affine: ChannelAffine) -> LinearOp:
        """`self @ affine`: W'[o, i] = W[o, i] s[i], b'[o] = b[o] + Σ W[o, i, tap] t[i]. No shift crosses a border."""

        def step(before: Parameters) -> Parameters:
            scale = affine.scale.reshape(self.groups, 1, -1, 1)
            shift = affine.shift.reshape(self.groups, 1, -1, 1)
            moved = (before.taps * shift).sum(axis=(2, 3)).reshape(-1)
            return Parameters(before.taps * scale, before.bias + moved)

        return replace(self, steps=(*self.steps, step), source=(*self.source, "before", affine.digest))
