"""Two rules merge linear operators into one. Each decides and returns a value; nothing is touched here.

    merge_branches   linear₁(x) + linear₂(x) + x   the terms of a sum that read one value
    merge_serial     linear₂(linear₁(x))           two operators with nothing between them

A term may be a linear operator, an affine, or the value itself, and it may stand anywhere in a tree of additions. The
one with most work takes in the others; the additions that have a single term left vanish. A merge never adds
multiply-adds. To add a rule: one function, its place in `MERGES`, rows in `tests/merge_cases.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from bnfold.algebra import ChannelAffine, LinearOp
from bnfold.combining import added, composed, linear, work
from bnfold.graph import N, Reason, Refusal, V, View
from bnfold.origin import Origin
from bnfold.rules import compose
from bnfold.travel import Same, Sum
from bnfold.undoing import behind_idle, is_read_once


@dataclass(frozen=True, eq=False)
class Part(Generic[N]):
    """A term of a merged sum: `sign` times an operator, an affine, or neither (the value itself)."""

    sign: int
    operator: N | None
    affine: Origin | None
    op: LinearOp


@dataclass(frozen=True, eq=False)
class Merge(Generic[N]):
    """A decision: the operator `into` becomes `op`, the sum of `parts`, or itself behind `first`.

    `operators` are the others, which nobody reads then; `affines` and `idle` nodes vanish; of each addition in `drops`
    the term at that port goes. `saved` are multiply-adds per output place.
    """

    rule: str
    into: N
    op: LinearOp
    operators: tuple[N, ...]
    affines: tuple[N, ...]
    idle: tuple[N, ...]
    drops: tuple[tuple[N, int], ...]
    parts: tuple[Part[N], ...]
    saved: int


@dataclass(frozen=True, eq=False)
class Branch(Generic[N, V]):
    """A term as it stands in the graph: what is applied to `data`, by which nodes, and where it is added."""

    data: V
    operator: N | None
    affine: ChannelAffine | None
    affines: tuple[N, ...]
    idle: tuple[N, ...]
    place: tuple[N, int]
    sign: int


@dataclass
class _Tree(Generic[N, V]):
    """Additions of which each but the root is read by another one alone: the terms, and the idle nodes between."""

    graph: View[N, V]
    root: N
    branches: list[Branch[N, V]]
    nested: dict[tuple[N, int], N]
    idle: list[N]

    @classmethod
    def of(cls, graph: View[N, V], root: N) -> _Tree[N, V]:
        tree = cls(graph, root, [], {}, [])
        tree._gather(root, 1)
        return tree

    def _gather(self, node: N, sign: int) -> None:
        for port, (value, term) in enumerate(zip(self.graph.inputs(node), _sum(self.graph, node).signs, strict=True)):
            behind, idle = behind_idle(self.graph, value)
            inner = self.graph.producer(behind) if is_read_once(self.graph, behind) else None
            if inner is not None and isinstance(self.graph.read(inner), Sum):
                self.nested[node, port] = inner
                self.idle += idle
                self._gather(inner, sign * term)
            else:
                self.branches.append(_branch(self.graph, value, (node, port), sign * term))

    def drops(self, gone: Sequence[Branch[N, V]], host: Branch[N, V]) -> tuple[list[tuple[N, int]], int] | None:
        """What is dropped where, and the sign with which the host is added then; None where another term would change
        its sign."""
        found: list[tuple[N, int]] = []
        left = dict(self._left(self.root, 1, {branch.place for branch in gone}, found))
        others = [branch for branch in self.branches if branch.place in left and branch is not host]
        kept = all(left[branch.place] == branch.sign for branch in others)
        return (found, left[host.place]) if kept else None

    def _left(
        self, node: N, sign: int, gone: set[tuple[N, int]], drops: list[tuple[N, int]]
    ) -> Iterator[tuple[tuple[N, int], int]]:
        """The terms that stay, each with its sign: a difference of which only the second term stays is that term."""
        signs = _sum(self.graph, node).signs
        places = [(node, port) for port in range(len(signs))]
        stay = [place for place in places if not self._is_gone(place, gone)]
        drops += [place for place in places if place not in stay]
        for place in stay:
            here = sign * (1 if len(stay) == 1 else signs[place[1]])
            if place in self.nested:
                yield from self._left(self.nested[place], here, gone, drops)
            else:
                yield place, here

    def additions(self, group: Sequence[Branch[N, V]], host: Branch[N, V]) -> int:
        """How many additions stay if all of a group goes but the host: one with many terms stays without it too."""
        gone = {branch.place for branch in group if branch is not host}
        return sum(self._stays(node, gone) for node in (self.root, *self.nested.values()))

    def _stays(self, node: N, gone: set[tuple[N, int]]) -> bool:
        ports = range(len(_sum(self.graph, node).signs))
        return sum(not self._is_gone((node, port), gone) for port in ports) > 1

    def _is_gone(self, place: tuple[N, int], gone: set[tuple[N, int]]) -> bool:
        if place not in self.nested:
            return place in gone
        inner = self.nested[place]
        return all(self._is_gone((inner, port), gone) for port in range(len(_sum(self.graph, inner).signs)))


def merge_branches(graph: View[N, V], node: N) -> Merge[N] | Refusal | None:
    """`Σ ± linearᵢ(x)`: legal where outputs have one shape and nobody else reads them. None where nothing is alike."""
    if not isinstance(graph.read(node), Sum) or not graph.uses(graph.outputs(node)[0]) or _is_inner(graph, node):
        return None
    tree, refusal = _Tree.of(graph, node), None
    groups: dict[V, list[Branch[N, V]]] = {}
    for branch in tree.branches:
        groups.setdefault(branch.data, []).append(branch)
    for data, group in groups.items():
        if len(group) > 1 and any(branch.operator is not None for branch in group):
            answer = _merged(tree, data, group)
            if isinstance(answer, Merge):
                return answer
            refusal = refusal or answer
    return refusal


def merge_serial(graph: View[N, V], node: N) -> Merge[N] | Refusal | None:
    """`second(first(x))`: legal where nobody else reads what is between. None where nothing linear is in front."""
    second = graph.read(node)
    if not isinstance(second, LinearOp) or not graph.uses(graph.result(node)):
        return None
    value, idle = behind_idle(graph, graph.data(node))
    front = graph.producer(value)
    first = None if front is None else graph.read(front)
    if front is None or not isinstance(first, LinearOp):
        return None

    def refuse(reason: Reason) -> Refusal:
        return Refusal(reason, graph.site(front).name, front)

    if not is_read_once(graph, value):
        return refuse(Reason.SHARED_OUTPUT)
    op = composed(second, first)
    if isinstance(op, Reason):
        return refuse(op)
    if op.in_axis != second.in_axis:
        return refuse(Reason.AXIS_DIFFERS)
    saved = work(first) + work(second) - work(op)
    addition = op.out_channels if graph.inserts(node, op) and not graph.inserts(node, second) else 0
    if saved < addition or any(excess > 0 for excess in (second.window.excess if second.window else ())):
        return refuse(Reason.MORE_WORK)
    if reason := graph.fits(node, op):
        return refuse(reason)
    parts = (Part(1, front, None, first), Part(1, node, None, second))
    return Merge("merge-serial", node, op, (front,), (), tuple(idle), (), parts, saved)


def _sum(graph: View[N, V], node: N) -> Sum:
    reading = graph.read(node)
    assert isinstance(reading, Sum), "a tree is made of sums"
    return reading


def _is_inner(graph: View[N, V], node: N) -> bool:
    """Whether only another addition reads the result."""
    value = graph.outputs(node)[0]
    while is_read_once(graph, value):
        reader = graph.uses(value)[0][0]  # type: ignore[index]
        if isinstance(graph.read(reader), Sum):
            return True
        reading = graph.read(reader)
        if not isinstance(reading, Same) or not reading.idle:
            return False
        value = graph.outputs(reader)[0]
    return False


def _branch(graph: View[N, V], value: V, place: tuple[N, int], sign: int) -> Branch[N, V]:
    """What is added there, followed up to a linear operator, or as far as affines go."""
    affine: ChannelAffine | None = None
    affines: list[N] = []
    value, idle = behind_idle(graph, value)
    while is_read_once(graph, value) and (node := graph.producer(value)) is not None:
        reading = graph.read(node)
        if isinstance(reading, LinearOp) and affine is None:
            data, more = behind_idle(graph, graph.data(node))
            return Branch(data, node, None, (), (*idle, *more), place, sign)
        if not isinstance(reading, ChannelAffine):
            break
        named = reading.named(graph.site(node).name)
        together = named if affine is None else compose(affine, named)
        if together is None:
            break
        affine = together
        affines.append(node)
        value, more = behind_idle(graph, graph.data(node))
        idle += more
    return Branch(value, None, affine, tuple(affines), tuple(idle), place, sign)


def _merged(tree: _Tree[N, V], data: V, group: Sequence[Branch[N, V]]) -> Merge[N] | Refusal:
    """The most that one of these operators can take in of the others."""
    graph, refusal = tree.graph, Refusal(Reason.WINDOWS_DIFFER)
    if Reason.MUTATED_IN_PLACE in graph.uses(data):
        return Refusal(Reason.MUTATED_IN_PLACE)
    ordered = _ordered(tree, group)
    for host in ordered:
        op = None if host.operator is None else graph.read(host.operator)
        if not isinstance(op, LinearOp) or op.window is None:
            continue
        answer = _into(tree, host, [branch for branch in ordered if branch is not host])
        if isinstance(answer, Merge):
            return answer
        refusal = answer
    return refusal


def _ordered(tree: _Tree[N, V], group: Sequence[Branch[N, V]]) -> list[Branch[N, V]]:
    """The terms in an order that does not depend on how the sum was written: operators first, the one with most work
    before others; of equals one that takes a bias as it is and shares no weight with others, then one that leaves the
    fewest additions."""
    return sorted(group, key=lambda branch: _rank(tree, branch, group))


def _rank(tree: _Tree[N, V], branch: Branch[N, V], group: Sequence[Branch[N, V]]) -> tuple[Any, ...]:
    graph = tree.graph
    op = None if branch.operator is None else graph.read(branch.operator)
    if branch.operator is None or not isinstance(op, LinearOp):
        return (2, branch.affine is None)
    if op.window is None:
        return (1, graph.position(branch.operator))
    shifted = op.then(ChannelAffine(np.ones(op.out_channels), np.ones(op.out_channels), op.out_axis))
    inserts, shared = graph.inserts(branch.operator, shifted), graph.shared(branch.operator) is not None
    additions = tree.additions(group, branch)
    return (0, -work(op), inserts, shared, additions, op.groups, repr(op.window), graph.position(branch.operator))


def _operator(graph: View[N, V], branch: Branch[N, V], host: LinearOp) -> LinearOp | Reason:
    if branch.operator is None:
        return linear(branch.affine, host)
    reading = graph.read(branch.operator)
    assert isinstance(reading, LinearOp), "a branch with an operator was read"
    return reading


def _cost(branch: Branch[Any, Any], op: LinearOp) -> int:
    """Multiply-adds of a branch; those of the value itself are none."""
    return work(op) if branch.operator is not None or branch.affine is not None else 0


def _into(tree: _Tree[N, V], host: Branch[N, V], others: Sequence[Branch[N, V]]) -> Merge[N] | Refusal:
    graph, node = tree.graph, host.operator
    assert node is not None, "a host is an operator"
    total, gone = graph.read(node), list[Branch[N, V]]()
    assert isinstance(total, LinearOp), "a host is an operator"
    parts, before = [Part(1, node, None, total)], work(total)
    refusal = Refusal(Reason.WINDOWS_DIFFER, graph.site(node).name, node)
    for branch in others:
        op = _operator(graph, branch, total)
        sign = host.sign * branch.sign
        signed = op if isinstance(op, Reason) or sign == 1 else _negated(op)
        both = signed if isinstance(signed, Reason) else added(total, signed)
        if isinstance(both, Reason) or isinstance(op, Reason) or isinstance(signed, Reason):
            refusal = Refusal(both if isinstance(both, Reason) else Reason.AXIS_DIFFERS, graph.site(node).name, node)
            continue
        if work(both) > work(total) + _cost(branch, op):
            refusal = Refusal(Reason.MORE_WORK, graph.site(node).name, node)
            continue
        gone.append(branch)
        before += _cost(branch, op)
        total = both
        parts.append(Part(sign, branch.operator, branch.affine.origin if branch.affine else None, op))
    if not gone:
        return refusal
    dropped = tree.drops(gone, host)
    if dropped is None:
        return Refusal(Reason.JOINED, graph.site(node).name, node)
    drops, sign = dropped
    if sign != host.sign:
        total = _negated(total)
        parts = [Part(-part.sign, part.operator, part.affine, part.op) for part in parts]
    if reason := graph.fits(node, total):
        return Refusal(reason, graph.site(node).name, node)
    return Merge(
        "merge-branches",
        node,
        total,
        tuple(branch.operator for branch in gone if branch.operator is not None),
        tuple(affine for branch in gone for affine in branch.affines),
        tuple(dict.fromkeys((*tree.idle, *(idle for branch in (host, *gone) for idle in branch.idle)))),
        tuple(drops),
        tuple(parts),
        before - work(total),
    )


def _negated(op: LinearOp) -> LinearOp:
    return op.then(ChannelAffine(-np.ones(op.out_channels), np.zeros(op.out_channels), op.out_axis))


MergeRule = Callable[[View[Any, Any], Any], "Merge[Any] | Refusal | None"]
MERGES: tuple[MergeRule, ...] = (merge_branches, merge_serial)
