"""Processes of Python that run this very package, whatever lies in the folder where they are started."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")


def command(module: str, *words: str) -> list[str]:
    """What runs a module of bnfold. `-P` leaves the current folder off the import path: it may be one that holds a
    model of a stranger, and an `onnx.py` beside it."""
    return [sys.executable, "-P", "-m", module, *words]


def environment(**more: str) -> Mapping[str, str]:
    """That of this process, in which Python finds the package where it was found here."""
    folder = Path(__file__).resolve().parents[1]
    if folder.name not in INSTALLED:  # where every Python looks, and behind its own modules
        more["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return os.environ | more
