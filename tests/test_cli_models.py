"""The command line on real models: what it writes, what it refuses, and that no fault passes for a verdict."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import bnfold, demo_in, python, validated
from onnx import helper, numpy_helper

from bnfold.cli import main
from bnfold.errors import Exit
from bnfold.graph import Reason


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A model with batch norms in an empty folder."""
    return demo_in(tmp_path)


@contextmanager
def fault_in(room: str) -> Iterator[list[str]]:
    """The first call of any function of the room raises; the list tells which function that was."""
    struck: list[str] = []

    def trace(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_globals.get("__name__", "")
        if struck or frame.f_code.co_name.startswith("<") or not f"{name}.".startswith(f"{room}."):
            return
        struck.append(f"{name}.{frame.f_code.co_name}")
        raise ValueError("planted")

    sys.settrace(trace)
    try:
        yield struck
    finally:
        sys.settrace(None)


def changed(model: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of the model beside it, changed."""
    proto = onnx.load(model)
    change(proto)
    path = model.with_name(name)
    onnx.save(proto, path)
    return path


def scale_last_weight(proto: onnx.ModelProto) -> None:
    tensor = max(proto.graph.initializer, key=lambda item: len(item.raw_data))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))


def drop_inputs_to_log(proto: onnx.ModelProto) -> None:
    """Let every output be NaN: the logarithm of what is negative."""
    (output,) = proto.graph.output
    negative = helper.make_node("Abs", [output.name], ["abs"]), helper.make_node("Neg", ["abs"], ["negative"])
    proto.graph.node.extend([*negative, helper.make_node("Log", ["negative"], ["nan"])])
    output.name = "nan"


def test_fold_writes_what_it_proved(demo: Path) -> None:
    report = demo.with_name("r.json")
    ran = bnfold("fold", demo, "--report", report)
    assert (ran.returncode, ran.stderr) == (Exit.OK, "")
    assert ran.stdout.startswith("Folded ")
    folded = demo.with_name("demo.folded.onnx")
    document = validated(report.read_text())
    assert document["check"]["verdict"] in ("proved", "verified")
    assert document["summary"]["folded"] + document["summary"]["left"] == document["summary"]["affines"]
    left = sum(node.op_type == "BatchNormalization" for node in onnx.load(folded).graph.node)
    assert left == document["summary"]["left"] < document["summary"]["batch_norms"]
    assert Path(document["output"]["path"]).name == folded.name


def test_dry_run_and_inspect_write_nothing(demo: Path) -> None:
    for words in (["fold", str(demo), "--dry-run"], ["inspect", str(demo)]):
        assert main(words) == Exit.OK
        assert list(demo.parent.iterdir()) == [demo]


def test_the_same_twice_needs_force(demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["fold", str(demo), "--no-check", "-q"]
    assert main(words) == Exit.OK
    assert main(words) == Exit.USAGE
    assert "--force" in capfd.readouterr().err
    assert main([*words, "--force"]) == Exit.OK


def test_a_changed_weight_is_not_equivalent(demo: Path) -> None:
    ran = bnfold("check", demo, changed(demo, "other.onnx", scale_last_weight), "--json")
    assert ran.returncode == Exit.NOT_EQUIVALENT
    assert validated(ran.stdout)["check"]["verdict"] == "failed"
    assert ran.stderr.startswith("Not equivalent, by L")


def test_outputs_that_are_not_finite_give_no_verdict(demo: Path) -> None:
    nan = changed(demo, "nan.onnx", drop_inputs_to_log)
    ran = bnfold("check", nan, changed(nan, "other.onnx", lambda proto: None), "--json")
    assert ran.returncode == Exit.NO_VERDICT
    assert validated(ran.stdout)["check"]["verdict"] == "no_verdict"


def test_a_batch_norm_that_stays_breaks_the_policy(demo: Path) -> None:
    ran = bnfold("fold", demo, "--exclude", "*", "--fail-on-unfolded", "--json")
    assert ran.returncode == Exit.POLICY
    document = validated(ran.stdout)
    assert {affine["reason"]["code"] for affine in document["affines"]} == {"excluded"}
    assert demo.with_name("demo.folded.onnx").exists()
    accepted = [f"--accept={reason.code}" for reason in Reason]
    assert main(["inspect", str(demo), "--fail-on-unfolded", *accepted]) == Exit.OK


def test_a_model_that_is_not_there_and_a_folder_that_is_not_there(demo: Path) -> None:
    assert bnfold("fold", demo.with_name("missing.onnx")).returncode == Exit.REJECTED
    assert bnfold("fold", demo, "-o", demo.parent / "missing" / "out.onnx").returncode == Exit.ENVIRONMENT
    assert bnfold("fold").returncode == Exit.USAGE


def test_a_gate_that_is_missed(demo: Path) -> None:
    words = ["--gate", "bn<=0", "--processes", "2", "--budget", "1", "--json"]
    ran = bnfold("bench", demo, *words)
    assert ran.returncode == Exit.GATE
    assert validated(ran.stdout)["status"] == "gate"


def test_demo_shows_the_commands_and_leaves_the_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ran = bnfold("demo", "-o", tmp_path / "demo", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (Exit.OK, "")
    assert main(["demo", "-o", str(tmp_path / "demo")]) == Exit.OK
    assert capfd.readouterr().out == ran.stdout
    commands = [line.removeprefix("$ bnfold ").split() for line in ran.stdout.splitlines() if line.startswith("$ ")]
    assert [words[0] for words in commands] == ["inspect", "fold", "check"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["demo.folded.onnx", "demo.onnx"]
    assert [main([*words, "-q"]) for words in commands] == [Exit.OK] * 3


def test_onnx_work_never_imports_torch(demo: Path) -> None:
    code = f"import sys; from bnfold.cli import main; main(['fold', {str(demo)!r}]); sys.exit('torch' in sys.modules)"
    assert python(code).returncode == 0


def test_what_is_no_model_is_rejected_in_one_sentence(demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = demo.parent
    (folder / "empty.onnx").touch()
    (folder / "cut.onnx").write_bytes(demo.read_bytes()[:-1000])
    (folder / "picture.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    before = sorted(folder.iterdir())
    for name, says in (
        ("missing.onnx", "does not exist"),
        (".", "is a directory"),
        ("empty.onnx", "is empty"),
        ("cut.onnx", "truncated or damaged"),
        ("picture.onnx", "PNG"),
    ):
        assert main(["fold", str(folder / name)]) == Exit.REJECTED
        captured = capfd.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("bnfold: ")
        assert says in captured.err.splitlines()[0]
    ran = bnfold("fold", folder / "cut.onnx")
    assert (ran.returncode, ran.stdout) == (Exit.REJECTED, "")
    assert "Traceback" not in ran.stderr
    assert sorted(folder.iterdir()) == before


def test_the_input_is_never_overwritten(demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, link = demo.read_bytes(), demo.with_name("link.onnx")
    link.hardlink_to(demo)
    for out in (demo, link):
        assert main(["fold", str(demo), "-o", str(out), "--force"]) == Exit.USAGE
        assert "is the input" in capfd.readouterr().err
    assert demo.read_bytes() == link.read_bytes() == content


def test_an_output_that_cannot_be_written(demo: Path) -> None:
    ran = bnfold("fold", demo, "-o", demo.with_name("nowhere") / "out.onnx")
    assert ran.returncode == Exit.ENVIRONMENT
    assert "there is no folder" in ran.stderr
    assert main(["fold", str(demo), "-o", "/proc/out.onnx"]) == Exit.ENVIRONMENT
    assert list(demo.parent.iterdir()) == [demo]


def test_a_missing_extra_names_the_command_that_installs_it(root: Path) -> None:
    words = ["export", str(root / "models" / "digits_mlp.pt"), "--dry-run"]
    code = f"import sys; sys.modules['torch'] = None; from bnfold.cli import main; sys.exit(main({words!r}))"
    ran = python(code)
    assert ran.returncode == Exit.ENVIRONMENT
    assert "  run: pip install" in ran.stderr


NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.bn(self.conv(x))

class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
"""


def test_a_network_that_does_not_fit_its_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    weights = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(1, 4, 3), "bn": torch.nn.BatchNorm2d(4)}).state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    torch.save({key: value for key, value in weights.items() if key != "bn.bias"}, tmp_path / "partial.pt")
    (tmp_path / "cli_networks.py").write_text(NETWORK)
    app = ["--app-dir", str(tmp_path), "-i", "batch,1,8,8"]
    for words, code, says in (
        (["weights.pt"], Exit.USAGE, "--arch cli_networks:Net"),
        (["weights.pt", "--arch", "cli_networks:Nett"], Exit.REJECTED, "has no 'Nett'"),
        (["weights.pt", "--arch", "cli_networks:Other"], Exit.REJECTED, "cli_networks:Other"),
        (["weights.pt", "--arch", "cli_networks:Net", "--arch-arg", "width=8"], Exit.REJECTED, "shape"),
        (["partial.pt", "--arch", "cli_networks:Net"], Exit.REJECTED, "bn.bias"),
        (["weights.pt", "--arch", "cli_networks:Net"], Exit.OK, ""),
    ):
        assert main(["export", str(tmp_path / words[0]), *words[1:], *app, "-q"]) == code
        captured = capfd.readouterr()
        assert says in captured.err
        assert captured.out == ""
        assert (tmp_path / "weights.onnx").exists() == (code == Exit.OK)


def test_fold_of_weights_says_which_export_to_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "cli_networks.py").write_text(NETWORK)
    weights = tmp_path / "weights.pt"
    torch.save(
        torch.nn.ModuleDict({"conv": torch.nn.Conv2d(1, 4, 3), "bn": torch.nn.BatchNorm2d(4)}).state_dict(), weights
    )
    for more in ([], ["--arch", "cli_networks:Net", "-i", "batch,1,8,8"]):
        assert main(["fold", str(weights), "--app-dir", str(tmp_path), *more]) == Exit.USAGE
        (command,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("  run: ")]
        assert command.startswith(f"  run: bnfold export {weights} ")
        assert "--arch cli_networks:Net" in command


ROOMS = (
    *(
        "loading",
        "frontends.onnx",
        "folding",
        "rules",
        "algebra",
        "verify",
        "runtime",
        "saving",
        "pipeline",
        "dialects",
    ),
    *("reports.report", "reports.console", "reports.json", "reports.files", "reports.junit", "reports.environment"),
    *("cli.conduct", "cli.streams", "cli.commands", "cli.flags"),
)


@pytest.mark.parametrize("room", ROOMS)
def test_a_fault_in_any_room_is_internal_never_a_verdict(
    room: str, demo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["fold", str(demo), "--json", "--report", str(demo.with_name("report.xml"))]
    check = [] if room in ("verify", "runtime") else ["--no-check"]
    with fault_in(f"bnfold.{room}") as struck:
        code = main([*words, *check])
    assert struck, "the command called nothing of this room"
    assert code == Exit.INTERNAL
    error = capfd.readouterr().err
    assert "internal error" in error
    assert "ValueError: planted" in error
    assert "Traceback" not in error
