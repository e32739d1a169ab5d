"""What a merged operator must be, worked out again from the operators and affines that it is made of.

    made = replay(report)[name]                   how the operator came to be, as an expression
    rows = Merger(evidence, expressions).rows(made, grid)

An expression is evaluated on the grid of the operator that is stored in the end: for some output channels, the inputs
that each of them reads and the offsets at which its taps sit. Every operator that it is made of is put there by the
offsets that its own attributes give. Nothing of the algebra is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredLinear
from bnfold.origin import Origin, names_of
from bnfold.outcome import Absorbed, Combined
from bnfold.verify.derivation import rows_of
from bnfold.verify.expression import Contradiction, Expressions, Incomplete

Array = NDArray[Any]
Offset = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """The operator of this name, as the original model stores it."""

    name: str


@dataclass(frozen=True, eq=False)
class Affined:
    """An operator with an affine behind it, or in front of it."""

    of: Made
    origin: Origin
    behind: bool


@dataclass(frozen=True, eq=False)
class Lone:
    """An affine of the data, or the data itself."""

    origin: Origin | None


@dataclass(frozen=True, eq=False)
class Added:
    """A sum of operators on one value, each with its sign."""

    terms: tuple[tuple[int, Made], ...]


@dataclass(frozen=True, eq=False)
class Behind:
    """`second` applied to the result of `first`."""

    second: Made
    first: Made


Made = Stored | Affined | Lone | Added | Behind


def replay(absorbed: Sequence[Absorbed | Combined]) -> dict[str, Made]:
    """How every operator that was written came to be; those that were merged into another are found in that one."""
    made: dict[str, Made] = {}

    def current(name: str) -> Made:
        return made.get(name, Stored(name))

    for event in absorbed:
        if isinstance(event, Absorbed):
            if event.operator is not None:
                made[event.operator] = Affined(current(event.operator), event.origin, event.side == "after")
            continue
        terms = [(t.sign, Lone(t.affine) if t.operator is None else current(t.operator)) for t in event.terms]
        made[event.into] = Behind(terms[1][1], terms[0][1]) if event.serial else Added(tuple(terms))
        for term in event.terms:
            if term.operator not in (None, event.into):
                made.pop(str(term.operator), None)
    return made


def leaves(made: Made) -> Iterator[str | Origin]:
    """The names of the operators, and the affines, that an expression is made of."""
    match made:
        case Stored(name):
            yield name
        case Affined(of, origin):
            yield from (*leaves(of), origin)
        case Lone(origin):
            yield from () if origin is None else (origin,)
        case Added(terms):
            for _, term in terms:
                yield from leaves(term)
        case Behind(second, first):
            yield from (*leaves(first), *leaves(second))


def operators(made: Made) -> tuple[str, ...]:
    """The operators of the original model in an expression."""
    return tuple(dict.fromkeys(leaf for leaf in leaves(made) if isinstance(leaf, str)))


def affines(made: Made) -> tuple[str, ...]:
    """The affines of the original model in an expression."""
    origins = [leaf for leaf in leaves(made) if not isinstance(leaf, str)]
    return tuple(dict.fromkeys(name for origin in origins for name in names_of(origin)))


def is_merged(made: Made) -> bool:
    """Whether more than affines went into the operator."""
    while isinstance(made, Affined):
        made = made.of
    return not isinstance(made, Stored)


@dataclass(frozen=True)
class Grid:
    """Some output channels, for each the inputs `reads[row]` that it may see, and the offsets of the taps.

    `first` and `stop` bound the inputs that each row has in full, where `reads` are a sample of them.
    """

    channels: Array
    reads: Array
    first: Array
    stop: Array
    offsets: tuple[Offset, ...]

    @classmethod
    def of(cls, op: StoredLinear, rows: slice, inputs: slice = slice(None)) -> Grid:
        """The grid of a stored operator."""
        whole = rows_of(op).select(rows)
        reads = whole.reads
        first, stop = (reads[:, 0], reads[:, -1] + 1) if reads.size else (np.zeros(0, int), np.zeros(0, int))
        return cls(whole.channels, reads[:, inputs], first, stop, tuple(offsets_of(op)))


@dataclass(frozen=True)
class Numbers:
    """Exact parameters on a grid, the magnitudes of their terms, and how many float64 operations made them."""

    taps: Array
    taps_terms: Array
    bias: Array
    bias_terms: Array
    steps: int


def offsets_of(op: StoredLinear) -> list[Offset]:
    """Where each tap sits, in the order in which the taps are stored; of a transposed convolution just its number."""
    if op.layout in ("matmul", "linear"):
        return [()]
    if op.window is None:
        raise Incomplete("an operator was merged whose window is not known")
    kernel, window = op.weight.shape[2:], op.window
    if op.layout == "conv_transpose":
        return list(product(*map(range, kernel)))
    axes = [
        [tap * step - before for tap in range(taps)]
        for taps, step, before in zip(kernel, window.dilation, window.before, strict=True)
    ]
    return list(product(*axes))


def reach(op: StoredLinear) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The stride, and how many more places than the input has a window may start from: what decides the size of the
    output. Of a transposed convolution all there is."""
    if op.layout in ("matmul", "linear"):
        return (), ()
    if op.window is None:
        raise Incomplete("an operator was merged whose window is not known")
    window = op.window
    if op.layout == "conv_transpose":
        return window.stride, (*window.dilation, *window.before, *window.after, *window.extra)
    sizes = zip(window.before, window.after, window.dilation, op.weight.shape[2:], strict=True)
    return window.stride, tuple(before + after - step * (taps - 1) for before, after, step, taps in sizes)


@dataclass(frozen=True)
class Merger:
    """Expressions over the operators of one model, in one kind of number."""

    stored: Evidence
    expressions: Expressions

    def numbers(self, made: Made, grid: Grid) -> Numbers:
        """What an expression is on a grid. Raises `Contradiction` where it does not fit there."""
        match made:
            case Stored(name):
                return self._placed(name, grid)
            case Lone(origin):
                return self._lone(origin, grid)
            case Affined(of, origin, behind):
                return self._behind(of, origin, grid) if behind else self._in_front(of, origin, grid)
            case Added(terms):
                return self._sum([(sign, self.numbers(term, grid)) for sign, term in terms])
            case Behind(second, first):
                return self._composed(second, first, grid)

    def reach(self, made: Made) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Stride and excess of an expression; those of every term of a sum must be equal."""
        match made:
            case Stored(name):
                return reach(self._record(name))
            case Affined(of):
                return self.reach(of)
            case Behind(second, first):
                (outer, more), (inner, excess) = self.reach(second), self.reach(first)
                stride = tuple(a * b for a, b in zip(outer, inner, strict=True))
                return stride, tuple(e + s * m for e, s, m in zip(excess, inner, more, strict=True))
            case Added(terms):
                known = {self.reach(term) for _, term in terms if not isinstance(term, Lone)}
                if len(known) > 1:
                    raise Contradiction(f"{' and '.join(operators(made))} differ in stride or output size")
                (stride, excess), alone = known.pop(), any(isinstance(term, Lone) for _, term in terms)
                if alone and (any(step != 1 for step in stride) or any(excess)):
                    raise Contradiction(f"{operators(made)[0]} does not keep the size of what is added to it")
                return stride, excess
            case Lone():
                return (), ()

    def _record(self, name: str) -> StoredLinear:
        if name not in self.stored.linears:
            raise Incomplete(f"the original model has no stored weights for {name}")
        return self.stored.linears[name]

    def _empty(self, grid: Grid) -> tuple[Array, Array]:
        number = self.expressions.number
        shape = (*grid.reads.shape, len(grid.offsets))
        return number.convert(np.zeros(shape)), number.convert(np.zeros(len(grid.channels)))

    def _placed(self, name: str, grid: Grid) -> Numbers:
        op, number = self._record(name), self.expressions.number
        if not np.isfinite(op.weight).all():
            raise Incomplete(f"the original weight of {name} is not finite")
        if grid.channels.size and grid.channels.max() >= len(rows_of(op).channels):
            raise Contradiction(f"{name} has fewer output channels than what it was merged into")
        own = rows_of(op)
        taps_, bias_, reads = own.taps[grid.channels], own.bias[grid.channels], own.reads[grid.channels]
        if np.any(reads < grid.first[:, None]) or np.any(reads >= grid.stop[:, None]):
            raise Contradiction(f"{name} reads inputs that what it was merged into does not")
        if missing := set(offsets_of(op)) - set(grid.offsets):
            raise Contradiction(f"{name} has a tap at {missing.pop()}, which what it was merged into has not")
        columns = [grid.offsets.index(offset) for offset in offsets_of(op)]
        taps, _ = self._empty(grid)
        values = number.convert(taps_) * number.scalar(op.alpha)
        for column in range(reads.shape[1]):
            rows, cells = np.nonzero(reads[:, column, None] == grid.reads)
            taps[rows[:, None], cells[:, None], columns] = values[rows, column]
        bias = number.convert(bias_) * number.scalar(op.beta)
        return Numbers(taps, abs(taps), bias, abs(bias), 0)

    def _lone(self, origin: Origin | None, grid: Grid) -> Numbers:
        taps, zero = self._empty(grid)
        one = self.expressions.number.scalar(1.0)
        here = (0,) * len(grid.offsets[0])
        if here not in grid.offsets:
            raise Contradiction("the value itself is merged into an operator that has no tap at its place")
        if np.any(grid.channels < grid.first) or np.any(grid.channels >= grid.stop):
            raise Contradiction("the value itself is merged into an operator that does not read it")
        affine = None if origin is None else self.expressions.at(origin, grid.channels)
        rows, cells = np.nonzero(grid.channels[:, None] == grid.reads)
        taps[rows, cells, grid.offsets.index(here)] = one if affine is None else affine.scale[rows]
        if affine is None:
            return Numbers(taps, abs(taps), zero, zero, 0)
        return Numbers(taps, abs(taps), affine.shift, affine.terms, affine.steps)

    def _behind(self, of: Made, origin: Origin, grid: Grid) -> Numbers:
        inner, outer = self.numbers(of, grid), self.expressions.at(origin, grid.channels)
        scale = outer.scale[:, None, None]
        return Numbers(
            inner.taps * scale,
            inner.taps_terms * abs(scale),
            inner.bias * outer.scale + outer.shift,
            inner.bias_terms * abs(outer.scale) + outer.terms,
            inner.steps + outer.steps,
        )

    def _in_front(self, of: Made, origin: Origin, grid: Grid) -> Numbers:
        whole = self.numbers(of, grid)
        low, high = int(grid.first.min(initial=0)), int(grid.stop.max(initial=0))
        affine = self.expressions.at(origin, np.arange(low, high))
        scale, shift, terms = (
            each[grid.reads - low][:, :, None] for each in (affine.scale, affine.shift, affine.terms)
        )
        return Numbers(
            whole.taps * scale,
            whole.taps_terms * abs(scale),
            whole.bias + (whole.taps * shift).sum(axis=(1, 2)),
            whole.bias_terms + (whole.taps_terms * terms).sum(axis=(1, 2)),
            whole.steps + affine.steps,
        )

    def _sum(self, terms: Sequence[tuple[int, Numbers]]) -> Numbers:
        (sign, total), *others = terms
        number = self.expressions.number
        total = replace(total, taps=total.taps * number.scalar(sign), bias=total.bias * number.scalar(sign))
        for sign, term in others:
            total = Numbers(
                total.taps + term.taps * number.scalar(sign),
                total.taps_terms + term.taps_terms,
                total.bias + term.bias * number.scalar(sign),
                total.bias_terms + term.bias_terms,
                max(total.steps, term.steps) + 1,
            )
        return total

    def _composed(self, second: Made, first: Made, grid: Grid) -> Numbers:
        """`P · K`, where one of them has a single tap: the middle channels of each group of the grid."""
        middle, stride = self._outputs(first), self.reach(first)[0]
        inputs, outer_offsets = self._inputs(first), self._offsets(second)
        groups = np.unique(grid.first)
        width = grid.stop[:1] - grid.first[:1] if len(groups) else np.ones(1, int)
        each = middle * int(width[0]) // inputs
        start = grid.first // int(width[0]) * each
        between = Grid(grid.channels, start[:, None] + np.arange(each), start, start + each, outer_offsets)
        outer = self.numbers(second, between)
        taps, bias = self._empty(grid)
        terms, bias, bias_terms = taps.copy(), outer.bias, outer.bias_terms
        steps = outer.steps
        for low in np.unique(start):
            rows = np.flatnonzero(start == low)
            channels, reads = np.arange(low, low + each), grid.reads[rows[0]]
            first_read, stop = (np.full(each, bound[rows[0]]) for bound in (grid.first, grid.stop))
            spread = np.broadcast_to(reads, (each, len(reads)))
            inner_grid = Grid(channels, spread, first_read, stop, self._offsets(first))
            inner = self.numbers(first, inner_grid)
            steps = max(steps, outer.steps + inner.steps + each)
            for tap, place in enumerate(outer_offsets):
                matrix, magnitudes = outer.taps[rows, :, tap], outer.taps_terms[rows, :, tap]
                bias[rows] = bias[rows] + (matrix * inner.bias).sum(axis=1)
                bias_terms[rows] = bias_terms[rows] + (magnitudes * inner.bias_terms).sum(axis=1)
                for inner_tap, offset in enumerate(inner_grid.offsets):
                    at = tuple(o * s + i for o, s, i in zip(place, stride, offset, strict=True))
                    if at not in grid.offsets:
                        raise Contradiction(f"{' and '.join(operators(first))} has a tap that its composition has not")
                    column = grid.offsets.index(at)
                    taps[rows, :, column] = taps[rows, :, column] + matrix @ inner.taps[:, :, inner_tap]
                    terms[rows, :, column] = terms[rows, :, column] + magnitudes @ inner.taps_terms[:, :, inner_tap]
        return Numbers(taps, terms, bias, bias_terms, steps)

    def _outputs(self, made: Made) -> int:
        return len(rows_of(self._record(operators(made)[-1])).channels)

    def _inputs(self, made: Made) -> int:
        reads = rows_of(self._record(operators(made)[0])).reads
        return int(reads.max()) + 1 if reads.size else 0

    def _offsets(self, made: Made) -> tuple[Offset, ...]:
        """Every offset at which an expression has a tap."""
        match made:
            case Stored(name):
                return tuple(offsets_of(self._record(name)))
            case Affined(of):
                return self._offsets(of)
            case Added(terms):
                return tuple(
                    dict.fromkeys(o for _, term in terms if not isinstance(term, Lone) for o in self._offsets(term))
                )
            case Behind(second, first):
                stride = self.reach(first)[0]
                pairs = product(self._offsets(second), self._offsets(first))
                return tuple(tuple(o * s + i for o, s, i in zip(a, stride, b, strict=True)) for a, b in pairs)
            case Lone():
                return ()
