"""Random torch graphs in short; `python tests/random_torch.py` and `--faults` are the whole."""

from __future__ import annotations

import pytest
import torch
from random_torch import CAMPAIGN, CHECKS, FAULTS, MIX, Called, Recording, check_many, run
from random_torch_graphs import draw

FOUND_ONCE = (818957, 819633, 1112893, 2102091, 2102506, 2103034, 2103194, 2115146)
"""An addition that nobody reads became a bias; a weight of which a copy cost too much was not merged into, or not
rewritten when a merge had left it a single reader, or when all its readers took the same in; an addition of
zeros of which a view is written was no affine, but a bias once nothing was between."""

FALSELY_ACCUSED = (2100539, 2101932)
"""A division by a value near zero magnifies roundings; a number of no axes is written through `out`."""

FOUND_SOON = ("cat hands its slices to the wrong inputs", "affines composed the wrong way round")


def test_a_seed_always_draws_the_same_graph() -> None:
    one, other = draw(3), draw(3)
    assert one.module.code == other.module.code
    assert all((a == b).all() for a, b in zip(one.inputs[0], other.inputs[0], strict=True))


def test_a_recorded_program_computes_what_its_graph_does_and_states_every_size() -> None:
    drawn = draw(0)
    recording = Recording(drawn.module)
    made = run(recording, drawn.inputs[0]).outputs
    program = recording.program
    for module in (drawn.module, Called(program), program.module()):
        assert all(torch.equal(a, b) for a, b in zip(made, run(module, drawn.inputs[0]).outputs, strict=True))
    sizes = [
        size for node in program.graph.nodes if "val" in node.meta for size in getattr(node.meta["val"], "shape", ())
    ]
    assert sizes
    assert all(type(size) is int for size in sizes)


@pytest.mark.parametrize(("dialect", "count"), [("module", 12), ("examples", 6), ("program", 4)])
def test_folding_a_random_graph_computes_nothing_else(dialect: str, count: int) -> None:
    tally = check_many(range(count), dialect)
    assert not tally.wrong, "\n".join(tally.wrong)
    assert tally.counts[dialect] > 0.9 * count
    assert tally.counts["another function in double"] <= count // 10
    assert tally.reasons.total() > count / 2
    if dialect != "module":
        assert tally.rules.total() > count / 2


def test_what_long_runs_have_found_is_found_no_more() -> None:
    seeds = FOUND_ONCE + FALSELY_ACCUSED
    tally = check_many(seeds, "recorded")
    assert not tally.wrong, "\n".join(tally.wrong)
    assert tally.counts["recorded"] == len(seeds)


def test_example_inputs_that_torch_takes_and_fake_tensors_do_not_are_taken() -> None:
    tally = check_many([2109502], "examples")
    assert not tally.wrong, "\n".join(tally.wrong)
    assert tally.counts["examples"] == 1


def test_the_rank_of_a_difference_that_is_turned_round_is_known() -> None:
    tally = check_many([2100009], "module")
    assert not tally.wrong, "\n".join(tally.wrong)
    assert tally.counts["module"] == 1


def test_folding_recorded_graphs_crosses_most_of_what_can_be_crossed_and_computes_nothing_else() -> None:
    tally = check_many(range(1000, 1080), "recorded")
    assert not tally.wrong, "\n".join(tally.wrong)
    assert {"cat", "split", "permute", "add"} <= tally.crossed.keys()
    for rule in ("into-producer", "into-consumer"):
        assert tally.rules[f"affine {rule} via"] > 0
        assert tally.rules[f"norm {rule} via"] > 0


@pytest.mark.parametrize("name", FOUND_SOON)
def test_a_planted_fault_is_found_soon(name: str) -> None:
    assert CAMPAIGN.until_found(name, 150)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(4))
def test_folding_thousands_of_random_graphs_computes_nothing_else(part: int) -> None:
    tally = check_many(range(1_000_000 + 5000 * part, 1_005_000 + 5000 * part), "mixed")
    assert set(CHECKS) == set(MIX) <= tally.counts.keys()
    assert not tally.wrong, "\n".join(tally.wrong)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(FAULTS))
def test_every_planted_fault_is_found(name: str) -> None:
    assert CAMPAIGN.until_found(name, 600)
