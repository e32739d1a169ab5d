"""The range of a weight before and after, and the flags that a change of it raises."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnfold.evidence import Evidence, StoredLinear
from bnfold.graph import Site
from bnfold.outcome import FoldReport, Outcome
from bnfold.reports.ranges import ranges


def stored(*numbers: float, bias: Any = None, dtype: Any = np.float32) -> Evidence:
    weight = np.array(numbers, dtype=dtype).reshape(-1, 1, 1, 1)
    return Evidence({}, {"op": StoredLinear("conv", weight, bias)})


def report(*into: str) -> FoldReport:
    sites = tuple(Site(name, "Conv") for name in into)
    return FoldReport((Outcome(Site("bn", "BatchNormalization"), 1, 1, "into-producer", sites, None),))


@pytest.mark.parametrize(
    ("before", "after", "flags"),
    [
        (stored(1, -3), stored(2, -0.5), ()),
        (stored(1, -3), stored(2, -70000), ("float16-overflow",)),
        (stored(1, 65505), stored(2, 70000), ()),
        (stored(1, 1), stored(1, 1, bias=np.array([1e5])), ("float16-overflow",)),
        (stored(1, 1e-30), stored(1, 1e-39), ("subnormal",)),
        (stored(1, 1e-39), stored(1, 1e-39), ()),
        (stored(1, 1e-3, dtype=np.float16), stored(1, 1e-5, dtype=np.float16), ("subnormal",)),
    ],
)
def test_flags(before: Evidence, after: Evidence, flags: tuple[str, ...]) -> None:
    assert ranges(before, after, report("op"))["bn"].flags == flags


@pytest.mark.parametrize(
    ("layout", "groups", "weight", "spread", "crest"),
    [
        ("conv", 1, [[[1, -2]], [[4, 0]], [[-32, 1]]], (8, (2,)), math.sqrt(2)),
        ("linear", 1, [[1, -2], [4, 0], [-32, 1]], (8, (2,)), math.sqrt(2)),
        ("matmul", 1, [[1, 4, -32], [-2, 0, 1]], (8, (2,)), math.sqrt(2)),
        ("conv_transpose", 1, [[[1], [4], [-32]], [[-2], [0], [1]]], (8, (2,)), math.sqrt(2)),
        ("conv_transpose", 3, [[[1]], [[4]], [[-32]]], (8, (2,)), 1),
        ("conv", 1, [[[3, 3]], [[-3, 0]]], (1, ()), math.sqrt(2)),
        ("conv", 1, [[[1]], [[0]], [[math.inf]], [[math.nan]]], (1, ()), 1),
        ("conv", 1, [[[0, 0]]], (None, ()), None),
        ("matmul", 1, np.zeros((0, 2)), (None, ()), None),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_how_far_apart_channels_and_the_weights_of_one_are(
    layout: Any, groups: int, weight: Any, spread: Any, crest: float | None, dtype: Any
) -> None:
    made = Evidence({}, {"op": StoredLinear(layout, np.array(weight, dtype=dtype), None, groups)})
    found = ranges(made, made, report("op"))["bn"]
    assert found.spread[:3] == (spread[0], *spread)
    assert found.crest.before == found.crest.after == (None if crest is None else pytest.approx(crest))
    assert found.crest.channels == ()


def test_the_channels_that_integers_hurt_are_named_the_worst_first() -> None:
    plain = np.random.default_rng(0).standard_normal((20, 64))
    tall = plain.copy()
    tall[3] *= 10
    tall[7] *= 30
    tall[11, 5], tall[2, 9] = 20, 10
    before, after = (Evidence({}, {"op": StoredLinear("linear", weight, None)}) for weight in (plain, tall))
    found = ranges(before, after, report("op"))["bn"]
    assert found.spread.channels == (7, 3, 11, 2)
    assert found.crest.channels == (11, 2)
    factors = np.abs(plain).max(axis=1) / np.sqrt((plain**2).mean(axis=1))
    assert found.crest.before == pytest.approx(factors.max())
    assert found.crest.after == pytest.approx(20 / np.sqrt((tall[11] ** 2).mean()))


def test_channels_that_one_scale_leaves_little_are_named_the_least_first() -> None:
    made = stored(1, 127, -7.9, 0, 8, 3, math.nan)
    assert ranges(made, made, report("op"))["bn"].spread.starved == (0, 5, 2)


def test_no_more_than_eight_channels_are_named() -> None:
    many = np.ones((30, 100))
    many[:12, 0] = np.arange(50, 62)
    made = Evidence({}, {"op": StoredLinear("linear", many, None)})
    found = ranges(made, made, report("op"))["bn"]
    assert found.spread.channels == found.crest.channels == (11, 10, 9, 8, 7, 6, 5, 4)


def test_the_numbers_are_those_of_the_operator_where_they_are_most_after_folding() -> None:
    one, other = stored(1, 1, 4).linears["op"], stored(1, 1, 2).linears["op"]
    found = ranges(Evidence({}, {"a": one, "b": one}), Evidence({}, {"a": other, "b": one}), report("a", "b"))
    assert found["bn"].spread == (4.0, 4.0, (2,), ())


def test_the_range_is_that_of_all_operators_that_took_it_in() -> None:
    found = ranges(stored(1, -3), stored(2, -0.5), report("op", "elsewhere"))["bn"]
    assert (found.before, found.after) == (3.0, 2.0)
    assert ranges(stored(1), stored(1), report("elsewhere")) == {}
