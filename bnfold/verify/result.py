"""What a check found: one verdict, and under it the layers, outputs and inputs that carry it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from bnfold.display import FEW, brief, placed, plain, table
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
class Cause:
    """What differs in a node that both models have where they part: `difference` in a sentence."""

    node: str
    op: str
    module: str | None
    difference: str

    def __str__(self) -> str:
        return f"{placed(f'{self.op} {self.node}', self.module)}: {self.difference}"


@dataclass(frozen=True)
class Layer:
    """One independent line of evidence. `figure` is what was measured, `limit` what it must not exceed.

    `causes` are told beside a difference and decide nothing.
    """

    layer: str
    status: Status
    because: str
    figure: float | None = None
    limit: float | None = None
    affine: str | None = None
    channel: int | None = None
    elapsed_s: float = 0.0
    causes: tuple[Cause, ...] = ()

    @property
    def measured(self) -> str:
        """What was measured against its limit, three digits of each; nothing where nothing was."""
        if self.figure is None:
            return ""
        return f"{self.figure:.3g}" + (f" (limit {self.limit:.3g})" if self.limit is not None else "")

    @property
    def why(self) -> str:
        """The first causes, one behind the other; nothing where there is none."""
        more = len(self.causes) - FEW
        told = "; ".join(map(str, self.causes[:FEW]))
        return f"{told}; and {more} more" if more > 0 else told

    @property
    def said(self) -> str:
        """What was found, and the causes."""
        return f"{self.because}; {self.why}" if self.causes else self.because


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

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON report, as JSON holds it."""
        found: dict[str, Any] = plain(
            {
                "name": self.name,
                "dtype": self.dtype,
                "shape": self.shape,
                "rmse_reference": self.rmse_reference,
                "rmse_candidate": self.rmse_candidate,
                "ratio": self.ratio,
                "max_abs": self.max_abs,
                "max_rel": self.max_rel,
                "decisions": {
                    "compared": self.compared,
                    "differ": self.differ,
                    "excused": self.excused,
                    "top5_differ": self.five_differ,
                    "top5_excused": self.five_excused,
                },
            }
        )
        return found


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

    def to_dict(self) -> dict[str, Any]:
        """What the JSON report has under `check`, as JSON holds it."""
        found: dict[str, Any] = plain(
            {
                "verdict": self.verdict,
                "sentence": self.sentence,
                "level": self.level,
                "seed": self.seed,
                "layers": [asdict(layer) for layer in self.layers],
                "outputs": [output.to_dict() for output in self.outputs],
                "inputs": [asdict(probe) for probe in self.inputs],
                "runtime": asdict(self.runtime) if self.runtime else None,
            }
        )
        return found

    def __repr__(self) -> str:
        return f"Verification({self._said})"

    def _repr_html_(self) -> str:
        """A table for notebooks: the verdict, and under it what each layer says and measured."""
        rows = [(layer.layer, layer.status, layer.said, layer.measured) for layer in self.layers]
        return table(self._said, ("layer", "status", "because", "measured"), rows)

    @property
    def _said(self) -> str:
        told = self.sentence.startswith(self.verdict)
        return brief(self.sentence if told else f"{self.verdict}: {self.sentence}")
