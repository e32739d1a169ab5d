"""Two rules fold an affine. Each decides and returns a value; nothing is touched here.

    into_producer   affine @ linear   absorbed by the operators that make the value it reads
    into_consumer   linear @ affine   absorbed by the operators that read its result

Absorbing is one question, all or nothing: can this value be replaced by `affine(value)`? A linear operator says yes by
composing; another affine composes and passes the question on, and so does a passage; anything else answers with its
`Reason`. What is decided on the way is collected in a `Draft`, which is dropped with the refusal.

To add a rule: one function, its place in `RULES`, rows in `tests/cases.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, cast

from bnfold.algebra import ChannelAffine, LinearOp
from bnfold.graph import Affines, Asked, N, Passage, Reading, Reason, Refusal, Use, V, View
from bnfold.origin import Origin

FARTHEST = 200
MOST_QUESTIONS = 2000
MOST_OBSTACLES = 64
Side = Literal["after", "before"]


@dataclass(frozen=True, eq=False)
class Taken(Generic[N]):
    """One affine that one operator takes in, behind it or in front of it; no operator where it does nothing."""

    node: N | None
    side: Side
    origin: Origin


@dataclass(frozen=True, eq=False)
class Step(Generic[N]):
    """A decision: these affines vanish, these operators take them in, and the way leads through these passages."""

    rule: str
    affines: tuple[N, ...]
    writes: tuple[tuple[N, LinearOp], ...]
    via: tuple[N, ...] = ()
    taken: tuple[Taken[N], ...] = ()


@dataclass(frozen=True)
class Wire:
    """What an obstacle is taken for when asking what would be if it were not there: an Identity of one input."""

    inputs: int
    outputs: int

    def upstream(self, port: int, affine: ChannelAffine) -> Asked | Reason:
        return Asked((None,) * self.inputs, tuple((index, affine) for index in range(self.inputs)))

    def downstream(self, affines: Affines) -> Affines | Reason:
        first = next((affine for affine in affines if affine is not None), None)
        return (first,) + (None,) * (self.outputs - 1)


@dataclass
class Draft(Generic[N, V]):
    """What one attempt has decided so far.

    `obstacles` is None where the attempt ends at the first refusal. Else the refusal is noted, and it goes on as if the
    blocker were an Identity; where that only reads a value that would change, as if it did not, and where its border is
    in the way, as if it had none. `wires`, `absent` and `bare` are the nodes so taken. `asked` counts the questions of
    an attempt and of all that were tried within it.
    """

    graph: View[N, V]
    writes: dict[N, LinearOp] = field(default_factory=dict)
    vanished: list[N] = field(default_factory=list)
    via: list[N] = field(default_factory=list)
    taken: list[Taken[N]] = field(default_factory=list)
    obstacles: list[Refusal] | None = None
    asked: list[int] = field(default_factory=lambda: [0])
    wires: set[N] = field(default_factory=set)
    absent: set[N] = field(default_factory=set)
    bare: set[N] = field(default_factory=set)

    def read(self, node: N) -> Reading:
        if node in self.wires:
            return Wire(len(self.graph.inputs(node)), len(self.graph.outputs(node)))
        return self.writes.get(node) or self.graph.read(node)

    def uses(self, value: V) -> Sequence[Use[N] | Reason]:
        uses = self.graph.uses(value)
        if not self.obstacles:
            return uses
        there = [use for use in uses if isinstance(use, Reason) or use[0] not in self.absent]
        return [(use[0], 0) if not isinstance(use, Reason) and use[0] in self.wires else use for use in there]

    def suppose(self, refusal: Refusal) -> bool:
        """Go on without this obstacle, if that is what was asked and it is one that could go."""
        if self.obstacles is None or refusal.node is None or len(self.obstacles) >= MOST_OBSTACLES:
            return False
        node = cast(N, refusal.node)
        known = {Reason.SHARED_OUTPUT: self.absent, Reason.PADDED_BORDER: self.bare}.get(refusal.reason, self.wires)
        if node in known:
            return False
        known.add(node)
        self.obstacles.append(refusal)
        return True

    def copy(self) -> Draft[N, V]:
        lists = (list(self.vanished), list(self.via), list(self.taken))
        obstacles = None if self.obstacles is None else list(self.obstacles)
        supposed = (set(self.wires), set(self.absent), set(self.bare))
        return Draft(self.graph, dict(self.writes), *lists, obstacles, self.asked, *supposed)

    def become(self, other: Draft[N, V]) -> None:
        """Take the decisions of an attempt that succeeded."""
        self.writes, self.vanished, self.via, self.taken = other.writes, other.vanished, other.via, other.taken
        self.wires, self.absent, self.bare = other.wires, other.absent, other.bare
        if self.obstacles is not None:
            self.obstacles[:] = other.obstacles or ()

    def absorb(self, node: N, op: LinearOp, affine: ChannelAffine, side: Side) -> Refusal | None:
        """Compose an affine with an operator, behind it or in front of it."""
        axis, channels = (op.out_axis, op.out_channels) if side == "after" else (op.in_axis, op.in_channels)
        affine = affine.onto(channels, axis)
        if (affine.axis, affine.channels) != (axis, channels):
            return self.refuse(Reason.AXIS_DIFFERS, node)
        if side == "before" and op.bordered and affine.shifts and node not in self.bare:
            return self.refuse(Reason.PADDED_BORDER, node)
        folded = affine @ op if side == "after" else op @ affine
        reason = None if self.obstacles else self.graph.fits(node, folded)  # what is supposed need not be evaluated
        if reason is not None:
            return self.refuse(reason, node)
        self.writes[node] = folded
        assert affine.origin is not None, "an affine of the model has a name"
        self.taken.append(Taken(node, side, affine.origin))
        return None

    def cancel(self, affine: ChannelAffine, side: Side) -> None:
        """Note affines that do nothing together."""
        assert affine.origin is not None, "an affine of the model has a name"
        self.taken.append(Taken(None, side, affine.origin))

    def conclude(self, rule: str) -> Step[N] | Refusal:
        """The decision, unless it makes no less of the graph. A batch norm may become the bias of a matrix product."""
        if not self.taken:
            return Refusal(Reason.NOT_READ)
        news = [node for node, op in self.writes.items() if self._inserts(node, op)]
        grows = len(news) + (not any(map(self.graph.is_norm, self.vanished))) > len(self.vanished)
        if grows and not self._is_its_bias():
            return self.refuse(Reason.NO_GAIN, news[0])
        via = tuple(dict.fromkeys(self.via))
        return Step(rule, tuple(self.vanished), tuple(self.writes.items()), via, tuple(self.taken))

    def _is_its_bias(self) -> bool:
        """Whether all that happens is that an addition right behind a product becomes the bias of the product: what was
        between them is gone, and the next fold would find it to be that."""
        affine = self.graph.read(self.vanished[0])
        straight = len(self.vanished) == len(self.writes) == 1 and not self.via
        return straight and self.taken[0].side == "after" and isinstance(affine, ChannelAffine) and not affine.scales

    def _inserts(self, node: N, op: LinearOp) -> bool:
        before = self.graph.read(node)
        done = isinstance(before, LinearOp) and self.graph.inserts(node, before)
        return not done and self.graph.inserts(node, op)

    def refuse(self, reason: Reason, node: N) -> Refusal:
        site = self.graph.site(node)
        return Refusal(reason, site.name, node, modules={site.name: site.module} if site.module else {})


Obstacles = list[Refusal] | None


def into_producer(graph: View[N, V], node: N, affine: ChannelAffine, obstacles: Obstacles = None) -> Step[N] | Refusal:
    """`affine(W x + b)`: legal if nobody else reads what changes."""
    draft = Draft(graph, vanished=[node], obstacles=obstacles)
    if not graph.uses(graph.result(node)):
        return Refusal(Reason.NOT_READ)
    refusal = _ask(draft, graph.data(node), affine.named(graph.site(node).name), node, 0)
    return refusal or draft.conclude("into-producer")


def into_consumer(graph: View[N, V], node: N, affine: ChannelAffine, obstacles: Obstacles = None) -> Step[N] | Refusal:
    """`W affine(x) + b`: legal if every reader can take it, or pass it on to such."""
    draft = Draft(graph, vanished=[node], obstacles=obstacles)
    if not graph.uses(graph.result(node)):
        return Refusal(Reason.NOT_READ)
    refusal = _Flow(draft).run(graph.result(node), affine.named(graph.site(node).name))
    return refusal or draft.conclude("into-consumer")


def _ask(draft: Draft[N, V], value: V, affine: ChannelAffine, reader: N, depth: int) -> Refusal | None:
    """Make `value` become `affine(value)`, of which only `reader` may notice."""
    refusal = _ask_once(draft, value, affine, reader, depth)
    while refusal is not None and draft.suppose(refusal):
        refusal = _ask_once(draft, value, affine, reader, depth)
    return refusal


def _ask_once(draft: Draft[N, V], value: V, affine: ChannelAffine, reader: N, depth: int) -> Refusal | None:
    graph = draft.graph
    if affine.is_identity and not _is_copy(draft):
        draft.cancel(affine, "after")
        return _same_value(draft, value, graph.result(draft.vanished[0]))
    producer = graph.producer(value)
    draft.asked[0] += 1
    if depth > FARTHEST or draft.asked[0] > MOST_QUESTIONS:
        return Refusal(Reason.TOO_FAR)
    if producer is None:
        return Refusal(Reason.NO_LINEAR_PRODUCER)
    reading = draft.read(producer)
    if isinstance(reading, Reason):
        return draft.refuse(Reason.NO_LINEAR_PRODUCER if reading is Reason.NOT_LINEAR else reading, producer)
    if refusal := _seen_by_others(draft, value, affine, reader):
        return refusal
    match reading:
        case LinearOp() as op:
            return draft.absorb(producer, op, affine, "after")
        case ChannelAffine() as first:
            return _through_affine(draft, producer, first, affine, depth)
        case passage:
            return _through(draft, producer, passage, graph.outputs(producer).index(value), affine, depth)


def _same_value(draft: Draft[N, V], value: V, result: V) -> Refusal | None:
    """Affines that do nothing together go, unless their result is written in place: then they are the copy."""
    written = any(Reason.MUTATED_IN_PLACE in draft.graph.uses(each) for each in (value, result))
    return Refusal(Reason.MUTATED_IN_PLACE) if written else None


def _is_copy(draft: Draft[N, V]) -> bool:
    """Whether the result of the affine is written in place. One that does nothing is the copy then, and goes only where
    any other would: to an operator of which nobody else reads the result."""
    return Reason.MUTATED_IN_PLACE in draft.graph.uses(draft.graph.result(draft.vanished[0]))


def _through_affine(
    draft: Draft[N, V], node: N, first: ChannelAffine, affine: ChannelAffine, depth: int
) -> Refusal | None:
    """Both affines vanish together: alone, `first` could not. One that an earlier question took is there no more."""
    if node in draft.vanished:
        return _ask(draft, draft.graph.data(node), affine, node, depth + 1)
    composed = compose(affine, first.named(draft.graph.site(node).name))
    if composed is None:
        return draft.refuse(Reason.AXIS_DIFFERS, node)
    draft.vanished.append(node)
    return _ask(draft, draft.graph.data(node), composed, node, depth + 1)


def compose(second: ChannelAffine, first: ChannelAffine) -> ChannelAffine | None:
    """`second @ first`, where both are along the same axis or one of them is along none."""
    axes = {each.axis for each in (first, second)} - {None}
    sizes = {each.channels for each in (first, second) if each.axis is not None}
    return second @ first if len(axes) < 2 and len(sizes) < 2 else None


def _through(
    draft: Draft[N, V], node: N, passage: Passage, port: int, affine: ChannelAffine, depth: int
) -> Refusal | None:
    """Pass the question on to the inputs: to all that must change, then to one of those that may."""
    asked = passage.upstream(port, affine)
    if isinstance(asked, Reason):
        return draft.refuse(Reason.NO_LINEAR_PRODUCER if asked is Reason.NOT_LINEAR else asked, node)
    draft.via.append(node)
    if refusal := _all_of(draft, node, passage, port, asked, depth):
        return refusal
    refusals, attempts = [], []
    for choice, wish in asked.either:
        attempt = draft.copy()
        chosen = tuple(wish if index == choice else None for index in range(len(asked.every)))
        refusal = _all_of(attempt, node, passage, port, Asked(chosen), depth)
        if refusal is not None:
            refusals.append(refusal)
            continue
        attempts.append(attempt)
        if len(attempt.obstacles or ()) == len(draft.obstacles or ()):
            break
    if attempts:
        draft.become(min(attempts, key=lambda attempt: len(attempt.obstacles or ())))
        return None
    return refusals[0] if refusals else None


def _all_of(draft: Draft[N, V], node: N, passage: Passage, port: int, asked: Asked, depth: int) -> Refusal | None:
    graph = draft.graph
    made = passage.downstream(asked.every) if len(graph.outputs(node)) > 1 else ()
    if isinstance(made, Reason):
        return draft.refuse(made, node)
    for index, effect in enumerate(made):
        if index != port and effect is not None and (uses := draft.uses(graph.outputs(node)[index])):
            return _shared(draft, uses[0])
    for value, wish in zip(graph.inputs(node), asked.every, strict=True):
        refusal = None if wish is None else _ask(draft, value, wish, node, depth + 1)
        if refusal is not None:
            return refusal
    return None


def _seen_by_others(draft: Draft[N, V], value: V, affine: ChannelAffine, reader: N) -> Refusal | None:
    """Who else would notice: a reader that takes only channels that do not change sees nothing, unless the result of
    the affine is written: then it would see the write."""
    mine = 0
    written = _is_copy(draft)
    for use in draft.uses(value):
        if isinstance(use, Reason) or use[1] is None:
            return _shared(draft, use)
        mine += use[0] == reader
        if mine > 1 or (use[0] != reader and (written or not _blind(draft, use[0], use[1], affine))):
            return _shared(draft, use)
    return None


def _blind(draft: Draft[N, V], node: N, port: int, affine: ChannelAffine, farther: int = 8) -> bool:
    """Whether a reader, or whoever reads on from it, takes only what does not change."""
    passage = draft.graph.read(node)
    if isinstance(passage, (LinearOp, ChannelAffine, Reason)):
        return False
    ports = len(draft.graph.inputs(node))
    effects = passage.downstream(tuple(affine if index == port else None for index in range(ports)))
    if isinstance(effects, Reason):
        return False
    changed = [(value, effect) for value, effect in zip(draft.graph.outputs(node), effects, strict=True) if effect]
    return not changed or (farther > 0 and all(_unseen(draft, *change, farther - 1) for change in changed))


def _unseen(draft: Draft[N, V], value: V, affine: ChannelAffine, farther: int) -> bool:
    return not any(
        isinstance(use, Reason) or use[1] is None or not _blind(draft, use[0], use[1], affine, farther)
        for use in draft.uses(value)
    )


def _shared(draft: Draft[N, V], use: tuple[N, int | None] | Reason) -> Refusal:
    return Refusal(use) if isinstance(use, Reason) else draft.refuse(Reason.SHARED_OUTPUT, use[0])


@dataclass
class _Flow(Generic[N, V]):
    """An affine on its way to all readers: each node is visited once, when all that reaches it has arrived."""

    draft: Draft[N, V]
    arrived: dict[N, dict[int, ChannelAffine]] = field(default_factory=dict)
    queue: list[tuple[int, int]] = field(default_factory=list)
    nodes: list[N] = field(default_factory=list)

    def run(self, value: V, affine: ChannelAffine) -> Refusal | None:
        """Make every reader of `value` take in the affine that it no longer contains."""
        refusal = self._spread(value, affine)
        while refusal is None and self.queue:
            node = self.nodes[heapq.heappop(self.queue)[1]]
            refusal = self._visit(node, self.arrived[node])
            while refusal is not None and self.draft.suppose(refusal):
                refusal = self._visit(node, self.arrived[node])
        return refusal

    def _spread(self, value: V, affine: ChannelAffine) -> Refusal | None:
        for use in self.draft.uses(value):
            if isinstance(use, Reason):
                return Refusal(use)
            node, port = use
            if port is None:
                refusal = self.draft.refuse(_as_no_data(self.draft.read(node)), node)
                if not self.draft.suppose(refusal):
                    return refusal
                port = 0
            if node not in self.arrived:
                heapq.heappush(self.queue, (self.draft.graph.position(node), len(self.nodes)))
                self.nodes.append(node)
            self.arrived.setdefault(node, {})[port] = affine
        return None

    def _visit(self, node: N, arrived: dict[int, ChannelAffine]) -> Refusal | None:
        draft, graph = self.draft, self.draft.graph
        if len(self.nodes) > FARTHEST:
            return Refusal(Reason.TOO_FAR)
        match draft.read(node):
            case LinearOp() as op:
                return draft.absorb(node, op, arrived[0] if 0 in arrived else next(iter(arrived.values())), "before")
            case ChannelAffine() if not draft.uses(graph.result(node)):
                return draft.refuse(Reason.NOT_READ, node)
            case ChannelAffine() as second:
                composed = compose(second.named(graph.site(node).name), next(iter(arrived.values())))
                if composed is None:
                    return draft.refuse(Reason.AXIS_DIFFERS, node)
                draft.vanished.append(node)
                if composed.is_identity:
                    draft.cancel(composed, "before")
                    return _same_value(draft, graph.data(draft.vanished[0]), graph.result(node))
                return self._spread(graph.result(node), composed)
            case Reason() as reason:
                return draft.refuse(Reason.READ_BY_NONLINEARITY if reason is Reason.NOT_LINEAR else reason, node)
            case passage:
                return self._pass_on(node, passage, tuple(arrived.get(port) for port in range(len(graph.inputs(node)))))

    def _pass_on(self, node: N, passage: Passage, affines: Affines) -> Refusal | None:
        made = passage.downstream(affines)
        if isinstance(made, Reason):
            return self.draft.refuse(Reason.READ_BY_NONLINEARITY if made is Reason.NOT_LINEAR else made, node)
        self.draft.via.append(node)
        for value, effect in zip(self.draft.graph.outputs(node), made, strict=True):
            if effect is None:
                continue
            if effect.is_identity:
                self.draft.cancel(effect, "before")
            elif refusal := self._spread(value, effect):
                return refusal
        return None


def _as_no_data(reading: Reading) -> Reason:
    """Why an operator cannot take an affine by an input that it does not map."""
    if isinstance(reading, LinearOp):
        return Reason.PARAMETER_NOT_CONSTANT
    opaque = isinstance(reading, Reason) and reading is not Reason.NOT_LINEAR
    return reading if opaque else Reason.READ_BY_NONLINEARITY  # type: ignore[return-value]


Rule = Callable[[View[Any, Any], Any, ChannelAffine, Obstacles], Step[Any] | Refusal]
RULES: tuple[Rule, ...] = (into_producer, into_consumer)
