"""In GitHub Actions: annotations on stderr, a step summary, JSON alone on stdout, and no command from a model's names.

`runner` reads a step's output as the runner does: a line that begins with `::` is a command.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from command_line import bnfold, demo_in, validated
from test_reports import NASTY, folded, full_run, left, report_of, verification

from bnfold.errors import NotEquivalent, PolicyViolation
from bnfold.graph import Reason, Site
from bnfold.reports import github
from bnfold.reports.report import Policy
from bnfold.run import FileRecord, Finding, Run
from bnfold.verify.result import Cause, Layer, Status, Verdict


@dataclass(frozen=True)
class Command:
    name: str
    properties: dict[str, str]
    message: str


def runner(text: str) -> list[Command]:
    """The commands of a step's output, read from the published grammar `::name key=value,key=value::message`."""
    found = []
    for line in text.splitlines():
        if match := re.match(r"\s*::([\w-]+)(?: ([^:]*))?::(.*)$", line):
            pairs = [pair.partition("=") for pair in (match[2] or "").split(",") if pair]
            found.append(Command(match[1], {key: decoded(value) for key, _, value in pairs}, decoded(match[3])))
    return found


def decoded(text: str) -> str:
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, char)
    return text


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The environment of a step; the path of its summary."""
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    return summary


@pytest.mark.usefixtures("step")
def test_what_decides_comes_first_and_every_kind_is_annotated() -> None:
    policy = Policy(fail_on_unfolded=True)
    run = full_run(folded(), left())
    run.check = verification(Verdict.FAILED)
    run.findings += [Finding("odd", "error", "very odd", "look", "A001"), Finding("quiet", "note", "a note")]
    report = report_of(run, PolicyViolation("one is left", hint="bnfold explain"), policy=policy)
    commands = runner(github.commands(report))
    assert [(command.name, command.properties["title"]) for command in commands] == [
        ("error", "bnfold: policy"),
        ("error", "bnfold: check L3"),
        ("error", "bnfold: padded-border"),
        ("error", "bnfold: odd"),
        ("warning", "bnfold: check L4"),
        ("warning", "bnfold: dead-channels"),
    ]
    assert commands[0].message == "one is left. bnfold explain"
    assert commands[2].message == f"bn2 is left: {Reason.PADDED_BORDER.message} (in the way: conv2 and relu2). " + (
        Reason.PADDED_BORDER.remedy
    )
    assert commands[2].properties["file"] == "in.onnx"
    assert (commands[3].properties["file"], commands[3].properties["line"]) == ("net.py", "12")


@pytest.mark.usefixtures("step")
def test_a_failed_layer_names_its_place() -> None:
    layer = Layer("L3", Status.FAIL, "noise beyond rounding", 12.5, 8.0, "net.conv1", 3)
    run = Run("check", check=replace(verification(Verdict.FAILED), layers=(layer,)))
    (command,) = runner(github.commands(report_of(run)))
    assert command.message == "noise beyond rounding (at net.conv1, channel 3); measured 12.5 (limit 8)"


CAUSE = Cause("bn1", "BatchNormalization", "net.norm", "epsilon is 0.001 instead of 1e-05")


@pytest.mark.usefixtures("step")
def test_a_layer_that_the_failure_quotes_is_no_second_annotation() -> None:
    layer = Layer("L3", Status.FAIL, "noise beyond rounding", 12.5, 8.0, causes=(CAUSE,))
    other = Layer("L4", Status.FAIL, "output y is far off")
    sentence = f"not equivalent, by L3: noise beyond rounding (limit 8); {CAUSE}"
    check = replace(verification(Verdict.FAILED), sentence=sentence, layers=(layer, other))
    commands = runner(github.commands(report_of(Run("check", check=check), NotEquivalent(sentence))))
    assert [command.properties["title"] for command in commands] == ["bnfold: not-equivalent", "bnfold: check L4"]
    assert commands[0].message == sentence
    (layer_alone, _) = runner(github.commands(report_of(Run("check", check=check))))
    assert "net.norm (BatchNormalization bn1): epsilon is 0.001 instead of 1e-05" in layer_alone.message


@pytest.mark.usefixtures("step")
def test_a_batch_norm_that_the_policy_accepts_is_not_annotated() -> None:
    report = report_of(full_run(left()), policy=Policy(True, ("padded-border",)))
    assert not [command for command in runner(github.commands(report)) if command.name == "error"]


@pytest.mark.usefixtures("step")
def test_no_more_than_the_runner_shows() -> None:
    run = Run("fold", findings=[Finding("odd", "error", f"odd {i}") for i in range(25)])
    commands = runner(github.commands(report_of(run)))
    assert [command.message for command in commands[8:]] == ["odd 8", "and 16 more, in the summary of the step"]
    run.findings = run.findings[:10]
    assert [command.message for command in runner(github.commands(report_of(run)))][-1] == "odd 9"


@pytest.mark.usefixtures("step")
def test_properties_and_messages_are_escaped() -> None:
    path = "a,b:c%2C=d\n::error::e.onnx"
    run = Run("fold", input=FileRecord(path, "onnx"), findings=[Finding("odd", "error", "5 % of x::y\nsecond line")])
    text = github.commands(report_of(run))
    assert text.count("\n") == 1
    (command,) = runner(text)
    assert command.properties["file"] == path
    assert command.message == "5 % of x::y\nsecond line"


@pytest.mark.usefixtures("step")
def test_quiet_leaves_the_warnings_out() -> None:
    run = Run("fold", findings=[Finding("a", "error", "a"), Finding("b", "warning", "b")])
    assert [command.name for command in runner(github.commands(report_of(run), quiet=True))] == ["error"]


def test_elsewhere_there_is_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    report = report_of(full_run(), PolicyViolation("one is left"))
    assert github.commands(report) == ""
    assert github.append_summary(report) is None
    assert github.harmless("::error::x") == "::error::x"
    assert list(tmp_path.iterdir()) == []


def test_the_summary_is_appended_and_never_overfull(step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step.write_text("before\n")
    report = report_of(full_run())
    assert github.append_summary(report) is None
    assert github.append_summary(report) is None
    text = step.read_text()
    assert text.startswith("before\n# Folded")
    assert text.count("## Batch norms") == 2
    monkeypatch.setattr(github, "MAX_SUMMARY", len(text) + 10)
    assert "no room" in str(github.append_summary(report))
    assert step.read_text() == text


@pytest.mark.usefixtures("step")
@pytest.mark.parametrize("name", ["::stop-commands::x", "##[add-mask]e", "x ##[error]y", NASTY])
def test_a_name_from_a_model_is_no_command(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from bnfold.cli.conduct import conduct
    from bnfold.cli.flags import ReportFlags
    from bnfold.cli.job import Job

    def work(run: Run) -> None:
        run.fold = full_run(replace(folded(), site=Site(name, "BatchNormalization"))).fold

    conduct(Job("inspect", ReportFlags(), work), [])
    captured = capfd.readouterr()
    assert runner(captured.out + captured.err) == []
    assert "##[" not in captured.out + captured.err


def test_a_line_that_would_be_a_command_is_seen() -> None:
    assert runner("  ::stop-commands::x") == [Command("stop-commands", {}, "x")]


# ── the whole process ────────────────────────────────────────────────────────────────────────────────────────────────


def stepped(summary: Path, *words: str | Path) -> tuple[int, str, str]:
    environment = {**os.environ, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    ran = bnfold(*words, env=environment)
    return ran.returncode, ran.stdout, ran.stderr


def test_json_on_stdout_stays_json(tmp_path: Path) -> None:
    summary, demo = tmp_path / "summary.md", demo_in(tmp_path)
    code, out, err = stepped(summary, "inspect", demo, "--fail-on-unfolded", "--json")
    document = validated(out)
    assert code == document["exit_code"] == 3
    commands = runner(err)
    assert commands[0].properties == {"file": str(demo), "title": "bnfold: policy"}
    left = [row for row in document["affines"] if row["batch_norm"] and row["outcome"] == "left"]
    assert [command.properties["title"] for command in commands[1:]] == [
        f"bnfold: {row['reason']['code']}" for row in left
    ]
    assert "## Batch norms" in summary.read_text()


def test_a_model_that_cannot_be_read_is_annotated_and_summarised(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_text("<html>")
    code, out, err = stepped(tmp_path / "summary.md", "fold", broken, "-q")
    assert (code, out) == (4, "")
    assert [command.name for command in runner(err)] == ["error"]
    assert "Failed: " in (tmp_path / "summary.md").read_text()


def test_a_summary_that_cannot_be_written_is_said_and_is_no_failure(tmp_path: Path) -> None:
    code, out, _ = stepped(tmp_path / "nowhere" / "summary.md", "inspect", demo_in(tmp_path), "--json")
    assert code == 0
    assert [warning["code"] for warning in validated(out)["warnings"]] == ["step-summary"]


def test_explain_and_demo_leave_no_summary(tmp_path: Path) -> None:
    code, _, err = stepped(tmp_path / "summary.md", "explain", "overflow")
    assert (code, runner(err), list(tmp_path.iterdir())) == (0, [], [])
