"""A state_dict has no structure; the caller's `--arch` builds one, and every weight must find its place in it."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import Rejected, UsageError
from bnfold.loading.checkpoints import import_path
from bnfold.loading.source import Source, brief
from bnfold.loading.suggestions import command, find_network, input_guess, named_architecture

if TYPE_CHECKING:
    from torch import Tensor, nn

COUNTER = "num_batches_tracked"
"""Counts training steps; inference never reads it, and many converters drop it."""


def arch_needed(path: Path, weights: Mapping[str, Tensor], checkpoint: Any, source: Source) -> UsageError:
    """The message for a state_dict without `--arch`: the complete command, as far as the surroundings tell it."""
    arguments = checkpoint.get("args") if isinstance(checkpoint, Mapping) else None
    found = find_network(weights, [source.app_dir, path.parent])
    names = list(weights) if found is None else found.in_order(weights)
    guess = input_guess({name: tuple(weights[name].shape) for name in names}, arguments)
    if found is not None:
        folder = () if found.folder == source.app_dir else ("--app-dir", str(found.folder))
        hint = command(path, source, "--arch", found.arch, *folder, guess=guess)
    else:
        words = named_architecture(checkpoint) or ("--arch", "PACKAGE.MODULE:CLASS")
        hint = command(path, source, *words, guess=guess)
    message = f"{path} holds {len(weights)} weights but not the network that they belong to: name its code with --arch"
    return UsageError(message, code="arch-needed", hint=hint)


def build(arch: str, arguments: Mapping[str, Any], app_dir: Path) -> nn.Module:
    """Call what `--arch PKG.MOD:CALLABLE` names. Raises `Rejected` (`arch-not-found`, `arch-failed`)."""
    from torch import nn

    with import_path(app_dir):
        factory = _find(arch)
        try:
            network = factory(**arguments)
        except Exception as error:
            message = f"--arch {arch} raised {type(error).__name__}: {brief(str(error))}"
            raise Rejected(message, code="arch-failed", hint=_parameters(factory)) from error
    if not isinstance(network, nn.Module):
        raise Rejected(f"--arch {arch} returned a {type(network).__name__}, not an nn.Module", code="arch-failed")
    return network


def _find(arch: str) -> Any:
    module_name, colon, attribute = arch.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"--arch {arch} is not of the form PKG.MOD:CALLABLE", code="arch-not-found")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        is_ours = (module_name + ".").startswith(f"{error.name}.")
        hint = "name the folder of your code with --app-dir" if is_ours else f"{module_name} needs it: install it"
        raise Rejected(f"--arch {arch}: there is no module {error.name!r}", code="arch-not-found", hint=hint) from None
    except Exception as error:
        message = f"--arch {arch}: importing {module_name!r} raised {type(error).__name__}: {brief(str(error))}"
        raise Rejected(message, code="arch-failed") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise Rejected(f"--arch {arch}: {module_name!r} has no {attribute!r}", code="arch-not-found")
        found = getattr(found, part)
    if not callable(found):
        raise Rejected(f"--arch {arch} is a {type(found).__name__}, which cannot be called", code="arch-not-found")
    return found


def _parameters(factory: Any) -> str | None:
    try:
        return f"its parameters are {inspect.signature(factory)}: give them with --arch-arg NAME=VALUE"
    except (TypeError, ValueError):
        return None


def fit(network: nn.Module, weights: Mapping[str, Tensor], path: Path, arch: str) -> tuple[str, ...]:
    """Load `weights` into `network`, in place; the notes say what was cast.

    Raises `Rejected` (`shape-mismatch`, `missing-keys`, `unexpected-keys`) unless every weight fits.
    """
    slots = network.state_dict()
    _all_shapes_equal(slots, weights, path, arch)
    _all_names_there(slots, weights, path, arch)
    dtypes = Counter(
        str(tensor.dtype).removeprefix("torch.") for tensor in weights.values() if tensor.is_floating_point()
    )
    halves = sorted({"float16", "bfloat16"} & set(dtypes))
    if len(halves) == 1 and set(dtypes) == set(halves):
        network.to(dtype=next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point()))
    network.load_state_dict(dict(weights), strict=False)
    return (f"the weights are stored as {' and '.join(sorted(dtypes))}",) if halves else ()


def _all_shapes_equal(slots: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path, arch: str) -> None:
    wrong = [name for name in slots if name in weights and slots[name].shape != weights[name].shape]
    if wrong:
        name = wrong[0]
        message = (
            f"{len(wrong)} of {len(slots)} weights in {path} have another shape than in {arch}, first {name!r}: "
            f"{tuple(weights[name].shape)} in the file, {tuple(slots[name].shape)} in the network"
        )
        raise Rejected(message, code="shape-mismatch", hint="give the network's settings with --arch-arg NAME=VALUE")


def _all_names_there(slots: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path, arch: str) -> None:
    present = {_storage(slots[name]) for name in slots if name in weights}
    missing = [
        name
        for name in slots
        if name not in weights and not name.endswith(COUNTER) and _storage(slots[name]) not in present
    ]
    unexpected = [name for name in weights if name not in slots and not name.endswith(COUNTER)]
    surplus = f" and holds {len(unexpected)} that it does not know, first {unexpected[0]!r}" if unexpected else ""
    if missing:
        message = f"{path} lacks {len(missing)} of the {len(slots)} weights of {arch}, first {missing[0]!r}{surplus}"
        raise Rejected(message, code="missing-keys", hint="is it the right --arch, and the right --weights-key?")
    if unexpected:
        message = f"{path} holds {len(unexpected)} weights that {arch} does not know, first {unexpected[0]!r}"
        raise Rejected(message, code="unexpected-keys", hint="is it the right --arch, with the right --arch-arg?")


def _storage(tensor: Tensor) -> object:
    """Tied weights are one storage under two names; safetensors keeps only one of them."""
    return (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else id(tensor)
