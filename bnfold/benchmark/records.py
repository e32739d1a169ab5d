"""What is measured, how, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bnfold.benchmark.statistics import Comparison, Interval
from bnfold.model import ModelFacts
from bnfold.verify.inputs import InputSpec
from bnfold.verify.probes import ProbeOptions

OPTIMISATIONS: Mapping[str, bool] = {"default": True, "off": False}
"""What the runtime does to a graph by itself; both are measured, and only equals are compared."""


@dataclass(frozen=True)
class Contender:
    """One model file to measure, under a name of its own, with the counts that need no clock."""

    name: str
    path: Path
    facts: ModelFacts


@dataclass(frozen=True)
class BenchOptions:
    """How to measure. `budget` is in seconds for all processes together; at least two run whatever it is."""

    batch: int = 1
    budget: float = 60.0
    processes: int = 10
    threads: int = 1
    provider: str = "cpu"
    provider_options: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[InputSpec] = ()
    probes: ProbeOptions = field(default_factory=ProbeOptions)


@dataclass(frozen=True)
class Measured:
    """One contender at the runtime's default optimisation, in seconds and bytes; None: not known, or too few to say.

    `session_s` and `first_run_s` are medians over the processes, `peak_bytes` the high-water mark of a process of its
    own, `throughput` in samples per second, `bn_after_runtime` the batch norms that the runtime's optimisation leaves.
    """

    name: str
    path: str
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


@dataclass(frozen=True)
class Compared:
    """`ratio` is the time of `a` over that of `b`: 1.10 says that b is 1.10 times as fast. `options`: default, off."""

    a: str
    b: str
    options: str
    ratio: float | None
    low: float | None
    high: float | None
    confidence: float
    verdict: Comparison


@dataclass(frozen=True)
class Benchmark:
    """Everything measured. `control` compares the first contender with itself; `notes` say how far to trust it."""

    contenders: tuple[Measured, ...]
    comparisons: tuple[Compared, ...]
    control: Interval | None
    batch: int
    processes: int
    threads: int
    provider: str
    notes: tuple[str, ...] = ()
    interrupted: bool = False
