"""Sums and products of linear operators are what they compute: laws, against convolutions by their definition."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_window import has_outputs, offsets, outputs, windows

from bnfold.algebra import ChannelAffine, LinearOp, Parameters
from bnfold.combining import added, cancellation, composed, linear, work
from bnfold.graph import Reason
from bnfold.window import Window

Array = np.ndarray[Any, np.dtype[np.float64]]


def applied(op: LinearOp, x: Array) -> Array:
    """The operator on data of shape `(channels, *sizes)`: output `j` is the sum over taps of what is at `j · s + o`."""
    assert op.window is not None
    parameters, window = op.evaluate(), op.window
    counts = tuple(outputs(window, size)[axis] for axis, size in enumerate(x.shape[1:]))
    result = np.empty((op.out_channels, *counts))
    inputs = x.reshape(op.groups, -1, *x.shape[1:])
    for place in product(*map(range, counts)):
        total = parameters.bias.reshape(op.groups, -1).copy()
        for tap, offset in enumerate(offsets(window)):
            at = tuple(p * step + o for p, step, o in zip(place, window.stride, offset, strict=True))
            if all(0 <= here < size for here, size in zip(at, x.shape[1:], strict=True)):
                total += np.einsum("goi,gi->go", parameters.taps[..., tap], inputs[(..., *at)])
        result[(slice(None), *place)] = total.reshape(-1)
    return result


def operator(window: Window, groups: int, ins: int, outs: int, seed: int, *, bias: bool = True) -> LinearOp:
    """A linear operator with random numbers; `ins` and `outs` count the channels of all groups."""
    random = np.random.default_rng(seed)
    taps = random.normal(size=(groups, outs // groups, ins // groups, window.taps))
    numbers = Parameters(taps, random.normal(size=outs) * bias)
    return LinearOp(ins, outs, groups, 0, 0, window.bordered, (seed,), lambda: numbers, window=window)


def affine(channels: int, seed: int) -> ChannelAffine:
    random = np.random.default_rng(seed)
    return ChannelAffine(random.normal(size=channels), random.normal(size=channels), 0)


@st.composite
def beside(draw: st.DrawFn, alike: bool = True) -> tuple[LinearOp, LinearOp]:
    """Two operators on one value, in groups of their own."""
    axes = draw(st.integers(0, 2))
    window = draw(windows(axes))
    ins, outs = draw(st.sampled_from([4, 8])), draw(st.sampled_from([4, 8]))
    groups = [draw(st.sampled_from([1, 2, 4])) for _ in range(2)]
    other = draw(windows(axes, window if alike else None))
    made = [operator(w, g, ins, outs, seed) for seed, (w, g) in enumerate(zip((window, other), groups, strict=True))]
    if draw(st.booleans()):
        made[0] = made[0].then(affine(outs, 7))
    if draw(st.booleans()):
        made[1] = made[1] @ replace(affine(ins, 8), shift=np.zeros(ins))
    return made[0], made[1]


@st.composite
def behind(draw: st.DrawFn) -> tuple[LinearOp, LinearOp]:
    """A second operator and a first one, one of which has a single tap and no border."""
    axes = draw(st.integers(0, 2))
    point = replace(Window.point(axes), stride=tuple(draw(st.integers(1, 3)) for _ in range(axes)))
    outer, inner = draw(st.permutations([draw(windows(axes)), point]))
    ins, middle, outs = (draw(st.sampled_from([4, 8])) for _ in range(3))
    groups = [draw(st.sampled_from([1, 2, 4])) for _ in range(2)]
    first = operator(inner, groups[0], ins, middle, 1, bias=draw(st.booleans()))
    return operator(outer, groups[1], middle, outs, 2, bias=draw(st.booleans())), first


def data(op: LinearOp, size: int) -> Array:
    assert op.window is not None
    sizes = [size + axis for axis in range(len(op.window.kernel))]
    return np.random.default_rng(size).normal(size=(op.in_channels, *sizes))


def sizes(*ops: LinearOp) -> list[int]:
    """The smallest sizes of data for which all these operators make an output, and a larger one."""
    found = [size for size in range(1, 60) if all(op.window and has_outputs(op.window, size) for op in ops)]
    return [*found[:2], found[4]]


@given(beside())
@settings(max_examples=120)
def test_a_sum_of_operators_adds_what_they_make(pair: tuple[LinearOp, LinearOp]) -> None:
    both = added(*pair)
    assert isinstance(both, LinearOp)
    for size in sizes(*pair):
        x = data(pair[0], size)
        np.testing.assert_allclose(applied(both, x), applied(pair[0], x) + applied(pair[1], x), atol=1e-11)
    assert both.window is not None
    assert both.bordered == both.window.bordered


@given(beside(alike=False))
def test_what_makes_other_sizes_is_not_added(pair: tuple[LinearOp, LinearOp]) -> None:
    assert pair[0].window is not None
    assert pair[1].window is not None
    together = pair[0].window.union(pair[1].window) is not None
    assert (added(*pair) is Reason.WINDOWS_DIFFER) == (not together)


@given(beside())
def test_a_sum_does_not_care_for_order(pair: tuple[LinearOp, LinearOp]) -> None:
    one, other = added(*pair), added(*pair[::-1])
    assert isinstance(one, LinearOp)
    assert isinstance(other, LinearOp)
    assert (one.window, one.groups, work(one)) == (other.window, other.groups, work(other))
    np.testing.assert_array_equal(one.evaluate().taps, other.evaluate().taps)


@given(behind())
@settings(max_examples=120)
def test_a_product_of_operators_is_one_behind_the_other(pair: tuple[LinearOp, LinearOp]) -> None:
    second, first = pair
    both = composed(second, first)
    if second.bordered and first.evaluate().bias.any():
        assert both is Reason.PADDED_BORDER
        return
    assert isinstance(both, LinearOp)
    for size in sizes(first, both):
        x = data(first, size)
        np.testing.assert_allclose(applied(both, x), applied(second, applied(first, x)), atol=1e-10)


@given(beside(), st.booleans())
@settings(max_examples=60)
def test_an_affine_and_the_value_itself_are_operators(pair: tuple[LinearOp, LinearOp], is_identity: bool) -> None:
    like = pair[0]
    map_ = None if is_identity else affine(like.in_channels, 3)
    alone = linear(map_, like)
    if like.in_channels != like.out_channels:
        assert alone is Reason.AXIS_DIFFERS
        return
    assert isinstance(alone, LinearOp)
    x = data(like, 5)
    shape = (-1, *[1] * (x.ndim - 1))
    expected = x if map_ is None else map_.scale.reshape(shape) * x + map_.shift.reshape(shape)
    np.testing.assert_array_equal(applied(alone, x), expected)


def test_one_number_for_all_is_an_operator_too() -> None:
    like = operator(Window.point(1), 1, 4, 4, 0)
    alone = linear(ChannelAffine(np.array([3.0]), np.array([-1.0]), None), like)
    assert isinstance(alone, LinearOp)
    x = data(like, 5)
    np.testing.assert_array_equal(applied(alone, x), 3 * x - 1)


def test_an_affine_of_another_axis_is_no_operator_beside_it() -> None:
    like = operator(Window.point(1), 1, 4, 4, 0)
    assert linear(replace(affine(4, 0), axis=1), like) is Reason.AXIS_DIFFERS
    assert linear(affine(2, 0), like) is Reason.AXIS_DIFFERS
    assert linear(None, replace(like, out_axis=1)) is Reason.AXIS_DIFFERS
    assert linear(None, replace(like, window=None)) is Reason.AXIS_DIFFERS


@pytest.mark.parametrize(
    "other",
    [{"in_axis": 1}, {"out_axis": 1}, {"in_channels": 8}, {"out_channels": 1}],
    ids=lambda other: next(iter(other)),
)
def test_operators_of_other_axes_or_channels_are_not_added(other: dict[str, int]) -> None:
    one = operator(Window.point(1), 1, 4, 4, 0)
    assert added(one, replace(one, **other)) is Reason.AXIS_DIFFERS  # type: ignore[arg-type]
    assert isinstance(added(one, one), LinearOp)


def test_operators_that_do_not_meet_are_not_composed() -> None:
    one = operator(Window.point(1), 1, 4, 4, 0)
    assert composed(replace(one, in_axis=1), one) is Reason.AXIS_DIFFERS
    assert composed(operator(Window.point(1), 1, 8, 4, 0), one) is Reason.AXIS_DIFFERS
    wide = operator(Window((3,), (1,), (1,), (1,), (1,)), 1, 4, 4, 0)
    assert composed(wide, wide) is Reason.WINDOWS_DIFFER
    assert composed(one, replace(one, window=None)) is Reason.WINDOWS_DIFFER
    assert added(one, replace(one, window=None)) is Reason.WINDOWS_DIFFER


@given(beside())
def test_the_work_is_the_numbers_of_the_kernel(pair: tuple[LinearOp, LinearOp]) -> None:
    both = added(*pair)
    assert isinstance(both, LinearOp)
    for op in (*pair, both):
        assert work(op) == op.evaluate().taps.size


def test_groups_are_as_many_as_both_have_in_common() -> None:
    four, six = (operator(Window.point(0), groups, 12, 12, groups) for groups in (4, 6))
    both = added(four, six)
    assert isinstance(both, LinearOp)
    assert both.groups == 2
    in_turn = composed(four, six)
    assert isinstance(in_turn, LinearOp)
    assert in_turn.groups == 2


def test_cancellation_is_how_much_larger_the_terms_are_than_their_sum() -> None:
    one = operator(Window.point(0), 1, 4, 4, 0)
    assert cancellation([one, one], _sum(one, one)) == pytest.approx(1.0)
    scale = np.array([1.0, 1.0, -0.5, -0.999])
    against = one.then(ChannelAffine(scale, np.zeros(4), 0))
    assert cancellation([one, against], _sum(one, against)) == pytest.approx(1.999 / 0.001)
    away = one.then(ChannelAffine(-np.ones(4), np.zeros(4), 0))
    assert cancellation([one, away], _sum(one, away)) == np.inf


def test_equal_sums_have_equal_sources_and_others_have_not() -> None:
    """Copies of a shared weight are counted by their sources, before any is made."""
    one, other = (operator(Window.point(0), 1, 4, 4, seed) for seed in (1, 2))
    assert _sum(one, other).source == _sum(one, other).source
    found = [_sum(one, other).source, _sum(one, one).source, one.source, composed(one, other), composed(other, one)]
    sources = [each.source if isinstance(each, LinearOp) else each for each in found]
    assert len(set(sources)) == len(sources)  # type: ignore[arg-type]


def _sum(first: LinearOp, second: LinearOp) -> LinearOp:
    both = added(first, second)
    assert isinstance(both, LinearOp)
    return both
