"""The measuring processes: each starts fresh, on files, and answers with timings."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bnfold import children
from bnfold.benchmark.records import AtBatch, BenchOptions, Compared, Contender, Measured
from bnfold.benchmark.statistics import (
    CONFIDENCE,
    FEWEST_PROCESSES,
    Array,
    Interval,
    judge,
    percentile,
    ratio_interval,
)
from bnfold.errors import EnvironmentFailure, NoVerdict

CONTROL = "a second copy"
_SHORTEST_S = 0.05
_SETTLED = 0.01
"""Once every interval is as narrow as this, half the smallest effect, more processes would not change what is said."""
_FEWEST_TO_SETTLE = 5

Progress = Callable[[str], None]


class Pair(NamedTuple):
    """Two contenders, by name, in one mode of the runtime at one batch size."""

    a: str
    b: str
    mode: str
    batch: int


class Processes:
    """The measuring processes and what they answered. `inputs` are files of arrays, by batch size."""

    noun, nouns = "process", "processes"

    def __init__(
        self, contenders: Sequence[Contender], options: BenchOptions, inputs: Mapping[int, Any], progress: Progress
    ) -> None:
        first, others = contenders[0].name, [contender.name for contender in contenders[1:]]
        self.contenders, self.options, self.inputs, self.progress = contenders, options, inputs, progress
        self.batches = tuple(inputs)
        self.batch, *more = self.batches
        self.pairs = [Pair(first, CONTROL, options.mode, self.batch)]
        self.pairs += [Pair(first, other, mode, self.batch) for other in others for mode in options.modes]
        self.pairs += [Pair(first, other, options.mode, batch) for batch in more for other in others or [CONTROL]]
        self.answers: list[dict[str, Any]] = []
        self.alone: dict[str, dict[str, Any]] = {}
        self.interrupted = self.settled = False

    def collect(self) -> None:
        """Each contender alone, for memory; then all together, until the processes or the budget are used up, or
        nothing more is to be learnt."""
        start = time.perf_counter()
        try:
            self._collect_alone()
            self._collect_together(start)
        except KeyboardInterrupt:
            self.interrupted = True

    def _collect_alone(self) -> None:
        for contender in self.contenders:
            self.progress(f"memory of {contender.name}")
            self.alone[contender.name] = self._start([(contender.name, self.options.mode)], [], 0.0)

    def _collect_together(self, start: float) -> None:
        loading, budget, processes = 0.0, self.options.budget, self.options.processes
        models = sorted({(name, pair.mode) for pair in self.pairs for name in (pair.a, pair.b)})
        for number in range(processes):
            left = budget - (time.perf_counter() - start)
            if number >= FEWEST_PROCESSES and left < loading + _SHORTEST_S:
                return
            self.progress(f"{self.noun} {number + 1} of {processes}, about {max(left, 0):.0f} s left")
            seconds = max(left / (processes - number) - loading, _SHORTEST_S)
            began = time.perf_counter()
            self.answers.append(self._start(models, self.pairs, seconds))
            loading = max(time.perf_counter() - began - seconds, 0.0)
            if number + 1 >= _FEWEST_TO_SETTLE and self._is_settled():
                self.settled = True
                return

    def _is_settled(self) -> bool:
        intervals = (self.interval(pair) for pair in self.pairs)
        return all(each is not None and each.high <= each.low * (1 + _SETTLED) for each in intervals)

    def _start(self, models: Sequence[tuple[str, str]], pairs: Sequence[Pair], seconds: float) -> Any:
        paths = {contender.name: contender.file for contender in self.contenders}
        paths[CONTROL] = paths[self.contenders[0].name]
        modes = self.options.modes
        job = {
            "runtime": self.options.runtime,
            "models": {_key(name, mode): {"path": str(paths[name]), "optimise": modes[mode]} for name, mode in models},
            "pairs": [[_key(pair.a, pair.mode), _key(pair.b, pair.mode), str(pair.batch)] for pair in pairs],
            "inputs": {str(batch): str(path) for batch, path in self.inputs.items()},
            "seed": self.options.probes.seed + len(self.answers),
            "seconds": seconds,
            "provider": self.options.provider,
            "provider_options": dict(self.options.provider_options),
            "threads": self.options.threads,
        }
        return start_child(job)

    def rounds(self, pair: Pair) -> list[Array]:
        """The `(rounds, 2)` times of one pair, by process."""
        position = self.pairs.index(pair)
        return [np.array(answer["times"][position]).reshape(-1, 2) for answer in self.answers]

    def interval(self, pair: Pair) -> Interval | None:
        """The ratio of one pair."""
        return ratio_interval(self.rounds(pair), seed=self.options.probes.seed)

    @property
    def control(self) -> Interval | None:
        """The first contender against itself."""
        return self.interval(self.pairs[0])

    def compared(self) -> tuple[Compared, ...]:
        """The rows of the comparisons."""
        control = self.control
        return tuple(self._compared(pair, control) for pair in self.pairs if pair.b != CONTROL)

    def _compared(self, pair: Pair, control: Interval | None) -> Compared:
        interval = self.interval(pair)
        ratio, low, high = (interval.ratio, interval.low, interval.high) if interval else (None, None, None)
        verdict = judge(interval, control)
        return Compared(pair.a, pair.b, pair.mode, ratio, low, high, CONFIDENCE, verdict, pair.batch)

    def measured(self, contender: Contender, census: Mapping[str, int] | None) -> Measured:
        """One row of the contenders; `census` counts the operators that the runtime makes of it."""
        times, facts = self._times(contender.name, self.batch), contender.facts
        batches = tuple(self._at_batch(contender.name, batch) for batch in self.batches)
        return Measured(
            name=contender.name,
            path=None if contender.path is None else str(contender.path),
            bn=facts.batch_norms,
            bn_after_runtime=None if census is None else census.get("BatchNormalization", 0),
            nodes=facts.nodes,
            parameters=facts.parameters,
            macs=facts.macs,
            bytes=facts.bytes,
            p50_s=batches[0].p50_s,
            p90_s=percentile(times, 0.9),
            p99_s=percentile(times, 0.99),
            throughput=batches[0].throughput,
            session_s=self._median("session_s", contender.name),
            first_run_s=self._median("first_run_s", contender.name),
            peak_bytes=self.alone.get(contender.name, {}).get("peak_bytes"),
            activation_bytes=facts.activation_bytes,
            operators_after_runtime=census,
            batches=batches,
        )

    def _times(self, name: str, batch: int) -> Array:
        """All times of one contender in the first mode, in seconds."""
        columns = [
            rounds[:, side]
            for pair in self.pairs
            if pair.mode == self.options.mode and pair.batch == batch
            for side in (0, 1)
            if pair[side] == name
            for rounds in self.rounds(pair)
        ]
        return np.concatenate([np.empty(0), *columns])

    def _at_batch(self, name: str, batch: int) -> AtBatch:
        p50 = percentile(self._times(name, batch), 0.5)
        return AtBatch(batch, p50, batch / p50 if p50 else None)

    def _median(self, what: str, name: str) -> float | None:
        key = _key(name, self.options.mode)
        values = [answer[what][key] for answer in (*self.answers, *self._alone(name)) if key in answer[what]]
        return float(np.median(values)) if values else None

    def _alone(self, name: str) -> list[dict[str, Any]]:
        return [self.alone[name]] if name in self.alone else []


def _key(name: str, mode: str) -> str:
    return f"{name} ({mode})"


def start_child(job: Mapping[str, Any]) -> Any:
    """Run one measuring process to its end. Raises `NoVerdict` if a model does not run there."""
    done = subprocess.run(
        children.command("bnfold.benchmark.child"),
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=children.environment(),
        check=False,
    )
    if done.returncode < 0 or not done.stdout:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EnvironmentFailure(f"a measuring process died: {reason}", code="child-died")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise NoVerdict(answer["error"], code="cannot-run")
    return answer
