"""Every row of `merge_cases.py` in every form, against the row's own network in float64, at two sizes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy_onnx
import onnx
import onnx_ir as ir
import pytest
import torch
from licences import assert_licensed
from merge_cases import PARALLEL, ROWS, InTorch, Row, in_onnx
from onnx import TensorProto, helper
from onnx_build import Net, run64
from random_onnx import disguised
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from bnfold.evidence import Evidence, StoredLinear, StoredWindow
from bnfold.frontends import onnx as stored
from bnfold.frontends import torch as frontend
from bnfold.graph import Reason
from bnfold.outcome import Combined, FoldReport, Term
from bnfold.verify.certificate import derive
from bnfold.verify.result import Status

pytestmark = [  # torch's own, in `program.module()` and of its own operators
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

LIMIT = 1e-11
LINEAR_MODULES = (nn.modules.conv._ConvNd, nn.Linear)
LINEAR = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul")
SUMS = ("add", "sub", "iadd", "add_", "sub_")
SEEDS = range(4)


def rows_of(form: str, rows: Sequence[Row] = ROWS) -> list[Any]:
    return [pytest.param(row, id=row.title) for row in rows if form in row.forms]


def assert_outcome(row: Row, counts: tuple[int, int], report: FoldReport) -> None:
    reasons = sorted({each.refusal.reason.code for each in report.unmerged})
    assert (*counts, row.why in reasons if row.why else reasons) == (row.linear, row.sums, True if row.why else []), (
        f"{counts[0]} operators, {counts[1]} additions, {reasons}"
    )


def assert_same(expected: Sequence[Any], found: Sequence[Any]) -> None:
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        one, other = (np.asarray(each.detach() if isinstance(each, Tensor) else each) for each in (one, other))
        assert one.shape == other.shape
        assert one.size
        assert np.abs(one - other).max() <= LIMIT * max(np.abs(one).max(), 1.0)


def assert_certified(before: Evidence, after: Evidence, report: FoldReport) -> None:
    layer = derive(before, after, report)
    assert layer.status is Status.PASS, layer.because


def data(row: Row, batch: int, more: int = 0) -> Tensor:
    """Numbers around zero; `more` elements along every spatial axis."""
    channel = len(row.shape) - 1 if row.last else 0
    shape = [size + more * (axis != channel and not row.sized) for axis, size in enumerate(row.shape)]
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


# as ONNX spells it


def in_numpy(model: onnx.ModelProto, row: Row, batch: int, more: int) -> list[Any]:
    return numpy_onnx.run(model, {"x": data(row, batch, more).numpy()})[0]


def onnx_counts(model: onnx.ModelProto) -> tuple[int, int]:
    """The linear operators and the additions of two values that are computed."""
    constants = {tensor.name for tensor in model.graph.initializer}
    linear = sum(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in model.graph.node)
    sums = (node for node in model.graph.node if node.op_type in ("Add", "Sub", "Sum"))
    return linear, sum(not set(node.input) & constants for node in sums)


def kinds(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes there are of each kind; a sum or a difference of n terms counts as n - 1."""
    sums = ("Add", "Sub", "Sum")
    return Counter(
        kind
        for node in model.graph.node
        for kind in ["sum"] * (len(node.input) - 1) * (node.op_type in sums) or [node.op_type]
    )


def folded_proto(proto: onnx.ModelProto, row: Row) -> tuple[onnx.ModelProto, FoldReport]:
    """The folded model and its report, once it is certified, settled and no larger."""
    model = stored.from_proto(proto)
    folded, report = stored.fold_model(model, row.options)
    assert_certified(stored.evidence(model), stored.evidence(folded), report)
    assert_licensed(stored, model, folded, report)
    assert stored.complaint(model) is not None or stored.complaint(folded) is None
    again, late = stored.fold_model(folded, row.options)
    assert not late.merges
    assert stored.to_bytes(again) == stored.to_bytes(folded)
    result = stored.to_proto(folded)
    stored.from_bytes(stored.to_bytes(folded))  # valid
    assert len(result.graph.node) <= len(proto.graph.node)
    return result, report


@pytest.mark.parametrize("row", rows_of("onnx"))
def test_as_onnx(row: Row) -> None:
    folded, report = folded_proto(in_onnx(row), row)
    assert_outcome(row, onnx_counts(folded), report)
    model = in_onnx(row, TensorProto.DOUBLE)
    wide, _ = folded_proto(model, row)
    for batch, more in ((2, 0), (3, 4)):
        assert_same(in_numpy(model, row, batch, more), in_numpy(wide, row, batch, more))


# the same network, written otherwise


class Rewriting:
    """Another spelling of a model, drawn at random: sums re-associated and idle nodes inserted."""

    def __init__(self, model: onnx.ModelProto, rank: int, seed: int) -> None:
        self.random, self.rank = np.random.default_rng(seed), rank
        self.model = onnx.ModelProto.FromString(model.SerializeToString())
        self.fixed = {tensor.name for tensor in model.graph.initializer}
        self.made = 0

    def rewritten(self) -> onnx.ModelProto:
        """The model, its names and the order of its nodes shuffled as well."""
        roots = self._roots()
        region = self._region(roots)
        nodes: list[onnx.NodeProto] = []
        for node in self.model.graph.node:
            nodes += self._sum(node) if node.output[0] in roots else [node] * (node.output[0] not in self._inner)
        spelt = [other for node in nodes for other in [*self._idle(node, region), node]]
        del self.model.graph.node[:]
        self.model.graph.node.extend(spelt)
        return disguised(self.model, self.random)[0]

    def _is_sum(self, name: str) -> bool:
        return name in self._makers and self._is_spelt_sum(self._makers[name])

    def _is_spelt_sum(self, node: onnx.NodeProto) -> bool:
        """Whether all terms are computed: the bias of a matrix product belongs to that one."""
        return node.op_type in ("Add", "Sub", "Sum") and not set(node.input) & self.fixed

    def _roots(self) -> set[str]:
        """The sums that no other sum reads alone; `_inner` are the rest."""
        graph = self.model.graph
        self._makers = {name: node for node in graph.node for name in node.output}
        reads = [name for node in graph.node for name in node.input] + [port.name for port in graph.output]
        sums = [node for node in graph.node if self._is_sum(node.output[0])]
        self._inner = {name for node in sums for name in node.input if self._is_sum(name) and reads.count(name) == 1}
        return {node.output[0] for node in sums} - self._inner

    def _region(self, roots: set[str]) -> set[str]:
        """What is between the data of the branches and the sum: the results of these nodes."""
        found, waiting = set[str](), list(roots)
        while waiting:
            name = waiting.pop()
            found.add(name)
            if name in roots or name in self._inner or self._makers[name].op_type in ("BatchNormalization", "Mul"):
                waiting += [each for each in self._makers[name].input if each in self._makers]
        return {name for name in found if self._makers[name].op_type in BRANCH} | roots

    def _terms(self, name: str, sign: int) -> Iterator[tuple[int, str]]:
        node = self._makers[name]
        for port, value in enumerate(node.input):
            own = -sign if node.op_type == "Sub" and port == 1 else sign
            yield from self._terms(value, own) if value in self._inner else [(own, value)]

    def _sum(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The same terms in a tree of another shape, the operands in another order."""
        terms, nodes = list(self._terms(node.output[0], 1)), []
        while len(terms) > 1:
            picked = self.random.permutation(len(terms))[: 2 if self.random.random() < 0.7 else 3]
            chosen = [terms[place] for place in picked]
            terms = [term for place, term in enumerate(terms) if place not in picked]
            signs, names = [sign for sign, _ in chosen], [name for _, name in chosen]
            if len(set(signs)) == 1:
                op, sign = "Add" if len(names) == 2 else "Sum", signs[0]
            elif len(names) == 2:
                names, op, sign = [name for _, name in sorted(chosen, reverse=True)], "Sub", 1
            else:
                terms += chosen
                continue
            made = node.output[0] if not terms else self._name()
            nodes.append(helper.make_node(op, names, [made], name=f"{made}_node"))
            terms.append((sign, made))
        return nodes

    def _idle(self, node: onnx.NodeProto, region: set[str]) -> list[onnx.NodeProto]:
        """Idle nodes in front of some of the data that a node of a branch reads."""
        found: list[onnx.NodeProto] = []
        is_sum = self._is_spelt_sum(node)
        if node.output[0] not in region and not is_sum:
            return found
        for port, name in enumerate(node.input):
            stays = is_sum and name in self._makers and name not in region
            if name in self.fixed or stays or self.random.random() < 0.5:
                continue
            if self.random.random() < 0.5:
                found.append(helper.make_node("Identity", [name], [self._name()]))
            else:
                order = self.random.permutation(self.rank).tolist()
                back = np.argsort(order).tolist()
                found.append(helper.make_node("Transpose", [name], [self._name()], perm=order))
                found.append(helper.make_node("Transpose", [found[-1].output[0]], [self._name()], perm=back))
            node.input[port] = found[-1].output[0]
        return found

    def _name(self) -> str:
        self.made += 1
        return f"rewritten{self.made}"


BRANCH = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Mul")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("row", rows_of("onnx", PARALLEL))
def test_another_spelling_gives_as_many_nodes(row: Row, seed: int) -> None:
    model = in_onnx(row, TensorProto.DOUBLE)
    plain, _ = folded_proto(model, row)
    other = Rewriting(model, len(row.shape) + 1, seed).rewritten()
    assert_same(in_numpy(model, row, 2, 0), in_numpy(other, row, 2, 0))
    folded, _ = folded_proto(other, row)
    assert kinds(folded) == kinds(plain)
    assert_same(in_numpy(model, row, 3, 4), in_numpy(folded, row, 3, 4))


# as torch spells it


def run(module: Any, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(module(x.clone())) if isinstance(leaf, Tensor)]


def counted(graph: fx.Graph, module: nn.Module | None) -> tuple[int, int]:
    """The linear operators and the additions of a graph."""
    parts = dict(module.named_modules()) if module is not None else {}
    modules = [parts.get(str(node.target)) for node in graph.nodes if node.op == "call_module"]
    names = [spelt(node) for node in graph.nodes if node.op in ("call_function", "call_method")]
    linear = sum(isinstance(part, LINEAR_MODULES) for part in modules) + sum(name in LINEAR for name in names)
    return linear, sum(name in SUMS for name in names)


def spelt(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.removeprefix("aten::")
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def calls(graph: fx.Graph) -> int:
    return sum(node.op.startswith("call") for node in graph.nodes)


@pytest.mark.parametrize("row", rows_of("fx"))
def test_as_traced_module(row: Row) -> None:
    net = InTorch(row)
    traced, example = fx.symbolic_trace(net), data(row, 2)
    folded, report = frontend.fold_graph_module(traced, row.options, (example.to(row.dtype),))
    assert_outcome(row, counted(folded.graph, folded), report)
    assert calls(folded.graph) <= calls(traced.graph)
    wide, _ = frontend.fold_graph_module(copy.deepcopy(traced).double(), row.options, (example,))
    if row.why != "overflow":
        assert counted(wide.graph, wide) == counted(folded.graph, folded)
    for x in (data(row, 2), data(row, 3, 4)):
        assert_same(run(copy.deepcopy(net).double(), x), run(wide, x))
    again, late = frontend.fold_graph_module(folded, row.options, (example.to(row.dtype),))
    assert not late.merges
    assert again.code == folded.code
    assert all(torch.equal(*pair) for pair in zip(folded.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("row", rows_of("program"))
def test_as_exported_program(row: Row) -> None:
    net = InTorch(row)
    example = data(row, 2)
    program = frontend.capture(net, (example.to(row.dtype),))
    folded, report = frontend.fold_program(program, row.options)
    assert_outcome(row, counted(folded.graph, None), report)
    assert_certified(frontend.evidence(program), frontend.evidence(folded), report)
    assert_licensed(frontend, program, folded, report)
    assert calls(folded.graph) <= calls(program.graph)
    wide, _ = frontend.fold_program(frontend.capture(copy.deepcopy(net).double(), (example,)), row.options)
    for x in (data(row, 2), data(row, 3)):
        assert_same(run(copy.deepcopy(net).double(), x), run(wide.module(), x))
    again, late = frontend.fold_program(folded, row.options)
    assert not late.merges
    assert str(again.graph) == str(folded.graph)
    assert folded.state_dict.keys() == again.state_dict.keys()
    assert all(torch.equal(folded.state_dict[name], tensor) for name, tensor in again.state_dict.items())


@pytest.mark.parametrize(("stride", "before", "fits"), [(1, 0, True), (2, 0, False), (1, 1, False)])
def test_the_certificate_rejects_a_value_that_has_another_size(stride: int, before: int, fits: bool) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 4, 1, 1))
    window = StoredWindow((stride, 1), (1, 1), (before, 0), (0, 0))
    evidence = [
        Evidence({}, {"conv": StoredLinear("conv", each, None, window=window)})
        for each in (weight, weight + np.eye(4)[:, :, None, None])
    ]
    report = FoldReport((), (Combined("conv", (Term(1, "conv", None), Term(1, None, None))),))
    assert (derive(*evidence, report).status is Status.PASS) == fits


@pytest.mark.parametrize("into", ["first", "second"])
@pytest.mark.parametrize(("stride", "fits"), [(1, True), (2, False)])
def test_the_certificate_rejects_operators_of_another_stride(into: str, stride: int, fits: bool) -> None:
    random = np.random.default_rng(0)
    linears = {
        name: StoredLinear("conv", random.normal(size=(4, 4, 1)), None, window=StoredWindow((step,), (1,), (0,), (0,)))
        for name, step in (("first", stride), ("second", 1))
    }
    both = replace(linears[into], weight=linears["first"].weight + linears["second"].weight)
    report = FoldReport((), (Combined(into, tuple(Term(1, name, None) for name in linears)),))
    layer = derive(Evidence({}, linears), Evidence({}, {into: both}), report)
    assert (layer.status is Status.PASS) == fits


def test_there_are_rows_enough() -> None:
    assert len(ROWS) >= 50
    assert len({row.title for row in ROWS}) == len(ROWS)
    assert all(row.forms for row in ROWS)


def test_a_row_that_promises_too_much_is_rejected() -> None:
    row = next(row for row in ROWS if row.title == "1x3 + 3x1")
    folded, report = folded_proto(in_onnx(row), row)
    with pytest.raises(AssertionError, match="2 operators, 1 additions"):
        assert_outcome(Row(row.title, row.recipe), onnx_counts(folded), report)


def test_the_other_spelling_is_another_one() -> None:
    row = next(row for row in ROWS if row.title == "sum of sums")
    model = in_onnx(row)
    others = [Rewriting(model, 4, seed).rewritten() for seed in range(20)]
    ops = {node.op_type for other in others for node in other.graph.node}
    assert {"Identity", "Transpose", "Add", "Sum"} <= ops
    trees = {tuple(sorted(len(node.input) for node in other.graph.node if node.op_type == "Sum")) for other in others}
    assert len(trees) > 1
    folded, _ = folded_proto(others[0], row)
    with pytest.raises(AssertionError):
        assert kinds(folded) == kinds(others[0])


# what only an ONNX model can say


def merged_from(builder: Net, shape: Sequence[int | str] | None, **more: Any) -> tuple[ir.Model, list[Reason]]:
    """What is left of a model, and why no more of it was merged."""
    model = ir.from_proto(builder.model({"x": shape}, **more))
    folded, report = stored.fold_model(model)
    feeds = {
        "x": np.random.default_rng(1).normal(size=[size if isinstance(size, int) else 2 for size in shape or (2, 4)])
    }
    assert_same(run64(model, feeds), run64(folded, feeds))
    assert_certified(stored.evidence(model), stored.evidence(folded), report)
    return folded, [each.refusal.reason for each in report.unmerged]


def product(builder: Net, x: str, ins: int, outs: int, name: str) -> str:
    return builder.node("MatMul", [x, builder.constant(f"{name}.w", builder.numbers(ins, outs))], name)


def gemm_and_product(between: int) -> Net:
    builder = Net(dtype=TensorProto.DOUBLE)
    weights = builder.constant("w", builder.numbers(4, between)), builder.constant("b", builder.numbers(between))
    product(builder, builder.node("Gemm", ["x", *weights], "gemm"), between, 4, "last")
    builder.node("Relu", ["last"])
    return builder


def kinds_of(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(("between", "left"), [(2, ("Gemm", "MatMul")), (3, ("MatMul", "Add"))])
def test_a_bias_that_needs_a_node_is_work(between: int, left: tuple[str, ...]) -> None:
    folded, reasons = merged_from(gemm_and_product(between), ("n", 4))
    assert kinds_of(folded) == Counter((*left, "Relu"))
    assert reasons == [Reason.MORE_WORK] * (between == 2)


def test_a_gemm_stays_where_it_alone_enforces_two_axes() -> None:
    folded, reasons = merged_from(gemm_and_product(8), None)
    assert kinds_of(folded) == {"Gemm": 1, "MatMul": 1, "Relu": 1}
    assert reasons == [Reason.WINDOWS_DIFFER]


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_which_of_two_equals_stays_is_no_matter_of_order(names: str) -> None:
    builder = Net(dtype=TensorProto.DOUBLE)
    for name in names:
        product(builder, "x", 4, 4, name)
    terms = ["a", builder.node("Relu", ["x"]), builder.node("Sigmoid", ["x"])]
    builder.node("Add", [builder.node("Sum", terms), "b"])
    folded, _ = merged_from(builder, ("n", 4))
    assert kinds_of(folded) == {"MatMul": 1, "Relu": 1, "Sigmoid": 1, "Sum": 1}


def test_sizes_that_are_not_so_go_and_those_that_are_stay() -> None:
    builder = Net(dtype=TensorProto.DOUBLE)
    both = builder.node("Add", [product(builder, "x", 4, 4, "lin"), "x"], "both")
    builder.node("Relu", [builder.node("Sigmoid", [both], "bent")])
    sizes = {"lin": ["n", 5, 4], "bent": ["n", 3, 4], "both": ["n", 4, 1, 1]}
    claims = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape) for name, shape in sizes.items()]
    folded, _ = merged_from(builder, ("n", 3, 4), value_info=claims)
    found = {value.name: value.shape for node in folded.graph for value in node.outputs}
    assert kinds_of(folded) == {"MatMul": 1, "Sigmoid": 1, "Relu": 1}
    assert found["lin"] is None
    assert found["bent"] == ["n", 3, 4]


def test_a_convolution_that_pads_nothing_may_name_a_mode_of_padding() -> None:
    """Once it takes in one that pads zeros, it pads zeros."""
    torch.manual_seed(0)
    front = nn.Conv2d(2, 2, 3, padding=1)
    module = nn.Sequential(front, nn.Conv2d(2, 2, 1, padding_mode="circular"), nn.ReLU()).eval().double()
    with torch.no_grad():
        images = torch.randn(2, 2, 5, 6, dtype=torch.float64)
        folded, report = frontend.fold_module(fx.symbolic_trace(module), (images,))
        assert len(report.merges) == 1
        torch.testing.assert_close(folded(images), module(images))
