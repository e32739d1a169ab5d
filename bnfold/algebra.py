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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bnfold.origin import Chain, Joined, Leaf, Origin, Part, Stack
from bnfold.window import Window

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """`scale[c] · x + shift[c]`, where `c` is the index along `axis` of the value (counted from 0).

    `scale` and `shift` have the shape `(channels,)`. An `axis` of None means one number for the whole value: the shape
    is `(1,)` then. `origin` says which affines of the model the numbers come from.
    """

    scale: Array
    shift: Array
    axis: int | None
    origin: Origin | None = None

    @classmethod
    def normalisation(
        cls, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float, axis: int
    ) -> ChannelAffine:
        """`γ (x − μ) / √(σ² + ε) + β` (Ioffe and Szegedy, 2015, algorithm 2); arrays of shape `(channels,)`."""
        with np.errstate(all="ignore"):  # who takes the numbers in refuses what is not finite
            scale = gamma / np.sqrt(variance + epsilon)
            return cls(scale, beta - mean * scale, axis)

    @classmethod
    def stacked(cls, parts: Sequence[tuple[ChannelAffine | None, int]], axis: int) -> ChannelAffine:
        """Affines side by side along `axis`, each with its number of channels; None is the identity."""
        total = sum(size for _, size in parts)
        scale, shift, start = np.ones(total), np.zeros(total), 0
        for each, size in parts:
            if each is not None:
                scale[start : start + size], shift[start : start + size] = each.scale, each.shift
            start += size
        origin = Stack(tuple((each.origin if each else None, size) for each, size in parts))
        return cls(scale, shift, axis, origin)

    @property
    def channels(self) -> int:
        return len(self.scale)

    @property
    def shifts(self) -> bool:
        """Whether any channel is moved, not only scaled."""
        return bool(np.any(self.shift != 0))

    @property
    def scales(self) -> bool:
        """Whether any channel is scaled, not only moved."""
        return bool(np.any(self.scale != 1))

    @property
    def is_identity(self) -> bool:
        return not (self.scales or self.shifts)

    def named(self, name: str) -> ChannelAffine:
        """The affine of the node of this name, where it stands, or a part of it; one channel is no channel."""
        return replace(self, origin=self.origin or Leaf(name), axis=None if self.channels == 1 else self.axis)

    def along(self, axis: int | None) -> ChannelAffine:
        """The same numbers along another axis."""
        return replace(self, axis=axis)

    def take(self, index: NDArray[np.intp], axis: int | None) -> ChannelAffine:
        """Channel `i` of the result is channel `index[i]` of this one, or the identity where that is −1."""
        ours = np.where(index < 0, -1, 0 if self.axis is None else index)
        scale = np.append(self.scale, 1.0)[ours]
        shift = np.append(self.shift, 0.0)[ours]
        return ChannelAffine(scale, shift, axis if len(index) > 1 else None, self.origin and Part(self.origin, ours))

    def onto(self, channels: int, axis: int) -> ChannelAffine:
        """As an affine of so many channels along an axis: what it is already, unless it is uniform."""
        return self.take(np.zeros(channels, dtype=np.intp), axis).along(axis) if self.axis is None else self

    def alike(self) -> ChannelAffine:
        """As one number for the whole value, where every channel has the same."""
        same = self.channels and (self.scale == self.scale[0]).all() and (self.shift == self.shift[0]).all()
        return self.take(np.zeros(1, dtype=np.intp), None) if same else self

    def scaling(self) -> ChannelAffine:
        """Its scale alone."""
        origin = self.origin and Part(self.origin, shifted=0.0)
        return ChannelAffine(self.scale, np.zeros_like(self.shift), self.axis, origin)

    def shifting(self, factor: float = 1.0) -> ChannelAffine:
        """Its shift alone, times a factor."""
        origin = self.origin and Part(self.origin, scaled=False, shifted=factor)
        return ChannelAffine(np.ones_like(self.scale), self.shift * factor, self.axis, origin)

    def terms(self, rank: int) -> dict[str, Array]:
        """`scale` to multiply a value of this rank by, `shift` to add to it; the one that does nothing is left out."""
        shape = (self.channels,) if self.axis is None else (self.channels, *(1,) * (rank - 1 - self.axis))
        scale = {"scale": self.scale.reshape(shape)} if self.scales or not self.shifts else {}
        return scale | ({"shift": self.shift.reshape(shape)} if self.shifts else {})

    def opposite(self) -> ChannelAffine:
        """Its scale and the negated shift."""
        origin = self.origin and Part(self.origin, shifted=-1.0)
        return ChannelAffine(self.scale, -self.shift, self.axis, origin)

    def joined(self, other: ChannelAffine) -> ChannelAffine:
        """The affine of a sum of two terms with these affines, whose scales are equal."""
        origin = Joined(self.origin, other.origin) if self.origin and other.origin else None
        axis = self.axis if self.axis is not None else other.axis
        scale, shift = np.broadcast_arrays(self.scale, self.shift + other.shift)
        return ChannelAffine(scale, shift, axis, origin)

    def same_as(self, other: ChannelAffine) -> bool:
        """Whether both are the same map of the same value."""
        return self.axis == other.axis and self.digest == other.digest

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
        axis = self.axis if self.axis is not None else first.axis
        origin = Chain(first.origin, self.origin) if self.origin and first.origin else None
        with np.errstate(over="ignore", invalid="ignore"):  # who takes the numbers in refuses what is not finite
            return ChannelAffine(self.scale * first.scale, self.scale * first.shift + self.shift, axis, origin)


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
    `window` says where the taps sit; None where that is not known.
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
    window: Window | None = None

    def evaluate(self) -> Parameters:
        """The parameters with everything that was composed."""
        with np.errstate(all="ignore"):  # who takes the numbers in refuses what is not finite
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
