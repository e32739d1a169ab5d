"""L3: values of two models are matched by what they hold, and every place that differs is judged on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_build import Net
from torch import nn

import bnfold
from bnfold import api
from bnfold.dialects import Dialect, onnx_dialect, torch_dialect
from bnfold.errors import NoVerdict
from bnfold.folding import FoldOptions
from bnfold.frontends import onnx as frontend
from bnfold.frontends import torch as torch_frontend
from bnfold.model import Arrays
from bnfold.run import CheckOptions, RunOptions
from bnfold.verification import Side, check_folded, check_models
from bnfold.verify.anatomy import Anatomy
from bnfold.verify.check import CheckPlan, check_pair
from bnfold.verify.execution import Execution
from bnfold.verify.forcing import between_decisions
from bnfold.verify.local import Local
from bnfold.verify.local import opened as opened_models
from bnfold.verify.matching import match, similar
from bnfold.verify.noise import Noise
from bnfold.verify.result import Layer, Status, Verdict, Verification
from bnfold.verify.sketch import Sketch
from bnfold.verify.stretches import Both

Array = NDArray[Any]
Proto = onnx.ModelProto
SHAPE = (1, 3, 9, 9)


def network() -> Proto:
    """Three convolutions with their batch norms, two of them in a residual branch; a head."""
    net = Net()
    x = net.node("Relu", [net.batch_norm(net.conv("x", 3, 8, pads=[1] * 4, name="c0"), 8, "b0")], "r0")
    y = net.node("Relu", [net.batch_norm(net.conv(x, 8, 8, pads=[1] * 4, name="c1"), 8, "b1")], "r1")
    y = net.batch_norm(net.conv(y, 8, 8, pads=[1] * 4, bias=True, name="c2"), 8, "b2")
    total = net.node("Relu", [net.node("Add", [y, x], "sum")], "r2")
    flat = net.node("Flatten", [net.node("GlobalAveragePool", [total], "pool")], "flat")
    net.node(
        "Gemm", [flat, net.constant("head.weight", net.numbers(8, 5)), net.constant("head.bias", net.numbers(5))], "y"
    )
    return net.model({"x": SHAPE})


def folded(proto: Proto, change: Callable[[Proto], None] = lambda proto: None) -> Proto:
    """Each batch norm folded into its convolution, nothing merged; then `change`."""
    made = frontend.fold_model(frontend.from_proto(proto), FoldOptions(merge="never"))[0]
    copy = onnx.ModelProto.FromString(frontend.to_bytes(made))
    change(copy)
    return copy


def normal(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def both(dialect: Dialect, reference: Any, candidate: Any, feeds: Arrays) -> Both:
    first, second = (dialect.tissue(model, RunOptions()) for model in (reference, candidate))
    renamed = dict(zip(second.inputs, feeds.values(), strict=True))
    return Both.of(first, second, dict(zip(first.inputs, second.inputs, strict=True)), (feeds, renamed))


def looked(reference: Proto, candidate: Proto, shape: tuple[int, ...] = SHAPE) -> Local:
    models = [frontend.from_proto(proto) for proto in (reference, candidate)]
    pair = both(onnx_dialect(), *models, {"x": normal(shape)})
    results = zip(pair.reference.tissue.outputs, pair.candidate.tissue.outputs, strict=True)
    local = Local(pair, list(results))
    local.run()
    return local


def weights(proto: Proto, name: str, change: Callable[[Array], Array]) -> None:
    tensor = next(each for each in proto.graph.initializer if each.name == name)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(value.copy()), dtype=value.dtype), name))


def node(proto: Proto, name: str) -> onnx.NodeProto:
    return next(each for each in proto.graph.node if each.name == f"{name}_node")


def weight_of(proto: Proto, name: str, change: Callable[[Array], Array]) -> None:
    weights(proto, node(proto, name).input[1], change)


def renamed(proto: Proto) -> None:
    """Every value inside is called by a number."""
    kept = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    names: dict[str, str] = {"": ""}
    for each in (*proto.graph.initializer, *proto.graph.node):
        for name in each.output if isinstance(each, onnx.NodeProto) else [each.name]:
            names[name] = name if name in kept else f"value{len(names)}"
    for each in proto.graph.node:
        for field in (each.input, each.output):
            field[:] = [names.get(name, name) for name in field]
    for tensor in proto.graph.initializer:
        tensor.name = names[tensor.name]
    del proto.graph.value_info[:]


def rotated(proto: Proto) -> None:
    """Every convolution gives its result the name that another one's had: names are worse than nothing."""
    swap = {"c0": "c1", "c1": "c2", "c2": "c0", "r0": "r1", "r1": "r0"}
    for each in proto.graph.node:
        for field in (each.input, each.output):
            field[:] = [swap.get(name, name) for name in field]
    del proto.graph.value_info[:]


def padded_apart(proto: Proto) -> None:
    """Padding by a node of its own, as other tools write it."""
    conv = node(proto, "c1")
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "amounts"))
    index = list(proto.graph.node).index(conv)
    proto.graph.node.insert(index, helper.make_node("Pad", [conv.input[0], "amounts"], ["wide"], "pad"))
    conv = node(proto, "c1")
    conv.input[0] = "wide"
    del conv.attribute[:]


HARMLESS: dict[str, Callable[[Proto], None]] = {
    "folded": lambda proto: None,
    "every value renamed": renamed,
    "names of other values": rotated,
    "padding apart": padded_apart,
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS.keys())
def test_a_correct_fold_passes_place_by_place(change: Callable[[Proto], None]) -> None:
    local = looked(network(), folded(network(), change))
    found = local.layer(None)
    assert found.status is Status.PASS, found.because
    assert found.because.startswith("3 changed places on their own")
    assert found.figure is not None
    assert found.figure < 4
    assert not local.refusals


def test_equal_models_have_nothing_to_run() -> None:
    found = looked(network(), network()).layer(None)
    assert found.status is Status.PASS
    assert found.figure is None


def one_channel(values: Array) -> Array:
    values[5] *= 1 + 1e-5
    return values


def nan(values: Array) -> Array:
    values[6] = np.nan
    return values


def wrong_border(proto: Proto) -> None:
    """What is added to the first convolution's output at its last column only."""
    conv = node(proto, "c1")
    del conv.attribute[:]
    conv.attribute.append(helper.make_attribute("pads", [2, 1, 0, 1]))


def branch_dropped(proto: Proto) -> None:
    add = node(proto, "sum")
    add.op_type = "Identity"
    del add.input[1]


def variance(proto: Proto) -> None:
    """As if every variance had been 1 + 1e-5 times as large."""
    weight_of(proto, "c1", lambda values: values / np.sqrt(1 + 1e-5))


MISTAKES: dict[str, tuple[Callable[[Proto], None], str, int | None]] = {
    "one channel times 1 + 1e-5": (lambda p: weight_of(p, "c1", one_channel), "c1_node", 5),
    "two channels swapped": (lambda p: weight_of(p, "c2", lambda v: v[[0, 1, 3, 2, *range(4, 8)]]), "c2_node", None),
    "kernel flipped": (lambda p: weight_of(p, "c1", lambda v: v[..., ::-1]), "c1_node", None),
    "a layer in float16": (lambda p: weight_of(p, "c1", lambda v: v.astype(np.float16)), "c1_node", None),
    "NaN in a channel": (lambda p: weight_of(p, "c0", nan), "c0_node", 6),
    "a border": (wrong_border, "c1_node", None),
    "a branch dropped": (branch_dropped, "sum_node", None),
    "variance": (variance, "c1_node", None),
}


@pytest.mark.parametrize("names", [None, renamed], ids=["", "renamed"])
@pytest.mark.parametrize(("mistake", "place", "channel"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(
    mistake: Callable[[Proto], None], place: str, channel: int | None, names: Callable[[Proto], None] | None
) -> None:
    def change(proto: Proto) -> None:
        mistake(proto)
        if names is not None:
            names(proto)

    local = looked(network(), folded(network(), change))
    found = local.layer(None)
    assert found.status is Status.FAIL
    assert local.failing is not None
    assert place in [step.name for step in local.failing.stretch.before.steps], found.because
    assert len(local.failing.stretch.before.steps) <= 4, found.because
    assert channel is None or found.channel == channel, found.because
    assert found.figure is not None
    assert found.limit == 8
    assert found.figure > 8


def test_an_operator_behind_a_mistake_is_not_blamed() -> None:
    """Both later convolutions are right; the first is wrong by a half."""
    local = looked(network(), folded(network(), lambda proto: weight_of(proto, "c0", lambda values: 1.5 * values)))
    assert local.failing is not None
    assert {step.name for step in local.failing.stretch.before.steps} <= {"c0_node", "b0_node", "r0_node"}


def checked(
    original: Any, candidate: Any, dialect: Dialect, level: str = "auto", save: Path | None = None
) -> Verification:
    sides = (Side(dialect, model) for model in (original, candidate))
    options = RunOptions()
    return check_models(*sides, run_options=options, check=CheckOptions(level=level, save_failure=save))


def layer(found: Verification, name: str) -> Layer:
    return next(layer for layer in found.layers if layer.layer == name)


def test_what_is_before_a_norm_that_does_almost_nothing_is_not_what_is_behind_it() -> None:
    """Mean 0 and variance 1 change a value by half an epsilon, which is far more than rounding."""
    net = Net()
    ones, zeros = (net.constant(name, np.full(4, value)) for name, value in (("ones", 1.0), ("zeros", 0.0)))
    net.node("BatchNormalization", [net.conv("x", 3, 4), ones, zeros, zeros, ones])
    model = net.model({"x": ("n", 3, 8, 8)})
    found = api.check(model, folded(model))
    assert layer(found, "L3").status is Status.PASS, found.sentence


def idle_norm(net: Net, data: str, dtype: type = np.float32) -> str:
    """A batch norm that was never trained: it takes five millionths of the value away, and here adds one."""
    numbers = {name: net.constant(f"{data}_{name}", np.full(4, value, dtype)) for name, value in (("1", 1), ("0", 0))}
    return net.node("BatchNormalization", [data, numbers["1"], numbers["1"], numbers["0"], numbers["1"]])


def test_a_shift_that_stays_is_not_taken_for_a_norm_that_hardly_scales() -> None:
    """With `--leftover affine` the scale goes into the convolution, whose padding keeps the shift in front of it."""
    net = Net()
    net.conv(idle_norm(net, "x"), 4, 2, (3, 3), pads=[1, 1, 1, 1])
    model = net.model({"x": ("n", 4, 8, 8)})
    found = api.check(model, bnfold.fold(model, leftover="affine").model)
    assert layer(found, "L3").status is Status.PASS, found.sentence


def test_a_small_mistake_where_values_are_nearly_the_same_is_named() -> None:
    found = looked(network(), folded(network(), lambda proto: weight_of(proto, "c1", lambda values: 1.00001 * values)))
    assert found.failing is not None
    assert "c1_node" in [step.name for step in found.failing.stretch.before.steps]


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.PROVED), (1.02, Verdict.FAILED)])
def test_weights_in_float16_behind_which_the_runtime_computes_in_float32(factor: float, verdict: Verdict) -> None:
    """On a CPU the original loses next to nothing; the numbers of a fold are rounded to float16 all the same."""
    net = Net(dtype=TensorProto.FLOAT16)
    norm = net.batch_norm(net.conv("x", 3, 4), 4)
    net.node("Abs", [net.node("Cast", [norm], to=TensorProto.FLOAT)])
    model = net.model({"x": ("n", 3, 8, 8)})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    wrong = bnfold.fold(model).model
    weight_of(wrong, "conv0", lambda values: (values.astype(np.float32) * factor).astype(np.float16))
    found = api.check(model, wrong)
    assert found.verdict is verdict, found.sentence
    assert (layer(found, "L4").status is Status.PASS) == (verdict is Verdict.PROVED)


def test_a_norm_that_float16_weights_do_not_show_is_no_mistake() -> None:
    """The weights stay what they were, so what is before it in the one is what is behind it in the other; and the
    runtime, which computes in float32, skips the rounding to float16 before the cast."""
    net = Net(dtype=TensorProto.FLOAT16)
    ones, zeros = (net.constant(name, np.full(4, value)) for name, value in (("ones", 1.0), ("zeros", 0.0)))
    norm = net.node("BatchNormalization", [net.conv("x", 3, 4), ones, zeros, zeros, ones])
    net.node("Abs", [net.node("Cast", [norm], to=TensorProto.FLOAT)])
    model = net.model({"x": ("n", 3, 8, 8)})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    found = api.check(model, bnfold.fold(model).model)
    assert layer(found, "L3").status is Status.PASS, found.sentence
    assert found.verdict is Verdict.PROVED


def test_a_fold_names_the_affine_and_the_channel() -> None:
    """The records are right, the file that they came with is not."""
    dialect, original = onnx_dialect(), frontend.from_proto(network())
    options = FoldOptions(merge="never")
    report = dialect.fold(original, options)[1]
    wrong = frontend.from_proto(folded(network(), lambda proto: weight_of(proto, "c1", one_channel)))
    sides = Side(dialect, original), Side(dialect, wrong)
    found = check_folded(*sides, report, options, RunOptions(), CheckOptions())
    assert found.verdict is Verdict.FAILED
    failed = layer(found, "L3")
    assert (failed.affine, failed.channel) == ("b1_node", 5)
    assert failed.status is Status.FAIL
    assert [each.layer for each in found.layers] == ["L0", "L1", "L2", "L3", "L4", "L5"]


def causes(reference: Proto, candidate: Proto) -> list[tuple[str, str]]:
    """What L3 says of nodes that both models have."""
    found = checked(*map(frontend.from_proto, (reference, candidate)), onnx_dialect())
    failed = layer(found, "L3")
    assert all(str(cause) in found.sentence for cause in failed.causes[:3])
    assert not any(each.causes for each in found.layers if each is not failed)
    return [(cause.node, cause.difference) for cause in failed.causes]


def half_folded(change: Callable[[Proto], None]) -> tuple[Proto, Proto]:
    """The network, and a fold of it in which the last batch norm stays; then `change`."""
    made = frontend.fold_model(frontend.from_proto(network()), FoldOptions(merge="never", exclude=("b2*",)))[0]
    proto = onnx.ModelProto.FromString(frontend.to_bytes(made))
    change(proto)
    return network(), proto


def at_five(value: float) -> Array:
    return np.where(np.arange(8) == 5, value, 0)


def attribute(name: str, key: str, value: Any) -> Callable[[Proto], None]:
    def change(proto: Proto) -> None:
        kept = [each for each in node(proto, name).attribute if each.name != key]
        del node(proto, name).attribute[:]
        node(proto, name).attribute.extend([*kept, helper.make_attribute(key, value)])

    return change


CAUSES: dict[str, tuple[Callable[[Proto], None], list[str]]] = {
    "an epsilon": (attribute("b2", "epsilon", 1e-3), ["epsilon is 0.001 instead of 1e-05"]),
    "what does nothing beside it": (
        lambda proto: [attribute("b2", "momentum", 0.5)(proto), attribute("b2", "epsilon", 1e-2)(proto)][0],
        ["epsilon is 0.01 instead of 1e-05"],
    ),
    "numbers": (
        lambda proto: weights(proto, "b2.bias", lambda value: value + at_five(np.abs(value).max())),
        ["b2.bias differs in 1 of 8 numbers by up to 1 of its largest, first at [5]"],
    ),
    "a number that is none": (
        lambda proto: weights(proto, "b2.bias", lambda value: value + at_five(np.nan)),
        ["b2.bias differs in 1 of 8 numbers, first at [5]"],
    ),
}


@pytest.mark.parametrize(("change", "told"), CAUSES.values(), ids=CAUSES.keys())
def test_what_differs_in_a_node_that_both_have_is_told(change: Callable[[Proto], None], told: list[str]) -> None:
    assert causes(*half_folded(change)) == [("b2_node", each) for each in told]


def test_a_default_that_is_given_is_no_cause() -> None:
    """What ONNX takes where nothing is given is written out; one channel is wrong."""

    def change(proto: Proto) -> None:
        attribute("b2", "epsilon", 1e-5)(proto)
        attribute("c2", "kernel_shape", [3, 3])(proto)
        attribute("c2", "strides", [1, 1])(proto)
        attribute("c2", "auto_pad", "NOTSET")(proto)
        weights(proto, "c2.bias", lambda value: value + at_five(1.0))

    (cause,) = causes(*half_folded(change))
    assert cause[0] == "c2_node"
    assert cause[1].startswith("c2.bias differs in 1 of 8 numbers")


def test_numbers_that_a_fold_rewrites_are_no_cause() -> None:
    wrong = folded(network(), lambda proto: weight_of(proto, "c1", one_channel))
    assert causes(network(), wrong) == []


def test_an_attribute_of_an_operator_that_a_fold_rewrites_is_one() -> None:
    assert causes(network(), folded(network(), attribute("c1", "pads", [0, 0, 2, 2]))) == [
        ("c1_node", "pads is [0, 0, 2, 2] instead of [1, 1, 1, 1]")
    ]


def test_names_of_other_nodes_are_no_cause() -> None:
    """Nothing is said where the nodes of the candidate are called otherwise."""

    def change(proto: Proto) -> None:
        attribute("b2", "epsilon", 1e-3)(proto)
        for number, each in enumerate(proto.graph.node):
            each.name = f"n{number}"

    assert causes(*half_folded(change)) == []


def test_what_is_read_is_a_cause_where_both_have_it() -> None:
    def net(*terms: str) -> Proto:
        made = Net()
        made.conv("x", 3, 3, pads=[1] * 4, name="one")
        made.conv("x", 3, 3, pads=[1] * 4, name="two")
        made.node("Sub", terms, "y")
        return made.model({"x": SHAPE})

    assert causes(net("one", "two"), net("two", "one")) == [
        ("y_node", "it reads two_node instead of one_node"),
        ("y_node", "it reads one_node instead of two_node"),
    ]


def test_of_models_that_cannot_be_cut_all_nodes_are_compared() -> None:
    before, after = (frontend.from_proto(proto) for proto in half_folded(attribute("b2", "epsilon", 1e-3)))
    sides = [Side(onnx_dialect(), model).subject(RunOptions()) for model in (before, after)]
    first, second = (replace(side, tissue=None) for side in sides)
    found = check_pair(first, second)
    assert layer(found, "L3").status is Status.SKIPPED
    assert [cause.difference for cause in layer(found, "L4").causes] == ["epsilon is 0.001 instead of 1e-05"]
    assert "epsilon is 0.001" in found.sentence
    right = check_pair(first, replace(first, decides=False))
    assert not any(each.causes for each in right.layers)


def test_a_program_has_causes_too() -> None:
    def program(epsilon: float) -> Any:
        module = Residual().eval()
        norm = module.second[1]
        assert isinstance(norm, nn.BatchNorm2d)
        norm.eps = epsilon
        return torch_frontend.capture(module, (torch.zeros(2, 3, 9, 9),))

    failed = layer(checked(program(1e-5), program(1e-3), torch_dialect()), "L3")
    (cause,) = failed.causes
    assert cause.module == "second.1"
    assert cause.difference == "eps is 0.001 instead of 1e-05"


def test_the_smallest_part_that_fails_is_saved_and_fails_alone(tmp_path: Path) -> None:
    original, wrong = (
        frontend.from_proto(proto)
        for proto in (network(), folded(network(), lambda proto: weight_of(proto, "c1", one_channel)))
    )
    assert checked(original, wrong, onnx_dialect(), save=tmp_path).verdict is Verdict.FAILED
    parts = [frontend.read(tmp_path / "part" / f"{name}-part.onnx") for name in ("reference", "candidate")]
    assert [node.op_type for node in parts[0].graph] == ["Conv", "BatchNormalization"]
    assert [node.op_type for node in parts[1].graph] == ["Conv"]
    feeds = np.load(tmp_path / "part" / "part-inputs.npz")
    assert list(feeds) == [value.name for value in parts[0].graph.inputs]
    again = checked(*parts, onnx_dialect())
    assert again.verdict is Verdict.FAILED
    assert layer(again, "L3").channel == 5


class Residual(nn.Module):
    """The network above, for torch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = torch.relu(self.second(y) + y)
        return self.head(y.mean((2, 3)).reshape(x.shape[0], -1))


def programs() -> tuple[Any, Any]:
    program = torch_frontend.capture(Residual().eval(), (torch.zeros(2, 3, 9, 9),))
    return program, torch_frontend.fold_program(program, FoldOptions(merge="never"))[0]


def looked_at_programs(original: Any, candidate: Any) -> Local:
    pair = both(torch_dialect(), original, candidate, {"x": normal((2, 3, 9, 9))})
    results = zip(pair.reference.tissue.outputs.values(), pair.candidate.tissue.outputs.values(), strict=True)
    local = Local(pair, list(results))
    local.run()
    return local


def test_a_program_is_looked_into_as_well() -> None:
    original, candidate = programs()
    fine = looked_at_programs(original, candidate).layer(None)
    assert fine.status is Status.PASS, fine.because
    assert fine.because.startswith("2 changed places on their own")
    with torch.no_grad():
        candidate.state_dict["second.0.weight"][3] *= 1 + 1e-5
    local = looked_at_programs(original, candidate)
    assert local.failing is not None
    assert local.failing.channel == 3
    assert local.failing.figure > 8


def test_the_part_of_a_program_is_a_program(tmp_path: Path) -> None:
    original, candidate = programs()
    with torch.no_grad():
        candidate.state_dict["second.0.weight"][3] *= 1 + 1e-5
    local = looked_at_programs(original, candidate)
    assert local.failing is not None
    local.both.save(local.failing.stretch, tmp_path)
    parts = [torch.export.load(tmp_path / f"{name}-part.pt2") for name in ("reference", "candidate")]
    (feeds,) = np.load(tmp_path / "part-inputs.npz").values()
    results = [part.module()(torch.from_numpy(feeds)) for part in parts]
    assert results[0].shape == results[1].shape
    assert not torch.equal(*results)


def test_a_program_is_compared_with_the_onnx_of_it() -> None:
    program, _ = programs()
    exported = torch_frontend.to_onnx(program)
    frontend.normalise(exported)
    dialects = torch_dialect(), onnx_dialect()
    feeds = {"x": normal((2, 3, 9, 9))}
    first, second = dialects[0].tissue(program, RunOptions()), dialects[1].tissue(exported, RunOptions())
    pair = Both.of(first, second, {"x": second.inputs[0]}, (feeds, {second.inputs[0]: feeds["x"]}))
    local = Local(pair, list(zip(first.outputs.values(), second.outputs.values(), strict=True)))
    local.run()
    found = local.layer(None)
    assert found.status is Status.PASS, found.because
    assert local.compared > 5


def test_a_program_that_writes_where_others_read_is_not_cut() -> None:
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.sigmoid(x)
            y[:, :1].mul_(-1)
            return y + 1

    program = torch_frontend.capture(Writes().eval(), (torch.zeros(2, 3),))
    with pytest.raises(NoVerdict, match="writes to values in place"):
        torch_dialect().tissue(program, RunOptions())


# Models that round or decide


def quantised(layers: int = 4, seed: int = 0) -> Proto:
    """Fake-quantised convolutions: each value is rounded to a grid before the next one reads it."""
    net = Net(seed=seed)
    zero, x = net.constant("zero", np.array(0), onnx.TensorProto.INT8), "x"
    for i in range(layers):
        scale = net.constant(f"s{i}", 0.05)
        x = net.node("QuantizeLinear", [x, scale, zero], f"q{i}")
        x = net.conv(net.node("DequantizeLinear", [x, scale, zero], f"d{i}"), 8 if i else 3, 8, name=f"c{i}")
        x = net.node("Relu", [net.batch_norm(x, 8, f"b{i}")], f"r{i}")
    net.node("GlobalAveragePool", [x], "y")
    return net.model({"x": (1, 3, 20, 20)})


def judged(candidate: Proto) -> tuple[Both, Execution]:
    """A check whose ends complain, whatever they are: what is left is to look between decisions."""
    sides = [Side(onnx_dialect(), frontend.from_proto(proto)) for proto in (quantised(), candidate)]
    first, second = (side.subject(RunOptions(threads=1)) for side in sides)
    execution = Execution.of(first, second, second.exact, CheckPlan(), strict=False)
    execution.look_between = lambda: between_decisions(first, second, execution)
    execution.run()
    for meter in execution.ends.meters.values():
        meter.mismatch = "differs"
    return opened_models(first, second, execution, execution.first_feeds())[0], execution


def test_a_correct_fold_that_rounds_is_judged_from_one_decision_to_the_next() -> None:
    both, execution = judged(folded(quantised()))
    assert both.reference.deciding == {"x", "r0", "r1", "r2"}
    found = execution.end_to_end_layer()
    assert found.status is Status.PASS, found.because
    assert found.because.startswith("from one decision to the next")
    assert found.figure is not None
    assert found.figure < 2


def test_a_wrong_fold_that_rounds_fails_between_two_decisions() -> None:
    found = judged(folded(quantised(), lambda proto: weight_of(proto, "c1", lambda v: v * (1 + 1e-5))))[1]
    failed = found.end_to_end_layer()
    assert failed.status is Status.FAIL
    assert "output r1" in failed.because


def test_what_cannot_be_cut_at_every_decision_is_not_judged_there() -> None:
    found = judged(folded(quantised(), lambda proto: weight_of(proto, "c1", lambda v: v * 1.5)))[1]
    assert found.end_to_end_layer().status is Status.SKIPPED


@pytest.mark.parametrize("seed", range(2))
def test_a_quantised_chain_raises_no_alarm(seed: int) -> None:
    original = quantised(6, seed)
    found = checked(frontend.from_proto(original), frontend.from_proto(folded(original)), onnx_dialect())
    assert found.verdict is Verdict.PROVED, found.sentence
    assert layer(found, "L3").status is Status.PASS


# Anatomy


def opened(proto: Proto) -> Anatomy:
    return Anatomy.of(onnx_dialect().tissue(frontend.from_proto(proto), RunOptions()), {"x": normal()})


def test_a_part_computes_what_the_model_does() -> None:
    anatomy = opened(network())
    piece = anatomy.piece({"r0": "a", "r1": "b"}, "sum")
    assert piece.inputs == ("r0", "r1")
    assert [step.op for step in piece.steps] == ["Conv", "BatchNormalization", "Add"]
    assert str(piece) == "Conv c2_node … Add sum_node"
    feeds = {name: anatomy.kept[name] for name in piece.inputs}
    part = anatomy.part(piece)
    for run in (part.exact(), part.actual()):
        assert np.allclose(run(feeds)["sum"], anatomy.kept["sum"], atol=1e-4)


def test_a_digest_is_of_operators_attributes_and_numbers_not_of_names() -> None:
    def digest(change: Callable[[Proto], None] = lambda proto: None, cuts: dict[str, str] | None = None) -> str:
        proto = network()
        change(proto)
        anatomy = opened(proto)
        output = proto.graph.node[4].output[0]
        data = proto.graph.node[2].output[0]
        return anatomy.piece({data: "1"} if cuts is None else cuts, output).digest

    def strides(proto: Proto) -> None:
        node(proto, "b1").attribute.append(helper.make_attribute("epsilon", 1e-4))

    assert digest() == digest(renamed)
    assert digest() != digest(strides)
    assert digest() != digest(lambda proto: weight_of(proto, "c1", one_channel))
    assert digest() != digest(cuts={"r0": "2"})


def test_sizes_are_constants_of_a_part() -> None:
    net = Net()
    wide = net.node("Relu", [net.conv("x", 3, 4, name="c")], "r")
    size = net.node("Shape", ["c"], "size")
    net.node("Reshape", [wide, size], "y")
    anatomy = opened(net.model({"x": SHAPE}))
    piece = anatomy.piece({"r": "1"}, "y")
    assert piece.inputs == ("r",)
    assert [step.op for step in piece.steps] == ["Reshape"]
    value = normal((1, 4, 7, 7))
    assert np.array_equal(anatomy.part(piece).actual()({"r": value})["y"], value)


def test_what_a_body_captures_is_read_by_its_node() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["r", "c"], ["inner"])], "body", [], [helper.make_tensor_value_info("inner", 1, None)]
    )
    net = Net()
    net.node("Relu", [net.conv("x", 3, 4, name="c")], "r")
    condition = net.node("Greater", [net.node("ReduceMax", ["x"], "m", keepdims=0), net.constant("zero", 0.0)], "high")
    net.node("If", [condition], "y", then_branch=body, else_branch=body)
    anatomy = opened(net.model({"x": SHAPE}))
    assert anatomy.deciding == {"m"}
    piece = anatomy.piece({"c": "1", "m": "2"}, "y")
    assert set(piece.inputs) == {"c", "m"}
    assert not piece.decides_inside
    assert anatomy.piece({"c": "1"}, "y").decides_inside
    feeds = {name: anatomy.kept[name] for name in piece.inputs}
    value = anatomy.part(piece).actual()(feeds)["y"]
    assert np.allclose(value, np.maximum(feeds["c"], 0) + feeds["c"])


# Matching


def sketches(**values: Array) -> dict[str, Sketch]:
    return {name: Sketch.of(value) for name, value in values.items()}


def test_values_are_matched_by_contents() -> None:
    a, b = normal(seed=1), normal(seed=2)
    reference = sketches(first=a, second=b, relu=np.maximum(b, 0), zeros=np.zeros(SHAPE), nan=np.full(SHAPE, np.nan))
    candidate = sketches(
        second=a * (1 + 1e-6), other=b, zeros=np.zeros(SHAPE), nan=np.full(SHAPE, np.nan), odd=b[:, :2]
    )
    assert match(reference, candidate) == {"first": "second", "second": "other"}
    assert match({}, candidate) == {}


def test_of_equal_values_the_same_name_wins_and_then_the_last() -> None:
    a = normal()
    assert match(sketches(x=a, same=a), sketches(same=a)) == {"same": "same"}
    assert match(sketches(x=a, y=a), sketches(last=a)) == {"y": "last"}


@pytest.mark.parametrize("names", [None, renamed], ids=["", "renamed"])
def test_behind_a_mistake_only_what_bends_keeps_its_place(names: Callable[[Proto], None] | None) -> None:
    """A sum, a pool or what a convolution gives is another value in a fold, which moves affines across them."""

    def negated(proto: Proto) -> None:
        weight_of(proto, "c0", lambda values: -values)
        if names is not None:
            names(proto)

    pair = looked(network(), folded(network(), negated)).both
    guessed = {name: other for name, other in pair.placed.items() if name not in pair.matches}
    places = {step.outputs[0]: step.name for step in pair.candidate.steps}
    assert {name: places[other] for name, other in guessed.items()} == {f"r{i}": f"r{i}_node" for i in range(3)}
    correct = looked(network(), folded(network())).both
    assert correct.placed == correct.matches


def test_likeness_serves_the_nearest_first() -> None:
    a = normal()
    reference, candidate = sketches(far=a * 1.4, near=a), sketches(one=a * 1.01)
    assert similar(reference, candidate, ["far", "near"], ["one"]) == {"near": "one"}
    assert similar(reference, sketches(one=normal(seed=9)), ["far", "near"], ["one"]) == {}


# Noise


def noise(after: Callable[[Array], Array], dtype: str = "float32", samples: int = 4) -> Noise:
    found = Noise(dtype)
    for seed in range(samples):
        truth = np.random.default_rng(seed).normal(size=(1, 16, 6, 6))
        before = truth.astype(dtype)
        found.add(truth, before, after(before))
    return found


def test_equal_noise_has_a_ratio_of_one_and_a_wrong_index_is_found_on_its_axis() -> None:
    def at(position: tuple[Any, ...]) -> Callable[[Array], Array]:
        def change(values: Array) -> Array:
            values = values.copy()
            values[position] *= 1 + 1e-5
            return values

        return change

    fine = noise(lambda values: values).worst()
    assert fine is not None
    assert fine.figure == 1
    channel = noise(at((slice(None), 7))).worst()
    assert channel is not None
    assert (channel.axis, channel.index) == (1, 7)
    assert channel.figure > 8
    column = noise(at((..., 5))).worst()
    assert column is not None
    assert (column.axis, column.index) == (3, 5)
    assert "index 5 of axis 3" in str(column)


def test_too_few_numbers_have_no_ratio() -> None:
    found = Noise("float32")
    found.add(np.ones((1, 4)), np.ones((1, 4)), np.zeros((1, 4)))
    assert found.worst() is None


def test_dead_channels_have_no_noise_to_be_compared_with() -> None:
    """A result that is zero in the original, and almost zero in the candidate, is as good."""

    def silent(values: Array) -> Array:
        return np.where(np.arange(16).reshape(-1, 1, 1) == 3, values + 1e-12, values)

    ratio = noise(silent).worst()
    assert ratio is not None
    assert ratio.figure < 1.01


def test_an_overflow_of_the_original_is_not_compared() -> None:
    found = Noise("float16")
    truth = np.full((4, 8, 8), 1e5)
    found.add(truth, np.full_like(truth, np.inf), truth)
    assert found.overflowed
    assert found.worst() is None


def test_arithmetic_bounds_the_error_of_an_operator() -> None:
    """A runtime that is wrong in a single place: too little for any average, more than arithmetic can do."""
    models = [frontend.from_proto(proto) for proto in (network(), folded(network()))]
    pair = both(onnx_dialect(), *models, {"x": normal()})
    cut = pair.candidate.tissue.cut

    def slightly(run: Any) -> Any:
        def result(feeds: Arrays) -> Arrays:
            return {
                name: value + (np.arange(value.size) == 70).reshape(value.shape) * 2e-4
                for name, value in run(feeds).items()
            }

        return result

    def broken(steps: Any, *place: Any) -> Any:
        part = cut(steps, *place)
        return replace(part, actual=lambda: slightly(part.actual())) if [s.op for s in steps] == ["Conv"] else part

    pair = replace(pair, candidate=replace(pair.candidate, tissue=replace(pair.candidate.tissue, cut=broken)))
    local = Local(pair, [("y", "y")])
    (step,) = [step for step in pair.candidate.steps if step.name == "c1_node"]
    assert local._excess(step) > 1
    assert Local(both(onnx_dialect(), *models, {"x": normal()}), [])._excess(step) < 0.5
