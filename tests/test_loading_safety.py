"""Good files open without trust; a file that would run code is refused, and did not run."""

from __future__ import annotations

import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks.archives import Evil, in_program, rewritten
from loading_helpers import ARCH, refused, same_weights
from torch import nn

from bnfold.errors import Rejected, UsageError
from bnfold.loading import Source, load, to_program
from bnfold.loading.audit import complaints
from bnfold.loading.suggestions import peek

pytest_plugins = "loading_fixtures"


# --- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_did_not_run(folder: Path, zipped: bool) -> None:
    torch.save({"model": Evil(folder / "ran")}, folder / "e.pt", _use_new_zipfile_serialization=zipped)
    error = refused(folder / "e.pt", ARCH)
    assert error.code == "needs-trust"
    assert "mkdir" in str(error)
    assert not (folder / "ran").exists()


def test_names_from_a_file_cannot_reach_the_terminal_as_escapes(folder: Path) -> None:
    torch.save({"\x1b[31mred": 1, "right\u202eleft": 2}, folder / "c.pt")
    message = str(refused(folder / "c.pt", ARCH))
    assert message.isprintable()
    assert r"\x1b[31mred" in message


def test_environment_variables_cannot_make_loading_unsafe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": Evil(folder / "ran")}, folder / "e.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert refused(folder / "e.pt", ARCH).code == "needs-trust"
    assert not (folder / "ran").exists()


def test_a_pickled_module_needs_trust_and_the_hint_gives_it(folder: Path, net: nn.Module) -> None:
    torch.save({"model": net.half(), "epoch": 1}, folder / "m.pt")
    error = refused(folder / "m.pt")
    assert error.code == "needs-trust"
    assert "netcode.Net" in str(error)
    assert error.hint == f"bnfold export {folder / 'm.pt'} --trust-pickle -i batch,3,height,width"
    assert "netcode.Net" in error.details["wants"]
    some = refused(folder / "m.pt", Source(typed=("export", "m.pt"), trust_types=("netcode.Net",)))
    others = "".join(f" --trust-type {name}" for name in some.details["wants"])
    assert "netcode.Net" not in others
    assert some.hint == f"bnfold export m.pt{others} -i batch,3,height,width"
    loaded = load(folder / "m.pt", Source(trust_pickle=True))
    assert loaded.kind == "checkpoint"
    assert loaded.model.conv.weight.dtype is torch.float16
    assert loaded.notes == ("using the weights under 'model'",)


def test_a_module_at_the_top_is_a_pickled_module(folder: Path, net: nn.Module) -> None:
    torch.save(net, folder / "m.pt")
    loaded = load(folder / "m.pt", Source(trust_pickle=True))
    assert loaded.kind == "pickled_module"
    assert same_weights(loaded.model, net)


def test_named_types_are_enough_and_no_more(folder: Path, net: nn.Module) -> None:
    torch.save(net, folder / "m.pt")
    some = ("netcode.Net", "torch.nn.modules.conv.Conv2d")
    error = refused(folder / "m.pt", Source(trust_types=some))
    assert "BatchNorm2d" in str(error)
    assert "Conv2d" not in str(error)
    wanted = ("torch.nn.modules.batchnorm.BatchNorm2d", "torch.nn.modules.linear.Linear")
    assert same_weights(load(folder / "m.pt", Source(trust_types=some + wanted)).model, net)
    assert refused(folder / "m.pt", Source(trust_types=("no.Such",)), UsageError).code == "usage"


def test_peeking_runs_nothing(folder: Path, net: nn.Module) -> None:
    torch.save({"model": net, "x": Evil(folder / "ran")}, folder / "e.pt")
    assert next(iter(peek(folder / "e.pt").values())) == (4, 3, 3, 3)
    assert not (folder / "ran").exists()


def test_peeking_ends_where_values_hold_each_other_in_many_ways(tmp_path: Path) -> None:
    """Forty lists, each of which holds the next one twice."""
    value: list[Any] = [torch.ones(2)]
    for _ in range(40):
        value = [value, value]
    torch.save({"w": torch.ones(2, 3), "many": value}, tmp_path / "a.pt")
    start = time.monotonic()
    assert next(iter(peek(tmp_path / "a.pt").values())) == (2, 3)
    assert time.monotonic() - start < 60


def test_peeking_at_a_file_that_is_none_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK")
    assert peek(tmp_path / "a.pt") == {}


# --- TorchScript ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["traced", "frozen"])
def script(request: pytest.FixtureRequest, folder: Path, net: nn.Module) -> Path:
    """A TorchScript archive of the network."""
    path = folder / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace: Callable[..., Any] = torch.jit.trace
        traced = trace(net, torch.ones(2, 3, 9, 9))
        (torch.jit.freeze(traced, optimize_numerics=False) if request.param == "frozen" else traced).save(path)
    return path


def test_torchscript_needs_trust_and_becomes_a_program(script: Path, net: nn.Module) -> None:
    error = refused(script)
    assert error.code == "needs-trust"
    assert error.hint == f"bnfold export {script} --trust-pickle -i batch,3,height,width"
    loaded = load(script, Source(trust_pickle=True))
    assert (loaded.kind, loaded.input_guess) == ("torchscript", "batch,3,height,width")
    x = torch.randn(2, 3, 9, 9)
    program = to_program(loaded.model, (x,))
    assert any("batch_norm" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), net(x))


def test_torchscript_with_inputs_that_it_does_not_take(script: Path) -> None:
    loaded = load(script, Source(trust_pickle=True))
    with pytest.raises(Rejected) as caught:
        to_program(loaded.model, (torch.ones(2, 5, 9, 9), torch.ones(1)))
    assert caught.value.code == "conversion"


# --- programs and archives --------------------------------------------------------------------------------------------


def test_every_shipped_model_opens_without_trust(models: Path) -> None:
    for path in sorted(models.glob("*.pt")):
        with zipfile.ZipFile(path) as archive:
            assert list(complaints(archive)) == []
    loaded = load(models / "digits_resnet.pt")
    assert loaded.kind == "pt2"
    assert loaded.model.module()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_program_with_sample_inputs_dicts_and_symbols_opens(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Any, more: Any) -> Any:
            return {"a": x + more["k"], "b": [x.reshape(-1), (x.float().mean(),)]}

    x = torch.ones(4, 6)
    sizes = {"x": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}, "more": {"k": {0: torch.export.Dim.AUTO}}}
    program = torch.export.export(Two(), (x, {"k": torch.ones(4, 1)}), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "p.pt2")
    loaded = load(tmp_path / "p.pt2").model
    assert torch.equal(loaded.module()(x, {"k": x[:, :1]})["a"], x + 1)


@pytest.mark.parametrize("marks", [{"_specialize_on": {}}, {"_dynamo_dynamic_indices": {0}}])
def test_a_program_whose_sample_input_torch_has_marked_opens(tmp_path: Path, marks: dict[str, Any]) -> None:
    x = torch.ones(4, 6)
    program = torch.export.export(nn.ReLU(), (x,))
    for name, value in marks.items():
        setattr(program.example_inputs[0][0], name, value)
    torch.export.save(program, tmp_path / "p.pt2")
    with zipfile.ZipFile(tmp_path / "p.pt2") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("sample_inputs/model.pt")]
        assert b"_rebuild_from_type_v2" in archive.read(name), "torch stores what it has noted on the tensor"
    assert torch.equal(load(tmp_path / "p.pt2").model.module()(x), x)


def test_a_program_of_another_schema_is_invalid_not_unsafe(models: Path, tmp_path: Path) -> None:
    path = rewritten(
        models / "digits_resnet.pt",
        tmp_path / "a.pt2",
        in_program("torch.ops.aten.conv2d.default", "torch.ops.aten.nothing.default"),
    )
    assert refused(path).code == "invalid-program"


def test_an_archive_that_inflates_is_refused(folder: Path) -> None:
    torch.save({"a": torch.zeros(20 << 20)}, folder / "w.pt")
    with zipfile.ZipFile(folder / "w.pt") as old, zipfile.ZipFile(folder / "z.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert refused(folder / "z.pt", ARCH).code == "limit"
    assert refused(folder / "z.pt", Source(arch="netcode:Net", no_limits=True)).code == "missing-keys"
