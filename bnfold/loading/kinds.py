"""What a file is, told from its bytes and never from its name.

`sniff(path)` reads a few kilobytes and answers with a `Kind`, or raises `Rejected` with a sentence that says what the
file looks like instead. It imports no framework.
"""

from __future__ import annotations

import json
import os
import stat
import tarfile
import zipfile
from enum import StrEnum
from io import BufferedReader
from pathlib import Path, PurePosixPath

from bnfold.errors import EnvironmentFailure, Rejected


class Kind(StrEnum):
    """The containers that bnfold opens."""

    ONNX = "onnx"
    PT2 = "pt2"
    TORCHSCRIPT = "torchscript"
    TORCH_ZIP = "torch_zip"
    TORCH_LEGACY = "torch_legacy"
    SAFETENSORS = "safetensors"
    SAFETENSORS_INDEX = "safetensors_index"


LOOKS_LIKE: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x1f\x8b", "a gzip archive: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (0, b"BZh", "a bzip2 archive: unpack it first"),
    (0, b"\xfd7zXZ", "an xz archive: unpack it first"),
    (0, b"\x93NUMPY", "a numpy array (.npy)"),
    (0, b"\x89HDF", "an HDF5 file (Keras or another framework)"),
    (0, b"GGUF", "a GGUF language model"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ORTM", "an ONNX Runtime flatbuffer (.ort): use the .onnx file that it was made from"),
    (0, b"version https://git-lfs", "a git-lfs pointer: run `git lfs pull` to get the file itself"),
    (0, b"7767517", "an ncnn model"),
)
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""How every torch.save file begins that was written before torch 1.6: a pickle of the number 0x1950a86a20f9469cfc6c."""

MAX_SAFETENSORS_HEADER = 100 << 20
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MODEL_FIELDS = {1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES}
MODEL_FIELDS |= {14: BYTES, 20: BYTES, 25: BYTES, 26: BYTES}
"""The fields of `onnx.ModelProto` with their wire types; 7 is the graph."""
GRAPH_FIELD = 7


def sniff(path: Path) -> Kind:
    """The kind of the file at `path`, told by content.

    Raises `Rejected` (`not-found`, `is-directory`, `empty-file`, `truncated`, `unknown-format`) or
    `EnvironmentFailure` (`unreadable`).
    """
    with open_regular(path) as file:
        head = file.read(512)
        if not head:
            raise Rejected(f"{path} is empty", code="empty-file")
        kind = _zip_kind(path, head) or _legacy_kind(path, head) or _safetensors_kind(path, file, head)
        kind = kind or _onnx_kind(path, file)
    if kind is None:
        raise Rejected(
            f"{path} is no model that bnfold reads: it looks like {_looks_like(head)}", code="unknown-format"
        )
    return kind


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, or say in one sentence why not."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise Rejected(f"{path} is a directory, not a model file", code="is-directory", hint=_inside(path))
        if not stat.S_ISREG(status.st_mode):
            raise Rejected(f"{path} is not a regular file", code="not-a-file")
        return path.open("rb")
    except FileNotFoundError:
        raise Rejected(f"{path} does not exist", code="not-found") from None
    except PermissionError:
        raise EnvironmentFailure(f"{path} may not be read: permission denied", code="unreadable") from None
    except OSError as error:
        raise EnvironmentFailure(f"{path} cannot be read: {error.strerror}", code="unreadable") from None
    except ValueError:
        raise Rejected(f"{str(path)!r} is no file name", code="not-found") from None


def _inside(folder: Path) -> str | None:
    """A folder that holds exactly one likely model was probably meant as that model."""
    try:
        found = [
            entry for entry in sorted(folder.iterdir()) if entry.suffix in (".onnx", ".pt", ".pt2", ".safetensors")
        ]
    except OSError:
        return None
    return f"did you mean {found[0]}?" if len(found) == 1 else None


def _zip_kind(path: Path, head: bytes) -> Kind | None:
    if not head.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        raise Rejected(f"{path} is a damaged or truncated archive", code="truncated") from None
    below_root = {name.partition("/")[2] for name in names}
    if "archive_format" in below_root:
        return Kind.PT2
    if "serialized_exported_program.json" in names:
        message = f"{path} is a torch.export archive of torch 2.7 or older"
        raise Rejected(message, code="old-archive", hint="load it with that torch and save it with torch 2.8 or later")
    if "constants.pkl" in below_root and any(name.startswith("code/") for name in below_root):
        return Kind.TORCHSCRIPT
    if "data.pkl" in below_root:
        return Kind.TORCH_ZIP
    what = "an .npz archive of numpy arrays" if all(name.endswith(".npy") for name in names) else _zip_contents(names)
    raise Rejected(f"{path} is no model that bnfold reads: it looks like {what}", code="unknown-format")


def _zip_contents(names: list[str]) -> str:
    if "model.weights.h5" in names:
        return "a Keras model"
    models = [name for name in names if PurePosixPath(name).suffix in (".onnx", ".pt", ".pth", ".safetensors")]
    return f"a zip archive that holds {models[0]!r}: unpack it first" if models else "a zip archive without a model"


def _legacy_kind(path: Path, head: bytes) -> Kind | None:
    if head.startswith(LEGACY_MAGIC):
        return Kind.TORCH_LEGACY
    if head[257:262] == b"ustar" and _is_legacy_tar(path):
        hint = 'load it with the torch that wrote it, then `torch.save(model.state_dict(), "weights.pt")`'
        raise Rejected(f"{path} is a tar checkpoint of torch 0.1", code="old-archive", hint=hint)
    if head[0] == 0x80 and head[1] in (2, 3, 4, 5) and head[2:3] in b"cX}]\x95(" + b"\x8c":
        hint = 'in your training code: `torch.save(model.state_dict(), "weights.pt")`'
        raise Rejected(f"{path} is a plain Python pickle, not a torch file", code="plain-pickle", hint=hint)
    return None


def _is_legacy_tar(path: Path) -> bool:
    try:
        with tarfile.open(path) as archive:
            return {"sys_info", "pickle", "storages", "tensors"} & set(archive.getnames()) != set()
    except tarfile.TarError:
        return False


def _safetensors_kind(path: Path, file: BufferedReader, head: bytes) -> Kind | None:
    length, size = int.from_bytes(head[:8], "little"), path.stat().st_size
    if head[8:9] != b"{" or length > MAX_SAFETENSORS_HEADER:  # a header of 123 bytes begins the file with a brace too
        return _index_kind(path, file) if head[:1] == b"{" else None
    if 8 + length > size:
        raise Rejected(f"{path} is a truncated safetensors file: its header is not all there", code="truncated")
    return Kind.SAFETENSORS


def _index_kind(path: Path, file: BufferedReader) -> Kind | None:
    file.seek(0)
    try:
        index = json.loads(file.read(MAX_SAFETENSORS_HEADER))
    except (ValueError, RecursionError):
        return None
    return Kind.SAFETENSORS_INDEX if isinstance(index, dict) and isinstance(index.get("weight_map"), dict) else None


def _onnx_kind(path: Path, file: BufferedReader) -> Kind | None:
    """Walk the top-level protobuf fields, seeking over their contents: a graph among known fields is an ONNX model."""
    size, seen = path.stat().st_size, set[int]()
    file.seek(0)
    while (start := file.tell()) < size:
        tag = _varint(file)
        field, wire = (tag >> 3, tag & 7) if tag is not None else (0, 0)
        if MODEL_FIELDS.get(field) != wire:
            break
        seen.add(field)
        length = _varint(file)
        if length is None or (wire == BYTES and file.tell() + length > size):
            break
        file.seek(length if wire == BYTES else 0, os.SEEK_CUR)
    else:
        start = size
    if start == size and GRAPH_FIELD in seen:
        return Kind.ONNX
    if 1 in seen and (GRAPH_FIELD in seen or 8 in seen):
        raise Rejected(f"{path} is a truncated or damaged ONNX file", code="truncated")
    return None


def _varint(file: BufferedReader) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value
    return None


def _looks_like(head: bytes) -> str:
    for offset, magic, what in LOOKS_LIKE:
        if head[offset : offset + len(magic)] == magic:
            return what
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page: the download probably needs a login or another link"
    if start.startswith((b"<?xml", b"<net")):
        return "an XML file"
    if start.startswith(b"{"):
        return "a JSON file"
    if not head.strip(b"\0"):
        return "nothing but zeros: the download or copy did not finish"
    return "text" if _is_text(head) else "unknown binary data"


def _is_text(head: bytes) -> bool:
    try:
        return head.decode("utf-8", errors="strict" if len(head) < 512 else "ignore").isprintable() or (
            b"\0" not in head and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
        )
    except UnicodeDecodeError:
        return False
