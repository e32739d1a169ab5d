"""What a check found: one verdict, and under it the layers, outputs and inputs that carry it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from bnfold.outcome import FoldReport


class Verdict(StrEnum):
    """`PROVED`: every new number derived again from the original. `VERIFIED`: equal wherever it was run."""

    PROVED = "proved"
    VERIFIED = "verified"
    FAILED = "failed"
    NO_VERDICT = "no_verdict"


class Status(StrEnum):
    """What one layer of the check said."""

    PASS = "pass"
    FAIL = "fail"
    WARN = "warn"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Layer:
    """One independent line of evidence. `figure` is what was measured, `limit` what it must not exceed."""

    layer: str
    status: Status
    because: str
    figure: float | None = None
    limit: float | None = None
    affine: str | None = None
    channel: int | None = None
    elapsed_s: float = 0.0


@dataclass(frozen=True)
class OutputComparison:
    """One output over all inputs: errors against float64, and their ratio (candidate over reference).

    `compared` decisions are integers, rows in no order, and the largest of each row; `five_differ` and `five_excused`
    are rows whose five largest are not the same.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rmse_reference: float | None
    rmse_candidate: float | None
    ratio: float | None
    max_abs: float | None
    max_rel: float | None
    compared: int = 0
    differ: int = 0
    excused: int = 0
    five_differ: int = 0
    five_excused: int = 0


@dataclass(frozen=True)
class ProbeRecord:
    """One input that was run: its seeded family, its shape and the hash of its bytes."""

    name: str
    family: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class RuntimeRecord:
    """What executed the models."""

    name: str
    version: str
    provider: str
    optimisation: str
    executor: str


@dataclass(frozen=True)
class Verification:
    """The verdict in one sentence, and its evidence; `report` are the records by which a fold was checked."""

    verdict: Verdict
    sentence: str
    level: str
    seed: int
    layers: tuple[Layer, ...]
    outputs: tuple[OutputComparison, ...] = ()
    inputs: tuple[ProbeRecord, ...] = ()
    runtime: RuntimeRecord | None = None
    report: FoldReport | None = field(default=None, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Proved or verified."""
        return self.verdict in (Verdict.PROVED, Verdict.VERIFIED)

    def __repr__(self) -> str:
        return f"Verification({self.verdict}: {self.sentence})"
