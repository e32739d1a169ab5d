"""Modules in memory, measured in this process: what they share with it is in the figures, and the report says so."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bnfold.benchmark.child import Call, time_pairs
from bnfold.benchmark.measuring import load, summarised, usable
from bnfold.benchmark.processes import CONTROL, Pair, Processes, Progress
from bnfold.benchmark.records import Benchmark, BenchOptions, Contender
from bnfold.errors import UsageError
from bnfold.model import ModelFacts

NOTE = "measured in this process, which all contenders share: what it does to them all is not in the intervals"


class Bursts(Processes):
    """Bursts of pairs in this process, in the place of processes."""

    noun, nouns = "burst", "bursts"

    def __init__(
        self,
        contenders: Sequence[Contender],
        options: BenchOptions,
        inputs: Mapping[int, Any],
        progress: Progress,
        calls: Mapping[str, Mapping[str, Call]],
    ) -> None:
        super().__init__(contenders, options, inputs, progress)
        self.calls = calls
        self.first_run_s: dict[str, float] = {}

    def _collect_alone(self) -> None:
        """Memory has no meaning here; what a first run takes is measured, for `torch.compile` works then."""
        for name, modes in self.calls.items():
            for mode, run in modes.items():
                start = time.perf_counter()
                run()
                self.first_run_s[f"{name} ({mode})"] = time.perf_counter() - start

    def _start(self, models: Sequence[tuple[str, str]], pairs: Sequence[Pair], seconds: float) -> Any:
        seed = self.options.probes.seed + len(self.answers)
        runs = [(self.calls[pair.a][pair.mode], self.calls[pair.b][pair.mode]) for pair in pairs]
        times = time_pairs(runs, seconds, random.Random(seed))
        return {"times": times, "session_s": {}, "first_run_s": self.first_run_s, "peak_bytes": None}


def measure_live(
    modules: Mapping[str, tuple[Any, ModelFacts]],
    example_inputs: tuple[Any, ...],
    options: BenchOptions,
    progress: Progress = lambda line: None,
) -> Benchmark:
    """Measure modules on their example inputs, in this process, eager and compiled; `modules` are with their counts.

    Raises `UsageError` without modules, `NoVerdict` if one does not run.
    """
    if not modules:
        raise UsageError("bench needs at least one model")
    from bnfold.frontends import torch

    options, notes = usable(replace(options, runtime="torch"), progress)
    contenders = [Contender(name, None, facts) for name, (_, facts) in modules.items()]
    measured = {name: module for name, (module, _) in modules.items()}
    measured[CONTROL] = copy.deepcopy(measured[contenders[0].name])
    calls = {
        name: {
            mode: torch.call_of_module(torch.compiled(module) if compiled else module, list(example_inputs))
            for mode, compiled in options.modes.items()
        }
        for name, module in measured.items()
    }
    batch = next((each.shape[0] for each in example_inputs if getattr(each, "ndim", 0)), 1)
    load_before = load()
    with torch.threads(options.threads):
        runs = Bursts(contenders, options, {batch: example_inputs}, progress, calls)
        runs.collect()
    return summarised(runs, [None] * len(contenders), "torch in this process", load_before, (NOTE, *notes))
