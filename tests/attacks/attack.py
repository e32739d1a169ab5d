"""One attack: what is built, what is run, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

INSIDE, OUTSIDE, SECRET = "inside", "outside", "secret.bin"
"""The folder of the model; another one, and a file in it that nothing may open."""


@dataclass(frozen=True)
class Attack:
    """`build` makes a model file below the folder `INSIDE` of the one it is given, and returns it.

    `says` is a part of the one sentence on stderr. An attack whose `code` is None is harmless: it must succeed.
    """

    name: str
    build: Callable[[Path], Path]
    code: str | None
    says: str = ""
    exit_code: int = 4
