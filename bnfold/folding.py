"""Fold: decide over a graph that is not touched, then write each node once.

`fold(graph)` asks the rules about every affine until nothing changes. What they decide is collected in a `Plan`, which
shows the rules the graph as it will be. Only `commit` changes the graph, once per node: writing after each fold would
round after each fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Generic, Literal

from bnfold.algebra import ChannelAffine, LinearOp
from bnfold.errors import PolicyViolation
from bnfold.graph import Graph, N, Reading, Reason, Refusal, SharedWeight, Site, Use, V
from bnfold.lowering import lowered
from bnfold.origin import Origin
from bnfold.rules import RULES, Rule, Side, Step, Taken


@dataclass(frozen=True)
class FoldOptions:
    """Which affines may fold (globs over node or module path), how much the parameters may grow by copies, and whether
    a batch norm that stays is kept as it is or becomes a product and a sum."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_growth: float = 1.10
    leftover: Literal["keep", "affine"] = "keep"


@dataclass(frozen=True)
class Outcome:
    """What became of one affine. `into` are the operators that took it, `via` those it crossed on the way there;
    `refusal` says why it stays. `is_norm` tells a batch norm from any other affine. `copied_bytes` is what copies of
    shared weights added for its sake, each copy counted once, for the first affine that needed it. `lowered_to` are the
    nodes that do what is left of a batch norm that stays; where it is only `partly` left, `into` took in its scale."""

    site: Site
    channels: int | None
    axis: int | None
    rule: str | None
    into: tuple[Site, ...]
    refusal: Refusal | None
    via: tuple[Site, ...] = ()
    is_norm: bool = True
    copied_bytes: int = 0
    lowered_to: tuple[str, ...] = ()

    @property
    def folded(self) -> bool:
        return self.refusal is None

    @property
    def partly(self) -> bool:
        """Whether its scale folded and its shift stays."""
        return self.refusal is not None and self.rule is not None

    @property
    def lowered(self) -> bool:
        """Whether what stays of it is no batch norm any more."""
        return bool(self.lowered_to)


@dataclass(frozen=True, eq=False)
class Absorbed:
    """One affine that the operator of this name took in, in front of it or behind it; None where it does nothing."""

    operator: str | None
    side: Side
    origin: Origin


@dataclass(frozen=True)
class Copied:
    """A shared weight that these operators do not share any more, and the bytes that this added."""

    operators: tuple[Site, ...]
    nbytes: int


@dataclass(frozen=True)
class FoldReport:
    """One row per affine of the model, in topological order; `absorbed` is what was composed, in order;
    `copies` are the weights that were shared and are not any more.

    `folded`, `left` and `raise_if_unfolded` speak of batch norms; other affines have rows of their own.
    """

    outcomes: tuple[Outcome, ...]
    absorbed: tuple[Absorbed, ...] = ()
    copies: tuple[Copied, ...] = ()

    @property
    def norms(self) -> tuple[Outcome, ...]:
        """The rows of the batch norms."""
        return tuple(outcome for outcome in self.outcomes if outcome.is_norm)

    @property
    def folded(self) -> int:
        return sum(outcome.folded for outcome in self.norms)

    @property
    def left(self) -> int:
        return len(self.norms) - self.folded

    def unaccepted(self, accept: Iterable[str] = ()) -> tuple[Outcome, ...]:
        """The batch norms left for a reason whose code is not in `accept`."""
        accepted = set(accept)
        return tuple(o for o in self.norms if o.refusal and o.refusal.reason.code not in accepted)

    def raise_if_unfolded(self, accept: Iterable[str] = ()) -> None:
        """Raise `PolicyViolation` if a batch norm is left for a reason that `accept` does not name."""
        if left := self.unaccepted(accept):
            codes = Counter(o.refusal.reason.code for o in left if o.refusal)
            found = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
            raise PolicyViolation(f"{len(left)} of {len(self.norms)} batch norms are left: {found}")

    def __repr__(self) -> str:
        return f"FoldReport({self.folded} of {len(self.norms)} batch norms folded)"


@dataclass
class Plan(Generic[N, V]):
    """The graph as it will be: pending operators and vanished affines laid over a graph that is not touched.

    `lowered` are batch norms that stay as another affine, of which those in `partly` have lost their scale to a step.

    `kept` are affines that must stay as they are.
    """

    graph: Graph[N, V]
    kept: Set[N] = frozenset()
    pending: dict[N, LinearOp] = field(default_factory=dict)
    gone: dict[N, Step[N]] = field(default_factory=dict)
    taken: list[Taken[N]] = field(default_factory=list)
    lowered: dict[N, ChannelAffine] = field(default_factory=dict)
    partly: dict[N, Step[N]] = field(default_factory=dict)
    _readings: dict[N, Reading] = field(default_factory=dict)

    def affines(self) -> Sequence[N]:
        return self.graph.affines()

    def is_norm(self, node: N) -> bool:
        return self.graph.is_norm(node)

    def position(self, node: N) -> int:
        return self.graph.position(node)

    def site(self, node: N) -> Site:
        return self.graph.site(node)

    def data(self, node: N) -> V:
        """The value the node reads, behind every affine that vanished."""
        return self._behind(self.graph.data(node))

    def inputs(self, node: N) -> Sequence[V]:
        return [self._behind(value) for value in self.graph.inputs(node)]

    def outputs(self, node: N) -> Sequence[V]:
        return self.graph.outputs(node)

    def result(self, node: N) -> V:
        return self.graph.result(node)

    def producer(self, value: V) -> N | None:
        return self.graph.producer(value)

    def uses(self, value: V) -> Sequence[Use[N] | Reason]:
        """The readers of the value and of every vanished affine that reads it."""
        found: list[Use[N] | Reason] = []
        values = [value]
        for current in values:
            for use in self.graph.uses(current):
                if not isinstance(use, Reason) and use[0] in self.gone:
                    values.append(self.graph.result(use[0]))
                else:
                    found.append(use)
        return found

    def _behind(self, value: V) -> V:
        while (maker := self.graph.producer(value)) is not None and maker in self.gone:
            value = self.graph.data(maker)
        return value

    def read(self, node: N) -> Reading:
        if node in self.pending:
            return self.pending[node]
        return Reason.NOT_LINEAR if node in self.kept or node in self.lowered else self.original(node)

    def original(self, node: N) -> Reading:
        """What the node is in the graph that is not touched."""
        if node not in self._readings:
            self._readings[node] = self.graph.read(node)
        return self._readings[node]

    def fits(self, node: N, op: LinearOp) -> Reason | None:
        return self.graph.fits(node, op)

    def inserts(self, node: N, op: LinearOp) -> bool:
        return self.graph.inserts(node, op)

    def shared(self, node: N) -> SharedWeight | None:
        return self.graph.shared(node)

    def parameter_bytes(self) -> int:
        return self.graph.parameter_bytes()

    def lowers(self, node: N, affine: ChannelAffine) -> bool:
        return self.graph.lowers(node, affine)

    def accept(self, step: Step[N]) -> None:
        """Take a decision into the plan."""
        self.pending.update(step.writes)
        self.gone.update(dict.fromkeys(step.affines, step))
        self.taken.extend(step.taken)

    def lower(self, node: N, rest: ChannelAffine, step: Step[N] | None) -> None:
        """Let a batch norm stay as the affine `rest`, once a step has taken its scale, if one has."""
        self.lowered[node] = rest
        if step is not None:
            self.partly[node] = step
            self.pending.update(step.writes)
            self.taken.extend(step.taken)

    def copies(self) -> dict[Hashable, int]:
        """Bytes that copies of each shared weight will add. Equal copies become one; an original nobody reads goes."""
        rewritten: dict[SharedWeight, list[object]] = {}
        for node, op in self.pending.items():
            if weight := self.graph.shared(node):
                rewritten.setdefault(weight, []).append(op.source)
        return {
            weight.key: weight.nbytes * (len(set(versions)) - (len(versions) == weight.readers))
            for weight, versions in rewritten.items()
        }

    def commit(self) -> dict[str, tuple[str, ...]]:
        """The only caller of the verbs: each operator is written once, then each vanished affine is bypassed, then what
        stays is lowered; by the name of the batch norm, those of the nodes that it became."""
        for node, op in self.pending.items():
            self.graph.write(node, op)
        for node in self.gone:
            self.graph.bypass(node)
        return {self.site(node).name: self.graph.lower(node, rest) for node, rest in self.lowered.items()}


def fold(graph: Graph[N, V], options: FoldOptions = FoldOptions()) -> FoldReport:
    """Fold every affine of the graph that can be folded exactly, in place, and say what became of each."""
    refused = {node: Refusal(Reason.EXCLUDED) for node in graph.affines() if not _wanted(graph.site(node), options)}
    while True:
        plan, refusals = decide(graph, refused)
        over = _over_budget(plan, options.max_growth)
        if not over:
            break
        refused |= {node: Refusal(Reason.GROWTH_BUDGET) for node in over}
    if options.leftover == "affine":
        _lower(plan, refusals)
    report = _report(plan, refusals)
    names = plan.commit()
    return replace(
        report, outcomes=tuple(replace(row, lowered_to=names.get(row.site.name, ())) for row in report.outcomes)
    )


def decide(graph: Graph[N, V], refused: Mapping[N, Refusal]) -> tuple[Plan[N, V], dict[N, Refusal]]:
    """The fixpoint of the rules, nothing touched: the plan, and why each affine outside it stays.

    Affines enter producers first to last and consumers last to first, so that a chain settles in one round.
    """
    plan = Plan(graph, refused.keys())
    order = [node for node in graph.affines() if node not in refused]
    while True:
        settled = len(plan.gone)
        upstream, downstream = (
            _try_rule(plan, rule, way) for rule, way in zip(RULES, (order, order[::-1]), strict=True)
        )
        if len(plan.gone) == settled:
            break
    left = {node: _explained(plan, node, (upstream[node], downstream[node])) for node in order if node not in plan.gone}
    return plan, {**refused, **left}


def _try_rule(plan: Plan[N, V], rule: Rule, order: Iterable[N]) -> dict[N, Refusal]:
    refusals = {}
    for node in order:
        if node in plan.gone:
            continue
        affine = plan.read(node)
        answer = rule(plan, node, affine, None) if isinstance(affine, ChannelAffine) else _unreadable(affine)
        if isinstance(answer, Refusal):
            refusals[node] = answer
        else:
            plan.accept(answer)
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
    return replace(best[0], also=tuple(names), readers=readers)


def _obstacles(plan: Plan[N, V], node: N, rule: Rule) -> list[Refusal] | None:
    """What would have to go for a rule to fold the affine, in order; None where nothing would help."""
    affine, found = plan.read(node), list[Refusal]()
    answer = rule(plan, node, affine, found) if isinstance(affine, ChannelAffine) else None
    return found if isinstance(answer, Step) else None


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


def _over_budget(plan: Plan[N, V], max_growth: float) -> set[N]:
    """The affines to give up if copies of shared weights exceed the budget: those of the costliest weight."""
    copies = plan.copies()
    if sum(copies.values()) <= max(max_growth - 1, 0) * plan.parameter_bytes():
        return set()
    costliest = max(copies, key=lambda key: copies[key])
    return {
        node for node, step in plan.gone.items() if any(_reads(plan, writer, costliest) for writer, _ in step.writes)
    }


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
            into=tuple(plan.site(writer) for writer, _ in step.writes) if step else (),
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
    absorbed = tuple(
        Absorbed(None if taken.node is None else plan.site(taken.node).name, taken.side, taken.origin)
        for taken in plan.taken
    )
    return FoldReport(tuple(outcome(node) for node in plan.affines()), absorbed, parted)
