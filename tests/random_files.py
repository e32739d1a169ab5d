"""Damaged and odd files: each is refused in one sentence, or read and folded into a file that is valid.

    python tests/random_files.py --dialect onnx --count 200000 --jobs 2       bytes of ONNX files changed
    python tests/random_files.py --dialect structure --count 20000            valid protobuf, odd graphs
    python tests/random_files.py --dialect archive --count 20000              .pt2 and .pt archives
    python tests/random_files.py --dialect safetensors --count 30000          mostly their headers

A file is wrong if anything but a `BnfoldError` is raised, if it takes more than `SECONDS`, if memory grows by more than
`GROWTH` bytes, or if what is folded cannot be read again. One that ends the process (a library in C++ that aborts) is
given to `bnfold fold --no-check`, which must say so in one sentence, end in 4 and write nothing. The tally says how far
the files came. A seed gives the same file on every machine.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import numpy as np
import onnx
import random_onnx_graphs
from onnx import AttributeProto, TensorProto
from random_harness import Campaign, Fault, Tally, Wrong
from random_onnx_scope import Undrawable

from bnfold.errors import BnfoldError
from bnfold.frontends import onnx as frontend
from bnfold.loading import load

SECONDS = 10
GROWTH = 1 << 30
FILES_OF_A_MODEL = 40
MODELS = Path(__file__).parents[1] / "models"
ODD_NUMBERS = (0, 1, -1, 2, 127, 128, 255, 1 << 16, 1 << 31, (1 << 31) - 1, (1 << 63) - 1, -(1 << 63))
ODD_NAMES = ("", "x", "\x1b[31m", "\u202e", "../x", "y" * 300, "none")

Random = np.random.Generator


@dataclass
class Files(Tally):
    """How far the files came: refused (by code), read, folded."""

    reached: Counter[str] = field(default_factory=Counter)
    TITLES: ClassVar[Mapping[str, str]] = {"counts": "files", "reached": "stages"}


# --- bytes ------------------------------------------------------------------------------------------------------------


def place(random: Random, size: int) -> slice:
    """A short piece of so many bytes."""
    start = int(random.integers(size + 1))
    return slice(start, min(size, start + int(random.integers(1, 33))))


def damaged(data: bytes, random: Random) -> bytes:
    """The bytes with one to four changes."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        at, other = place(random, len(changed)), place(random, len(changed))
        match random.integers(8):
            case 0 | 1 if at.start < len(changed):
                changed[at.start] ^= 1 << int(random.integers(8))
            case 2 if at.start < len(changed):
                changed[at.start] = int(random.choice([0, 1, 127, 128, 255]))
            case 3:
                del changed[at]
            case 4:
                changed[at.start : at.start] = changed[other]
            case 5:
                changed[at] = random.bytes(at.stop - at.start)
            case 6 if random.integers(4) == 0:
                del changed[at.start :]
            case _:
                changed[at], changed[other] = changed[other], changed[at]
    return bytes(changed)


# --- ONNX -------------------------------------------------------------------------------------------------------------


@cache
def drawn(seed: int) -> bytes:
    """A model of `random_onnx_graphs.py`; another one where it has none for this seed."""
    try:
        return random_onnx_graphs.draw(seed).model.SerializeToString()
    except Undrawable:
        return drawn(seed + (1 << 20))


def onnx_file(seed: int, random: Random) -> bytes:
    """Bytes changed anywhere, or, in a third of the files, among the numbers of one tensor."""
    data = drawn(seed // FILES_OF_A_MODEL)
    if random.integers(3):
        return damaged(data, random)
    model = onnx.ModelProto.FromString(data)
    odd_numbers(model, random)
    return model.SerializeToString()


def odd_graph(seed: int, random: Random) -> bytes:
    model = onnx.ModelProto.FromString(drawn(seed // FILES_OF_A_MODEL))
    for _ in range(int(random.integers(1, 4))):
        EDITS[int(random.integers(len(EDITS)))](model, random)
    return model.SerializeToString()


def pick(random: Random, items: Any) -> Any:
    return items[int(random.integers(len(items)))] if len(items) else None


def values(model: onnx.ModelProto) -> list[str]:
    return [*ODD_NAMES, *(name for node in model.graph.node for name in (*node.input, *node.output))]


def drop_node(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.node[int(random.integers(len(model.graph.node) + 1)) :][:1]


def repeat_node(model: onnx.ModelProto, random: Random) -> None:
    if (node := pick(random, model.graph.node)) is not None:
        model.graph.node.add().CopyFrom(node)


def reorder(model: onnx.ModelProto, random: Random) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([nodes[index] for index in random.permutation(len(nodes))])


def rewire(model: onnx.ModelProto, random: Random) -> None:
    node = pick(random, model.graph.node)
    ends = None if node is None else pick(random, (node.input, node.output))
    if ends:
        ends[int(random.integers(len(ends)))] = pick(random, values(model))


def drop_end(model: onnx.ModelProto, random: Random) -> None:
    node = pick(random, model.graph.node)
    ends = None if node is None else pick(random, (node.input, node.output))
    if ends:
        del ends[-1]


def more_ends(model: onnx.ModelProto, random: Random) -> None:
    if (node := pick(random, model.graph.node)) is not None:
        pick(random, (node.input, node.output)).append(pick(random, values(model)))


def other_operator(model: onnx.ModelProto, random: Random) -> None:
    node, other = pick(random, model.graph.node), pick(random, model.graph.node)
    if node is not None:
        node.op_type = pick(random, (other.op_type, "Conv", "Reshape", "BatchNormalization", "If", "Scan", "", "None"))


def other_domain(model: onnx.ModelProto, random: Random) -> None:
    if (node := pick(random, model.graph.node)) is not None:
        node.domain = pick(random, ("", "ai.onnx", "com.microsoft", "custom"))


def attribute_of(model: onnx.ModelProto, random: Random) -> AttributeProto | None:
    node = pick(random, [node for node in model.graph.node if node.attribute])
    return None if node is None else pick(random, node.attribute)


def odd_number(model: onnx.ModelProto, random: Random) -> None:
    if (attribute := attribute_of(model, random)) is not None:
        attribute.i = pick(random, ODD_NUMBERS)
        if attribute.ints:
            attribute.ints[int(random.integers(len(attribute.ints)))] = pick(random, ODD_NUMBERS)
        attribute.f = pick(random, (0.0, -1.0, 1e38, float("inf"), float("nan")))


def odd_length(model: onnx.ModelProto, random: Random) -> None:
    if (attribute := attribute_of(model, random)) is not None:
        attribute.ints.append(1) if random.integers(2) else attribute.ClearField("ints")


def odd_type(model: onnx.ModelProto, random: Random) -> None:
    if (attribute := attribute_of(model, random)) is not None:
        attribute.type = pick(random, AttributeProto.AttributeType.values())


def odd_attribute(model: onnx.ModelProto, random: Random) -> None:
    if (attribute := attribute_of(model, random)) is not None:
        attribute.name = pick(random, ("axis", "axes", "group", "pads", "perm", "epsilon", "to", "alpha", "body", ""))


def tensor_of(model: onnx.ModelProto, random: Random) -> TensorProto | None:
    tensor: TensorProto | None = pick(random, model.graph.initializer)
    return tensor


def odd_shape(model: onnx.ModelProto, random: Random) -> None:
    if (tensor := tensor_of(model, random)) is not None and tensor.dims:
        tensor.dims[int(random.integers(len(tensor.dims)))] = pick(random, ODD_NUMBERS)


def turned_shape(model: onnx.ModelProto, random: Random) -> None:
    """As many numbers as before in another shape."""
    if (tensor := tensor_of(model, random)) is not None:
        tensor.dims[:] = pick(random, (sorted(tensor.dims), [*tensor.dims, 1], [int(np.prod(tensor.dims))]))


def odd_element(model: onnx.ModelProto, random: Random) -> None:
    if (tensor := tensor_of(model, random)) is not None:
        tensor.data_type = pick(random, TensorProto.DataType.values())


def odd_numbers(model: onnx.ModelProto, random: Random) -> None:
    if (tensor := tensor_of(model, random)) is not None and tensor.HasField("raw_data"):
        numbers = np.frombuffer(tensor.raw_data, np.uint8).copy()
        numbers[place(random, len(numbers))] = pick(random, (0, 127, 128, 255))
        tensor.raw_data = numbers.tobytes()


def drop_tensor(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.initializer[int(random.integers(len(model.graph.initializer) + 1)) :][:1]


def rename_tensor(model: onnx.ModelProto, random: Random) -> None:
    if (tensor := tensor_of(model, random)) is not None:
        tensor.name = pick(random, values(model))


def odd_port(model: onnx.ModelProto, random: Random) -> None:
    port = pick(random, [*model.graph.input, *model.graph.output, *model.graph.value_info])
    if port is None:
        return
    kind = port.type.tensor_type
    match random.integers(4):
        case 0:
            kind.elem_type = pick(random, TensorProto.DataType.values())
        case 1:
            kind.ClearField("shape")
        case 2:
            kind.shape.dim.add(dim_value=pick(random, ODD_NUMBERS))
        case _:
            port.name = pick(random, values(model))


def odd_version(model: onnx.ModelProto, random: Random) -> None:
    if random.integers(2):
        model.ir_version = int(random.integers(-1, 20))
    elif model.opset_import:
        model.opset_import[0].version = int(random.integers(-1, 40))


def no_version(model: onnx.ModelProto, random: Random) -> None:
    del model.opset_import[:]


def in_a_body(model: onnx.ModelProto, random: Random) -> None:
    """All nodes inside a branch."""
    node = onnx.NodeProto(
        op_type="If", input=[pick(random, values(model))], output=[o.name for o in model.graph.output]
    )
    for name in ("then_branch", "else_branch"):
        branch = node.attribute.add(name=name, type=AttributeProto.GRAPH)
        branch.g.node.extend(model.graph.node)
        branch.g.output.extend(model.graph.output)
        branch.g.name = "body"
    del model.graph.node[:]
    model.graph.node.append(node)


EDITS: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    drop_node,
    repeat_node,
    reorder,
    rewire,
    drop_end,
    more_ends,
    other_operator,
    other_domain,
    odd_number,
    odd_length,
    odd_type,
    odd_attribute,
    odd_shape,
    turned_shape,
    odd_element,
    odd_numbers,
    drop_tensor,
    rename_tensor,
    odd_port,
    odd_version,
    no_version,
    in_a_body,
)


# --- archives and safetensors -----------------------------------------------------------------------------------------


@cache
def archives() -> tuple[bytes, ...]:
    """A program, and a checkpoint of plain tensors."""
    import torch

    checkpoint = io.BytesIO()
    torch.save({"model": {"conv.weight": torch.ones(2, 3)}, "epoch": 3}, checkpoint)
    return (MODELS / "digits_mlp.pt").read_bytes(), checkpoint.getvalue()


def archive(seed: int, random: Random) -> bytes:
    """An archive with damaged bytes, or one that is whole around a damaged member."""
    data = archives()[seed % 2]
    if random.integers(2):
        return damaged(data, random)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = pick(random, names)
        for name in names:
            content = old.read(name)
            new.writestr(name, damaged(content, random) if name == chosen else content)
    return out.getvalue()


def safetensors(seed: int, random: Random) -> bytes:
    shapes = [tuple(int(size) for size in random.integers(0, 4, int(random.integers(4)))) for _ in range(3)]
    header, end = dict[str, Any](), 0
    for number, shape in enumerate(shapes):
        begin, end = end, end + 4 * int(np.prod(shape))
        header[f"t{number}"] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    if random.integers(2) and header:
        entry = header[pick(random, list(header))]
        key = pick(random, list(entry))
        entry[key] = pick(random, ([0, 1 << 62], "F64", "Q7", [-1], [1.5], None, {}, [[]], "x" * 50, [1 << 70]))
    text = json.dumps(header).encode()
    text = damaged(text, random) if random.integers(2) else text
    length = len(text) if random.integers(4) else int(random.integers(1 << 40))
    return struct.pack("<Q", length) + text + bytes(end)


# --- what is asked ----------------------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[int, Random], bytes]] = {
    "onnx": onnx_file,
    "structure": odd_graph,
    "archive": archive,
    "safetensors": safetensors,
}


@contextmanager
def in_time() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Wrong(f"takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def stage(path: Path) -> str:
    """How far a file comes. Raises anything but a refusal."""
    try:
        loaded = load(path)
    except BnfoldError as refusal:
        if not str(refusal).isprintable():
            raise Wrong(f"says {str(refusal)!r}") from refusal
        return f"refused: {refusal.code}"
    if loaded.kind != "onnx":
        return "read"
    try:
        folded, report = frontend.fold_model(loaded.model)
    except BnfoldError as refusal:
        return f"not folded: {refusal.code}"
    frontend.from_bytes(frontend.to_bytes(folded))
    return "folded" if report.folded else "read, nothing folds"


def check_many(seeds: Iterable[int], dialect: str) -> Files:
    """The files of these seeds; `mixed` takes the kinds in turn."""
    tally = Files()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        for seed in seeds:
            kind = dialect if dialect in MAKERS else list(MAKERS)[seed % len(MAKERS)]
            path.write_bytes(MAKERS[kind](seed, np.random.default_rng(seed)))
            tally.counts[kind] += 1
            before = memory()
            try:
                with in_time():
                    tally.reached[stage(path)] += 1
                if memory() - before > GROWTH:
                    raise Wrong(f"takes {memory() - before:,} bytes more")
            except Exception as error:
                tally.wrong.append(f"{kind} {seed}: {type(error).__name__}: {str(error).splitlines()[:1]}")
    return tally


def killed(seed: int, dialect: str) -> Files:
    """What the command line says of a file that ends the process that reads it."""
    tally = Files(Counter([dialect]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(MAKERS[dialect](seed, np.random.default_rng(seed)))
        command = [sys.executable, "-m", "bnfold", "fold", "--no-check", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        *_, sentence = said.stderr.splitlines() or [""]
        if said.returncode == 4 and " died of " in sentence and list(Path(folder).iterdir()) == [path]:
            tally.reached[f"refused: crashed (seed {seed})"] += 1
        else:
            tally.wrong.append(f"{dialect} {seed}: exit {said.returncode}: {said.stderr!r}")
    return tally


def _show(seed: int, dialect: str) -> None:
    sys.stdout.buffer.write(MAKERS[dialect](seed, np.random.default_rng(seed)))


FAULTS: Mapping[str, Fault] = {
    "what the checker refuses is let through": (onnx.checker, "check_model", lambda model: None),
}
CAMPAIGN = Campaign(FAULTS, check_many, tuple(MAKERS), fault_dialect="structure", killed=killed)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main(__doc__, _show))
