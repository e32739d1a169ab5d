"""A process that dies of a model is told of by one that does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from command_line import bnfold, demo_in, validated
from onnx import TensorProto, helper

from bnfold.cli import supervised
from bnfold.errors import Exit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at the processes of Linux")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


@contextmanager
def busy(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A long benchmark, and the process in which it runs."""
    command = [sys.executable, "-m", "bnfold", "bench", str(demo_in(folder)), "--budget", "60", "--json", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + 60
            while not (found := children(process.pid)) or not children(found[0]):
                assert time.monotonic() < end, "the second process measures in others"
                time.sleep(0.05)
            yield process, found[0]
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGSEGV, Exit.NO_VERDICT, "died of SIGSEGV"),
        (signal.SIGABRT, Exit.NO_VERDICT, "died of SIGABRT"),
        (signal.SIGKILL, Exit.ENVIRONMENT, "was killed"),
    ],
)
def test_a_crash_is_one_sentence_and_a_report(number: signal.Signals, code: Exit, said: str, tmp_path: Path) -> None:
    with busy(tmp_path) as (process, second):
        os.kill(second, number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert validated(out)["exit_code"] == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)])
def test_what_ends_the_first_ends_both(number: signal.Signals, code: Exit, tmp_path: Path) -> None:
    with busy(tmp_path) as (process, second):
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert validated(out)["exit_code"] == code
    assert not Path(f"/proc/{second}").exists()


def test_the_second_ends_with_the_first(tmp_path: Path) -> None:
    with busy(tmp_path) as (process, second):
        process.kill()
        process.wait()
        end = time.monotonic() + 30
        while Path(f"/proc/{second}").exists():
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize(("limit", "said"), [("MOST_SECONDS", "more than 0.1 s"), ("MOST_OF_MEMORY", "GB")])
def test_limits(limit: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, limit, 0.1 if limit == "MOST_SECONDS" else 1e-6)
    found = supervised.supervise(["fold", str(demo_in(tmp_path)), "-q"])
    assert not isinstance(found, int)
    assert found.exit_code is Exit.NO_VERDICT
    assert said in str(found)
    assert found.hint == "--no-limits lifts the limits of memory and time"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.onnx"]


def test_without_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "MOST_SECONDS", 0.1)
    assert supervised.supervise(["fold", str(demo_in(tmp_path)), "-q", "--no-check", "--no-limits"]) == Exit.OK


def test_a_system_that_tells_nothing_of_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "MOST_OF_MEMORY", 1e-6)
    monkeypatch.delattr(os, "sysconf")
    assert supervised.supervise(["fold", str(demo_in(tmp_path)), "-q", "--no-check"]) == Exit.OK


def test_only_what_reads_models_is_supervised() -> None:
    assert [word for word in ("fold", "export", "check", "bench", "inspect", "explain", "demo", "--help") if
            supervised.is_wanted([word], {})] == ["fold", "export", "check", "bench", "inspect"]  # fmt: skip
    assert not supervised.is_wanted(["fold"], {supervised.LIFELINE: "3"})
    assert not supervised.is_wanted(["fold", "--help"], {})
    assert supervised.is_wanted(["fold", "model.onnx", "--no-check"], {})


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["inspect", "a.onnx"], Exit.REJECTED),
        (["fold", "a.onnx", "--no-check"], Exit.REJECTED),
        (["fold", "a.onnx"], Exit.NO_VERDICT),
        (["check", "a.onnx", "b.onnx"], Exit.NO_VERDICT),
        (["check", "inspect", "fold"], Exit.NO_VERDICT),
    ],
)
def test_a_crash_is_about_the_file_where_nothing_was_executed(words: list[str], code: Exit) -> None:
    error = supervised._death(signal.SIGABRT, ran=supervised.executes(words))
    assert (error.exit_code, error.code) == (code, "crashed")


def test_a_library_that_crashes_where_it_only_reads_is_told_of(tmp_path: Path) -> None:
    """A size below zero behind a Pad ends onnx's inference of types in an assertion, in builds that have it."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4]) for name in ("x", "y")]
    numbers = {"pads": [0, 0, -9, 0, 0, 0], "starts": [0], "ends": [1], "axes": [2]}
    stored = [helper.make_tensor(name, TensorProto.INT64, [len(each)], each) for name, each in numbers.items()]
    stored.append(helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"], "pad"),
        helper.make_node("Slice", ["p", "starts", "ends", "axes"], ["s"], "slice"),
        helper.make_node("BatchNormalization", ["s", "one", "one", "one", "one"], ["y"], "bn"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    done = bnfold("inspect", tmp_path / "a.onnx")
    assert done.returncode in (Exit.OK, Exit.REJECTED)
    assert "Traceback" not in done.stderr
    assert done.returncode == Exit.OK or "bnfold: the process that read the model died of SIGABRT" in done.stderr


def test_the_exit_code_is_that_of_the_second(tmp_path: Path) -> None:
    assert bnfold("fold", tmp_path / "none.onnx").returncode == Exit.REJECTED


@pytest.mark.parametrize("name", ["onnx", "bnfold", "json"])
def test_what_lies_beside_a_model_is_never_imported(name: str, tmp_path: Path) -> None:
    """The folder in which a command runs may hold more than the model, and none of it is code to be run."""
    demo_in(tmp_path)
    (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n", encoding="utf-8")
    program = Path(sys.executable).with_name("bnfold")
    for words in (["fold", "demo.onnx"], ["bench", "demo.onnx", "--budget", "1", "--processes", "2"]):
        done = subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


def test_memory_is_that_of_all_processes(tmp_path: Path) -> None:
    with busy(tmp_path) as (process, second):
        family = set(supervised.family(process.pid))
        assert {process.pid, second, *children(second)} <= family
