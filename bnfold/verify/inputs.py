"""What the user says of inputs: their shapes, the sizes of dynamic axes, and data of their own.

    parse_input("image:batch,3,h,w:float16")
    parse_dim("batch=1,2")
    read_data(Path("images.npz"), signature)

Everything that cannot be meant is a `UsageError` that shows the right form.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bnfold.errors import UsageError
from bnfold.model import Arrays, Port, Signature
from bnfold.verify.result import ProbeRecord

Array = NDArray[Any]
Sizes = Mapping[str, int]

HALF = ("float16", "bfloat16")
FLOATS = (*HALF, "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class InputSpec:
    """One `--input`: `name` None means the next input in order; a string in `shape` is a dynamic axis."""

    name: str | None
    shape: tuple[int | str, ...]
    dtype: str | None


@dataclass(frozen=True, eq=False)
class Probe:
    """One input of the whole model. `sizes` are those of its dynamic axes."""

    family: str
    feeds: Arrays
    sizes: Sizes

    def records(self) -> tuple[ProbeRecord, ...]:
        """What was run, one record per input."""
        return tuple(
            ProbeRecord(name, self.family, value.shape, hashlib.sha256(value.tobytes()).hexdigest())
            for name, value in self.feeds.items()
        )


def parse_input(text: str) -> InputSpec:
    """Read `[NAME:]DIMS[:DTYPE]`, such as `1,3,224,224` or `image:batch,3,h,w:float16`. Raises `UsageError`."""
    parts = text.split(":")
    dtype = parts.pop() if len(parts) > 1 and parts[-1] in (*FLOATS, *INTEGERS, "bool") else None
    dims, name = parts[-1], ":".join(parts[:-1]) or None
    words = dims.split(",") if dims else []
    misplaced = "," in (name or "") or (not words and name is None)
    if misplaced or not all(re.fullmatch(r"[1-9]\d*|[A-Za-z_]\w*", word) for word in words):
        raise UsageError(
            f"--input {text!r} is not [NAME:]DIMS[:DTYPE]", code="bad-input", hint="--input image:1,3,224,224:float32"
        )
    return InputSpec(name, tuple(int(word) if word[0].isdigit() else word for word in words), dtype)


def parse_dim(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `NAME=N[,N...]`. Raises `UsageError`."""
    found = re.fullmatch(r"([^=]+)=([1-9]\d*(?:,[1-9]\d*)*)", text)
    if not found:
        raise UsageError(f"--dim {text!r} is not NAME=N[,N...]", code="bad-dim", hint="--dim batch=1,2")
    return found[1], tuple(int(size) for size in found[2].split(","))


def with_inputs(signature: Signature, specs: Sequence[InputSpec]) -> Signature:
    """The signature with the user's shapes and dtypes laid over it. Raises `UsageError` where they contradict it."""
    ports = list(signature.inputs)
    for position, spec in enumerate(specs):
        index = _position(ports, spec, position)
        ports[index] = _refined(ports[index], spec)
    return Signature(tuple(ports), signature.outputs)


def _position(ports: Sequence[Port], spec: InputSpec, position: int) -> int:
    if spec.name is None:
        if position < len(ports):
            return position
        raise UsageError(
            f"--input is given {position + 1} times, but the model has {len(ports)} inputs", code="bad-input"
        )
    names = [port.name for port in ports]
    if spec.name not in names:
        raise UsageError(f"the model has no input {spec.name!r}; it has {', '.join(names)}", code="bad-input")
    return names.index(spec.name)


def _refined(port: Port, spec: InputSpec) -> Port:
    """A word leaves an axis open: where the model has a size, that is it."""
    known = (None,) * len(spec.shape) if port.shape is None else port.shape
    fits = len(known) == len(spec.shape) and all(
        isinstance(given, str) or size in (None, given) or isinstance(size, str)
        for size, given in zip(known, spec.shape, strict=True)
    )
    if not fits or spec.dtype not in (None, port.dtype):
        raise UsageError(
            f"input {port.name} is {port.dtype} {shape_text(port.shape)}, not {spec.dtype or port.dtype} "
            f"{shape_text(spec.shape)}",
            code="bad-input",
        )
    pairs = zip(known, spec.shape, strict=True)
    return replace(port, shape=tuple(size if isinstance(size, int) else given for size, given in pairs))


def shape_text(shape: Sequence[int | str | None] | None) -> str:
    return "of any shape" if shape is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


KEYS = "an .npz file has one array for each input, under its name (np.savez(path, name=array)), and nothing else"


def read_data(path: Path, signature: Signature) -> Iterator[Probe]:
    """The user's own inputs: .npz by input name (or in order), .npy for a model with one input, or a folder of both.

    Raises `UsageError` if a file is not readable as such, or does not fit the inputs.
    """
    files = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".npy")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path} holds no .npz or .npy file", code="bad-data")
    for file in files:
        yield Probe(f"data:{file.name}", _read(file, signature), {})


def _read(file: Path, signature: Signature) -> Arrays:
    try:
        loaded = np.load(file, allow_pickle=False)
        arrays = dict(loaded) if file.suffix == ".npz" else {signature.inputs[0].name: loaded}
    except FileNotFoundError as error:
        raise UsageError(f"{file} does not exist", code="bad-data") from error
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{file} is no .npz or .npy file of plain numbers", code="bad-data") from error
    names = [port.name for port in signature.inputs]
    if len(arrays) != len(names):
        raise UsageError(
            f"{file.name} holds {len(arrays)} arrays, but the model has inputs {', '.join(names)}",
            code="bad-data",
            hint=KEYS,
        )
    unnamed = {f"arr_{position}" for position in range(len(names))}  # as np.savez calls what it is given by position
    if set(arrays) == unnamed:
        arrays = dict(zip(names, (arrays[f"arr_{i}"] for i in range(len(names))), strict=True))
    if set(arrays) != set(names):
        held = ", ".join(arrays)
        message = f"{file.name} holds {held}, but the model's inputs are {', '.join(names)}"
        raise UsageError(message, code="bad-data", hint=KEYS)
    return {port.name: _fitting(file, port, arrays[port.name]) for port in signature.inputs}


def _fitting(file: Path, port: Port, value: Array) -> Array:
    known = port.shape if port.shape is not None else value.shape
    fits = len(known) == value.ndim and all(
        not isinstance(size, int) or size == given for size, given in zip(known, value.shape, strict=True)
    )
    if not fits:
        raise UsageError(
            f"{file.name} has shape {list(value.shape)} for input {port.name}, which is {shape_text(port.shape)}",
            code="bad-data",
        )
    return value.astype(numpy_dtype(port.dtype))


def numpy_dtype(name: str) -> Any:
    """The dtype of a port: numpy's own, or bfloat16 of ml_dtypes."""
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
