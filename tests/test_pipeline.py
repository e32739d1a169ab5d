"""The verbs of Python and what they share with the command line: what is exported, named, refused and noted."""

from __future__ import annotations

import json
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnfold
from bnfold.dialects import onnx_dialect
from bnfold.errors import BnfoldError, NotEquivalent, Rejected, UsageError
from bnfold.folding import FoldOptions
from bnfold.graph import Reason, Refusal
from bnfold.pipeline import run_bench, run_export, run_fold
from bnfold.run import OutputOptions, Run, RunOptions
from bnfold.testing import assert_equivalent
from bnfold.verify.result import Verdict

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(*more: nn.Module) -> nn.Module:
    """Conv and batch norm with statistics of its own, in eval mode."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm, nn.ReLU(), *more).eval()


def saved(module: nn.Module, path: Path) -> Path:
    """The module as an exported program, in the mode that it is in."""
    torch.export.save(torch.export.export(module, (IMAGES,), strict=False), path)
    return path


def axes(path: Path) -> list[list[int | str]]:
    """The sizes and names of all inputs and outputs."""
    graph = onnx.load(path).graph
    ports = [port.type.tensor_type.shape.dim for port in (*graph.input, *graph.output)]
    return [[size.dim_param or size.dim_value for size in dims] for dims in ports]


def test_a_module_becomes_a_proved_onnx_file_with_named_axes(tmp_path: Path) -> None:
    run = bnfold.export(network(), tmp_path / "net.onnx", (IMAGES,))
    assert run.check is not None
    assert run.check.verdict is Verdict.PROVED
    assert any("against the torch program" in layer.because for layer in run.check.layers)
    assert axes(tmp_path / "net.onnx") == [["batch", 3, 8, 8], ["batch", 4, 6, 6]]
    assert bnfold.check(network(), tmp_path / "net.onnx", (IMAGES,)).verdict is Verdict.VERIFIED


def test_named_axes_are_the_callers(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "net.pt")
    (tmp_path / "shop.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())\n"
    )
    source = bnfold.loading.Source(arch="shop:build", app_dir=tmp_path)
    run_export(
        Run("export"),
        tmp_path / "net.pt",
        source=source,
        run_options=RunOptions(inputs=("n,3,high,wide",)),
        output=OutputOptions(tmp_path / "net.onnx"),
    )
    assert axes(tmp_path / "net.onnx")[0] == ["n", 3, "high", "wide"]


STORES_NONE = "it stores no running statistics (track_running_stats=False), so eval() changes nothing"
DROPPED = "the statistics of the batch, which an export would drop"
EVALUATE, TRACK = "call model.eval() before torch.export.export", "train it with track_running_stats=True"


@pytest.mark.parametrize(
    ("tracks", "train", "message", "hint"),
    [
        ([True], True, f"1 batch norm of the program uses {DROPPED}: 0", EVALUATE),
        ([True, True], True, f"2 batch norms of the program use {DROPPED}: 0", EVALUATE),
        ([False], False, f"1 batch norm of the program uses {DROPPED}: 0; {STORES_NONE}", TRACK),
        ([False], True, f"1 batch norm of the program uses {DROPPED}: 0; {STORES_NONE}", TRACK),
        ([True, False], False, f"1 batch norm of the program uses {DROPPED}: 1; {STORES_NONE}", TRACK),
        (
            [True, False],
            True,
            f"2 batch norms of the program use {DROPPED}: 0; 1: {STORES_NONE}",
            f"{EVALUATE}; 1: {TRACK}",
        ),
    ],
)
def test_what_uses_the_statistics_of_the_batch_is_told_with_its_cause(
    tracks: list[bool], train: bool, message: str, hint: str, tmp_path: Path
) -> None:
    net = nn.Sequential(*(nn.BatchNorm2d(3, track_running_stats=each) for each in tracks)).train(train)
    with pytest.raises(Rejected) as caught:
        bnfold.export(torch.export.export(net, (IMAGES,)), tmp_path / "net.onnx")
    assert (str(caught.value), caught.value.hint) == (message, hint)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, while it decomposes
def test_a_decomposed_batch_norm_without_running_statistics_is_told_as_such(tmp_path: Path) -> None:
    program = torch.export.export(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval(), (IMAGES,))
    with pytest.raises(Rejected, match="stores no running statistics") as caught:
        bnfold.export(program.run_decompositions(), tmp_path / "net.onnx")
    assert caught.value.hint == TRACK


def test_a_program_that_trains_is_not_exported(tmp_path: Path) -> None:
    path = saved(network().train(), tmp_path / "training.pt2")
    with pytest.raises(Rejected, match="statistics of the batch") as caught:
        bnfold.export(path, tmp_path / "net.onnx")
    assert caught.value.code == "batch-statistics"
    assert not (tmp_path / "net.onnx").exists()


def test_a_part_that_trains_keeps_the_module_from_export_and_its_fold_is_right(tmp_path: Path) -> None:
    net = network(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4).eval())
    net[1].train()
    with pytest.raises(Rejected, match="statistics of the batch"):
        bnfold.export(net, tmp_path / "net.onnx", (IMAGES,))
    assert bnfold.check(net, bnfold.fold(net, (IMAGES,)).model, (IMAGES,)).passed


def test_an_opset_is_kept_or_refused(tmp_path: Path) -> None:
    program = torch.export.export(network(), (IMAGES,))
    bnfold.export(program, tmp_path / "net.onnx", opset=18)
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == 18
    with pytest.raises(Rejected) as caught:
        bnfold.export(program, tmp_path / "old.onnx", opset=9)
    assert caught.value.code == "opset-unavailable"


def test_a_half_precision_program_is_exported_in_float32_and_said_so(tmp_path: Path) -> None:
    program = torch.export.export(network().half(), (IMAGES.half(),))
    torch.export.save(program, tmp_path / "half.pt2")
    run = bnfold.export(tmp_path / "half.pt2", tmp_path / "half.onnx")
    assert [warning.code for warning in run.warnings if warning.code == "converted"] == ["converted"]
    assert {tensor.data_type for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer} == {1}


def test_a_program_whose_output_is_a_norm_folds_into_a_file(tmp_path: Path) -> None:
    path = saved(network(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4).eval()), tmp_path / "net.pt2")
    run = Run("fold")
    run_fold(run, path)
    assert run.check is not None
    assert run.check.verdict is Verdict.PROVED
    assert bnfold.load(tmp_path / "net.folded.pt2").module()(IMAGES).shape == (2, 4, 6, 6)


def test_fold_does_not_turn_a_program_into_onnx(tmp_path: Path) -> None:
    path = saved(network(), tmp_path / "net.pt2")
    with pytest.raises(UsageError) as caught:
        run_fold(Run("fold"), path, output=OutputOptions(tmp_path / "net.onnx"))
    assert str(caught.value.hint).startswith("bnfold export")


def test_provenance_names_what_went_where(tmp_path: Path) -> None:
    bnfold.export(network(), tmp_path / "net.onnx", (IMAGES,))
    path = saved(network(), tmp_path / "net.pt2")
    run_export(Run("export"), path, output=OutputOptions(tmp_path / "noted.onnx", provenance=True))
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "noted.onnx").metadata_props}
    assert len(json.loads(metadata["bnfold.folded"])) == 1
    assert not onnx.load(tmp_path / "net.onnx").metadata_props


def test_a_pattern_that_names_nothing_is_a_warning(tmp_path: Path) -> None:
    path = saved(network(), tmp_path / "net.pt2")
    run = Run("fold")
    run_fold(run, path, fold_options=FoldOptions(include=("no-such-*",)))
    assert "nothing-included" in [warning.code for warning in run.warnings]


def test_a_file_that_is_given_twice_is_measured_twice() -> None:
    run = Run("bench")
    demo = Path(bnfold.__file__).parent / "data/demo.onnx"
    run_bench(run, (demo, demo), budget=0.5, processes=2)
    assert run.bench is not None
    assert [contender.name for contender in run.bench.contenders] == [str(demo), f"{demo} (2)"]


def test_every_kind_comes_back_as_it_went_in(tmp_path: Path) -> None:
    bnfold.save(torch.export.export(network(), (IMAGES,)), tmp_path / "net.pt2")
    program = bnfold.load(tmp_path / "net.pt2")
    proto = onnx.load(Path(bnfold.__file__).parent / "data/demo.onnx")
    kinds: list[tuple[Any, Any]] = [
        (network(), (IMAGES,)),
        (torch.fx.symbolic_trace(network()), None),
        (program, None),
        (proto, None),
        (bnfold.load(Path(bnfold.__file__).parent / "data/demo.onnx"), None),
    ]
    for model, examples in kinds:
        folded = bnfold.fold(model, examples)
        assert folded.report.folded > 0
        assert isinstance(folded.model, type(model)) or isinstance(model, nn.Module)
        assert bnfold.inspect(model, examples).folded == folded.report.folded


def test_an_assertion_names_the_layer_and_passes_what_is_equal() -> None:
    folded = bnfold.fold(network(), (IMAGES,)).model
    assert assert_equivalent(network(), folded, inputs=(IMAGES,)).passed
    wrong = network()
    with torch.no_grad():
        wrong[0].weight[1] *= 1.01
    with pytest.raises(NotEquivalent, match="L4"):
        assert_equivalent(network(), wrong, inputs=(IMAGES,))


def test_outputs_that_change_places_are_not_equivalent() -> None:
    class Two(nn.Module):
        def __init__(self, swapped: bool) -> None:
            super().__init__()
            self.body, self.swapped = network(), swapped

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.body(x)
            return (y, -y) if self.swapped else (-y, y)

    assert bnfold.check(Two(False).eval(), Two(True).eval(), (IMAGES,)).verdict is Verdict.FAILED


def test_inspect_says_what_is_unusual_where_it_can_see_the_numbers(tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        net[1].running_var[2] = -1
    told = [("variance-not-positive", "error", (2,))]
    program = saved(net, tmp_path / "net.pt2")
    for found in (bnfold.inspect(net, (IMAGES,)), bnfold.inspect(program)):
        assert found.findings is not None
        assert [(each.code, each.severity, each.channels) for each in found.findings] == told
        assert found.to_dict()["findings"][0]["affine"] == "A001"
    assert bnfold.inspect(net).findings is None
    assert bnfold.inspect(network(), (IMAGES,)).findings == ()


def test_what_is_in_the_way_is_named_by_its_module_too() -> None:
    net = nn.Sequential(nn.Sigmoid(), network()[1], nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Sigmoid())).eval()
    (row,) = bnfold.inspect(net, (torch.randn(2, 4, 8, 8),)).norms
    assert row.refusal is not None
    assert row.refusal.obstacles == ("2.0 (conv2d)",)
    assert row.to_dict()["reason"]["modules"] == {"conv2d": "2.0"}
    assert Refusal(Reason.JOINED, "a", also=("b",), modules={"b": "net.b"}).obstacles == ("a", "net.b (b)")
    assert Refusal(Reason.TOO_FAR).obstacles == ()


def test_export_writes_reports_also_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def status(name: str) -> tuple[str, str | None]:
        document = json.loads((tmp_path / name).read_text())
        return document["status"], document["error"] and document["error"]["code"]

    bnfold.export(network(), tmp_path / "net.onnx", (IMAGES,), report=[tmp_path / "good.json", tmp_path / "good.md"])
    assert status("good.json") == ("ok", None)
    assert "Folded 1 of 1 batch norm; proved equivalent" in (tmp_path / "good.md").read_text()
    with pytest.raises(UsageError, match="would overwrite the model"):
        bnfold.export(network(), tmp_path / "net.json", (IMAGES,), report=str(tmp_path / "net.json"))

    def fails(*arguments: Any, **options: Any) -> None:
        raise NotEquivalent("not equivalent: 1 is 2")

    monkeypatch.setattr("bnfold.pipeline.export_program", fails)
    with pytest.raises(NotEquivalent):
        bnfold.export(network(), tmp_path / "net.onnx", (IMAGES,), report=tmp_path / "bad.json")
    assert status("bad.json") == ("not_equivalent", "not-equivalent")


def test_a_module_cannot_be_saved_and_the_hint_says_what_can() -> None:
    with pytest.raises(Rejected, match="a module is no file") as refused:
        bnfold.save(network(), "net.pt")
    assert "bnfold.export(" in (refused.value.hint or "")


def test_an_assertion_takes_the_tolerance_of_a_check() -> None:
    near = network()
    with torch.no_grad():
        near[0].weight[1] *= 1.001
    with pytest.raises(NotEquivalent):
        assert_equivalent(network(), near, inputs=(IMAGES,))
    assert assert_equivalent(network(), near, inputs=(IMAGES,), rtol=0.01, atol=0.01).passed


@pytest.mark.parametrize(
    "call",
    [
        lambda: bnfold.fold(network().train(), (IMAGES,)),
        lambda: bnfold.fold(network(), (IMAGES,), merge="always"),  # type: ignore[arg-type]
        lambda: bnfold.fold(threading.Lock()),
        lambda: bnfold.fold("no such file.onnx"),
        lambda: bnfold.check(network(), network()),
        lambda: bnfold.fold(network(), IMAGES),
    ],
    ids=["train mode", "unknown merge", "no model", "no file", "no inputs", "a tensor for a tuple"],
)
def test_what_cannot_be_meant_is_one_of_our_errors(call: Any) -> None:
    with pytest.raises(BnfoldError):
        call()


def test_what_is_passed_in_stays_as_it_is() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    bnfold.fold(net, (IMAGES,))
    assert not net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    proto = onnx.load(Path(bnfold.__file__).parent / "data/demo.onnx")
    stored = proto.SerializeToString()
    bnfold.fold(proto)
    assert proto.SerializeToString() == stored
    assert np.isfinite(net(IMAGES).detach().numpy()).all()


@pytest.mark.parametrize("installed", ["onnxruntime-gpu", None])
def test_the_runtime_may_be_built_for_gpus_or_missing(installed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != installed:
            raise metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    assert onnx_dialect().version() == ("1.2.3" if installed else "not installed")


def test_the_library_logs_and_prints_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    program = torch.export.export(network().half(), (IMAGES.half(),))
    torch.export.save(program, tmp_path / "half.pt2")
    with caplog.at_level("INFO", logger="bnfold"):
        bnfold.export(tmp_path / "half.pt2", tmp_path / "half.onnx")
    said = [record.message for record in caplog.records if record.name == "bnfold"]
    assert "fold" in said
    assert any(line.startswith("converted: ") for line in said)
    assert capfd.readouterr() == ("", "")
