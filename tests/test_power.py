"""The power study: each mutation changes what a network computes, in one place, and the page says what was found."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_build import Net

ROOT = Path(__file__).resolve().parents[1]
NOT_FINITE = {"NaN in one channel"}


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    """Everything that a mutation needs: padding, groups, a residual, a square weight, an activation, statistics."""
    net = Net()
    x = net.node("Relu", [net.batch_norm(net.conv("x", 3, 8, pads=[1] * 4, bias=True), 8, "bn1", epsilon=0.01)])
    y = net.batch_norm(net.conv(x, 8, 8, pads=[1] * 4, bias=True), 8, "bn2", epsilon=0.01)
    z = net.node("Relu", [net.node("Add", [y, x])])
    net.batch_norm(net.conv(z, 8, 8, pads=[1] * 4, bias=True, group=2), 8, "bn3", epsilon=0.01)
    return net.model({"x": (1, 3, 6, 6)})


@pytest.fixture(scope="module")
def pair(bench: Any, network: onnx.ModelProto) -> Any:
    return bench("spoiling").Pair.of(network)


def test_the_correct_fold_is_that(bench: Any, pair: Any) -> None:
    assert [site.norm for site in pair.sites] == ["bn1_node", "bn2_node", "bn3_node"]
    assert bench("power").difference(pair.original, pair.folded, 0) < 1e-6


def test_every_mutation_is_a_difference(bench: Any, pair: Any) -> None:
    mutations, power = bench("mutations"), bench("power")
    assert len({mutation.name for mutation in mutations.MUTATIONS}) == len(mutations.MUTATIONS) >= 25
    before = pair.original.SerializeToString(), pair.folded.SerializeToString()
    for mutation in mutations.MUTATIONS:
        mutant = pair.mutated(mutation, 0)
        assert mutant is not None, mutation.name
        found = power.difference(pair.original, mutant.model, 0)
        assert (found is None) == (mutation.name in NOT_FINITE), mutation.name
        assert found is None or found > 1e-6, mutation.name
    assert (pair.original.SerializeToString(), pair.folded.SerializeToString()) == before


def test_a_network_without_the_place_has_no_mutant(bench: Any) -> None:
    net = Net()
    net.batch_norm(net.conv("x", 3, 4, kernel=(1, 1)), 4)
    pair = bench("spoiling").Pair.of(net.model({"x": (1, 3, 4, 4)}))
    found = {mutation.name for mutation in bench("mutations").MUTATIONS if pair.mutated(mutation, 0) is None}
    assert found >= {"wrong group", "kernel flipped", "pads shifted by one", "the activation behind it dropped"}


def test_the_study_covers_sixty_over_five(bench: Any) -> None:
    power = bench("power")
    plan = list(power.planned(list(power.MODELS), 3))
    assert len(plan) == len(set(plan)) >= 60
    assert {model for model, _ in plan} == set(power.MODELS)
    assert len(power.MODELS) == 5


def test_rows_are_kept_and_the_page_names_survivors(
    bench: Any, network: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    power = bench("power")
    onnx.save(network, tmp_path / "net.onnx")
    calls: list[int] = []

    def broken(*_: Any) -> bool:
        calls.append(1)
        raise RuntimeError("no such operator")

    monkeypatch.setattr(power, "CHECKS", {**dict.fromkeys(power.PEERS[:3], lambda *_: False), "onnxslim": broken})
    options = argparse.Namespace(cache=tmp_path, models=["net"], spread=1, only="beta ignored", seed=0)
    rows = power.run(options)
    assert [row["verdict"] for row in rows] == ["proved", "failed"]
    assert rows[1]["layers"]
    assert power.run(options) == rows
    assert len(calls) == 2
    page = power.document(rows)
    assert "**1 of 1 mutants are called not equivalent by `bnfold check`**" in page
    assert "None survived." in page
    assert "`onnxslim` 0 and 1 errors" in page
    rows[1] |= {"verdict": "verified", "sentence": "verified: all is well", "layers": []}
    page = power.document(rows)
    assert "**0 of 1 mutants" in page
    assert f"- beta ignored, `net` at `{rows[1]['place']}`: verified: all is well" in page


def test_nothing_is_the_same_as_itself_and_a_difference_is_relative(bench: Any, network: onnx.ModelProto) -> None:
    power = bench("power")
    assert power.difference(network, network, 0) == 0
    (feed,) = power.normal(network, 0).values()
    assert (feed.shape, feed.dtype) == ((1, 3, 6, 6), np.float32)
