"""The check says yes to correct folds, no to wrong ones, and neither where nothing could be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnfold.dialects import onnx_dialect
from bnfold.errors import MissingDependency, NoVerdict
from bnfold.evidence import Contents, Evidence
from bnfold.folding import FoldOptions
from bnfold.frontends import onnx as frontend
from bnfold.frontends import torch as torch_frontend
from bnfold.model import Arrays, Port, Runner, Signature
from bnfold.outcome import FoldReport
from bnfold.run import RunOptions
from bnfold.runtime import session
from bnfold.verify.check import CheckPlan, Records, Subject, Tolerance, check_fold, check_pair
from bnfold.verify.compare import moved_by_rounding
from bnfold.verify.execution import Execution
from bnfold.verify.float64 import float64_runner
from bnfold.verify.probes import ProbeOptions
from bnfold.verify.result import Layer, Status, Verdict, Verification

Array = NDArray[Any]
Weights = dict[str, Array]


def network(dtype: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = ("batch", 3, 8, 8)) -> onnx.ModelProto:
    """Conv, BN, Relu; Conv, BN, added to what came before; pooled, and a Gemm."""
    random = np.random.default_rng(3)
    numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
    stored: Weights = {}
    for i, channels in enumerate((3, 8)):
        stored[f"w{i}"] = random.normal(0, 0.3, (8, channels, 3, 3))
        stored |= {f"gamma{i}": random.uniform(0.5, 1.5, 8), f"beta{i}": random.normal(size=8)}
        stored |= {f"mean{i}": random.normal(size=8), f"var{i}": random.uniform(0.2, 2, 8)}
    stored |= {"fc": random.normal(size=(8, 5)), "fc_bias": random.normal(size=5)}

    def block(i: int, x: str) -> list[onnx.NodeProto]:
        statistics = [f"{name}{i}" for name in ("gamma", "beta", "mean", "var")]
        return [
            helper.make_node("Conv", [x, f"w{i}"], [f"conv{i}_out"], f"conv{i}", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", [f"conv{i}_out", *statistics], [f"bn{i}_out"], f"bn{i}"),
        ]

    nodes = [
        *block(0, "x"),
        helper.make_node("Relu", ["bn0_out"], ["relu_out"], "relu"),
        *block(1, "relu_out"),
        helper.make_node("Add", ["bn1_out", "relu_out"], ["sum"], "add"),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "fc", "fc_bias"], ["y"], "head"),
    ]
    constants = [numpy_helper.from_array(value.astype(numpy_type), name) for name, value in stored.items()]
    return model(nodes, {"x": (dtype, shape)}, {"y": (dtype, (shape[0], 5))}, constants)


def model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Any]],
    outputs: Mapping[str, tuple[int, Any]],
    constants: list[onnx.TensorProto] | None = None,
) -> onnx.ModelProto:
    infos = [
        [helper.make_tensor_value_info(name, *port) for name, port in ports.items()] for ports in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "net", *infos, constants or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def changed(proto: onnx.ModelProto, change: Callable[[Weights], None]) -> onnx.ModelProto:
    """A copy whose initializers went through `change`; they keep their type."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    weights = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in copy.graph.initializer}
    types = {name: value.dtype for name, value in weights.items()}
    change(weights)
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(
        numpy_helper.from_array(value.astype(types[name]), name) for name, value in weights.items()
    )
    return copy


def unchanged(weights: Weights) -> None:
    """No mutation."""


def subject(proto: onnx.ModelProto, **more: Any) -> Subject:
    read = frontend.from_proto(proto)
    return Subject(
        frontend.signature(read),
        exact=lambda: float64_runner(frontend.to_proto(frontend.as_float64(read))),
        actual=lambda: session(proto.SerializeToString(), optimise=False),
        tissue=lambda: onnx_dialect().tissue(read, RunOptions()),
        **more,
    )


def verify(
    change: Callable[[Weights], None] = unchanged,
    plan: CheckPlan = CheckPlan(),
    proto: onnx.ModelProto | None = None,
    records: Callable[[Records], Records] = lambda found: found,
) -> Verification:
    """Fold, change the weights of both the rounded and the unrounded fold, and check."""
    original = frontend.from_proto(proto or network())
    folded, report = frontend.fold_model(original, FoldOptions())
    wrong = changed(frontend.to_proto(folded), change)
    exact = frontend.fold_model(frontend.as_float64(original), FoldOptions())[0]
    unrounded = changed(frontend.to_proto(exact), change)
    evidence = recorded(original, frontend.from_proto(wrong), report)
    return check_fold(
        subject(frontend.to_proto(original)), subject(wrong), lambda: float64_runner(unrounded), records(evidence), plan
    )


def recorded(original: ir.Model, folded: ir.Model, report: FoldReport) -> Records:
    stored = frontend.evidence(original), frontend.evidence(folded)
    return Records(*stored, report, frontend.contents(original), frontend.contents(folded))


NO_RECORDS = Records(Evidence({}, {}), Evidence({}, {}), FoldReport(()), Contents({}, {}), Contents({}, {}))


def layer(verification: Verification, name: str) -> Layer:
    return next(layer for layer in verification.layers if layer.layer == name)


def weight_name(weights: Weights, channels: int) -> str:
    return next(name for name, value in weights.items() if value.shape[:2] == (8, channels))


def on_weight(change: Callable[[Array], Array]) -> Callable[[Weights], None]:
    def mutate(weights: Weights) -> None:
        name = weight_name(weights, 8)
        weights[name] = change(weights[name])

    return mutate


def scaled(index: int, factor: float) -> Callable[[Array], Array]:
    def apply(values: Array) -> Array:
        values[index] = values[index] * factor
        return values

    return apply


def _one_bias(weights: Weights) -> None:
    name = next(name for name, value in weights.items() if value.shape == (8,))
    weights[name][4] *= 1.01


def _nan(weights: Weights) -> None:
    weights[weight_name(weights, 8)][0, 0, 0, 0] = np.nan


MUTANTS: dict[str, Callable[[Weights], None]] = {
    "channels swapped": on_weight(lambda w: w[[1, 0, *range(2, 8)]]),
    "one channel times 1 + 1e-5": on_weight(scaled(3, 1 + 1e-5)),
    "one bias off by 1 %": _one_bias,
    "NaN": _nan,
    "one layer in float16": on_weight(lambda w: w.astype(np.float16)),
    "kernel flipped": on_weight(lambda w: w[..., ::-1]),
    "branch dropped": on_weight(np.zeros_like),
    "all channels times 1 + 1e-6": on_weight(lambda w: w * (1 + 1e-6)),
}


def test_a_correct_fold_is_proved() -> None:
    found = verify()
    assert found.verdict is Verdict.PROVED, found.sentence
    assert [layer.status for layer in found.layers] == [Status.PASS] * 5
    assert found.passed
    assert layer(found, "L2").figure is not None
    assert layer(found, "L2").figure <= 1e-13  # type: ignore[operator]
    assert found.outputs[0].ratio is not None
    assert found.outputs[0].ratio < 2
    assert {record.shape[0] for record in found.inputs} == {1, 2}
    assert "at 2 sizes" in found.sentence


@pytest.mark.parametrize("mutate", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_wrong_fold_fails_in_both_the_certificate_and_float64(mutate: Callable[[Weights], None]) -> None:
    found = verify(mutate)
    assert found.verdict is Verdict.FAILED
    assert layer(found, "L1").status is Status.FAIL
    assert layer(found, "L2").status is Status.FAIL
    assert "bn" in found.sentence
    assert found.sentence.startswith("not equivalent, by L1")


def elementwise_network() -> onnx.ModelProto:
    """Conv, Mul, Sub, Relu, Div, Conv; then attention: scores, their scale, a Neg and a bias."""
    random = np.random.default_rng(4)
    stored: Weights = {
        "w0": random.normal(0, 0.3, (8, 3, 3, 3)),
        "w1": random.normal(0, 0.3, (4, 8, 1, 1)),
        "per_channel": random.uniform(0.5, 2, (8, 1, 1)),
        "mean": random.normal(size=(1, 8, 1, 1)),
        "seven": np.array(7.0),
        "query": random.normal(size=(6, 5)),
        "key": random.normal(size=(6, 5)),
        "key_bias": random.normal(size=5),
        "root": np.array(5**0.5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "conv0"),
        helper.make_node("Mul", ["per_channel", "c0"], ["scaled"], "mul"),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"], "sub"),
        helper.make_node("Relu", ["centred"], ["positive"], "relu"),
        helper.make_node("Div", ["positive", "seven"], ["small"], "div"),
        helper.make_node("Conv", ["small", "w1"], ["y"], "conv1"),
        helper.make_node("MatMul", ["tokens", "query"], ["q"], "to_query"),
        helper.make_node("MatMul", ["tokens", "key"], ["k0"], "to_key"),
        helper.make_node("Add", ["k0", "key_bias"], ["k"], "bias"),
        helper.make_node("Transpose", ["k"], ["turned"], "transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "turned"], ["scores"], "scores"),
        helper.make_node("Div", ["scores", "root"], ["scaled_scores"], "root"),
        helper.make_node("Neg", ["scaled_scores"], ["negative"], "neg"),
        helper.make_node("Softmax", ["negative"], ["attention"], "softmax", axis=-1),
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()]
    inputs = {"x": (TensorProto.FLOAT, ("n", 3, 8, 8)), "tokens": (TensorProto.FLOAT, ("n", 7, 6))}
    outputs = {"y": (TensorProto.FLOAT, ("n", 4, 6, 6)), "attention": (TensorProto.FLOAT, ("n", 7, 7))}
    return model(nodes, inputs, outputs, constants)


def test_elementwise_operators_that_vanish_are_proved() -> None:
    found = verify(proto=elementwise_network())
    assert found.verdict is Verdict.PROVED, found.sentence
    assert [layer.status for layer in found.layers] == [Status.PASS] * 5
    assert layer(found, "L1").because.startswith("5 elementwise operators derived again in 2 operators")
    assert layer(found, "L2").figure <= 1e-13  # type: ignore[operator]


def test_what_elementwise_operators_store_is_read_on_its_own_path() -> None:
    proto = elementwise_network()
    found = frontend.evidence(frontend.from_proto(proto))
    assert {name: record.op for name, record in found.affines.items()} == {
        "mul": "mul",
        "sub": "sub",
        "div": "div",
        "root": "div",
        "neg": "neg",
    }, "the bias belongs to its product"
    assert found.linears["to_key"].bias is not None
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert np.array_equal(found.affines["sub"].constant, stored["mean"])  # type: ignore[arg-type]
    assert found.affines["neg"].constant is None
    for node in proto.graph.node:
        if node.name in found.affines:
            node.input[:] = [*node.input][::-1]
    turned = frontend.evidence(frontend.from_proto(proto)).affines
    assert {name: record.op for name, record in turned.items()} == {"mul": "mul", "sub": "rsub", "neg": "neg"}


def test_torch_stores_elementwise_operators_as_tensors_and_as_numbers() -> None:
    tensor = torch.tensor([[[2.0]], [[3.0]]])

    class Elementwise(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("tensor", tensor)
            self.register_buffer("matrix", torch.ones(3, 3))
            self.register_buffer("offset", torch.arange(3.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = -((x * self.tensor + 0.5) / self.tensor - 3)
            y = 1 - torch.sub(y, 1, alpha=2)
            return (y @ self.matrix + self.offset) * (x + x)

    found = torch_frontend.evidence(torch_frontend.capture(Elementwise().eval(), (torch.ones(1, 2, 3, 3),)))
    records = [(record.op, record.constant) for record in found.affines.values()]
    assert [op for op, _ in records] == ["mul", "add", "div", "sub", "neg", "rsub", "add"]
    assert np.array_equal(records[0][1], tensor.numpy())  # type: ignore[arg-type]
    assert records[1][1] == 0.5
    (product,) = found.linears.values()
    assert np.array_equal(product.bias, np.arange(3.0))  # type: ignore[arg-type]
    assert product.added in found.affines


def test_float64_fails_alone_where_there_are_no_records() -> None:
    def forget(records: Records) -> Records:
        return NO_RECORDS

    fine = verify(records=forget)
    assert fine.verdict is Verdict.VERIFIED
    assert layer(fine, "L1").status is Status.SKIPPED
    found = verify(MUTANTS["one channel times 1 + 1e-5"], records=forget)
    assert found.verdict is Verdict.FAILED
    assert layer(found, "L2").status is Status.FAIL
    assert "(limit 8)" in found.sentence


def test_the_level_decides_what_runs() -> None:
    static = verify(plan=CheckPlan(level="static"))
    assert static.verdict is Verdict.PROVED
    assert [layer.layer for layer in static.layers] == ["L0", "L1"]
    assert not static.inputs
    assert verify(_nan, CheckPlan(level="static")).verdict is Verdict.FAILED
    assert verify(plan=CheckPlan(level="full")).verdict is Verdict.PROVED


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_other_types_are_proved_too(dtype: int) -> None:
    """The runtime has no Conv in double or bfloat16: its layer is skipped, the others decide."""
    found = verify(proto=network(dtype))
    assert found.verdict is Verdict.PROVED, found.sentence
    assert layer(found, "L2").status is Status.PASS
    if dtype != TensorProto.FLOAT16:
        assert layer(found, "L4").status is Status.SKIPPED
        assert layer(found, "L4").because in found.sentence
        assert verify(proto=network(dtype), plan=CheckPlan(level="full")).verdict is Verdict.NO_VERDICT


def test_a_static_shape_is_run_at_one_size_and_says_so() -> None:
    assert "at one size, with two seeds" in verify(proto=network(shape=(1, 3, 8, 8))).sentence


def pair(first: onnx.ModelProto, second: onnx.ModelProto, plan: CheckPlan = CheckPlan()) -> Verification:
    return check_pair(subject(first), subject(second), plan)


def by_hand(change: Callable[[Weights, int], None]) -> onnx.ModelProto:
    """The network folded by someone else, in float32 and with mistakes of their own."""
    proto = network()

    def fold(weights: Weights) -> None:
        for i in range(2):
            change(weights, i)
            scale = weights[f"gamma{i}"] / np.sqrt(weights[f"var{i}"] + np.float32(1e-5))
            weights[f"w{i}"] = weights[f"w{i}"] * scale[:, None, None, None]
            weights[f"beta{i}"] = weights[f"beta{i}"] - weights[f"mean{i}"] * scale

    folded = changed(proto, fold)
    nodes = [node for node in folded.graph.node if node.op_type != "BatchNormalization"]
    for node in nodes:
        node.input[:] = [name.replace("bn0_out", "conv0_out").replace("bn1_out", "conv1_out") for name in node.input]
        if node.op_type == "Conv":
            node.input.append(f"beta{node.name[-1]}")
    del folded.graph.node[:]
    folded.graph.node.extend(nodes)
    return folded


def right(weights: Weights, i: int) -> None:
    """No mistake."""


def test_a_fold_by_someone_else_is_verified() -> None:
    found = pair(network(), by_hand(right))
    assert found.verdict is Verdict.VERIFIED, found.sentence
    assert layer(found, "L4").status is Status.PASS
    assert layer(found, "L2").status is Status.WARN, "weights rounded by another hand differ in float64"


def _epsilon(weights: Weights, i: int) -> None:
    weights[f"var{i}"] = weights[f"var{i}"] + np.float32(1e-3)


def _root_first(weights: Weights, i: int) -> None:
    weights[f"var{i}"] = (np.sqrt(weights[f"var{i}"]) + np.float32(1e-5)) ** 2 - np.float32(1e-5)


def _means_dropped(weights: Weights, i: int) -> None:
    weights[f"mean{i}"] *= 0


def _statistics_exchanged(weights: Weights, i: int) -> None:
    weights["mean0"], weights["mean1"] = weights["mean1"], weights["mean0"]


def _channel(weights: Weights, i: int) -> None:
    weights[f"gamma{i}"][2] *= 1.0001


@pytest.mark.parametrize("mistake", [_epsilon, _root_first, _means_dropped, _statistics_exchanged, _channel])
def test_a_wrong_fold_by_someone_else_fails_end_to_end(mistake: Callable[[Weights, int], None]) -> None:
    found = pair(network(), by_hand(mistake))
    assert found.verdict is Verdict.FAILED
    failed = layer(found, "L4")
    assert failed.status is Status.FAIL
    assert failed.figure is not None
    assert failed.figure > 4
    assert "output y" in failed.because
    assert "by L3" in found.sentence
    assert "of Conv conv0" in found.sentence


def test_a_tolerance_replaces_the_ratio() -> None:
    wrong = by_hand(_channel)
    assert pair(network(), wrong, CheckPlan(tolerance=Tolerance(rtol=0.5, atol=0.5))).verdict is Verdict.VERIFIED
    strict = pair(network(), wrong, CheckPlan(tolerance=Tolerance(atol=1e-7)))
    assert strict.verdict is Verdict.FAILED
    assert "beyond the tolerance" in strict.sentence
    assert layer(strict, "L3").status is Status.WARN


def test_a_demand_on_top1() -> None:
    wide = Tolerance(rtol=1e9, atol=1e9)
    assert pair(network(), by_hand(right), CheckPlan(min_top1=1.0)).verdict is Verdict.VERIFIED
    found = pair(network(), by_hand(_means_dropped), CheckPlan(tolerance=wide, min_top1=0.999))
    assert found.verdict is Verdict.FAILED
    assert "top-1" in found.sentence


def test_a_failure_is_saved_in_the_form_that_data_reads(tmp_path: Path) -> None:
    folder = tmp_path / "failure"
    pair(network(), by_hand(right), CheckPlan(save_failure=folder))
    assert not folder.exists()
    pair(network(), by_hand(_epsilon), CheckPlan(save_failure=folder))
    again = pair(network(), by_hand(_epsilon), CheckPlan(probes=ProbeOptions(data=folder)))
    assert again.verdict is Verdict.FAILED
    assert [record.family for record in again.inputs].count("normal") == 2, "the seeded families are run too"
    saved = [record for record in again.inputs if record.family.startswith("data:")]
    assert len(saved) == len(list(folder.glob("*.npz")))
    assert {file.name for file in (folder / "part").iterdir()} == {
        "reference-part.onnx",
        "candidate-part.onnx",
        "part-inputs.npz",
    }


def test_the_same_check_twice_says_the_same() -> None:
    def timeless(found: Verification) -> Verification:
        return replace(found, layers=tuple(replace(layer, elapsed_s=0.0) for layer in found.layers))

    assert timeless(verify()) == timeless(verify())


Function = Callable[[Array], Array]


def subject_of(*functions: Function, dtype: str = "float32", shape: Any = ("batch", 4), noise: float = 0.0) -> Subject:
    """A model that is Python: the same functions in float64 and, with noise, in float32; outputs y0, y1, …"""

    def runner(rounded: bool) -> Callable[[], Runner]:
        random = np.random.default_rng(0)

        def run(feeds: Mapping[str, Array]) -> Arrays:
            x = feeds["x"].astype(np.float64)
            values = [np.asarray(function(x)) for function in functions]
            if rounded:
                with np.errstate(over="ignore"):
                    values = [
                        (v * (1 + noise * random.standard_normal(v.shape))).astype(dtype) if v.dtype.kind == "f" else v
                        for v in values
                    ]
            return {f"y{i}": value for i, value in enumerate(values)}

        return lambda: run

    outputs = tuple(Port(f"y{i}", dtype, None) for i in range(len(functions)))
    return Subject(Signature((Port("x", dtype, shape),), outputs), runner(False), runner(True))


NOISE = 3e-7


def twice(x: Array) -> Array:
    return 2 * x


def test_equal_up_to_noise_is_verified_and_exactly_equal_is_too() -> None:
    assert check_pair(subject_of(twice, noise=NOISE), subject_of(twice, noise=NOISE)).verdict is Verdict.VERIFIED
    exactly = check_pair(subject_of(twice), subject_of(twice))
    assert exactly.verdict is Verdict.VERIFIED
    assert exactly.outputs[0].ratio == 1.0


@pytest.mark.parametrize(("factor", "status"), [(1.5, Status.PASS), (3.0, Status.WARN), (6.0, Status.FAIL)])
def test_the_ratio_of_errors_passes_warns_and_fails(factor: float, status: Status) -> None:
    plan = CheckPlan(probes=ProbeOptions(dims={"batch": (200, 300)}))
    found = check_pair(subject_of(twice, noise=NOISE), subject_of(twice, noise=factor * NOISE), plan)
    assert layer(found, "L4").status is status
    assert found.verdict is (Verdict.FAILED if status is Status.FAIL else Verdict.VERIFIED)


@pytest.mark.parametrize(
    ("first", "second", "rounded"), [(3e-7, 4e-7, False), (1e-9, 1e-7, True), (3e-7, 1e-9, True), (0.0, 0.0, True)]
)
def test_a_ratio_above_the_floor_names_the_rounding(first: float, second: float, rounded: bool) -> None:
    said = layer(check_pair(subject_of(twice, noise=first), subject_of(twice, noise=second)), "L4").because
    assert ("or a rounding of float32 where that is more" in said) is rounded
    assert ("is at most" in said) is rounded


NOTHING: dict[str, Function] = {
    "empty": lambda x: x[:0],
    "all NaN": lambda x: x * np.nan,
    "all infinite": lambda x: np.full_like(x, np.inf),
}


@pytest.mark.parametrize("function", NOTHING.values(), ids=NOTHING.keys())
def test_nothing_compared_is_no_verdict(function: Function) -> None:
    found = check_pair(subject_of(function), subject_of(function))
    assert found.verdict is Verdict.NO_VERDICT
    expected = "nothing was compared" if function is NOTHING["empty"] else "holds nothing but NaN and infinities"
    assert expected in found.sentence


def test_a_reference_that_is_not_finite_gives_no_verdict_whatever_the_candidate_is() -> None:
    for candidate in (subject_of(twice), subject_of(NOTHING["all infinite"])):
        found = check_pair(subject_of(NOTHING["all NaN"]), candidate)
        assert found.verdict is Verdict.NO_VERDICT
        assert "the reference is not finite" in found.sentence
    assert check_pair(subject_of(twice), subject_of(NOTHING["all NaN"])).verdict is Verdict.FAILED


def test_an_empty_output_beside_one_that_is_compared_does_no_harm() -> None:
    assert check_pair(subject_of(NOTHING["empty"], twice), subject_of(NOTHING["empty"], twice)).passed


WRONG: dict[str, tuple[Function, Function]] = {
    "NaN in one place": (twice, lambda x: np.where(np.arange(4) == 1, np.nan, 2 * x)),
    "NaN and infinity exchanged": (
        lambda x: np.where(np.arange(4) == 1, np.nan, 2 * x),
        lambda x: np.where(np.arange(4) == 1, np.inf, 2 * x),
    ),
    "another shape": (twice, lambda x: 2 * x[:, :3]),
    "a decision": (lambda x: x > 0, lambda x: x >= 0.5),
    "an index": (lambda x: x.argmax(axis=1), lambda x: x.argmin(axis=1)),
    "an empty result": (twice, lambda x: x[:0]),
}


@pytest.mark.parametrize(("first", "second"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_matter_of_rounding_fails(first: Function, second: Function) -> None:
    assert check_pair(subject_of(first), subject_of(second)).verdict is Verdict.FAILED
    assert check_pair(subject_of(first), subject_of(first)).verdict is Verdict.VERIFIED


def test_a_model_that_decides_inside_is_not_judged_by_its_numbers() -> None:
    second = replace(subject_of(lambda x: 2 * x + 1), decides=True)
    found = check_pair(subject_of(twice), second)
    assert found.verdict is Verdict.NO_VERDICT
    assert "rounds or decides" in found.sentence


def test_an_overflow_of_the_original_is_not_held_against_the_candidate() -> None:
    huge = subject_of(lambda x: x * 3000, dtype="float16", noise=1e-3)
    found = check_pair(huge, huge)
    assert found.verdict is Verdict.VERIFIED


def test_inputs_and_outputs_are_matched_by_position_where_names_differ() -> None:
    second = subject_of(twice)
    signature = Signature((Port("input", "float32", ("n", 4)),), (Port("output", "float32", None),))

    def renamed(prepare: Callable[[], Runner]) -> Callable[[], Runner]:
        return lambda: lambda feeds: {"output": prepare()({"x": feeds["input"]})["y0"]}

    found = check_pair(subject_of(twice), Subject(signature, renamed(second.exact), renamed(second.actual)))
    assert found.verdict is Verdict.VERIFIED
    assert layer(found, "L0").status is Status.WARN
    assert "by position" in layer(found, "L0").because


@pytest.mark.parametrize(
    "second",
    [
        subject_of(twice, twice),
        subject_of(twice, shape=("batch", 5)),
        subject_of(twice, shape=("batch", 4, 1)),
    ],
)
def test_another_interface_is_another_model(second: Subject) -> None:
    found = check_pair(subject_of(twice), second)
    assert found.verdict is Verdict.FAILED
    assert "L0" in found.sentence
    assert [layer.layer for layer in found.layers] == ["L0"]


def test_facts_of_a_fold_must_be_equal() -> None:
    plan = CheckPlan(facts=(["ir 9", "author me"], ["ir 9"]))
    found = verify(plan=plan)
    assert found.verdict is Verdict.FAILED
    assert "nothing instead of author me" in found.sentence


def refuses(error: Exception) -> Callable[[], Runner]:
    def prepare() -> Runner:
        raise error

    return prepare


def test_what_cannot_run_is_a_skipped_layer_with_its_reason() -> None:
    base = subject_of(twice)
    no_runtime = replace(base, actual=refuses(NoVerdict("no kernel for Foo")))
    found = check_pair(no_runtime, base)
    assert layer(found, "L4").because == "no kernel for Foo"
    assert found.verdict is Verdict.VERIFIED, "float64 agrees to 1e-11, which rounded weights cannot do"
    neither = replace(no_runtime, exact=refuses(NoVerdict("unknown operator Foo")))
    assert check_pair(neither, base).verdict is Verdict.NO_VERDICT
    assert "unknown operator Foo" in check_pair(neither, base).sentence


def test_a_missing_runtime_is_said_by_a_comparison_and_does_without_in_a_fold() -> None:
    missing = replace(subject_of(twice), actual=refuses(MissingDependency("onnxruntime is not installed")))
    with pytest.raises(MissingDependency):
        check_pair(missing, missing)
    assert check_fold(missing, missing, missing.exact, NO_RECORDS).passed


def test_a_candidate_that_only_the_runtime_refuses_is_no_agreement() -> None:
    refused = replace(subject_of(twice), actual=refuses(NoVerdict("types differ")))
    found = check_pair(subject_of(twice), refused)
    assert found.verdict is Verdict.NO_VERDICT
    assert "types differ" in found.sentence


def test_a_candidate_that_cannot_run_is_broken_as_a_fold_and_unknown_as_a_pair() -> None:
    base = subject_of(twice)
    broken = replace(base, exact=refuses(NoVerdict("bad shape")), actual=refuses(NoVerdict("bad shape")))
    assert check_pair(base, broken).verdict is Verdict.NO_VERDICT
    found = check_fold(base, broken, broken.exact, NO_RECORDS)
    assert found.verdict is Verdict.FAILED
    assert "bad shape" in found.sentence


def test_an_operator_that_nobody_knows_leaves_the_certificate() -> None:
    proto = network()
    proto.graph.node[2].op_type = "Mystery"
    found = verify(proto=proto)
    assert found.verdict is Verdict.PROVED
    assert [layer.status for layer in found.layers] == [*[Status.PASS] * 2, Status.SKIPPED, Status.PASS, Status.SKIPPED]
    assert "1 of 2 changed places" in layer(found, "L3").because
    assert "Mystery" in found.sentence
    assert verify(proto=proto, plan=CheckPlan(level="full")).verdict is Verdict.NO_VERDICT


def test_a_large_bias_that_cancels_is_no_difference_for_a_tiny_input() -> None:
    """The original adds and subtracts 1e4; its fold does not. Both are right, the original is only less exact."""
    original = subject_of(lambda x: (x + 1e4) - 1e4)
    semantics = Execution.of(original, subject_of(lambda x: x), subject_of(lambda x: x).exact, CheckPlan(), strict=True)
    semantics.run()
    assert semantics.semantic_layer().status is Status.PASS
    wrong = subject_of(lambda x: x * (1 + 1e-9))
    semantics = Execution.of(original, wrong, wrong.exact, CheckPlan(), strict=True)
    semantics.run()
    assert semantics.semantic_layer().status is Status.FAIL


def chaotic(gain: float) -> Function:
    """A function that magnifies what it is given by `gain`, and so the rounding of it."""
    return lambda x: np.sin(gain * x)


def semantic_layer(first: Function, second: Function) -> Layer:
    one, two = subject_of(first), subject_of(second)
    execution = Execution.of(one, two, two.exact, CheckPlan(), strict=True)
    execution.run()
    return execution.semantic_layer()


@pytest.mark.parametrize(
    ("gain", "error", "status"),
    [
        (1.0, 0.0, Status.PASS),
        (1.0, 1e-10, Status.FAIL),  # rounding explains nothing here: the limit is 1e-11
        (1e6, 0.0, Status.PASS),
        (1e6, 1e-15, Status.PASS),  # a few roundings, magnified to 1e-9 and more
        (1e6, 1e-12, Status.FAIL),  # thousands of roundings
        (1e12, 1e-15, Status.SKIPPED),  # float64 says nothing of such a function
    ],
)
def test_what_rounding_explains_is_measured(gain: float, error: float, status: Status) -> None:
    function = chaotic(gain)
    layer = semantic_layer(function, lambda x: function(x * (1 + error)))
    assert layer.status is status, layer.because
    assert layer.limit == (1e-11 if gain == 1.0 else layer.limit)
    if gain == 1e6 and error == 1e-15:
        assert "rounding alone explains" in layer.because


def test_inputs_move_by_one_rounding_and_whole_numbers_stay() -> None:
    feeds = {"x": np.ones((2, 3), np.float32), "n": np.arange(3)}
    moved = list(moved_by_rounding(feeds))
    assert len(moved) == 5
    for each in moved:
        assert set(np.unique(np.abs(each["x"] - 1))) == {2.0**-52}
        assert each["n"] is feeds["n"]
    assert list(moved_by_rounding({"n": np.arange(3)})) == []
