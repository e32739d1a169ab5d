"""Two rules fold an affine. Each decides and returns a value; nothing is touched here.

    into_producer   affine @ linear   absorbed by the operator that makes the value it reads
    into_consumer   linear @ affine   absorbed by every operator that reads its result

To add a rule: one function, its place in `RULES`, rows in `tests/test_folding.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from bnfold.algebra import ChannelAffine, LinearOp
from bnfold.graph import N, Reason, Refusal, V, View


@dataclass(frozen=True)
class Step(Generic[N]):
    """A decision: these operators take the affine in, and it vanishes."""

    rule: str
    affine: N
    writes: tuple[tuple[N, LinearOp], ...]


def into_producer(graph: View[N, V], node: N, affine: ChannelAffine) -> Step[N] | Refusal:
    """`affine(W x + b)`: legal if nobody else reads `W x + b`."""
    value = graph.data(node)
    producer = graph.producer(value)
    if producer is None:
        return Refusal(Reason.NO_LINEAR_PRODUCER)
    name = graph.site(producer).name
    op = graph.read(producer)
    if isinstance(op, ChannelAffine) or op is Reason.NOT_LINEAR:
        return Refusal(Reason.NO_LINEAR_PRODUCER, name)
    if isinstance(op, Reason):
        return Refusal(op, name)
    if reader := _other_reader(graph, value, node):
        return reader
    if op.out_axis != affine.axis or op.out_channels != affine.channels:
        return Refusal(Reason.AXIS_DIFFERS, name)
    folded = affine @ op
    if reason := graph.fits(producer, folded):
        return Refusal(reason, name)
    return Step("into-producer", node, ((producer, folded),))


def into_consumer(graph: View[N, V], node: N, affine: ChannelAffine) -> Step[N] | Refusal:
    """`W affine(x) + b`: legal if every reader is a linear operator that can take it."""
    uses = graph.uses(graph.result(node))
    if not uses:
        return Refusal(Reason.NOT_READ)
    writes: list[tuple[N, LinearOp]] = []
    for use in uses:
        taken = use if isinstance(use, Reason) else _consumed(graph, use, affine)
        if isinstance(taken, Reason):
            return Refusal(taken, None if isinstance(use, Reason) else graph.site(use[0]).name)
        writes.append(taken)
    return Step("into-consumer", node, tuple(writes))


def _consumed(graph: View[N, V], use: tuple[N, int | None], affine: ChannelAffine) -> tuple[N, LinearOp] | Reason:
    reader, port = use
    op = graph.read(reader)
    if isinstance(op, ChannelAffine) or op is Reason.NOT_LINEAR:
        return Reason.READ_BY_NONLINEARITY
    if isinstance(op, Reason):
        return op
    if port is None:
        return Reason.PARAMETER_NOT_CONSTANT
    if op.in_axis != affine.axis or op.in_channels != affine.channels:
        return Reason.AXIS_DIFFERS
    if op.bordered and affine.shifts:
        return Reason.PADDED_BORDER
    folded = op @ affine
    return graph.fits(reader, folded) or (reader, folded)


def _other_reader(graph: View[N, V], value: V, node: N) -> Refusal | None:
    for use in graph.uses(value):
        if isinstance(use, Reason):
            return Refusal(use)
        if use[0] != node or use[1] is None:
            return Refusal(Reason.SHARED_OUTPUT, graph.site(use[0]).name)
    return None


Rule = Callable[[View[Any, Any], Any, ChannelAffine], Step[Any] | Refusal]
RULES: tuple[Rule, ...] = (into_producer, into_consumer)
