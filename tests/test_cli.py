"""The command line: every exit code is reached on purpose, and no failure shows a traceback or leaves a file."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_line import bnfold, demo_in, python, validated

from bnfold import pipeline
from bnfold.cli import main
from bnfold.cli.commands import parse
from bnfold.cli.flags import PolicyFlags
from bnfold.errors import (
    BnfoldError,
    EnvironmentFailure,
    Exit,
    MissingDependency,
    NotEquivalent,
    NoVerdict,
    Rejected,
    UsageError,
)
from bnfold.graph import Reason, Refusal, Site
from bnfold.outcome import FoldReport, Outcome
from bnfold.run import Run

COMMANDS = ("export", "fold", "inspect", "check", "bench", "explain", "demo")
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "rich"}


def planted(monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[Run], None]) -> None:
    """Let a pipeline function do this instead."""
    monkeypatch.setattr(pipeline, name, lambda run, *_, **__: work(run))


def raising(error: BaseException) -> Callable[[Run], None]:
    def work(run: Run) -> None:
        raise error

    return work


def left_of(reason: Reason) -> Outcome:
    return Outcome(Site("bn", "BatchNormalization"), 4, 1, None, (), Refusal(reason, "relu"))


# ── help ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_no_framework(words: list[str]) -> None:
    code = f"import sys; from bnfold.cli import main; main({words!r}); print(*sys.modules, file=sys.stderr)"
    ran = python(code)
    assert not {module.partition(".")[0] for module in ran.stderr.split()} & HEAVY
    assert ran.stdout


def test_help_names_every_command() -> None:
    ran = bnfold("--help")
    assert ran.returncode == Exit.OK
    assert all(f"  {command} " in ran.stdout for command in COMMANDS)


# fmt: off
REPORT = {"--report", "--json", "-q", "--quiet", "--debug"}
SOURCE = {"--arch", "--arch-arg", "--app-dir", "--weights-key", "--trust-pickle", "--trust-type", "--no-limits"}
SOURCE |= {"--allow-linked-data"}
RUN = {"-i", "--input", "--dim", "--data", "--seed", "--provider", "--provider-option", "--threads"}
FOLD = {"--include", "--exclude", "--merge", "--leftover", "--max-growth", "--provenance", "--dry-run", "-f", "--force",
        "--fail-on-unfolded", "--accept"}
CHECK = {"--check", "--no-check", "--level", "--save-failure"}
SURFACE = {
    "export": REPORT | SOURCE | RUN | FOLD | CHECK | {"-o", "--opset", "--dtype", "--simplify", "--no-simplify",
                                                      "--bench", "--no-bench"},
    "fold": REPORT | SOURCE | RUN | FOLD | CHECK | {"-o"},
    "inspect": REPORT | SOURCE | {"--fail-on-unfolded", "--accept", "--fail-on", "--baseline"},
    "check": REPORT | SOURCE | RUN | {"--level", "--rtol", "--atol", "--min-top1", "--certificate", "--save-failure",
                                      "--verify-certificate"},
    "bench": REPORT | SOURCE | RUN | {"--batch", "--budget", "--processes", "--dtype", "--gate", "--runtime"},
    "explain": REPORT,
    "demo": REPORT,
}
# fmt: on


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_flag_is_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == Exit.OK
    words = set(capsys.readouterr().out.replace(",", " ").split())
    assert words >= SURFACE[command]


def test_the_defaults_are_the_documented_ones() -> None:
    from typer.main import get_command

    from bnfold.cli.commands import app

    commands: Any = get_command(app)
    defaults = {item.name: item.default for item in commands.commands["export"].params}
    assert defaults["seed"] == 0
    assert defaults["provider"] == "cpu"
    assert (defaults["merge"], defaults["leftover"], defaults["max_growth"]) == ("auto", "keep", 1.10)
    assert (defaults["check"], defaults["level"], defaults["dtype"]) == (True, "auto", "float32")
    assert (defaults["simplify"], defaults["bench"]) == (False, False)
    assert str(defaults["app_dir"]) == "."
    bench = {item.name: item.default for item in commands.commands["bench"].params}
    assert (bench["batch"], bench["budget"], bench["processes"], bench["dtype"]) == ("1", 60, 10, "keep")


# ── usage ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no command was given"),
        (["--hlep"], "bnfold has no flag --hlep; did you mean --help?"),
        (["exprot"], "there is no command 'exprot'; did you mean export?"),
        (["fold"], "bnfold fold needs MODEL\n  run: bnfold fold model.onnx"),
        (["check", "a.onnx"], "needs two models, REFERENCE and CANDIDATE\n  run: bnfold check a.onnx"),
        (["bench"], "bnfold bench needs MODEL"),
        (["bench", "a.onnx", "--batch", "1,0"], "--batch '1,0' is no batch size"),
        (["bench", "a.onnx", "--batch", "many"], "--batch 'many' is no batch size"),
        (["fold", "a.onnx", "--exlude", "x"], "bnfold fold has no flag --exlude; did you mean --exclude?"),
        (["export", "a.pt", "--certificate", "c.json"], "has no flag --certificate; fold and check have it"),
        (["check", "a.onnx", "b.onnx", "--fail-on", "x"], "has no flag --fail-on; inspect has it"),
        (["export", "a.pt", "--dtype", "float16"], "half precision is kept, not made: store the weights in it"),
        (["fold", "a.onnx", "--merge", "maybe"], "the value of --merge cannot be used: 'maybe' is not one of"),
        (["fold", "a.onnx", "--seed", "x"], "the value of --seed cannot be used"),
        (["fold", "a.onnx", "--seed", "-1"], "the value of --seed cannot be used"),
        (["fold", "a.onnx", "--max-growth", "0.5"], "the value of --max-growth cannot be used"),
        (["fold", "a.onnx", "b.onnx"], "unexpected extra argument"),
        (["fold", "a.onnx", "--out"], "'--out' requires an argument"),
        (["fold", "a.onnx", "--accept", "padded-boarder"], "did you mean padded-border?"),
        (["fold", "a.onnx", "--report", "r.pdf"], "writes: .json, .html, .md, .xml"),
        (["export", "a.pt", "--arch-arg", "depth"], "'depth' is not of the form KEY=VALUE"),
        (["inspect", "a.onnx", "--baseline", "r.json", "--report", "r.json"], "would overwrite the baseline"),
        (["inspect", "a.onnx", "--fail-on", "untraned"], "the code of a finding; did you mean untrained?"),
        (["check", "a", "b", "--verify-certificate", "c", "--certificate", "d"], "written or verified, not both"),
        (["check", "a", "--verify-certificate", "c.json"], "needs two models, REFERENCE and CANDIDATE"),
        (["explain", "overflw"], "there is no reason or finding code 'overflw'; did you mean overflow?"),
    ],
)
def test_a_call_that_cannot_be_meant(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == Exit.USAGE
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith("bnfold: ")
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["check", "a", "b", "--level", "standard"], "bnfold check a b --level auto"),
        (["check", "--level=ful", "a", "b c"], "bnfold check --level full a 'b c'"),
        (["fold", "maybe", "--merge", "maybe", "-q"], "bnfold fold maybe --merge auto -q"),
        (["fold", "a.onnx", "--seed", "x"], "bnfold fold --help"),
    ],
)
def test_a_wrong_choice_is_told_the_nearest_or_the_default(
    words: list[str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == Exit.USAGE
    assert capsys.readouterr().err.endswith(f"  run: {command}\n")


def test_a_check_that_fails_says_how_to_see_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo, wrong = demo_in(tmp_path), tmp_path / "wrong.onnx"
    model = onnx.load(demo)
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    kept = [each for each in norm.attribute if each.name != "epsilon"]
    del norm.attribute[:]
    norm.attribute.extend([*kept, onnx.helper.make_attribute("epsilon", 0.1)])
    onnx.save(model, wrong)
    words = ["check", str(demo), str(wrong), "--dim", "batch=1"]
    assert main(words) == Exit.NOT_EQUIVALENT
    captured = capsys.readouterr()
    assert captured.err.endswith(f"  run: {shlex.join(['bnfold', *words, '--save-failure', 'failure'])}\n")
    assert "epsilon is 0.1 instead of 1e-05" in captured.err
    assert main([*words, "--save-failure", str(tmp_path / "failure")]) == Exit.NOT_EQUIVALENT
    assert "run:" not in capsys.readouterr().err
    assert list((tmp_path / "failure" / "part").iterdir())


def test_a_model_without_a_command_is_told_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = demo_in(tmp_path)
    assert main([str(demo)]) == Exit.USAGE
    assert f"run: bnfold fold {demo}" in capsys.readouterr().err


def test_a_usage_error_still_writes_the_reports_asked_for(tmp_path: Path) -> None:
    ran = bnfold("fold", "--json", "--report", tmp_path / "r.json", f"--report={tmp_path / 'r.xml'}", "--frce", "x")
    assert ran.returncode == Exit.USAGE
    for text in (ran.stdout, (tmp_path / "r.json").read_text()):
        assert validated(text)["error"]["code"] == "unknown-flag"
    assert (tmp_path / "r.xml").read_text().startswith("<?xml")


def test_a_report_may_not_overwrite_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = demo_in(tmp_path).rename(tmp_path / "model.json")
    before = model.read_bytes()
    assert main(["fold", str(model), "--report", str(model)]) == Exit.USAGE
    assert "would overwrite the model" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_a_report_may_not_overwrite_the_numbers_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(demo_in(tmp_path))
    onnx.save(model, tmp_path / "large.onnx", save_as_external_data=True, location="w.json", size_threshold=0)
    before = (tmp_path / "w.json").read_bytes()
    assert main(["inspect", str(tmp_path / "large.onnx"), "--report", str(tmp_path / "w.json")]) == Exit.USAGE
    assert "would overwrite the data of the model" in capsys.readouterr().err
    assert (tmp_path / "w.json").read_bytes() == before


def test_groups_of_flags_arrive_as_records() -> None:
    job = parse(["fold", "m.onnx", "--fail-on-unfolded", "--accept", "not-read", "--report", "a.md", "-q"])
    assert not isinstance(job, int)
    assert job.policy == PolicyFlags(True, ["not-read"])
    assert (job.flags.report, job.flags.quiet, job.flags.json) == ([Path("a.md")], True, False)
    assert job.models == (Path("m.onnx"),)


def test_flags_reach_the_pipeline_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(pipeline, "run_export", lambda run, model, **options: seen.update(options, model=model))
    words = "export m.pt -o o.onnx --arch a.b:C --arch-arg depth=3 --arch-arg name=x -i 1,3 --dim batch=4 --threads 2"
    words += " --include a* --exclude b* --max-growth 2 --dry-run -f --no-check --opset 18 --dtype keep --bench"
    assert main(words.split()) == Exit.OK
    assert seen["model"] == Path("m.pt")
    assert (seen["source"].arch, dict(seen["source"].arch_args)) == ("a.b:C", {"depth": 3, "name": "x"})
    assert seen["source"].typed == tuple(words.split())
    assert (seen["run_options"].inputs, seen["run_options"].dims, seen["run_options"].threads) == (
        ("1,3",),
        ("batch=4",),
        2,
    )
    assert (seen["fold_options"].include, seen["fold_options"].exclude, seen["fold_options"].max_growth) == (
        ("a*",),
        ("b*",),
        2.0,
    )
    assert (seen["output"].out, seen["output"].force, seen["output"].dry_run) == (Path("o.onnx"), True, True)
    assert (seen["check"].enabled, seen["opset"], seen["dtype"], seen["bench"]) == (False, 18, "keep", True)


# ── exit codes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotEquivalent("a difference"), 1),
        (UsageError("a flag"), 2),
        (Rejected("a bad model", hint="bnfold explain"), 4),
        (EnvironmentFailure("a full disk"), 5),
        (MissingDependency("no torch", hint="pip install 'bnfold[torch]'"), 5),
        (PermissionError(13, "Permission denied", "x.onnx"), 5),
        (MemoryError(), 5),
        (NoVerdict("nothing compared"), 7),
        (ValueError("planted"), 70),
        (SystemExit(1), 70),
        (RecursionError("deep"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_failure_is_one_sentence_and_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, "run_fold", raising(error))
    assert main(["fold", "m.onnx", "--json"]) == code
    captured = capfd.readouterr()
    document = validated(captured.out)
    assert document["exit_code"] == code
    assert captured.err.startswith(f"bnfold: {document['error']['message']}\n")
    assert "Traceback" not in captured.err
    assert sum(line.startswith("bnfold:") for line in captured.err.splitlines()) == 1


def test_an_internal_error_ends_the_process_with_70() -> None:
    fault = "from bnfold import pipeline; pipeline.run_fold = lambda *_, **__: {}['planted']"
    ran = python(f"import sys; {fault}; from bnfold.cli import main; sys.exit(main(['fold', 'm.onnx']))")
    assert ran.returncode == Exit.INTERNAL
    assert ran.stderr.startswith("bnfold: internal error in bnfold.")
    assert "Traceback" not in ran.stderr


def test_debug_shows_the_traceback_of_an_internal_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, "run_fold", raising(ValueError("planted")))
    assert main(["fold", "m.onnx", "--debug"]) == Exit.INTERNAL
    assert "ValueError: planted" in capsys.readouterr().err.partition("Traceback")[2]


def test_a_batch_norm_left_is_an_error_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(run: Run) -> None:
        run.fold = FoldReport((left_of(Reason.NOT_READ), left_of(Reason.PADDED_BORDER)))

    planted(monkeypatch, "run_inspect", work)
    accept = ["--accept", "not-read"]
    assert main(["inspect", "m.onnx"]) == Exit.OK
    assert main(["inspect", "m.onnx", "--fail-on-unfolded"]) == Exit.POLICY
    assert main(["inspect", "m.onnx", "--fail-on-unfolded", *accept]) == Exit.POLICY
    assert main(["inspect", "m.onnx", "--fail-on-unfolded", *accept, "--accept", "padded-border"]) == Exit.OK


def test_several_failures_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def work(run: Run) -> None:
        run.fold = FoldReport((left_of(Reason.NOT_READ),))
        raise NoVerdict("nothing compared")

    planted(monkeypatch, "run_fold", work)
    assert main(["fold", "m.onnx", "--fail-on-unfolded", "--json"]) == Exit.NO_VERDICT
    document = validated(capsys.readouterr().out)
    assert [error["code"] for error in document["error"]["details"]["also"]] == ["policy"]


def test_a_gate_has_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class GateMissed(BnfoldError):
        exit_code = Exit.GATE

    planted(monkeypatch, "run_bench", raising(GateMissed("bn<=0 does not hold")))
    assert main(["bench", "m.onnx", "--gate", "bn<=0"]) == Exit.GATE


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_libraries_print_never_reaches_stdout(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(run: Run) -> None:
        print("python noise")
        os.write(1, b"native noise\n")
        warnings.warn("a library's warning", FutureWarning, stacklevel=1)

    planted(monkeypatch, "run_fold", work)
    assert main(["fold", "m.onnx", "--json"]) == Exit.OK
    captured = capfd.readouterr()
    validated(captured.out)
    assert "python noise" in captured.err
    assert "native noise" in captured.err
    assert "a library's warning" not in captured.err


def test_quiet_says_nothing_but_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def work(run: Run) -> None:
        run.fold = FoldReport(())

    planted(monkeypatch, "run_fold", work)
    assert main(["fold", "m.onnx", "-q"]) == Exit.OK
    assert capsys.readouterr() == ("", "")
    planted(monkeypatch, "run_fold", raising(Rejected("a bad model")))
    assert main(["fold", "m.onnx", "-q"]) == Exit.REJECTED
    assert capsys.readouterr() == ("", "bnfold: a bad model\n")


@pytest.mark.parametrize("redirection", ["| true", "| head -c 1 >/dev/null", ">&-"])
def test_a_reader_who_went_away_is_no_error(redirection: str) -> None:
    for words in ("explain", "explain --json", "--help"):
        command = f"{sys.executable} -m bnfold {words} {redirection}; exit ${{PIPESTATUS[0]}}"
        ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == Exit.OK
        assert "rror" not in ran.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_output_that_cannot_be_written_is_an_environment_failure() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "bnfold", "explain"]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert ran.returncode == Exit.ENVIRONMENT
    assert ran.stderr.startswith("bnfold: the output could not be written")
    assert len(ran.stderr.splitlines()) == 1


def test_a_terminal_of_another_encoding_gets_question_marks() -> None:
    ran = bnfold("explain", "old-opsät", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ran.returncode == Exit.USAGE
    assert "'old-ops?t'" in ran.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)], ids=["int", "term"]
)
def test_an_interrupted_command_says_so_and_reports(number: signal.Signals, code: Exit, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    script = (
        "import os, sys, time\n"
        "from bnfold import pipeline\n"
        "from bnfold.cli import main\n"
        "def work(run, *_, **__):\n"
        "    print('ready', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "pipeline.run_fold = work\n"
        f"sys.exit(main(['fold', 'm.onnx', '--report', {str(report)!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process:
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        assert process.stderr.read() == f"bnfold: {code.name.lower()}\n"
    assert process.returncode == code
    assert validated(report.read_text())["status"] == "interrupted"
