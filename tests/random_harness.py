"""What the generators of random graphs share: a tally, planted faults, and the command line.

    CAMPAIGN = Campaign(FAULTS, check_many, dialects=("onnx", "torch"))
    sys.exit(CAMPAIGN.main(__doc__, show))

A campaign checks the graphs of many seeds, in parallel, or plants each of its faults and counts the graphs until it is
found.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Queue
from typing import Any, ClassVar
from unittest import mock

CHUNK = 50
MIXED = "mixed"

Fault = tuple[Any, str, Any]
"""What holds it, the attribute that is replaced, and what it becomes."""


class Wrong(Exception):
    """What a fold may never do."""


@dataclass
class Tally:
    """What became of many graphs. `TITLES` are the counters of a kind of tally, and what each is called."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    TITLES: ClassVar[Mapping[str, str]] = {"counts": "graphs"}

    def add(self, other: Tally) -> None:
        for name in self.TITLES:
            getattr(self, name).update(getattr(other, name))
        self.wrong += other.wrong

    def __str__(self) -> str:
        lines = [
            f"{title}: " + ", ".join(f"{key} {count}" for key, count in getattr(self, name).most_common())
            for name, title in self.TITLES.items()
        ]
        return "\n".join((*lines, f"wrong: {len(self.wrong)}", *self.wrong))


CheckMany = Callable[[Iterable[int], str], Tally]


def killed(seed: int, dialect: str) -> Tally:
    """The tally of a seed that ends the process that checks it."""
    return Tally(wrong=[f"{dialect} {seed}: the process died"])


class Worker:
    """A process that checks seeds; another one takes its place when a seed has ended it."""

    def __init__(self, campaign: Campaign, dialect: str) -> None:
        self.campaign, self.dialect = campaign, dialect
        self.pool = ProcessPoolExecutor(1)

    def check(self, seeds: range) -> Tally:
        """The tally of these seeds. Where the process dies, each is checked by itself, to find which one it was."""
        try:
            return self.pool.submit(self.campaign.check_many, seeds, self.dialect).result()
        except BrokenProcessPool:
            self.pool = ProcessPoolExecutor(1)
        if len(seeds) == 1:
            return self.campaign.killed(seeds[0], self.dialect)
        first, *others = (self.check(range(seed, seed + 1)) for seed in seeds)
        for other in others:
            first.add(other)
        return first


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """bnfold with one fault."""
    with mock.patch.object(*fault):
        yield


@dataclass(frozen=True)
class Campaign:
    """The faults that can be planted, how the graphs of some seeds are checked in one dialect, and which there are.

    `only_in` names the dialect in which a fault can be seen, where that is not `fault_dialect`. `killed` says what a
    seed comes to that ends the process; else it is wrong.
    """

    faults: Mapping[str, Fault]
    check_many: CheckMany
    dialects: tuple[str, ...]
    fault_dialect: str = MIXED
    only_in: Mapping[str, str] = field(default_factory=dict)
    killed: Callable[[int, str], Tally] = killed

    def until_found(self, name: str, most: int, seed: int = 0, dialect: str | None = None) -> int | None:
        """How many graphs it takes to find the fault of this name; None where `most` do not."""
        dialect = dialect or self.only_in.get(name, self.fault_dialect)
        for count in range(1, most + 1):
            with planted(self.faults[name]):
                found = self.check_many([seed + count - 1], dialect).wrong
            if found and not self.check_many([seed + count - 1], dialect).wrong:
                return count
        return None

    def main(self, description: str | None, show: Callable[[int, str], None]) -> int:
        """Check graphs, or plant faults; 1 if something is wrong, or a fault is not found."""
        options = self._parser(description).parse_args()
        if options.faults:
            return self._print_faults(options.count, options.seed)
        seeds = range(options.seed, options.seed + options.count)
        for seed in seeds if options.show else ():
            show(seed, options.dialect)
        start = time.monotonic()
        total: Tally | None = None
        for done, tally in enumerate(self.in_parallel(seeds, options.dialect, options.jobs), start=1):
            total = total or type(tally)()
            total.add(tally)
            if tally.wrong or done % 20 == 0:
                print(f"{done * CHUNK} of {options.count}: {len(total.wrong)} wrong", file=sys.stderr, flush=True)
        seconds = time.monotonic() - start
        print(f"{total}\n{seconds:.0f} s, {options.count / seconds:.1f} graphs a second")
        return bool(total and total.wrong)

    def _parser(self, description: str | None) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--count", type=int, default=1000)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--jobs", type=int, default=1)
        parser.add_argument("--dialect", choices=[MIXED, *self.dialects], default=MIXED)
        parser.add_argument("--show", action="store_true", help="print each graph first")
        parser.add_argument("--faults", action="store_true", help="plant each fault, count graphs until it is found")
        return parser

    def in_parallel(self, seeds: range, dialect: str, jobs: int) -> Iterator[Tally]:
        workers = Queue[Worker]()
        for _ in range(jobs):
            workers.put(Worker(self, dialect))

        def check(chunk: range) -> Tally:
            worker = workers.get()
            try:
                return worker.check(chunk)
            finally:
                workers.put(worker)

        with ThreadPoolExecutor(jobs) as threads:
            yield from threads.map(check, [seeds[first : first + CHUNK] for first in range(0, len(seeds), CHUNK)])
        while not workers.empty():
            workers.get().pool.shutdown()

    def _print_faults(self, most: int, seed: int) -> int:
        print("| fault | graphs until found |\n| --- | --- |", flush=True)
        found = []
        for name in self.faults:
            found.append(self.until_found(name, most, seed))
            print(f"| {name} | {found[-1] or 'NOT FOUND'} |", flush=True)
        return int(None in found)
