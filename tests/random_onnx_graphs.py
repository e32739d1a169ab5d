"""Random ONNX models: batch norms and other affines amid all that an affine may meet.

    drawn = draw(seed)          the model, and inputs of several sizes

Recipes are put together so that much folds: mostly an affine behind a linear operator, or in front of one, with some
operators between them. Sizes may be open, names shared, claims false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper
from random_onnx_recipes import AFFINE, LINEAR, OTHER, PASSAGE, Recipe, broadcastable
from random_onnx_scope import Array, Scope, Settings, Undrawable, Value

OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
DTYPES = {TensorProto.FLOAT: 6, TensorProto.DOUBLE: 10, TensorProto.FLOAT16: 1, TensorProto.BFLOAT16: 1}
KINDS = ((LINEAR, 0.25), (AFFINE, 0.25), (PASSAGE, 0.4), (OTHER, 0.1))


@dataclass
class Drawn:
    """A model, and inputs to run it on: two of the same sizes, then those of other sizes where sizes are open."""

    model: onnx.ModelProto
    feeds: list[dict[str, Array]]


def _grow(s: Scope, blocks: int) -> None:
    """Mostly an affine behind a linear operator, or in front of one, with some operators between them."""
    for _ in range(blocks):
        between: list[dict[Recipe, float]] = [PASSAGE] * s.one(0, 1, 1, 2, 3)
        ends: list[dict[Recipe, float]] = [LINEAR, AFFINE]
        block = [ends[0], *between, ends[1]] if s.maybe(0.5) else [ends[1], *between, ends[0]]
        if s.maybe(0.3):
            block = [KINDS[int(s.random.choice(len(KINDS), p=[share for _, share in KINDS]))][0]]
        for table in block:
            _add_one(s, table)


def _add_one(s: Scope, table: dict[Recipe, float]) -> None:
    recipes, chances = list(table), np.array(list(table.values()))
    for _ in range(8):
        recipe = recipes[int(s.random.choice(len(recipes), p=chances / chances.sum()))]
        try:
            with s.undone():
                recipe(s)
            return
        except Undrawable:
            continue


@dataclass(frozen=True)
class Source:
    """An input of the model, and which of its axes are open: a name, None without one; no sizes: not even the rank."""

    value: Value
    sizes: tuple[int | str | None, ...] | None


def _source(s: Scope, name: str, shape: Sequence[int]) -> Source:
    value = Value(name, s.random.normal(size=tuple(shape)), s.settings.dtype, 1 if len(shape) > 1 else None)
    s.values.append(value)
    sizes: list[int | str | None] = list(shape)
    if s.maybe(0.4):
        sizes[0] = s.one("batch", None)
    if s.maybe(0.08):
        axis = s.size(0, len(sizes) - 1)
        sizes[axis] = s.one(f"{name}_{axis}", None)
    return Source(value, None if s.maybe(0.03) else tuple(sizes))


def draw(seed: int) -> Drawn:
    """The model of a seed. Raises `Undrawable` where hardly anything could be drawn."""
    random = np.random.default_rng(seed)
    dtype = int(random.choice(list(DTYPES), p=np.array(list(DTYPES.values())) / sum(DTYPES.values())))
    s = Scope(Settings(random, int(random.choice(OPSETS)), dtype))
    rank = s.one(2, 3, 3, 4, 4, 4, 4, 5)
    shape = (s.size(1, 3), s.size(1, 6), *(s.size(1, 5 if rank < 5 else 3) for _ in range(rank - 2)))
    if s.maybe(0.3):  # a mistaken axis is refused unless sizes coincide
        shape = (s.size(2, 3),) * rank
    sources = [_source(s, "x", shape)]
    if s.maybe(0.2):
        other = broadcastable(s, shape) if s.maybe(0.3) else shape
        sources += [_source(s, "y", other)] if len(other) > 0 else []
    s.values.sort(key=lambda value: value.name, reverse=True)
    s.constants.append(Value("flag", np.array(True), TensorProto.BOOL))
    with np.errstate(all="ignore"):
        _grow(s, s.size(1, 4))
    model = _model(s, sources)
    return Drawn(model, _feeds(s, sources))


def _model(s: Scope, sources: Sequence[Source]) -> onnx.ModelProto:
    makers = {name for node in s.nodes for name in node.output}
    read = set(_names_read(s.nodes))
    leaves = [value for value in s.values if value.name in makers and value.name not in read]
    inner = [value for value in s.values if value.name in makers and value.name in read]
    outputs = [value for value in leaves if value is leaves[-1] or s.maybe(0.9)]
    outputs += [s.one(*inner)] if inner and s.maybe(0.12) else []
    if not outputs:
        raise Undrawable("nothing")
    inputs = [helper.make_tensor_value_info(each.value.name, each.value.dtype, each.sizes) for each in sources]
    if any(node.op_type == "If" for node in s.nodes):
        inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    kept = {stored.name: stored for stored in s.stored}
    inputs += [helper.make_tensor_value_info(n, kept[n].data_type, kept[n].dims) for n in s.declared]
    results = [helper.make_tensor_value_info(each.name, each.dtype, [None] * each.rank) for each in outputs]
    claims = [_lie(s, value) for value in s.values if value.name in makers and s.maybe(0.02)]
    claims = [claim for claim in claims if claim.name not in {each.name for each in outputs}]
    graph = helper.make_graph(s.nodes, "drawn", inputs, results, s.stored, value_info=claims)
    opsets = [helper.make_opsetid("", s.opset)] + [helper.make_opsetid("local", 1)] * bool(s.settings.functions)
    ir_version = helper.find_min_ir_version_for(opsets[:1], ignore_unknown=True)
    least = 8 if s.settings.functions else 4
    return helper.make_model(
        graph, opset_imports=opsets, functions=s.settings.functions, ir_version=max(ir_version, least)
    )


def _names_read(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    found = {name for node in nodes for name in node.input}
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _names_read(attribute.g.node) | {output.name for output in attribute.g.output}
    return found


def _lie(s: Scope, value: Value) -> onnx.ValueInfoProto:
    """A claim about a value that is not so, in rank or in size."""
    wrong = [*value.shape, 1] if s.maybe(0.5) else [size + 1 for size in value.shape]
    return helper.make_tensor_value_info(value.name, value.dtype, wrong)


def _feeds(s: Scope, sources: Sequence[Source]) -> list[dict[str, Array]]:
    feeds: list[dict[str, Array]] = []
    for attempt in range(3):
        chosen: dict[str | None, int] = {}
        feed: dict[str, Array] = {"flag": np.array(attempt % 2 == 0)}
        for source in sources:
            sizes = list(source.value.shape)
            for axis, size in enumerate(source.sizes or sizes):
                if attempt >= 2 and not isinstance(size, int):
                    sizes[axis] = chosen.setdefault(size or f"{source.value.name}.{axis}", s.size(1, 4))
            feed[source.value.name] = source.value.array if attempt == 0 else s.random.normal(size=sizes)
        if attempt == 1:
            feed |= {value.name: value.array * 1.5 for value in s.constants if value.name in s.declared}
        if attempt < 2 or chosen:
            feeds.append(feed)
    return feeds
