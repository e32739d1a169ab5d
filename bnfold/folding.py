"""Fold: decide over a graph that is not touched, then write each node once.

`fold(graph)` asks the rules about every affine until nothing changes. What they decide is collected in a `Plan`, which
shows the rules the graph as it will be. Only `commit` changes the graph, once per node: writing after each fold would
round after each fold.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from bnfold.algebra import ChannelAffine
from bnfold.combining import cancellation, work
from bnfold.graph import Graph, N, Reading, Reason, Refusal, Site, V
from bnfold.lowering import lowered
from bnfold.merging import MERGES, Merge
from bnfold.outcome import Absorbed, Combined, Copied, FoldReport, Merged, Outcome, Term, Unmerged
from bnfold.plan import Plan
from bnfold.rules import RULES, Rule, Step, Taken
from bnfold.undoing import undone


@dataclass(frozen=True)
class FoldOptions:
    """Which affines may fold (globs over node or module path), how much the parameters may grow by copies, whether a
    batch norm that stays is kept as it is or becomes a product and a sum, and whether linear operators are merged."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_growth: float = 1.10
    leftover: Literal["keep", "affine"] = "keep"
    merge: Literal["auto", "never"] = "auto"


@np.errstate(all="ignore")  # who takes the numbers in refuses what is not finite
def fold(graph: Graph[N, V], options: FoldOptions = FoldOptions()) -> FoldReport:
    """Fold every affine of the graph that can be folded exactly, and merge linear operators, in place; and say what
    became of each."""
    refused: dict[N, Refusal] = {
        node: Refusal(Reason.EXCLUDED) for node in graph.affines() if not _wanted(graph.site(node), options)
    }
    closed: set[Hashable] = set()
    given_up: set[N] = set()
    growth = 1.0
    while True:
        plan, refusals = decide(graph, refused, merge=options.merge == "auto", closed=closed)
        growth = max(growth, _growth(plan))
        costliest = _over_budget(plan, options.max_growth)
        if costliest is None:
            break
        assert costliest not in closed, "no copy is made of a weight that is closed"
        closed.add(costliest)
        given_up.update(_writing(plan, costliest))
    refusals |= dict.fromkeys(given_up & refusals.keys(), Refusal(Reason.GROWTH_BUDGET, growth=growth))
    if options.leftover == "affine":
        _lower(plan, refusals)
    report = _report(plan, refusals)
    names = plan.commit()
    return replace(
        report, outcomes=tuple(replace(row, lowered_to=names.get(row.site.name, ())) for row in report.outcomes)
    )


def decide(
    graph: Graph[N, V], refused: Mapping[N, Refusal], *, merge: bool = True, closed: Set[Hashable] = frozenset()
) -> tuple[Plan[N, V], dict[N, Refusal]]:
    """The fixpoint of the rules, nothing touched: the plan, and why each affine outside it stays. Of shared weights
    in `closed` no copy is made.

    Affines enter producers first to last and consumers last to first, so that a chain settles in one round.
    """
    plan = Plan(graph, refused.keys(), closed)
    order = [node for node in graph.affines() if node not in refused]
    while True:
        settled = len(plan.gone), len(plan.taken)
        upstream, downstream = (
            _try_rule(plan, rule, way) for rule, way in zip(RULES, (order, order[::-1]), strict=True)
        )
        _undo(plan)
        plan.unmerged = _try_merges(plan) if merge else {}
        if (len(plan.gone), len(plan.taken)) == settled:
            break
    left = {node: _explained(plan, node, (upstream[node], downstream[node])) for node in order if node not in plan.gone}
    return plan, {**refused, **left}


def _try_rule(plan: Plan[N, V], rule: Rule, order: Iterable[N]) -> dict[N, Refusal]:
    refusals = {}
    for node in order:
        if node in plan.gone:
            continue
        affine = plan.read(node)
        answer = _answer(plan, rule, node, affine) if isinstance(affine, ChannelAffine) else _unreadable(affine)
        if isinstance(answer, Refusal):
            refusals[node] = answer
        else:
            plan.accept(answer)
    return refusals


def _answer(plan: Plan[N, V], rule: Rule, node: N, affine: ChannelAffine) -> Step[N] | Refusal:
    """What the rule says; if all that it would write costs a copy that is too much, what it says of less."""
    answer: Step[N] | Refusal = rule(plan.leniently() if plan.closed else plan, node, affine, None)
    afforded = isinstance(answer, Refusal) or plan.affords(answer.writes)
    return answer if afforded else rule(plan, node, affine, None)


def _undo(plan: Plan[N, V]) -> None:
    """Let operators vanish that undo each other, the innermost first."""
    settled = -1
    while settled != len(plan.undone):
        settled = len(plan.undone)
        for node in plan.movers():
            if node not in plan.gone and (nodes := undone(plan, node)):
                plan.undo(nodes)


def _try_merges(plan: Plan[N, V]) -> dict[N, Refusal]:
    """Merge what can be merged; why the rest cannot, by the addition or operator where it was tried."""
    refusals = {}
    for rule in MERGES:
        for node in plan.joins():
            while isinstance(answer := rule(plan, node), Merge):
                plan.merge(answer)
            if isinstance(answer, Refusal):
                refusals[node] = answer
    return refusals


def _unreadable(reading: Reading) -> Refusal:
    assert isinstance(reading, Reason), "an affine reads as an affine or as the reason it is none"
    return Refusal(reading)


def _explained(plan: Plan[N, V], node: N, refusals: Sequence[Refusal]) -> Refusal:
    """The refusal that is true: the affine would fold if its blocker, and the fewest others, were not there."""
    chains = [_obstacles(plan, node, rule) for rule in RULES]
    complete = [chain for chain in chains if chain is not None]
    if not complete:
        return _telling(*refusals)
    vague = (Reason.NO_LINEAR_PRODUCER, Reason.SHARED_OUTPUT)
    best = min(complete, key=lambda chain: (len(chain), chain[0].reason in vague))
    names = dict.fromkeys(each.blocker for each in best[1:] if each.blocker)
    readers = tuple(each.blocker for each in best if each.blocker and each.reason is Reason.SHARED_OUTPUT)
    modules = {name: module for each in best for name, module in each.modules.items()}
    return replace(best[0], also=tuple(names), readers=readers, modules=modules)


def _obstacles(plan: Plan[N, V], node: N, rule: Rule) -> list[Refusal] | None:
    """What would have to go for a rule to fold the affine, in order; None where nothing, or only a budget, would."""
    affine, found = plan.read(node), list[Refusal]()
    answer = rule(plan, node, affine, found) if isinstance(affine, ChannelAffine) else None
    return found if found and isinstance(answer, Step) else None


def _telling(upstream: Refusal, downstream: Refusal) -> Refusal:
    """The refusal that says more: a producer that almost took the affine, else the reader that did not."""
    if upstream.reason is not Reason.NO_LINEAR_PRODUCER:
        return upstream
    is_end = upstream.blocker is not None and downstream.reason is Reason.IS_GRAPH_OUTPUT
    return upstream if is_end else downstream


def _lower(plan: Plan[N, V], refusals: Mapping[N, Refusal]) -> None:
    """Lower every batch norm that stays and is read; of one that the user excluded no part folds."""
    for node in plan.affines():
        affine = plan.original(node)
        is_idle = node in plan.gone or not plan.uses(plan.result(node))
        if is_idle or not plan.is_norm(node) or not isinstance(affine, ChannelAffine):
            continue
        if found := lowered(plan, node, affine, partly=refusals[node].reason is not Reason.EXCLUDED):
            step, rest = found
            plan.lower(node, rest, step)


def _wanted(site: Site, options: FoldOptions) -> bool:
    def named(patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in (site.name, site.module) if name for pattern in patterns)

    return (not options.include or named(options.include)) and not named(options.exclude)


def _growth(plan: Plan[N, V]) -> float:
    """The `max_growth` that all copies of a plan take, rounded up."""
    return 1 + math.ceil(100 * sum(plan.copies().values()) / max(plan.parameter_bytes(), 1)) / 100


def _over_budget(plan: Plan[N, V], max_growth: float) -> Hashable | None:
    """The shared weight of which copies cost most, if copies exceed the budget."""
    copies = plan.copies()
    if sum(copies.values()) <= max(max_growth - 1, 0) * plan.parameter_bytes():
        return None
    return max(copies, key=lambda key: copies[key])


def _writing(plan: Plan[N, V], key: Hashable) -> list[N]:
    """The affines that operators with this weight take in."""
    return [node for node, step in plan.gone.items() if any(_reads(plan, writer, key) for writer, _ in step.writes)]


def _reads(plan: Plan[N, V], node: N, key: Hashable) -> bool:
    weight = plan.shared(node)
    return weight is not None and weight.key == key


def _report(plan: Plan[N, V], refusals: Mapping[N, Refusal]) -> FoldReport:
    copies = plan.copies()
    unclaimed = dict(copies)

    def copied_by(step: Step[N]) -> int:
        weights = [weight for writer, _ in step.writes if (weight := plan.shared(writer))]
        return sum(unclaimed.pop(weight.key, 0) for weight in weights)

    def outcome(node: N) -> Outcome:
        affine, step = plan.original(node), plan.gone.get(node) or plan.partly.get(node)
        return Outcome(
            site=plan.site(node),
            channels=affine.channels if isinstance(affine, ChannelAffine) else None,
            axis=affine.axis if isinstance(affine, ChannelAffine) else None,
            rule=step.rule if step else None,
            into=tuple(dict.fromkeys(plan.site(plan.taker(writer)) for writer, _ in step.writes)) if step else (),
            refusal=None if node in plan.gone else refusals[node],
            via=tuple(plan.site(crossed) for crossed in step.via) if step else (),
            is_norm=plan.is_norm(node),
            copied_bytes=copied_by(step) if step else 0,
        )

    parted = tuple(
        Copied(tuple(plan.site(node) for node in plan.pending if _reads(plan, node, key)), nbytes)
        for key, nbytes in copies.items()
        if nbytes
    )
    return FoldReport(
        tuple(outcome(node) for node in plan.affines()),
        tuple(_absorbed(plan, taken) for taken in plan.taken),
        parted,
        tuple(_merged(plan, taken) for taken in plan.taken if isinstance(taken, Merge)),
        tuple(Unmerged(plan.site(node), refusal) for node, refusal in plan.unmerged.items()),
    )


def _absorbed(plan: Plan[N, V], taken: Taken[N] | Merge[N]) -> Absorbed | Combined:
    if isinstance(taken, Taken):
        return Absorbed(None if taken.node is None else plan.site(taken.node).name, taken.side, taken.origin)
    terms = tuple(
        Term(part.sign, None if part.operator is None else plan.site(part.operator).name, part.affine)
        for part in taken.parts
    )
    return Combined(plan.site(taken.into).name, terms, serial=taken.rule == "merge-serial")


def _merged(plan: Plan[N, V], merge: Merge[N]) -> Merged:
    """A merge in the user's words, with what it saved."""
    sums = tuple(dict.fromkeys(node for node, _ in merge.drops))
    extent, serial = plan.graph.extent(plan.graph.result(merge.into)), merge.rule == "merge-serial"
    affines = [plan.original(node) for node in merge.affines]
    kept = [work(part.op) for part in merge.parts if part.operator is not None]
    values = len(merge.operators) + len(affines) + (0 if serial else len(sums))
    return Merged(
        rule=merge.rule,
        into=plan.site(merge.into),
        nodes=tuple(plan.site(node) for node in (*merge.operators, *merge.affines, *sums)),
        macs_saved=None if extent is None else merge.saved * extent.numbers // merge.op.out_channels,
        parameters_saved=sum(kept) + sum(_numbers(plan, node) for node in merge.affines) - work(merge.op),
        activation_bytes_saved=None if extent is None or serial else values * extent.nbytes,
        cancellation=None if serial else cancellation([part.op for part in merge.parts], merge.op),
    )


def _numbers(plan: Plan[N, V], node: N) -> int:
    """How many numbers an affine stores: a batch norm four per channel."""
    affine = plan.original(node)
    assert isinstance(affine, ChannelAffine), "an affine that was merged was read"
    return affine.channels * (4 if plan.is_norm(node) else 1)
