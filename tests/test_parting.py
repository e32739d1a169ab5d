"""Models that part: behind a mistake nothing is equal any more, yet what stands at the same place still can be told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_build import Net

import bnfold
from bnfold.verify.result import Verification

Change = Callable[[onnx.ModelProto], None]


def chain(*ends: str) -> onnx.ModelProto:
    """Five fake-quantised convolutions and batch norms behind activations, and what is made of their result."""
    net = Net()
    zero, scale, x = net.constant("zero", np.array(0), TensorProto.INT8), net.constant("scale", 0.05), "x"
    for i in range(5):
        x = net.node("QuantizeLinear", [x, scale, zero], f"quantised{i}")
        x = net.node("DequantizeLinear", [x, scale, zero], f"rounded{i}")
        x = net.batch_norm(net.conv(x, 8 if i else 3, 8, name=f"conv{i}"), 8, f"bn{i}")
        x = net.node("HardSwish", [x], f"active{i}")
    for op in ends:
        more = {"to": TensorProto.INT32} if op == "Cast" else {"axis": 1} if op == "ArgMax" else {}
        x = net.node(op, [x], op.lower(), **more)
    model = onnx.ModelProto.FromString(net.model({"x": ("batch", 3, 14, 14)}).SerializeToString())
    kind = {"Cast": TensorProto.INT32, "ArgMax": TensorProto.INT64}.get(next(iter(ends[-1:]), ""), TensorProto.FLOAT)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(x, kind, None))
    return model


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.output[0] == name)


def stored(name: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == name)
        numbers = np.asarray(change(numpy_helper.to_array(tensor).copy()), dtype=np.float32)
        tensor.CopyFrom(numpy_helper.from_array(numbers, name))

    return apply


def skipped(*names: str) -> Change:
    """The operators are gone: who read them reads what they read."""

    def apply(model: onnx.ModelProto) -> None:
        for name in names:
            gone = node(model, name)
            for each in model.graph.node:
                each.input[:] = [gone.input[0] if read == name else read for read in each.input]
            model.graph.node.remove(gone)

    return apply


def other_operator(name: str, op: str) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        node(model, name).op_type = op

    return apply


def negated(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    numbers[0] *= -1
    return numbers


QUANTISERS = [f"{name}{number}" for number in range(5) for name in ("rounded", "quantised")]

WRONG = {
    "a channel negated before all decisions": (chain(), stored("conv0.weight", negated), "conv0"),
    "a channel negated before a last decision": (chain("ArgMax"), stored("conv4.weight", negated), "conv4"),
    "a layer of another size": (chain(), stored("conv2.weight", lambda numbers: numbers * 1.5), "conv2"),
    "a batch norm left out": (chain(), skipped("bn1"), "active1"),
    "one pair of quantisers left out": (chain(), skipped("rounded2", "quantised2"), "2"),
    "every quantiser left out": (chain(), skipped(*QUANTISERS), ""),
    "a rounding left out before a cast": (chain("Round", "Cast"), skipped("round"), "cast"),
    "another rounding before a cast": (chain("Round", "Cast"), other_operator("round", "Floor"), "round"),
}


def compared(reference: onnx.ModelProto, change: Change) -> Verification:
    candidate = onnx.ModelProto.FromString(reference.SerializeToString())
    change(candidate)
    return bnfold.check(reference, candidate)


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_though_nothing_is_equal_behind_it(case: str) -> None:
    reference, change, place = WRONG[case]
    found = compared(reference, change)
    assert found.verdict == "failed", found.sentence
    assert place in next(layer for layer in found.layers if layer.layer == "L3").because


def test_another_order_of_channels_is_no_mistake() -> None:
    order = np.random.default_rng(0).permutation(8)

    def shuffled(model: onnx.ModelProto) -> None:
        stored("conv0.weight", lambda numbers: numbers[order])(model)
        for name in node(model, "bn0").input[1:]:
            stored(name, lambda numbers: numbers[order])(model)
        stored("conv1.weight", lambda numbers: numbers[:, order])(model)

    found = compared(chain(), shuffled)
    assert found.verdict == "verified", found.sentence


def test_two_models_that_have_nothing_in_common_part_at_once() -> None:
    def all_else(model: onnx.ModelProto) -> None:
        for tensor in [each for each in model.graph.initializer if each.name.endswith("weight")]:
            numbers = np.random.default_rng(7).normal(0, 0.5, numpy_helper.to_array(tensor).shape)
            tensor.CopyFrom(numpy_helper.from_array(numbers.astype(np.float32), tensor.name))

    assert compared(chain(), all_else).verdict == "failed"


def test_who_takes_one_image_only_is_not_who_takes_any_number() -> None:
    net = Net()
    net.node("Reshape", [net.node("GlobalAveragePool", [net.conv("x", 3, 8)]), net.integers("shape", 1, 8)], "y")
    candidate = onnx.ModelProto.FromString(net.model({"x": ("batch", 3, 8, 8)}).SerializeToString())
    reference = onnx.ModelProto.FromString(candidate.SerializeToString())
    node(reference, "y").op_type = "Flatten"
    del node(reference, "y").input[1]
    found = bnfold.check(reference, candidate)
    assert found.verdict == "failed", found.sentence
    assert "refuses some inputs" in found.sentence
