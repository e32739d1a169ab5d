"""The benchmark with torch as the runtime: files in processes, modules in this one. No test asserts a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bnfold
from bnfold.benchmark import BenchOptions, Comparison, measure_live
from bnfold.benchmark.live import NOTE
from bnfold.errors import EnvironmentFailure, Exit, NoVerdict, UsageError
from bnfold.frontends import torch as frontend
from bnfold.model import Cost, ModelFacts

FACTS = ModelFacts(batch_norms=1, nodes=3, compute_nodes=3, parameters=10, bytes=40, cost=lambda: Cost(1000))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    images = torch.ones(2, 3, 8, 8)
    program = torch.export.export(small(), (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    return path


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "cannot_compile", lambda: "torch.compile does not work here: no compiler")


@pytest.mark.usefixtures("no_compiler")
def test_modules_are_measured_where_they_are_and_the_report_says_so() -> None:
    modules = {name: (small(), FACTS) for name in ("a", "b")}
    before = torch.get_num_threads()
    found = measure_live(modules, (torch.ones(5, 3, 8, 8),), BenchOptions(budget=0.1, processes=3, threads=1))
    assert [(row.a, row.b, row.options) for row in found.comparisons] == [("a", "b", "eager")]
    assert found.notes[:2] == (NOTE, "torch.compile does not work here: no compiler")
    assert (found.batch, found.mode, found.provider) == (5, "eager", "torch in this process")
    assert found.control is not None
    for row in found.contenders:
        assert (row.path, row.peak_bytes, row.session_s, row.operators_after_runtime) == (None, None, None, None)
        assert row.p50_s
        assert row.first_run_s
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("no_compiler")
def test_a_module_alone_is_measured_against_its_fold() -> None:
    module = small()
    found = bnfold.bench(module, example_inputs=(torch.ones(1, 3, 8, 8),), budget=0.1, processes=2)
    assert [(row.name, row.bn) for row in found.contenders] == [("original", 1), ("folded", 0)]
    two = bnfold.bench(module, small(), example_inputs=(torch.ones(1, 3, 8, 8),), budget=0.1, processes=2)
    assert [row.name for row in two.contenders] == ["Sequential 1", "Sequential 2"]


@pytest.mark.usefixtures("no_compiler")
def test_what_cannot_be_measured_is_said(stored: Path) -> None:
    with pytest.raises(UsageError, match="example_inputs"):
        bnfold.bench(small())
    with pytest.raises(UsageError, match="are for files"):
        bnfold.bench(small(), example_inputs=(torch.ones(1, 3, 8, 8),), batch=8)
    with pytest.raises(UsageError, match="files, or modules"):
        bnfold.bench(small(), stored, example_inputs=(torch.ones(1, 3, 8, 8),))
    with pytest.raises(UsageError, match="train mode"):
        bnfold.bench(small().train(), example_inputs=(torch.ones(1, 3, 8, 8),))
    with pytest.raises(UsageError):
        measure_live({}, (), BenchOptions())
    with pytest.raises(NoVerdict, match="torch cannot run"):
        measure_live({"a": (small(), FACTS)}, (torch.ones(1, 7, 8, 8),), BenchOptions(budget=0.1, processes=2))


@pytest.mark.usefixtures("no_compiler")
def test_programs_in_files_are_measured_in_processes(stored: Path) -> None:
    found = bnfold.bench(stored, runtime="torch", batch=(2, 3), budget=0.1, processes=2)
    assert [(row.options, row.batch) for row in found.comparisons] == [("eager", 2), ("eager", 3)]
    assert [(row.name, row.bn) for row in found.contenders] == [("original", 1), ("folded", 0)]
    assert (found.processes, found.provider) == (2, "torch on cpu")
    assert any("no compiler" in note for note in found.notes)
    assert all(row.p50_s and row.peak_bytes != 0 for row in found.contenders)


def test_an_onnx_file_is_not_for_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bnfold.cli import main

    bnfold.export(small(), tmp_path / "net.onnx", (torch.ones(2, 3, 8, 8),), check=False)
    assert main(["bench", str(tmp_path / "net.onnx"), "--runtime", "torch"]) == Exit.USAGE
    assert "which torch does not run" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentFailure) as caught:
        frontend.device_of("cuda")
    assert caught.value.code == "provider-missing"
    with pytest.raises(UsageError, match="openvino"):
        frontend.device_of("openvino")


def test_a_timed_program_runs_on_the_arrays_of_its_names(stored: Path) -> None:
    timed = frontend.open_timed(stored, provider="cpu", threads=None, compiled=False)
    ports, run = frontend.open_program(stored)
    feeds = {ports.inputs[0].name: torch.ones(2, 3, 8, 8).numpy()}
    assert timed.names == tuple(feeds)
    timed.prepared(feeds)()
    assert next(iter(run(feeds).values())).shape == (2, 4, 6, 6)
    with pytest.raises(NoVerdict):
        timed.prepared({timed.names[0]: torch.ones(2, 3, 1, 1).numpy()})()


def test_a_program_in_half_precision() -> None:
    program = torch.export.export(small(), (torch.ones(2, 3, 8, 8),))
    half = frontend.as_float16(program)
    assert {tensor.dtype for tensor in half.state_dict.values()} <= {torch.float16, torch.int64}
    assert frontend.signature(half).inputs[0].dtype == "float16"


@pytest.mark.slow
def test_a_compiled_module_is_measured_beside_the_eager_one(stored: Path) -> None:
    if reason := frontend.cannot_compile():
        pytest.skip(reason)
    found = bnfold.bench(stored, runtime="torch", budget=1, processes=2)
    assert [row.options for row in found.comparisons] == ["eager", "compiled"]
    assert all(isinstance(row.verdict, Comparison) for row in found.comparisons)
