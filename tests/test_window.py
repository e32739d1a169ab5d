"""Windows: what one sees is what its definition says, and a union has the taps of both and no others' places."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.window import Window

LARGEST = 200


@st.composite
def windows(draw: st.DrawFn, axes: int, like: Window | None = None) -> Window:
    """A window; one of the stride and the excess of `like`, if that is given."""
    sizes: list[tuple[int, int, int, int, int]] = []
    for axis in range(axes):
        kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        span = dilation * (kernel - 1)
        if like is None:
            sizes.append((kernel, draw(st.integers(1, 3)), dilation, draw(st.integers(0, 3)), draw(st.integers(0, 3))))
            continue
        border = like.before[axis] + like.after[axis] - like.dilation[axis] * (like.kernel[axis] - 1) + span
        if border < 0:
            kernel, dilation, border = like.kernel[axis], like.dilation[axis], like.before[axis] + like.after[axis]
        before = draw(st.integers(0, border))
        sizes.append((kernel, like.stride[axis], dilation, before, border - before))
    return Window(*(tuple(each) for each in zip(*sizes, strict=True))) if sizes else Window()


@st.composite
def families(draw: st.DrawFn, count: int) -> tuple[Window, ...]:
    """Windows of one rank, most of which make outputs of one size."""
    axes = draw(st.integers(0, 3))
    first = draw(windows(axes))
    return (first, *(draw(windows(axes, draw(st.sampled_from([first, first, None])))) for _ in range(count - 1)))


def offsets(window: Window) -> list[tuple[int, ...]]:
    """Where the taps are, in their order."""
    axes = [
        [tap * step - before for tap in range(taps)]
        for taps, step, before in zip(window.kernel, window.dilation, window.before, strict=True)
    ]
    return list(product(*axes))


def outputs(window: Window, size: int) -> tuple[int, ...]:
    """How many places there are along each axis of an input of this size; by the definition of a convolution."""
    along = zip(window.kernel, window.stride, window.dilation, window.before, window.after, strict=True)
    return tuple(
        (size + before + after - step * (taps - 1) - 1) // stride + 1 for taps, stride, step, before, after in along
    )


def has_outputs(window: Window, size: int) -> bool:
    return all(count > 0 for count in outputs(window, size))


def union(first: Window | None, second: Window | None) -> Window | None:
    return None if first is None or second is None else first.union(second)


def seen(window: Window) -> tuple[Any, ...]:
    """What matters of a window: a dilation of one tap does not."""
    return window.kernel, window.stride, window.before, window.after, frozenset(offsets(window))


@given(families(2))
@settings(max_examples=300)
def test_a_union_has_the_taps_of_both_at_their_places(family: tuple[Window, Window]) -> None:
    both = family[0].union(family[1])
    if both is None:
        return
    there = offsets(both)
    for window in family:
        assert [there[place] for place in window.places(both)] == offsets(window)
        assert all(outputs(window, size) == outputs(both, size) for size in range(1, LARGEST))
    assert min(both.before + both.after, default=0) >= 0


@given(families(2))
@settings(max_examples=300)
def test_a_union_is_refused_where_outputs_differ_at_some_size_and_nowhere_else(family: tuple[Window, Window]) -> None:
    sizes = [size for size in range(1, LARGEST) if all(has_outputs(window, size) for window in family)]
    alike = all(outputs(family[0], size) == outputs(family[1], size) for size in sizes)
    assert (family[0].union(family[1]) is not None) == alike


@given(families(2))
def test_a_union_is_the_smallest(family: tuple[Window, Window]) -> None:
    both = family[0].union(family[1])
    taps = {offset for window in family for offset in offsets(window)}
    for axis in range(len(family[0].kernel) if both else 0):
        assert both is not None
        places = sorted({offset[axis] for offset in taps})
        assert (-both.before[axis], places[-1]) == (places[0], max(offset[axis] for offset in offsets(both)))
        smaller = [
            step
            for step in range(both.dilation[axis] + 1, places[-1] - places[0] + 1)
            if all((place - places[0]) % step == 0 for place in places)
        ]
        assert not smaller


@given(families(2))
def test_a_union_does_not_care_for_order(family: tuple[Window, Window]) -> None:
    assert family[0].union(family[1]) == family[1].union(family[0])


@given(families(3))
@settings(max_examples=300)
def test_a_union_does_not_care_for_brackets(family: tuple[Window, Window, Window]) -> None:
    first, second, third = family
    left, right = union(union(first, second), third), union(first, union(second, third))
    assert (left is None) == (right is None)
    assert left is None or right is None or seen(left) == seen(right)


@given(families(1))
def test_a_window_is_its_own_union(family: tuple[Window]) -> None:
    assert family[0].union(family[0]) == family[0]


@given(st.integers(0, 3), st.integers(1, 9))
def test_a_point_sees_its_own_place(axes: int, size: int) -> None:
    point = Window.point(axes)
    assert point.is_point
    assert not point.bordered
    assert (point.taps, offsets(point)) == (1, [(0,) * axes])
    assert outputs(point, size) == (size,) * axes


@given(families(1))
def test_only_one_tap_without_a_border_is_a_point(family: tuple[Window]) -> None:
    (window,) = family
    assert window.taps == len(offsets(window))
    assert window.is_point == (offsets(window) == [(0,) * len(window.kernel)] and not any(window.after))
    assert window.bordered == any((*window.before, *window.after))


@pytest.mark.parametrize("other", [None, "reflect"])
def test_what_something_else_decides_is_alike_or_nothing(other: str | None) -> None:
    mine = Window((3,), (1,), (1,), (1,), (1,), "other")
    assert mine.union(mine) == mine
    assert mine.union(Window((3,), (1,), (1,), (1,), (1,), other)) is None
    assert mine.behind(Window.point(1)) is None
    assert Window.point(1).behind(mine) is None
    assert not Window((1,), (1,), (1,), (0,), (0,), "other").is_point


def test_windows_of_other_ranks_have_nothing_in_common() -> None:
    assert Window.point(1).union(Window.point(2)) is None
    assert Window.point(1).behind(Window.point(2)) is None


@given(st.integers(1, 2).flatmap(lambda axes: st.tuples(windows(axes), windows(axes))))
@settings(max_examples=200)
def test_one_behind_another_sees_what_that_one_saw(pair: tuple[Window, Window]) -> None:
    """Tap `o` of the second and tap `i` of the first are at `o · stride + i`, and both decide how many outputs."""
    second, first = pair
    both = second.behind(first)
    assert (both is None) == (not second.is_point and not first.is_point)
    if both is None:
        return
    places = [
        tuple(o * step + i for o, step, i in zip(outer, first.stride, inner, strict=True))
        for outer in offsets(second)
        for inner in offsets(first)
    ]
    assert offsets(both) == places
    for size in range(1, LARGEST):
        between = outputs(first, size)
        if all(count > 0 for count in between):
            last = tuple(outputs(second, count)[axis] for axis, count in enumerate(between))
            if all(count > 0 for count in last):
                assert outputs(both, size) == last
