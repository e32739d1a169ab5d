"""A short form of `good_files.py`, and files that it must tell apart."""

from __future__ import annotations

from pathlib import Path

import good_files
import pytest
from good_files import SLOW, WRITERS, Case, at_hand, read_many

pytestmark = pytest.mark.filterwarnings("ignore")  # writers warn their programmers


def test_what_is_written_well_is_read() -> None:
    names = [name for name in at_hand() if name not in SLOW]
    tally = read_many(range(len(names)), names)
    assert tally.refused == []
    assert set(tally.written) == set(names)
    assert len(names) >= len(WRITERS) - len(SLOW) - 3


@pytest.mark.slow
def test_what_all_writers_write_well_is_read() -> None:
    assert read_many(range(1000, 1200)).refused == []


def test_a_good_file_that_is_refused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.frontends.onnx.limits.MOST_NODES", 1)
    tally = read_many([7], ["torch.onnx.export, TorchScript"])
    assert "Rejected limit" in tally.refused[0]
    assert "1 refused" in str(tally)


def test_what_no_runtime_opens_is_no_good_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(case: Case) -> Path:
        path = case.exported()
        path.write_bytes(path.read_bytes()[:-1])
        return path

    monkeypatch.setattr(good_files, "WRITERS", {"a bad one": cut_short})
    tally = read_many([7], ["a bad one"])
    assert (tally.spoilt["a bad one"], tally.written.total(), tally.refused) == (1, 0, [])
