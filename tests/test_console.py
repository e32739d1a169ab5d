"""What people see at a terminal of 80 columns, in a pipe, while they wait, and behind the tab key."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from command_line import bnfold, demo_in
from test_reports import full_run, report_of

from bnfold.cli import conduct, main
from bnfold.cli.commands import parse
from bnfold.cli.job import Job
from bnfold.errors import Exit
from bnfold.reports import console

COMMANDS = ("export", "fold", "inspect", "check", "bench", "explain", "demo")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def too_wide(text: str) -> list[str]:
    """The lines of more than 80 columns, but for commands to copy, which are one line."""
    return [line for line in text.splitlines() if len(line) > 80 and not line.startswith("$ ")]


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_fits_80_columns(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words) == Exit.OK
    assert too_wide(capsys.readouterr().out) == []
    monkeypatch.setenv("COLUMNS", "120")
    main(["fold", "--help"])
    assert too_wide(capsys.readouterr().out) != []


@pytest.mark.parametrize("words", [["inspect", "demo.onnx"], ["fold", "demo.onnx", "--no-check"], ["explain"]])
def test_in_a_pipe_there_is_no_colour_and_no_progress(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    demo_in(tmp_path)
    assert main(words) == Exit.OK
    captured = capsys.readouterr()
    assert captured.out
    assert captured.err == ""
    assert "\x1b" not in captured.out
    assert too_wide(captured.out) == []


def test_a_terminal_has_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in console.render(report_of(full_run()), Terminal())
    assert "\x1b[" not in console.render(report_of(full_run()), io.StringIO())


def told(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *stages: str, flags: tuple[str, ...] = ()) -> str:
    """What progress writes to stderr."""
    monkeypatch.setattr("sys.stderr", stream)
    job = parse(["bench", "a.onnx", *flags])
    assert isinstance(job, Job)
    progress = conduct._progress(job)
    for stage in stages:
        progress(stage)
    return stream.getvalue()


def test_progress_is_one_line_of_a_terminal_whatever_a_model_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    line, ending = told(monkeypatch, Terminal(), "memory of a\x1b[2J\n" + "x" * 99, "").split(conduct.CLEAR_LINE)[1:]
    assert line.startswith(r"memory of a\x1b[2J x")
    assert len(line) < 40
    assert ending == ""
    assert told(monkeypatch, io.StringIO(), "folding") == ""
    assert told(monkeypatch, Terminal(), "folding", flags=("--quiet",)) == ""


def completed(*words: str) -> list[str]:
    """What bash is offered behind these words."""
    asked = {"_BNFOLD_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    return bnfold(env=os.environ | asked).stdout.split()


def test_bash_completes_codes() -> None:
    assert completed("bnfold", "explain", "sha") == ["shared-output"]
    assert "near-zero-variance" in completed("bnfold", "explain", "near")
    assert completed("bnfold", "inspect", "a.onnx", "--accept", "jo") == ["joined"]
    assert "near-zero-variance" not in completed("bnfold", "inspect", "a.onnx", "--accept", "")


def test_bash_completes_commands_and_flags(tmp_path: Path) -> None:
    assert completed("bnfold", "fo") == ["fold"]
    assert completed("bnfold", "zz") == []
    assert "--fail-on-unfolded" in completed("bnfold", "fold", "--fail")
    named = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    script = bnfold("--show-completion", "bash", env=named)
    assert script.returncode == Exit.OK
    assert "complete -o default -F _bnfold_completion bnfold" in script.stdout
    assert bnfold("--install-completion", "bash", env=named).returncode == Exit.OK
    assert [path.read_text().strip() for path in tmp_path.glob(".bash_completions/*")] == [script.stdout.strip()]
    assert "bash_completions" in (tmp_path / ".bashrc").read_text()
