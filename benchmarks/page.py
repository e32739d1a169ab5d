"""docs/benchmarks.md, section by section: each script replaces its own."""

from __future__ import annotations

from pathlib import Path

from sections import replaced

HEADING = """# Benchmarks

Each section is written by the command at its head, from what it measured. A ratio is the time of the first over that of
the second, so more than 1 says that the second is faster, with an interval of 95 %. Where a difference cannot be told
from none, that is what is said. On a GPU: not measured, unless a section below says so.
"""
ORDER = (
    "Public architectures",
    "Int8",
    "Whether verdicts last",
    "Whether the measurement can be believed",
    "Folding, as the model grows",
    "On a GPU",
)


def write(document: Path, title: str, text: str) -> None:
    """Replace one section of the document, which may not exist yet."""
    before = document.read_text() if document.exists() else ""
    document.write_text(replaced(before, HEADING, ORDER, title, text))
