"""Random multi-branch fx graphs, built node by node, and what a merge may never do to them.

`draw(seed)` gives a GraphModule and inputs of several sizes; `check` folds it as a recorded program, as a GraphModule
without and with example inputs, or as an exported program. The oracle is that of `random_torch`; a graph of other
floats is checked again as doubles. Beyond it: the certificate, multiply-adds, and `lint`.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from random_branches_blocks import Taps, grow
from random_harness import Wrong
from random_torch import compare, exported, run
from random_torch_builder import UNLUCKY, Builder, Unfit
from random_torch_graphs import Drawn
from random_torch_operators import norm_function, norm_module
from random_torch_recording import Called, Recording
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import bnfold
from bnfold.frontends import torch as frontend
from bnfold.graph import Reason
from bnfold.verify.certificate import derive
from bnfold.verify.result import Status

aten = torch.ops.aten
FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d)
ATEN = tuple(getattr(aten, f"conv{axes}d") for axes in (1, 2, 3))
MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DTYPES = [torch.float64] * 12 + [torch.float32] * 4 + [torch.float16]
MIX = ["recorded"] * 50 + ["module"] * 24 + ["examples"] * 22 + ["program"] * 4


class TorchMaker:
    """Spells the parts of a block as modules, functions and methods."""

    unlucky = UNLUCKY

    def __init__(self, builder: Builder) -> None:
        self.b, self.random = builder, builder.random

    @contextmanager
    def undone(self) -> Iterator[None]:
        """What a term has added before it failed stays, and nobody reads it."""
        yield

    def shape(self, value: fx.Node) -> tuple[int, ...]:
        return self.b.shape(value)

    def spells(self, taps: Taps) -> bool:
        return taps.mode is None and (taps.before == taps.after or taps.is_same)

    def conv(self, x: fx.Node, taps: Taps, groups: int, out: int) -> fx.Node:
        b, axes = self.b, len(taps.kernel)
        if not self.spells(taps):
            raise Unfit("torch pads both sides alike")
        padding: Any = taps.before
        if taps.before != taps.after or (taps.is_same and b.chance(0.2)):
            padding = "same"
        elif not any(taps.before):
            padding = b.pick(0, 0, "valid", taps.before)
        bias, style, channels = b.chance(0.5), b.random.random(), b.shape(x)[1]
        sizes = {"stride": taps.stride, "padding": padding, "dilation": taps.dilation, "groups": groups}
        if style < 0.5:
            mode = b.pick(*["zeros"] * 15, "circular")
            made = MODULES[axes - 1](channels, out, taps.kernel, bias=bias, padding_mode=mode, **sizes)
            return b.call(self._trained(made), x, axis=1)
        weight = b.hold(b.tensor(out, channels // groups, *taps.kernel, spread=0.5))
        offset = b.hold(b.tensor(out)) if bias else None
        if style < 0.8:
            return b.call(FUNCTIONS[axes - 1], x, weight, offset, axis=1, **sizes)
        arguments = [list(taps.stride), padding if isinstance(padding, str) else list(taps.before), list(taps.dilation)]
        if isinstance(padding, str):
            return b.call(ATEN[axes - 1].padding, x, weight, offset, *arguments, groups, axis=1)
        if b.chance(0.5):
            return b.call(ATEN[axes - 1].default, x, weight, offset, *arguments, groups, axis=1)
        zeros = [0] * axes
        return b.call(aten.convolution.default, x, weight, offset, *arguments, False, zeros, groups, axis=1)

    def transposed(self, x: fx.Node, taps: Taps, groups: int, out: int) -> fx.Node:
        b, axes = self.b, len(taps.kernel)
        if taps.before != taps.after:
            raise Unfit("torch pads both sides alike")
        extra = taps.extra or (0,) * axes
        arguments = (taps.kernel, taps.stride, taps.before, extra, groups, b.chance(0.5), taps.dilation)
        return b.call(self._trained(TRANSPOSED[axes - 1](b.shape(x)[1], out, *arguments)), x, axis=1)

    def _trained(self, module: nn.Module) -> nn.Module:
        for parameter in module.parameters():
            parameter.data = self.b.tensor(*parameter.shape, spread=0.5)
        return module

    def product(self, x: fx.Node, out: int) -> fx.Node:
        b, size, last = self.b, self.b.shape(x)[-1], self.b.rank(x) - 1
        style = b.random.random()
        if style < 0.5:
            return b.call(self._trained(nn.Linear(size, out, b.chance(0.6))), x, axis=last)
        offset = b.hold(b.tensor(out)) if b.chance(0.6) else None
        if style < 0.65:
            return b.call(F.linear, x, b.hold(b.tensor(out, size, spread=0.5)), offset, axis=last)
        weight = b.hold(b.tensor(size, out, spread=0.5))
        if b.rank(x) == 2 and offset is not None and b.chance(0.5):
            factors = b.pick({}, {}, {"alpha": 2.0}, {"beta": 0.5})
            return b.call(b.pick(torch.addmm, aten.addmm.default), offset, x, weight, axis=last, **factors)
        made = b.call(b.pick(torch.matmul, operator.matmul, "matmul"), x, weight, axis=last)
        return made if offset is None else b.call(operator.add, made, offset, axis=last)

    def norm(self, x: fx.Node) -> fx.Node:
        b = self.b
        if b.chance(0.02):
            made = b.call(F.batch_norm, x, None, None, training=True, axis=1)
            b.norms += 1
            return made
        return b.pick(norm_module, norm_module, norm_function)(b, x)

    def affine(self, x: fx.Node, axis: int) -> fx.Node:
        b = self.b
        numbers = b.tensor(b.shape(x)[axis], *[1] * (b.rank(x) - axis - 1), around=b.pick(0.0, 1.0), spread=0.5)
        target = b.pick(operator.mul, operator.add, operator.sub, torch.mul, "add", "mul_", "add_")
        return b.call(target, x, b.hold(numbers), axis=axis)

    def idle(self, x: fx.Node) -> fx.Node:
        b, shape = self.b, self.b.shape(x)
        kind = b.pick("module", "module", "clone", "permute", "view", "contiguous")
        axis = b.channel[x]
        if kind == "module":
            return b.call(b.pick(nn.Identity(), nn.Dropout(0.3)), x, axis=axis)
        if kind == "permute":
            order = list(range(b.rank(x)))
            b.random.shuffle(order)
            back = [order.index(each) for each in range(b.rank(x))] if b.chance(0.9) else order
            made = b.call("permute", b.call("permute", x, *order), *back, axis=axis)
        elif kind == "view":
            made = b.call("reshape", b.call("reshape", x, *shape[:1], -1), *shape, axis=axis)
        else:
            made = b.call(kind, x, axis=axis)
        if b.shape(made) != shape:
            raise Unfit("turned")
        return made

    def cast(self, x: fx.Node) -> fx.Node:
        b, dtype = self.b, self.b.dtype
        made = b.call("to", x, b.pick(torch.float32, torch.float64, torch.float16), axis=b.channel[x])
        return b.call("to", made, dtype, axis=b.channel[x])

    def relu(self, x: fx.Node) -> fx.Node:
        b = self.b
        target = b.pick(torch.relu, F.relu, "relu", "relu", torch.sigmoid, "relu_", nn.ReLU(b.chance(0.3)))
        return b.call(target, x, axis=b.channel[x])

    def pooled(self, x: fx.Node) -> fx.Node:
        return self.b.call("mean", x, tuple(range(2, self.b.rank(x))), True, axis=1)

    def join(self, kind: str, terms: list[fx.Node]) -> fx.Node:
        b, made = self.b, terms[0]
        for term in terms[1:]:
            if kind == "sub":
                target = b.pick(operator.sub, torch.sub, "sub", aten.sub.Tensor, "sub_", torch.rsub)
            else:
                target = b.pick(operator.add, operator.add, torch.add, "add", aten.add.Tensor, "add_", operator.iadd)
            more = {"alpha": 2} if target in (torch.add, torch.sub) and b.chance(0.08) else {}
            made = b.call(target, made, term, axis=b.channel[made], **more)
        return made


# graphs


def draw(seed: int) -> Drawn | None:
    """The graph of a seed; None where nothing came of it."""
    random = Random(seed)
    b = Builder(random, random.choice(DTYPES))
    rank = random.choice((2, 3, 3, 4, 4, 4, 4, 4, 5))
    side = 7 if rank < 5 else 4
    shape = (random.randint(1, 2), random.choice((2, 3, 4, 4)), *(random.randint(3, side) for _ in range(rank - 2)))
    x = b.graph.placeholder("x0")
    b.values[x], b.channel[x] = b.tensor(*shape), 1
    b.pool.append(x)
    b.computed.add(x)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns once of an even kernel with the padding `same`
            value = grow(TorchMaker(b), x, random.choice((1, 1, 2, 2, 3)))
    except UNLUCKY:
        return None
    return None if value is x else _finished(seed, b, x, value)


def _finished(seed: int, b: Builder, x: fx.Node, value: fx.Node) -> Drawn:
    loose = [node for node in b.pool if not node.users and node not in (value, x) and b.chance(0.6)]
    inner = [node for node in b.pool if node.users and node is not x]
    results = [value, *loose[:3], *([b.pick(*inner)] if inner and b.chance(0.12) else [])]
    b.graph.output(tuple(results))
    b.lowest = max((b.lowest, b.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    shape = b.shape(x)
    shapes = (shape, (3, *shape[1:]), *((*shape[:2], *(size + more for size in shape[2:])) for more in (1, 2)))
    inputs = tuple((b.tensor(*each),) for each in shapes)
    return Drawn(seed, fx.GraphModule(b.root, b.graph).eval(), inputs, b.norms, b.magnitude, b.lowest)


def as_doubles(drawn: Drawn) -> Drawn:
    """The same graph with every float a double."""
    module = copy.deepcopy(drawn.module).double()
    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, lambda each: torch.float64 if _is_float(each) else each)
    module.recompile()
    inputs = tuple(tuple(each.double() for each in given) for given in drawn.inputs)
    return Drawn(drawn.seed, module, inputs, drawn.norms, drawn.magnitude, torch.float64)


def _is_float(argument: Any) -> bool:
    return isinstance(argument, torch.dtype) and argument.is_floating_point


# the check


def check(seed: int, tally: Any) -> bool:
    """Draw and check the graph of a seed; raise `Wrong` where its fold does harm. False where nothing was drawn."""
    drawn = draw(seed)
    if drawn is None or not _is_possible(drawn):
        return False
    dialect = MIX[seed * 37 % len(MIX)]
    tally.counts[dialect] += 1
    _check(drawn, dialect, tally)
    if drawn.lowest is not torch.float64:
        _check(as_doubles(drawn), dialect, type(tally)())
    return True


def _check(drawn: Drawn, dialect: str, tally: Any) -> None:
    if dialect == "module":
        _check_module(drawn, None, tally)
    elif dialect == "examples":
        _check_module(drawn, drawn.inputs[0], tally)
    elif program := recorded(drawn) if dialect == "recorded" else exported(drawn):
        _check_program(drawn, program, tally)


def _is_possible(drawn: Drawn) -> bool:
    try:
        made = run(drawn.module, drawn.inputs[0]).outputs
    except Exception:  # of any class: only that it does not run matters
        return False
    return all(isinstance(each, Tensor) and bool(each.isfinite().all()) for each in made)


def _check_program(drawn: Drawn, program: ExportedProgram, tally: Any) -> None:
    """Nothing else is computed, every new number is derived again, and there is no more to do than before."""
    folded = bnfold.fold(program)
    before, after = Called(program), Called(folded.model)
    _demand_equal(before, after, drawn)
    layer = derive(frontend.evidence(program), frontend.evidence(folded.model), folded.report)
    nothing_stored = layer.status is Status.SKIPPED and "no operator with stored weights" in layer.because
    if layer.status is not Status.PASS and not nothing_stored:
        raise Wrong(f"{layer.layer} {layer.status.value}: {layer.because}")
    tally.note(folded.report)
    tally.counts[f"{layer.layer} {layer.status.value}"] += 1
    _demand_less(before, after, drawn)
    _demand_settled(folded, bnfold.fold(folded.model))


def recorded(drawn: Drawn) -> ExportedProgram:
    """The program of one run."""
    recording = Recording(drawn.module)
    run(recording, drawn.inputs[0])
    assert recording.program is not None, "it ran"
    return recording.program


def _check_module(drawn: Drawn, examples: tuple[Tensor, ...] | None, tally: Any) -> None:
    """A GraphModule that torch finds in order and that computes nothing else; the caller's stays as it is."""
    code, made = drawn.module.code, run(drawn.module, drawn.inputs[0])
    folded = bnfold.fold(drawn.module, examples)
    again = run(drawn.module, drawn.inputs[0])
    if drawn.module.code != code or not all(map(torch.equal, made.outputs, again.outputs)):
        raise Wrong("the caller's module changed")
    if len(folded.report.norms) < drawn.norms:
        raise Wrong(f"{len(folded.report.norms)} outcomes for {drawn.norms} batch norms")
    folded.model.graph.lint()
    folded.model.recompile()
    _demand_equal(drawn.module, folded.model, drawn)
    tally.note(folded.report)
    _demand_less(drawn.module, folded.model, drawn)
    _demand_settled(folded, bnfold.fold(folded.model, examples))


def _demand_equal(before: Any, after: Any, drawn: Drawn) -> None:
    """Equal results for inputs of every size that the graph takes."""
    for inputs in drawn.inputs:
        try:
            reference = run(before, inputs)
        except Exception:  # of any class: only that it does not run matters
            continue
        compare(reference, run(after, inputs), drawn)


def _demand_settled(folded: Any, again: Any) -> None:
    """Folding again changes nothing, unless the growth that is allowed was used up."""
    refusals = [row.refusal for row in (*folded.report.outcomes, *folded.report.unmerged) if row.refusal]
    if any(refusal.reason is Reason.GROWTH_BUDGET for refusal in refusals):
        return
    if again.report.merges or any(row.folded for row in again.report.outcomes):
        raise Wrong("folding again folds or merges more")
    if len(again.model.graph.nodes) != len(folded.model.graph.nodes):
        raise Wrong("folding again changes the graph")


def _demand_less(before: Any, after: Any, drawn: Drawn) -> None:
    """Neither calls nor multiply-adds grow."""
    graphs = [getattr(each, "program", each).graph for each in (before, after)]
    calls = [sum(node.op.startswith("call") for node in graph.nodes) for graph in graphs]
    if calls[1] > calls[0]:
        raise Wrong(f"{calls[0]} calls became {calls[1]}")
    counts = [multiply_adds(module, drawn.inputs[0]) for module in (before, after)]
    if counts[1] > counts[0]:
        raise Wrong(f"{counts[0]} multiply-adds became {counts[1]}")


class Elementwise(TorchDispatchMode):
    """Counts the results of operators that have a number per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = called(*args, **(kwargs or {}))
        name = called.overloadpacket.__name__
        shapes = {each.shape if isinstance(each, Tensor) else None for each in args[:2]}
        if "batch_norm" in name or (name.rstrip("_") in ("add", "sub", "mul", "div", "rsub") and len(shapes) > 1):
            self.total += (made if isinstance(made, Tensor) else made[0]).numel()
        return made


def multiply_adds(module: Any, inputs: tuple[Tensor, ...]) -> int:
    """Those of all linear operators, counted by torch as they run; an operator with a number per channel has one per
    result."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Elementwise() as elementwise:
        module.forward(*(each.clone() for each in inputs))
    return int(counter.get_total_flops()) // 2 + elementwise.total
