"""Where the numbers of a tensor may lie: in a plain file of the model's own folder, wholly inside it.

Every tensor of the proto is looked at before anything opens a data file. A link leads to a place that the name does
not tell, so a linked file is refused, unless it lies in a folder that the caller names: caches of model hubs keep
files once and link to them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from bnfold.errors import Rejected
from bnfold.frontends.onnx.protos import nbytes, tensors

CODE = "external-data"
LONGEST = 1024


def check_external(proto: onnx.ModelProto, path: Path, linked: Sequence[Path] = ()) -> None:
    """Raise `Rejected` (`external-data`) for the first tensor that is not where it may be. `linked` are the folders
    into which links may lead; where one does, the tensor is told the whole name of the file, or onnx_ir refuses it."""
    checked: dict[str, tuple[Path, int]] = {}
    for tensor in tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in checked:
            checked[location] = _found(location, path, linked)
        file, size = checked[location]
        offset, length = (_count(entries.get(key, "0")) for key in ("offset", "length"))
        if offset + max(length, nbytes(tensor) or 0) > size:
            raise Rejected(f"{location} is truncated: tensor {tensor.name!r} ends behind it", code=CODE)
        for entry in tensor.external_data:
            if entry.key == "location" and file.is_absolute():
                entry.value = str(file)


def _found(location: str, path: Path, linked: Sequence[Path]) -> tuple[Path, int]:
    """The file of that name beside the model, whole where it is a link, and its bytes."""
    if (odd := _odd(location)) is not None:
        raise Rejected(f"{path.name} wants data from {location[:80]!r}: {odd}", code=CODE)
    file = path.parent / location
    try:
        found = os.stat(file)
    except OSError:
        raise Rejected(f"{path.name} needs the file {location}, which is not there", code=CODE) from None
    if not stat.S_ISREG(found.st_mode):
        raise Rejected(f"{path.name} wants data from {location}, which is no regular file", code=CODE)
    if not _leads_elsewhere(file, path.parent, found):
        return Path(location), found.st_size
    whole = file.resolve()
    if not _is_inside(whole, linked):
        message = f"{path.name} wants data from {location}, which is a link that leads elsewhere"
        hint = f"--allow-linked-data {whole.parent}, if the file there belongs to the model"
        raise Rejected(message, code=CODE, hint=hint)
    return whole, found.st_size


def _odd(location: str) -> str | None:
    """What is wrong with a name, on whatever system."""
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    if not location or len(location) > LONGEST or not location.isprintable():
        return "that is no file name"
    if PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor or ".." in parts:
        return "that is outside its folder"
    return None


def _leads_elsewhere(file: Path, folder: Path, found: os.stat_result) -> bool:
    """Whether the file has another name that may lie anywhere, or lies in another folder itself."""
    return found.st_nlink > 1 or not _is_inside(file, [folder])


def _is_inside(file: Path, folders: Sequence[Path]) -> bool:
    return any(file.resolve().is_relative_to(folder.resolve()) for folder in folders)


def _count(text: str) -> int:
    """A number of bytes; more than any file has where the text is none."""
    return int(text) if text.isdecimal() and len(text) < 20 else 1 << 63
