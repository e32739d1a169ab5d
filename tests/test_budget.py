"""What would not fit into memory is not tried, and said in numbers; the layers that need none decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import api
from bnfold.dialects import onnx_dialect
from bnfold.errors import EnvironmentFailure
from bnfold.folding import FoldOptions
from bnfold.frontends import onnx as frontend
from bnfold.frontends.onnx import float64, spilling
from bnfold.model import Port, Runner, Signature, StoredSize
from bnfold.run import CheckOptions, RunOptions
from bnfold.verification import Side, check_folded
from bnfold.verify import budget
from bnfold.verify.check import CheckPlan, Subject, check_pair
from bnfold.verify.float64 import record
from bnfold.verify.result import Status, Verdict, Verification

GIB = 1 << 30


def never() -> Runner:
    raise AssertionError("what is too large is not prepared")


def doubled() -> Runner:
    return lambda feeds: {"y": 2 * feeds["x"]}


def subject(floats: int, nbytes: int, held: int | None = None) -> Subject:
    signature = Signature((Port("x", "float32", ("n", 4)),), (Port("y", "float32", ("n", 4)),))
    stored = StoredSize(floats, nbytes, floats if held is None else held)
    return Subject(signature, never, never, optimised=never, stored=stored)


def statuses(found: Verification) -> dict[str, Status]:
    return {layer.layer: layer.status for layer in found.layers}


def test_a_model_that_is_too_large_is_not_executed_and_the_numbers_are_said() -> None:
    large = subject(GIB, 4 * GIB)
    found = check_pair(large, large)
    assert statuses(found) == {"L0": Status.PASS, **dict.fromkeys(("L2", "L3", "L4", "L5"), Status.SKIPPED)}
    assert found.verdict is Verdict.NO_VERDICT
    assert "L2, L3: it would need 22.0 GiB of memory, 2.0 GiB are allowed at level auto" in found.sentence


def test_level_full_may_use_what_the_machine_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:       32000000 kB\nMemAvailable:   16777216 kB\n")
    monkeypatch.setattr(budget, "_MEMORY", memory)
    assert budget.allowed("full") == 16 * GIB
    assert budget.allowed("auto") == 2 * GIB
    small, large = subject(GIB // 2, 0), subject(2 * GIB, 8 * GIB)
    assert not budget.too_large(small, small, "full")
    assert set(budget.too_large(small, small, "auto")) == {"L2", "L3", "L4", "L5"}
    piecemeal = subject(GIB // 2, 0, held=1 << 20)
    assert set(budget.too_large(piecemeal, piecemeal, "auto")) == {"L2", "L4", "L5"}
    found = check_pair(large, large, CheckPlan(level="full"))
    assert found.verdict is Verdict.NO_VERDICT
    assert "44.0 GiB of memory, 16.0 GiB are there" in found.sentence
    memory.write_text("MemTotal: 1 kB\n")
    assert budget.allowed("full") is None, "a machine that does not say sets no limit"


def test_the_models_of_the_runtime_come_after_those_in_float64() -> None:
    millions = {90: set[str](), 138: {"L2", "L3"}, 160: {"L2", "L3", "L4", "L5"}}
    for size, refused in millions.items():
        model = subject(size * 1_000_000, 4 * size * 1_000_000)
        assert set(budget.too_large(model, model, "auto")) == refused


def test_what_fits_runs_beside_what_does_not() -> None:
    """The candidate stores so many numbers that L2 is too much, in so few bytes that the runtime can hold it."""
    first = replace(subject(8, 8), exact=doubled, actual=doubled, optimised=doubled)
    second = replace(subject(GIB, GIB // 2), actual=doubled, optimised=doubled)
    found = check_pair(first, second)
    assert statuses(found)["L2"] is Status.SKIPPED
    assert statuses(found)["L4"] is Status.PASS
    assert found.verdict is Verdict.VERIFIED


def product() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    stored = {"w": random.normal(size=(300, 300)), "mean": random.normal(size=300), "beta": random.normal(size=300)}
    stored |= {"gamma": random.uniform(0.5, 2, 300), "var": random.uniform(0.5, 2, 300)}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], "gemm"),
        helper.make_node("BatchNormalization", ["h", "gamma", "beta", "mean", "var"], ["y"], "bn"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 300))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 300))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def checked(level: str) -> Verification:
    dialect, model = onnx_dialect(), frontend.from_proto(product())
    folded, report = dialect.fold(model, FoldOptions())
    sides = Side(dialect, model), Side(dialect, folded)
    return check_folded(*sides, report, FoldOptions(), RunOptions(), CheckOptions(level=level))


def test_a_fold_that_is_too_large_to_execute_is_proved_by_its_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert statuses(checked("auto"))["L5"] is Status.PASS
    monkeypatch.setattr(budget, "ALLOWED", 1 << 20)
    found = checked("auto")
    assert found.verdict is Verdict.PROVED
    assert statuses(found) == {
        **dict.fromkeys(("L0", "L1"), Status.PASS),
        **dict.fromkeys(("L2", "L3", "L4", "L5"), Status.SKIPPED),
    }
    assert "GiB are allowed at level auto" in found.sentence


def deep(layers: int = 24) -> onnx.ModelProto:
    """Layers of 300 × 300, of which each alone is small."""
    random, stored, nodes, value = np.random.default_rng(0), dict[str, np.ndarray](), list[onnx.NodeProto](), "x"
    for layer in range(layers):
        stored[f"w{layer}"] = random.normal(size=(300, 300)) / 17
        for name in ("gamma", "beta", "mean", "var"):
            stored[f"{name}{layer}"] = random.uniform(0.5, 2, 300)
        statistics = [f"{name}{layer}" for name in ("gamma", "beta", "mean", "var")]
        nodes += [
            helper.make_node("Gemm", [value, f"w{layer}"], [f"h{layer}"], f"gemm{layer}"),
            helper.make_node("BatchNormalization", [f"h{layer}", *statistics], [f"n{layer}"], f"bn{layer}"),
            helper.make_node("Relu", [f"n{layer}"], [f"y{layer}"], f"relu{layer}"),
        ]
        value = f"y{layer}"
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", 300)) for name in ("x", value)]
    tensors = [numpy_helper.from_array(each.astype(np.float32), name) for name, each in stored.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("spoilt", [None, 7])
def test_places_are_executed_one_by_one_where_the_whole_is_too_large(
    monkeypatch: pytest.MonkeyPatch, spoilt: int | None
) -> None:
    """24 layers of 90,000 numbers would need 48 MB, each of them 2 MB."""
    monkeypatch.setattr(budget, "ALLOWED", 8 << 20)
    original, folded = deep(), api.fold(deep()).model
    if spoilt is not None:
        bias = next(tensor for tensor in folded.graph.initializer if tensor.name == f"w{spoilt}")
        wrong = numpy_helper.to_array(bias).copy()
        wrong[:, 11] *= 1.001
        bias.CopyFrom(numpy_helper.from_array(wrong, bias.name))
    found = api.check(original, folded)
    told = statuses(found)
    assert {name for name, status in told.items() if status is Status.SKIPPED} == {"L2", "L4", "L5"}
    layer = next(layer for layer in found.layers if layer.layer == "L3")
    if spoilt is None:
        assert found.verdict is Verdict.PROVED
        assert "24 changed places" in layer.because
    else:
        assert found.verdict is Verdict.FAILED
        assert f"gemm{spoilt}" in layer.because
        assert layer.channel == 11


def test_what_is_recorded_lazily_is_read_when_it_is_used_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float64, "LARGE", 1 << 10)
    model, seen = frontend.from_proto(deep(3)), dict[str, float]()
    proto, stored = frontend.in_parts(frontend.as_float64(model, lazily=True))
    assert set(stored) == {"w0", "w1", "w2"}
    assert stored["w1"].dtype == np.float64
    assert stored["w1"] is not stored["w1"]
    record(proto, stored, {"x": np.ones((2, 300), np.float32)}, lambda name, value: seen.update({name: value.sum()}))
    exact = onnx_dialect().exact(model)({"x": np.ones((2, 300), np.float32)})
    assert seen["y2"] == exact["y2"].sum()


def test_large_new_tensors_lie_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = frontend.to_bytes(frontend.fold_model(frontend.from_proto(product()))[0])
    monkeypatch.setattr(spilling, "LARGE", 1 << 10)
    folded = frontend.fold_model(frontend.from_proto(product()))[0]
    tensors = [value.const_value.numpy() for value in folded.graph.initializers.values() if value.const_value]
    assert any(isinstance(tensor, np.memmap) for tensor in tensors)
    assert frontend.to_bytes(folded) == expected

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spilling, "TemporaryFile", full)
    with pytest.raises(EnvironmentFailure, match="No space left"):
        frontend.fold_model(frontend.from_proto(product()))


def test_tensors_in_files_reach_the_runtime(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(product(), path, save_as_external_data=True, location="model.data", size_threshold=0)
    found = api.check(path, product(), level="full")
    assert found.verdict is Verdict.VERIFIED, found.sentence
    assert statuses(found)["L5"] is Status.PASS


def mystery() -> onnx.ModelProto:
    proto = product()
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Mystery", "elsewhere"
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    return proto


def half() -> onnx.ModelProto:
    """A convolution in bfloat16, which the runtime has no kernel for on a CPU."""
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, (2, 3, 1, 1), np.linspace(-1, 1, 6))
    ports = [
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ("n", channels, 4, 4))
        for name, channels in (("x", 3), ("y", 2))
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")], "g", ports[:1], ports[1:], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def odd() -> onnx.ModelProto:
    """No size that is tried is a multiple of 1009."""
    shape = numpy_helper.from_array(np.array([1009, -1]), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", "m"))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1009, None))],
        [shape],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("make", "skipped", "words"),
    [(mystery, "L2 L3 L4 L5", "Mystery"), (half, "L4 L5", "Conv"), (odd, "L2 L3 L4 L5", "no input was found")],
    ids=["unknown operator", "no kernel", "no size"],
)
def test_what_cannot_run_is_skipped_with_its_reason_and_is_no_verdict_at_level_full(
    make: Callable[[], onnx.ModelProto], skipped: str, words: str
) -> None:
    found = api.check(make(), make())
    assert [layer.layer for layer in found.layers if layer.status is Status.SKIPPED] == skipped.split()
    told = [layer for layer in found.layers if layer.status is Status.SKIPPED and layer.layer != "L3"]
    assert all(words in layer.because for layer in told)
    assert found.verdict is (Verdict.NO_VERDICT if make is odd else Verdict.PROVED), "equal graphs need no execution"
    full = api.check(make(), make(), level="full")
    assert full.verdict is Verdict.NO_VERDICT
    assert words in full.sentence
