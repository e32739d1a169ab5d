"""Any model file to something foldable, and never by running code that came with the file.

    loaded = load(Path("model.pt"), Source())
    loaded.model            # onnx_ir.Model, ExportedProgram or nn.Module in eval mode
    loaded.notes            # what a reader should know: which weights were taken, which prefix was removed

`sniff` tells the kind by content. torch is imported only for torch's own kinds; nothing here knows of folding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import MissingDependency, Rejected
from bnfold.loading.kinds import Kind, open_regular, sniff
from bnfold.loading.source import Loaded, Source

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Kind", "Loaded", "Source", "load", "sha256", "sniff", "to_program"]

CHUNK = 1 << 20


def load(path: Path, source: Source | None = None) -> Loaded:
    """Read a model file of any kind that `sniff` knows.

    Raises `Rejected` where the file is unreadable, invalid or unsafe, `UsageError` where a flag is missing (its hint
    is the command to run), `MissingDependency` and `EnvironmentFailure` where the file is not at fault.
    """
    path, source = Path(path), source or Source()
    return READERS[sniff(path)](path, source)


def sha256(path: Path) -> str:
    """The hash of a file's bytes, streamed."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _loaded(kind: str, model: Any, path: Path, *, notes: tuple[str, ...] = (), more: tuple[Path, ...] = ()) -> Loaded:
    return Loaded(kind, model, path, path.stat().st_size, notes, (path, *more))


def _loaded_network(
    kind: str,
    network: nn.Module,
    path: Path,
    *,
    notes: tuple[str, ...] = (),
    more: tuple[Path, ...] = (),
    said: Any = None,
) -> Loaded:
    """A network in eval mode, with an input that would fit its first layer; `said` are the checkpoint's own words."""
    from bnfold.loading.suggestions import input_guess

    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    arguments = said.get("args") if isinstance(said, dict) else None
    loaded = _loaded(kind, network.eval(), path, notes=notes, more=more)
    return replace(loaded, input_guess=input_guess(shapes, arguments))


def _onnx(path: Path, source: Source) -> Loaded:
    from bnfold.frontends import onnx as frontend

    model = frontend.read(path, source.linked_data, limits=not source.no_limits)
    return _loaded("onnx", model, path, more=_data_files(model))


def _data_files(model: Any) -> tuple[Path, ...]:
    """The files in which tensors of an `onnx_ir.Model` lie outside the model file."""
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    tensors = (value.const_value for value in values)
    return tuple(sorted({Path(tensor.path) for tensor in tensors if hasattr(tensor, "location")}))


def _pt2(path: Path, source: Source) -> Loaded:
    _need("torch")
    from bnfold.loading.programs import load_program

    return _loaded("pt2", load_program(path, limits=not source.no_limits), path)


def _torchscript(path: Path, source: Source) -> Loaded:
    _need("torch")
    from bnfold.loading.scripts import load_script
    from bnfold.loading.suggestions import input_guess, peek

    loaded = _loaded("torchscript", load_script(path, source), path)
    return replace(loaded, input_guess=input_guess(peek(path)))


def _checkpoint(path: Path, source: Source) -> Loaded:
    _need("torch")
    from torch import nn

    from bnfold.loading.checkpoints import import_path, is_state_dict, read_pickle, take_apart

    with import_path(source.app_dir if source.trust_pickle or source.trust_types else None):
        content = read_pickle(path, sniff(path), source)
    parts = take_apart(content, path, source)
    kind = "pickled_module" if isinstance(content, nn.Module) else "checkpoint"
    if parts.network is not None and source.arch is None:
        return _loaded_network(kind, parts.network, path, notes=parts.notes, said=content)
    weights = parts.weights if parts.network is None else dict(parts.network.state_dict())
    assert weights is not None
    model, notes = _network(path, weights, content, source)
    kind = "state_dict" if is_state_dict(content) else kind
    return _loaded_network(kind, model, path, notes=(*parts.notes, *notes), said=content)


def _safetensors(path: Path, source: Source) -> Loaded:
    return _from_shards(path, source, (path,))


def _safetensors_index(path: Path, source: Source) -> Loaded:
    names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()), key=str)
    shards = tuple(path.parent / str(name) for name in names)
    for name, shard in zip(names, shards, strict=True):
        if not isinstance(name, str) or Path(name).name != name or sniff(shard) is not Kind.SAFETENSORS:
            message = f"{path} names the shard {name!r}, which is no safetensors file beside it"
            raise Rejected(message, code="unsafe-archive")
    return _from_shards(path, source, shards)


def _from_shards(path: Path, source: Source, shards: tuple[Path, ...]) -> Loaded:
    _need("torch")
    _need("safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from bnfold.loading.checkpoints import without_prefixes

    weights: dict[str, Tensor] = {}
    for shard in shards:
        try:
            weights |= load_file(shard)
        except SafetensorError as error:
            raise Rejected(f"{shard} is a damaged safetensors file ({error})", code="truncated") from error
    weights, stripped = without_prefixes(weights)
    model, notes = _network(path, weights, None, source)
    notes = (*(f"removed the prefix {prefix!r}" for prefix in stripped), *notes)
    return _loaded_network("safetensors", model, path, notes=notes, more=tuple(s for s in shards if s != path))


def _network(path: Path, weights: dict[str, Tensor], content: Any, source: Source) -> tuple[nn.Module, tuple[str, ...]]:
    from bnfold.loading.networks import arch_needed, build, fit

    if source.arch is None:
        raise arch_needed(path, weights, content, source)
    network = build(source.arch, source.arch_args, source.app_dir)
    notes = fit(network, weights, path, source.arch)
    return network, notes


def _need(package: str) -> None:
    """Import a package of the torch extra, or say which command installs it."""
    try:
        __import__(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        message = f"this kind of file needs {package}, which is not installed"
        raise MissingDependency(message, hint='pip install "bnfold[torch]"') from None


READERS: dict[Kind, Callable[[Path, Source], Loaded]] = {
    Kind.ONNX: _onnx,
    Kind.PT2: _pt2,
    Kind.TORCHSCRIPT: _torchscript,
    Kind.TORCH_ZIP: _checkpoint,
    Kind.TORCH_LEGACY: _checkpoint,
    Kind.SAFETENSORS: _safetensors,
    Kind.SAFETENSORS_INDEX: _safetensors_index,
}


def to_program(script: Any, example_inputs: tuple[Any, ...]) -> Any:
    """An `ExportedProgram` of a TorchScript module; see `bnfold.loading.scripts`."""
    from bnfold.loading import scripts

    return scripts.to_program(script, example_inputs)
