"""A file appears whole or not at all, and never in the place of what was read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from bnfold.errors import BnfoldError, EnvironmentFailure, Exit, UsageError
from bnfold.frontends import onnx as frontend
from bnfold.loading import load
from bnfold.saving import atomic, output_path, write_onnx, write_program


def written(path: Path) -> None:
    """Write the model of `proto` to `path`."""
    write_onnx(path, frontend.from_proto(proto()))


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a protobuf file could hold 1000 bytes."""
    monkeypatch.setattr("bnfold.frontends.onnx.writing.PROTOBUF_LIMIT", 1000)


def proto(size: int = 2000) -> onnx.ModelProto:
    """y = x @ w, with a weight of `size` float32 and a small bias."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])
    weight = numpy_helper.from_array(np.arange(size, dtype=np.float32).reshape(size, 1), "w")
    bias = numpy_helper.from_array(np.ones(1, np.float32), "b")
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], "g", [x], [y], [weight, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An ONNX file."""
    path = tmp_path / "net.onnx"
    path.write_bytes(proto().SerializeToString())
    return path


def decide(source: Path, out: Path | None = None, **options: object) -> Path:
    settings: dict[str, object] = {"suffix": ".onnx", "folded": False} | options
    return output_path(source, out, **settings)  # type: ignore[arg-type]


# --- where to write ---------------------------------------------------------------------------------------------------


def test_the_derived_name(tmp_path: Path) -> None:
    assert decide(tmp_path / "net.pt") == tmp_path / "net.onnx"
    assert decide(tmp_path / "net.onnx") == tmp_path / "net.folded.onnx"
    assert decide(tmp_path / "net.pt", suffix=".pt2", folded=True) == tmp_path / "net.folded.pt2"


def test_a_derived_name_that_exists_needs_force(model: Path) -> None:
    checkpoint = model.with_suffix(".pt")
    checkpoint.write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        decide(checkpoint)
    assert caught.value.code == "output-exists"
    assert "--force" in (caught.value.hint or "")
    assert decide(checkpoint, force=True) == model


def test_a_named_model_is_replaced_but_another_kind_of_file_is_not(model: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("hello")
    source = tmp_path / "net.pt"
    assert decide(source, model) == model
    with pytest.raises(UsageError) as caught:
        decide(source, notes)
    assert caught.value.code == "output-exists"
    assert decide(source, notes, force=True) == notes


@pytest.mark.parametrize("alias", ["itself", "hard link", "symbolic link", "another spelling"])
def test_the_input_is_never_the_output(model: Path, alias: str) -> None:
    other = model.with_name("other.onnx")
    if alias == "hard link":
        os.link(model, other)
    elif alias == "symbolic link":
        other.symlink_to(model)
    else:
        other = model if alias == "itself" else model.parent / ".." / model.parent.name / model.name
    for force in (False, True):
        with pytest.raises(UsageError) as caught:
            decide(model, other, force=force)
        assert (caught.value.code, caught.value.exit_code) == ("output-is-input", Exit.USAGE)


def test_the_data_of_the_input_is_never_the_output(model: Path) -> None:
    data = model.with_name("net.data")
    data.write_bytes(b"x")
    with pytest.raises(UsageError, match="is the input"):
        decide(model, data, force=True, inputs=[data])


def test_an_input_that_is_missing_is_compared_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the input"):
        decide(tmp_path / "gone.onnx", tmp_path / "." / "gone.onnx")


def test_a_folder_or_device_is_no_output(model: Path, tmp_path: Path) -> None:
    for out, code in ((tmp_path, "output-is-directory"), (Path("/dev/null"), "output-not-a-file")):
        with pytest.raises(UsageError) as caught:
            decide(model, out, force=True)
        assert caught.value.code == code


def test_folders_that_cannot_take_the_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out in (tmp_path / "none" / "a.onnx", model / "a.onnx"):
        with pytest.raises(EnvironmentFailure) as caught:
            decide(model, out)
        assert (caught.value.code, caught.value.exit_code) == ("no-folder", Exit.ENVIRONMENT)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EnvironmentFailure) as caught:
        decide(model, tmp_path / "a.onnx")
    assert caught.value.code == "not-writable"


# --- writing ----------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(model: Path) -> None:
    before = model.read_bytes()

    def write() -> None:
        with atomic(model) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert model.read_bytes() == before
    assert names(model.parent) == ["net.onnx"]


def test_a_full_disk_is_the_environment_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BnfoldError, match="no space left on device") as caught:
        written(tmp_path / "a.onnx")
    assert (caught.value.code, caught.value.exit_code) == ("not-writable", Exit.ENVIRONMENT)
    assert names(tmp_path) == []


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_gets_the_usual(model: Path) -> None:
    model.chmod(0o640)
    usual = model.with_name("usual")
    usual.write_bytes(b"")
    written(model)
    written(model.with_name("new.onnx"))
    assert model.stat().st_mode & 0o777 == 0o640
    assert model.with_name("new.onnx").stat().st_mode == usual.stat().st_mode


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.usefixtures("small_limit")
def test_large_tensors_go_to_a_data_file_named_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    for _ in range(2):  # a second save adds nothing
        written(path)
        model_file, data = sorted(tmp_path.iterdir(), key=lambda entry: entry.suffix == ".data")
        assert data.stat().st_size >= 8000
        assert model_file.stat().st_size < 1000
    onnx.checker.check_model(str(path))
    weight = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    np.testing.assert_array_equal(weight.ravel(), np.arange(2000))
    assert load(path).files == (path, data)


@pytest.mark.usefixtures("small_limit")
def test_a_model_that_came_with_data_is_written_with_its_own(tmp_path: Path) -> None:
    written(tmp_path / "a.onnx")
    before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}
    write_onnx(tmp_path / "b.onnx", load(tmp_path / "a.onnx").model)
    assert all(entry.read_bytes() == content for entry, content in before.items())
    for entry in before:
        entry.unlink()
    weight = numpy_helper.to_array(onnx.load(tmp_path / "b.onnx").graph.initializer[0])
    np.testing.assert_array_equal(weight.ravel(), np.arange(2000))


@pytest.mark.usefixtures("small_limit")
def test_a_failure_after_the_data_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).suffix == ".onnx":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(EnvironmentFailure):
        written(tmp_path / "big.onnx")
    assert names(tmp_path) == []


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("suffix", [".data", ".onnx"])
def test_an_end_between_the_files_leaves_two_that_belong_together(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal right after one of the files took its place: what is there is nothing, or a model with its data."""
    replace = os.replace

    def end(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).suffix == suffix:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", end)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "big.onnx")
    monkeypatch.undo()
    assert len(names(tmp_path)) == (2 if suffix == ".onnx" else 0)
    if suffix == ".onnx":
        assert load(tmp_path / "big.onnx").model is not None


@pytest.mark.usefixtures("small_limit")
def test_a_file_with_the_name_of_the_data_that_is_not_the_data_is_left_alone(tmp_path: Path) -> None:
    written(tmp_path / "big.onnx")
    (data,) = tmp_path.glob("*.data")
    data.write_bytes(b"of somebody else")
    with pytest.raises(UsageError, match="is in the way") as caught:
        written(tmp_path / "big.onnx")
    assert caught.value.code == "output-exists"
    assert data.read_bytes() == b"of somebody else"


def test_a_program_that_the_disk_does_not_give_back_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = torch.export.export(nn.Linear(3, 2).eval(), (torch.ones(1, 3),))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: "a member")
    with pytest.raises(EnvironmentFailure, match="does not give back"):
        write_program(tmp_path / "a.pt2", program)
    assert names(tmp_path) == []


def test_a_program_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(nn.Linear(3, 2).eval(), (torch.ones(1, 3),))
    monkeypatch.setattr("bnfold.saving.shutil.disk_usage", lambda folder: SimpleNamespace(free=31))
    with pytest.raises(EnvironmentFailure, match="takes 32 bytes") as caught:
        write_program(tmp_path / "a.pt2", program)
    assert caught.value.code == "no-space"


def test_a_program_is_written_with_the_same_bytes_each_time_and_reads_back(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(3, 2).eval(), (torch.ones(1, 3),))
    for name in ("a", "b"):
        write_program(tmp_path / f"{name}.pt2", program)
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()
    again = torch.export.load(tmp_path / "a.pt2")
    assert torch.equal(again.module()(torch.ones(1, 3)), program.module()(torch.ones(1, 3)))


WRITE_SLOWLY = """
import sys, time
from pathlib import Path
from bnfold.saving import atomic
with atomic(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", WRITE_SLOWLY, str(tmp_path / "a.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        time.sleep(0.05)
        process.send_signal(number)
        code = process.wait(timeout=20)
    assert code == (Exit.TERMINATED if number is signal.SIGTERM else -signal.SIGINT)
    assert names(tmp_path) == []


def test_the_handler_of_the_program_is_left_alone(tmp_path: Path) -> None:
    with atomic(tmp_path / "a") as temporary:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        temporary.write_bytes(b"x")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
