"""Random fx graphs of torch operators, built node by node and never through an exporter.

`draw(seed)` gives a `Drawn`: a GraphModule and inputs of several sizes. Operators are drawn from tables; a value
carries the axis that its channels are probably on, so that most graphs hold something to fold. `SHAPED` are small
structures in which an affine stands between linear operators and what it may cross. To add an operator: one function
that takes a `Builder` and a value, and its place in a table.
"""

from __future__ import annotations

import operator
import random
from dataclasses import dataclass
from typing import Any

import torch
from random_torch_builder import UNLUCKY, Builder, Op, Unfit
from random_torch_operators import AFFINE, CHANNELS, IN_PLACE, LINEAR, OPAQUE, plain, shifted, written_state
from random_torch_passages import PASSAGES, spatial_axes, split
from torch import Tensor, fx

aten = torch.ops.aten


@dataclass(frozen=True)
class Drawn:
    """A graph and what to feed it; `lowest` is the coarsest float type that any value has."""

    seed: int
    module: fx.GraphModule
    inputs: tuple[tuple[Tensor, ...], ...]
    norms: int
    magnitude: float
    lowest: torch.dtype


def draw(seed: int, dtype: torch.dtype | None = None) -> Drawn | None:
    """The graph of a seed; None where nothing came of it."""
    rng = random.Random(seed)
    builder = Builder(rng, dtype or rng.choice([torch.float64] * 8 + [torch.float32]))
    value = _inputs(builder)
    steps, kind = rng.randint(3, 9), "passage"
    for _ in range(12 * steps):
        if steps == 0:
            break
        kind_next = rng.choices(KINDS, FOLLOWS[kind])[0]
        if rng.random() < 0.1:
            value = rng.choice([node for node in builder.pool if isinstance(builder.values[node], Tensor)])
        try:
            value = rng.choice(TABLES[kind_next])(builder, value)
        except UNLUCKY:
            continue
        kind, steps = kind_next, steps - 1
    return _finished(seed, builder, value)


def _inputs(b: Builder) -> fx.Node:
    channels, size = b.pick(*CHANNELS), b.random.randint(3, 6)
    shape, axis = b.pick(
        ((2, channels, size, size), 1),
        ((2, channels, size, size + 1), 1),
        ((2, channels, size), 1),
        ((2, channels), 1),
        ((2, size, channels), 2),
        ((2, channels, 3, 3, 3), 1),
        ((2, channels, size, size), 1),
    )
    nodes = []
    for index in range(b.pick(1, 1, 1, 2)):
        node = b.graph.placeholder(f"x{index}")
        b.values[node], b.channel[node] = b.tensor(*shape), axis
        b.pool.append(node)
        b.computed.add(node)
        nodes.append(node)
    return nodes[-1]


def _finished(seed: int, b: Builder, value: fx.Node) -> Drawn:
    tensors = [node for node in b.pool if b.values[node].is_floating_point()]
    loose = [node for node in tensors if not node.users and node is not value and b.chance(0.5)]
    results = [value, *loose[:3]]
    if b.chance(0.12):
        results.append(b.pick(*tensors))
    placeholders = b.graph.find_nodes(op="placeholder")
    if b.chance(0.03):
        results.append(placeholders[0])
    b.graph.output(results[0] if len(results) == 1 and b.chance(0.8) else tuple(results))
    module = fx.GraphModule(b.root, b.graph).eval()
    b.lowest = max((b.lowest, b.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    shape = b.shape(placeholders[0])
    sides = [(size + 1, max(1, size - 2)) for size in shape[2:]]
    shapes = (shape, (3, *shape[1:]), (1, *shape[1:]), *((*shape[:2], *each) for each in zip(*sides, strict=True)))
    inputs = tuple(tuple(b.tensor(*each) for _ in placeholders) for each in shapes)
    return Drawn(seed, module, inputs, b.norms, b.magnitude, b.lowest)


def attempt(b: Builder, value: fx.Node, table: tuple[Op, ...], chance: float = 0.6) -> fx.Node:
    """One operator of a table behind the value, if there is luck and it fits."""
    if not b.chance(chance):
        return value
    try:
        return b.pick(*table)(b, value)
    except UNLUCKY:
        return value


# joins


def joined(b: Builder, value: fx.Node) -> fx.Node:
    """Two branches of one value, or a value and an older one, put together."""
    if b.chance(0.75):
        table = b.pick(LINEAR[:3], LINEAR, AFFINE)
        one, other = attempt(b, value, table, 0.9), attempt(b, value, table, 0.8)
        if b.chance(0.4):
            one, other = attempt(b, one, AFFINE), attempt(b, other, AFFINE)
    else:
        one, other = value, b.pick(*(n for n in b.pool if b.rank(n) == b.rank(value)))
    return _join(b, *b.pick((one, other), (other, one)))


def _join(b: Builder, one: fx.Node, other: fx.Node) -> fx.Node:
    kind = b.random.random()
    if kind < 0.9:
        at = b.channel[one] if b.chance(0.8) and b.channel[one] is not None else b.random.randrange(b.rank(one))
        return _put_together(b, [one, b.pick(other, other, other, one)], at)
    if kind < 0.95:
        return b.call(torch.stack, [one, other], b.pick(0, 1, -1))
    return b.call(b.pick(torch.matmul, torch.bmm, operator.matmul), one, b.call("transpose", other, -1, -2))


def _put_together(b: Builder, values: list[fx.Node], at: int) -> fx.Node:
    """The values one after another, their sum or difference, or their product or quotient."""
    axis, kind = b.channel[values[0]], b.random.random()
    if kind < 0.4 or len(values) > 2:
        values = [*values, *([b.pick(*values)] * b.chance(0.1))]
        return b.call(b.pick(torch.cat, torch.concat, aten.cat.default), values, at, axis=axis)
    if kind < 0.8:
        if b.chance(0.1):
            return b.call(b.pick(torch.add, torch.sub, aten.add.Tensor), *values, alpha=b.pick(2, 1), axis=axis)
        target = b.pick(operator.add, operator.sub, torch.add, "add", aten.add.Tensor, aten.sub.Tensor)
        return b.call(target, *values, axis=axis)
    if kind < 0.93:
        return b.call(b.pick(operator.mul, torch.mul, "mul", aten.mul.Tensor), *values, axis=axis)
    return b.call(operator.truediv, values[0], b.call(torch.sigmoid, values[1]), axis=axis)


def gated(b: Builder, value: fx.Node) -> fx.Node:
    """Squeeze and excite: a factor per channel, computed from the value."""
    spatial_axes(b, value)
    pool = b.call("mean", value, tuple(range(2, b.rank(value))), True, axis=1)
    gate = b.call(torch.sigmoid, attempt(b, pool, LINEAR[:2]))
    return b.call(operator.mul, *b.pick((value, gate), (gate, value)), axis=1)


def residual(b: Builder, value: fx.Node) -> fx.Node:
    made = value
    for table in (LINEAR, AFFINE, PASSAGES):
        made = attempt(b, made, table, 0.8)
    return b.call(operator.add, *b.pick((value, made), (made, value)), axis=b.channel[made])


# structures in which affines are crossed


def branches(b: Builder, value: fx.Node) -> fx.Node:
    """Linear operators side by side, put together, and an affine of the result."""
    out, same = b.pick(*CHANNELS), b.chance(0.7)
    made = [plain(b, value, out if same else 0) for _ in range(b.pick(2, 2, 3))]
    made = [attempt(b, each, AFFINE, 0.2) for each in made]
    at = b.channel[made[0]]
    if at is None:
        raise Unfit("no channels")
    return attempt(b, _put_together(b, made, at), AFFINE, 1.0)


def terms(b: Builder, value: fx.Node) -> fx.Node:
    """A sum or difference between linear operators, with affines in front of it or behind."""
    one, other = plain(b, value), attempt(b, value, OPAQUE, 0.3)
    if b.shape(one) != b.shape(other):
        other = plain(b, value, b.shape(one)[b.channel[one] or 0])
    in_front = b.chance(0.6)
    if in_front:
        one, other = (attempt(b, attempt(b, each, OPAQUE, 0.9), (shifted, *AFFINE), 0.8) for each in (one, other))
    target = b.pick(operator.sub, torch.sub, "sub", torch.rsub, torch.rsub, operator.add)
    made = b.call(target, *b.pick((one, other), (other, one)), axis=b.channel[one])
    return plain(b, made) if in_front else attempt(b, made, AFFINE, 1.0)


def pieces(b: Builder, value: fx.Node) -> fx.Node:
    """An affine, cut along its channels; each piece goes into a linear operator, or into whatever comes."""
    axis = b.channel[value]
    if axis is None:
        raise Unfit("no channels")
    scaled = attempt(b, attempt(b, value, OPAQUE, 0.5), AFFINE, 1.0)
    cut = split(b, scaled, axis if b.chance(0.85) else b.random.randrange(b.rank(scaled)))
    tables = (*(LINEAR[:2],) * 3, AFFINE, PASSAGES)
    worked = [attempt(b, each, b.pick(*tables), 0.9) for each in cut]
    if len({b.shape(each) for each in worked}) == 1:
        return _put_together(b, worked, axis)
    return attempt(b, b.pick(*worked), AFFINE)


def sandwich(b: Builder, value: fx.Node) -> fx.Node:
    """A linear operator or an opaque one, passages, and an affine on either side of these; then a linear operator."""
    made = attempt(b, value, b.pick(LINEAR[:2], LINEAR, OPAQUE), 0.9)
    order = b.pick((PASSAGES, AFFINE), (PASSAGES, PASSAGES, AFFINE), (AFFINE, PASSAGES), (AFFINE, PASSAGES, PASSAGES))
    for table in order:
        made = attempt(b, made, table, 1.0)
    return attempt(b, made, LINEAR[:2], 0.7)


def overwritten(b: Builder, value: fx.Node) -> fx.Node:
    """An affine of which the data, before a linear operator reads it, or the constant is written."""
    made = plain(b, value)
    if b.chance(0.5):
        return written_state(b, made)
    scaled = attempt(b, made, AFFINE, 1.0)
    b.pick(*IN_PLACE)(b, made)
    return plain(b, scaled)


SHAPED: tuple[Op, ...] = (*(branches, pieces, sandwich, overwritten, terms) * 2, sandwich)
JOIN: tuple[Op, ...] = (joined, joined, residual, gated)

TABLES: dict[str, tuple[Any, ...]] = {
    "linear": LINEAR,
    "affine": AFFINE,
    "passage": PASSAGES,
    "join": JOIN,
    "opaque": OPAQUE,
    "in place": IN_PLACE,
    "shaped": SHAPED,
}
KINDS = tuple(TABLES)
# What follows what: one weight for each kind.
FOLLOWS = {
    "linear": (5, 40, 30, 8, 3, 3, 10),
    "affine": (35, 15, 27, 8, 3, 3, 10),
    "passage": (28, 32, 12, 8, 2, 2, 18),
    "join": (15, 45, 27, 6, 3, 3, 5),
    "opaque": (50, 17, 12, 5, 0, 1, 15),
    "in place": (30, 50, 15, 5, 1, 1, 5),
    "shaped": (20, 30, 15, 10, 2, 2, 20),
}
