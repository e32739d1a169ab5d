"""A gate closes on counts, never on a clock: the same files give the same answer on every machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.benchmark.records import Measured
from bnfold.errors import UsageError


@dataclass(frozen=True)
class Gate:
    """One rule: `count` of the last contender is at most `limit`; `proved` has no limit."""

    count: str
    limit: int | None

    def missed(self, contender: Measured, *, proved: bool) -> str | None:
        """What the contender does not meet, in one sentence; None where the gate is open."""
        if self.limit is None:
            return None if proved else f"{contender.name} is not proved"
        value = getattr(contender, self.count)
        if value is not None and value <= self.limit:
            return None
        return f"{contender.name} has {self.count} {'unknown' if value is None else value}, more than {self.limit}"


def parse_gates(rules: Sequence[str]) -> tuple[Gate, ...]:
    """Read `bn<=N`, `nodes<=N`, `macs<=N`, `bytes<=N` and `proved`. Any other is a `UsageError`: times never gate."""
    return tuple(_parse(rule) for rule in rules)


def _parse(rule: str) -> Gate:
    if rule == "proved":
        return Gate("proved", None)
    found = re.fullmatch(r"(bn|nodes|macs|bytes)<=(\d+)", rule.replace(" ", ""))
    if not found:
        hint = "--gate 'bn<=0' (or nodes, macs, bytes, proved)"
        raise UsageError(f"{rule!r} is no gate", code="bad-gate", hint=hint)
    return Gate(found[1], int(found[2]))
