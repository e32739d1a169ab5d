"""`--leftover affine`: a batch norm that stays becomes a product and a sum, or a sum alone where its scale can fold."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from command_line import bnfold as process
from command_line import validated
from dictionary import Dictionary, add, bn, conv, graph, relu, same, scaling
from numpy.testing import assert_allclose
from onnx import TensorProto
from onnx_build import Net, feeds_of, run64
from torch import Tensor, nn

import bnfold
from bnfold.errors import UsageError
from bnfold.folding import FoldOptions
from bnfold.folding import fold as fold_graph
from bnfold.frontends import onnx as frontend
from bnfold.frontends import torch as torch_frontend
from bnfold.graph import Reason
from bnfold.outcome import FoldReport, Outcome
from bnfold.verify.certificate import derive
from bnfold.verify.result import Status

LOWER = FoldOptions(leftover="affine")
IMAGE = {"x": ("n", 4, 6, 5)}
ONES = {"weight": np.ones(4), "var": np.ones(4) - 1e-5}
PLAIN = {"epsilon": 0.0, "stored": {"weight": np.ones(4), "var": np.ones(4)}}
SHIFTLESS = {"epsilon": 0.0, "stored": {"bias": np.zeros(4), "mean": np.zeros(4)}}


def fate(outcome: Outcome) -> str:
    """`partly into-producer`, `lowered`, `left` or `folded`."""
    if outcome.folded:
        return "folded"
    if outcome.partly:
        return f"partly {outcome.rule}"
    return "lowered" if outcome.lowered else "left"


# The rules, on graphs of names.


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"b": bn("x"), "p": conv("b", padded=True)}, "partly into-consumer"),
        ({"b": bn("x"), "s": same("b"), "p": conv("s", padded=True)}, "partly into-consumer"),
        ({"c": conv("x"), "r": relu("c"), "b": bn("r"), "p": relu("b")}, "lowered"),
        ({"c": conv("x"), "b": bn("c"), "r": relu("c"), "p": add("b", "r")}, "lowered"),
        ({"b": bn("x"), "p": conv("b", padded=True), "q": conv("x")}, "lowered"),
    ],
)
def test_what_remains(cells: dict[str, Any], expected: str) -> None:
    model = graph("p", "q", **cells) if "q" in cells else graph("p", **cells)
    before = model.run()
    report = fold_graph(model, LOWER)
    assert [fate(outcome) for outcome in report.outcomes] == [expected]
    assert ("lower", "b") in model.verbs
    for was, is_now in zip(before, model.run(), strict=True):
        assert_allclose(is_now, was, rtol=1e-12, atol=1e-12)


def test_what_the_user_excluded_is_lowered_whole() -> None:
    model = graph("p", b=bn("x"), p=conv("b", padded=True))
    report = fold_graph(model, replace(LOWER, exclude=("b",)))
    assert [fate(outcome) for outcome in report.outcomes] == ["lowered"]
    assert model.verbs == [("lower", "b")]


def test_a_shift_over_a_tiny_scale_stays_with_its_scale() -> None:
    """`t / s` would be finite, but not what it is added to."""
    tiny = bn("x")
    cell = replace(tiny, reading=replace(tiny.reading, scale=np.array([1e-306, 1.0]), shift=np.ones(2)))  # type: ignore[type-var]
    assert [fate(o) for o in fold_graph(graph("p", b=cell, p=conv("b", padded=True)), LOWER).outcomes] == ["lowered"]


def test_a_dialect_that_cannot_write_it_keeps_the_batch_norm() -> None:
    model = graph("r", full="b", b=bn("x"), r=relu("b"))
    assert [fate(outcome) for outcome in fold_graph(model, LOWER).outcomes] == ["left"]
    assert model.verbs == []


@pytest.mark.parametrize("cell", [bn("x"), scaling("x")])
def test_by_default_nothing_is_lowered(cell: Any) -> None:
    model: Dictionary = graph("p", b=cell, p=relu("b"))
    assert [fate(outcome) for outcome in fold_graph(model).outcomes] == ["left"]
    assert model.verbs == []


# ONNX.


@dataclass(frozen=True)
class Row:
    """A small net and its inputs, what becomes of its batch norms, and the operators of the result."""

    title: str
    build: Callable[[Net], Any]
    expected: str
    operators: str
    inputs: Any = None


def padded(net: Net, x: str = "x", **more: Any) -> str:
    return net.conv(x, 4, 4, pads=[1, 1, 1, 1], **more)


def pool(net: Net, x: str) -> str:
    """A pool that counts zeros: a scale crosses it, a shift does not."""
    return net.node("AveragePool", [x], kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)


def shared_kernel(net: Net) -> str:
    first = padded(net, net.batch_norm("x", 4), name="c")
    second = net.node("Conv", ["x", "c.weight"], "d", pads=[1, 1, 1, 1])
    return net.node("Add", [first, second])


def pre_activation(net: Net) -> str:
    """A residual block as in ResNet v2, twice."""
    x = padded(net, name="stem")
    for block in "ab":
        y = net.node("Relu", [net.batch_norm(x, 4, f"{block}.bn1")])
        y = net.node("Relu", [net.batch_norm(padded(net, y, name=f"{block}.conv1"), 4, f"{block}.bn2")])
        x = net.node("Add", [x, padded(net, y, name=f"{block}.conv2")])
    return x


def in_a_branch(net: Net) -> str:
    """A batch norm in the body of an If, over a value of the graph around it."""
    names = [net.constant(f"bn.{key}", np.ones(4)) for key in ("weight", "bias", "mean", "var")]
    node = onnx.helper.make_node("BatchNormalization", ["x", *names], ["inner"], name="bn_node")
    result = onnx.helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = onnx.helper.make_graph([node], "body", [], [result])
    net.constants.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    return net.node("If", ["yes"], then_branch=body, else_branch=body)


def product(net: Net) -> str:
    return net.node("MatMul", ["x", net.constant("w", net.numbers(4, 4))])


ROWS = (
    Row("whole", lambda n: n.batch_norm("x", 4), "lowered", "Mul Add"),
    Row("only a shift", lambda n: n.batch_norm("x", 4, **PLAIN), "lowered", "Add"),
    Row("only a scale", lambda n: n.batch_norm(n.node("Sin", ["x"]), 4, **SHIFTLESS), "lowered", "Sin Mul"),
    Row("down into a border", lambda n: padded(n, n.batch_norm("x", 4)), "partly into-consumer", "Add Conv"),
    Row(
        "up through a pool",
        lambda n: n.batch_norm(pool(n, padded(n)), 4),
        "partly into-producer",
        "Conv AveragePool Add",
    ),
    Row(
        "a scale of 0 goes up, not down",
        lambda n: padded(n, n.batch_norm("x", 4, stored={"weight": np.array([1.0, 0.0, 1.0, 1.0])})),
        "lowered",
        "Mul Add Conv",
    ),
    Row("shared weight", shared_kernel, "lowered", "Mul Add Conv Conv Add"),
    Row("rank 2", lambda n: n.batch_norm(n.node("Sin", ["x"]), 4), "lowered", "Sin Mul Add", {"x": ("n", 4)}),
    Row("nobody reads it", lambda n: [n.batch_norm("x", 4), n.node("Sin", ["x"])], "left", "BatchNormalization Sin"),
    Row("rank unknown", lambda n: n.batch_norm("x", 4), "left", "BatchNormalization", {"x": None}),
    Row("in a branch", in_a_branch, "left left", "If"),
    Row(
        "pre-activation",
        pre_activation,
        "partly into-consumer folded partly into-consumer folded",
        "Conv Add Relu Conv Relu Conv Add Add Relu Conv Relu Conv Add",
    ),
)


def built(row: Row) -> ir.Model:
    net = Net()
    row.build(net)
    return frontend.from_proto(net.model(row.inputs or IMAGE))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_onnx_row(row: Row) -> None:
    model = built(row)
    folded, report = frontend.fold_model(model, LOWER)
    operators = " ".join(node.op_type for node in folded.graph)
    assert (" ".join(fate(o) for o in report.norms), operators) == (row.expected, row.operators)


@pytest.mark.parametrize("row", [row for row in ROWS if row.inputs != {"x": None}], ids=lambda row: row.title)
def test_the_same_in_float64_and_in_the_runtime(row: Row) -> None:
    model = built(row)
    wide = frontend.as_float64(model)
    folded, exact = (frontend.fold_model(each, LOWER)[0] for each in (model, wide))
    feeds = feeds_of(model)
    for expected, found in zip(run64(wide, feeds), run64(exact, feeds), strict=True):
        assert_allclose(found, expected, rtol=1e-11, atol=1e-11)
    session = onnxruntime.InferenceSession(frontend.to_bytes(folded), providers=["CPUExecutionProvider"])
    narrow = {name: array.astype(np.float32) for name, array in feeds.items()}
    for expected, found in zip(run64(model, feeds), session.run(None, narrow), strict=True):
        assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def derived(model: ir.Model, options: FoldOptions = LOWER) -> tuple[ir.Model, FoldReport, Status, str]:
    folded, report = frontend.fold_model(model, options)
    layer = derive(frontend.evidence(model), frontend.evidence(folded), report)
    return folded, report, layer.status, layer.because


@pytest.mark.parametrize("row", [row for row in ROWS if row.title != "in a branch"], ids=lambda row: row.title)
def test_the_certificate_derives_it_again(row: Row) -> None:
    _, report, status, because = derived(built(row))
    assert status is Status.PASS, because
    assert ("as product and sum derived again" in because) == any(outcome.lowered for outcome in report.outcomes)


def test_a_sum_behind_a_product_is_no_bias_of_it() -> None:
    net = Net()
    net.batch_norm(product(net), 4, **PLAIN)
    model = frontend.from_proto(net.model({"x": ("n", 4)}))
    folded, report, status, because = derived(model, replace(LOWER, exclude=("*",)))
    assert [node.op_type for node in folded.graph] == ["MatMul", "Add"]
    assert report.outcomes[0].lowered_to == ("bn_node_shift",)
    assert status is Status.PASS, because


@pytest.mark.parametrize("title", ["whole", "down into a border", "up through a pool"])
def test_the_certificate_sees_a_wrong_constant(title: str) -> None:
    model = built(next(row for row in ROWS if row.title == title))
    folded, report = frontend.fold_model(model, LOWER)
    shift = folded.graph.initializers["bn_node_shift_value"]
    assert shift.const_value is not None
    wrong = shift.const_value.numpy().copy()
    wrong[2] += 1e-6
    shift.const_value = ir.Tensor(wrong, name=shift.name)
    layer = derive(frontend.evidence(model), frontend.evidence(folded), report)
    assert (layer.status, layer.affine, layer.channel) == (Status.FAIL, "bn_node", 2)


def test_the_certificate_warns_where_it_finds_nothing_to_compare() -> None:
    model = built(ROWS[0])
    folded, report = frontend.fold_model(model, LOWER)
    for node in folded.graph:
        node.name = "x" + str(node.name)
    layer = derive(frontend.evidence(model), frontend.evidence(folded), report)
    assert (layer.status, "first bn_node" in layer.because) == (Status.WARN, True)


def test_a_pre_activation_network_keeps_no_batch_norm() -> None:
    model = built(ROWS[-1])
    folded, report = frontend.fold_model(model, LOWER)
    assert (frontend.facts(model).batch_norms, frontend.facts(folded).batch_norms) == (4, 0)
    assert (report.folded, report.left) == (2, 2)
    assert not any("bn" in name and "_value" not in name for name in folded.graph.initializers)
    assert [o.name for o in folded.graph.outputs] == [o.name for o in model.graph.outputs]


def test_names_are_new_and_notes_are_kept() -> None:
    net = Net()
    net.node("Sin", [net.batch_norm("x", 4)], "bn_node_scale")
    model = frontend.from_proto(net.model(IMAGE))
    model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'layer', 'bn']"
    folded, report, status, because = derived(model)
    assert report.outcomes[0].lowered_to == ("bn_node_scale_1", "bn_node_shift")
    assert [node.outputs[0].name for node in folded.graph][1:] == ["bn", "bn_node_scale"]
    assert all(node.metadata_props == model.graph[0].metadata_props for node in list(folded.graph)[:2])
    assert status is Status.PASS, because


def test_include_and_exclude() -> None:
    net = Net()
    first = padded(net, net.batch_norm("x", 4, "a"))
    padded(net, net.batch_norm(net.node("Sin", [first]), 4, "b"))
    model = frontend.from_proto(net.model(IMAGE))
    for options in (replace(LOWER, exclude=("b*",)), replace(LOWER, include=("a*",))):
        _, report = frontend.fold_model(model, options)
        assert [fate(outcome) for outcome in report.outcomes] == ["partly into-consumer", "lowered"]
        assert report.outcomes[1].refusal is not None
        assert report.outcomes[1].refusal.reason is Reason.EXCLUDED


def test_half_precision_rounds_once_or_not_at_all() -> None:
    for mean, expected in ((0.5, ["Mul", "Add"]), (1e5, ["BatchNormalization"])):
        net = Net(dtype=TensorProto.FLOAT16)
        stored = {"mean": np.full(4, mean), "var": np.full(4, 0.25), "weight": np.full(4, 1 / 3)}
        net.batch_norm("x", 4, dtype=TensorProto.FLOAT, stored=stored)
        model = frontend.from_proto(net.model(IMAGE))
        folded, _, status, because = derived(model)
        assert [node.op_type for node in folded.graph] == expected
        assert status is Status.PASS, because
        kept = {value.const_value.dtype for value in folded.graph.initializers.values() if value.const_value}
        assert kept == {ir.DataType.FLOAT if mean > 1 else ir.DataType.FLOAT16}


def test_by_default_a_model_keeps_its_bytes() -> None:
    model = built(ROWS[0])
    folded, report = frontend.fold_model(model)
    assert frontend.to_bytes(folded) == frontend.to_bytes(model)
    assert not report.outcomes[0].lowered


# Programs and modules.


class Block(nn.Module):
    """Batch norms that stay: in front of a border, and behind a relu."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def norm(kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    made = kind(4)
    for tensor in (*made.parameters(), *made.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0)
    return made


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)


def border() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


PARTS: dict[str, tuple[Callable[[], list[nn.Module]], str, int]] = {
    "down": (lambda: [norm(), border()], "partly into-consumer", 2),
    "up": (lambda: [border(), nn.ReLU(), norm(), nn.Sigmoid()], "partly into-producer", 4),
    "whole": (lambda: [nn.Sigmoid(), norm(), nn.Sigmoid()], "lowered", 4),
    "at the end": (lambda: [nn.Sigmoid(), norm()], "lowered", 3),
    "in place": (lambda: [nn.Sigmoid(), norm(), nn.ReLU(inplace=True)], "lowered", 4),
}


def block(name: str) -> tuple[nn.Module, str, int]:
    torch.manual_seed(0)
    parts, expected, nodes = PARTS[name]
    return Block(*parts()).eval(), expected, nodes


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_program(name: str) -> None:
    module, expected, nodes = block(name)
    program = torch.export.export(module, (image(),), strict=False)
    folded, report = torch_frontend.fold_program(program, LOWER)
    assert [fate(outcome) for outcome in report.outcomes] == [expected]
    facts = torch_frontend.facts(folded)
    assert (facts.batch_norms, facts.nodes) == (0, nodes)
    assert all("running" not in key and "tracked" not in key for key in folded.state_dict)
    layer = derive(torch_frontend.evidence(program), torch_frontend.evidence(folded), report)
    assert layer.status is Status.PASS, layer.because
    file = io.BytesIO()
    torch.export.save(folded, file)
    file.seek(0)
    for again in (folded.module(), torch.export.load(file).module(), torch.export.unflatten(folded)):
        torch.testing.assert_close(again(image()), module(image()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PARTS)
def test_program_in_float64(name: str) -> None:
    module = block(name)[0].double()
    program = torch.export.export(module, (image(torch.float64),), strict=False)
    folded, _ = torch_frontend.fold_program(program, LOWER)
    result = folded.module()(image(torch.float64))
    torch.testing.assert_close(result, module(image(torch.float64)), rtol=1e-12, atol=1e-12)


def test_a_decomposed_program() -> None:
    """Its batch norm returns a tuple."""
    module, expected, _ = block("down")
    with torch_frontend.quiet():
        program = torch.export.export(module, (image(),), strict=False).run_decompositions()
    folded, report = torch_frontend.fold_program(program, LOWER)
    assert ([fate(o) for o in report.outcomes], torch_frontend.facts(folded).batch_norms) == ([expected], 0)
    torch.testing.assert_close(folded.module()(image()), module(image()), rtol=1e-4, atol=1e-5)


def test_constants_have_the_type_of_the_data() -> None:
    module = block("whole")[0].half()
    program = torch.export.export(module, (image(torch.float16),), strict=False)
    folded, _ = torch_frontend.fold_program(program, LOWER)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in folded.state_dict.items()} == {
        "parts.1_scale": (torch.float16, (4, 1, 1)),
        "parts.1_shift": (torch.float16, (4, 1, 1)),
    }
    assert not any(isinstance(value, nn.Parameter) for value in folded.state_dict.values())


def test_a_norm_that_is_called_twice_is_lowered_twice() -> None:
    shared = norm()
    module = Block(nn.Sigmoid(), shared, nn.Sigmoid(), shared, nn.Sigmoid()).eval()
    folded = bnfold.fold(torch.export.export(module, (image(),), strict=False), leftover="affine")
    assert [fate(outcome) for outcome in folded.report.outcomes] == ["lowered", "lowered"]
    torch.testing.assert_close(folded.model.module()(image()), module(image()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("traced", [False, True])
def test_modules_with_example_inputs(name: str, traced: bool) -> None:
    module, expected, _ = block(name)
    given = torch.fx.symbolic_trace(module) if traced else module
    folded = bnfold.fold(given, (image(),), leftover="affine")
    assert [fate(outcome) for outcome in folded.report.outcomes] == [expected]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.model.modules())
    torch.testing.assert_close(folded.model(image()), module(image()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trace", [lambda module: module, torch.fx.symbolic_trace])
def test_without_example_inputs_it_is_refused(trace: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(UsageError, match="needs example_inputs, which tell the rank"):
        bnfold.fold(trace(block("whole")[0]), leftover="affine")


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(UsageError, match="'keep' or 'affine', not 'drop'"):
        bnfold.fold(block("whole")[0], (image(),), leftover="drop")  # type: ignore[arg-type]


# The command line.


@pytest.mark.parametrize("title", ["up through a pool", "pre-activation"])
def test_the_command_line_from_end_to_end(title: str, tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.title == title)
    source, target = tmp_path / "m.onnx", tmp_path / "out.onnx"
    source.write_bytes(frontend.to_bytes(built(row)))
    done = process("fold", source, "-o", target, "--leftover", "affine", "--json")
    assert done.returncode == 0, done.stderr
    document = validated(done.stdout)
    assert document["check"]["verdict"] in ("proved", "verified")
    assert next(layer["status"] for layer in document["check"]["layers"] if layer["layer"] == "L1") == "pass"
    assert [each["outcome"] for each in document["affines"]] == [
        word for word in row.expected.split() if "-" not in word
    ]
    assert all(each["into"] for each in document["affines"])
    assert json.dumps(document["affines"][0]["reason"]["code"])
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(target).graph.node}


def test_a_module_becomes_onnx_without_a_batch_norm(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    run = bnfold.export(block("up")[0], target, (image(),), leftover="affine")
    assert run.after is not None
    assert (run.after.batch_norms, run.check is not None and run.check.passed) == (0, True)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(target).graph.node}
