"""Random multi-branch graphs in short; `python tests/random_branches.py` and `--faults` are the whole."""

from __future__ import annotations

import pytest
import random_branches_onnx
import random_branches_torch
from onnx_build import Net
from random_branches import CAMPAIGN, CHECKS, FAULTS, check_many

from bnfold.frontends import onnx as frontend

SHORT = (("onnx", range(110)), ("torch", range(36)))

FOUND_ONCE = (901364, 1300754, 2300396)
"""Once branches were merged, the rank of their sum was known, and folding again knew more; an assertion of torch.export
about a dtype kept an operator alive that had been merged; once a dropout had gone, the type of its input was known."""


def test_a_seed_always_draws_the_same_graph() -> None:
    models = [random_branches_onnx.draw(3).model.SerializeToString() for _ in range(2)]
    graphs = [random_branches_torch.draw(3) for _ in range(2)]
    assert models[0] == models[1]
    assert graphs[0].module.code == graphs[1].module.code


def test_what_long_runs_have_found_is_found_no_more() -> None:
    tally = check_many(FOUND_ONCE, "torch")
    assert not tally.wrong, "\n".join(tally.wrong)
    assert tally.counts["torch"] == len(FOUND_ONCE)


@pytest.mark.parametrize(("dialect", "seeds"), SHORT)
def test_merging_a_random_graph_computes_nothing_else(dialect: str, seeds: range) -> None:
    tally = check_many(seeds, dialect)
    assert not tally.wrong, "\n".join(tally.wrong)
    assert tally.counts[dialect] > 0.9 * len(seeds)
    assert tally.counts["merged something"] >= tally.counts["folded"] / 2
    assert tally.merges.keys() == {"merge-branches", "merge-serial"}
    assert {"more-work", "shared-output", "windows-differ", "padded-border"} <= tally.unmerged.keys()


def test_a_planted_fault_is_found_soon() -> None:
    assert CAMPAIGN.until_found("a single tap is added to the first one", 60, dialect="onnx")


def test_a_sum_that_lost_all_its_terms_reads_nothing() -> None:
    net = Net()
    value = net.conv("x", 4, 4, (1, 1))
    inner = net.node("Add", [value, net.conv(value, 4, 4, (1, 1))])
    net.node("Add", [inner, net.conv(value, 4, 4, (3, 3), pads=[1, 1, 1, 1])])
    folded, report = frontend.fold_model(frontend.from_proto(net.model({"x": (1, 4, 6, 6)})))
    assert [node.op_type for node in folded.graph] == ["Conv"]
    assert not report.unmerged


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(10))
def test_merging_ten_thousand_random_graphs_computes_nothing_else(part: int) -> None:
    tally = check_many(range(100_000 + 1000 * part, 101_000 + 1000 * part), "mixed")
    assert CHECKS.keys() <= tally.counts.keys()
    assert not tally.wrong, "\n".join(tally.wrong)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(FAULTS))
def test_every_planted_fault_is_found(name: str) -> None:
    assert CAMPAIGN.until_found(name, 600)
