"""A short form of `random_files.py`, the files that it found, and faults that it finds."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import random_files
from random_files import CAMPAIGN, MAKERS, check_many, killed
from random_harness import Campaign, Tally

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the limits are those of POSIX")

FOUND = {
    "onnx": (144, 196, 279, 1377, 2342, 2948, 45138, 54109, 97212, 190866),
    "structure": (105, 294, 345, 1204),
}
"""A name that is no UTF-8, numbers of six bits, indices that are floats, a sentence with an escape, a Split into 10^14
pieces, a Concat of 10^18 channels, 10^19 numbers times none, an
axis of less than nothing, a mode that is no text."""
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


def _dies_of_3(seeds: Iterable[int], dialect: str) -> Tally:
    for seed in seeds:
        if seed == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return Tally(Counter(seeds=len(list(seeds))))


def test_a_campaign_goes_on_after_a_seed_that_ends_its_process() -> None:
    total = Tally()
    for tally in Campaign({}, _dies_of_3, ("onnx",)).in_parallel(range(5), "onnx", 1):
        total.add(tally)
    assert (total.counts["seeds"], total.wrong) == (4, ["onnx 3: the process died"])


ENDS_THE_PROCESS = 40022
"""A size below zero behind a Pad, and a Slice of it: onnx's inference of shapes aborts."""


def test_a_file_that_ends_the_process_is_one_sentence_on_the_command_line() -> None:
    tally = killed(ENDS_THE_PROCESS, "onnx")
    assert (tally.wrong, sum(tally.reached.values())) == ([], 1)
    assert killed(20_000, "onnx").wrong, "a file that folds was no such file"
