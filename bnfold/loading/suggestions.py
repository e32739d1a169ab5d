"""The exact command to run next: what a file itself lets one guess, without running any of its code.

`peek` reads a pickle with an unpickler that builds nothing but empty stand-ins and shapes. `find_network` reads Python
files as text. What they find is only ever printed, never used.
"""

from __future__ import annotations

import ast
import io
import pickle
import shlex
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnfold.loading.source import Source

MAX_PICKLE = 64 << 20
PICKLES = ("/data.pkl", "/constants.pkl")
MAX_SCANNED_FILES = 200
MAX_VISITS, DEEPEST = 100_000, 40
"""Of values of a pickle, which may hold one another in more ways than there is time for."""
AXES = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}
"""What stands for the sizes of an input, by the first weight's rank, where the checkpoint does not say them: names, of
which the export makes axes of any size, so that no number is invented."""


def command(path: Path, source: Source, *more: str, guess: str | None = None) -> str:
    """The command as it was typed, and `more`; where it was none, or one that reads other files, an export of this."""
    words = ["bnfold", *(source.typed or _export(path, source)), *more]
    if guess is not None and not any(word.startswith(("-i", "--input")) for word in words):
        words += ["-i", guess]
    return shlex.join(words)


def _export(path: Path, source: Source) -> list[str]:
    words = ["export", str(path)]
    if source.arch is not None:
        words += ["--arch", source.arch]
    words += [word for key, value in source.arch_args.items() for word in ("--arch-arg", f"{key}={value}")]
    if source.app_dir != Path():
        words += ["--app-dir", str(source.app_dir)]
    if source.weights_key is not None:
        words += ["--weights-key", source.weights_key]
    words += [word for name in source.trust_types for word in ("--trust-type", name)]
    return [*words, *["--trust-pickle"] * source.trust_pickle, *source.given]


def input_guess(shapes: Mapping[str, Sequence[int]], sizes: Any = None) -> str | None:
    """An `--input` that fits the first weight: its input channels, and sizes where the training arguments say them."""
    first = next(((name, shape) for name, shape in shapes.items() if len(shape) >= 2), None)
    if first is None:
        return None
    name, shape = first
    if len(shape) == 2:
        return "batch,16:int64" if "emb" in name.lower() else f"batch,{shape[1]}"
    if len(shape) not in AXES:
        return None
    spatial = _told_size(sizes, len(shape) - 2) or AXES[len(shape)]
    return ",".join(["batch", str(shape[1]), *map(str, spatial)])


def _told_size(arguments: Any, dimensions: int) -> tuple[int, ...] | None:
    """`img_size=32` or `input_size=(3, 32, 32)` of a training script."""
    settings = arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})
    for name in ("input_size", "img_size", "imgsz", "image_size"):
        value = settings.get(name)
        if isinstance(value, int) and value > 0:
            return (value,) * dimensions
        if isinstance(value, list | tuple) and len(value) >= dimensions and all(isinstance(v, int) for v in value):
            return tuple(value[-dimensions:])
    return None


class _StandIn:
    """Takes the place of every class and function that a pickle names; remembers state, runs nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__[str(key)] = value

    def append(self, item: Any) -> None:
        """A list subclass gets its items so."""

    extend = append


class _Shape(_StandIn):
    """Takes the place of a tensor."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments)
        size = next((item for item in arguments if isinstance(item, tuple)), None)
        inner = next((item for item in arguments if isinstance(item, _Shape)), None)
        self.shape: tuple[int, ...] = inner.shape if inner is not None else tuple(size or ())


class _Names(dict[str, Any]):
    """Takes the place of an OrderedDict, whose further state (a state_dict's versions) is of no interest."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Peek(pickle._Unpickler):
    """The unpickler in Python: the one in C reserves memory for whatever memo index a file names."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild"):
            return type(name, (_Shape,), {})
        return _Names if (module, name) == ("collections", "OrderedDict") else type("StandIn", (_StandIn,), {})

    def persistent_load(self, identifier: Any) -> Any:
        return None


def peek(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in an archive of torch.save or TorchScript, in order of the file.

    Empty where that cannot be told: it only serves a guess, and a file too odd to guess from gets a hint without one.
    """
    found: dict[str, tuple[int, ...]] = {}
    with suppress(Exception), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(PICKLES) and member.file_size <= MAX_PICKLE:
                with suppress(Exception):
                    _collect(_Peek(io.BytesIO(archive.read(member))).load(), found)
    return found


def _collect(whole: Any, found: dict[str, tuple[int, ...]]) -> None:
    """The shapes in a value, depth first and in order, so far as `MAX_VISITS` goes."""
    waiting = [("", whole, 0)]
    for _ in range(MAX_VISITS):
        if not waiting:
            return
        name, value, depth = waiting.pop()
        if isinstance(value, _Shape):
            found.setdefault(name, value.shape)
            continue
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        inner = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        inner = inner if depth < DEEPEST else {}
        parts = [(key, item) for key, item in inner.items() if isinstance(item, dict | list | tuple | _StandIn)]
        waiting += [(f"{name}.{key}", item, depth + 1) for key, item in reversed(parts)]


@dataclass(frozen=True)
class Found:
    """A class that could be the network of a state_dict, in the words of `--arch`."""

    arch: str
    folder: Path
    attributes: tuple[str, ...]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Names of weights in the order in which the class makes its layers; a file may have sorted them."""
        rank = {attribute: position for position, attribute in enumerate(self.attributes)}
        return sorted(names, key=lambda name: rank[name.partition(".")[0]])


def find_network(names: Iterable[str], folders: Sequence[Path]) -> Found | None:
    """The `nn.Module` class in the Python files of `folders` whose attributes fit the names of a state_dict best."""
    wanted = {name.partition(".")[0] for name in names}
    fits: list[Found] = []
    for folder in folders:
        for file in sorted(folder.glob("*.py"))[:MAX_SCANNED_FILES]:
            fits += [Found(f"{file.stem}:{name}", folder, attributes) for name, attributes in _classes(file, wanted)]
        if fits:
            break
    return min(fits, key=lambda found: len(found.attributes), default=None)


def _classes(file: Path, wanted: set[str]) -> list[tuple[str, tuple[str, ...]]]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return []
    result = []
    for item in tree.body:
        if isinstance(item, ast.ClassDef) and item.bases and _builds_without_arguments(item):
            attributes = _attributes(item)
            if wanted <= set(attributes):
                result.append((item.name, attributes))
    return result


def _attributes(network: ast.ClassDef) -> tuple[str, ...]:
    """Every NAME of a class that is assigned as `self.NAME = ...`, in the order of the source."""
    targets = [
        target
        for node in ast.walk(network)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    ]
    targets.sort(key=lambda target: (target.lineno, target.col_offset))
    return tuple(dict.fromkeys(target.attr for target in targets))


def _builds_without_arguments(network: ast.ClassDef) -> bool:
    for item in network.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            required = len(item.args.posonlyargs) + len(item.args.args) - 1 - len(item.args.defaults)
            return required <= 0 and all(default is not None for default in item.args.kw_defaults)
    return True


def named_architecture(checkpoint: Any) -> tuple[str, ...] | None:
    """What a training script's own record of its model says, as words for the command line (printed only)."""
    if not isinstance(checkpoint, Mapping):
        return None
    arguments = checkpoint.get("args") or checkpoint.get("hyper_parameters") or {}
    settings = arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})
    name = next((n for n in (settings.get("model"), checkpoint.get("arch"), settings.get("arch")) if _is_name(n)), None)
    if name is None:
        return None
    if find_spec("timm") is not None:
        classes = settings.get("num_classes")
        more = ("--arch-arg", f"num_classes={classes}") if isinstance(classes, int) else ()
        return ("--arch", "timm:create_model", "--arch-arg", f"model_name={name}", *more)
    if find_spec("torchvision") is not None:
        return ("--arch", f"torchvision.models:{name}")
    return None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.replace(".", "_").isidentifier()
