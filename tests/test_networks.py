"""Laws of folding on random networks: what is claimed is true, whatever the network.

The network computes what it computed, in any order of its affines; folding again folds nothing; what the report says
was absorbed gives the parameters that were written; and a refusal names what stands in the way: take it away, and the
affine folds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from dictionary import (
    CHANNELS,
    Cell,
    Dictionary,
    add,
    affine,
    bn,
    concat,
    conv,
    mul,
    numbers,
    rectifier,
    relu,
    same,
    split,
)
from test_travel import numbers_of

from bnfold.algebra import Array, ChannelAffine, LinearOp
from bnfold.folding import FoldOptions, fold
from bnfold.graph import Reason, Refusal
from bnfold.outcome import FoldReport

ANY_GROWTH = FoldOptions(max_growth=100.0)
WIDEST = 4
SEEDS = range(200)


class Grower:
    """Cells that each read the inputs or earlier cells, and how many channels every value has."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.cells: dict[str, Cell] = {}
        self.widths = {"x": CHANNELS, "y": CHANNELS}

    def grown(self) -> Dictionary:
        """A network of which every dead end is an output, and some other values too."""
        for index in range(self.chance.randint(2, 11)):
            self.grow(f"n{index}")
        read = {value for cell in self.cells.values() for value in cell.inputs}
        made = [value for value in self.widths if value not in ("x", "y")]
        ends = [value for value in made if value not in read or self.chance.random() < 0.05]
        return Dictionary(self.cells, tuple(ends))

    def value(self, width: int | None = None) -> str:
        """Mostly one that nobody reads yet, so that there are ways on which affines can go."""
        fitting = [name for name, each in self.widths.items() if width in (None, each)]
        read = {value for cell in self.cells.values() for value in cell.inputs}
        fresh = [name for name in fitting if name not in read]
        return self.chance.choice(fresh if fresh and self.chance.random() < 0.8 else fitting)

    def grow(self, name: str) -> None:
        kinds = (self.norm, self.elementwise, self.linear, self.weightless, self.joined, self.parted)
        data = self.value()
        cell, out = self.chance.choices(kinds, weights=(4, 5, 5, 3, 6, 3))[0](name, data, self.widths[data])
        self.cells[name], self.widths[name] = cell, out
        if cell.makes == 2:
            self.widths[f"{name}.1"] = self.widths[data] - out

    def norm(self, name: str, data: str, width: int) -> tuple[Cell, int]:
        return bn(data, seed=name, channels=width), width

    def elementwise(self, name: str, data: str, width: int) -> tuple[Cell, int]:
        free = numbers(name).normal(size=width)
        kinds = [(free[0], 0.0), (1.0, free), (np.abs(free), 0.0), (-1.0, 0.0), (2.0, 0.0), (0.5, 0.0), (1.0, 0.0)]
        return affine(data, *self.chance.choice([*kinds, (1.0, 1.0), (1.0, -1.0)])), width

    def linear(self, name: str, data: str, width: int) -> tuple[Cell, int]:
        out = self.chance.choice([1, 2, 2, 4])
        return conv(data, f"w{name}", padded=self.chance.random() < 0.2, ins=width, outs=out), out

    def weightless(self, name: str, data: str, width: int) -> tuple[Cell, int]:
        return self.chance.choice([relu, rectifier, same])(data), width

    def joined(self, name: str, data: str, width: int) -> tuple[Cell, int]:
        other = self.value()
        if self.chance.random() < 0.3 and width + self.widths[other] <= WIDEST:
            return concat(data, other, sizes=(width, self.widths[other])), width + self.widths[other]
        other = self.value(width)
        if self.chance.random() < 0.4:
            return mul(data, other, width), width
        return add(data, other, signs=self.chance.choice([(1, 1), (1, -1)]), width=width), width

    def parted(self, name: str, data: str, width: int) -> tuple[Cell, int]:
        half = width // 2
        picks = [self.chance.randrange(width) for _ in range(self.chance.randint(1, width))]
        picks = self.chance.choice([picks, list(range(half, width)), list(range(width))[::-1]])
        if half and self.chance.random() < 0.5:
            return split(data, range(half), range(half, width), size=width), half
        return split(data, picks, size=width), len(picks)


def same_function(before: list[Array], model: Dictionary) -> None:
    for expected, got in zip(before, model.run(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)


def folded(report: FoldReport) -> set[str]:
    return {outcome.site.name for outcome in report.outcomes if outcome.folded}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_computes_the_same_in_any_order(seed: int) -> None:
    network = Grower(seed).grown()
    original, shuffled = deepcopy(network), deepcopy(network)
    order = list(network.cells)
    random.Random(seed).shuffle(order)
    shuffled.order = tuple(order)
    before = network.run()
    report = fold(network, ANY_GROWTH)
    assert folded(fold(shuffled, ANY_GROWTH)) == folded(report)
    same_function(before, network)
    same_function(before, shuffled)
    assert set(original.cells) - set(network.cells) == folded(report)
    assert not folded(fold(network, ANY_GROWTH))
    absorbed_is_what_was_written(original, network, report)


def absorbed_is_what_was_written(original: Dictionary, network: Dictionary, report: FoldReport) -> None:
    """What a certificate does: compose again what the report names, from the affines of the model alone."""
    readings = {name: cell.reading for name, cell in original.cells.items()}
    leaves = {name: (each.scale, each.shift) for name, each in readings.items() if isinstance(each, ChannelAffine)}
    for taken in report.absorbed:
        if taken.operator is None:
            np.testing.assert_array_equal(np.unique(numbers_of(taken.origin, leaves), axis=1), [[1.0], [0.0]])
            continue
        op = readings[taken.operator]
        assert isinstance(op, LinearOp)
        channels, axis = (op.out_channels, op.out_axis) if taken.side == "after" else (op.in_channels, op.in_axis)
        wide = [np.resize(each, channels) for each in numbers_of(taken.origin, leaves)]
        again = ChannelAffine(*wide, axis=axis)
        readings[taken.operator] = again @ op if taken.side == "after" else op @ again
    for name, cell in network.cells.items():
        if isinstance(cell.reading, LinearOp):
            again_op = readings[name]
            assert isinstance(again_op, LinearOp)
            np.testing.assert_array_equal(cell.reading.evaluate().taps, again_op.evaluate().taps)
            np.testing.assert_array_equal(cell.reading.evaluate().bias, again_op.evaluate().bias)


BARE = -1


def without(network: Dictionary, names: tuple[str, ...], ports: tuple[int | None, ...]) -> Dictionary:
    """The network with an Identity of one of its inputs for each of these nodes, or, for None, no reader at all, or,
    for `BARE`, the operator without its border."""
    cells = dict(network.cells)
    for name, port in zip(names, ports, strict=True):
        cell = cells[name]
        if port is None:
            cells[name] = replace(cell, data="constant", beside=("constant",) * len(cell.beside), also=())
        elif port == BARE:
            assert isinstance(cell.reading, LinearOp)
            cells[name] = replace(cell, reading=replace(cell.reading, bordered=False))
        else:
            cells[name] = same(cell.inputs[port])
    return Dictionary(cells, network.ends)


def ways_to_do_without(network: Dictionary, refusal: Refusal) -> Iterator[Dictionary]:
    names = tuple(dict.fromkeys(name for name in (refusal.blocker, *refusal.also) if name is not None))
    ways = [
        [None, *range(len(cell.inputs)), *[BARE] * (isinstance(cell.reading, LinearOp) and cell.reading.bordered)]
        for cell in map(network.cells.__getitem__, names)
    ]
    yield from (without(network, names, ports) for ports in product(*ways))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_refusal_tells_what_stands_in_the_way(seed: int) -> None:
    """Without what it names the affine folds; or no single operator could be taken away to make it."""
    network = Grower(seed).grown()
    for outcome in fold(network, ANY_GROWTH).outcomes:
        refusal, name = outcome.refusal, outcome.site.name
        if refusal is None:
            continue
        if refusal.blocker and any(name in folds(way) for way in ways_to_do_without(network, refusal)):
            continue
        assert not refusal.also or any(reads_twice(network.cells[each]) for each in (refusal.blocker, *refusal.also))
        assert not [other for other in single(network, name) if name in folds(without(network, (other,), (0,)))]


def reads_twice(cell: Cell) -> bool:
    """Whether it can be no Identity and no absent reader: `x + x` is both in the way and the way."""
    return len(set(cell.inputs)) < len(cell.inputs)


def single(network: Dictionary, but: str) -> list[str]:
    """Operators that could be an Identity with nothing else changed."""
    affines = {but, *network.affines()}
    return [name for name, cell in network.cells.items() if name not in affines and cell.makes == len(cell.inputs) == 1]


def folds(network: Dictionary) -> set[str]:
    return folded(fold(deepcopy(network), ANY_GROWTH))


def test_the_networks_hold_something_of_everything() -> None:
    """A law that nothing tests is no law."""
    told: set[str] = set()
    crossed: set[str] = set()
    for seed in SEEDS:
        for outcome in fold(Grower(seed).grown(), ANY_GROWTH).outcomes:
            told.add(f"{outcome.rule} {len(outcome.into)}" if outcome.refusal is None else outcome.refusal.reason.code)
            crossed |= {site.op for site in outcome.via}
    assert crossed == {"same", "rectifier", "add", "mul", "concat", "split"}
    rules = {"into-producer 0", "into-producer 1", "into-consumer 1", "into-consumer 2"}
    assert rules <= told
    reasons = (Reason.SHARED_OUTPUT, Reason.JOINED, Reason.GATED, Reason.PADDED_BORDER, Reason.READ_BY_NONLINEARITY)
    assert {reason.code for reason in reasons} <= told
