"""A gate closes on counts, never on a clock: the same files give the same answer on every machine."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bnfold.benchmark.records import Benchmark
from bnfold.errors import UsageError


def gate(rules: Sequence[str], benchmark: Benchmark, *, proved: bool | None = None) -> list[str]:
    """What the last contender does not meet, one sentence each; empty if the gate is open.

    `rules` are `bn<=N`, `nodes<=N`, `macs<=N`, `bytes<=N` or `proved`; times never gate. Any other is a `UsageError`.
    """
    last = benchmark.contenders[-1]
    failures = []
    for rule in rules:
        if rule == "proved":
            if not proved:
                failures.append(f"{last.name} is not proved")
            continue
        found = re.fullmatch(r"(bn|nodes|macs|bytes)<=(\d+)", rule.replace(" ", ""))
        if not found:
            raise UsageError(
                f"{rule!r} is no gate", code="bad-gate", hint="--gate 'bn<=0' (or nodes, macs, bytes, proved)"
            )
        value = getattr(last, found[1])
        if value is None or value > int(found[2]):
            failures.append(f"{last.name} has {found[1]} {'unknown' if value is None else value}, more than {found[2]}")
    return failures
