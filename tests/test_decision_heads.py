"""A model that ends in a decision: another decision on the same numbers is seen."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper
from onnx_build import Net

import bnfold


def head(op: str) -> onnx.ModelProto:
    """A convolution, an activation, and which channel is largest or smallest."""
    net = Net()
    net.node(op, [net.node("HardSwish", [net.conv("x", 3, 6)])], axis=1, keepdims=0)
    model = onnx.ModelProto.FromString(net.model({"x": ("batch", 3, 8, 8)}).SerializeToString())
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(model.graph.node[-1].output[0], TensorProto.INT64, None))
    return model


def test_another_decision_is_not_equivalent() -> None:
    assert bnfold.check(head("ArgMax"), head("ArgMin")).verdict == "failed"


def test_the_same_decision_is_equivalent() -> None:
    assert bnfold.check(head("ArgMax"), head("ArgMax")).verdict in ("verified", "proved")
