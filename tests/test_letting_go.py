"""What the check makes of a large tensor is let go when its user is, not when Python looks for cycles."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_build import Net

from bnfold.frontends import onnx as frontend
from bnfold.frontends.onnx.cutting import with_magnitudes
from bnfold.verify.float64 import float64_runner

WIDTH = 512
FEEDS = {"x": np.ones((1, WIDTH), np.float32)}


@pytest.fixture
def model() -> ir.Model:
    net = Net()
    net.node("MatMul", ["x", net.constant("w", np.ones((WIDTH, WIDTH)))])
    return frontend.from_proto(net.model({"x": (1, WIDTH)}))


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def run_exactly(model: ir.Model) -> Any:
    return float64_runner(*frontend.in_parts(frontend.as_float64(model)))(FEEDS)


def write_magnitudes(model: ir.Model) -> Any:
    return len(frontend.to_bytes(with_magnitudes(model)))


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("use", [run_exactly, write_magnitudes])
def test_nothing_large_is_held_by_cycles(model: ir.Model, use: Callable[[ir.Model], Any]) -> None:
    use(model)  # what is made once, and stays
    tracemalloc.start()
    for _ in range(3):
        use(model)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak > 4 * WIDTH**2  # it did make the numbers
    assert held < WIDTH**2
