"""What executing two models would take, told before anything is cast or copied.

An estimate from what the models store: eight bytes for each number in float64, and for the runtime the stored bytes
once and a half, since a session copies them and packs the larger part again. Values inside the network are not counted.
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

    Layers hold their models until the end, so each comes on top of those before it that run.
    """
    limit = allowed(level)
    doubles, stored = 8 * reference.parameters, reference.nbytes + candidate.nbytes
    steps = {"L2": 8 * candidate.parameters, "L4": stored * 3 // 2, "L5": stored * 3 // 2}
    refused: dict[str, str] = {}
    for layer, more in steps.items():
        if limit is None or ("L4" not in refused and doubles + more <= limit):
            doubles += more
        else:
            refused[layer] = (
                f"it would need {_gigabytes(doubles + more)} of memory, "
                f"{_gigabytes(limit)} are {'there' if level == 'full' else f'allowed at level {level}'}"
            )
    return refused


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _available() -> int | None:
    if not _MEMORY.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
