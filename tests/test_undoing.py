"""Reshapes and permutations that undo each other go once nothing is left between them; what only looks so stays.

A row of `PAIRS` or `LOOK_ALIKES` is folded as a program, as a GraphModule traced without inputs, and as an ONNX model
with a dynamic batch. Every row is run before and after, at another batch too, and folded twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from dictionary import CHANNELS, Cell, Dictionary, bn, conv, graph, relu, same, strange
from onnx_build import Net, feeds_of, run64
from torch import Tensor, fx, nn
from torch.nn import functional

from bnfold.folding import fold
from bnfold.frontends import onnx as frontend
from bnfold.frontends.onnx.shaping import named
from bnfold.frontends.torch.aliasing import bare_name
from bnfold.frontends.torch.module import fold_module
from bnfold.frontends.torch.program import fold_program
from bnfold.graph import Reason
from bnfold.travel import Reshape, Same
from bnfold.undoing import is_shape

MOVERS = {"flatten", "reshape_as", "view_as", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze"}
BATCH = {"x": {0: torch.export.Dim("n", min=2)}}


class LinearNorm(nn.Module):
    """`lin`, then `run` of the module and what it made; `bn` stands between what `run` does and undoes."""

    def __init__(self, run: Callable[[Any, Tensor], Any], last: bool = False) -> None:
        super().__init__()
        self.run = run
        self.lin, self.bn = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)
        self.after = nn.Linear(6, 2) if last else nn.Hardswish()
        for each in (self.bn.running_mean, self.bn.weight.data, self.bn.bias.data):
            each.copy_(torch.randn(6, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Any:
        made = self.run(self, self.lin(x))
        return self.after(made) if isinstance(made, Tensor) else made


Run = Callable[[Any, Tensor], Any]

PAIRS: dict[str, Run] = {
    "reshape_as": lambda m, y: m.bn(y.flatten(0, 1)).reshape_as(y),
    "view_as": lambda m, y: m.bn(y.flatten(0, 1)).view_as(y),
    "to the sizes that it had": lambda m, y: m.bn(y.reshape(-1, 6)).reshape(y.shape[0], y.shape[1], 6),
    "one size is computed": lambda m, y: m.bn(y.flatten(0, 1)).reshape(-1, 5, 6),
    "transposed and back": lambda m, y: m.bn(y.transpose(1, 2)).transpose(2, 1),
    "permuted and back": lambda m, y: m.bn(y.permute(0, 2, 1)).permute(0, 2, 1),
    "an axis more and less": lambda m, y: m.bn(y.flatten(0, 1).unsqueeze(2)).squeeze(2).reshape_as(y),
    "one pair in another": lambda m, y: m.bn(y.transpose(0, 1).flatten(0, 1)).reshape(5, -1, 6).transpose(0, 1),
    "a dropout beside the batch norm": lambda m, y: functional.dropout(m.bn(y.flatten(0, 1)), 0.1, False).reshape_as(y),
}
TRACED = frozenset(
    ("reshape_as", "view_as", "transposed and back", "permuted and back", "a dropout beside the batch norm")
)
"""What a traced graph proves: it knows no sizes."""

LOOK_ALIKES: dict[str, tuple[Run, int]] = {
    "another shape of as many numbers": (lambda m, y: m.bn(y.flatten(0, 1)).reshape(-1, 3, 10), 2),
    "the axes swapped": (lambda m, y: m.bn(y.flatten(0, 1)).reshape(5, -1, 6), 2),
    "turned, not turned back": (lambda m, y: m.bn(y.permute(0, 2, 1)).permute(2, 0, 1), 2),
    "read by another between": (
        lambda m, y: (lambda z: (z.reshape_as(y), z.softmax(1)))(m.bn(y.flatten(0, 1))),
        2,
    ),
    "an output between": (lambda m, y: (lambda z: (z.reshape_as(y), z))(m.bn(y.flatten(0, 1))), 2),
}


def movers(graph: fx.Graph) -> int:
    """How many nodes reshape or permute."""
    return sum(bare_name(node) in MOVERS for node in graph.nodes if node.op in ("call_function", "call_method"))


def exported(run: Run) -> torch.export.ExportedProgram:
    module = LinearNorm(run).eval().double()
    return torch.export.export(module, (torch.randn(2, 5, 4).double(),), dynamic_shapes=BATCH, strict=False)


def assert_alike(one: Any, other: Any) -> None:
    for left, right in zip(*(each if isinstance(each, tuple) else (each,) for each in (one, other)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


def folded_program(run: Run) -> fx.Graph:
    program = exported(run)
    folded, report = fold_program(program)
    assert report.folded == 1
    for batch in (2, 3):
        x = torch.randn(batch, 5, 4).double()
        assert_alike(folded.module()(x), program.module()(x))
    again, _ = fold_program(folded)
    assert [node.name for node in again.graph.nodes] == [node.name for node in folded.graph.nodes]
    return folded.graph


def folded_trace(run: Run) -> fx.Graph:
    module = fx.symbolic_trace(LinearNorm(run).eval().double())
    folded, report = fold_module(module, (torch.randn(2, 5, 4).double(),))
    assert report.folded == 1
    for batch in (2, 3):
        x = torch.randn(batch, 5, 4).double()
        assert_alike(folded(x), module(x))
    assert isinstance(folded, fx.GraphModule)
    return folded.graph


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_goes_from_a_program(name: str) -> None:
    graph = folded_program(PAIRS[name])
    assert movers(graph) == 0
    assert not [node for node in graph.nodes if "sym" in node.name], "nobody asks for sizes any more"


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_goes_from_a_traced_module_where_the_trace_proves_it(name: str) -> None:
    before = movers(fx.symbolic_trace(LinearNorm(PAIRS[name])).graph)
    assert movers(folded_trace(PAIRS[name])) == (0 if name in TRACED else before), name


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_look_alike_stays_in_torch(name: str) -> None:
    run, left = LOOK_ALIKES[name]
    assert movers(folded_program(run)) == left
    assert movers(folded_trace(run)) == left


def test_a_view_that_is_written_stays() -> None:
    def run(m: Any, y: Tensor) -> Tensor:
        z = m.bn(y.flatten(0, 1)).view(-1, 6, 1).view(-1, 6)
        z[:, 0].mul_(2.0)
        return z

    module = LinearNorm(run).eval().double()
    program = torch.export.export(module, (torch.randn(2, 5, 4).double(),), strict=False)
    folded, _ = fold_program(program)
    assert movers(folded.graph) == 3
    x = torch.randn(2, 5, 4).double()
    assert_alike(folded.module()(x), program.module()(x))


def test_a_network_in_which_nothing_folds_keeps_its_pairs() -> None:
    program = exported(lambda m, y: y.softmax(1).flatten(0, 1).reshape_as(y))
    folded, _ = fold_program(program)
    assert [node.name for node in folded.graph.nodes] == [node.name for node in program.graph.nodes]


def test_a_product_behind_a_pair_merges() -> None:
    module = LinearNorm(lambda m, y: m.bn(y.flatten(0, 1)).reshape_as(y), last=True).eval()
    folded, report = fold_module(module, (torch.randn(2, 5, 4),))
    assert [merge.rule for merge in report.merges] == ["merge-serial"]
    assert movers(folded.graph) == 0  # type: ignore[arg-type]


Step = Callable[[Net, str], str]


def net(step: Step, x: tuple[int | str, ...] = ("n", 5, 4), outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """MatMul, the step with a batch norm of 6 channels, HardSwish."""
    net = Net(dtype=onnx.TensorProto.DOUBLE)
    weight = net.constant("w", net.numbers(4, 6))
    made = step(net, net.node("MatMul", ["x", weight], "lin"))
    net.node("HardSwish", [made], "y")
    return net.model({"x": x}, outputs)


def reshaped(*sizes: int) -> Step:
    return lambda net, y: net.node("Reshape", [y, net.integers(f"to{len(net.nodes)}", *sizes)])


def back_to_lin(net: Net, y: str) -> str:
    """`reshape_as`, as exporters write it: the batch out of Shape, the others as numbers."""
    shape = net.node("Shape", ["lin"], "shape")
    batch = net.node("Gather", [shape, net.integers("first", 0)], "batch")
    sizes = net.node("Concat", [batch, net.integers("rest", 5, 6)], "sizes", axis=0)
    return net.node("Reshape", [y, sizes])


def around(before: Step, after: Step) -> Step:
    return lambda net, y: after(net, net.batch_norm(before(net, y), 6))


def op(name: str, **attributes: Any) -> Step:
    return lambda net, y: net.node(name, [y], **attributes)


def turned(*order: int) -> Step:
    return op("Transpose", perm=list(order))


def axes(name: str, *numbers: int) -> Step:
    return lambda net, y: net.node(name, [y, net.integers(f"axes{len(net.nodes)}", *numbers)])


ONNX_PAIRS: dict[str, tuple[Step, tuple[int | str, ...]]] = {
    "-1 back": (around(reshaped(-1, 6), reshaped(-1, 5, 6)), ("n", 5, 4)),
    "computed from Shape": (around(reshaped(-1, 6), back_to_lin), ("n", 5, 4)),
    "static": (around(reshaped(10, 6), reshaped(2, 5, 6)), (2, 5, 4)),
    "Flatten": (around(op("Flatten", axis=2), reshaped(-1, 5, 6)), ("n", 5, 4)),
    "Unsqueeze and Squeeze": (around(axes("Unsqueeze", 2), axes("Squeeze", 2)), ("n", 4)),
    "Unsqueeze and Flatten": (around(axes("Unsqueeze", 2, 3), op("Flatten")), ("n", 4)),
    "Transpose": (around(turned(0, 2, 1), turned(0, 2, 1)), ("n", 5, 4)),
    "copied sizes": (around(axes("Unsqueeze", 2), reshaped(0, -1)), ("n", 4)),
}
ONNX_LOOK_ALIKES: dict[str, tuple[Step, tuple[int | str, ...]]] = {
    "another shape": (around(reshaped(-1, 6), reshaped(-1, 10, 6)), ("n", 5, 4)),
    "swapped": (around(reshaped(-1, 6), reshaped(5, -1, 6)), ("n", 5, 4)),
    "two open sizes": (around(reshaped(-1, 6), reshaped(-1, 5, 6)), ("n", "m", 4)),
    "a size that only one batch has": (around(reshaped(-1, 6), reshaped(2, 5, 6)), ("n", 5, 4)),
    "turned on": (around(turned(0, 2, 1), turned(2, 0, 1)), ("n", 5, 4)),
    "an axis that must be one": (around(axes("Squeeze", 1), axes("Unsqueeze", 1)), ("n", "one", 4)),
}


def folded_onnx(proto: onnx.ModelProto, **sizes: Any) -> Counter[str]:
    model = ir.from_proto(proto)
    folded, report = frontend.fold_model(model)
    assert report.folded == 1
    feeds = feeds_of(model, **sizes)
    for before, after in zip(run64(model, feeds), run64(folded, feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-11, atol=1e-11)
    again, _ = frontend.fold_model(folded)
    assert len(again.graph) == len(folded.graph)
    return Counter(node.op_type for node in folded.graph)


@pytest.mark.parametrize("name", ONNX_PAIRS)
def test_a_pair_goes_from_onnx_with_all_that_computed_its_shape(name: str) -> None:
    assert folded_onnx(net(*ONNX_PAIRS[name])) == {"MatMul": 1, "Add": 1, "HardSwish": 1}


@pytest.mark.parametrize("name", ONNX_LOOK_ALIKES)
def test_a_look_alike_stays_in_onnx(name: str) -> None:
    sizes = {"unknown": 1} if name == "an axis that must be one" else {"unknown": 2}
    if name == "two open sizes":
        sizes = {"unknown": 5}
    counts = folded_onnx(net(*ONNX_LOOK_ALIKES[name]), **sizes)
    assert sum(counts[each] for each in ("Reshape", "Transpose", "Squeeze", "Unsqueeze")) == 2


def test_stored_types_are_not_believed() -> None:
    proto = net(around(reshaped(-1, 6), reshaped(-1, 10, 6)))
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("lin", onnx.TensorProto.DOUBLE, ["n", 10, 6]))
    assert folded_onnx(proto)["Reshape"] == 2


def test_what_is_an_output_between_stays() -> None:
    counts = folded_onnx(net(around(reshaped(-1, 6), reshaped(-1, 5, 6)), outputs=("y", "bn")))
    assert counts["Reshape"] == 2


def test_who_asks_for_the_shape_between_still_hears_it() -> None:
    def step(net: Net, y: str) -> str:
        flat = reshaped(-1, 6)(net, y)
        net.node("Cast", [net.node("Shape", [flat])], "asked", to=onnx.TensorProto.DOUBLE)
        return reshaped(-1, 5, 6)(net, net.batch_norm(flat, 6))

    assert folded_onnx(net(step, outputs=("y", "asked")))["Reshape"] == 1


def test_a_pair_is_an_output_under_its_own_name() -> None:
    builder = Net()
    lin = builder.node("MatMul", ["x", builder.constant("w", builder.numbers(4, 6))], "lin")
    made = reshaped(-1, 5, 6)(builder, builder.batch_norm(reshaped(-1, 6)(builder, lin), 6))
    model = ir.from_proto(builder.model({"x": ("n", 5, 4)}, [made]))
    folded, _ = frontend.fold_model(model)
    assert [node.op_type for node in folded.graph] == ["MatMul", "Add"]
    assert [value.name for value in folded.graph.outputs] == [made]


def test_an_input_does_not_become_an_output() -> None:
    builder = Net()
    made = reshaped(-1, 5, 4)(builder, reshaped(-1, 4)(builder, "x"))
    builder.batch_norm(builder.conv("x", 5, 5, (1,)), 5)
    folded, report = frontend.fold_model(ir.from_proto(builder.model({"x": ("n", 5, 4)}, [made, "bn"])))
    assert report.folded == 1
    assert sorted(node.op_type for node in folded.graph) == ["Conv", "Reshape", "Reshape"]


SHAPE = (5, CHANNELS)


def there(data: str, **more: Any) -> Cell:
    return Cell("there", data, Reshape(SHAPE, (CHANNELS, 5), (CHANNELS, 5), **more), run=lambda v: [v[0]])


def back(data: str, *asked: int | str | None) -> Cell:
    return Cell("back", data, Reshape((CHANNELS, 5), SHAPE, asked or SHAPE), run=lambda v: [v[0]])


@pytest.mark.parametrize(
    ("title", "make", "goes"),
    [
        ("nothing between", lambda: graph("r", "n", c=conv("x"), t=there("c"), b=back("t"), r=relu("b"), n=norm()), 1),
        ("idle between", lambda: graph("r", "n", t=there("x"), i=idle("t"), b=back("i"), r=relu("b"), n=norm()), 1),
        (
            "what mixes between",
            lambda: graph("r", "n", t=there("x"), i=same("t"), b=back("i"), r=relu("b"), n=norm()),
            0,
        ),
        ("a node between", lambda: graph("r", "n", t=there("x"), i=opaque("t"), b=back("i"), r=relu("b"), n=norm()), 0),
        ("not proved", lambda: graph("r", "n", t=there("x"), b=back("t", None, None), r=relu("b"), n=norm()), 0),
        ("an output between", lambda: graph("r", "t", "n", t=there("x"), b=back("t"), r=relu("b"), n=norm()), 0),
        ("a demand", lambda: graph("r", "n", t=there("x", demands=True), b=back("t"), r=relu("b"), n=norm()), 0),
        ("read as no data", lambda: graph("r", "n", t=there("x"), b=back("t"), r=relu("b", "t"), n=norm()), 0),
        (
            "written in place",
            lambda: written(graph("r", "n", c=conv("x"), t=there("c"), b=back("t"), r=relu("b"), n=norm())),
            0,
        ),
        ("nothing folds", lambda: graph("r", t=there("x"), b=back("t"), r=relu("b")), 0),
    ],
)
def test_the_rule(title: str, make: Callable[[], Dictionary], goes: int) -> None:
    model = make()
    if "bn" in {cell.op for cell in model.cells.values()}:
        model.cells["p"] = conv("z", "v")
    before = model.run()
    fold(model)
    assert [verb for verb, _ in model.verbs].count("undo") == goes, title
    for expected, got in zip(before, model.run(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


def norm() -> Cell:
    """A batch norm that folds, elsewhere."""
    return bn("p")


def idle(data: str) -> Cell:
    return Cell("idle", data, Same(idle=True), run=lambda values: values)


def opaque(data: str) -> Cell:
    return strange(data, Reason.NOT_LINEAR)


def written(model: Dictionary) -> Dictionary:
    model.held = {"b": Reason.MUTATED_IN_PLACE}
    return model


def test_three_in_a_row_leave_one_whatever_the_names() -> None:
    for names in ("tbu", "utb", "but"):
        one, two, three = names
        cells = {one: there("x"), two: back(one), three: there(two), "r": relu(three), "p": conv("z"), "n": bn("p")}
        model = Dictionary(dict(sorted(cells.items())), ("r", "n"))
        fold(model)
        assert ("undo", two) in model.verbs
        assert three in model.cells


def test_a_size_without_a_name_is_like_no_other() -> None:
    assert named(("n", "?1", 5, -1)) == ("n", None, 5, -1)


@pytest.mark.parametrize(
    ("given", "shape", "expected"),
    [
        (("n", 5, 6), ("n", 5, 6), True),
        ((-1, 5, 6), ("n", 5, 6), True),
        ((None, 5, 6), ("n", 5, 6), True),
        (("m", 5, 6), ("n", 5, 6), True),
        (("n", -1, 6), ("n", 5, 6), True),
        (("n", None, 6), ("n", 5, 6), False),  # of an empty batch, any number would do
        ((2, 5, 6), ("n", 5, 6), False),
        ((-1, 0, 6), ("n", 0, 6), False),
        ((None, 0, 6), ("n", 0, 6), False),
        ((-1, "m", 6), ("n", "k", 6), False),
        (("n", 5), ("n", 5, 6), False),
        ((5, 6), (6, 5), False),
        ((), (), False),  # of an unknown shape nothing is known
        ((None, 6), (None, 6), True),
    ],
)
def test_what_is_a_proof(given: Any, shape: Any, expected: bool) -> None:
    assert is_shape(given, shape) is expected
