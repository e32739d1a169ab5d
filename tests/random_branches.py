"""Random multi-branch graphs, merged and folded: never another result, never a crash, never more work.

    python tests/random_branches.py --count 10000 --seed 0 --jobs 2         both dialects
    python tests/random_branches.py --count 1000 --dialect torch            one of them
    python tests/random_branches.py --seed 4711 --count 1 --dialect onnx --show
    python tests/random_branches.py --faults                                plant each fault, until it is found

Blocks of two to six terms on one value, added in a random tree, most of which can be merged and some of which miss it
narrowly (`random_branches_blocks.py`), are written as ONNX and as fx graphs and executed in float64 as they were built
and as they were folded, at several sizes. Beyond equal results: the folded model is valid and runs, neither nodes nor
multiply-adds grow, folding again changes nothing, every batch norm has an outcome, and the certificate derives every
merged operator again. In another order and by other names as many nodes stay.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import onnx
import random_branches_onnx
import random_branches_torch
import random_onnx
import random_torch
import torch

from bnfold import combining, merging
from bnfold.algebra import LinearOp
from bnfold.outcome import FoldReport
from bnfold.plan import Plan
from bnfold.window import Window

CHUNK = 50
CHECKS = {"onnx": random_branches_onnx.check, "torch": random_branches_torch.check}


@dataclass
class Tally:
    """What became of many graphs."""

    counts: Counter[str] = field(default_factory=Counter)
    merges: Counter[str] = field(default_factory=Counter)
    unmerged: Counter[str] = field(default_factory=Counter)
    norms: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for mine, theirs in zip(self._counters(), other._counters(), strict=True):
            mine.update(theirs)
        self.wrong += other.wrong

    def note(self, report: FoldReport) -> None:
        """Count what one fold merged, and what it did not."""
        self.counts["folded"] += 1
        self.counts["merged something"] += bool(report.merges)
        self.merges.update(merge.rule for merge in report.merges)
        self.unmerged.update(each.refusal.reason.code for each in report.unmerged)
        self.norms.update(row.rule if row.refusal is None else row.refusal.reason.code for row in report.norms)

    def _counters(self) -> tuple[Counter[Any], ...]:
        return self.counts, self.merges, self.unmerged, self.norms

    def __str__(self) -> str:
        titles = ("graphs", "merges", "not merged", "batch norms")
        lines = [
            f"{title}: " + ", ".join(f"{name} {count}" for name, count in counter.most_common())
            for title, counter in zip(titles, self._counters(), strict=True)
        ]
        return "\n".join((*lines, f"wrong: {len(self.wrong)}", *self.wrong))


def check(seed: int, dialect: str, tally: Tally) -> str | None:
    """Draw and check the graph of one seed; what is wrong with its fold."""
    if dialect == "mixed":
        dialect = ("onnx", "torch")[seed % 2]
    try:
        drawn = CHECKS[dialect](seed, tally)
    except (random_onnx.Wrong, random_torch.Wrong) as wrong:
        return str(wrong)
    except Exception as error:  # a crash of any class is a finding
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"
    tally.counts[dialect if drawn else "discarded"] += 1
    return None


def check_many(seeds: Iterable[int], dialect: str) -> Tally:
    """Check the graphs of these seeds."""
    torch.set_num_threads(1)
    tally = Tally()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            if found := check(seed, dialect, tally):
                tally.wrong.append(f"seed {seed}: {found}")
    return tally


# planted faults

_UNION, _PLACES, _EMBEDDED, _DROPS = Window.union, Window.places, combining._embedded, merging._Tree.drops
_COMPOSED, _REGROUPED = combining.composed, combining._regrouped


def _next_place(self: Window, within: Window) -> Any:
    return (_PLACES(self, within) + (within.taps > self.taps)) % within.taps


def _first_place(self: Window, within: Window) -> Any:
    return _PLACES(self, within) * (self.taps > 1)


def _next_group(taps: Any, groups: int) -> Any:
    wide = _REGROUPED(taps, groups)
    return np.roll(wide, taps.shape[2], axis=2) if wide.shape[2] > taps.shape[2] else wide


def _without_bias(op: LinearOp, groups: int, window: Window) -> Any:
    taps, bias = _EMBEDDED(op, groups, window)
    return taps, 0 * bias


def _any_stride(self: Window, other: Window) -> Window | None:
    alike = len(self.stride) == len(other.stride) and self.stride != other.stride
    return _any_excess(self, replace(other, stride=self.stride)) if alike else _UNION(self, other)


def _any_excess(self: Window, other: Window) -> Window | None:
    if len(self.kernel) != len(other.kernel) or self.fixed is not None or other.fixed is not None:
        return _UNION(self, other)
    moved = zip(other.after, self.excess, other.excess, strict=True)
    return _UNION(self, replace(other, after=tuple(max(after + mine - its, 0) for after, mine, its in moved)))


def _any_fixed(self: Window, other: Window) -> Window | None:
    both = self.fixed is not None and other.fixed is not None and self.kernel == other.kernel
    return self if both else _UNION(self, other)


def _read(graph: Any, value: Any) -> bool:
    return any(isinstance(use, tuple) and use[1] is not None for use in graph.uses(value)[:1])


def _host_too(self: Any, gone: Any, host: Any) -> Any:
    found = _DROPS(self, gone, host)
    return found and ([*found[0][:-1], host.place], found[1])


def _no_border(second: LinearOp, first: LinearOp) -> Any:
    return _COMPOSED(replace(second, bordered=False), first)


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "a kernel is embedded one tap off": (Window, "places", _next_place),
    "a single tap is added to the first one": (Window, "places", _first_place),
    "groups are widened in a wrong order": (combining, "_regrouped", _next_group),
    "the sign of a difference is ignored": (merging, "_negated", lambda op: op),
    "biases are forgotten": (combining, "_embedded", _without_bias),
    "strides are not compared": (Window, "union", _any_stride),
    "excess is not compared": (Window, "union", _any_excess),
    "transposed windows are taken for alike": (Window, "union", _any_fixed),
    "other readers are not asked": (merging, "is_read_once", _read),
    "a bias meets a padded border": (merging, "composed", _no_border),
    "the wrong term is dropped": (merging._Tree, "drops", _host_too),
    "what merged operators took in is not followed": (Plan, "taker", lambda self, node: node),
    "work is not compared": (merging, "work", lambda _: 0),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """bnfold with one fault."""
    holder, attribute, fault = FAULTS[name]
    with mock.patch.object(holder, attribute, fault):
        yield


def graphs_until_found(name: str, most: int, seed: int = 0, dialect: str = "mixed") -> int | None:
    """How many graphs it takes to find a planted fault; None where `most` do not."""
    for count in range(1, most + 1):
        with planted(name):
            found = check_many([seed + count - 1], dialect).wrong
        if found and not check_many([seed + count - 1], dialect).wrong:
            return count
    return None


# the command line


def main() -> int:
    """Check graphs, or plant faults; 1 if something is wrong, or a fault is not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--dialect", choices=["mixed", *CHECKS], default="mixed")
    parser.add_argument("--show", action="store_true", help="print each graph")
    parser.add_argument("--faults", action="store_true", help="plant each fault and count graphs until it is found")
    options = parser.parse_args()
    if options.faults:
        return _print_faults(options.count, options.seed, options.dialect)
    if options.show:
        for seed in range(options.seed, options.seed + options.count):
            print(_shown(seed, options.dialect))
    start = time.monotonic()
    tally = _in_parallel(range(options.seed, options.seed + options.count), options.dialect, options.jobs)
    print(tally)
    seconds = time.monotonic() - start
    print(f"{seconds:.0f} s, {options.count / seconds:.1f} graphs a second")
    return bool(tally.wrong)


def _shown(seed: int, dialect: str) -> str:
    if dialect == "onnx" or (dialect == "mixed" and seed % 2 == 0):
        return str(onnx.printer.to_text(random_branches_onnx.draw(seed).model))
    drawn = random_branches_torch.draw(seed)
    return drawn.module.code if drawn else f"seed {seed}: nothing"


def _in_parallel(seeds: range, dialect: str, jobs: int) -> Tally:
    chunks = [seeds[first : first + CHUNK] for first in range(0, len(seeds), CHUNK)]
    total = Tally()
    with ProcessPoolExecutor(jobs) as pool:
        for tally in pool.map(check_many, chunks, [dialect] * len(chunks)):
            total.add(tally)
    return total


def _print_faults(most: int, seed: int, dialect: str) -> int:
    print("| fault | graphs until found |\n| --- | --- |", flush=True)
    found = []
    for name in FAULTS:
        found.append(graphs_until_found(name, most, seed, dialect))
        print(f"| {name} | {found[-1] or 'NOT FOUND'} |", flush=True)
    return int(None in found)


if __name__ == "__main__":
    sys.exit(main())
