"""A command line, understood: what is to be done, and where its result is to go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bnfold.cli.flags import PolicyFlags, ReportFlags
from bnfold.run import Run


@dataclass(frozen=True)
class Job:
    """`work` fills the run that it is given. `models` are the files it reads and writes, which no report may overwrite,
    nor the `baseline`.

    `show` gives the text for the terminal; None stands for the report. `fail_on` names the findings that are not
    allowed, by code or severity.
    """

    command: str
    flags: ReportFlags
    work: Callable[[Run], None]
    models: tuple[Path, ...] = ()
    policy: PolicyFlags = field(default_factory=PolicyFlags)
    show: Callable[[], str] | None = None
    baseline: Path | None = None
    fail_on: tuple[str, ...] = ()
