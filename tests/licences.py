"""What the licence (L0) says of a fold."""

from __future__ import annotations

from typing import Any

from bnfold.outcome import FoldReport
from bnfold.verify.structure import Complaint, Structure


def complaints(frontend: Any, before: Any, after: Any, report: FoldReport) -> list[Complaint]:
    """All that the graph difference has against a fold; `frontend` reads both models."""
    stored = frontend.evidence(before), frontend.evidence(after)
    return list(Structure(frontend.contents(before), frontend.contents(after), *stored, report).complaints())


def assert_licensed(frontend: Any, before: Any, after: Any, report: FoldReport) -> None:
    """A right fold has no complaint."""
    found = complaints(frontend, before, after, report)
    assert not found, "\n".join(each.because for each in found)
