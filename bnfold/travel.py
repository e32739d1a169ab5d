"""Travelling is commutation: `affine ∘ operator = operator ∘ affine'` for many operators without weights.

Each class here is a `Passage`, which relates all ports of an operator:

    upstream(port, affine)   what the inputs must become for this output to become `affine(output)`
    downstream(affines)      what must be done to the outputs if these affines are taken off the inputs

or says for which `Reason` there is no answer. None is the identity. Seven classes do all of it:

    Same      pools, means, resizing, ReLU, padding, casts: the channel stays where it is
    Reshape   Flatten, Squeeze, Unsqueeze: the channel is a digit of the linear index
    Permute   Transpose
    Concat    each input its slice
    Split     Slice, Gather, Chunk, Unbind: pieces
    Sum       Add, Sub: every term takes the scale, any one takes the shift
    Gate      a product of two run-time values: one factor takes the scale

Front ends make them of facts: sizes that the graph enforces, a symbol for an unknown size, None for no knowledge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra import ChannelAffine
from bnfold.graph import Affines, Asked, Reason
from bnfold.origin import names_of

Size = int | str | None
Shape = tuple[Size, ...]
Index = NDArray[np.intp]

LARGEST_RUN = 1 << 22
"""Of so many numbers each may be looked at; what is longer is no axis of channels."""


@dataclass(frozen=True)
class Same:
    """The channel stays where it is.

    Values are mixed along the axes `mixed` (by weights that sum to one); every number in `fixes` must be mapped to
    itself, since the operator puts it in or bends there; `positive` asks for scales above zero, for the order of values
    must stay. `kept` are the input axes that the output has, None for all. `because` is said where that fails. One that
    is `idle` gives what it is given.
    """

    mixed: frozenset[int] = frozenset()
    fixes: tuple[float, ...] = ()
    positive: bool = False
    kept: tuple[int, ...] | None = None
    because: Reason = Reason.NOT_LINEAR
    idle: bool = False

    def upstream(self, port: int, affine: ChannelAffine) -> Asked | Reason:
        if affine.axis is None or self.kept is None:
            moved = affine
        elif affine.axis < len(self.kept):
            moved = affine.along(self.kept[affine.axis])
        else:
            return Reason.AXIS_UNKNOWN
        return self._refusal(moved) or Asked((moved,))

    def downstream(self, affines: Affines) -> Affines | Reason:
        (affine,) = affines
        if affine is None:
            return (None,)
        if reason := self._refusal(affine):
            return reason
        if affine.axis is None or self.kept is None:
            return (affine,)
        return (affine.along(self.kept.index(affine.axis)),) if affine.axis in self.kept else Reason.CHANNELS_MIXED

    def _refusal(self, affine: ChannelAffine) -> Reason | None:
        if affine.axis in self.mixed:
            return Reason.CHANNELS_MIXED
        if self.positive and not (affine.scale > 0).all():
            return self.because
        stays = all((affine.scale * value + affine.shift == value).all() for value in self.fixes)
        return None if stays else self.because


@dataclass(frozen=True)
class Permute:
    """Output axis `i` is input axis `order[i]`."""

    order: tuple[int, ...]

    def upstream(self, port: int, affine: ChannelAffine) -> Asked | Reason:
        if affine.axis is None:
            return Asked((affine,))
        known = affine.axis < len(self.order)
        return Asked((affine.along(self.order[affine.axis]),)) if known else Reason.AXIS_UNKNOWN

    def downstream(self, affines: Affines) -> Affines | Reason:
        (affine,) = affines
        if affine is None or affine.axis is None:
            return (affine,)
        known = affine.axis < len(self.order)
        return (affine.along(self.order.index(affine.axis)),) if known else Reason.AXIS_UNKNOWN


@dataclass(frozen=True)
class Reshape:
    """The same numbers in the same order under another shape.

    `asked` is the shape that it makes as far as the graph enforces that, −1 for the size that it computes from the
    others, None for one that is not known; empty where nothing is enforced. It makes the shape of the value `like`, if
    there is one, out of the value `source`. One that `demands` sizes fails for others that it may be given.
    """

    before: Shape
    after: Shape
    asked: Shape = ()
    source: Hashable = None
    like: Hashable = None
    demands: bool = False

    def upstream(self, port: int, affine: ChannelAffine) -> Asked | Reason:
        moved = carried(affine, self.after, self.before)
        return moved if isinstance(moved, Reason) else Asked((moved,))

    def downstream(self, affines: Affines) -> Affines | Reason:
        (affine,) = affines
        moved = None if affine is None else carried(affine, self.before, self.after)
        return moved if isinstance(moved, Reason) else (moved,)


def carried(affine: ChannelAffine, before: Shape, after: Shape) -> ChannelAffine | Reason:
    """An affine of a value of one shape as an affine of the same numbers in another shape.

    The channel is a digit of the linear index: `index // right % channels`, where `right` is the product of the sizes
    to the right of its axis. It may become a digit of its own, a part of a digit (the numbers repeat), or several
    digits of which all but one make no difference. Sizes that are not known cancel where both sides have them.
    """
    affine = affine.alike()
    if affine.axis is None:
        return affine
    if not 0 <= affine.axis < len(before):
        return Reason.AXIS_UNKNOWN
    right, channels = _product(before[affine.axis + 1 :]), affine.channels
    left = _product(before[: affine.axis])
    answers = []
    for axis, size in enumerate(after):
        place = _place(right, _product(after[axis + 1 :])) if right is not None else None
        if place is None and left is not None and left == _product(after[:axis]):
            place = _from_left(before[affine.axis :], after[axis:], channels)
        if place is not None and isinstance(size, int):
            answers.append(_digit(affine, channels, place, size, axis))
    known = [answer for answer in answers if isinstance(answer, ChannelAffine)]
    if known:
        return known[0]
    return next((answer for answer in answers if answer is not None), Reason.AXIS_UNKNOWN)


Product = tuple[int, frozenset[tuple[str, int]]]


def _product(sizes: Shape) -> Product | None:
    """Known sizes multiplied, unknown ones counted; None where a size has no name."""
    if None in sizes:
        return None
    number = prod(size for size in sizes if isinstance(size, int))
    return number, frozenset(Counter(size for size in sizes if isinstance(size, str)).items())


def _place(right: Product, other: Product | None) -> tuple[int, int] | None:
    """The strides of the channel and of an axis, without the sizes they share; None where they do not compare."""
    return (right[0], other[0]) if other is not None and right[1] == other[1] and right[0] and other[0] else None


def _from_left(before: Shape, after: Shape, channels: int) -> tuple[int, int] | None:
    """The same, where what stands to the left of both is equal: the axis starts with the channel."""
    size = after[0]
    if not isinstance(size, int) or not channels or size % channels:
        return None
    inner = before[1:]
    for end in range(len(inner) + 1):
        known = [each for each in inner[:end] if isinstance(each, int)]
        if len(known) == end and prod(known) * channels == size:
            return prod(known), 1
    return None


def _digit(
    affine: ChannelAffine, channels: int, place: tuple[int, int], size: int, axis: int
) -> ChannelAffine | Reason | None:
    """The affine along an axis of this size, if the channel is a function of its digit as far as it matters."""
    right, stride = place
    top = max(right * channels, stride * size)
    if not size or top % (right * channels) or top % (stride * size) or top > LARGEST_RUN:
        return Reason.CHANNELS_MIXED
    index = np.arange(top)
    channel, digit = index // right % channels, index // stride % size
    first = np.zeros(size, dtype=np.intp)
    first[digit[::-1]] = channel[::-1]
    moved = affine.take(first, axis)
    same = (affine.scale[channel] == moved.scale[digit]) & (affine.shift[channel] == moved.shift[digit])
    return moved if same.all() else Reason.CHANNELS_MIXED


@dataclass(frozen=True)
class Concat:
    """Inputs of these sizes side by side along `axis`."""

    axis: int
    sizes: Shape

    def upstream(self, port: int, affine: ChannelAffine) -> Asked | Reason:
        if affine.axis != self.axis:
            return Asked((affine,) * len(self.sizes))
        sizes = [size for size in self.sizes if isinstance(size, int)]
        if len(sizes) != len(self.sizes) or sum(sizes) != affine.channels:
            return Reason.AXIS_UNKNOWN
        starts = np.cumsum([0, *sizes])
        return Asked(
            tuple(
                affine.take(np.arange(start, start + size), self.axis)
                for start, size in zip(starts, sizes, strict=False)
            )
        )

    def downstream(self, affines: Affines) -> Affines | Reason:
        known = [affine for affine in affines if affine is not None]
        if not known:
            return (None,)
        alike = len(known) == len(affines) and all(_twins(affine, known[0]) for affine in known)
        if alike and known[0].axis != self.axis:
            return (known[0],)
        if any(affine.axis not in (None, self.axis) for affine in known):
            return Reason.JOINED
        sizes = [size for size in self.sizes if isinstance(size, int)]
        if (
            len(sizes) != len(self.sizes)
            or sum(sizes) > LARGEST_RUN
            or any(
                affine is not None and affine.axis is not None and affine.channels != size
                for affine, size in zip(affines, sizes, strict=True)
            )
        ):
            return Reason.AXIS_UNKNOWN
        return (ChannelAffine.stacked(list(zip(affines, sizes, strict=True)), self.axis),)


def _twins(one: ChannelAffine, other: ChannelAffine) -> bool:
    """Whether both are one map of the same affines: equal numbers of others have to be accounted for themselves."""
    names = [each.origin and names_of(each.origin) for each in (one, other)]
    return one.same_as(other) and names[0] == names[1]


@dataclass(frozen=True, eq=False)
class Split:
    """Output `j` has the channels `picks[j]` along `axis` of the input, which has `size` of them.

    `picks` is None where they are not known: then only what is alike along the axis passes. A `dropped` axis is one
    that each output lacks, with one channel picked.
    """

    axis: int
    size: int | None
    picks: tuple[Index, ...] | None
    outputs: int = 1
    dropped: bool = False

    def upstream(self, port: int, affine: ChannelAffine) -> Asked | Reason:
        axis = affine.axis
        if axis is not None and self.dropped and axis >= self.axis:
            axis += 1
        if axis is not None and (axis != self.axis or self.dropped):
            return Asked((affine.along(axis),))
        piece = self._placed(port, affine)
        if axis is not None:
            return self._unplaced() if piece is None else Asked((piece,))
        whole = (0, affine)
        return Asked((None,), (whole,) if piece is None else ((0, piece), whole))

    def _unplaced(self) -> Reason:
        return Reason.AXIS_UNKNOWN if self.picks is None or self.size is None else Reason.CHANNELS_MIXED

    def _placed(self, port: int, affine: ChannelAffine) -> ChannelAffine | None:
        """The affine of the input that is `affine` on what the output picks and the identity elsewhere."""
        if self.picks is None or self.size is None:
            return None
        picked = self.picks[port]
        if affine.axis is not None and len(picked) != affine.channels:
            return None
        index = np.full(self.size, -1, dtype=np.intp)
        index[picked] = np.arange(len(picked))
        moved = affine.take(index, self.axis)
        repeated = affine.onto(len(picked), self.axis)
        same = (moved.scale[picked] == repeated.scale) & (moved.shift[picked] == repeated.shift)
        return moved if same.all() else None

    def downstream(self, affines: Affines) -> Affines | Reason:
        (affine,) = affines
        if affine is None or affine.axis is None:
            return (affine,) * self.outputs
        if affine.axis != self.axis:
            moved = affine.along(affine.axis - (self.dropped and affine.axis > self.axis))
            return (moved,) * self.outputs
        if self.picks is None or affine.channels != self.size:
            return Reason.AXIS_UNKNOWN
        pieces = [affine.take(picked, None if self.dropped else self.axis) for picked in self.picks]
        return tuple(None if piece.is_identity else piece for piece in pieces)


def _operand_axis(axis: int, shapes: Sequence[Shape | None], port: int) -> int | None:
    """The axis of one operand that an axis of the broadcast result is."""
    shape, ranks = shapes[port], [len(each) for each in shapes if each is not None]
    if shape is None or len(ranks) != len(shapes):
        return None
    return axis - max(ranks) + len(shape)


def _on_operand(affine: ChannelAffine, shapes: Sequence[Shape | None], port: int) -> ChannelAffine | Reason:
    """An affine of a broadcast result as an affine of one operand, which must have all its channels."""
    if affine.axis is None:
        return affine
    axis, shape = _operand_axis(affine.axis, shapes, port), shapes[port]
    if axis is None or shape is None or axis >= len(shape):
        return Reason.AXIS_UNKNOWN
    if axis < 0 or shape[axis] == 1:
        return Reason.CHANNELS_MIXED
    return affine.along(axis) if shape[axis] == affine.channels else Reason.AXIS_UNKNOWN


def _on_result(affine: ChannelAffine, shapes: Sequence[Shape | None], port: int) -> ChannelAffine | Reason:
    """An affine of one operand as an affine of the broadcast result."""
    if affine.axis is None:
        return affine
    offset = _operand_axis(0, shapes, port)
    return Reason.AXIS_UNKNOWN if offset is None else affine.along(affine.axis - offset)


def _first_reason(answers: Sequence[ChannelAffine | Reason]) -> Reason:
    return next(answer for answer in answers if isinstance(answer, Reason))


@dataclass(frozen=True)
class Sum:
    """Terms of these shapes, broadcast; `signs` are 1 or −1."""

    shapes: tuple[Shape | None, ...]
    signs: tuple[int, ...]

    def only(self, ports: Sequence[int]) -> Sum:
        """The sum of some of its terms."""
        return Sum(tuple(self.shapes[port] for port in ports), tuple(self.signs[port] for port in ports))

    def upstream(self, port: int, affine: ChannelAffine) -> Asked | Reason:
        every: Affines = (None,) * len(self.signs)
        if affine.scales:
            scaled = [_on_operand(affine.scaling(), self.shapes, term) for term in range(len(self.signs))]
            every = tuple(each for each in scaled if isinstance(each, ChannelAffine))
            if len(every) < len(scaled):
                return _first_reason(scaled)
        if not affine.shifts:
            return Asked(every)
        shifted = [_on_operand(affine.shifting(float(sign)), self.shapes, term) for term, sign in enumerate(self.signs)]
        either = tuple((term, each) for term, each in enumerate(shifted) if isinstance(each, ChannelAffine))
        return Asked(every, either) if either else _first_reason(shifted)

    def downstream(self, affines: Affines) -> Affines | Reason:
        total: ChannelAffine | None = None
        bare = any(affine is None for affine in affines)
        for port, (affine, sign) in enumerate(zip(affines, self.signs, strict=True)):
            if affine is None:
                continue
            moved = _on_result(affine if sign == 1 else affine.opposite(), self.shapes, port)
            if isinstance(moved, Reason):
                return moved
            if (bare and moved.scales) or (total is not None and not _equal_scales(total, moved)):
                return Reason.JOINED
            total = moved if total is None else total.joined(moved)
        return (total,)


def _equal_scales(first: ChannelAffine, second: ChannelAffine) -> bool:
    uniform = None in (first.axis, second.axis)
    if not uniform and (first.axis, first.channels) != (second.axis, second.channels):
        return False
    return bool(np.all(first.scale == second.scale))


@dataclass(frozen=True)
class Gate:
    """A product of values of these shapes. One of the factors in `takes` takes a scale; only a `uniform` one where the
    product mixes channels (a matrix product of two run-time values)."""

    shapes: tuple[Shape | None, ...]
    takes: tuple[int, ...]
    uniform: bool = False

    def upstream(self, port: int, affine: ChannelAffine) -> Asked | Reason:
        if reason := self._refusal(affine):
            return reason
        found = [_on_operand(affine, self.shapes, factor) for factor in self.takes]
        pairs = zip(self.takes, found, strict=True)
        either = tuple((factor, each) for factor, each in pairs if isinstance(each, ChannelAffine))
        return Asked((None,) * len(self.shapes), either) if either else _first_reason(found)

    def downstream(self, affines: Affines) -> Affines | Reason:
        given = [(port, affine) for port, affine in enumerate(affines) if affine is not None]
        if len(given) != 1 or given[0][0] not in self.takes:
            return (None,) if not given else Reason.NOT_LINEAR
        port, affine = given[0]
        if reason := self._refusal(affine):
            return reason
        moved = _on_result(affine, self.shapes, port)
        return moved if isinstance(moved, Reason) else (moved,)

    def _refusal(self, affine: ChannelAffine) -> Reason | None:
        if affine.shifts:
            return Reason.GATED
        return Reason.CHANNELS_MIXED if self.uniform and affine.axis is not None else None
