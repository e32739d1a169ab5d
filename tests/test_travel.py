"""The laws of travelling: every `Passage` commutes with affines as it says, on random arrays, and refuses the rest.

`crosses_up` and `crosses_down` are the two laws. They run an operator of numpy before and after what a passage asks
for, and compare the numbers of what travelled with those that its origin describes. Answers are also not needlessly
refused: where all sizes are known, brute force says what can cross a reshape and what cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import prod

import numpy as np
import pytest

from bnfold.algebra import Array, ChannelAffine
from bnfold.graph import Affines, Asked, Passage, Reason
from bnfold.origin import Chain, Joined, Leaf, Origin, Part, Stack, names_of
from bnfold.travel import LARGEST_RUN, Concat, Gate, Permute, Reshape, Same, Shape, Split, Sum, carried

Operator = Callable[[Sequence[Array]], Sequence[Array]]
Numbers = tuple[Array, Array]
Leaves = dict[str, Numbers]

RNG = np.random.default_rng
ROUNDS = range(60)


def agree(left: Array, right: Array) -> None:
    np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9)


def applied(affine: ChannelAffine | None, value: Array) -> Array:
    """`scale · x + shift`, broadcast along the axis of the affine by hand."""
    if affine is None:
        return value
    shape = [1] * value.ndim
    if affine.axis is not None:
        assert affine.channels in (1, value.shape[affine.axis])
        shape[affine.axis] = affine.channels
    else:
        assert affine.channels == 1
    return value * affine.scale.reshape(shape) + affine.shift.reshape(shape)


def numbers_of(origin: Origin, leaves: Leaves) -> Numbers:
    """What an origin expression says, worked out from the affines of the model alone."""
    match origin:
        case Leaf(name):
            return leaves[name]
        case Chain(first, second):
            (scale, shift), (outer, moved) = numbers_of(first, leaves), numbers_of(second, leaves)
            return scale * outer, outer * shift + moved
        case Part(of, index, scaled, shifted):
            scale, shift = numbers_of(of, leaves)
            if index is not None:
                scale = np.array([1.0 if i < 0 else scale[i] for i in index])
                shift = np.array([0.0 if i < 0 else shift[i] for i in index])
            return scale if scaled else np.ones_like(scale), shift * shifted
        case Stack(parts):
            pieces = [(np.ones(1), np.zeros(1)) if part is None else numbers_of(part, leaves) for part, _ in parts]
            sizes = [size for _, size in parts]
            scales, shifts = zip(*pieces, strict=True)
            wide = [
                [np.resize(each, size) for each, size in zip(all_, sizes, strict=True)] for all_ in (scales, shifts)
            ]
            return np.concatenate(wide[0]), np.concatenate(wide[1])
        case Joined(first, second):
            (scale, shift), (again, other) = numbers_of(first, leaves), numbers_of(second, leaves)
            assert np.all(scale == again)
            return np.maximum(scale, again), shift + other


def says_where_it_comes_from(affine: ChannelAffine, given: Sequence[ChannelAffine | None]) -> None:
    leaves = {f"a{port}": (each.scale, each.shift) for port, each in enumerate(given) if each is not None}
    assert affine.origin is not None
    assert set(names_of(affine.origin)) <= set(leaves)
    scale, shift = numbers_of(affine.origin, leaves)
    np.testing.assert_array_equal(*np.broadcast_arrays(scale, affine.scale))
    np.testing.assert_array_equal(*np.broadcast_arrays(shift, affine.shift))


def leaf(affine: ChannelAffine, port: int = 0) -> ChannelAffine:
    return affine.named(f"a{port}")


def alternatives(asked: Asked) -> Iterator[tuple[Affines, Affines]]:
    """What every input must become, then what one of them must become: each way to do what is asked."""
    none: Affines = (None,) * len(asked.every)
    for choice, wish in asked.either:
        yield asked.every, tuple(wish if port == choice else None for port in range(len(none)))
    if not asked.either:
        yield asked.every, none


def crosses_up(passage: Passage, run: Operator, inputs: Sequence[Array], affine: ChannelAffine, port: int = 0) -> bool:
    """`run(asked(inputs)) == affine(run(inputs))` for every alternative; False where the passage refuses."""
    affine = leaf(affine)
    asked = passage.upstream(port, affine)
    if isinstance(asked, Reason):
        return False
    before = run(inputs)
    expected = applied(affine, before[port])
    for stages in alternatives(asked):
        values, outputs = list(inputs), list(before)
        for wishes in stages:
            assert len(wishes) == len(inputs)
            effects = passage.downstream(wishes)
            values = [applied(wish, value) for wish, value in zip(wishes, values, strict=True)]
            if not isinstance(effects, Reason):
                for effect, value, made in zip(effects, outputs, run(values), strict=True):
                    agree(applied(effect, value), made)
            outputs = list(run(values))
            for wish in wishes:
                if wish is not None:
                    says_where_it_comes_from(wish, [affine])
        agree(run(values)[port], expected)
    return True


def crosses_down(
    passage: Passage, run: Operator, inputs: Sequence[Array], affines: Sequence[ChannelAffine | None]
) -> bool:
    """`run(affines(inputs)) == made(run(inputs))`; False where the passage refuses. What has a name keeps it."""
    given = tuple(
        each if each is None or each.origin is not None else leaf(each, port) for port, each in enumerate(affines)
    )
    made = passage.downstream(given)
    if isinstance(made, Reason):
        return False
    after = run([applied(affine, value) for affine, value in zip(given, inputs, strict=True)])
    for effect, value, expected in zip(made, run(inputs), after, strict=True):
        agree(applied(effect, value), expected)
        if effect is not None:
            says_where_it_comes_from(effect, given)
    return True


def random_affine(rng: np.random.Generator, channels: int, axis: int | None) -> ChannelAffine:
    """Numbers of every kind: free, alike in runs, alike in strides, positive, without a shift, all the same."""
    size = 1 if axis is None else channels
    scale, shift = rng.normal(size=size), rng.normal(size=size)
    run = int(rng.choice([d for d in range(1, size + 1) if size % d == 0])) if size else 1
    match rng.integers(6):
        case 0:
            scale, shift = (np.repeat(each[: size // run], run) for each in (scale, shift))
        case 1:
            scale, shift = (np.tile(each[:run], size // run) for each in (scale, shift))
        case 2:
            scale, shift = np.abs(scale), np.zeros(size)
        case 3:
            scale, shift = (np.resize(each[:1], size) for each in (scale, shift))
        case 4:
            scale = np.ones(size)
    return ChannelAffine(scale, shift, axis)


def some_axis(rng: np.random.Generator, value: Array) -> int | None:
    axis = int(rng.integers(-1, value.ndim))
    return None if axis < 0 else axis


def affine_of(rng: np.random.Generator, value: Array) -> ChannelAffine:
    axis = some_axis(rng, value)
    return random_affine(rng, 1 if axis is None else value.shape[axis], axis)


# Same


def wrapped(function: Callable[[Array], Array]) -> Operator:
    return lambda inputs: [function(inputs[0])]


SAMES: list[tuple[str, Same, Callable[[Array], Array]]] = [
    ("identity", Same(), lambda x: x.copy()),
    ("mean of 2, 3", Same(frozenset({2, 3})), lambda x: x.mean((2, 3), keepdims=True)),
    ("mean of 1", Same(frozenset({1}), kept=(0, 2, 3)), lambda x: x.mean(1)),
    ("mean of 0, 2", Same(frozenset({0, 2}), kept=(1, 3)), lambda x: x.mean((0, 2))),
    ("sum of 3", Same(frozenset({3}), fixes=(0.0,), kept=(0, 1, 2)), lambda x: x.sum(3)),
    ("max of 2", Same(frozenset({2}), positive=True), lambda x: x.max(2, keepdims=True)),
    ("max of 0", Same(frozenset({0}), positive=True, kept=(1, 2, 3)), lambda x: x.max(0)),
    ("relu", Same(fixes=(0.0,), positive=True), lambda x: np.maximum(x, 0)),
    ("leaky relu", Same(fixes=(0.0,), positive=True), lambda x: np.where(x < 0, 0.1 * x, x)),
    ("pad with 0", Same(frozenset({2}), fixes=(0.0,)), lambda x: np.pad(x, ((0, 0), (0, 0), (1, 2), (0, 0)))),
    (
        "pad with 3",
        Same(frozenset({3}), fixes=(3.0,)),
        lambda x: np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=3.0),
    ),
    ("wrap", Same(frozenset({1, 3})), lambda x: np.pad(x, ((0, 0), (1, 0), (0, 0), (0, 2)), mode="wrap")),
]


def fixing(passage: Same, affine: ChannelAffine) -> ChannelAffine:
    """Most affines with a shift do not map 3 to itself: some are made to."""
    if not passage.fixes or affine.shifts:
        return affine
    return replace(affine, scale=np.round(affine.scale), shift=passage.fixes[0] * (1 - np.round(affine.scale)))


@pytest.mark.parametrize(("passage", "function"), [pytest.param(p, f, id=name) for name, p, f in SAMES])
def test_same_commutes_with_what_it_lets_through(passage: Same, function: Callable[[Array], Array]) -> None:
    up = down = 0
    for seed in range(200):
        rng = RNG(seed)
        value = rng.normal(size=(2, 3, 4, 3))
        up += crosses_up(passage, wrapped(function), [value], fixing(passage, affine_of(rng, function(value))))
        down += crosses_down(passage, wrapped(function), [value], [fixing(passage, affine_of(rng, value))])
    assert up > 5
    assert down > 5


def one(scale: float, shift: float = 0.0) -> ChannelAffine:
    return ChannelAffine(np.array([scale]), np.array([shift]), None, Leaf("a"))


def per_channel(*scale: float, shift: float | Sequence[float] = 0.0, axis: int = 1) -> ChannelAffine:
    return ChannelAffine(np.array(scale), np.broadcast_to(shift, len(scale)).astype(float), axis, Leaf("a"))


def only(passage: Passage, affine: ChannelAffine, *, up: bool = False) -> ChannelAffine | Reason | None:
    """The one affine that becomes of another."""
    if up:
        asked = passage.upstream(0, affine)
        return asked if isinstance(asked, Reason) else asked.every[0]
    made = passage.downstream((affine,))
    return made if isinstance(made, Reason) else made[0]


POOL = Same(frozenset({2, 3}), positive=True, because=Reason.MIXED_SIGN_MAXPOOL)
RELU = Same(fixes=(0.0,), positive=True)
BORDER = Same(frozenset({2, 3}), fixes=(2.0,), because=Reason.PADDED_BORDER)
REDUCED = Same(frozenset({1}), kept=(0, 2, 3))

REFUSED_BY_SAME = [
    (POOL, per_channel(1, 2, axis=2), Reason.CHANNELS_MIXED),
    (POOL, per_channel(1, -2), Reason.MIXED_SIGN_MAXPOOL),
    (POOL, per_channel(1, 0), Reason.MIXED_SIGN_MAXPOOL),
    (POOL, one(-1), Reason.MIXED_SIGN_MAXPOOL),
    (RELU, per_channel(1, 2, shift=0.5), Reason.NOT_LINEAR),
    (RELU, per_channel(1, -2), Reason.NOT_LINEAR),
    (BORDER, per_channel(1, 2), Reason.PADDED_BORDER),
    (BORDER, one(1, 1), Reason.PADDED_BORDER),
]


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize(("passage", "affine", "reason"), REFUSED_BY_SAME)
def test_same_refuses(passage: Same, affine: ChannelAffine, reason: Reason, up: bool) -> None:
    assert only(passage, affine, up=up) is reason


def test_an_axis_that_is_gone_takes_nothing_along() -> None:
    assert only(REDUCED, per_channel(1, 2)) is Reason.CHANNELS_MIXED
    assert only(Same(kept=(0, 2)), per_channel(1, 2)) is Reason.CHANNELS_MIXED
    assert only(REDUCED, per_channel(1, 2, axis=3), up=True) is Reason.AXIS_UNKNOWN
    moved = only(REDUCED, per_channel(1, 2), up=True)
    assert isinstance(moved, ChannelAffine)
    assert moved.axis == 2


def test_a_border_that_maps_to_itself_passes() -> None:
    moved = only(BORDER, per_channel(1, 2, shift=(0, -2)))
    assert isinstance(moved, ChannelAffine)


# Permute


@pytest.mark.parametrize("seed", ROUNDS)
def test_permute_commutes(seed: int) -> None:
    rng = RNG(seed)
    order = tuple(int(axis) for axis in rng.permutation(4))
    value = rng.normal(size=(2, 3, 4, 5))
    run = wrapped(lambda x: x.transpose(order))
    assert crosses_up(Permute(order), run, [value], affine_of(rng, value.transpose(order)))
    assert crosses_down(Permute(order), run, [value], [affine_of(rng, value)])
    assert Permute(order).downstream((None,)) == (None,)


# Reshape


def grouped(rng: np.random.Generator, atoms: Sequence[object]) -> list[list[object]]:
    """Neighbours together in dimensions, with some dimensions of one index."""
    groups: list[list[object]] = []
    for atom in atoms:
        if groups and rng.random() < 0.5:
            groups[-1].append(atom)
        else:
            groups.append([atom])
        if rng.random() < 0.15:
            groups.append([])
    return groups


def stated(rng: np.random.Generator, groups: list[list[object]]) -> Shape:
    """What a front end could know of the sizes: numbers, the symbol of a dimension, nothing."""

    def size(group: list[object]) -> int | str | None:
        if rng.random() < 0.1:
            return None
        names = [atom for atom in group if isinstance(atom, str)]
        if not names:
            return prod(atom for atom in group if isinstance(atom, int))
        return names[0] if len(group) == 1 else None

    return tuple(size(group) for group in groups)


@pytest.mark.parametrize("seed", range(400))
def test_what_crosses_a_reshape_is_right_for_every_size(seed: int) -> None:
    """Symbols and unknown sizes are made numbers afterwards: the answer must not depend on which."""
    rng = RNG(seed)
    atoms = [rng.choice(np.array([2, 3, 4, "N", "L"], dtype=object)) for _ in range(int(rng.integers(1, 6)))]
    before, after = grouped(rng, atoms), grouped(rng, atoms)
    passage = Reshape(stated(rng, before), stated(rng, after))
    up = bool(rng.integers(2))
    mine, given = (after, before)[not up], (passage.after, passage.before)[not up]
    axis = int(rng.integers(len(mine)))
    fixed = {atom: int(rng.integers(1, 5)) for atom in mine[axis] if isinstance(atom, str)}
    channels = prod(fixed.get(atom, atom) for atom in mine[axis])  # type: ignore[call-overload, misc]
    affine = random_affine(rng, channels, axis)
    assert given[axis] in (None, channels) or isinstance(given[axis], str)
    for _ in range(4):
        sizes = {"N": int(rng.integers(1, 5)), "L": int(rng.integers(1, 5))} | fixed
        shapes = [[prod(sizes.get(a, a) for a in group) for group in groups] for groups in (before, after)]
        value, run = rng.normal(size=shapes[0]), wrapped(lambda x, shape=shapes[1]: x.reshape(shape))
        if up:
            crosses_up(passage, run, [value], affine)
        else:
            crosses_down(passage, run, [value], [affine])


def possible(affine: ChannelAffine, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether the affine, spelled out for every element, is an affine along at most one axis of the new shape."""
    assert affine.axis is not None
    shape = [1] * len(before)
    shape[affine.axis] = affine.channels
    full = [np.broadcast_to(each.reshape(shape), before).reshape(after) for each in (affine.scale, affine.shift)]

    def constant_but_for(axis: int) -> bool:
        lines = [np.moveaxis(each, axis, 0).reshape(each.shape[axis], -1) for each in full]
        return all((each == each[:, :1]).all() for each in lines)

    return any(constant_but_for(axis) for axis in range(len(after))) or all(np.ptp(each) == 0 for each in full)


@pytest.mark.parametrize("seed", range(300))
def test_what_could_cross_a_reshape_does(seed: int) -> None:
    rng = RNG(seed)
    atoms = [int(rng.integers(1, 4)) for _ in range(int(rng.integers(1, 6)))]
    before, after = (tuple(prod(group) for group in grouped(rng, atoms)) for _ in range(2))  # type: ignore[arg-type]
    axis = int(rng.integers(len(before)))
    affine = leaf(random_affine(rng, before[axis], axis))
    moved = carried(affine, before, after)
    assert isinstance(moved, ChannelAffine) == (affine.axis is None or possible(affine, before, after))
    value = rng.normal(size=before)
    if isinstance(moved, ChannelAffine):
        agree(applied(moved, value.reshape(after)), applied(affine, value).reshape(after))
        says_where_it_comes_from(moved, [affine])


@dataclass(frozen=True)
class Crossing:
    """Shapes, and along which axis an affine of two channels comes out, with which indices."""

    title: str
    before: Shape
    after: Shape
    axis: int
    comes: tuple[int | None, tuple[int, ...]]
    back: bool = True  # whether it crosses the other way as well, and is what it was


CROSSINGS = [
    Crossing("flatten behind a batch", ("N", 2, 3, 1), ("N", 6), 1, (1, (0, 0, 0, 1, 1, 1))),
    Crossing("flatten of nothing", ("N", 2, 1, 1), ("N", 2), 1, (1, (0, 1))),
    Crossing("flatten of what is not known", ("N", 2, None, None), ("N", 2, None), 1, (1, (0, 1))),
    Crossing("space in one axis", ("N", 2, "H", "W"), ("N", 2, None), 1, (1, (0, 1))),
    Crossing("batch and tokens in one", ("B", "L", 2), (None, 2), 2, (1, (0, 1))),
    Crossing("tokens, with a known batch", (4, "L", 2), (None, 2), 2, (1, (0, 1))),
    Crossing("batch not known at all", (None, 2, 4), (None, 2, 2, 2), 1, (1, (0, 1))),
    Crossing("heads", ("B", "N", 6), ("B", "N", 3, 2), 2, (3, (0, 1)), back=False),
    Crossing("squeeze", ("N", 2, 1, 1), ("N", 2), 1, (1, (0, 1))),
    Crossing("unsqueeze in front", ("N", 2), (1, "N", 2), 1, (2, (0, 1))),
    Crossing("the whole is one axis", (3, 2), (6,), 1, (0, (0, 1, 0, 1, 0, 1))),
    Crossing("symbols cancel in any order", ("N", 2, "H", "W"), ("N", 2, "W", "H"), 1, (1, (0, 1))),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.title) for row in CROSSINGS])
def test_crossings_that_must_be_found(row: Crossing) -> None:
    size = row.before[row.axis]
    affine = per_channel(*np.resize([2.0, 3.0], size), shift=np.resize([5.0, 7.0], size), axis=row.axis)
    moved = carried(affine, row.before, row.after)
    assert isinstance(moved, ChannelAffine)
    axis, index = row.comes
    assert moved.axis == axis
    np.testing.assert_array_equal(moved.scale, np.array([2.0, 3.0])[list(index)])
    np.testing.assert_array_equal(moved.shift, np.array([5.0, 7.0])[list(index)])
    again = carried(moved, row.after, row.before)
    if row.back:
        assert isinstance(again, ChannelAffine)
        assert again.same_as(affine)


def test_an_affine_alike_in_every_channel_crosses_any_reshape() -> None:
    for before, after in product([("B", "N", 6), (None, None, 6)], [("B", "N", 3, 2), (None,), (4, 5, None)]):
        moved = carried(per_channel(*[2.0] * 6, shift=1.0, axis=2), before, after)
        assert isinstance(moved, ChannelAffine)
        assert (moved.axis, moved.scale, moved.shift) == (None, [2.0], [1.0])


def test_heads_take_one_number_each() -> None:
    for numbers, axis in (([1, 1, 2, 2, 3, 3], 2), ([1, 2, 1, 2, 1, 2], 3)):
        moved = carried(per_channel(*numbers, axis=2), ("B", "N", 6), ("B", "N", 3, 2))
        assert isinstance(moved, ChannelAffine)
        assert moved.axis == axis
    assert carried(per_channel(1, 2, 3, 4, 5, 6, axis=2), ("B", "N", 6), ("B", "N", 3, 2)) is Reason.CHANNELS_MIXED


NOT_CARRIED = [
    (("N", 2, "H"), ("N", "H", 2), 1, Reason.AXIS_UNKNOWN),
    (("N", 2, None), (None, 2), 1, Reason.AXIS_UNKNOWN),
    (("N", 2, "H"), ("M", 2, None), 1, Reason.AXIS_UNKNOWN),
    (("N", 2, 3), ("N", 3, 2), 1, Reason.CHANNELS_MIXED),
    (("N", 2, 2), ("N", 2, 2, 2), 3, Reason.AXIS_UNKNOWN),
    ((), (2, 2), 1, Reason.AXIS_UNKNOWN),
    (("N", 2, "L", "L"), ("N", "L", 2, "L"), 1, Reason.AXIS_UNKNOWN),
    (("N", 2, None, 3), ("N", 6, None), 1, Reason.AXIS_UNKNOWN),
    (("N", 2), ("M", 3), 1, Reason.CHANNELS_MIXED),
    ((2, LARGEST_RUN), (2 * LARGEST_RUN,), 0, Reason.CHANNELS_MIXED),
]


@pytest.mark.parametrize(("before", "after", "axis", "reason"), NOT_CARRIED)
def test_what_is_not_proved_does_not_cross_a_reshape(before: Shape, after: Shape, axis: int, reason: Reason) -> None:
    assert carried(per_channel(1, 2, axis=axis), before, after) is reason
    assert only(Reshape(before, after), per_channel(1, 2, axis=axis)) is reason
    assert only(Reshape(after, before), per_channel(1, 2, axis=axis), up=True) is reason


# Concat


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("seed", ROUNDS)
def test_concat_commutes(seed: int, known: bool) -> None:
    rng = RNG(seed)
    axis = int(rng.integers(3))
    sizes = [int(rng.integers(1, 4)) for _ in range(int(rng.integers(1, 4)))]
    shapes = [[size if each == axis else 2 + each for each in range(3)] for size in sizes]
    inputs = [rng.normal(size=shape) for shape in shapes]
    passage = Concat(axis, tuple(sizes) if known else (None, *sizes[1:]))
    run: Operator = lambda values: [np.concatenate(values, axis)]  # noqa: E731
    affine = affine_of(rng, run(inputs)[0])
    assert crosses_up(passage, run, inputs, affine) or (not known and affine.axis == axis)
    alike = affine_of(rng, inputs[0])
    if alike.axis != axis:
        assert crosses_down(passage, run, inputs, [leaf(alike)] * len(inputs))
        others = [leaf(alike, port) for port in range(len(inputs))]
        refused = crosses_down(passage, run, inputs, others)
        assert refused == (len(inputs) == 1 or (alike.axis is None and known)), "equal numbers of others are others"
    mixed = [None if rng.random() < 0.4 else random_affine(rng, len_, axis) for len_ in sizes]
    alone = len(mixed) == 1 and mixed[0] is not None and mixed[0].channels == 1
    assert crosses_down(passage, run, inputs, mixed) == (known or not any(mixed) or alone)
    free = [None if rng.random() < 0.3 else affine_of(rng, value) for value in inputs]
    crosses_down(passage, run, inputs, free)


def test_concat_refuses() -> None:
    passage = Concat(1, (2, 2))
    across, along = per_channel(1, 2, axis=2), per_channel(1, 2)
    assert passage.downstream((across, None)) is Reason.JOINED
    assert passage.downstream((across, per_channel(1, 3, axis=2))) is Reason.JOINED
    assert passage.downstream((across, along)) is Reason.JOINED
    assert Concat(1, (2, "C")).downstream((along, None)) is Reason.AXIS_UNKNOWN
    assert Concat(1, (2, None)).upstream(0, per_channel(1, 2, 3, 4)) is Reason.AXIS_UNKNOWN
    assert passage.upstream(0, per_channel(1, 2, 3)) is Reason.AXIS_UNKNOWN


# Split


def picking(rng: np.random.Generator, size: int, dropped: bool) -> list[Array]:
    """Pieces of an axis as Slice, Gather, Chunk and Unbind pick them."""
    if dropped:
        return [np.array([index]) for index in rng.permutation(size)[: int(rng.integers(1, size + 1))]]
    kinds: list[Callable[[], list[Array]]] = [
        lambda: np.split(np.arange(size), sorted(rng.integers(0, size + 1, size=2))),
        lambda: [np.arange(size)[:: int(rng.choice([-2, -1, 1, 2]))]],
        lambda: [rng.integers(0, size, size=int(rng.integers(1, 6)))],
        lambda: [rng.permutation(size), np.arange(size)[1:]],
    ]
    return kinds[int(rng.integers(len(kinds)))]()


def pieces(axis: int, picks: Sequence[Array], dropped: bool) -> Operator:
    def run(inputs: Sequence[Array]) -> list[Array]:
        taken = [np.take(inputs[0], picked, axis) for picked in picks]
        return [np.squeeze(each, axis) for each in taken] if dropped else taken

    return run


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("seed", ROUNDS)
def test_split_commutes(seed: int, dropped: bool, known: bool) -> None:
    rng = RNG(seed)
    axis, value = int(rng.integers(3)), rng.normal(size=(3, 4, 5))
    size = value.shape[axis]
    picks = picking(rng, size, dropped)
    passage = Split(axis, size if known else None, tuple(picks) if known else None, len(picks), dropped)
    run = pieces(axis, picks, dropped)
    port = int(rng.integers(len(picks)))
    affine = affine_of(rng, run([value])[port])
    crossed = crosses_up(passage, run, [value], affine, port)
    repeats = not dropped and len(set(picks[port])) < len(picks[port])
    assert crossed or (affine.axis == axis and (not known or repeats))
    affine = affine_of(rng, value)
    assert crosses_down(passage, run, [value], [affine]) or (affine.axis == axis and not known)


def test_split_refuses() -> None:
    duplicates = Split(1, 3, (np.array([0, 0]),))
    assert duplicates.upstream(0, per_channel(1, 2)) is Reason.CHANNELS_MIXED
    assert isinstance(duplicates.upstream(0, per_channel(2, 2)), Asked)
    assert Split(1, None, None).upstream(0, per_channel(1, 2)) is Reason.AXIS_UNKNOWN
    assert Split(1, None, None).downstream((per_channel(1, 2),)) is Reason.AXIS_UNKNOWN
    assert duplicates.downstream((per_channel(1, 2),)) is Reason.AXIS_UNKNOWN


def test_one_number_goes_to_what_is_picked_or_to_the_whole() -> None:
    halves = Split(1, 4, (np.arange(2), np.arange(2, 4)), 2)
    asked = halves.upstream(1, one(2.0))
    assert isinstance(asked, Asked)
    assert [wish.axis for _, wish in asked.either] == [1, None]
    assert halves.downstream((asked.either[0][1],))[0] is None  # type: ignore[index]
    assert halves.downstream((asked.either[1][1],))[0] is not None  # type: ignore[index]


# Sum and Gate


def broadcasting(rng: np.random.Generator, terms: int) -> list[Array]:
    """Values that broadcast to `(2, 3, 4)`, each of a rank and with axes of its own."""
    shapes = [[1 if rng.random() < 0.2 else size for size in (2, 3, 4)] for _ in range(terms)]
    return [rng.normal(size=shape[int(rng.choice([0, 0, 0, 1])) :]) for shape in shapes]


def shapes_of(rng: np.random.Generator, values: Sequence[Array]) -> tuple[Shape | None, ...]:
    def known(value: Array) -> Shape | None:
        return None if rng.random() < 0.05 else tuple(None if rng.random() < 0.05 else size for size in value.shape)

    return tuple(known(value) for value in values)


@pytest.mark.parametrize("seed", range(200))
def test_sum_commutes(seed: int) -> None:
    rng = RNG(seed)
    inputs = broadcasting(rng, int(rng.integers(1, 4)))
    signs = tuple(int(sign) for sign in rng.choice([1, -1], size=len(inputs)))
    passage = Sum(shapes_of(rng, inputs), signs)
    run: Operator = lambda values: [np.asarray(sum(s * v for s, v in zip(signs, values, strict=True)))]  # noqa: E731
    affine = affine_of(rng, run(inputs)[0])
    everywhere = all(value.shape == (2, 3, 4) for value in inputs)
    certain = everywhere and passage.shapes == tuple(value.shape for value in inputs)
    assert crosses_up(passage, run, inputs, affine) or not certain
    moved = [None if rng.random() < 0.3 else affine_of(rng, value) for value in inputs]
    crosses_down(passage, run, inputs, moved)
    scale = rng.normal(size=3)
    alike = [ChannelAffine(scale, rng.normal(size=3), 1) for _ in inputs]
    assert not certain or crosses_down(passage, run, inputs, alike)
    shifted = [ChannelAffine(np.ones(3), rng.normal(size=3), 1) for _ in inputs]
    assert not certain or crosses_down(passage, run, inputs, [None, *shifted[1:]])


FULL: Shape = ("N", 2, 4)
ADD, SUBTRACT = Sum((FULL, FULL), (1, 1)), Sum((FULL, FULL), (1, -1))


def test_sum_refuses() -> None:
    assert ADD.downstream((per_channel(2, 3), None)) is Reason.JOINED
    assert ADD.downstream((per_channel(2, 3), per_channel(2, 4))) is Reason.JOINED
    assert ADD.downstream((per_channel(1, 1, shift=1), per_channel(1, 1, 1, 1, shift=1, axis=2))) is Reason.JOINED
    assert Sum((FULL, ("N", 1, 4)), (1, 1)).upstream(0, per_channel(2, 3)) is Reason.CHANNELS_MIXED
    assert Sum((FULL, (4,)), (1, 1)).upstream(0, per_channel(2, 3)) is Reason.CHANNELS_MIXED
    assert Sum((FULL, ("N", "C", 4)), (1, 1)).upstream(0, per_channel(2, 3)) is Reason.AXIS_UNKNOWN
    assert Sum((FULL, None), (1, 1)).upstream(0, per_channel(2, 3)) is Reason.AXIS_UNKNOWN
    assert Sum((None, FULL), (1, 1)).upstream(0, per_channel(1, 1, shift=1)) is Reason.AXIS_UNKNOWN
    assert Sum((None, FULL), (1, 1)).downstream((per_channel(1, 1, shift=1), None)) is Reason.AXIS_UNKNOWN


def test_every_term_takes_the_scale_and_any_one_the_shift() -> None:
    asked = SUBTRACT.upstream(0, per_channel(2, 3, shift=1))
    assert isinstance(asked, Asked)
    assert all(each is not None and not each.shifts for each in asked.every)
    assert [(port, float(wish.shift[0])) for port, wish in asked.either] == [(0, 1.0), (1, -1.0)]
    assert not any(wish.scales for _, wish in asked.either)
    alone = ADD.upstream(0, per_channel(1, 1, shift=1))
    assert isinstance(alone, Asked)
    assert alone.every == (None, None)
    tall = Sum((FULL, ("N", 1, 4)), (1, 1)).upstream(0, per_channel(1, 1, shift=(1, 2)))
    assert isinstance(tall, Asked)
    assert [port for port, _ in tall.either] == [0]


def test_equal_shifts_of_opposite_terms_cancel() -> None:
    same = per_channel(2, 3, shift=1)
    made = SUBTRACT.downstream((same, same))
    assert not isinstance(made, Reason)
    assert made[0] is not None
    assert not made[0].shifts
    assert made[0].scales


PRODUCTS: list[tuple[str, tuple[int, ...], Callable[[Array, Array], Array]]] = [
    ("mul", (0, 1), lambda x, y: x * y),
    ("div", (0,), lambda x, y: x / y),
]


@pytest.mark.parametrize(("takes", "function"), [pytest.param(t, f, id=name) for name, t, f in PRODUCTS])
@pytest.mark.parametrize("seed", range(100))
def test_gate_commutes(seed: int, takes: tuple[int, ...], function: Callable[[Array, Array], Array]) -> None:
    rng = RNG(seed)
    inputs = broadcasting(rng, 2)
    passage = Gate(shapes_of(rng, inputs), takes)
    run: Operator = lambda values: [function(*values)]  # noqa: E731
    affine = affine_of(rng, run(inputs)[0]).scaling()
    certain = passage.shapes == ((2, 3, 4), (2, 3, 4))
    assert crosses_up(passage, run, inputs, affine) or not certain
    assert not crosses_up(passage, run, inputs, affine_of(rng, run(inputs)[0]).shifting(0.0) @ one(1.0, 1.0))
    for port in range(2):
        given = [affine_of(rng, value).scaling() if index == port else None for index, value in enumerate(inputs)]
        assert crosses_down(passage, run, inputs, given) or not (certain and port in takes)
    both = [affine_of(rng, value).scaling() for value in inputs]
    assert not crosses_down(passage, run, inputs, both)


@pytest.mark.parametrize("seed", ROUNDS)
def test_a_matrix_product_takes_one_number(seed: int) -> None:
    rng = RNG(seed)
    inputs = [rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 4, 3))]
    passage = Gate((None, None), (0, 1), uniform=True)
    run: Operator = lambda values: [values[0] @ values[1]]  # noqa: E731
    assert crosses_up(passage, run, inputs, random_affine(rng, 1, None).scaling())
    assert crosses_down(passage, run, inputs, [None, random_affine(rng, 1, None).scaling()])
    assert passage.upstream(0, per_channel(2, 3)) is Reason.CHANNELS_MIXED
    assert passage.downstream((per_channel(2, 3), None)) is Reason.CHANNELS_MIXED


def test_gate_refuses() -> None:
    gate, quotient = Gate((FULL, FULL), (0, 1)), Gate((FULL, FULL), (0,))
    assert gate.upstream(0, per_channel(2, 3, shift=1)) is Reason.GATED
    assert gate.downstream((per_channel(2, 3, shift=1), None)) is Reason.GATED
    assert gate.downstream((per_channel(2, 3), per_channel(2, 3))) is Reason.NOT_LINEAR
    assert quotient.downstream((None, per_channel(2, 3))) is Reason.NOT_LINEAR
    assert gate.downstream((None, None)) == (None,)
    assert Gate((("N", 1, 4), (4,)), (0, 1)).upstream(0, per_channel(2, 3)) is Reason.CHANNELS_MIXED
    assert Gate((("N", 1, 4), None), (0, 1)).upstream(0, per_channel(2, 3)) is Reason.AXIS_UNKNOWN
    asked = Gate((("N", 1, 4), FULL), (0, 1)).upstream(0, per_channel(2, 3))
    assert isinstance(asked, Asked)
    assert [port for port, _ in asked.either] == [1]


# what an affine keeps on its way


PARTS: list[Callable[[ChannelAffine], ChannelAffine]] = [
    ChannelAffine.scaling,
    ChannelAffine.opposite,
    partial(ChannelAffine.shifting, factor=-1.0),
    lambda affine: affine.onto(4, 2),
    lambda affine: affine.take(np.array([2, 0, -1, 1, 1]), 0),
    lambda affine: ChannelAffine.stacked([(affine, affine.channels), (None, 2)], 1),
    lambda affine: affine.scaling() @ affine,
    lambda affine: affine.joined(affine.scaling()),
]


@pytest.mark.parametrize("seed", ROUNDS)
def test_origins_say_what_was_done(seed: int) -> None:
    """Picked apart, repeated and put together any number of times."""
    rng = RNG(seed)
    first = leaf(random_affine(rng, 4, 1))
    affine = first
    for _ in range(5):
        do = PARTS[int(rng.integers(len(PARTS)))]
        if affine.channels >= 3 or do not in PARTS[4:5]:
            affine = do(affine)
        says_where_it_comes_from(affine, [first])


def test_an_expression_of_many_diamonds_is_named_at_once() -> None:
    affine = per_channel(1, 1, shift=1)
    for _ in range(300):
        affine = affine.joined(affine)
    assert affine.origin is not None
    assert names_of(affine.origin) == ("a",)


def test_names_come_in_order_and_once() -> None:
    a, b, c = Leaf("a"), Leaf("b"), Leaf("c")
    assert names_of(Chain(Part(b), Stack(((a, 1), (None, 2), (Joined(b, c), 1))))) == ("b", "a", "c")
