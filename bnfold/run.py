"""What one command was asked, and what came of it.

A `Run` is filled as the work goes on, so that a command that fails still reports everything it knew. These records are
neutral: no framework is imported here, and nothing is printed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bnfold.errors import UsageError, clean

if TYPE_CHECKING:
    from bnfold.benchmark import Benchmark
    from bnfold.model import ModelFacts
    from bnfold.outcome import FoldReport
    from bnfold.verify.result import Verification

MODELS_NOT_READ = "models-not-read"
"""The code of the warning that a certificate was read and compared with nothing."""

_log = logging.getLogger("bnfold")
_log.addHandler(logging.NullHandler())  # silent unless the application listens


@dataclass(frozen=True)
class RunOptions:
    """How models are run. `inputs`, `dims` and `provider_options` are the texts of the command line, not yet read."""

    inputs: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    data: Path | None = None
    seed: int = 0
    provider: str = "cpu"
    provider_options: tuple[str, ...] = ()
    threads: int | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The provider options, read. Raises `UsageError` for one that is not `K=V`."""
        pairs = [text.partition("=") for text in self.provider_options]
        for key, equals, _ in pairs:
            if not (key and equals):
                raise UsageError(f"--provider-option {key!r} is not K=V", hint="--provider-option device_id=0")
        return {key: value for key, _, value in pairs}


@dataclass(frozen=True)
class CheckOptions:
    """Whether the result is checked, how strictly, and where the inputs of a failure are kept."""

    enabled: bool = True
    level: str = "auto"
    save_failure: Path | None = None


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and where; `out` None means the name derived from the model's."""

    out: Path | None = None
    force: bool = False
    dry_run: bool = False
    provenance: bool = False


@dataclass(frozen=True)
class ExternalFile:
    """A data file beside a model; `bytes` is its size."""

    path: str
    sha256: str | None
    bytes: int


@dataclass(frozen=True)
class FileRecord:
    """A model file that was read or written. `bytes` is the size of the file itself, without its data files."""

    path: str
    kind: str
    sha256: str | None = None
    bytes: int | None = None
    ir_version: int | None = None
    opsets: Mapping[str, int] = field(default_factory=dict)
    external: tuple[ExternalFile, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something in the model that its owner should know, whether or not it folds. `severity`: error, warning, note."""

    code: str
    severity: str
    message: str
    remedy: str | None = None
    affine: str | None = None
    channels: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON report."""
        return {
            "code": self.code,
            "severity": self.severity,
            "affine": self.affine,
            "channels": list(self.channels),
            "message": self.message,
            "remedy": self.remedy,
        }


class Uneven(NamedTuple):
    """How uneven the weights of an operator are, before and after, and the output channels that make it so.

    None where no weight is other than zero. `channels` are at most eight, the worst first; `starved` as many that a
    scale made for those leaves least.
    """

    before: float | None = None
    after: float | None = None
    channels: tuple[int, ...] = ()
    starved: tuple[int, ...] = ()


@dataclass(frozen=True)
class Range:
    """The largest magnitude among the weights of the operators that took an affine in, before and after, and flags.

    `spread`: how many times larger the weights of the largest output channel are than those of the median one.
    `crest`: how many times larger the largest weight of an output channel is than their root mean square, in the
    channel where that is most. Each in the operator where it is most after folding.
    """

    before: float
    after: float
    flags: tuple[str, ...] = ()
    spread: Uneven = field(default_factory=Uneven)
    crest: Uneven = field(default_factory=Uneven)


@dataclass(frozen=True)
class Warning:
    """Something the command did that its caller might not expect."""

    code: str
    message: str


def _silent(stage: str) -> None:
    """Tell nobody what stage the work is in."""


@dataclass(repr=False)
class Run:
    """One command. None and empty mean: not known, or not done (yet).

    `input` is the model that was read (`check`: the reference; `bench`: the first), `output` the one that was written
    (`check`: the candidate). `before` and `after` count the model as read and as folded. Files are hashed if `hashed`.
    `typed` are the words of the command line.
    """

    command: str
    input: FileRecord | None = None
    output: FileRecord | None = None
    fold: FoldReport | None = None
    before: ModelFacts | None = None
    after: ModelFacts | None = None
    check: Verification | None = None
    bench: Benchmark | None = None
    findings: list[Finding] = field(default_factory=list)
    ranges: Callable[[], dict[str, Range]] = dict
    warnings: list[Warning] = field(default_factory=list)
    hashed: bool = True
    typed: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    stages: list[tuple[str, float]] = field(default_factory=list)
    progress: Callable[[str], None] = _silent

    def __repr__(self) -> str:
        return f"Run({', '.join([self.command, *map(repr, self._results)])})"

    def _repr_html_(self) -> str:
        """The tables of what came of it, for notebooks."""
        return "".join(result._repr_html_() for result in self._results)

    @property
    def _results(self) -> list[FoldReport | Verification | Benchmark]:
        return [result for result in (self.fold, self.check, self.bench) if result is not None]

    def warn(self, code: str, message: str) -> None:
        """Note a warning once, with names from a file as they may be shown."""
        warning = Warning(code, clean(message))
        if warning not in self.warnings:
            self.warnings.append(warning)
            _log.warning("%s: %s", code, warning.message)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say that a stage begins, and note how long it took (in seconds) even if it fails."""
        self.progress(name)
        _log.info(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages.append((name, time.perf_counter() - start))
