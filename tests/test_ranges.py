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
    ("layout", "groups", "weight", "spread"),
    [
        ("conv", 1, [[[1, -2]], [[4, 0]], [[-32, 1]]], 8),
        ("linear", 1, [[1, -2], [4, 0], [-32, 1]], 8),
        ("matmul", 1, [[1, 4, -32], [-2, 0, 1]], 8),
        ("conv_transpose", 1, [[[1], [4], [-32]], [[-2], [0], [1]]], 8),
        ("conv_transpose", 3, [[[1]], [[4]], [[-32]]], 8),
        ("conv", 1, [[[3, 3]], [[-3, 0]]], 1),
        ("conv", 1, [[[1]], [[0]], [[math.inf]], [[math.nan]]], 1),
        ("conv", 1, [[[0, 0]]], None),
        ("matmul", 1, np.zeros((0, 2)), None),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_the_spread_of_output_channels(layout: Any, groups: int, weight: Any, spread: float | None, dtype: Any) -> None:
    made = Evidence({}, {"op": StoredLinear(layout, np.array(weight, dtype=dtype), None, groups)})
    assert ranges(made, made, report("op"))["bn"].spread == (spread, spread)


def test_the_spread_is_that_of_the_operator_where_it_is_most_after_folding() -> None:
    one, other = stored(1, 1, 4).linears["op"], stored(1, 1, 2).linears["op"]
    found = ranges(Evidence({}, {"a": one, "b": one}), Evidence({}, {"a": other, "b": one}), report("a", "b"))
    assert found["bn"].spread == (4.0, 4.0)


def test_the_range_is_that_of_all_operators_that_took_it_in() -> None:
    found = ranges(stored(1, -3), stored(2, -0.5), report("op", "elsewhere"))["bn"]
    assert (found.before, found.after) == (3.0, 2.0)
    assert ranges(stored(1), stored(1), report("elsewhere")) == {}
