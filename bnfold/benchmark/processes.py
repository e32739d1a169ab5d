"""The measuring processes: each starts fresh, on files, and answers with timings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.benchmark.records import OPTIMISATIONS, BenchOptions, Compared, Contender, Measured
from bnfold.benchmark.statistics import CONFIDENCE, FEWEST_PROCESSES, Interval, judge, percentile, ratio_interval
from bnfold.errors import EnvironmentFailure, NoVerdict

CONTROL = "a second copy"
_SHORTEST_S = 0.05

Progress = Callable[[str], None]


class Processes:
    """The measuring processes and what they answered."""

    def __init__(
        self, contenders: Sequence[Contender], options: BenchOptions, inputs: Path, progress: Progress
    ) -> None:
        first = contenders[0].name
        self.contenders, self.options, self.inputs, self.progress = contenders, options, inputs, progress
        self.pairs = [(first, CONTROL, "default")]
        self.pairs += [(first, other.name, how) for other in contenders[1:] for how in OPTIMISATIONS]
        self.answers: list[dict[str, Any]] = []
        self.alone: dict[str, dict[str, Any]] = {}
        self.interrupted = False

    def collect(self) -> None:
        """Each contender alone, for memory; then all together, until the processes or the budget are used up."""
        start = time.perf_counter()
        try:
            for contender in self.contenders:
                self.progress(f"memory of {contender.name}")
                self.alone[contender.name] = self._start([(contender.name, "default")], [], 0.0)
            self._collect_together(start)
        except KeyboardInterrupt:
            self.interrupted = True

    def _collect_together(self, start: float) -> None:
        loading, budget, processes = 0.0, self.options.budget, self.options.processes
        models = sorted({(name, how) for a, b, how in self.pairs for name in (a, b)})
        for number in range(processes):
            left = budget - (time.perf_counter() - start)
            if number >= FEWEST_PROCESSES and left < loading + _SHORTEST_S:
                return
            self.progress(f"process {number + 1} of {processes}")
            seconds = max(left / (processes - number) - loading, _SHORTEST_S)
            began = time.perf_counter()
            self.answers.append(self._start(models, self.pairs, seconds))
            loading = max(time.perf_counter() - began - seconds, 0.0)

    def _start(self, models: Sequence[tuple[str, str]], pairs: Sequence[tuple[str, str, str]], seconds: float) -> Any:
        paths = {contender.name: contender.path for contender in self.contenders}
        paths[CONTROL] = self.contenders[0].path
        job = {
            "models": {
                _key(name, how): {"path": str(paths[name].resolve()), "optimise": OPTIMISATIONS[how]}
                for name, how in models
            },
            "pairs": [[_key(a, how), _key(b, how)] for a, b, how in pairs],
            "inputs": str(self.inputs),
            "seed": self.options.probes.seed + len(self.answers),
            "seconds": seconds,
            "provider": self.options.provider,
            "provider_options": dict(self.options.provider_options),
            "threads": self.options.threads,
        }
        return start_child(job)

    def rounds(self, a: str, b: str, how: str) -> list[Any]:
        """The `(rounds, 2)` times of one pair, by process."""
        position = self.pairs.index((a, b, how))
        return [np.array(answer["times"][position]).reshape(-1, 2) for answer in self.answers]

    def interval(self, a: str, b: str, how: str) -> Interval | None:
        """The ratio of one pair."""
        return ratio_interval(self.rounds(a, b, how), seed=self.options.probes.seed)

    def compared(self, pair: tuple[str, str, str], control: Interval | None) -> Compared:
        """One row of the comparisons."""
        interval = self.interval(*pair)
        ratio, low, high = (interval.ratio, interval.low, interval.high) if interval else (None, None, None)
        return Compared(*pair, ratio, low, high, CONFIDENCE, judge(interval, control))

    def measured(self, contender: Contender, left: int | None, batch: int) -> Measured:
        """One row of the contenders."""
        columns = [
            rounds[:, side]
            for pair in self.pairs
            for side in (0, 1)
            if pair[side] == contender.name and pair[2] == "default"
            for rounds in self.rounds(*pair)
        ]
        times = np.concatenate([np.empty(0), *columns])
        p50, facts = percentile(times, 0.5), contender.facts
        return Measured(
            name=contender.name,
            path=str(contender.path),
            bn=facts.batch_norms,
            bn_after_runtime=left,
            nodes=facts.nodes,
            parameters=facts.parameters,
            macs=facts.macs,
            bytes=facts.bytes,
            p50_s=p50,
            p90_s=percentile(times, 0.9),
            p99_s=percentile(times, 0.99),
            throughput=batch / p50 if p50 else None,
            session_s=self._median("session_s", contender.name),
            first_run_s=self._median("first_run_s", contender.name),
            peak_bytes=self.alone.get(contender.name, {}).get("peak_bytes"),
        )

    def _median(self, what: str, name: str) -> float | None:
        values = [answer[what][_key(name, "default")] for answer in (*self.answers, *self._alone(name))]
        return float(np.median(values)) if values else None

    def _alone(self, name: str) -> list[dict[str, Any]]:
        return [self.alone[name]] if name in self.alone else []


def _key(name: str, how: str) -> str:
    return f"{name} ({how})"


def start_child(job: Mapping[str, Any]) -> Any:
    """Run one measuring process to its end. Raises `NoVerdict` if a model does not run there."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "bnfold.benchmark.child"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode < 0 or not done.stdout:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EnvironmentFailure(f"a measuring process died: {reason}", code="child-died")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise NoVerdict(answer["error"], code="cannot-run")
    return answer
