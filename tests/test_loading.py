"""Every kind is told by content, weights find their network, and every bad file gets a sentence and a code."""

from __future__ import annotations

import argparse
import builtins
import json
import pickle
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from loading_helpers import ARCH, refused, same_weights
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

from bnfold.errors import BnfoldError, Exit, MissingDependency, Rejected, UsageError
from bnfold.loading import Kind, Source, load, sniff
from bnfold.loading.checkpoints import without_prefixes
from bnfold.loading.networks import fit
from bnfold.loading.suggestions import input_guess

pytest_plugins = "loading_fixtures"


def tiny_onnx() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


# --- kinds ------------------------------------------------------------------------------------------------------------

BAD_FILES = [
    ("a.onnx", b"", "empty-file", "empty"),
    ("a.onnx", b"\x89PNG\r\n\x1a\n" + b"\0" * 90, "unknown-format", "PNG"),
    ("a.onnx", b"<!DOCTYPE html><html>", "unknown-format", "HTML"),
    ("a.pt", b"version https://git-lfs.github.com/spec/v1\noid", "unknown-format", "git lfs pull"),
    ("a.pt", b"\x93NUMPY\x01\x00" + b"x" * 90, "unknown-format", "numpy"),
    ("a.onnx", bytes(4096), "unknown-format", "zeros"),
    ("a.onnx", b"import torch\nprint(1)\n", "unknown-format", "text"),
    ("a.onnx", bytes(range(255, 0, -1)) * 9, "unknown-format", "binary"),
    ("a.json", b'{"a": 1}', "unknown-format", "JSON"),
    ("a.pkl", pickle.dumps({"a": 1}, protocol=2), "plain-pickle", "pickle"),
    ("a.pkl", pickle.dumps([1], protocol=5), "plain-pickle", "pickle"),
    ("a.onnx", tiny_onnx().SerializeToString()[:-9], "truncated", "ONNX"),
    ("a.pt", b"PK\x03\x04" + b"\0" * 90, "truncated", "archive"),
    ("a.safetensors", (1000).to_bytes(8, "little") + b'{"a"', "truncated", "safetensors"),
]


@pytest.mark.parametrize(("name", "content", "code", "word"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_file_that_is_no_model_is_named_for_what_it_is(
    tmp_path: Path, name: str, content: bytes, code: str, word: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refused(path)
    assert (error.code, error.exit_code) == (code, Exit.REJECTED)
    assert word in str(error)


def test_missing_files_and_directories_are_rejected(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.onnx").code == "not-found"
    assert refused(tmp_path).code == "is-directory"
    assert refused(Path("/dev/null")).code == "not-a-file"
    assert refused(Path("a\0b")).code == "not-found"


def test_a_file_without_permission_is_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"x")

    def denied(*arguments: Any, **named: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(BnfoldError) as caught:
        sniff(path)
    assert (caught.value.code, caught.value.exit_code) == ("unreadable", Exit.ENVIRONMENT)


def test_archives_that_are_no_models_say_what_they_hold(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(2))
    assert "numpy" in str(refused(tmp_path / "a.npz"))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("dir/model.onnx", b"x")
    assert "unpack" in str(refused(tmp_path / "b.zip"))


def test_kinds_do_not_depend_on_the_suffix(folder: Path, net: nn.Module, models: Path) -> None:
    (folder / "a.bin").write_bytes(tiny_onnx().SerializeToString())
    torch.save(net.state_dict(), folder / "b.bin")
    torch.save(net.state_dict(), folder / "c.bin", _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), folder / "d.bin")
    kinds = [Kind.ONNX, Kind.TORCH_ZIP, Kind.TORCH_LEGACY, Kind.SAFETENSORS]
    assert [sniff(folder / f"{name}.bin") for name in "abcd"] == kinds
    assert sniff(models / "digits_resnet.pt") is Kind.PT2


def test_sniffing_never_imports_a_framework(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(tiny_onnx().SerializeToString())
    code = (
        "import sys; from pathlib import Path; from bnfold.loading import sniff; sniff(Path(sys.argv[1]));"
        "assert not {'torch', 'onnx', 'onnxruntime', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


# --- weights and networks ---------------------------------------------------------------------------------------------


def checkpoint_of(net: nn.Module) -> dict[str, Any]:
    """What timm's trainer writes: arguments, counters, averaged weights under DataParallel's prefix."""
    averaged = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    raw = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    arguments = argparse.Namespace(model="net", lr=0.1, output=Path("out"), img_size=32)
    return {"epoch": 3, "args": arguments, "metric": np.float64(0.5), "state_dict": raw, "state_dict_ema": averaged}


def test_a_state_dict_goes_into_the_named_network(folder: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), folder / "w.pt")
    loaded = load(folder / "w.pt", ARCH)
    assert loaded.kind == "state_dict"
    assert not loaded.model.training
    assert same_weights(loaded.model, net)
    assert loaded.nbytes == (folder / "w.pt").stat().st_size
    assert loaded.files == (folder / "w.pt",)


def test_a_checkpoint_gives_its_averaged_weights_and_says_so(folder: Path, net: nn.Module) -> None:
    torch.save(checkpoint_of(net), folder / "c.pt")
    loaded = load(folder / "c.pt", ARCH)
    assert loaded.kind == "checkpoint"
    assert same_weights(loaded.model, net)
    assert loaded.notes == ("using the weights under 'state_dict_ema'", "removed the prefix 'module.'")


def test_another_dict_of_a_checkpoint_can_be_chosen(folder: Path, net: nn.Module) -> None:
    torch.save(checkpoint_of(net), folder / "c.pt")
    loaded = load(folder / "c.pt", Source(arch="netcode:Net", weights_key="state_dict"))
    assert not loaded.model.conv.weight.any()
    error = refused(folder / "c.pt", Source(arch="netcode:Net", weights_key="nope"))
    assert error.code == "no-weights"
    assert "epoch" in str(error)


@pytest.mark.parametrize("wrap", [["ema", "module"], ["model", "state_dict"], ["model_state_dict"]], ids="-".join)
def test_weights_are_found_inside_nested_dicts(folder: Path, net: nn.Module, wrap: list[str]) -> None:
    nested: Any = net.state_dict()
    for key in reversed(wrap):
        nested = {key: nested, "state_dict_ema": None, "step": 1}
    torch.save(nested, folder / "c.pt")
    loaded = load(folder / "c.pt", ARCH)
    assert same_weights(loaded.model, net)
    assert loaded.notes == (f"using the weights under {'.'.join(wrap)!r}",)


def test_a_checkpoint_without_weights_says_what_it_holds(folder: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, folder / "c.pt")
    error = refused(folder / "c.pt", ARCH)
    assert error.code == "no-weights"
    assert "optimizer" in str(error)


def test_a_key_that_holds_no_weights_is_named(folder: Path, net: nn.Module) -> None:
    torch.save({"epoch": 1, "state_dict": net.state_dict()}, folder / "c.pt")
    error = refused(folder / "c.pt", Source(arch="netcode:Net", weights_key="epoch"))
    assert str(error).endswith("c.pt holds no weights under 'epoch', only epoch, state_dict")


def test_prefixes_come_off_only_where_all_names_have_them() -> None:
    one = torch.zeros(1)
    assert without_prefixes({"module._orig_mod.a": one})[1] == ["module.", "_orig_mod."]
    assert without_prefixes({"module.a": one, "b": one})[1] == []


def test_safetensors_alone_and_in_shards(folder: Path, net: nn.Module) -> None:
    state = net.state_dict()
    save_file(state, folder / "w.safetensors")
    assert same_weights(load(folder / "w.safetensors", ARCH).model, net)
    names = list(state)
    halves = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, part in halves.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "w.index.json").write_text(json.dumps(index))
    loaded = load(folder / "w.index.json", ARCH)
    assert loaded.kind == "safetensors"
    assert same_weights(loaded.model, net)
    assert loaded.input_guess == "batch,3,height,width"
    assert [file.name for file in loaded.files] == ["w.index.json", "a.safetensors", "b.safetensors"]


def test_a_shard_elsewhere_is_refused(folder: Path) -> None:
    (folder / "w.index.json").write_text('{"weight_map": {"a": "../w.safetensors"}}')
    assert refused(folder / "w.index.json", ARCH).code == "unsafe-archive"


def test_a_safetensors_header_whose_length_is_a_brace(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(ord("{")).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert (tmp_path / "w.safetensors").read_bytes().startswith(b"{")
    assert sniff(tmp_path / "w.safetensors") is Kind.SAFETENSORS


def test_safetensors_whose_data_is_cut_off(folder: Path, net: nn.Module) -> None:
    save_file(net.state_dict(), folder / "w.safetensors")
    whole = (folder / "w.safetensors").read_bytes()
    (folder / "w.safetensors").write_bytes(whole[:-8])
    assert refused(folder / "w.safetensors", ARCH).code == "truncated"


def test_half_precision_weights_stay_half_and_are_noted(folder: Path, net: nn.Module) -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in net.state_dict().items()}
    torch.save(state, folder / "w.pt")
    loaded = load(folder / "w.pt", ARCH)
    assert loaded.model.conv.weight.dtype is torch.float16
    assert loaded.notes == ("the weights are stored as float16",)


def test_counters_and_tied_weights_may_be_missing() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = self.a
            self.bn = nn.BatchNorm1d(2)

    weights = {name: t + 1 for name, t in Tied().state_dict().items() if "tracked" not in name and name[0] != "b"}
    weights |= {
        name: t + 1 for name, t in Tied().state_dict().items() if name.startswith("bn") and "tracked" not in name
    }
    network = Tied()
    fit(network, weights, Path("w.pt"), "net:Tied")
    assert torch.equal(network.b.weight, weights["a.weight"])


MISFITS: list[tuple[Callable[[dict[str, Any]], Any], str, str]] = [
    (lambda s: s.pop("head.weight"), "missing-keys", "lacks 1 of the 8"),
    (lambda s: s.update(extra=torch.zeros(1)), "unexpected-keys", "'extra'"),
    (lambda s: s.update({"head.weight": torch.zeros(9, 4)}), "shape-mismatch", "(9, 4) in the file, (2, 4)"),
]


@pytest.mark.parametrize(("change", "code", "words"), MISFITS, ids=[code for _, code, _ in MISFITS])
def test_weights_that_do_not_fit(
    folder: Path, net: nn.Module, change: Callable[[dict[str, Any]], Any], code: str, words: str
) -> None:
    state = dict(net.state_dict())
    change(state)
    torch.save(state, folder / "w.pt")
    error = refused(folder / "w.pt", ARCH)
    assert error.code == code
    assert words in str(error)


WRONG_ARCHES = [
    ("nomodule:Net", "arch-not-found", Rejected),
    ("netcode:Missing", "arch-not-found", Rejected),
    ("netcode:constant", "arch-not-found", Rejected),
    ("netcode:fails", "arch-failed", Rejected),
    ("collections:OrderedDict", "arch-failed", Rejected),
    ("netcode", "arch-not-found", UsageError),
]


@pytest.mark.parametrize(("arch", "code", "kind"), WRONG_ARCHES, ids=[arch for arch, *_ in WRONG_ARCHES])
def test_an_arch_that_is_none(folder: Path, net: nn.Module, arch: str, code: str, kind: type[BnfoldError]) -> None:
    torch.save(net.state_dict(), folder / "w.pt")
    assert refused(folder / "w.pt", Source(arch=arch), kind).code == code


def test_arch_arguments_reach_the_network(folder: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), folder / "w.pt")
    assert refused(folder / "w.pt", Source(arch="netcode:Net", arch_args={"width": 5})).code == "shape-mismatch"
    error = refused(folder / "w.pt", Source(arch="netcode:Net", arch_args={"depth": 5}))
    assert error.hint is not None
    assert "width" in error.hint


def test_the_import_path_is_put_back(folder: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), folder / "w.pt")
    before = list(sys.path)
    load(folder / "w.pt", Source(arch="netcode:Net", app_dir=folder))
    assert sys.path == before


# --- suggestions ------------------------------------------------------------------------------------------------------


def test_without_arch_the_hint_is_the_complete_command(folder: Path, net: nn.Module) -> None:
    torch.save(checkpoint_of(net), folder / "c.pt")
    typed = ("export", "c.pt", "--dtype", "keep", "-o", "x.onnx")
    error = refused(Path("c.pt"), Source(typed=typed), UsageError)
    assert (error.code, error.exit_code) == ("arch-needed", Exit.USAGE)
    assert error.hint == "bnfold export c.pt --dtype keep -o x.onnx --arch netcode:Net -i batch,3,32,32"


def test_code_beside_the_file_is_found_too(folder: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(net.state_dict(), folder / "my weights.pt")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    error = refused(folder / "my weights.pt", Source(given=("-i", "1,3,9,9")), UsageError)
    words = ["bnfold", "export", str(folder / "my weights.pt")]
    words += ["-i", "1,3,9,9", "--arch", "netcode:Net", "--app-dir", str(folder)]
    assert shlex.split(error.hint or "") == words


GUESSES = [
    ({"a": (4, 3, 3, 3)}, "batch,3,height,width"),
    ({"n": (4,), "a": (4, 2, 5)}, "batch,2,length"),
    ({"a": (4, 1, 3, 3, 3)}, "batch,1,depth,height,width"),
    ({"fc": (4, 7)}, "batch,7"),
    ({"embed.weight": (4, 7)}, "batch,16:int64"),
    ({"n": (4,)}, None),
]


@pytest.mark.parametrize(("shapes", "guess"), GUESSES, ids=[str(guess) for _, guess in GUESSES])
def test_an_input_is_guessed_from_the_first_weight(shapes: dict[str, tuple[int, ...]], guess: str | None) -> None:
    assert input_guess(shapes) == guess


# --- missing packages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("package", "suffix"), [("torch", ".pt"), ("safetensors", ".safetensors")])
def test_a_missing_package_is_named_with_its_command(
    folder: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch, package: str, suffix: str
) -> None:
    path = folder / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(net.state_dict(), path)
    real = builtins.__import__

    def hidden(name: str, *arguments: Any, **named: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", hidden)
    error = refused(path, ARCH, MissingDependency)
    assert error.hint == 'pip install "bnfold[torch]"'
    assert error.exit_code is Exit.ENVIRONMENT
