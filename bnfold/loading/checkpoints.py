"""What torch.save wrote: always opened with `weights_only=True`, and taken apart until weights or a network are left.

Beside tensors a training script saves its arguments, counters and numpy numbers. `harmless()` is the short list of such
types: each only holds data. Anything else in the pickle is refused, unless the caller trusts the whole file
(`--trust-pickle`) or names each type (`--trust-type`).
"""

from __future__ import annotations

import argparse
import collections
import importlib
import pathlib
import re
import types
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import Rejected, UsageError
from bnfold.loading.archives import check_archive
from bnfold.loading.kinds import Kind
from bnfold.loading.source import Source, brief
from bnfold.loading.suggestions import command, input_guess, peek

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

WEIGHT_KEYS = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "model", "model_state_dict", "state_dict")
"""Where checkpoints keep their weights; averaged weights first, because they are the ones that were evaluated."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint held: a `weights` dict or a whole `network`, and where it was found (None: at the top)."""

    key: str | None
    weights: dict[str, Tensor] | None = None
    network: nn.Module | None = None
    notes: tuple[str, ...] = ()


def harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Types beyond torch's own list that hold data and do nothing when built.

    Paths become pure paths, which never touch a disk and can be built on any system.
    """
    plain: list[Any] = [argparse.Namespace, types.SimpleNamespace, collections.defaultdict, dict, list, int, float, str]
    scalars = [
        type(np.dtype(name)) for name in ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
    ]
    rebuild: list[Any] = [np.dtype, np.ndarray, *scalars]
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        internals = importlib.import_module("numpy._core.multiarray")
        rebuild += [(getattr(internals, name), f"{module}.{name}") for name in ("scalar", "_reconstruct")]
    paths = [
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for pure, names in (
            (pathlib.PurePosixPath, ("PosixPath", "PurePosixPath")),
            (pathlib.PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for name in names
    ]
    return [*plain, *rebuild, *paths]


def read_pickle(path: Path, kind: Kind, source: Source) -> Any:
    """The object that torch.save wrote. Raises `Rejected` (`needs-trust`, `unsafe-archive`, `invalid-checkpoint`)."""
    import torch

    allowed = [*harmless(), *(_trusted_type(name) for name in source.trust_types)]
    with path.open("rb") as file:
        if kind is Kind.TORCH_ZIP:
            check_archive(path, file, limits=not source.no_limits).close()
            file.seek(0)
        try:
            with torch.serialization.safe_globals(allowed):
                wanted = [] if source.trust_pickle else _unsafe_globals(path, kind)
                if wanted:
                    raise refusal(path, wanted, source)
                return torch.load(file, map_location="cpu", weights_only=not source.trust_pickle)
        except Rejected:
            raise
        except Exception as error:
            raise _unreadable(path, error, source) from error


def _unsafe_globals(path: Path, kind: Kind) -> list[str]:
    """What torch would refuse to import; only zip archives can be asked, an old file is tried (safely) at once."""
    import torch

    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) if kind is Kind.TORCH_ZIP else []


def _unreadable(path: Path, error: Exception, source: Source) -> Rejected:
    unsupported = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
    if unsupported is not None:
        return refusal(path, [unsupported.group(1)], source)
    text = f"{path} cannot be read as a torch checkpoint ({type(error).__name__}: {brief(str(error))})"
    hint = None
    if source.trust_pickle and isinstance(error, ModuleNotFoundError | AttributeError):
        hint = "make the code of the network importable: install it, or name its folder with --app-dir and --arch"
    return Rejected(text, code="invalid-checkpoint", hint=hint)


def refusal(path: Path, wanted: list[str], source: Source) -> Rejected:
    """A pickle that wants to import more than data: what it wanted, and the command that trusts it."""
    listed = ", ".join(map(brief, wanted[:4])) + (f" and {len(wanted) - 4} more" if len(wanted) > 4 else "")
    message = f"{path} is a pickle that would run code when loaded (it wants {listed})"
    types = [word for name in wanted for word in ("--trust-type", name)] if source.trust_types else []
    hint = command(path, source, *(types or ["--trust-pickle"]), guess=input_guess(peek(path)))
    return Rejected(message, code="needs-trust", hint=hint, details={"wants": list(map(brief, wanted))})


def _trusted_type(name: str) -> Any:
    """Import what `--trust-type PKG.CLASS` names."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute), name
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--trust-type {name} names no class that can be imported ({error})") from None


def take_apart(loaded: Any, path: Path, source: Source) -> Contents:
    """Find the weights or the network in what was loaded. Raises `Rejected` (`no-weights`)."""
    from torch import nn

    wanted = source.weights_key
    if wanted is None:
        found = _descend(loaded, None)
    else:
        found = _descend(loaded.get(wanted), wanted) if isinstance(loaded, Mapping) else None
    if found is None:
        looked_for = "weights that bnfold finds" if wanted is None else f"weights under {wanted!r}"
        hint = "--weights-key KEY says where they are" if isinstance(loaded, Mapping) else None
        raise Rejected(f"{path} holds no {looked_for}, only {_held(loaded)}", code="no-weights", hint=hint)
    key, value = found
    notes = () if key is None else (f"using the weights under {key!r}",)
    if isinstance(value, nn.Module):
        return Contents(key, network=value, notes=notes)
    weights, stripped = without_prefixes(value)
    return Contents(key, weights=weights, notes=(*notes, *(f"removed the prefix {prefix!r}" for prefix in stripped)))


def _held(loaded: Any) -> str:
    """What is in a checkpoint, for a message."""
    names = [brief(str(name)) for name in loaded] if isinstance(loaded, Mapping) else []
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return listed or f"a {type(loaded).__name__}"


def _descend(value: Any, key: str | None, depth: int = 0) -> tuple[str | None, Any] | None:
    """Depth-first through the usual keys to the first state_dict or network."""
    from torch import nn

    if isinstance(value, nn.Module):
        return key, value
    if not isinstance(value, Mapping) or depth > 4:
        return None
    if is_state_dict(value):
        return key, value
    for name in (*WEIGHT_KEYS, "module"):
        inner = _descend(value.get(name), name if key is None else f"{key}.{name}", depth + 1)
        if inner is not None:
            return inner
    return None


def is_state_dict(value: Any) -> bool:
    """A mapping from names to tensors. (`_metadata` is an attribute; "extra state" of a module may be anything.)"""
    from torch import Tensor

    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        return False
    items = [item for name, item in value.items() if not name.endswith("_extra_state")]
    return bool(items) and all(isinstance(item, Tensor) for item in items)


def without_prefixes(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Strip what DataParallel and torch.compile put before every name."""
    result, stripped = dict(weights), list[str]()
    while True:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in result)), None)
        if prefix is None:
            return result, stripped
        result = {name.removeprefix(prefix): tensor for name, tensor in result.items()}
        stripped.append(prefix)


@contextmanager
def import_path(folder: Path | None) -> Iterator[None]:
    """Put a folder first on the import path while a pickle or an architecture is imported."""
    import sys

    if folder is None:
        yield
        return
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
