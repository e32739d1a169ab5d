"""`inspect --baseline`: a batch norm that folded in a former report must fold again; the new and the gone are notes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import demo_in, validated
from lxml import etree
from onnx import numpy_helper
from test_reports import elementwise, folded, full_run, left, report_of

from bnfold.cli import main
from bnfold.errors import EnvironmentFailure, PolicyViolation, Rejected
from bnfold.graph import Reason, Site
from bnfold.outcome import FoldReport, Outcome
from bnfold.reports import baseline
from bnfold.reports import json as report_json
from bnfold.run import Run


def saved(folder: Path, *outcomes: Outcome) -> Path:
    path = folder / "baseline.json"
    path.write_text(report_json.render(report_of(full_run(*outcomes))))
    return path


def named(outcome: Outcome, node: str, module: str | None = None) -> Outcome:
    return replace(outcome, site=Site(node, "BatchNormalization", module))


def compared(
    folder: Path, before: Sequence[Outcome], now: Sequence[Outcome], *accept: str
) -> list[tuple[str, str, str | None]]:
    found = baseline.regressions(FoldReport(tuple(now)), baseline.read(saved(folder, *before)), accept)
    return [(finding.code, finding.severity, finding.affine) for finding in found]


REGRESSED = ("baseline-regressed", "error", "A001")


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        ([folded()], [folded(into="another")], []),
        ([left()], [named(folded(), "bn2")], []),
        ([left()], [left(reason=Reason.NOT_READ)], []),
        ([folded()], [named(left(), "renumbered", "net.bn1")], [REGRESSED]),
        ([named(folded(), "bn2")], [left()], [REGRESSED]),
        ([replace(left(), rule="into-consumer")], [left()], []),
        ([named(folded(), "bn2")], [replace(left(), rule="into-consumer")], [REGRESSED]),
        ([folded()], [folded(), left("bn9")], [("baseline-new", "note", "A002")]),
        ([folded()], [folded(), named(folded(), "bn9")], []),
        ([folded(), named(folded(), "bn9")], [folded()], [("baseline-gone", "note", None)]),
        ([elementwise("mul"), folded()], [elementwise("mul", Reason.GATED), folded()], []),
    ],
)
def test_only_what_folded_and_does_not_now_is_an_error(
    before: list[Outcome], now: list[Outcome], found: list[Any], tmp_path: Path
) -> None:
    assert compared(tmp_path, before, now) == found


def test_an_id_that_shifts_changes_nothing(tmp_path: Path) -> None:
    before = [named(left(), "n1", "a"), named(folded(), "n2", "b")]
    now = [named(folded(), "m0", "new"), *before]
    assert compared(tmp_path, before, now) == []


def test_a_module_that_is_called_twice_is_told_apart_by_its_nodes(tmp_path: Path) -> None:
    before = [named(folded(), "n1", "bn"), named(left(), "n2", "bn")]
    assert compared(tmp_path, before, before) == []
    now = [named(left(), "n1", "bn"), named(left(), "n2", "bn")]
    assert compared(tmp_path, before, now) == [REGRESSED]


def test_an_accepted_reason_is_no_regression(tmp_path: Path) -> None:
    before, now = [named(folded(), "bn1")], [left("bn1")]
    assert compared(tmp_path, before, now, "padded-border") == []
    assert compared(tmp_path, before, now, "not-read") == [REGRESSED]


def test_the_failure_names_the_batch_norm_and_why() -> None:
    fold = FoldReport((left("bn1"), left("bn2")))
    former = {"bn1": True, "bn2": True}
    found = baseline.regressions(fold, former)
    with pytest.raises(PolicyViolation, match=r"^bn1 folded .* padded-border, because of conv2; and 1 more$") as caught:
        baseline.enforce(fold, former, found)
    assert caught.value.code == "baseline-regressed"


def test_a_baseline_of_other_names_compares_nothing_and_is_no_pass() -> None:
    fold, former = FoldReport((left("x"),)), {"bn1": True}
    with pytest.raises(PolicyViolation, match="nothing was compared"):
        baseline.enforce(fold, former, baseline.regressions(fold, former))
    baseline.enforce(FoldReport(()), former, baseline.regressions(FoldReport(()), former))
    baseline.enforce(fold, {}, baseline.regressions(fold, {}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "\x00\xff",
        "[]",
        "7",
        "null",
        '{"schema": "bnfold.report/1"}',
        '{"schema": "bnfold.certificate/1", "affines": []}',
        '{"schema": "bnfold.report/1", "affines": [7], "summary": {"folded": 0}}',
        '{"schema": "bnfold.report/1", "affines": {"a": 1}, "summary": {"folded": 0}}',
        '{"schema": "bnfold.report/1", "affines": [{"batch_norm": true, "module": [], "name": 1}], "summary": {}}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_report_is_rejected(text: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(Rejected, match="is no JSON report of bnfold"):
        baseline.read(path)


def test_a_report_that_knows_of_no_fold_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(report_json.render(report_of(Run("check"))))
    with pytest.raises(Rejected, match="did not get as far as folding"):
        baseline.read(path)
    with pytest.raises(EnvironmentFailure, match="cannot be read: No such file"):
        baseline.read(tmp_path / "missing.json")


def test_from_a_report_to_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo, former, suite = demo_in(tmp_path), tmp_path / "former.json", tmp_path / "suite.xml"
    assert main(["fold", str(demo), "--dry-run", "--report", str(former), "-q"]) == 0
    words = ["inspect", str(demo), "--baseline", str(former)]
    assert main(words) == 0
    model = onnx.load(demo)
    (variance,) = (t for t in model.graph.initializer if t.name == "block.bn1.running_var")
    variance.CopyFrom(numpy_helper.from_array(-np.ones(variance.dims, np.float32), variance.name))
    onnx.save(model, demo)
    capsys.readouterr()
    assert main([*words, "--json", "--report", str(suite)]) == 3
    captured = capsys.readouterr()
    assert "folded in the baseline and does not now: variance-not-positive" in captured.err
    document = validated(captured.out)
    (regressed,) = [finding for finding in document["findings"] if finding["code"] == "baseline-regressed"]
    (failed,) = etree.parse(suite).xpath("//testcase[failure][@classname='bnfold.affine']/@name")
    assert failed.startswith(f"{regressed['affine']} ")
    assert main([*words, "--accept", "variance-not-positive", "-q"]) == 0
    former.write_text(json.dumps({**json.loads(former.read_text()), "schema": "another/1"}))
    assert main(words) == 4
