"""What executing two models would take, told before anything is cast or copied.

An estimate from what the models store: eight bytes for each number in float64, and for the runtime the stored bytes
once and a half, since a session copies them and packs the larger part again. Values inside the network are not counted.
L3 executes one place after the other: it needs what recording holds, or what its largest place does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bnfold.verify.machines import Subject

ALLOWED = 2 << 30
"""Bytes that may be used where nobody asked for more than the usual."""

_MEMORY = Path("/proc/meminfo")


def allowed(level: str) -> int | None:
    """Bytes that executing may take: what the machine has at level full (None where it does not say)."""
    return _available() if level == "full" else ALLOWED


def too_large(reference: Subject, candidate: Subject, level: str) -> Mapping[str, str]:
    """The layers that would take more memory than is allowed, and the sentence that says so.

    While the float64 models are held, so is the session of the original, which says what sizes are accepted. Those of
    the runtime come after them, with its optimisations and without in turn.
    """
    limit = allowed(level)
    pair = reference.stored, candidate.stored
    doubles, sessions = [8 * stored.floats for stored in pair], [stored.nbytes * 3 // 2 for stored in pair]
    actual = max(doubles[0] + sessions[0], sum(sessions))
    inside = sum(8 * stored.held for stored in pair) + max(6 * stored.held for stored in pair)
    needed = {"L2": sum(doubles) + sessions[0], "L3": inside, "L4": actual, "L5": actual}
    where = "there" if level == "full" else f"allowed at level {level}"
    return {
        layer: f"it would need {_gigabytes(size)} of memory, {_gigabytes(limit)} are {where}"
        for layer, size in needed.items()
        if limit is not None and size > limit
    }


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _available() -> int | None:
    if not _MEMORY.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
