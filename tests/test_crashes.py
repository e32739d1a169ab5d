"""Whenever the process is killed, the folder holds the old model or the new one, and it loads."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from command_line import bnfold, demo_in
from onnx_build import Net

from bnfold.errors import EnvironmentFailure, Exit
from bnfold.frontends import onnx as frontend
from bnfold.loading import load
from bnfold.saving import write_onnx

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="fork and signals are those of POSIX")

MEGABYTES = 4
INSTANTS = [pytest.param(30), pytest.param(200, marks=pytest.mark.slow)]


def filled(folder: Path, number: float) -> ir.Model:
    """A model whose weights are all this number and lie in a data file."""
    net = Net()
    net.node("MatMul", ["x", net.constant("w", np.full((512, MEGABYTES << 9), number))])
    model = frontend.from_proto(net.model({"x": (1, 512)}))
    (folder / "source").mkdir(exist_ok=True)
    data = folder / "source" / f"{number}.bin"
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    data.write_bytes(weight.const_value.tobytes())
    weight.const_value = ir.ExternalTensor(
        data.name,
        0,
        data.stat().st_size,
        ir.DataType.FLOAT,
        shape=ir.Shape(weight.const_value.shape),
        name="w",
        base_dir=data.parent,
    )
    return model


def held(path: Path) -> float:
    """The number that all weights of a model are."""
    value = load(path).model.graph.initializers["w"].const_value
    assert value is not None
    numbers = value.numpy()
    assert np.all(numbers == numbers.flat[0])
    return float(numbers.flat[0])


def killed(work: Callable[[], object], after: float) -> bool:
    """Do the work in a process that is killed after so many seconds; whether it was."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("instants", INSTANTS)
def test_a_kill_at_any_instant_leaves_the_old_model_or_the_new(instants: int, tmp_path: Path) -> None:
    old, new, target = filled(tmp_path, 1.0), filled(tmp_path, 2.0), tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    start = time.perf_counter()
    write_onnx(target, new)
    whole = time.perf_counter() - start
    found, interrupted, random = [], 0, np.random.default_rng(0)
    for _ in range(instants):
        shutil.rmtree(target.parent)
        target.parent.mkdir()
        write_onnx(target, old)
        interrupted += killed(lambda: write_onnx(target, new), float(random.uniform(0, 1.5 * whole)))
        found.append(held(target))
    assert set(found) <= {1.0, 2.0}
    assert interrupted > instants // 4, "some were killed in the middle"


def test_the_data_of_the_input_disappears(tmp_path: Path) -> None:
    model = filled(tmp_path, 1.0)
    (tmp_path / "source" / "1.0.bin").unlink()
    (tmp_path / "out").mkdir()
    with pytest.raises(EnvironmentFailure):
        write_onnx(tmp_path / "out" / "model.onnx", model)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("most", [100, 10_000, 1 << 20])
def test_a_disk_that_fills_up_while_it_is_written_to(most: int, tmp_path: Path) -> None:
    import resource

    model = filled(tmp_path, 1.0)
    (tmp_path / "out").mkdir()
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(EnvironmentFailure, match="cannot be written: file too large"):
            write_onnx(tmp_path / "out" / "model.onnx", model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_without_space_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(EnvironmentFailure, match="the disk has 1,000 left") as caught:
        write_onnx(tmp_path / "model.onnx", filled(tmp_path, 1.0))
    assert caught.value.code == "no-space"


def test_what_the_disk_does_not_give_back_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = frontend.save

    def bad(model: ir.Model, path: Path) -> tuple[Path, ...]:
        files = save(model, path)
        data = bytearray(files[-1].read_bytes())
        data[-100] ^= 1
        files[-1].write_bytes(data)
        return files

    monkeypatch.setattr(frontend, "save", bad)
    with pytest.raises(EnvironmentFailure, match="does not give back"):
        write_onnx(tmp_path / "model.onnx", filled(tmp_path, 1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_eight_exports_into_one_folder(tmp_path: Path) -> None:
    source, target = demo_in(tmp_path), tmp_path / "out.onnx"
    with ThreadPoolExecutor(8) as pool:
        ran = list(pool.map(lambda _: bnfold("fold", source, "-o", target, "--force", "--no-check"), range(8)))
        own = list(pool.map(lambda n: bnfold("fold", source, "-o", tmp_path / f"{n}.onnx", "--no-check"), range(8)))
    assert [each.returncode for each in (*ran, *own)] == [Exit.OK] * 16
    assert len({path.read_bytes() for path in (target, *(tmp_path / f"{n}.onnx" for n in range(8)))}) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".bnfold")]
