"""What fold, check, bench and recalibrate return, outside Python: on one line, as JSON, in a notebook."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lxml import etree
from test_reports import NASTY, elementwise, folded, full_run, left, report_of, verification

import bnfold
from bnfold.benchmark import Benchmark, Compared, Comparison, Interval, Measured
from bnfold.display import MOST_ROWS, brief, plain, some, table
from bnfold.graph import Reason, Refusal, Site
from bnfold.moments import Drift, DriftReport, Untouched
from bnfold.outcome import FoldReport, Merged, Unmerged
from bnfold.reports.json import document
from bnfold.run import Finding, Run
from bnfold.verify.result import Verdict, Verification

LONG = NASTY * 40
MERGED = Merged("merge-branches", Site(LONG, "Conv"), (Site(NASTY, "Conv"),), None, 12, None, math.inf)
APART = Unmerged(Site(NASTY, "Add"), Refusal(Reason.WINDOWS_DIFFER, LONG))
FOLD = FoldReport((folded(LONG, NASTY), left(NASTY), elementwise()), merges=(MERGED,), unmerged=(APART,))
BENCH = Benchmark(
    tuple(Measured(name, None, 8, None, 9, 10, None, 11, 1e-3, *[math.nan] * 2, *[None] * 4) for name in ("a", LONG)),
    (Compared("a", LONG, "default", 1.25, 1.2, 1.3, 0.95, Comparison.FASTER),),
    Interval(1.0, 0.99, math.inf),
    *(1, 10, 1),
    provider="cpu",
)
DRIFT = DriftReport((Drift(LONG, 8, 64, 1.5, 0.5, math.nan, math.inf, 3, math.nan),), (Untouched(NASTY, "no", "x"),), 2)

RECORDS = [
    (FOLD, "FoldReport(1 of 2 batch norms folded)", ["conv", "left", "padded-border", "fc through Flatten"]),
    (bnfold.Folded(None, FOLD), "Folded(NoneType, 1 of 2 batch norms)", ["1 of 2 batch norms folded"]),
    (verification(), "Verification(proved: every number was derived again)", ["0.5 (limit 0.5)", "inf", "skipped"]),
    (BENCH, "Benchmark(faster: 1.25 times as fast [1.2, 1.3], conv", ["1.25 times as fast [1.2, 1.3]", "against a"]),
    (DRIFT, "DriftReport(1 of 2 batch norms in 2 passes; most in conv", ["left: no", "nan"]),
    (
        bnfold.Inspection(FOLD.outcomes, findings=(Finding("dead-channels", "note", NASTY),)),
        "Inspection(1 of 2 batch norms would fold, 1 finding)",
        ["1 of 2 batch norms would fold", "padded-border"],
    ),
    (bnfold.Recalibrated(None, DRIFT), "Recalibrated(NoneType, DriftReport(1 of 2", ["1 of 2 batch norms in 2 passes"]),
]
EVERY = pytest.mark.parametrize(("record", "line", "cells"), RECORDS, ids=lambda value: type(value).__name__)


@EVERY
def test_on_one_line_the_outcome_comes_first(record: Any, line: str, cells: list[str]) -> None:
    assert repr(record).startswith(line)
    assert len(repr(record)) < 200
    assert repr(record).isprintable()


@EVERY
def test_in_a_notebook_it_is_one_table_in_which_names_are_text(record: Any, line: str, cells: list[str]) -> None:
    html = record._repr_html_()
    tree = etree.fromstring(html)  # well-formed: nothing of a name is markup
    assert {element.tag for element in tree.iter()} <= {"table", "caption", "tr", "th", "td"}
    assert html.isprintable()
    assert len(html) < 5_000
    text = " ".join(tree.itertext())
    assert all(cell in text for cell in cells)
    widths = {len(row) for row in tree.iter("tr")}
    assert len(widths) == 1


@EVERY
def test_as_a_dict_it_is_json(record: Any, line: str, cells: list[str]) -> None:
    found = record.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_dict_has_what_the_json_report_has() -> None:
    run = full_run(*FOLD.outcomes)
    run.fold, run.check, run.bench = FOLD, verification(Verdict.FAILED), BENCH
    report = document(report_of(run))
    assert run.check.to_dict() == report["check"]
    assert run.bench.to_dict() == report["bench"]
    found = run.fold.to_dict()
    assert (found["merges"], found["unmerged"]) == (report["merges"], report["unmerged"])
    assert found["summary"].items() <= report["summary"].items()
    of_weights = {"range", "spread", "crest", "flags"}
    assert found["affines"] == [{key: row[key] for key in row if key not in of_weights} for row in report["affines"]]
    assert bnfold.Folded(run, run.fold).to_dict() == {"model": "Run", **found}


@pytest.mark.parametrize(
    ("changes", "fate"),
    [
        ({}, "padded-border"),
        ({"lowered_to": ("mul", "add")}, "padded-border, as elementwise operators"),
        (
            {"lowered_to": ("add",), "rule": "into-consumer", "into": (Site("conv", "Conv", "net.1"),)},
            "its scale in net.1",
        ),
    ],
)
def test_what_stays_says_as_what(changes: dict[str, Any], fate: str) -> None:
    assert replace(left("bn"), **changes).fate.endswith(fate)


def test_a_run_tells_what_it_has() -> None:
    run = Run("export", fold=FOLD, check=verification())
    assert repr(run).startswith("Run(export, FoldReport(1 of 2 batch norms folded), Verification(proved: every number")
    assert run._repr_html_() == FOLD._repr_html_() + verification()._repr_html_()
    assert repr(Run("inspect")) == "Run(inspect)"


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (np.float32("inf"), "inf"),
        (np.int64(3), 3),
        (Verdict.PROVED, "proved"),
        ({1: (True, None, 0.5)}, {"1": [True, None, 0.5]}),
    ],
)
def test_what_json_cannot_hold_becomes_what_it_can(value: Any, becomes: Any) -> None:
    assert plain(value) == becomes
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == becomes


def test_a_verdict_is_said_once() -> None:
    check = Verification(Verdict.PROVED, "proved: equal", "auto", 0, ())
    assert repr(check) == "Verification(proved: equal)"


def test_lines_lists_and_tables_end() -> None:
    assert brief("a\nb\x1b[31m") == r"a b\x1b[31m"
    assert brief("x" * 300, 10) == "x" * 9 + "…"
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(list("abcde")) == "a, b, c and 2 more"
    tree = etree.fromstring(table("t", ("name", "into"), [("a", "b")] * (MOST_ROWS + 7)))
    rows = list(tree.iter("tr"))
    assert len(rows) == 1 + MOST_ROWS + 1
    assert [cell.text for cell in rows[-1]] == ["… and 7 more", None]
    assert b"&lt;script&gt;" in etree.tostring(etree.fromstring(table("<script>", ("<b>",), [])))
