"""One measuring process: `python -m bnfold.benchmark.child` reads a job from stdin, writes timings to stdout.

It is started on files, so that nothing of the parent's state is measured. Pairs alternate AB and BA, so that what the
first leaves in the caches harms both alike.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bnfold.errors import BnfoldError
from bnfold.runtime import session

WARM_UP = 3
FEWEST_ROUNDS, MOST_ROUNDS = 2, 5000
VISIT_S = 0.02

Call = Callable[[], object]
Rounds = list[tuple[float, float]]
"""Seconds of the first and of the second of a pair, one row per round."""


def main() -> int:
    """Do the job; 1 and an `error` in the answer if a model does not run."""
    job = json.load(sys.stdin)
    try:
        answer = perform(job)
    except BnfoldError as error:
        json.dump({"error": str(error)}, sys.stdout)
        return 1
    json.dump(answer, sys.stdout)
    return 0


def perform(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load every model in a random order, then time the pairs for `seconds`. All times are in seconds."""
    order = random.Random(job["seed"])
    feeds = {batch: _feeds(Path(path)) for batch, path in job["inputs"].items()}
    keys = list(job["models"])
    order.shuffle(keys)
    models: dict[str, Timed] = {}
    session_s, first_run_s = {}, {}

    @cache
    def call(key: str, batch: str) -> Call:
        return models[key].prepared(feeds[batch])

    for key in keys:
        start = time.perf_counter()
        models[key] = _open(job, **job["models"][key])
        session_s[key] = time.perf_counter() - start
        first_run_s[key] = _timed(call(key, next(iter(feeds))))
    pairs = [(call(first, batch), call(second, batch)) for first, second, batch in job["pairs"]]
    times = time_pairs(pairs, job["seconds"], order)
    return {"session_s": session_s, "first_run_s": first_run_s, "times": times, "peak_bytes": peak_bytes()}


class Timed(Protocol):
    """A model that is ready to be timed."""

    def prepared(self, feeds: Mapping[str, NDArray[Any]]) -> Call:
        """One run on these arrays as a call without arguments."""


def _open(job: Mapping[str, Any], path: str, optimise: bool) -> Timed:
    if job["runtime"] == "torch":
        from bnfold.frontends import torch

        return torch.open_timed(Path(path), provider=job["provider"], threads=job["threads"], compiled=optimise)
    return session(
        Path(path),
        provider=job["provider"],
        provider_options=job["provider_options"],
        threads=job["threads"],
        optimise=optimise,
        spins=False,
    )


def time_pairs(pairs: Sequence[tuple[Call, Call]], seconds: float, order: random.Random) -> list[Rounds]:
    """Warm up, then visit the pairs in turn, each time in a random order, at least once; no garbage is collected."""
    for run in dict.fromkeys(run for pair in pairs for run in pair):
        for _ in range(WARM_UP):
            run()
    times: list[Rounds] = [[] for _ in pairs]
    positions = list(range(len(pairs)))
    end = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    while positions and len(times[0]) < MOST_ROUNDS:
        order.shuffle(positions)
        for position in positions:
            times[position] += _visit(*pairs[position])
        if time.perf_counter() > end:
            break
    gc.enable()
    return times


def _visit(first: Call, second: Call) -> Rounds:
    """A burst of rounds on one pair. Both run untimed first: one of them may be warm from another pair."""
    first()
    second()
    rounds: Rounds = []
    end = time.perf_counter() + VISIT_S
    while len(rounds) < FEWEST_ROUNDS or time.perf_counter() < end:
        if len(rounds) % 2:
            after, before = _timed(second), _timed(first)
        else:
            before, after = _timed(first), _timed(second)
        rounds.append((before, after))
    return rounds


def _timed(run: Call) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _feeds(path: Path) -> dict[str, Any]:
    """numpy writes bfloat16 as two anonymous bytes."""
    loaded = dict(np.load(path))
    return {
        name: value.view(ml_dtypes.bfloat16) if value.dtype.kind == "V" else value for name, value in loaded.items()
    }


def peak_bytes() -> int | None:
    """The high-water mark of this process; None where the system does not tell.

    Linux counts the parent's memory into `ru_maxrss` of a process that it started, so /proc is asked first.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        return int(line.split()[1]) * 1024 if line else None
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    raise SystemExit(main())
