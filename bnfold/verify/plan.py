"""How two models are to be checked: what the caller asked, and the limits of the layers that execute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bnfold.verify.inputs import InputSpec
from bnfold.verify.meters import Tolerance
from bnfold.verify.probes import ProbeOptions
from bnfold.verify.result import RuntimeRecord

Level = Literal["auto", "static", "full"]

SEMANTICS_LIMIT = 1e-11
RATIO_LIMIT, RATIO_WARNING = 4.0, 2.0


@dataclass(frozen=True)
class CheckPlan:
    """How to check. `inputs` and `probes` say what to run, `tolerance` replaces the ratio, `min_top1` adds a demand.

    `facts` are what must be equal beyond the interface (IR version, metadata…), one text each, for both models.
    `runtime` is reported as it is; `save_failure` is a folder for the input that showed a difference.
    """

    level: Level = "auto"
    inputs: Sequence[InputSpec] = ()
    probes: ProbeOptions = field(default_factory=ProbeOptions)
    tolerance: Tolerance | None = None
    min_top1: float | None = None
    semantics_limit: float = SEMANTICS_LIMIT
    facts: tuple[Sequence[str], Sequence[str]] = ((), ())
    runtime: RuntimeRecord | None = None
    save_failure: Path | None = None
