"""Documents that are written section by section, each by the command that it names."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from bnfold.reports.environment import processor


def replaced(document: str, heading: str, order: Sequence[str], title: str, text: str) -> str:
    """The document with the section of this title replaced; sections stay in order, under one heading."""
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", document, flags=re.DOTALL | re.MULTILINE))
    sections[title] = f"\n{text}\n\n"
    parts = [f"## {each}\n{sections[each]}" for each in order if each in sections]
    return f"{heading}\n{''.join(parts)}".rstrip() + "\n"


def environment(*packages: str) -> str:
    """The processor, how many cores, and the versions, in one sentence."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}."


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns but the first are set to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@contextmanager
def busy() -> Iterator[None]:
    """One core kept busy."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        child.kill()
        child.wait()
