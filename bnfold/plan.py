"""The plan: decisions laid over a graph that is not touched, so that rules see the graph as it will be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic

from bnfold.algebra import ChannelAffine, LinearOp
from bnfold.graph import Extent, Graph, N, Reading, Reason, Refusal, SharedWeight, Site, Use, V
from bnfold.merging import Merge
from bnfold.rules import Step, Taken
from bnfold.travel import Sum


@dataclass
class Plan(Generic[N, V]):
    """The graph as it will be: pending operators and vanished affines laid over a graph that is not touched.

    `lowered` are batch norms that stay as another affine, of which those in `partly` have lost their scale to a step.
    `kept` are affines that must stay as they are, `closed` shared weights of which no copy may be made. `moved` tells
    of an operator that was merged which one has taken it in, `left` of a sum which of its terms stay, `unmerged` what
    is not.
    `undone` are operators in a row that do nothing together. `strict` says whether `fits` asks what a copy costs.
    """

    graph: Graph[N, V]
    kept: Set[N] = frozenset()
    closed: Set[Hashable] = frozenset()
    pending: dict[N, LinearOp] = field(default_factory=dict)
    gone: dict[N, Step[N]] = field(default_factory=dict)
    taken: list[Taken[N] | Merge[N]] = field(default_factory=list)
    moved: dict[N, N] = field(default_factory=dict)
    left: dict[N, tuple[int, ...]] = field(default_factory=dict)
    unmerged: dict[N, Refusal] = field(default_factory=dict)
    undone: list[tuple[N, ...]] = field(default_factory=list)
    lowered: dict[N, ChannelAffine] = field(default_factory=dict)
    partly: dict[N, Step[N]] = field(default_factory=dict)
    strict: bool = True
    _readings: dict[N, Reading] = field(default_factory=dict)
    _uses: dict[V, Sequence[Use[N] | Reason]] = field(default_factory=dict)
    _sites: dict[N, Site] = field(default_factory=dict)

    def affines(self) -> Sequence[N]:
        return self.graph.affines()

    def is_norm(self, node: N) -> bool:
        return self.graph.is_norm(node)

    def extent(self, value: V) -> Extent | None:
        return self.graph.extent(value)

    def joins(self) -> Sequence[N]:
        return [node for node in self._all_joins if node not in self.moved and not self._is_idle(node)]

    @cached_property
    def _all_joins(self) -> Sequence[N]:
        return self.graph.joins()

    def movers(self) -> Sequence[N]:
        return self._movers

    @cached_property
    def _movers(self) -> Sequence[N]:
        return self.graph.movers()

    def position(self, node: N) -> int:
        return self.graph.position(node)

    def site(self, node: N) -> Site:
        if node not in self._sites:
            self._sites[node] = self.graph.site(node)
        return self._sites[node]

    def data(self, node: N) -> V:
        """The value the node reads, behind every affine that vanished."""
        return self._behind(self.graph.data(node))

    def inputs(self, node: N) -> Sequence[V]:
        values = [self._behind(value) for value in self.graph.inputs(node)]
        return [values[port] for port in self.left[node]] if node in self.left else values

    def outputs(self, node: N) -> Sequence[V]:
        return self.graph.outputs(node)

    def result(self, node: N) -> V:
        return self.graph.result(node)

    def producer(self, value: V) -> N | None:
        return self.graph.producer(value)

    def uses(self, value: V) -> Sequence[Use[N] | Reason]:
        """The readers of the value and of every vanished node that reads it."""
        found: list[Use[N] | Reason] = []
        values = [value]
        for current in values:
            for use in self._read_by(current):
                if isinstance(use, Reason):
                    found.append(use)
                elif self._is_vanished(use[0]):
                    values += [self.graph.outputs(use[0])[0]] * self._stays(*use)
                elif use[0] not in self.moved and self._stays(*use):
                    found.append((use[0], self._renumbered(*use)))
        return found

    def _read_by(self, value: V) -> Sequence[Use[N] | Reason]:
        if value not in self._uses:
            self._uses[value] = self.graph.uses(value)
        return self._uses[value]

    def _behind(self, value: V) -> V:
        while (maker := self.graph.producer(value)) is not None and self._is_vanished(maker):
            value = self.graph.inputs(maker)[self.left[maker][0]] if maker in self.left else self.graph.data(maker)
        return value

    def _is_vanished(self, node: N) -> bool:
        return node in self.gone or len(self.left.get(node, (0, 0))) == 1

    def _is_idle(self, node: N) -> bool:
        """Whether nothing is left to do: it vanished, or no term of it stays."""
        return self._is_vanished(node) or self.left.get(node) == ()

    def _stays(self, node: N, port: int | None) -> bool:
        return node not in self.left or port in self.left[node]

    def _renumbered(self, node: N, port: int | None) -> int | None:
        return port if port is None or node not in self.left else self.left[node].index(port)

    def read(self, node: N) -> Reading:
        if node in self.pending:
            return self.pending[node]
        if node in self.left:
            reading = self.original(node)
            assert isinstance(reading, Sum), "only a sum loses terms"
            return reading.only(self.left[node])
        if node in self.lowered:
            return Reason.NOT_LINEAR
        reading = self.original(node)
        return Reason.NOT_LINEAR if node in self.kept and isinstance(reading, ChannelAffine) else reading

    def original(self, node: N) -> Reading:
        """What the node is in the graph that is not touched."""
        if node not in self._readings:
            self._readings[node] = self.graph.read(node)
        return self._readings[node]

    def fits(self, node: N, op: LinearOp) -> Reason | None:
        """As the graph says; `GROWTH_BUDGET` where only a copy of a weight that is closed could hold it."""
        affordable = not self.strict or self.affords([(node, op)])
        return self.graph.fits(node, op) or (None if affordable else Reason.GROWTH_BUDGET)

    def leniently(self) -> Plan[N, V]:
        """The same plan, in which `fits` does not ask for the budget: a step may rewrite all readers of a weight."""
        return replace(self, strict=False)

    def affords(self, writes: Iterable[tuple[N, LinearOp]]) -> bool:
        """Whether all of these together make no copy of a weight that is closed."""
        if not self.closed:
            return True
        copies = self._copies({**self.pending, **dict(writes)})
        return not any(copies.get(key) for key in self.closed)

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

    def merge(self, merge: Merge[N]) -> None:
        """Take a merge into the plan."""
        for node in merge.operators:
            self.pending.pop(node, None)
            self.moved[node] = merge.into
        vanished = (*merge.affines, *merge.idle, *(merge.operators if merge.rule == "merge-serial" else ()))
        self.gone.update(dict.fromkeys(vanished, Step(merge.rule, merge.affines, ((merge.into, merge.op),))))
        dropped_values = [self.inputs(node)[port] for node, port in merge.drops]
        for node, dropped in _by_node(merge.drops).items():
            ports = self.left.get(node) or tuple(range(len(self.graph.inputs(node))))
            self.left[node] = tuple(port for index, port in enumerate(ports) if index not in dropped)
        for value in dropped_values:
            self._leave(self._behind(value))
        self.pending[merge.into] = merge.op
        self.taken.append(merge)

    def undo(self, nodes: tuple[N, ...]) -> None:
        """Let operators vanish that do nothing together."""
        self.gone.update(dict.fromkeys(nodes, Step("undo", (), ())))
        self.undone.append(nodes)

    def _leave(self, value: V) -> None:
        """A sum that nobody reads any more has no terms, nor have those in it."""
        maker = self.graph.producer(value)
        if maker is not None and isinstance(self.original(maker), Sum) and not self.uses(value):
            inner, self.left[maker] = self.inputs(maker), ()
            for each in inner:
                self._leave(each)

    def taker(self, node: N) -> N:
        """The operator that holds now what this one took in."""
        while node in self.moved:
            node = self.moved[node]
        return node

    def lower(self, node: N, rest: ChannelAffine, step: Step[N] | None) -> None:
        """Let a batch norm stay as the affine `rest`, once a step has taken its scale, if one has."""
        self.lowered[node] = rest
        if step is not None:
            self.partly[node] = step
            self.pending.update(step.writes)
            self.taken.extend(step.taken)

    def copies(self) -> dict[Hashable, int]:
        """Bytes that copies of each shared weight will add. Equal copies become one; an original nobody reads goes, and
        what was merged does not read it."""
        return self._copies(self.pending)

    def _copies(self, pending: Mapping[N, LinearOp]) -> dict[Hashable, int]:
        rewritten: dict[SharedWeight, list[object]] = {}
        merged = Counter(weight.key for node in self.moved if (weight := self.graph.shared(node)))
        for node, op in pending.items():
            if weight := self.graph.shared(node):
                rewritten.setdefault(weight, []).append(op.source)
        return {
            weight.key: weight.nbytes * (len(set(versions)) - (len(versions) == weight.readers - merged[weight.key]))
            for weight, versions in rewritten.items()
        }

    def commit(self) -> dict[str, tuple[str, ...]]:
        """The only caller of the verbs: each operator is written once, then each vanished node is bypassed and each
        merged term dropped, then what stays is lowered; by the name of the batch norm, those of the nodes that it
        became. Where no number changes, operators that undo each other are left as they are."""
        if not (self.taken or self.lowered):
            return {}
        for node, op in self.pending.items():
            self.graph.write(node, op)
        together = {node for nodes in self.undone for node in nodes}
        for node in self.gone:
            if node not in together:
                self.graph.bypass(node)
        for first, *_, last in self.undone:
            self.graph.undo(first, last)
        for node in sorted((node for node, ports in self.left.items() if ports), key=self.graph.position):
            self.graph.drop(node, tuple(set(range(len(self.graph.inputs(node)))) - {*self.left[node]}))
        return {self.site(node).name: self.graph.lower(node, rest) for node, rest in self.lowered.items()}


def _by_node(places: Sequence[tuple[N, int]]) -> dict[N, set[int]]:
    found: dict[N, set[int]] = {}
    for node, port in places:
        found.setdefault(node, set()).add(port)
    return found
