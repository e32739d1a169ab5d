"""Random multi-branch ONNX models, written node by node, and what a merge may never do to them.

`draw(seed)` gives a model and inputs of several sizes; `check` folds it. The oracle is `random_onnx.examine`: results
in float64, the checker, the certificate, folding again, other names and another order.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from random import Random
from typing import Any

import numpy as np
import onnx
import random_onnx
from numpy_onnx import as_array, evaluate
from onnx import TensorProto, helper
from random_branches_blocks import Taps, grow
from random_harness import Wrong
from random_onnx import check_model, computing, disguised
from random_onnx_graphs import Drawn
from random_onnx_scope import Array, Scope, Settings, Undrawable, Value

from bnfold.folding import FoldOptions
from bnfold.frontends import onnx as frontend
from bnfold.outcome import FoldReport

OPSETS = (7, 9, 11, 13, 15, 17, 18, 20, 22)
DTYPES = {TensorProto.FLOAT: 8, TensorProto.DOUBLE: 9, TensorProto.FLOAT16: 3}


class OnnxMaker:
    """Spells the parts of a block as ONNX nodes, with every attribute that says where taps sit."""

    unlucky = (Undrawable,)

    def __init__(self, scope: Scope, random: Random) -> None:
        self.scope, self.random = scope, random

    def undone(self) -> AbstractContextManager[None]:
        return self.scope.undone()

    def shape(self, value: Value) -> tuple[int, ...]:
        return value.shape

    def spells(self, taps: Taps) -> bool:
        return True

    def conv(self, x: Value, taps: Taps, groups: int, out: int) -> Value:
        s = self.scope
        more = self._window(taps, groups)
        if taps.mode is not None:
            more["auto_pad"] = taps.mode
        elif taps.is_same and s.maybe(0.3):
            more["auto_pad"] = "SAME_UPPER"
        elif not any(taps.before + taps.after) and s.maybe(0.3):
            more["auto_pad"] = "VALID"
        if more.get("auto_pad", "").startswith("SAME") and not taps.is_same:
            more.pop("dilations", None)  # runtimes disagree about both
        if "auto_pad" in more:
            more.pop("pads", None)
        return self._convolution("Conv", x, (out, x.shape[1] // groups, *taps.kernel), out, more)

    def transposed(self, x: Value, taps: Taps, groups: int, out: int) -> Value:
        more = self._window(taps, groups)
        if any(taps.extra):
            more["output_padding"] = taps.extra
        return self._convolution("ConvTranspose", x, (x.shape[1], out // groups, *taps.kernel), out, more)

    def _window(self, taps: Taps, groups: int) -> dict[str, Any]:
        s, axes = self.scope, len(taps.kernel)
        given = {"strides": (taps.stride, 1), "dilations": (taps.dilation, 1), "pads": (taps.before + taps.after, 0)}
        more: dict[str, Any] = {
            name: list(sizes) for name, (sizes, usual) in given.items() if set(sizes) != {usual} or s.maybe(0.4)
        }
        more |= {"group": groups} if groups > 1 or s.maybe(0.4) else {}
        return more | ({"kernel_shape": list(taps.kernel)} if s.maybe(0.5) and axes else {})

    def _convolution(self, op: str, x: Value, shape: tuple[int, ...], out: int, more: dict[str, Any]) -> Value:
        s = self.scope
        inputs = [x, s.constant(s.numbers(*shape), x.dtype, "w")]
        if s.maybe(0.5):
            inputs.append(s.constant(s.numbers(out), x.dtype, "b"))
        return s.node(op, *inputs, channel=1, **more)

    def product(self, x: Value, out: int) -> Value:
        s, size = self.scope, x.shape[-1]
        if x.rank == 2 and s.maybe(0.5):
            more: dict[str, Any] = {name: s.one(0.5, 2.0, -1.0) for name in ("alpha", "beta") if s.maybe(0.2)}
            more |= {"transB": 1} if s.maybe(0.5) else {}
            shape = (out, size) if "transB" in more else (size, out)
            inputs = [x, s.constant(s.numbers(*shape), x.dtype, "w")]
            if s.maybe(0.7) or s.opset < 11:
                inputs.append(s.constant(s.numbers(*s.one((out,), (out,), (1, out), ())), x.dtype, "b"))
            return s.node("Gemm", *inputs, channel=1, **more)
        made = s.node("MatMul", x, s.constant(s.numbers(size, out), x.dtype, "w"), channel=x.rank - 1)
        if s.maybe(0.5):
            return made
        bias = s.constant(s.numbers(out), x.dtype, "b")
        return s.node("Add", *((bias, made) if s.maybe(0.3) else (made, bias)), channel=made.channel)

    def norm(self, x: Value) -> Value:
        s, channels = self.scope, x.shape[1]
        arrays = (s.scales([channels]), s.shifts([channels]), s.shifts([channels]))
        constants = [s.constant(array, x.dtype, "s") for array in arrays]
        variance = s.constant(s.random.uniform(0.3, 2, channels), x.dtype, "v")
        return s.node("BatchNormalization", x, *constants, variance, channel=1)

    def affine(self, x: Value, axis: int) -> Value:
        s = self.scope
        shape = (x.shape[axis], *[1] * (x.rank - axis - 1))
        op = s.one("Mul", "Add", "Sub", "Div")
        numbers = s.scales(shape) if op in ("Mul", "Div") else s.shifts(shape)
        other = s.constant(numbers, x.dtype, "k")
        return s.node(op, *((other, x) if op != "Div" and s.maybe(0.3) else (x, other)), channel=axis)

    def idle(self, x: Value) -> Value:
        s, kind = self.scope, self.scope.one("Identity", "Dropout", "Transpose")
        if kind != "Transpose":
            return s.node(kind, x, channel=x.channel)
        order = [int(axis) for axis in s.random.permutation(x.rank)]
        back = [order.index(axis) for axis in range(x.rank)] if s.maybe(0.9) else order
        turned = s.node("Transpose", x, perm=order)
        made = s.node("Transpose", turned, perm=back, channel=x.channel)
        if made.shape != x.shape:
            raise Undrawable("turned")
        return made

    def cast(self, x: Value) -> Value:
        to = self.scope.one(TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
        middle = self.scope.node("Cast", x, to=to, channel=x.channel)
        if self.scope.maybe(0.5) and x.rank > 2:
            middle = self.conv(middle, _point(x.rank - 2), 1, x.shape[1])
        return self.scope.node("Cast", middle, to=x.dtype, channel=x.channel)

    def relu(self, x: Value) -> Value:
        return self.scope.node(self.scope.one("Relu", "Relu", "Sigmoid"), x, channel=x.channel)

    def pooled(self, x: Value) -> Value:
        return self.scope.node("GlobalAveragePool", x, channel=1)

    def join(self, kind: str, terms: list[Value]) -> Value:
        if kind == "sum" and self.scope.opset < 8 and len({term.shape for term in terms}) > 1:
            raise Undrawable("Sum did not broadcast")
        return self.scope.node(kind.capitalize(), *terms, channel=terms[0].channel)


def _point(axes: int) -> Taps:
    ones, zeros = (1,) * axes, (0,) * axes
    return Taps(ones, ones, ones, zeros, zeros)


# models


def draw(seed: int) -> Drawn:
    """The model of a seed. Raises `Undrawable` where hardly anything could be drawn."""
    random, numbers = Random(seed), np.random.default_rng(seed)
    dtype = random.choices(list(DTYPES), list(DTYPES.values()))[0]
    s = Scope(Settings(numbers, random.choice(OPSETS), dtype))
    rank = random.choice((2, 3, 3, 4, 4, 4, 4, 4, 5))
    side = 7 if rank < 5 else 4
    shape = (random.randint(1, 2), random.choice((2, 3, 4, 4)), *(random.randint(3, side) for _ in range(rank - 2)))
    s.values.append(Value("x", numbers.normal(size=shape), dtype, 1))
    with np.errstate(all="ignore"):
        grow(OnnxMaker(s, random), s.values[0], random.choice((1, 1, 2, 2, 3)))
    open_axes = {0} if random.random() < 0.5 else set()
    open_axes |= set(range(2, rank)) if random.random() < 0.6 else set()
    sizes = [f"size{axis}" if axis in open_axes else size for axis, size in enumerate(shape)]
    return Drawn(_model(s, sizes), _feeds(s, shape, open_axes))


def _model(s: Scope, sizes: list[Any]) -> onnx.ModelProto:
    made = [value for value in s.values if value.name != "x"]
    read = {name for node in s.nodes for name in node.input}
    leaves, inner = ([each for each in made if (each.name in read) is used] for used in (False, True))
    outputs = [each for each in leaves if each is leaves[-1] or s.maybe(0.8)]
    outputs += [s.one(*inner)] if inner and s.maybe(0.15) else []
    if not outputs:
        raise Undrawable("nothing")
    claims = [] if s.maybe(0.8) else [each for each in inner if s.maybe(0.3) and each not in outputs]
    graph = helper.make_graph(
        s.nodes,
        "branches",
        [helper.make_tensor_value_info("x", s.values[0].dtype, sizes)],
        [helper.make_tensor_value_info(each.name, each.dtype, [None] * each.rank) for each in outputs],
        s.stored,
        value_info=[_lie(s, each) for each in claims],
    )
    kept = {stored.name: stored for stored in s.stored}
    graph.input.extend(helper.make_tensor_value_info(n, kept[n].data_type, kept[n].dims) for n in s.declared)
    opsets = [helper.make_opsetid("", s.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=max(helper.find_min_ir_version_for(opsets), 4))


def _lie(s: Scope, value: Value) -> onnx.ValueInfoProto:
    """A claim about a value that is not so, in rank or in size."""
    wrong = [*value.shape, 1] if s.maybe(0.5) else [size + 1 for size in value.shape]
    return helper.make_tensor_value_info(value.name, value.dtype, wrong)


def _feeds(s: Scope, shape: tuple[int, ...], open_axes: set[int]) -> list[dict[str, Array]]:
    shapes = [shape] + [tuple(size + more * (axis in open_axes) for axis, size in enumerate(shape)) for more in (1, 2)]
    feeds = [{"x": s.random.normal(size=each)} for each in shapes]
    feeds[1] |= {value.name: value.array * 1.5 for value in s.constants if value.name in s.declared}
    return feeds


# the check


def check(seed: int, tally: Any) -> bool:
    """Draw and check the model of a seed; raise `Wrong` where its fold does harm. False where nothing was drawn."""
    try:
        drawn = draw(seed)
        check_model(drawn.model)
    except (Undrawable, Wrong):
        return False
    with np.errstate(all="ignore"):
        random_onnx.examine(drawn, seed, tally)
        _demand_less(drawn, seed, tally)
    return True


def _demand_less(drawn: Drawn, seed: int, tally: Any) -> None:
    """Multiply-adds do not grow, and as many nodes stay in another order, under other names."""
    options = FoldOptions(max_growth=1.1 if seed % 2 else 1e9)
    folded, _ = _folded(drawn.model, options)
    before, after = (multiply_adds(model, drawn.feeds[0]) for model in (drawn.model, folded))
    if after > before:
        raise Wrong(f"{before} multiply-adds became {after}")
    if seed % random_onnx.EVERY_ORDER == 0:
        other, _ = _folded(disguised(drawn.model, np.random.default_rng(seed))[0], options)
        counts = {computing(model) - added_biases(model) for model in (folded, other)}
        if len(counts) > 1:
            raise Wrong(f"{counts} nodes stay, as the order of the nodes will have it")


def _folded(model: onnx.ModelProto, options: FoldOptions) -> tuple[onnx.ModelProto, FoldReport]:
    folded, report = frontend.fold_model(frontend.from_proto(model), options)
    return frontend.to_proto(folded), report


def added_biases(model: onnx.ModelProto) -> int:
    """How many additions are the bias of a MatMul: which of two operators with equal work stays is a matter of order,
    and a Gemm needs no node for its bias."""
    products = {node.output[0] for node in model.graph.node if node.op_type == "MatMul"}
    known = {tensor.name for tensor in model.graph.initializer}
    known |= {node.output[0] for node in model.graph.node if node.op_type in ("Constant", "Identity")}
    known -= {port.name for port in model.graph.input}  # a caller may give another: that is no bias
    additions = [set(node.input) for node in model.graph.node if node.op_type == "Add"]
    return sum(bool(inputs & products) and bool(inputs & known) for inputs in additions)


def multiply_adds(model: onnx.ModelProto, feed: dict[str, Array]) -> int:
    """Those of all linear operators, counted at run time; an operator with a number per channel has one per result."""
    values: dict[str, Array] = {"": np.array(0.0)} | feed
    for stored in model.graph.initializer:
        values.setdefault(stored.name, as_array(stored))
    version, total = max(each.version for each in model.opset_import if not each.domain), 0
    for node in model.graph.node:
        made = evaluate(node, values, version, {})
        values |= made
        if node.op_type in ("Conv", "ConvTranspose"):
            x, weight = values[node.input[0]], values[node.input[1]]
            places = x if node.op_type == "ConvTranspose" else made[node.output[0]]
            total += places.size * int(np.prod(weight.shape[1:]))
        elif node.op_type in ("Gemm", "MatMul"):
            total += made[node.output[0]].size * values[node.input[0]].shape[-1]
        elif node.op_type in ("Add", "Sub", "Sum", "Mul", "Div", "BatchNormalization"):
            shapes = {values[name].shape for name in node.input}
            total += made[node.output[0]].size * (len(shapes) > 1)
    return total
