"""How long files take in onnxruntime at its defaults, each measurement in a fresh process, the files interleaved.

A repetition visits every file once in a random order. A visit starts a process that loads this file alone, warms up
and runs it for a while; its time is the median of its runs. Threads of another session, which spin on for a while
after each run, never share the processor with it. A ratio is taken within a repetition, of the first file over
another; given are the median of the ratios and an interval that covers the true median in at least 95 of 100 cases
(order statistics, which assume nothing of how times are distributed). The first file is visited twice: its second
visits are the control.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bnfold.benchmark.processes import start_child

CONFIDENCE = 0.95
CONTROL = "the first again"


@dataclass(frozen=True)
class Timed:
    """The median time in seconds, and how many times as fast as the first file it is; None: too few repetitions."""

    seconds: float
    ratio: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.ratio:.2f}" if self.low is None else f"{self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}]"


def measure(
    files: Mapping[str, Path], feeds: Mapping[str, Any], folder: Path, threads: int, repetitions: int, seconds: float
) -> dict[str, Timed]:
    """Times by name; the first file is what the others are compared with."""
    inputs, order = folder / "inputs.npz", random.Random(0)
    np.savez(inputs, **feeds)
    first = next(iter(files))
    visited = {**files, CONTROL: files[first]}
    times: dict[str, list[float]] = {name: [] for name in visited}
    for repetition in range(repetitions):
        names = list(visited)
        order.shuffle(names)
        for name in names:
            times[name].append(visit(visited[name], inputs, threads, seconds))
        print(f"repetition {repetition + 1} of {repetitions}, threads: {threads}", file=sys.stderr, flush=True)
    return {name: timed(times[first], times[name]) for name in visited}


def visit(path: Path, inputs: Path, threads: int, seconds: float) -> float:
    """The median run of one fresh process."""
    job = {
        "runtime": "onnxruntime",
        "models": {"it": {"path": str(path.resolve()), "optimise": True}},
        "pairs": [["it", "it", "1"]],
        "inputs": {"1": str(inputs.resolve())},
        "seed": 0,
        "seconds": seconds,
        "provider": "cpu",
        "provider_options": {},
        "threads": threads,
    }
    return float(np.median(start_child(job)["times"][0]))


def timed(first: list[float], other: list[float]) -> Timed:
    ratios = sorted(one / two for one, two in zip(first, other, strict=True))
    outside = outermost(len(ratios))
    low, high = (None, None) if outside is None else (ratios[outside], ratios[-1 - outside])
    return Timed(median(other), median(ratios), low, high)


def outermost(count: int) -> int | None:
    """How many of so many sorted values may be left out at either end of an interval for the median; None: no such."""
    beyond, found = 0.0, None
    for position in range(count // 2):
        beyond += 2 * math.comb(count, position) / 2**count
        if beyond > 1 - CONFIDENCE:
            break
        found = position
    return found
