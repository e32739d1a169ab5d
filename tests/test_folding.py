"""What folds and what does not: rules, plan and commit, on graphs of a few dictionaries.

A row of `ROWS` is a graph and what must become of each of its batch norms. Every row is also run before and after, so
that a fold which is claimed but wrong is seen, and it is folded twice, shuffled and only planned.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pytest
from dictionary import (
    CHANNELS,
    WEIGHT_BYTES,
    Cell,
    Dictionary,
    add,
    affine,
    bn,
    broken,
    concat,
    conv,
    graph,
    mul,
    rectifier,
    relu,
    same,
    scaling,
    split,
    strange,
)

from bnfold.algebra import Array, ChannelAffine, LinearOp
from bnfold.errors import Exit, PolicyViolation
from bnfold.folding import FoldOptions, decide, fold
from bnfold.graph import Reason, Refusal, View
from bnfold.outcome import FoldReport, Outcome
from bnfold.rules import RULES, Step, into_consumer, into_producer


def became(outcome: Outcome) -> str:
    """An outcome in a few words: `into-producer conv`, or `shared-output relu`."""
    if outcome.refusal is None:
        return " ".join([str(outcome.rule), *(site.name for site in outcome.into)])
    return " ".join([outcome.refusal.reason.code, *([outcome.refusal.blocker] if outcome.refusal.blocker else [])])


def summary(report: FoldReport) -> dict[str, str]:
    return {outcome.site.name: became(outcome) for outcome in report.outcomes}


def crosswise(data: str, scale: list[float]) -> Cell:
    """An elementwise operator along another axis than that of the convolutions."""
    return Cell("affine", data, ChannelAffine(np.float64(scale), np.zeros(len(scale)), 2))


@dataclass(frozen=True)
class Row:
    """A graph, freshly made, and what must become of each of its batch norms."""

    title: str
    make: Callable[[], Dictionary]
    expected: dict[str, str]


ROWS = (
    # into the producer
    Row("BN after conv", lambda: graph("b", c=conv("x"), b=bn("c")), {"b": "into-producer c"}),
    Row("BN after padded conv", lambda: graph("b", c=conv("x", padded=True), b=bn("c")), {"b": "into-producer c"}),
    Row(
        "two BNs after conv",
        lambda: graph("b2", c=conv("x"), b1=bn("c"), b2=bn("b1")),
        {"b1": "into-producer c", "b2": "into-producer c"},
    ),
    Row(
        "the producer wins over the consumer",
        lambda: graph("d", c=conv("x"), b=bn("c"), d=conv("b", "v")),
        {"b": "into-producer c"},
    ),
    Row(
        "several readers of the BN do not matter",
        lambda: graph("r", "s", "b", c=conv("x"), b=bn("c"), r=relu("b"), s=relu("b")),
        {"b": "into-producer c"},
    ),
    Row(
        "one conv, called twice, each call with its BN",
        lambda: graph("b2", c1=conv("x"), b1=bn("c1"), c2=conv("b1"), b2=bn("c2")),
        {"b1": "growth-budget", "b2": "growth-budget"},
    ),
    # into the consumers
    Row("BN before conv", lambda: graph("c", b=bn("x"), c=conv("b")), {"b": "into-consumer c"}),
    Row(
        "two BNs before conv",
        lambda: graph("c", b1=bn("x"), b2=bn("b1"), c=conv("b2")),
        {"b1": "into-consumer c", "b2": "into-consumer c"},
    ),
    Row(
        "BN before two convs",
        lambda: graph("c", "d", b=bn("x"), c=conv("b"), d=conv("b", "v")),
        {"b": "into-consumer c d"},
    ),
    Row(
        "BN before conv and before another BN with its conv",
        lambda: graph("c", "d", b1=bn("x"), b2=bn("b1"), c=conv("b2"), d=conv("b1", "v")),
        {"b1": "into-consumer d c", "b2": "into-consumer c"},
    ),
    Row(
        "BNs on both sides of one conv",
        lambda: graph("b2", b1=bn("x"), c=conv("b1"), b2=bn("c")),
        {"b1": "into-consumer c", "b2": "into-producer c"},
    ),
    Row(
        "a scale alone crosses padding",
        lambda: graph("c", b=scaling("x"), c=conv("b", padded=True)),
        {"b": "into-consumer c"},
    ),
    Row(
        "a conv that others read: the BN goes forward instead",
        lambda: graph("r", "d", c=conv("x"), b=bn("c"), r=relu("c"), d=conv("b", "v")),
        {"b": "into-consumer d"},
    ),
    # refused by the producer
    Row(
        "another operator reads the conv",
        lambda: graph("b", "r", c=conv("x"), b=bn("c"), r=relu("c")),
        {"b": "shared-output r"},
    ),
    Row(
        "two BNs on one conv",
        lambda: graph("b1", "b2", c=conv("x"), b1=bn("c"), b2=bn("c", seed="2")),
        {"b1": "shared-output b2", "b2": "shared-output b1"},
    ),
    Row(
        "the first of two BNs is read by others: the second has no producer to itself",
        lambda: graph("b2", "r", c=conv("x"), b1=bn("c"), b2=bn("b1"), r=relu("b1")),
        {"b1": "into-producer c", "b2": "shared-output r"},
    ),
    Row(
        "the first of two BNs is an output",
        lambda: graph("b2", "b1", c=conv("x"), b1=bn("c"), b2=bn("b1")),
        {"b1": "into-producer c", "b2": "is-graph-output"},
    ),
    Row(
        "a weight is computed from the conv",
        lambda: graph("b", "d", c=conv("x"), b=bn("c"), d=conv("y", "v", "c")),
        {"b": "shared-output d"},
    ),
    Row(
        "the BN reads the conv as its own parameter too",
        lambda: graph("b", c=conv("x"), b=replace(bn("c"), also=("c",))),
        {"b": "shared-output b"},
    ),
    Row("the conv is an output", lambda: graph("b", "c", c=conv("x"), b=bn("c")), {"b": "is-graph-output"}),
    Row(
        "a subgraph reads the conv",
        lambda: graph("b", c=conv("x"), b=bn("c"), held={"c": Reason.CAPTURED_BY_SUBGRAPH}),
        {"b": "captured-by-subgraph"},
    ),
    Row(
        "the conv is written in place",
        lambda: graph("b", c=conv("x"), b=bn("c"), held={"c": Reason.MUTATED_IN_PLACE}),
        {"b": "mutated-in-place"},
    ),
    Row("another axis after conv", lambda: graph("b", c=conv("x"), b=bn("c", axis=2)), {"b": "axis-differs c"}),
    Row("another width after conv", lambda: graph("b", c=conv("x"), b=bn("c", channels=3)), {"b": "axis-differs c"}),
    Row("no room in the conv", lambda: graph("b", c=conv("x"), b=bn("c"), full="c"), {"b": "overflow c"}),
    Row(
        "a quantised producer",
        lambda: graph("b", q=strange("x", Reason.QUANTISED), b=bn("q")),
        {"b": "quantised q"},
    ),
    # refused by the consumers
    Row("BN before relu", lambda: graph("r", b=bn("x"), r=relu("b")), {"b": "read-by-nonlinearity r"}),
    Row(
        "pre-activation between convs",
        lambda: graph("d", c=conv("x"), r0=relu("c"), b=bn("r0"), r=relu("b"), d=conv("r", "v")),
        {"b": "read-by-nonlinearity r"},
    ),
    Row("BN before padded conv", lambda: graph("c", b=bn("x"), c=conv("b", padded=True)), {"b": "padded-border c"}),
    Row(
        "BN before padded conv, behind what is not linear",
        lambda: graph("s", r=relu("x"), b=bn("r"), c=conv("b", padded=True), s=relu("c")),
        {"b": "padded-border c"},
    ),
    Row(
        "one of two readers cannot take it: all or nothing",
        lambda: graph("c", "d", b=bn("x"), c=conv("b"), d=conv("b", "v", padded=True)),
        {"b": "padded-border d"},
    ),
    Row(
        "BN before conv and relu",
        lambda: graph("c", "r", b=bn("x"), c=conv("b"), r=relu("b")),
        {"b": "read-by-nonlinearity r"},
    ),
    Row("BN before conv, and an output", lambda: graph("c", "b", b=bn("x"), c=conv("b")), {"b": "is-graph-output"}),
    Row("another axis before conv", lambda: graph("c", b=bn("x", axis=2), c=conv("b")), {"b": "axis-differs c"}),
    Row(
        "BN computes a weight",
        lambda: graph("c", b=bn("x"), c=conv("y", "w", "b")),
        {"b": "parameter-not-constant c"},
    ),
    Row("no room in the next conv", lambda: graph("c", b=bn("x"), c=conv("b"), full="c"), {"b": "overflow c"}),
    Row(
        "an unknown operator",
        lambda: graph("u", b=bn("x"), u=strange("b", Reason.UNKNOWN_OPERATOR)),
        {"b": "unknown-operator u"},
    ),
    Row("nobody reads it", lambda: graph("x", b=bn("x")), {"b": "not-read"}),
    Row("it is all there is", lambda: graph("b", b=bn("x")), {"b": "is-graph-output"}),
    Row("it is the end", lambda: graph("b", r=relu("x"), b=bn("r")), {"b": "no-linear-producer r"}),
    # up through operators without weights
    Row("up through a passage", lambda: graph("b", c=conv("x"), s=same("c"), b=bn("s")), {"b": "into-producer c"}),
    Row(
        "up through two",
        lambda: graph("b", c=conv("x"), r=rectifier("c"), s=same("r"), b=affine("s", [2, 3])),
        {"b": "into-producer c"},
    ),
    Row(
        "what the passage refuses",
        lambda: graph("b", c=conv("x"), r=rectifier("c"), b=bn("r")),
        {"b": "no-linear-producer r"},
    ),
    Row(
        "the value behind the passage is read by others",
        lambda: graph("b", "r", c=conv("x"), s=same("c"), b=bn("s"), r=relu("s")),
        {"b": "shared-output r"},
    ),
    Row(
        "the value in front of the passage is read by others",
        lambda: graph("b", "r", c=conv("x"), s=same("c"), b=bn("s"), r=relu("c")),
        {"b": "shared-output r"},
    ),
    Row(
        "a passage reads one value twice",
        lambda: graph("b", c=conv("x"), a=add("c", "c"), b=bn("a")),
        {"b": "shared-output a"},
    ),
    Row(
        "a concatenation: each conv its slice",
        lambda: graph(
            "b",
            c=conv("x", "w", outs=1),
            d=conv("x", "v", outs=1),
            j=concat("c", "d", sizes=(1, 1)),
            b=bn("j"),
        ),
        {"b": "into-producer c d"},
    ),
    Row(
        "a concatenation with what is no conv",
        lambda: graph("b", c=conv("x"), r=relu("x"), j=concat("c", "r", sizes=(2, 2)), b=bn("j", channels=4)),
        {"b": "no-linear-producer r"},
    ),
    Row(
        "a concatenation whose other part the affine does not touch",
        lambda: graph(
            "b", c=conv("x"), r=relu("x"), j=concat("c", "r", sizes=(2, 2)), b=affine("j", [2, 3, 1, 1], [1, 1, 0, 0])
        ),
        {"b": "into-producer c"},
    ),
    Row(
        "one piece of a split: the other sees nothing",
        lambda: graph("b", "s.1", c=conv("x"), s=split("c", [0], [1]), b=bn("s", channels=1)),
        {"b": "into-producer c"},
    ),
    Row(
        "two slices of one value: neither sees the affine of the other",
        lambda: graph(
            "b", "d", c=conv("x"), s=split("c", [0]), t=split("c", [1]), b=bn("s", channels=1), d=bn("t", channels=1)
        ),
        {"b": "into-producer c", "d": "into-producer c"},
    ),
    Row(
        "a slice that overlaps sees it",
        lambda: graph("b", "t", c=conv("x"), s=split("c", [0]), t=split("c", [1, 0]), b=bn("s", channels=1)),
        {"b": "shared-output t"},
    ),
    Row(
        "a slice sees nothing, unless what it shares memory with is written",
        lambda: graph(
            "b",
            "t",
            c=conv("x"),
            s=split("c", [0]),
            t=split("c", [1]),
            b=bn("s", channels=1),
            held={"b": Reason.MUTATED_IN_PLACE},
        ),
        {"b": "shared-output t"},
    ),
    Row(
        "both pieces of a value come together again: the conv takes twice",
        lambda: graph(
            "b", c=conv("x"), s=split("c", [0]), t=split("c", [1]), j=concat("t", "s", sizes=(1, 1)), b=bn("j")
        ),
        {"b": "into-producer c"},
    ),
    Row(
        "two ways to one affine that vanishes once",
        lambda: graph(
            "b",
            c=conv("x"),
            a=bn("c"),
            s=split("a", [0]),
            t=split("a", [1]),
            j=concat("t", "s", sizes=(1, 1)),
            b=bn("j"),
        ),
        {"a": "into-producer c", "b": "into-producer c"},
    ),
    Row(
        "two ways to one affine that can only vanish with another",
        lambda: graph(
            "b",
            "u",
            c=conv("x", outs=3),
            a=affine("c", [2, 1, 5]),
            u=split("c", [2], size=3),
            s=split("a", [2], size=3),
            t=split("a", [0], size=3),
            j=concat("s", "t", sizes=(1, 1)),
            b=affine("j", [0.2, 3]),
        ),
        {"a": "into-producer c", "b": "into-producer c"},
    ),
    Row(
        "pieces that overlap: the other piece sees it",
        lambda: graph("b", "r", c=conv("x"), s=split("c", [0], [1, 0]), b=bn("s", channels=1), r=relu("s.1")),
        {"b": "shared-output r"},
    ),
    Row(
        "a passage reads it, but not as data",
        lambda: graph("b", "s", c=conv("x"), b=bn("c"), s=replace(same("x"), also=("c",))),
        {"b": "shared-output s"},
    ),
    Row(
        "an affine of another axis on the way",
        lambda: graph("b", c=conv("x"), r=rectifier("c"), a=crosswise("r", [2, 3]), b=affine("a", [5, 7])),
        {"a": "axis-differs c", "b": "axis-differs a"},
    ),
    Row(
        "a sum: the scale to every term, the shift to one",
        lambda: graph("b", c=conv("x"), d=conv("x", "v"), a=add("c", "d"), b=bn("a")),
        {"b": "into-producer c d"},
    ),
    Row(
        "a difference: the shift of the second term is turned round",
        lambda: graph(
            "b",
            c=conv("x"),
            r=rectifier("c"),
            d=conv("x", "v"),
            a=add("r", "d", signs=(1, -1)),
            b=affine("a", 2.0, 1.0),
        ),
        {"b": "into-producer c d"},
    ),
    Row(
        "a shift alone needs one term alone",
        lambda: graph("b", "c", c=conv("x"), d=conv("x", "v"), a=add("c", "d"), b=affine("a", 1.0, [1, 2])),
        {"b": "into-producer d"},
    ),
    Row(
        "a residual sum: the branch that is read again takes no scale",
        lambda: graph("b", c=conv("x"), d=conv("c", "v"), a=add("c", "d"), b=bn("a")),
        {"b": "shared-output d"},
    ),
    Row(
        "a product: the factor that can takes the scale",
        lambda: graph("b", r=relu("x"), c=conv("x"), m=mul("r", "c"), b=scaling("m")),
        {"b": "into-producer c"},
    ),
    Row(
        "a product takes no shift",
        lambda: graph("b", c=conv("x"), d=conv("x", "v"), m=mul("c", "d"), b=bn("m")),
        {"b": "gated m"},
    ),
    Row(
        "the first branch of a choice fails behind an affine, which stays for the second",
        lambda: graph("b", r=relu("x"), a=scaling("r"), c=conv("x"), m=mul("a", "c"), b=scaling("m")),
        {"a": "no-linear-producer r", "b": "into-producer c"},
    ),
    # down through operators without weights
    Row("down through a passage", lambda: graph("c", b=bn("x"), s=same("b"), c=conv("s")), {"b": "into-consumer c"}),
    Row(
        "down to every reader behind it",
        lambda: graph("c", "d", b=bn("x"), s=same("b"), c=conv("s"), t=same("s"), d=conv("t", "v")),
        {"b": "into-consumer c d"},
    ),
    Row(
        "down, and one reader behind it cannot",
        lambda: graph("c", "r", b=bn("x"), s=same("b"), c=conv("s"), r=relu("s")),
        {"b": "read-by-nonlinearity r"},
    ),
    Row(
        "down into the pieces",
        lambda: graph("c", "d", b=bn("x"), s=split("b", [0], [1]), c=conv("s", "w", ins=1), d=conv("s.1", "v", ins=1)),
        {"b": "into-consumer c d"},
    ),
    Row(
        "a piece that does not change may end anywhere",
        lambda: graph("c", "s.1", b=affine("x", [2, 1], [1, 0]), s=split("b", [0], [1]), c=conv("s", "w", ins=1)),
        {"b": "into-consumer c"},
    ),
    Row(
        "down beside another value",
        lambda: graph("c", b=bn("x"), j=concat("b", "y", sizes=(2, 2)), c=conv("j", ins=4)),
        {"b": "into-consumer c"},
    ),
    Row(
        "a diamond: both ways of one affine meet in a sum, once",
        lambda: graph("c", b=bn("x"), s=same("b"), a=add("s", "b"), c=conv("a")),
        {"b": "into-consumer c"},
    ),
    Row(
        "a diamond of unequal ways",
        lambda: graph("c", b=bn("x"), t=affine("b", 2.0), a=add("t", "b"), c=conv("a")),
        {"b": "joined a", "t": "joined a"},
    ),
    Row(
        "a shift crosses a sum by itself",
        lambda: graph("c", b=affine("x", 1.0, [1, 2]), a=add("b", "y"), c=conv("a")),
        {"b": "into-consumer c"},
    ),
    Row(
        "equal shifts of a difference cancel: nobody behind it notices",
        lambda: graph("r", b=affine("x", 1.0, [1, 2]), s=same("b"), a=add("s", "b", signs=(1, -1)), r=relu("a")),
        {"b": "into-consumer"},
    ),
    Row(
        "a scale does not cross a sum with what has none",
        lambda: graph("c", b=scaling("x"), a=add("b", "y"), c=conv("a")),
        {"b": "joined a"},
    ),
    Row(
        "a scale crosses a product, of one factor",
        lambda: graph("c", b=scaling("x"), m=mul("y", "b"), c=conv("m")),
        {"b": "into-consumer c"},
    ),
    Row(
        "both factors",
        lambda: graph("c", b=scaling("x"), m=mul("b", "b"), c=conv("m")),
        {"b": "read-by-nonlinearity m"},
    ),
    Row(
        "two negative scales are positive together",
        lambda: graph("c", n=affine("x", -1.0), m=affine("n", [-2, -3]), r=rectifier("m"), c=conv("r")),
        {"n": "into-consumer c", "m": "into-consumer c"},
    ),
    # affines that vanish by themselves
    Row("an affine that does nothing", lambda: graph("r", b=affine("x"), r=relu("b")), {"b": "into-producer"}),
    Row(
        "an affine that does nothing, written in place",
        lambda: graph("r", b=affine("x"), r=relu("b"), held={"b": Reason.MUTATED_IN_PLACE}),
        {"b": "mutated-in-place"},
    ),
    Row(
        "an affine that does nothing, to what is written in place",
        lambda: graph("r", c=relu("x"), b=affine("c"), r=relu("b"), held={"c": Reason.MUTATED_IN_PLACE}),
        {"b": "read-by-nonlinearity r"},
    ),
    Row(
        "an affine that does nothing, written in place, right behind a conv",
        lambda: graph("r", c=conv("x"), b=affine("c"), r=relu("b"), held={"b": Reason.MUTATED_IN_PLACE}),
        {"b": "into-producer c"},
    ),
    Row(
        "two that cancel, written in place",
        lambda: graph("r", b=affine("x", 2.0), d=affine("b", 0.5), r=relu("d"), held={"d": Reason.MUTATED_IN_PLACE}),
        {"b": "mutated-in-place", "d": "mutated-in-place"},
    ),
    Row(
        "two that cancel",
        lambda: graph("r", b=affine("x", 2.0, [2, 4]), d=affine("b", 0.5, [-1, -2]), r=relu("d")),
        {"b": "into-producer", "d": "into-producer"},
    ),
    Row(
        "two that cancel through a passage, and one that stays",
        lambda: graph(
            "r", a=affine("x", 4.0), b=affine("a", [2, 4]), s=same("b"), d=affine("s", [0.5, 0.25]), r=relu("d")
        ),
        {"a": "read-by-nonlinearity r", "b": "into-producer", "d": "into-producer"},
    ),
    Row(
        "two that cancel, where the first is read again",
        lambda: graph("r", "b", b=affine("x", 2.0), d=affine("b", 0.5), r=relu("d")),
        {"b": "is-graph-output", "d": "is-graph-output"},
    ),
    # which reason is told
    Row(
        "the producer that almost took it, rather than the reader behind it",
        lambda: graph("r", "s", c=conv("x"), b=bn("c"), r=relu("b"), s=relu("c")),
        {"b": "shared-output s"},
    ),
    Row(
        "the affine's own reason before any neighbour's",
        lambda: graph("b", "c", c=conv("x"), b=broken("c", Reason.BATCH_STATISTICS)),
        {"b": "batch-statistics"},
    ),
    Row(
        "a broken BN stops a chain, and only where it is",
        lambda: graph("b2", c=conv("x"), b0=bn("c"), b1=broken("b0", Reason.NON_FINITE), b2=bn("b1")),
        {"b0": "into-producer c", "b1": "non-finite", "b2": "non-finite b1"},
    ),
)


ROW_CASES = [pytest.param(row, id=row.title) for row in ROWS]


def same_function(before: list[Array], model: Dictionary) -> None:
    for expected, got in zip(before, model.run(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("row", ROW_CASES)
def test_every_row_becomes_what_it_says(row: Row) -> None:
    assert summary(fold(row.make())) == row.expected


@pytest.mark.parametrize("row", ROW_CASES)
def test_every_row_computes_what_it_computed(row: Row) -> None:
    model = row.make()
    if row.title == "another width after conv":
        return  # there is no such value
    before = model.run()
    fold(model)
    same_function(before, model)


@pytest.mark.parametrize("row", ROW_CASES)
def test_what_folded_is_gone_and_each_operator_is_written_once(row: Row) -> None:
    model = row.make()
    untouched = dict(model.cells)
    report = fold(model)
    folded = {outcome.site.name for outcome in report.outcomes if outcome.folded}
    written = {site.name for outcome in report.outcomes for site in outcome.into}
    assert sorted(model.verbs) == sorted([("write", name) for name in written] + [("bypass", name) for name in folded])
    assert model.verbs == sorted(model.verbs, key=lambda verb: verb[0] == "bypass"), "all writes come before any bypass"
    assert set(untouched) - set(model.cells) == folded
    changed = {name for name, cell in model.cells.items() if cell.reading is not untouched[name].reading}
    assert changed == written


@pytest.mark.parametrize("row", ROW_CASES)
def test_deciding_touches_nothing(row: Row) -> None:
    model = row.make()
    before = (dict(model.cells), model.ends)
    decide(model, {})
    assert (model.cells, model.ends) == before
    assert not model.verbs


@pytest.mark.parametrize("row", ROW_CASES)
def test_folding_again_folds_nothing(row: Row) -> None:
    model = row.make()
    first = fold(model)
    model.verbs.clear()
    second = fold(model)
    assert second.folded == 0
    assert not model.verbs
    assert [o.site for o in second.outcomes] == [o.site for o in first.outcomes if not o.folded]
    assert second.left == first.left


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("row", ROW_CASES)
def test_neither_names_nor_order_decide(row: Row, order: int) -> None:
    model = row.make()
    names = list(model.cells)
    renamed = dict(zip(names, [f"n{index}" for index in range(len(names))][::-1], strict=True))

    def renaming(value: str) -> str:
        maker, dot, port = value.partition(".")
        return renamed.get(maker, maker) + dot + port

    cells = {
        renamed[name]: replace(
            cell,
            data=renaming(cell.data),
            also=tuple(map(renaming, cell.also)),
            beside=tuple(map(renaming, cell.beside)),
        )
        for name, cell in list(model.cells.items())[::order]
    }
    other = Dictionary(
        cells,
        tuple(map(renaming, model.ends)),
        {renaming(name): reason for name, reason in model.held.items()},
        frozenset(renamed[name] for name in model.full),
        order=tuple(renamed[name] for name in names),
    )
    mine, yours = fold(model), fold(other)
    for left, right in zip(mine.outcomes, yours.outcomes, strict=True):
        assert (renamed[left.site.name], left.rule, left.folded) == (right.site.name, right.rule, right.folded)
        assert {renamed[site.name] for site in left.into} == {site.name for site in right.into}


def test_a_chain_is_composed_in_the_order_of_its_outcomes() -> None:
    """What the certificate relies on: into a producer first to last, into a consumer last to first."""
    model = graph("b4", b1=bn("x"), b2=bn("b1"), c=conv("b2"), b3=bn("c"), b4=bn("b3"))
    readings = {name: cell.reading for name, cell in model.cells.items()}
    op = readings["c"]
    assert isinstance(op, LinearOp)
    for name in ("b3", "b4"):
        op = readings[name] @ op  # type: ignore[operator]
    for name in ("b2", "b1"):
        op = op @ readings[name]  # type: ignore[operator]
    fold(model)
    assert list(model.cells) == ["c"]
    folded = model.cells["c"].reading
    assert isinstance(folded, LinearOp)
    assert folded.source == op.source


def test_a_long_chain_is_written_once() -> None:
    """Writing after each fold would round after each fold."""
    cells = {"n0": conv("x")} | {f"n{index}": scaling(f"n{index - 1}") for index in range(1, 50)}
    model = Dictionary(cells, ("n49",))
    assert fold(model).folded == 49
    assert model.verbs.count(("write", "n0")) == 1


@pytest.mark.parametrize(("passages", "expected"), [(150, "folded"), (250, "too-far")])
@pytest.mark.parametrize("end", ["before", "behind"])
def test_a_way_may_be_long_but_not_endless(end: str, passages: int, expected: str) -> None:
    way = {f"s{index}": same(f"s{index - 1}" if index else "start") for index in range(passages)}
    last = f"s{passages - 1}"
    if end == "before":
        model = Dictionary({"start": conv("x"), **way, "b": bn(last)}, ("b",))
    else:
        model = Dictionary({"start": bn("x"), **way, "c": conv(last)}, ("c",))
    assert codes(fold(model)) == {expected}


@pytest.mark.parametrize("end", ["before", "behind"])
def test_a_chain_settles_in_one_round(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked twice, so that time stays proportional to the number of batch norms."""
    asked: list[str] = []

    def counted(
        plan: View[str, str], node: str, affine: ChannelAffine, obstacles: list[Refusal] | None
    ) -> Step[str] | Refusal:
        asked.append(node)
        return into_consumer(plan, node, affine, obstacles)

    monkeypatch.setattr("bnfold.folding.RULES", (into_producer, counted))
    if end == "before":
        cells = {"n0": conv("x")} | {f"n{index}": scaling(f"n{index - 1}") for index in range(1, 20)}
    else:
        cells = {f"n{index}": scaling(f"n{index - 1}") for index in range(19)} | {"n19": conv("n18")}
    assert fold(Dictionary(cells, ("n19",))).folded == 19
    assert len(asked) == (0 if end == "before" else 19)


# include and exclude


def three() -> Dictionary:
    model = graph(
        "r", c=conv("x"), b1=bn("c"), d=conv("b1", "v"), b2=bn("d"), e=conv("b2", "u"), b3=bn("e"), r=relu("b3")
    )
    model.modules = {"b1": "stem.norm", "b2": "stage.0.norm", "b3": "stage.1.norm"}
    return model


PATTERNS = [
    pytest.param(FoldOptions(), "b1 b2 b3", id="all by default"),
    pytest.param(FoldOptions(exclude=("b2",)), "b1 b3", id="exclude a node"),
    pytest.param(FoldOptions(exclude=("stage.*",)), "b1", id="exclude a module path"),
    pytest.param(FoldOptions(include=("stage.*",)), "b2 b3", id="include a module path"),
    pytest.param(FoldOptions(include=("b1", "*.1.*")), "b1 b3", id="include several"),
    pytest.param(FoldOptions(include=("stage.*",), exclude=("b3",)), "b2", id="exclude wins over include"),
    pytest.param(FoldOptions(include=("STAGE.*",)), "", id="case matters"),
    pytest.param(FoldOptions(include=("nothing",)), "", id="include nothing"),
]


@pytest.mark.parametrize(("options", "expected"), PATTERNS)
def test_patterns_choose(options: FoldOptions, expected: str) -> None:
    report = fold(three(), options)
    assert " ".join(o.site.name for o in report.outcomes if o.folded) == expected
    assert {became(o) for o in report.outcomes if not o.folded} <= {"excluded"}


def test_excluded_is_told_before_any_other_reason() -> None:
    model = graph("b", c=conv("x"), b=broken("c", Reason.BATCH_STATISTICS))
    assert summary(fold(model, FoldOptions(exclude=("b",)))) == {"b": "excluded"}


def test_an_excluded_batch_norm_still_reads_what_it_read() -> None:
    model = graph("b2", c=conv("x"), b1=bn("c"), b2=bn("b1"))
    before = model.run()
    assert summary(fold(model, FoldOptions(exclude=("b1",)))) == {"b1": "excluded", "b2": "no-linear-producer b1"}
    same_function(before, model)
    model = graph("b2", c=conv("x"), b1=bn("c"), b2=bn("b1"))
    assert summary(fold(model, FoldOptions(exclude=("b2",)))) == {"b1": "into-producer c", "b2": "excluded"}
    same_function(before, model)


# shared weights and the growth budget


def siamese(*, equal: bool = False, others: int = 0) -> Dictionary:
    """Two calls of one conv, each with a batch norm behind it, beside `others` convs of their own."""
    model = graph("b1", "b2", c1=conv("x"), b1=bn("c1"), c2=conv("y"), b2=bn("c2"))
    if equal:
        model.cells["b2"] = replace(model.cells["b1"], data="c2")
    model.cells |= {f"other{index}": conv("x", f"v{index}") for index in range(others)}
    return model


def codes(report: FoldReport) -> set[str]:
    return {outcome.refusal.reason.code if outcome.refusal else "folded" for outcome in report.outcomes}


@pytest.mark.parametrize(
    ("model", "max_growth", "expected"),
    [
        pytest.param(siamese(), 1.10, "growth-budget", id="a second copy of the only weight doubles the file"),
        pytest.param(siamese(), 1.99, "growth-budget", id="just too little"),
        pytest.param(siamese(), 2.0, "folded", id="just enough"),
        pytest.param(siamese(others=8), 1.10, "growth-budget", id="one of nine"),
        pytest.param(siamese(others=9), 1.10, "folded", id="one of ten"),
        pytest.param(siamese(equal=True), 1.0, "folded", id="equal copies become one again"),
    ],
)
def test_copies_stay_within_the_budget(model: Dictionary, max_growth: float, expected: str) -> None:
    model = deepcopy(model)
    before = model.run()
    assert codes(fold(model, FoldOptions(max_growth=max_growth))) == {expected}
    same_function(before, model)


def refusals(report: FoldReport) -> list[Refusal]:
    return [outcome.refusal for outcome in report.outcomes if outcome.refusal]


def test_a_refusal_says_how_much_growth_it_would_take() -> None:
    for model in (siamese(), siamese(others=8)):
        (growth,) = {refusal.growth for refusal in refusals(fold(deepcopy(model)))}
        assert growth is not None
        assert codes(fold(deepcopy(model), FoldOptions(max_growth=growth))) == {"folded"}
        assert codes(fold(deepcopy(model), FoldOptions(max_growth=growth - 0.02))) == {"growth-budget"}
    assert refusals(fold(siamese()))[0].remedy == "raise --max-growth to 2.00"


def test_only_the_border_is_in_the_way_of_a_padded_convolution() -> None:
    """Behind it the value goes on to operators that would be in the way too if the convolution were none."""
    (refusal,) = refusals(
        fold(graph("m", r=relu("x"), b=bn("r"), c=conv("b", padded=True), s=relu("c"), m=add("c", "s")))
    )
    assert (refusal.reason.code, refusal.blocker, refusal.also) == ("padded-border", "c", ())


def test_an_original_that_is_still_read_counts() -> None:
    """One of two equal calls has no batch norm, so the original stays beside the copy."""
    model = graph("b1", "c2", c1=conv("x"), b1=bn("c1"), c2=conv("y"))
    assert decide(model, {})[0].copies() == {"w": WEIGHT_BYTES}
    assert codes(fold(model)) == {"growth-budget"}


def test_only_the_costliest_weight_is_given_up() -> None:
    twice = {"a1": conv("x", "two"), "p1": bn("a1"), "a2": conv("y", "two"), "p2": bn("a2")}
    thrice = {f"c{i}": conv(f"z{i}", "three") for i in range(3)} | {f"q{i}": bn(f"c{i}") for i in range(3)}
    alone = {"d": conv("x", "one"), "r": bn("d")}
    model = Dictionary(twice | thrice | alone, ("p1", "p2", "q0", "q1", "q2", "r"))
    report = fold(model, FoldOptions(max_growth=1.4))  # of three weights: room for one copy, and three are wanted
    left = {o.site.name for o in report.outcomes if not o.folded}
    assert left == {"q0", "q1", "q2"}
    assert {o.refusal for o in report.outcomes if not o.folded} == {Refusal(Reason.GROWTH_BUDGET)}


# the report


def test_the_report_has_a_row_per_batch_norm_and_counts_them() -> None:
    report = fold(graph("r", c=conv("x"), b1=bn("c"), r0=relu("b1"), b2=bn("r0", axis=1), r=relu("b2")))
    assert [(o.site.name, o.site.op, o.channels, o.axis) for o in report.outcomes] == [
        ("b1", "bn", CHANNELS, 1),
        ("b2", "bn", CHANNELS, 1),
    ]
    assert (report.folded, report.left) == (1, 1)
    assert repr(report) == "FoldReport(1 of 2 batch norms folded)"


def test_a_batch_norm_that_is_none_has_no_channels() -> None:
    (row,) = fold(graph("b", b=broken("x", Reason.BATCH_STATISTICS))).outcomes
    assert (row.channels, row.axis, row.rule, row.into) == (None, None, None, ())


def test_a_model_without_batch_norms_has_an_empty_report() -> None:
    model = graph("r", c=conv("x"), r=relu("c"))
    assert fold(model) == FoldReport(())
    assert not model.verbs


def test_what_is_left_raises_unless_its_reason_is_accepted() -> None:
    report = fold(graph("r", "s", b=bn("x"), r=relu("b"), c=conv("x"), b2=bn("c"), s=relu("b2")))
    with pytest.raises(PolicyViolation, match="1 of 2 batch norms are left: 1 read-by-nonlinearity") as caught:
        report.raise_if_unfolded()
    assert caught.value.exit_code == Exit.POLICY
    with pytest.raises(PolicyViolation):
        report.raise_if_unfolded(accept=["padded-border"])
    report.raise_if_unfolded(accept=["read-by-nonlinearity"])


# the rules by themselves


def test_rules_are_in_the_list_and_agree_on_their_names() -> None:
    assert (into_producer, into_consumer) == RULES
    for row in ROWS:
        for outcome in fold(row.make()).outcomes:
            assert outcome.rule in {None, "into-producer", "into-consumer"}


def test_what_nobody_reads_goes_into_nothing() -> None:
    model = graph("x", b=bn("x"))
    affine = model.read("b")
    assert isinstance(affine, ChannelAffine)
    assert into_consumer(model, "b", affine) == Refusal(Reason.NOT_READ)


def test_reasons_have_one_stable_code_each() -> None:
    codes_ = [reason.code for reason in Reason]
    assert len(set(codes_)) == len(codes_)
    for reason in Reason:
        assert reason.code == reason.code.lower().replace("_", "-").replace(" ", "-")
        assert reason.message
        assert not reason.message.endswith(".")
        assert reason.remedy


def test_every_reason_a_rule_gives_itself_has_a_row() -> None:
    told = {word.split()[0] for row in ROWS for word in row.expected.values()}
    own = {
        Reason.SHARED_OUTPUT,
        Reason.READ_BY_NONLINEARITY,
        Reason.AXIS_DIFFERS,
        Reason.PADDED_BORDER,
        Reason.PARAMETER_NOT_CONSTANT,
        Reason.NO_LINEAR_PRODUCER,
        Reason.IS_GRAPH_OUTPUT,
        Reason.NOT_READ,
        Reason.GROWTH_BUDGET,
    }
    assert {reason.code for reason in own} <= told


def test_a_chain_longer_than_the_recursion_limit_folds() -> None:
    chain = {"c": conv("x")} | {f"b{i}": bn(f"b{i - 1}" if i else "c") for i in range(sys.getrecursionlimit() + 200)}
    network = graph(list(chain)[-1], **chain)
    assert fold(network).left == 0
    assert np.isfinite(network.read("c").evaluate().taps).all()


def test_a_growth_below_one_allows_no_copies() -> None:
    assert fold(graph("b", c=conv("x"), b=bn("c")), FoldOptions(max_growth=0.5)).folded == 1
