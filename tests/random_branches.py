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

import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import random_branches_onnx
import random_branches_torch
import torch
from random_harness import Campaign, Fault, Tally, Wrong

from bnfold import combining, merging
from bnfold.algebra import LinearOp
from bnfold.outcome import FoldReport
from bnfold.plan import Plan
from bnfold.window import Window

CHECKS = {"onnx": random_branches_onnx.check, "torch": random_branches_torch.check}


@dataclass
class Merges(Tally):
    """What became of many graphs."""

    merges: Counter[str] = field(default_factory=Counter)
    unmerged: Counter[str] = field(default_factory=Counter)
    norms: Counter[str] = field(default_factory=Counter)
    TITLES = {"counts": "graphs", "merges": "merges", "unmerged": "not merged", "norms": "batch norms"}  # noqa: RUF012

    def note(self, report: FoldReport) -> None:
        """Count what one fold merged, and what it did not."""
        self.counts["folded"] += 1
        self.counts["merged something"] += bool(report.merges)
        self.merges.update(merge.rule for merge in report.merges)
        self.unmerged.update(each.refusal.reason.code for each in report.unmerged)
        self.norms.update(row.rule if row.refusal is None else row.refusal.reason.code for row in report.norms)


def check(seed: int, dialect: str, tally: Merges) -> str | None:
    """Draw and check the graph of one seed; what is wrong with its fold."""
    if dialect == "mixed":
        dialect = ("onnx", "torch")[seed % 2]
    try:
        drawn = CHECKS[dialect](seed, tally)
    except Wrong as wrong:
        return str(wrong)
    except Exception as error:  # a crash of any class is a finding
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"
    tally.counts[dialect if drawn else "discarded"] += 1
    return None


def check_many(seeds: Iterable[int], dialect: str) -> Merges:
    """Check the graphs of these seeds."""
    torch.set_num_threads(1)
    tally = Merges()
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


FAULTS: dict[str, Fault] = {
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


CAMPAIGN = Campaign(FAULTS, check_many, tuple(CHECKS))


def _show(seed: int, dialect: str) -> None:
    if dialect == "onnx" or (dialect == "mixed" and seed % 2 == 0):
        print(onnx.printer.to_text(random_branches_onnx.draw(seed).model))
        return
    drawn = random_branches_torch.draw(seed)
    print(drawn.module.code if drawn else f"seed {seed}: nothing")


if __name__ == "__main__":
    sys.exit(CAMPAIGN.main(__doc__, _show))
