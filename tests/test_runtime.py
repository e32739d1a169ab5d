"""onnxruntime as a callable: what it runs, what it refuses, and that it says so without a word on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import runtime
from bnfold.errors import EnvironmentFailure, Exit, MissingDependency
from bnfold.model import Port
from bnfold.runtime import CannotRun, available_providers, census_after_optimisation, session


def model(op: str = "Relu", dtype: int = TensorProto.FLOAT, shape: Any = ("batch", 3), opset: int = 17) -> bytes:
    node = helper.make_node(op, ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, dtype, shape) for name in "xy")
    graph = helper.make_graph([node], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9).SerializeToString()


def conv_and_norm(between: str | None = None) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    constants = {name: random.uniform(0.5, 1, 4).astype(np.float32) for name in ("s", "b", "m", "v")}
    constants["w"] = random.normal(size=(4, 3, 1, 1)).astype(np.float32)
    middle = [helper.make_node(between, ["c"], ["d"])] if between else []
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        *middle,
        helper.make_node("BatchNormalization", ["d" if between else "c", "s", "b", "m", "v"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, c, 4, 4)) for n, c in (("x", 3), ("y", 4)))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(v, n) for n, v in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_session_maps_arrays_to_arrays() -> None:
    run = session(model(), threads=1)
    assert np.array_equal(run({"x": np.array([[-1, 0, 2]], np.float32)})["y"], [[0, 0, 2]])
    assert run.signature.inputs == (Port("x", "float32", ("batch", 3)),)
    assert run.signature.outputs == (Port("y", "float32", ("batch", 3)),)
    assert run.provider == "CPUExecutionProvider"
    assert run.version.count(".") >= 2


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_prepared_run_computes_and_refuses_as_a_call_does(
    device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_DEVICES", {"CPUExecutionProvider": device} if device else {})
    run = session(model(shape=(2, 3)), threads=1)
    run.prepared({"x": np.ones((2, 3), np.float32)})()
    with pytest.raises(CannotRun):
        run.prepared({"x": np.ones((5, 3), np.float32)})()
    with pytest.raises(CannotRun):
        run.prepared({"unknown": np.ones((2, 3), np.float32)})()


def test_what_a_bound_run_computes_stays_where_it_was_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    run = session(model("Neg"), threads=1)
    binding = run._raw.io_binding()
    monkeypatch.setattr(run._raw, "io_binding", lambda: binding)
    run._bound({"x": np.array([[1, 2, 3]], np.float32)}, "cpu")()
    assert np.array_equal(binding.copy_outputs_to_cpu()[0], [[-1, -2, -3]])


def test_a_model_in_half_precision_takes_and_gives_halves() -> None:
    proto = conv_and_norm()
    half = runtime.to_float16(proto)
    run = session(half.SerializeToString())
    assert {port.dtype for port in (*run.signature.inputs, *run.signature.outputs)} == {"float16"}
    x = np.ones((1, 3, 4, 4))
    expected = session(conv_and_norm().SerializeToString())({"x": x.astype(np.float32)})["y"]
    assert np.allclose(run({"x": x.astype(np.float16)})["y"], expected, rtol=1e-2)
    with pytest.raises(CannotRun, match="float16"):
        runtime.to_float16("no model")  # type: ignore[arg-type]


def test_threads_that_do_not_spin_compute_the_same() -> None:
    x = {"x": np.array([[-1, 0, 2]], np.float32)}
    assert np.array_equal(session(model(), threads=2, spins=False)(x)["y"], session(model())(x)["y"])


def test_a_file_may_have_external_data(tmp_path: Path) -> None:
    proto = conv_and_norm()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.data", size_threshold=0)
    x = {"x": np.ones((1, 3, 4, 4), np.float32)}
    expected = session(conv_and_norm().SerializeToString(), optimise=False)(x)["y"]
    assert np.array_equal(session(path, optimise=False)(x)["y"], expected)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "bool", "bfloat16"])
def test_every_type_goes_in_and_comes_out(dtype: str) -> None:
    numpy_type = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    run = session(model("Identity", helper.np_dtype_to_tensor_dtype(np.dtype(numpy_type))))
    assert run.signature.inputs[0].dtype == dtype
    x = np.array([[0, 1, 1]]).astype(numpy_type)
    y = run({"x": x})["y"]
    assert y.dtype == x.dtype
    assert np.array_equal(y, x)


@pytest.mark.parametrize(
    ("proto", "because"),
    [
        (model("Nonsense"), "Nonsense"),
        (model("Relu", TensorProto.BFLOAT16), "Relu"),
        (b"no model", "parsing"),
    ],
)
def test_a_model_that_it_refuses_is_one_sentence(proto: bytes, because: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CannotRun, match=because) as caught:
        session(proto)
    assert caught.value.code == "cannot-run"
    assert caught.value.exit_code == Exit.NO_VERDICT
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "feeds",
    [{"x": np.zeros((1, 4), np.float32)}, {"x": np.zeros((1, 3))}, {}, {"z": np.zeros((1, 3), np.float32)}],
    ids=["size", "type", "nothing", "name"],
)
def test_an_input_that_it_refuses_is_one_sentence(feeds: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run = session(model())
    with pytest.raises(CannotRun):
        run(feeds)
    assert capfd.readouterr() == ("", "")


def test_where_in_the_source_of_the_runtime_is_not_told() -> None:
    shape = numpy_helper.from_array(np.array([-1, 7], np.int64), "shape")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in (("x", ["n"]), ("y", None))]
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], "g", ends[:1], ends[1:], [shape])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    run = session(proto.SerializeToString())
    with pytest.raises(CannotRun, match="cannot be reshaped") as caught:
        run({"x": np.zeros(3, np.float32)})
    assert ".h:" not in str(caught.value)


def test_a_missing_file_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(CannotRun):
        session(tmp_path / "missing.onnx")


@pytest.mark.parametrize("provider", ["cuda", "CUDAExecutionProvider", "tensorrt", "openvino", "Imaginary"])
def test_a_provider_that_is_not_there_is_said_with_those_that_are(provider: str) -> None:
    if runtime.PROVIDERS.get(provider, provider) in available_providers():
        pytest.skip(f"{provider} is installed")
    with pytest.raises(EnvironmentFailure, match="CPUExecutionProvider") as caught:
        session(model(), provider=provider)
    assert caught.value.code == "provider-missing"
    assert caught.value.hint


def test_a_silent_fallback_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    class Fallen:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Fallen())
    with pytest.raises(EnvironmentFailure, match="fell back to CPU") as caught:
        session(model(), provider="cuda")
    assert caught.value.code == "provider-missing"


def test_without_onnxruntime_the_hint_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency) as caught:
        session(model())
    assert caught.value.hint == 'pip install "bnfold[cpu]"'
    assert available_providers() == ()


def test_options_of_the_provider_and_threads_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    seen: dict[str, Any] = {}

    def record(model: Any, options: Any, providers: Any) -> Any:
        seen.update(threads=options.intra_op_num_threads, level=options.graph_optimization_level, providers=providers)
        return SimpleNamespace(get_providers=lambda: [providers[0][0]], get_inputs=list, get_outputs=list)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    session(model(), provider_options={"arena": "1"}, threads=3, optimise=False)
    assert seen["threads"] == 3
    assert seen["level"] == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert seen["providers"] == [("CPUExecutionProvider", {"arena": "1"})]


def test_the_census_counts_what_the_runtime_leaves() -> None:
    assert census_after_optimisation(conv_and_norm().SerializeToString())["BatchNormalization"] == 0
    assert census_after_optimisation(conv_and_norm("Exp").SerializeToString())["BatchNormalization"] == 1
