"""What an origin expression says in numbers, worked out again from the stored tensors.

    Expressions(evidence, EXTENDED).at(origin, channels)

An expression is asked for the channels that are needed, and asks its parts for theirs, down to the stored numbers: the
other way round than the algebra, which carries whole affines along. One code serves extended precision and exact
fractions. What contradicts itself (a channel that is not there, a join of different scales) is a `Contradiction`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredAffine, StoredNorm
from bnfold.origin import Chain, Joined, Leaf, Origin, Part, Stack, names_of

Array = NDArray[Any]

ROUNDING = 8 * 2.0**-53


class Incomplete(Exception):
    """The records do not say enough to derive an operator again."""


class Contradiction(Exception):
    """The records contradict each other; `affine` is the one to name."""

    def __init__(self, because: str, affine: str | None = None) -> None:
        super().__init__(because)
        self.affine = affine


@dataclass(frozen=True)
class Arithmetic:
    """A kind of number: how a stored array becomes one, and its square root."""

    convert: Callable[[Array], Array]
    root: Callable[[Array], Array]

    def scalar(self, value: float) -> Array:
        """One float64 as a number of this kind."""
        return self.convert(np.array(value))

    def full(self, like: Array, value: float) -> Array:
        """That number once per channel."""
        return self.convert(np.full(like.shape, value))


@dataclass(frozen=True)
class Affine:
    """`scale · x + shift` at some channels.

    `terms` are the summed magnitudes of what `shift` is made of; the algebra computes it in at most `steps` affines.
    """

    scale: Array
    shift: Array
    terms: Array
    steps: int = 1

    def after(self, first: Affine) -> Affine:
        """This one applied to the result of `first`."""
        return Affine(
            self.scale * first.scale,
            self.scale * first.shift + self.shift,
            abs(self.scale) * first.terms + self.terms,
            self.steps + first.steps,
        )

    def does_nothing(self) -> bool:
        """Whether it is the identity, but for what float64 loses."""
        loss = ROUNDING * self.steps
        return bool(np.all(abs(self.scale - 1) <= loss) and np.all(abs(self.shift) <= loss * self.terms))


class Expressions:
    """Origin expressions over what one model stores, in one kind of number. An expression met twice is evaluated once.

    The expressions must outlive this object, which knows them by identity.
    """

    def __init__(self, stored: Evidence, number: Arithmetic) -> None:
        self.number = number
        self._stored = stored
        self._widths: dict[int, int] = {}
        self._known: dict[tuple[int, bytes], Affine] = {}

    def is_identity(self, origin: Origin) -> bool:
        """Whether every channel of an expression stays as it is."""
        return self.at(origin, np.arange(self.width(origin))).does_nothing()

    def width(self, origin: Origin) -> int:
        """How many channels an expression has."""
        if id(origin) not in self._widths:
            self._widths[id(origin)] = self._width(origin)
        return self._widths[id(origin)]

    def at(self, origin: Origin, channels: Array) -> Affine:
        """The affine at these channels; the only channel there is stands for every one."""
        width = self.width(origin)
        if width == 1:
            channels = np.zeros_like(channels)
        elif channels.size and not 0 <= channels.min() <= channels.max() < width:
            name = names_of(origin)[0]
            raise Contradiction(f"what {name} became has {width} channels, and channel {channels.max()} is used", name)
        key = (id(origin), channels.tobytes())
        if key not in self._known:
            self._known[key] = self._evaluated(origin, channels)
        return self._known[key]

    def _width(self, origin: Origin) -> int:
        match origin:
            case Leaf(name):
                record = self._record(name)
                return record.mean.size if isinstance(record, StoredNorm) else _constant(record, name).size
            case Part(of, index):
                return self.width(of) if index is None else len(index)
            case Stack(parts):
                return sum(size for _, size in parts)
            case Chain(first, second) | Joined(first, second):
                return max(self.width(first), self.width(second))

    def _evaluated(self, origin: Origin, channels: Array) -> Affine:
        match origin:
            case Leaf(name):
                return self._leaf(name, channels)
            case Part():
                return self._part(origin, channels)
            case Stack(parts):
                return self._stack(parts, channels)
            case Chain(first, second):
                return self.at(second, channels).after(self.at(first, channels))
            case Joined():
                return self._joined(origin, channels)

    def _record(self, name: str) -> StoredNorm | StoredAffine:
        record = self._stored.norms.get(name) or self._stored.affines.get(name)
        if record is None:
            raise Incomplete(f"the original model has no stored statistics for {name}")
        return record

    def _leaf(self, name: str, channels: Array) -> Affine:
        record, number = self._record(name), self.number
        if isinstance(record, StoredAffine):
            return _elementwise(record.op, number.convert(_constant(record, name)[channels]), number)
        statistics = (record.gamma, record.beta, record.mean, record.variance)
        gamma, beta, mean, variance = (number.convert(each[channels]) for each in statistics)
        root = number.root(variance + number.scalar(record.epsilon))
        moved = gamma * mean / root
        return Affine(gamma / root, beta - moved, abs(beta) + abs(moved))

    def _part(self, part: Part, channels: Array) -> Affine:
        picked = channels if part.index is None else part.index[channels]
        of = self.at(part.of, np.maximum(picked, 0))
        one, zero, factor = (self.number.scalar(value) for value in (1.0, 0.0, part.shifted))
        absent = picked < 0
        return Affine(
            np.where(absent, one, of.scale if part.scaled else one),
            np.where(absent, zero, of.shift * factor),
            np.where(absent, zero, of.terms * abs(factor)),
            of.steps,
        )

    def _stack(self, parts: tuple[tuple[Origin | None, int], ...], channels: Array) -> Affine:
        scale, shift, terms = (self.number.full(channels, value) for value in (1.0, 0.0, 0.0))
        start, steps = 0, 1
        for part, size in parts:
            mine = (channels >= start) & (channels < start + size)
            if part is not None and mine.any():
                piece = self.at(part, channels[mine] - start)
                scale[mine], shift[mine], terms[mine] = piece.scale, piece.shift, piece.terms
                steps = max(steps, piece.steps)
            start += size
        return Affine(scale, shift, terms, steps)

    def _joined(self, joined: Joined, channels: Array) -> Affine:
        first, second = self.at(joined.first, channels), self.at(joined.second, channels)
        steps = max(first.steps, second.steps) + 1
        gap = abs(first.scale - second.scale)
        if not np.all(gap <= ROUNDING * steps * abs(first.scale)):
            names = names_of(joined)
            raise Contradiction(f"the scales of {' and '.join(names)} differ where they are joined", names[0])
        return Affine(first.scale, first.shift + second.shift, first.terms + second.terms, steps)


def _constant(record: StoredAffine, name: str) -> Array:
    """The operand as one number per channel, or one for all."""
    operand = np.zeros(1) if record.constant is None else record.constant
    if operand.size != max(operand.shape, default=1):
        for axis in range(operand.ndim):
            first = operand.take([0], axis)
            operand = first if np.array_equal(np.broadcast_to(first, operand.shape), operand) else operand
    if operand.size != max(operand.shape, default=1):
        raise Contradiction(f"the constant of {name} is not one number per channel", name)
    return operand.reshape(-1)


def _elementwise(op: str, operand: Array, number: Arithmetic) -> Affine:
    one, zero = number.full(operand, 1.0), number.full(operand, 0.0)
    match op:
        case "mul":
            scale, shift = operand, zero
        case "div":
            scale, shift = one / operand, zero
        case "add":
            scale, shift = one, operand
        case "sub":
            scale, shift = one, -operand
        case "rsub":
            scale, shift = -one, operand
        case _:
            scale, shift = -one, zero
    return Affine(scale, shift, abs(shift))


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
