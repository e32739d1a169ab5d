"""Attacks run in the watched process, and what came of each."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import demo_in, validated

from attacks import archives, onnx_files
from attacks.attack import INSIDE, OUTSIDE, SECRET, Attack

WATCHED = Path(__file__).parent / "watched.py"
GROUPS: dict[str, tuple[Attack, ...]] = {"onnx": onnx_files.ATTACKS, "archives": archives.ATTACKS}
IN_OPEN = 0x20


@dataclass(frozen=True)
class Result:
    """What came of one attack. `seen` are the files outside that anything opened, C++ too."""

    exit_code: int
    stdout: str
    stderr: str
    opened: list[str]
    started: list[str]
    imported: list[str]
    left: list[str]
    report: dict[str, Any] | None


@contextmanager
def opens(folder: Path) -> Iterator[list[str]]:
    """The names in this folder that any process opens meanwhile, by inotify(7)."""
    libc, seen = ctypes.CDLL(None, use_errno=True), list[str]()
    handle = libc.inotify_init1(os.O_NONBLOCK)
    assert handle >= 0
    assert libc.inotify_add_watch(handle, os.fsencode(folder), IN_OPEN) >= 0
    try:
        yield seen
    finally:
        try:
            data = os.read(handle, 1 << 20)
        except BlockingIOError:
            data = b""
        os.close(handle)
        while data:
            _, _, _, length = struct.unpack_from("iIII", data)
            seen.append(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]


def run(jobs: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The watched process."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, str(WATCHED), str(folder / "jobs.json")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, cwd=folder)
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def job(name: str, folder: Path, *words: str | Path) -> dict[str, Any]:
    return {"name": name, "folder": str(folder), "words": list(map(str, words))}


def results(kind: str, root: Path) -> dict[str, Result]:
    """All attacks of one group in one process, after clean runs and a refusal that show what these import."""
    attacks, folders = GROUPS[kind], [root / str(number) for number in range(len(GROUPS[kind]))]
    (root / INSIDE).mkdir()
    clean = [demo_in(root)] if kind == "onnx" else archives.ordinary(root)
    (root / "nothing").write_bytes(b"nothing")
    jobs = [job("clean", path.parent, "inspect", path, "--json") for path in (*clean, root / "nothing")]
    there = []
    for attack, folder in zip(attacks, folders, strict=True):
        (folder / INSIDE).mkdir(parents=True)
        (folder / OUTSIDE).mkdir()
        (folder / OUTSIDE / SECRET).write_bytes(onnx_files.NUMBERS.tobytes())
        path, out = attack.build(folder), folder / INSIDE / "out.onnx"
        there.append(set((folder / INSIDE).iterdir()))
        command = ["fold", path, "-o", out, "--no-check"] if kind == "onnx" else ["inspect", path]
        jobs.append(job(attack.name, folder / INSIDE, *command, "--json"))
    with ExitStack() as stack:
        reached = [stack.enter_context(opens(folder / OUTSIDE)) for folder in folders]
        found = run(jobs, root)[len(clean) + 1 :]
    return {
        attack.name: Result(
            **{name: each[name] for name in ("exit_code", "stdout", "stderr", "started", "imported")},
            opened=each["opened"] + names,
            left=sorted(path.name for path in set((folder / INSIDE).iterdir()) - before),
            report=validated(each["stdout"]) if each["stdout"].startswith("{") else None,
        )
        for attack, each, names, folder, before in zip(attacks, found, reached, folders, there, strict=True)
    }
