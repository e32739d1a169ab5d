"""Rewrites after which a network computes the same: what the optimisers of `tools.py` do, and these by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.version_converter
from onnx import helper
from surgery import (
    Surgery,
    Unfit,
    attribute,
    fold,
    layer,
    names_read,
    replace,
    sites,
)
from wrong import folded_or_not

Random = np.random.Generator
Rewrite = Callable[[onnx.ModelProto, Random], onnx.ModelProto]
REWRITES: dict[str, Rewrite] = {}


def rewrite(words: str) -> Callable[[Rewrite], Rewrite]:
    def register(change: Rewrite) -> Rewrite:
        REWRITES[words] = change
        return change

    return register


@rewrite("batch norms folded in float64, rounded once")
def own_fold(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    return fold(model)


@rewrite("every second batch norm folded")
def some_folded(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    found = sites(surgery)[::2]
    if not found:
        raise Unfit("nothing to fold")
    for source, norm in found:
        replace(surgery, source, norm, *layer(surgery, source, norm).folded())
    return surgery.clean()


@rewrite("batch norms as Mul and Add")
def as_affine(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    for norm in surgery.nodes("BatchNormalization"):
        if attribute(norm, "training_mode"):
            continue
        known = [surgery.array(name) for name in norm.input[1:5]]
        rank = rank_of(model, norm.input[0])
        if any(each is None for each in known):
            continue
        gamma, beta, mean, var = (np.asarray(each, dtype=np.float64) for each in known)
        scale = gamma / np.sqrt(var + float(np.float32(attribute(norm, "epsilon", 1e-5))))
        kind, shape = known[0].dtype, [-1, *[1] * (rank - 2)]  # type: ignore[union-attr]
        factor = surgery.put(surgery.fresh("factor"), scale.astype(kind).reshape(shape))
        offset = surgery.put(surgery.fresh("offset"), (beta - mean * scale).astype(kind).reshape(shape))
        between = surgery.fresh("between")
        surgery.insert(norm, helper.make_node("Mul", [norm.input[0], factor], [between]))
        surgery.insert(norm, helper.make_node("Add", [between, offset], [norm.output[0]]))
        surgery.graph.node.remove(norm)
    return surgery.clean()


def rank_of(model: onnx.ModelProto, name: str) -> int:
    inferred = onnx.shape_inference.infer_shapes(model)
    for each in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        if each.name == name and each.type.tensor_type.HasField("shape"):
            return len(each.type.tensor_type.shape.dim)
    raise Unfit("its rank is not known")


@rewrite("all inner values and nodes renamed")
def renamed(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    graph = surgery.graph
    kept = {each.name for each in (*graph.input, *graph.output)} | {""}
    made: dict[str, str] = {}

    def new(name: str) -> str:
        return name if name in kept else made.setdefault(name, f"v{len(made)}")

    def walk(inner: onnx.GraphProto) -> None:
        for stored in inner.initializer:
            stored.name = new(stored.name)
        for each in inner.output if inner is not graph else ():
            each.name = new(each.name)
        for i, node in enumerate(inner.node):
            node.name = f"n{i}"
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
            for part in node.attribute:
                if part.type == onnx.AttributeProto.GRAPH:
                    walk(part.g)

    del graph.value_info[:]
    walk(graph)
    return surgery.model


@rewrite("nodes in another order, initializers in reverse")
def reordered(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    graph = surgery.graph
    left = list(graph.node)
    ready = {each.name for each in (*graph.input, *graph.initializer)} | {""}
    ordered: list[onnx.NodeProto] = []
    while left:
        free = [node for node in left if all(name in ready for name in reads(node))]
        node = free[int(random.integers(len(free)))]
        left.remove(node)
        ordered.append(node)
        ready.update(node.output)
    copies = [helper.make_node("Identity", [], []) for _ in ordered]
    for copy, node in zip(copies, ordered, strict=True):
        copy.CopyFrom(node)
    stored = [onnx.TensorProto.FromString(each.SerializeToString()) for each in reversed(graph.initializer)]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(stored)
    return surgery.model


def reads(node: onnx.NodeProto) -> list[str]:
    """What a node needs, its inner graphs included."""
    inner = [each.g for each in node.attribute if each.type == onnx.AttributeProto.GRAPH]
    own = {o for graph in inner for each in graph.node for o in each.output}
    return list(node.input) + [name for graph in inner for name in names_read(graph) if name not in own]


@rewrite("initializers as Constant nodes")
def as_constants(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    stored = list(surgery.graph.initializer)
    made = [helper.make_node("Constant", [], [each.name], value=each) for each in stored]
    nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in surgery.graph.node]
    del surgery.graph.node[:], surgery.graph.initializer[:]
    surgery.graph.node.extend([*made, *nodes])
    return surgery.model


@rewrite("an Identity behind every third node")
def identities(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    for node in list(surgery.graph.node)[::3]:
        wrap(surgery, node, lambda name, out: [helper.make_node("Identity", [name], [out])])
    return surgery.model


def wrap(surgery: Surgery, node: onnx.NodeProto, make: Callable[[str, str], list[onnx.NodeProto]]) -> None:
    """Put nodes between the first output of a node and who reads it."""
    inner = surgery.fresh("inner")
    target, node.output[0] = node.output[0], inner
    at = list(surgery.graph.node).index(node) + 1
    for i, each in enumerate(make(inner, target)):
        surgery.graph.node.insert(at + i, each)
    del surgery.graph.value_info[:]


@rewrite("two transposes that undo each other behind a convolution")
def transposes(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    node = surgery.only("Conv")
    weight = surgery.array(node.input[1])
    if weight is None:
        raise Unfit("its weight is computed")
    order = [0, *range(2, weight.ndim), 1]
    back = [int(each) for each in np.argsort(order)]

    def make(name: str, out: str) -> list[onnx.NodeProto]:
        middle = surgery.fresh("turned")
        ahead = helper.make_node("Transpose", [name], [middle], perm=order)
        return [ahead, helper.make_node("Transpose", [middle], [out], perm=back)]

    wrap(surgery, node, make)
    return surgery.model


@rewrite("a factor of 4 and one of 1/4 behind a convolution")
def factors(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    node = surgery.only("Conv", "Gemm")
    kind = surgery.array(node.input[1]).dtype  # type: ignore[union-attr]
    up, down = surgery.put("four", np.array(4, kind)), surgery.put("quarter", np.array(0.25, kind))

    def make(name: str, out: str) -> list[onnx.NodeProto]:
        return [helper.make_node("Mul", [name, up], ["by_four"]), helper.make_node("Mul", ["by_four", down], [out])]

    wrap(surgery, node, make)
    return surgery.model
