"""Archives of torch and safetensors that want to run code, or lie about what is in them."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attacks.attack import INSIDE, Attack

MODELS = Path(__file__).parents[2] / "models"
Change = Callable[[str, bytes], bytes]


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def rewritten(path: Path, target: Path, change: Change, **extra: bytes) -> Path:
    """A copy of an archive whose members went through `change`, and with more members."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
        for name, data in extra.items():
            new.writestr(f"{root}/{name.replace('__', '/')}", data)
    return target


def keep(name: str, data: bytes) -> bytes:
    return data


def in_program(old: str, new: str) -> Change:
    """Replace text in the JSON of the program."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        assert old.encode() in data
        return data.replace(old.encode(), new.encode())

    return change


def under_a_name(name: str, data: bytes) -> bytes:
    """Code in the shape of a value that has the name of a table of notes."""
    if not name.endswith("models/model.json"):
        return data
    document = json.loads(data.replace(b'"name": "x"', b'"name": "metadata"'))
    values = document["graph_module"]["graph"]["tensor_values"]
    values["metadata"] = values.pop("x")
    values["metadata"]["sizes"][0] = {"as_expr": {"expr_str": RUN, "hint": None}}
    return json.dumps(document).encode()


def payload_change(name: str, data: bytes) -> bytes:
    return data.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith("weights_config.json") else data


def sample_inputs(data: bytes) -> Change:
    return lambda name, old: data if name.endswith("sample_inputs/model.pt") else old


def shouted(data: bytes) -> bytes:
    """An archive whose members have their names in capitals, which torch finds all the same."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name.upper(), old.read(name))
    return buffer.getvalue()


def torch_saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


RUN = "__import__('os').mkdir('ran')"
SYMBOL = "Symbol('s77', positive=True, integer=True)"
TREE = '{\\"type\\": null, \\"context\\": null, \\"children_spec\\": []}'
ENUM = '{\\"type\\": \\"builtins.dict\\", \\"context\\": \\"{\\\\\\"__enum__\\\\\\": 1}\\", \\"children_spec\\": []}'

PROGRAMS: dict[str, Change] = {
    "a pickled weight": payload_change,
    "an unsafe sample input": sample_inputs(torch_saved((Evil(Path("ran")),))),
    "an unsafe sample input in capitals": sample_inputs(shouted(torch_saved((Evil(Path("ran")),)))),
    "a sample input that is no archive": sample_inputs(pickle.dumps(Evil(Path("ran")), protocol=2)),
    "code in a shape": in_program(SYMBOL, RUN),
    "code in a shape, under the name of a table": under_a_name,
    "a tower of powers in a shape": in_program(SYMBOL, "9**99**99"),
    "a power of a power in a shape": in_program(SYMBOL, "Pow(9, Pow(99, 99))"),
    "a factorial in a shape": in_program(SYMBOL, "99999999!"),
    "a billion digits in a shape": in_program(SYMBOL, "Float(1, 999999999)"),
    "a size as exponent in a shape": in_program(SYMBOL, "9**s77"),
    "an attribute in a shape": in_program(SYMBOL, "Symbol.mro"),
    "code in a guard": in_program('"guards_code": []', f'"guards_code": ["{RUN}"]'),
    "code in a name": in_program('"name": "conv2d"', f'"name": "conv2d\\n{RUN}"'),
    "code in an argument name": in_program('"forward_arg_names": ["x"]', f'"forward_arg_names": ["x={RUN}"]'),
    "a library as operator": in_program("torch.ops.aten.conv2d.default", "torch.ops.load_library"),
    "a function as operator": in_program("torch.ops.aten.conv2d.default", "torch.load"),
    "a file as operator": in_program("torch.ops.aten.conv2d.default", "torch.ops.aten.from_file.default"),
    "a file that an operator writes": in_program("torch.ops.aten.conv2d.default", "torch.ops.aten.save.default"),
    "the class of an operator": in_program("torch.ops.aten.conv2d.default", "torch.ops.aten.conv2d.__class__"),
    "an enum in a tree": in_program(TREE, ENUM),
    "a parameter outside": in_program('"parameter_name": "conv1.weight"', '"parameter_name": "a\\"b"'),
    "no JSON": lambda name, data: b"{" if name.endswith("model.json") else data,
}
MEMBERS = ("data__constants__opaque_obj_0", "data__constants__custom_obj_0", "data__aotinductor__x.so")


def program(change: Change, folder: Path, **extra: bytes) -> Path:
    return rewritten(MODELS / "digits_resnet.pt", folder / INSIDE / "model.pt2", change, **extra)


def pickled(folder: Path, *, zipped: bool) -> Path:
    path = folder / INSIDE / "model.pt"
    torch.save({"model": Evil(folder / INSIDE / "ran")}, path, _use_new_zipfile_serialization=zipped)
    return path


def plain_pickle(folder: Path) -> Path:
    path = folder / INSIDE / "model.pt"
    path.write_bytes(pickle.dumps(Evil(folder / INSIDE / "ran")))
    return path


def weights(folder: Path, megabytes: int = 1) -> Path:
    path = folder / INSIDE / "weights.pt"
    torch.save({"conv.weight": torch.zeros(megabytes << 18)}, path)
    return path


def deflated(folder: Path) -> Path:
    """80 MB of zeros in less than 100 kB."""
    path = folder / INSIDE / "model.pt"
    with zipfile.ZipFile(weights(folder, 80)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    (folder / INSIDE / "weights.pt").unlink()
    return path


def twice(folder: Path) -> Path:
    return program(keep, folder, ARCHIVE_FORMAT=b"pt2")


def above(folder: Path) -> Path:
    return program(keep, folder, **{"..__x": b"x"})


def two_directories(folder: Path) -> Path:
    """The records of large archives stand where some readers look for them, and say that they are elsewhere: another
    archive is inside a member that nobody needs."""
    path, hidden = program(keep, folder), rewritten(MODELS / "digits_mlp.pt", folder / "hidden", keep).read_bytes()
    root = zipfile.ZipFile(path).namelist()[0].partition("/")[0]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{root}/extra/hidden", hidden)
    data = path.read_bytes()
    count, size, start = struct.unpack("<HII", data[-12:-2])
    record = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<IIQI", 0x07064B50, 0, data.index(hidden), 1)
    path.write_bytes(data[:-22] + record + locator + data[-22:])
    return path


def counted(folder: Path) -> Path:
    """The record at the end tells of fewer members than the directory has."""
    path = program(keep, folder)
    data = path.read_bytes()
    count = struct.unpack("<H", data[-12:-10])[0]
    path.write_bytes(data[:-14] + struct.pack("<HH", count - 1, count - 1) + data[-10:])
    return path


def between(folder: Path) -> Path:
    """A member that no directory knows, between two that are known."""
    path, other = folder / INSIDE / "model.pt2", folder / "other"
    with zipfile.ZipFile(program(keep, folder)) as old, zipfile.ZipFile(other, "w") as new:
        first, *rest = old.namelist()
        new.writestr(first, old.read(first))
        new.writestr("hidden", b"hidden")
        new.filelist.pop()
        for name in rest:
            new.writestr(name, old.read(name))
    return other.replace(path)


def behind(folder: Path) -> Path:
    path = program(keep, folder)
    path.write_bytes(path.read_bytes() + b"x")
    return path


def before(folder: Path) -> Path:
    path = program(keep, folder)
    path.write_bytes(b"PK\x03\x04" + path.read_bytes())
    return path


def safetensors(header: Any, data: bytes, folder: Path, length: int | None = None) -> Path:
    """A file with this header, which may be text that is no JSON, and a length that may be a lie."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path = folder / INSIDE / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, *shape: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


SAFETENSORS: dict[str, Callable[[Path], Path]] = {
    "a header longer than the file": partial(safetensors, {"w": entry(0, 8, 2)}, bytes(8), length=1 << 20),
    "offsets behind the end": partial(safetensors, {"w": entry(0, 1 << 30, 1 << 28)}, bytes(8)),
    "offsets that overlap": partial(safetensors, {"a": entry(0, 8, 2), "b": entry(4, 12, 2)}, bytes(12)),
    "a hole between tensors": partial(safetensors, {"a": entry(0, 4, 1), "b": entry(8, 12, 1)}, bytes(12)),
    "offsets in reverse": partial(safetensors, {"a": entry(8, 0, 2)}, bytes(8)),
    "a shape that the bytes contradict": partial(safetensors, {"a": entry(0, 8, 1 << 20)}, bytes(8)),
    "a shape that overflows": partial(safetensors, {"a": entry(0, 8, 1 << 62, 1 << 62)}, bytes(8)),
    "no JSON": partial(safetensors, '{"w": ', bytes(8)),
    "bytes behind the last tensor": partial(safetensors, {"a": entry(0, 4, 1)}, bytes(8)),
}


def shards(name: str, folder: Path) -> Path:
    """An index whose shard lies elsewhere."""
    path = folder / INSIDE / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": name}}), encoding="utf-8")
    return path


def ordinary(folder: Path) -> list[Path]:
    """A file of each kind as its writers write it."""
    good = safetensors({"w": entry(0, 8, 2)}, bytes(8), folder)
    return [MODELS / "digits_resnet.pt", program(keep, folder), weights(folder), good]


INDEXES = {
    "the folder above": ("../outside/secret.bin", "unsafe-archive"),
    "an absolute name": ("/etc/hostname", "unsafe-archive"),
    "a missing file": ("none", "not-found"),
}

ATTACKS = (
    *(Attack(f"program: {name}", partial(program, change), "unsafe-archive") for name, change in PROGRAMS.items()),
    *(
        Attack(f"program: the member {name}", partial(program, keep, **{name: b"x"}), "unsafe-archive")
        for name in MEMBERS
    ),
    Attack("program: code under models", partial(program, keep, models__evil=b'{"expr_str": "x()"}'), "unsafe-archive"),
    Attack("archive: two members of one name", twice, "unsafe-archive", "the same name"),
    Attack("archive: a member above its folder", above, "unsafe-archive", "odd name"),
    Attack("archive: bytes behind", behind, "unsafe-archive", "behind the archive"),
    Attack("archive: bytes before", before, "unsafe-archive"),
    Attack("archive: a member that no directory knows", between, "unsafe-archive", "read in two ways"),
    Attack("archive: a second directory", two_directories, "unsafe-archive", "read in two ways"),
    Attack("archive: fewer members than there are", counted, "unsafe-archive", "read in two ways"),
    Attack("archive: 80 MB in 100 kB", deflated, "limit", "inflate to"),
    Attack("pickle that runs code, zipped", partial(pickled, zipped=True), "needs-trust", "mkdir"),
    Attack("pickle that runs code, as before torch 1.6", partial(pickled, zipped=False), "needs-trust", "mkdir"),
    Attack("pickle without torch", plain_pickle, "plain-pickle"),
    *(Attack(f"safetensors: {name}", build, "truncated") for name, build in SAFETENSORS.items()),
    *(Attack(f"safetensors index: {name}", partial(shards, where), code) for name, (where, code) in INDEXES.items()),
)
