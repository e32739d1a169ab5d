"""What a random multi-branch graph is made of, whatever the dialect: blocks of terms that are added.

    value = grow(maker, value, blocks=2)

A block is a random tree of additions. Most of its terms are linear operators on one value whose windows fit; some miss
narrowly: another stride, one place more, another value, a nonlinearity, a second reader. A `Maker` spells them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import gcd
from random import Random
from typing import Any, Protocol

import numpy as np

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Taps:
    """Where the taps of a convolution sit, one entry per axis. `mode` is an `auto_pad` that decides about the border,
    `extra` the output padding of a transposed convolution."""

    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    before: Sizes
    after: Sizes
    mode: str | None = None
    extra: Sizes = ()

    @property
    def is_same(self) -> bool:
        """Whether `SAME_UPPER` means the same border, for every size."""
        spans = [step * (count - 1) for step, count in zip(self.dilation, self.kernel, strict=True)]
        halves = [(span // 2, span - span // 2) for span in spans]
        return set(self.stride) == {1} and halves == list(zip(self.before, self.after, strict=True))


class Maker(Protocol):
    """How a dialect spells what a block is made of; each method adds nodes and gives their value."""

    random: Random
    unlucky: tuple[type[Exception], ...]

    def undone(self) -> AbstractContextManager[None]:
        """Take back what is added if it comes to nothing."""

    def shape(self, value: Any) -> Sizes:
        """The sizes of a value."""

    def spells(self, taps: Taps) -> bool:
        """Whether the dialect has such a window."""

    def conv(self, x: Any, taps: Taps, groups: int, out: int) -> Any:
        """A convolution."""

    def transposed(self, x: Any, taps: Taps, groups: int, out: int) -> Any:
        """A transposed convolution."""

    def product(self, x: Any, out: int) -> Any:
        """A matrix product over the last axis."""

    def norm(self, x: Any) -> Any:
        """A batch norm."""

    def affine(self, x: Any, axis: int) -> Any:
        """A product or a sum with a number per channel."""

    def idle(self, x: Any) -> Any:
        """What does nothing."""

    def cast(self, x: Any) -> Any:
        """Another float type and back."""

    def relu(self, x: Any) -> Any:
        """A nonlinearity."""

    def pooled(self, x: Any) -> Any:
        """The mean of each channel, with axes of size one."""

    def join(self, kind: str, terms: list[Any]) -> Any:
        """The terms added, or the second taken from the first."""


@dataclass(frozen=True)
class Block:
    """What the terms of a block share: all read `x`, and those that fit move by `stride` over `excess` more places."""

    maker: Maker
    x: Any
    axis: int
    out: int
    style: str
    stride: Sizes = ()
    excess: Sizes = ()

    @property
    def random(self) -> Random:
        return self.maker.random

    @property
    def channels(self) -> int:
        return self.maker.shape(self.x)[self.axis]

    def groups(self, channels: int, out: int) -> int:
        most = gcd(channels, out)
        every = [groups for groups in range(1, most + 1) if most % groups == 0]
        return {"dense": 1, "depthwise": most}.get(self.style) or self.random.choice(every)

    def taps(self) -> Taps:
        """A window that fits."""
        for _ in range(30):
            axes = [self._along(excess) for excess in self.excess]
            kernel, dilation, before, after = zip(*axes, strict=True)
            taps = Taps(kernel, self.stride, dilation, before, after)
            if self.maker.spells(taps):
                return taps
        return self.point()

    def _along(self, excess: int) -> tuple[int, int, int, int]:
        count, step = self.random.choice((1, 1, 2, 3, 3, 3, 4, 5)), self.random.choice((1, 1, 1, 2, 3))
        total = excess + step * (count - 1)
        if total < 0:
            return -excess + 1, 1, 0, 0
        before = total // 2 if self.random.random() < 0.7 else self.random.randint(0, total)
        return count, step, before, total - before

    def point(self) -> Taps:
        """One tap that skips places."""
        ones, zeros = (1,) * len(self.stride), (0,) * len(self.stride)
        return Taps(ones, self.stride, ones, zeros, zeros)

    def missing(self) -> Taps:
        """A window that does not fit, though sizes may agree by chance."""
        taps, axis = self.taps(), self.random.randrange(len(self.stride))

        def changed(sizes: Sizes, by: int) -> Sizes:
            return tuple(max(size + by * (index == axis), 0) for index, size in enumerate(sizes))

        match self.random.choice(("stride", "stride", "before", "after", "after", "SAME")):
            case "stride":
                return self._strided(taps, axis)
            case "before":
                return replace(taps, before=changed(taps.before, 1), after=changed(taps.after, -1))
            case "after":
                return replace(taps, after=changed(taps.after, 1))
        return replace(taps, mode=self.random.choice(("SAME_UPPER", "SAME_LOWER")))

    def _strided(self, taps: Taps, axis: int) -> Taps:
        """Another stride that makes as many outputs from what is at hand, if the border is as wide as it takes."""
        last, step = self.maker.shape(self.x)[2 + axis] - 1, taps.stride[axis] + 1
        outputs = (last + self.excess[axis]) // taps.stride[axis] + 1
        border = (outputs - 1) * step - last + taps.dilation[axis] * (taps.kernel[axis] - 1)
        sizes = [list(each) for each in (taps.stride, taps.before, taps.after)]
        sizes[0][axis], sizes[1][axis], sizes[2][axis] = step, border // 2, border - border // 2
        stride, before, after = (tuple(each) for each in sizes)
        return replace(taps, stride=stride, before=before, after=after) if border >= 0 else taps


# terms


def _fitting(b: Block, x: Any) -> Any:
    return b.maker.conv(x, b.taps(), b.groups(b.channels, b.out), b.out)


def _missing(b: Block, x: Any) -> Any:
    taps = b.missing()
    if not b.maker.spells(taps) and taps.mode is None:
        taps = replace(taps, after=taps.before)
    return b.maker.conv(x, taps, b.groups(b.channels, b.out), b.out)


def _itself(b: Block, x: Any) -> Any:
    return x


def _affine(b: Block, x: Any) -> Any:
    made = b.maker.affine(x, b.axis) if b.axis != 1 or b.random.random() < 0.3 else b.maker.norm(x)
    return made if b.random.random() < 0.7 else b.maker.affine(made, b.axis)


def _serial(b: Block, x: Any) -> Any:
    """Two convolutions, of which one has a single tap; or neither."""
    taps, ones = b.taps(), (1,) * len(b.stride)
    point, between = replace(b.point(), stride=ones), b.random.choice((b.channels, b.out, 2, 4))
    first, second = b.random.choice(((point, taps), (point, taps), (taps, point)))
    if b.random.random() < 0.15:
        first, second = replace(point, stride=b.stride), replace(taps, stride=ones)
    if b.random.random() < 0.1:
        first, second = taps, replace(b.taps(), stride=ones)
    made = b.maker.conv(x, first, b.groups(b.channels, between), between)
    made = _after(b, made, norm=0.2, idle=0.1, relu=0.05)
    return b.maker.conv(made, second, b.groups(between, b.out), b.out)


def _transposed(b: Block, x: Any) -> Any:
    """A transposed convolution that makes outputs of the same size, where the stride is one."""
    axes = []
    for excess in b.excess:
        count = max(b.random.choice((1, 2, 3)), excess + 1)
        total = count - 1 - excess
        axes.append((count, total // 2, total - total // 2))
    kernel, before, after = zip(*axes, strict=True)
    ones = (1,) * len(kernel)
    return b.maker.transposed(x, Taps(kernel, ones, ones, before, after), b.groups(b.channels, b.out), b.out)


def _stranger(b: Block, x: Any) -> Any:
    """A linear operator, or nothing, on another value."""
    other = b.maker.relu(x)
    return _fitting(b, other) if b.stride and b.random.random() < 0.6 else other


def _pooled(b: Block, x: Any) -> Any:
    pooled = b.maker.pooled(x)
    return pooled if b.random.random() < 0.5 else b.maker.conv(pooled, replace(b.point(), stride=b.stride), 1, b.out)


def _one_channel(b: Block, x: Any) -> Any:
    return b.maker.conv(x, b.taps(), 1, 1)


def _product(b: Block, x: Any) -> Any:
    return b.maker.product(x, b.out)


def _chain(b: Block, x: Any) -> Any:
    between = b.random.choice((b.channels, b.out, 1, 2, 6))
    return b.maker.product(_after(b, b.maker.product(x, between), idle=0.1, relu=0.1), b.out)


Term = Callable[[Block, Any], Any]
CONVOLUTIONS: dict[Term, int] = {
    _fitting: 50,
    _itself: 12,
    _affine: 14,
    _serial: 14,
    _transposed: 4,
    _stranger: 5,
    _missing: 12,
    _pooled: 3,
    _one_channel: 2,
}
PRODUCTS: dict[Term, int] = {_product: 50, _itself: 15, _affine: 15, _chain: 20, _stranger: 4}


def _after(b: Block, x: Any, norm: float = 0.0, idle: float = 0.0, relu: float = 0.0, cast: float = 0.0) -> Any:
    """What may stand behind a term."""
    chance = b.random.random
    if chance() < norm:
        x = _affine(b, x)
    if chance() < idle:
        x = b.maker.idle(x)
    if chance() < cast:
        x = b.maker.cast(x)
    return b.maker.relu(x) if chance() < relu else x


def _term(b: Block, make: Term) -> Any:
    x = _after(b, b.x, norm=0.04, idle=0.08, cast=0.02)
    made = _after(b, make(b, x), norm=0.3, idle=0.1, relu=0.02, cast=0.04)
    if b.random.random() < 0.06:
        b.maker.relu(made)  # it has a second reader
    return made


# blocks


def grow(maker: Maker, x: Any, blocks: int) -> Any:
    """So many blocks behind a value, as far as they come to something."""
    for _ in range(blocks):
        made = _tried(maker, lambda x=x: _block(maker, x))
        if made is None:
            continue
        choice = maker.random.random()
        x = maker.relu(made) if choice < 0.35 else _after(_alike(maker, made), made, norm=0.3, idle=0.2)
    return x


def _tried(maker: Maker, make: Callable[[], Any]) -> Any:
    try:
        with maker.undone():
            return make()
    except maker.unlucky:
        return None


def _alike(maker: Maker, x: Any) -> Block:
    """The block of all that keeps the shape of a value."""
    axis = 1 if len(maker.shape(x)) > 2 else len(maker.shape(x)) - 1
    return Block(maker, x, axis, maker.shape(x)[axis], "dense")


def _block(maker: Maker, x: Any) -> Any:
    random, shape = maker.random, maker.shape(x)
    rank = len(shape)
    convolves = rank > 3 or (rank == 3 and random.random() < 0.6)
    axis = 1 if convolves else rank - 1
    out = shape[axis] if random.random() < 0.7 else random.choice((2, 3, 4, 6))
    b = Block(maker, x, axis, out, random.choice(("dense", "dense", "depthwise", "mixed")))
    if convolves:
        stride = tuple(random.choice((1, 1, 1, 2)) for _ in shape[2:]) if random.random() < 0.5 else (1,) * (rank - 2)
        excess = tuple(random.choice((0, 0, 0, -1, 1)) for _ in stride) if random.random() < 0.3 else (0,) * len(stride)
        b = replace(b, stride=stride, excess=excess)
    table = CONVOLUTIONS if convolves else PRODUCTS
    if convolves and random.random() < 0.08:
        return _transposed_block(b)
    terms = [_term(b, next(iter(table)))]
    for _ in range(random.choice((1, 1, 2, 2, 3, 4, 5))):
        make = random.choices(list(table), list(table.values()))[0]
        made = random.choice(terms) if random.random() < 0.03 else _tried(maker, lambda make=make: _term(b, make))
        if made is not None and _fits(maker.shape(made), maker.shape(terms[0])):
            terms.append(made)
    random.shuffle(terms)
    return _tree(b, terms)


def _fits(shape: Sizes, onto: Sizes) -> bool:
    try:
        return np.broadcast_shapes(shape, onto) == onto
    except ValueError:
        return False


def _transposed_block(b: Block) -> Any:
    """Transposed convolutions alike but for their numbers, or almost."""
    stride = tuple(b.random.choice((1, 2)) for _ in b.stride)
    kernel = tuple(b.random.choice((1, 2, 3)) for _ in stride)
    before = tuple(b.random.randint(0, min(1, count - 1)) for count in kernel)
    extra = tuple(b.random.randint(0, step - 1) for step in stride)
    ones = (1,) * len(stride)
    taps = Taps(kernel, stride, ones, before, before, extra=extra)
    less, more = (tuple(size + by for size in before) for by in (-1, 1))
    moved = replace(taps, before=less if min(less) >= 0 else before, after=more if min(less) >= 0 else before)
    point = replace(taps, kernel=ones, before=(0,) * len(ones), after=(0,) * len(ones), extra=())
    others = (taps, taps, taps, moved, point)
    terms = []
    for _ in range(b.random.choice((2, 2, 3))):
        made = b.maker.transposed(b.x, b.random.choice(others), b.groups(b.channels, b.out), b.out)
        made = _after(b, made, norm=0.3, idle=0.1)
        if not terms or b.maker.shape(made) == b.maker.shape(terms[0]):
            terms.append(made)
    return _tree(b, terms)


def _tree(b: Block, terms: list[Any]) -> Any:
    """The terms added up in any order."""
    while len(terms) > 1:
        kind = b.random.choice(("add", "add", "add", "sub", "sum"))
        count = min(len(terms), b.random.randint(2, 4)) if kind == "sum" else 2
        some = [terms.pop(b.random.randrange(len(terms))) for _ in range(count)]
        terms.append(_after(b, b.maker.join(kind, some), idle=0.06 if len(terms) else 0.0))
    return terms[0]
