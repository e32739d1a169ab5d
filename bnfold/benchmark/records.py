"""What is measured, how, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bnfold.benchmark.statistics import Comparison, Interval
from bnfold.display import brief, plain, table
from bnfold.model import ModelFacts
from bnfold.verify.inputs import InputSpec
from bnfold.verify.probes import ProbeOptions

LONGEST_NAME = 40
"""Of a contender, where it is one of two."""

MODES: Mapping[str, Mapping[str, bool]] = {
    "onnxruntime": {"default": True, "off": False},
    "torch": {"eager": False, "compiled": True},
}
"""By runtime, whether it changes the graph by itself; both are measured, only equals are compared, and the first is the
one that is spoken of."""


@dataclass(frozen=True)
class Contender:
    """One model to measure, under a name of its own, with the counts that need no clock. `path` is its file; a live
    module has none."""

    name: str
    path: Path | None
    facts: ModelFacts

    @property
    def file(self) -> Path:
        """The file, absolute, of a contender that is no live module."""
        assert self.path is not None, "a live module is measured by `measure_live`"
        return self.path.resolve()


@dataclass(frozen=True)
class BenchOptions:
    """How to measure. `budget` is in seconds for all processes together; at least two run whatever it is. The first of
    `batches` is measured in every mode of the runtime, the others in its first."""

    batches: tuple[int, ...] = (1,)
    budget: float = 60.0
    processes: int = 10
    threads: int = 1
    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"
    provider: str = "cpu"
    provider_options: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[InputSpec] = ()
    probes: ProbeOptions = field(default_factory=ProbeOptions)
    first_mode_only: bool = False

    @property
    def modes(self) -> Mapping[str, bool]:
        """The modes that are measured."""
        modes = MODES[self.runtime]
        return {self.mode: modes[self.mode]} if self.first_mode_only else modes

    @property
    def mode(self) -> str:
        """The mode that is spoken of."""
        return next(iter(MODES[self.runtime]))


@dataclass(frozen=True)
class AtBatch:
    """How fast one contender is at one batch size: median seconds of a run, and samples per second."""

    batch: int
    p50_s: float | None
    throughput: float | None


@dataclass(frozen=True)
class Measured:
    """One contender in the runtime's first mode, in seconds and bytes; None: not known, or too few to say.

    `session_s` and `first_run_s` are medians over the processes, `peak_bytes` the high-water mark of a process of its
    own, `throughput` in samples per second, `bn_after_runtime` the batch norms that the runtime's optimisation leaves,
    `operators_after_runtime` how many operators of each type. Times are those of the first batch size; `batches` has
    them for all.
    """

    name: str
    path: str | None
    bn: int
    bn_after_runtime: int | None
    nodes: int
    parameters: int
    macs: int | None
    bytes: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    throughput: float | None
    session_s: float | None
    first_run_s: float | None
    peak_bytes: int | None
    activation_bytes: int | None = None
    operators_after_runtime: Mapping[str, int] | None = None
    batches: tuple[AtBatch, ...] = ()


@dataclass(frozen=True)
class Compared:
    """`ratio` is the time of `a` over that of `b`: 1.10 says that b is 1.10 times as fast. `options` is the mode of the
    runtime: default, off; eager, compiled."""

    a: str
    b: str
    options: str
    ratio: float | None
    low: float | None
    high: float | None
    confidence: float
    verdict: Comparison
    batch: int = 1

    @property
    def interval(self) -> str:
        """The ratio with its uncertainty; a question mark where it is not known."""
        if self.ratio is None or self.low is None or self.high is None:
            return "?"
        return f"{self.ratio:.2f} times as fast [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Benchmark:
    """Everything measured. `control` compares the first contender with itself; `notes` say how far to trust it.
    `batch` is the first of the batch sizes."""

    contenders: tuple[Measured, ...]
    comparisons: tuple[Compared, ...]
    control: Interval | None
    batch: int
    processes: int
    threads: int
    provider: str
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    mode: str = "default"

    @property
    def is_spoilt(self) -> bool:
        """Whether something was compared, and the control takes the first model for another than itself."""
        return bool(self.comparisons) and self.control is not None and self.control.excludes_one

    def to_dict(self) -> dict[str, Any]:
        """What the JSON report has under `bench`, as JSON holds it: seconds and bytes."""
        found: dict[str, Any] = plain(
            {
                "contenders": [asdict(contender) for contender in self.contenders],
                "comparisons": [asdict(comparison) for comparison in self.comparisons],
                "control": asdict(self.control) if self.control else None,
                "batch": self.batch,
                "mode": self.mode,
                "processes": self.processes,
                "threads": self.threads,
                "provider": self.provider,
                "notes": self.notes,
                "interrupted": self.interrupted,
            }
        )
        return found

    def __repr__(self) -> str:
        return f"Benchmark({self._said})"

    def _repr_html_(self) -> str:
        """A table for notebooks: the verdict, and a row per comparison, never a ratio without its uncertainty."""
        rows = [
            (_names(pair), pair.options, str(pair.batch), pair.interval, _words(pair.verdict))
            for pair in self.comparisons
        ]
        return table(self._said, ("compared", "mode", "batch", "ratio", "verdict"), rows)

    @property
    def _said(self) -> str:
        """Of the first comparison in the mode that is spoken of; counts where nothing was compared."""
        for pair in self.comparisons:
            if (pair.options, pair.batch) == (self.mode, self.batch):
                return f"{_words(pair.verdict)}: {pair.interval}, {_names(pair)}"
        return f"{len(self.contenders)} measured, none compared"


def _names(pair: Compared) -> str:
    return f"{brief(pair.b, LONGEST_NAME)} against {brief(pair.a, LONGEST_NAME)}"


def _words(verdict: Comparison) -> str:
    return verdict.replace("_", " ")
