"""How tests call the command line, as a process or as a function, and read what it reports."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from bnfold.reports.json import schema


def bnfold(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The whole process."""
    command = [sys.executable, "-m", "bnfold", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def demo_in(folder: Path) -> Path:
    """The shipped model, with batch norms, in the folder."""
    path = folder / "demo.onnx"
    path.write_bytes(files("bnfold").joinpath("data", "demo.onnx").read_bytes())
    return path


def validated(text: str) -> dict[str, Any]:
    """The JSON report, which the shipped schema accepts."""
    document: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(schema()).validate(document)
    return document
