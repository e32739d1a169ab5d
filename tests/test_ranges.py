"""The range of a weight before and after, and the flags that a change of it raises."""

from __future__ import annotations

from typing import Any

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


def test_the_range_is_that_of_all_operators_that_took_it_in() -> None:
    found = ranges(stored(1, -3), stored(2, -0.5), report("op", "elsewhere"))["bn"]
    assert (found.before, found.after) == (3.0, 2.0)
    assert ranges(stored(1), stored(1), report("elsewhere")) == {}
