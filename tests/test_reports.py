"""Reports: one record, four renderings, and nothing that a model is called can play tricks on the reader."""

from __future__ import annotations

import io
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from lxml import etree

from bnfold.benchmark import Benchmark, Compared, Comparison, Interval, Measured
from bnfold.errors import (
    BnfoldError,
    EnvironmentFailure,
    Exit,
    NotEquivalent,
    NoVerdict,
    PolicyViolation,
    UsageError,
    clean,
)
from bnfold.evidence import Evidence, StoredLinear, StoredNorm
from bnfold.graph import Reason, Refusal, Site
from bnfold.model import Cost, ModelFacts
from bnfold.outcome import FoldReport, Outcome
from bnfold.reports import console, explain, files, junit, markdown, tables
from bnfold.reports import json as report_json
from bnfold.reports.findings import findings
from bnfold.reports.report import PRECEDENCE, STATUS, Policy, Report
from bnfold.reports.text import did_you_mean, duration, size
from bnfold.run import ExternalFile, FileRecord, Finding, Run
from bnfold.verify.result import (
    Cause,
    Layer,
    OutputComparison,
    ProbeRecord,
    RuntimeRecord,
    Status,
    Verdict,
    Verification,
)

HASH = "0123456789abcdef" * 4
NASTY = "conv\x1b[31m]evil[/] [bold]x‮​|`<b>\r\n\x00"
STARTED = "2026-01-02T03:04:05+00:00"


def folded(name: str = "bn1", into: str = "conv1") -> Outcome:
    site = Site(name, "BatchNormalization", f"net.{name}", ("net.py", 12))
    return Outcome(site, 8, 1, "into-producer", (Site(into, "Conv"),), None)


def left(name: str = "bn2", reason: Reason = Reason.PADDED_BORDER, blocker: str | None = "conv2") -> Outcome:
    return Outcome(Site(name, "BatchNormalization"), 8, 1, None, (), Refusal(reason, blocker, also=("relu2",)))


def elementwise(name: str = "mul", reason: Reason | None = None) -> Outcome:
    """A Mul by a constant: folded through Flatten, or left."""
    via = () if reason else (Site("flatten1", "Flatten"),)
    into = () if reason else (Site("fc", "Gemm"),)
    refusal = Refusal(reason, "relu1") if reason else None
    return Outcome(Site(name, "Mul"), 8, 1, None if reason else "into-consumer", into, refusal, via, is_norm=False)


def verification(verdict: Verdict = Verdict.PROVED) -> Verification:
    failed = verdict is Verdict.FAILED
    return Verification(
        verdict,
        "every number was derived again",
        "auto",
        0,
        (
            Layer("L0", Status.PASS, "new weights derived again", 0.5, 0.5, "bn1", 3, 0.01),
            Layer("L3", Status.FAIL if failed else Status.SKIPPED, "onnxruntime is not installed"),
            Layer("L4", Status.WARN, "the inputs are random", math.inf),
        ),
        (OutputComparison("logits", "float32", (2, 10), 1e-7, np.float64(2e-7), math.nan, 1e-6, math.inf, 20, 1, 1),),
        (ProbeRecord("image", "normal", (2, 3, 8, 8), HASH),),
        RuntimeRecord("onnxruntime", "1.31.1", "CPUExecutionProvider", "off", "sequential"),
    )


def full_run(*outcomes: Outcome, command: str = "fold") -> Run:
    return Run(
        command,
        input=FileRecord("in.onnx", "onnx", HASH, 1234, 10, {"": 20}),
        output=FileRecord("out.onnx", "onnx", HASH, 1000, 10, {"": 20}, (ExternalFile("out.data", HASH, 2_500_000),)),
        fold=FoldReport(outcomes or (folded(), left())),
        before=ModelFacts(2, 10, 6, 1000, 4000, lambda: Cost(12345)),
        after=ModelFacts(1, 9, 5, 990, 3960),
        check=verification(),
        findings=[Finding("dead-channels", "warning", "3 channels are zero", None, "bn1", (1, 2, 3))],
    )


def report_of(run: Run, *failures: BnfoldError, policy: Policy = Policy()) -> Report:
    return Report(run, ("fold", "in.onnx"), STARTED, 1.25, failures, policy)


def validated(report: Report) -> dict[str, Any]:
    document = json.loads(report_json.render(report))
    jsonschema.Draft202012Validator(report_json.schema()).validate(document)
    return document


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(report_json.schema())


def test_json_holds_every_key_when_nothing_is_known() -> None:
    document = validated(report_of(Run("fold"), UsageError("no model")))
    schema = report_json.schema()
    assert list(document) == list(schema["properties"])
    assert set(schema["required"]) <= set(document)
    assert document["input"] is None
    assert document["affines"] == []
    assert document["summary"]["nodes"] == {"before": None, "after": None}
    assert document["error"] == {"code": "usage", "message": "no model", "hint": None, "details": None}
    assert (document["status"], document["exit_code"]) == ("usage", 2)


def test_json_of_a_full_run() -> None:
    document = validated(report_of(full_run()))
    assert document["summary"] == {
        "batch_norms": 2,
        "batch_norms_after": 1,
        "affines": 2,
        "affines_folded": 1,
        "folded": 1,
        "merged": 0,
        "left": 1,
        "nodes": {"before": 10, "after": 9},
        "compute_nodes": {"before": 6, "after": 5},
        "parameters": {"before": 1000, "after": 990},
        "macs": {"before": 12345, "after": None},
        "bytes": {"before": 4000, "after": 3960},
    }
    first, second = document["affines"]
    assert (first["id"], first["outcome"]) == ("A001", "folded")
    assert first["into"] == [{"node": "conv1", "op": "Conv", "module": None}]
    assert first["source"] == {"file": "net.py", "line": 12}
    assert second["reason"] == {
        "code": "padded-border",
        "message": Reason.PADDED_BORDER.message,
        "remedy": Reason.PADDED_BORDER.remedy,
        "blocker": "conv2",
        "also": ["relu2"],
        "modules": {},
    }
    assert document["output"]["external"] == [{"path": "out.data", "sha256": HASH, "bytes": 2_500_000}]


def test_json_tells_elementwise_affines_and_the_way_they_took() -> None:
    document = validated(report_of(full_run(folded(), left(), elementwise(), elementwise("add", Reason.GATED))))
    assert [affine["batch_norm"] for affine in document["affines"]] == [True, True, False, False]
    assert document["affines"][2]["via"] == [{"node": "flatten1", "op": "Flatten", "module": None}]
    found = {key: document["summary"][key] for key in ("affines", "affines_folded", "folded", "left")}
    assert found == {"affines": 4, "affines_folded": 2, "folded": 1, "left": 1}


def test_json_writes_non_finite_numbers_as_words() -> None:
    (output,) = validated(report_of(full_run()))["check"]["outputs"]
    assert (output["ratio"], output["max_rel"], output["rmse_candidate"]) == ("nan", "inf", 2e-7)


def test_json_schema_rejects_what_contradicts_itself() -> None:
    document = validated(report_of(full_run()))
    validator = jsonschema.Draft202012Validator(report_json.schema())
    assert not validator.is_valid({**document, "exit_code": 1})
    assert not validator.is_valid({key: value for key, value in document.items() if key != "bench"})
    assert not validator.is_valid({**document, "affines": [{**document["affines"][0], "outcome": "left"}]})
    assert validator.is_valid({**document, "added": 1})


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(PRECEDENCE, 2)))
def test_the_gravest_failure_decides(first: Exit, second: Exit) -> None:
    def error(code: Exit) -> BnfoldError:
        made = BnfoldError(code.name.lower(), code=code.name.lower().replace("_", "-"))
        made.exit_code = code
        return made

    report = report_of(Run("fold"), error(second), error(first))
    assert report.exit_code is first
    document = validated(report)
    assert document["status"] == STATUS[first]
    assert [other["message"] for other in document["error"]["details"]["also"]] == [second.name.lower()]


def test_the_order_of_exit_codes_is_the_documented_one() -> None:
    assert [code for code in PRECEDENCE if code < 100] == [70, 5, 4, 2, 1, 7, 3, 6]
    assert set(PRECEDENCE) | {Exit.OK} == set(Exit) == set(STATUS)


@pytest.mark.parametrize(
    ("outcomes", "command", "verdict", "sentence"),
    [
        ([folded(), folded("bn3")], "fold", Verdict.PROVED, "Folded 2 of 2 batch norms; proved equivalent."),
        ([folded()], "export", Verdict.VERIFIED, "Folded 1 of 1 batch norm; verified equivalent."),
        ([folded(), left()], "fold", None, "Folded 1 of 2 batch norms; not checked."),
        ([folded()], "fold", Verdict.FAILED, "Folded 1 of 1 batch norm; NOT equivalent."),
        ([folded()], "fold", Verdict.NO_VERDICT, "Folded 1 of 1 batch norm; no verdict."),
        ([], "fold", None, "Nothing to fold: the model has no batch norm."),
        ([], "fold", Verdict.VERIFIED, "Nothing to fold: the model has no batch norm; verified equivalent."),
        ([folded(), elementwise()], "fold", None, "Folded 1 of 1 batch norm and 1 other affine; not checked."),
        ([left(), elementwise()], "inspect", None, "0 of 1 batch norm and 1 other affine would fold."),
        ([elementwise()], "fold", None, "Folded 1 affine; not checked."),
        ([elementwise(reason=Reason.GATED)], "fold", None, "Nothing to fold: the model has no batch norm."),
        ([left()], "fold", None, "Nothing to fold: the one batch norm of the model stays."),
        (
            [replace(left(), lowered_to=("mul", "add"))],
            "fold",
            Verdict.PROVED,
            "Made elementwise operators of 1 batch norm; proved equivalent.",
        ),
        ([left(), left("bn3")], "inspect", None, "Nothing to fold: all 2 batch norms of the model stay."),
        ([folded(), left()], "inspect", None, "1 of 2 batch norms would fold."),
    ],
)
def test_the_first_words_say_the_outcome(
    outcomes: list[Outcome], command: str, verdict: Verdict | None, sentence: str
) -> None:
    run = Run(command, fold=FoldReport(tuple(outcomes)), check=verification(verdict) if verdict else None)
    report = report_of(run)
    assert report.headline == sentence
    assert " ".join(console.render(report, io.StringIO()).split()).startswith(sentence)
    assert sentence.split(":")[0] in markdown.render(report).splitlines()[0]


def test_the_console_report_names_fates_reasons_and_files() -> None:
    text = console.render(report_of(full_run()), io.StringIO())
    for words in ("net.bn1", "conv1", "left: padded-border", "in the way: conv2", "what to do: pad before", "Wrote"):
        assert words in text
    assert "Wrote out.onnx (1 kB, and 2.5 MB in 1 data file); the input has 1.23 kB." in text
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_other_affines_have_a_row_where_they_fold_and_one_line_where_they_stay() -> None:
    stays = [elementwise("add1", Reason.GATED), elementwise("add2", Reason.GATED), elementwise("m", Reason.JOINED)]
    run = full_run(folded(), elementwise(), *stays)
    for text in (console.render(report_of(run), io.StringIO()), markdown.render(report_of(run)).replace("\\", "")):
        assert "mul (Mul)" in text
        assert "fc through Flatten" in text
        assert "3 other affines stay: 2 gated, 1 joined (bnfold inspect lists them)" in " ".join(text.split())
        assert "add1" not in text


def test_inspect_lists_every_affine() -> None:
    run = full_run(folded(), elementwise("add1", Reason.GATED), command="inspect")
    text = console.render(report_of(run), io.StringIO())
    for words in ("add1 (Mul)", "left: gated", "gated (1): its shift cannot cross"):
        assert words in text
    assert "other affine" not in text


def test_two_calls_of_one_module_are_told_apart() -> None:
    sites = [Site(name, "BatchNormalization", "net.bn") for name in ("bn_1", "bn_2")]
    text = console.render(report_of(full_run(*(replace(folded(), site=site) for site in sites))), io.StringIO())
    assert "net.bn (bn_1)" in text
    assert "net.bn (bn_2)" in text


def test_an_affine_that_does_nothing_went_into_nothing() -> None:
    report = report_of(full_run(replace(folded(), into=())))
    assert "nothing: it has no effect" in console.render(report, io.StringIO())
    assert "folded into nothing" in junit.render(report)


def stored_norm(variance: Any = 1.0, mean: Any = 0.5, epsilon: float = 1e-5) -> StoredNorm:
    one = np.ones(3, np.float32)
    return StoredNorm(one, one, one * np.float32(mean), one * np.asarray(variance, np.float32), epsilon)


def stored_conv(weight: Any, bias: Any = None, dtype: Any = np.float16) -> StoredLinear:
    array = np.asarray(weight, dtype).reshape(len(weight), -1, 1, 1)
    return StoredLinear("conv", array, None if bias is None else np.asarray(bias, dtype))


@pytest.mark.parametrize("epsilon", [1.0, 1e-8, 0.0])
def test_an_unusual_epsilon_is_a_finding(epsilon: float) -> None:
    evidence = Evidence({"bn1": stored_norm(epsilon=epsilon)}, {})
    (finding,) = findings(evidence, evidence, FoldReport((folded(),)))
    assert (finding.code, finding.severity, finding.affine) == ("unusual-epsilon", "note", "A001")
    assert "net.bn1" in finding.message


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3, 1e-5, 1e-7])
def test_a_usual_epsilon_is_none(epsilon: float) -> None:
    evidence = Evidence({"bn1": stored_norm(epsilon=epsilon)}, {})
    assert findings(evidence, evidence, FoldReport((folded(),))) == []


@pytest.mark.parametrize(
    ("norm", "reason", "channels"),
    [
        (stored_norm(variance=[1, -1, 1]), Reason.VARIANCE_NOT_POSITIVE, (1,)),
        (stored_norm(mean=[math.nan, 0, math.inf]), Reason.NON_FINITE, (0, 2)),
    ],
)
def test_broken_statistics_are_findings_that_name_the_channels(
    norm: StoredNorm, reason: Reason, channels: tuple[int, ...]
) -> None:
    evidence = Evidence({"bn2": norm}, {})
    (finding,) = findings(evidence, evidence, FoldReport((left(reason=reason),)))
    assert (finding.code, finding.severity, finding.channels) == (reason.code, "error", channels)


def test_fresh_subnormals_are_a_finding_and_old_ones_are_not() -> None:
    before = Evidence({}, {"conv1": stored_conv([[1, 1], [1e-5, 1], [1, 1]])})
    after = Evidence({}, {"conv1": stored_conv([[1, 1], [1e-6, 1], [1e-5, 1]], [1e-6, 0, 0])})
    (finding,) = findings(before, after, FoldReport((folded(),)))
    assert (finding.code, finding.channels) == ("subnormal", (0, 2))
    assert "2 of 3 channels of conv1" in finding.message


@pytest.mark.parametrize(
    ("layout", "shape", "groups", "channel"),
    [("matmul", (2, 4), 1, 3), ("linear", (4, 2), 1, 1), ("conv_transpose", (2, 2, 1, 2), 2, 2)],
)
def test_subnormals_are_found_in_every_layout(layout: Any, shape: tuple[int, ...], groups: int, channel: int) -> None:
    weight = np.ones(shape, np.float32)
    before = StoredLinear(layout, weight, None, groups)
    small = weight.copy()
    small[{"matmul": (0, 3), "linear": (1, 0), "conv_transpose": (1, 0, 0, 1)}[layout]] = 1e-40
    after = replace(before, weight=small)
    (finding,) = findings(Evidence({}, {"conv1": before}), Evidence({}, {"conv1": after}), FoldReport((folded(),)))
    assert finding.channels == (channel,)


def test_many_findings_of_a_kind_are_cut_short() -> None:
    run = full_run()
    run.findings = [Finding("unusual-epsilon", "note", f"the epsilon of bn{index}") for index in range(9)]
    text = console.render(report_of(run), io.StringIO())
    assert "note: the epsilon of bn2" in text
    assert "… and 6 unusual-epsilon (see --report)" in text


def benchmark(verdict: Comparison) -> Benchmark:
    measured = Measured("a[bold]", "a.onnx", 2, 0, 10, 100, None, 400, 1e-3, 2e-3, None, 900.0, 0.1, 0.01, 1 << 20)
    pairs = tuple(Compared("a", "b", options, 1.5, 1.4, math.inf, 0.95, verdict) for options in ("default", "off"))
    return Benchmark((measured,), pairs, Interval(1.0, 0.99, 1.01), 1, 10, 1, "CPUExecutionProvider", ("load 0.5",))


def test_intervals_are_drawn_to_scale() -> None:
    scale, lines = tables.intervals(replace(benchmark(Comparison.FASTER), control=Interval(1.0, 0.75, 1.5)), width=21)
    assert scale.split() == ["0.75", "1.50"]
    assert lines == [
        ("the first model twice", "├───────●───────────┤", "control"),
        ("default", "        ┊         ├─●", "faster"),
        ("off", "        ┊         ├─●", "faster"),
    ]


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (Comparison.FASTER, "b is faster than a: 1.50 times as fast [1.4, inf]."),
        (Comparison.NO_MEASURABLE_DIFFERENCE, "b against a: no measurable difference."),
    ],
)
def test_a_benchmark_never_gives_a_ratio_without_its_uncertainty(verdict: Comparison, sentence: str) -> None:
    report = report_of(Run("bench", bench=benchmark(verdict)))
    assert report.headline == sentence
    assert validated(report)["bench"]["comparisons"][0]["high"] == "inf"
    for text in (console.render(report, io.StringIO()), markdown.render(report).replace("\\", "")):
        for words in ("a[bold]", "1 ms", "2 ms", "1.50 times as fast [1.4, inf]", "[0.99, 1.01]", "load 0.5"):
            assert words in " ".join(text.split())


def test_a_check_begins_with_its_verdict() -> None:
    check = replace(verification(), sentence="proved: every number was derived again")
    report = report_of(Run("check", check=check))
    assert report.headline == "Proved: every number was derived again."
    assert console.render(report, io.StringIO()).count("every number was derived again") == 1


def failed_check() -> Verification:
    """By L3, with a cause that could break a table."""
    causes = tuple(Cause(f"n{i}", "Conv", None, "pads is [0|1] instead of [1]") for i in range(5))
    layer = Layer("L3", Status.FAIL, "far off", 9.0, 8.0, causes=causes)
    return replace(verification(Verdict.FAILED), sentence=f"not equivalent, by L3: {layer.said}", layers=(layer,))


def test_a_cause_is_in_every_report() -> None:
    report = report_of(Run("check", check=failed_check()), NotEquivalent(failed_check().sentence, hint="bnfold demo"))
    (found,) = validated(report)["check"]["layers"]
    assert len(found["causes"]) == 5
    assert found["causes"][0] == {
        "node": "n0",
        "op": "Conv",
        "module": None,
        "difference": "pads is [0|1] instead of [1]",
    }
    told = "Conv n0: pads is [0|1] instead of [1]; Conv n1: pads"
    for text in (report.headline, " ".join(console.render(report, io.StringIO()).split()), junit.render(report)):
        assert told in text
        assert "and 2 more" in text
    assert "Conv n0: pads is \\[0\\|1\\] instead" in markdown.render(report)
    assert "Conv n0" in failed_check()._repr_html_()


def test_markdown_says_the_verdict_once() -> None:
    sentence = failed_check().sentence
    text = markdown.render(report_of(Run("check", check=failed_check()), NotEquivalent(sentence, hint="bnfold demo")))
    assert text.casefold().count("not equivalent, by l3") == 1
    assert "**not-equivalent**: bnfold demo\n" in text
    assert "\n\nLevel auto, seed 0\n" in text
    run = full_run()
    run.check = failed_check()
    folded_text = markdown.render(report_of(run, NotEquivalent(sentence)))
    assert folded_text.casefold().count("not equivalent, by l3") == 1, "the headline is about the fold"


def test_a_command_cut_short_does_not_begin_like_a_success() -> None:
    run = Run("fold", fold=FoldReport((folded(),)))
    report = report_of(run, EnvironmentFailure("the disk is full"))
    assert report.headline == "Failed after folding 1 of 1 batch norm."
    assert "Nothing was written." in console.render(report, io.StringIO())
    run.output = FileRecord("out.onnx", "onnx")
    assert report.headline == "Folded 1 of 1 batch norm; not checked."


def test_a_long_model_is_cut_short_and_what_stays_is_shown_first() -> None:
    outcomes = [folded(f"bn{index}") for index in range(60)] + [left("stays", Reason.NOT_READ, None)]
    text = console.render(report_of(full_run(*outcomes)), io.StringIO())
    assert "stays" in text
    assert "… and 37 more: 37 folded (see --report)" in text
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize("render", [console.render, lambda report, _: markdown.render(report)])
def test_names_from_a_model_cannot_steer_the_terminal(render: Any) -> None:
    run = full_run(folded(NASTY, NASTY), left(NASTY, Reason.SHARED_OUTPUT, NASTY))
    run.warn("odd", NASTY)
    text = render(report_of(run, PolicyViolation(NASTY)), io.StringIO())
    assert not [char for char in text if char != "\n" and clean(char) != char]
    assert "evil" in text


def test_rich_markup_in_a_name_is_shown_as_it_is() -> None:
    run = full_run(replace(left(), site=Site("[bold]x[/bold][red", "BatchNormalization")))
    assert "[bold]x[/bold][red" in console.render(report_of(run), io.StringIO())


def test_markdown_escapes_what_would_break_a_table() -> None:
    text = markdown.render(report_of(full_run(left("a|b", Reason.NOT_READ, None))))
    (row,) = [line for line in text.splitlines() if line.startswith("| A001")]
    assert "a\\|b" in row


JUNIT = etree.XMLSchema(etree.parse(Path(__file__).with_name("junit.xsd")))


def junit_suite(report: Report) -> Any:
    """The suite, which the schema of JUnit files accepts and whose counts are those of its cases."""
    suite = etree.fromstring(junit.render(report).encode())
    JUNIT.assertValid(suite)
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
    for word, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[word]) == len(suite.findall(f"testcase/{tag}"))
    return suite


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('time="1.250"', 'time="-1"'),
        ("2026-01-02T03:04:05", "2026-01-02T03:04:05+00:00"),
        (' hostname="localhost"', ""),
        ("<skipped ", "<ignored "),
        ("<system-err />", ""),
        ("<properties>", "<testcase name='a' classname='b' time='0' /><properties>"),
        ('classname="bnfold.check"', ""),
    ],
)
def test_the_schema_of_junit_files_refuses(right: str, wrong: str) -> None:
    text = junit.render(report_of(full_run()))
    assert right in text
    assert not JUNIT.validate(etree.fromstring(text.replace(right, wrong).encode()))


def test_junit_has_a_case_per_layer_and_per_batch_norm() -> None:
    suite = junit_suite(report_of(full_run()))
    assert [case.attrib["name"] for case in suite.findall("testcase")] == [
        *("fold", "L0", "L3", "L4", "A001 net.bn1", "A002 bn2"),
    ]
    properties = {item.attrib["name"]: item.attrib["value"] for item in suite.findall("properties/property")}
    assert properties["bnfold.left.A002"] == "padded-border"
    assert suite.attrib["failures"] == "0"


def test_junit_speaks_of_batch_norms_alone() -> None:
    policy = Policy(fail_on_unfolded=True)
    suite = junit_suite(report_of(full_run(folded(), elementwise(reason=Reason.GATED)), policy=policy))
    assert [case.attrib["name"] for case in suite.findall("testcase")][-1] == "A001 net.bn1"
    assert suite.attrib["failures"] == "0"


def test_junit_fails_a_batch_norm_only_where_the_policy_does() -> None:
    policy = Policy(fail_on_unfolded=True, accept=("not-read",))
    run = full_run(folded(), left(), left("bn3", Reason.NOT_READ, None))
    suite = junit_suite(report_of(run, PolicyViolation("one is left"), policy=policy))
    failed = [case.attrib["name"] for case in suite.findall("testcase") if case.find("failure") is not None]
    assert failed == ["fold", "A002 bn2"]


@pytest.mark.parametrize(
    ("error", "tag"), [(NotEquivalent("no"), "failure"), (NoVerdict("no"), "failure"), (UsageError("no"), "error")]
)
def test_junit_tells_a_bad_result_from_none(error: BnfoldError, tag: str) -> None:
    suite = junit_suite(report_of(Run("check"), error))
    assert suite.find(f"testcase/{tag}") is not None


def test_junit_holds_no_character_that_xml_forbids() -> None:
    run = full_run(folded(NASTY, NASTY), left(NASTY, Reason.SHARED_OUTPUT, NASTY))
    run.warn("odd", NASTY)
    junit_suite(report_of(run, UsageError(NASTY, hint=NASTY)))


@pytest.mark.parametrize("suffix", [".json", ".md", ".xml"])
def test_a_report_file_is_of_its_suffix_and_leaves_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"report{suffix}"
    path.write_text("old")
    files.write(report_of(full_run()), path)
    assert path.read_text(encoding="utf-8").startswith({".json": "{", ".md": "# Folded", ".xml": "<?xml"}[suffix])
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_report_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    model = tmp_path / "model.index.json"
    model.write_text("{}")
    link = tmp_path / "link.json"
    link.hardlink_to(model)
    for path, error in (
        (tmp_path / "report.pdf", UsageError),
        (tmp_path / "report", UsageError),
        (link, UsageError),
        (tmp_path / "nowhere" / "report.json", EnvironmentFailure),
    ):
        with pytest.raises(error):
            files.refuse_unusable(path, (model,))
    files.refuse_unusable(tmp_path / "report.json", (model,))


def test_every_reason_is_explained_with_an_example() -> None:
    assert set(explain.EXAMPLES) == set(Reason)
    for reason in Reason:
        text = " ".join(explain.render(explain.lookup(reason.code)).split())
        assert reason.message in text
        assert reason.remedy in text
        assert "Example: " in text
    listing = explain.render(explain.lookup(None))
    assert all(reason.code in listing for reason in Reason)


def test_an_unknown_reason_is_a_usage_error_that_helps() -> None:
    with pytest.raises(UsageError, match="did you mean padded-border") as caught:
        explain.lookup("padded-boarder")
    assert caught.value.hint == "bnfold explain"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("layer1.0/conv_ü中", "layer1.0/conv_ü中"),
        ("a\nb\tc", "a b c"),
        ("\x1b[2J", "\\x1b[2J"),
        ("‮", "\\u202e"),
        ("\ud800", "\\ud800"),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_figures_read_well() -> None:
    assert [size(count) for count in (None, 0, 999, 1000, 44_600_000)] == ["?", "0 B", "999 B", "1 kB", "44.6 MB"]
    assert [duration(value) for value in (None, 2.5, 0.00124, 3e-6)] == ["?", "2.5 s", "1.24 ms", "3 µs"]
    assert did_you_mean("exprot", ["export", "fold"]) == "; did you mean export?"
    assert did_you_mean("zzz", ["export", "fold"]) == ""


def test_what_to_do_about_findings_is_said_once() -> None:
    found = [
        Finding("a", "note", "x", "mend it"),
        Finding("a", "note", "y", "mend it"),
        Finding("b", "error", "z", None),
    ]
    assert tables.told([*found, replace(found[0], remedy="leave it")]) == [
        "note: x; mend it",
        "note: y",
        "error: z",
        "note: x; leave it",
    ]
