"""A short form of `random_files.py`, the files that it found, and faults that it finds."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import random_files
from random_files import CAMPAIGN, MAKERS, check_many

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the limits are those of POSIX")

FOUND = {
    "onnx": (144, 196, 279, 1377, 2342, 2948),
    "structure": (105, 294, 345, 1204),
}
"""A name that is no UTF-8, numbers of six bits, indices that are floats, a sentence with an escape, a Split into 10^14
pieces, a mode that is no text."""
COUNTS = {"onnx": 400, "structure": 300, "archive": 60, "safetensors": 200}


@pytest.mark.parametrize("kind", MAKERS)
def test_odd_files_are_refused_or_folded(kind: str) -> None:
    tally = check_many([*FOUND.get(kind, ()), *range(10_000, 10_000 + COUNTS[kind])], kind)
    assert tally.wrong == []


def test_many_files_reach_folding() -> None:
    reached = check_many(range(20_000, 20_300), "onnx").reached
    assert sum(count for stage, count in reached.items() if not stage.startswith("refused")) >= 60


@pytest.mark.parametrize("fault", CAMPAIGN.faults)
def test_a_planted_fault_is_found(fault: str) -> None:
    assert CAMPAIGN.until_found(fault, 400, seed=500) is not None


def test_a_file_that_takes_too_long_or_too_much_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Any) -> str:
        while True:
            pass

    monkeypatch.setattr(random_files, "stage", slow)
    monkeypatch.setattr(random_files, "SECONDS", 0.1)
    assert "takes more than" in check_many([0], "safetensors").wrong[0]
    monkeypatch.setattr(random_files, "stage", lambda path: "read")
    monkeypatch.setattr(random_files, "GROWTH", -1)
    assert "bytes more" in check_many([0], "safetensors").wrong[0]
