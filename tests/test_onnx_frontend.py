"""Rows: one small ONNX graph each, and what becomes of its batch norms. Then the laws of reading and writing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto, helper, numpy_helper
from onnx_build import Net, feeds_of, run64, tensor

from bnfold.algebra import ChannelAffine, LinearOp, Parameters
from bnfold.errors import EnvironmentFailure, Rejected
from bnfold.folding import FoldOptions
from bnfold.frontends import onnx as frontend
from bnfold.frontends.onnx.rounding import rounded
from bnfold.graph import Reason, Refusal
from bnfold.outcome import FoldReport
from bnfold.rules import into_producer
from bnfold.verify.certificate import derive
from bnfold.verify.result import Status

Verdict = Reason | None
Build = Callable[[], onnx.ModelProto]
IMAGE = {"x": ("n", 4, 6, 5)}
NO_PRODUCER = Reason.NO_LINEAR_PRODUCER


def conv_then_bn(**more: object) -> onnx.ModelProto:
    net = Net(**{key: more.pop(key) for key in ("opset", "ir_version", "dtype") if key in more})  # type: ignore[arg-type]
    net.batch_norm(net.conv("x", 4, 6, **more), 6)  # type: ignore[arg-type]
    return net.model(IMAGE)


def bn_then_conv(**more: object) -> onnx.ModelProto:
    net = Net()
    net.conv(net.batch_norm("x", 4), 4, 6, **more)  # type: ignore[arg-type]
    return net.model(IMAGE)


def conv_of_rank(rank: int) -> onnx.ModelProto:
    net = Net()
    net.batch_norm(net.conv("x", 4, 6, kernel=[2] * rank), 6)
    return net.model({"x": (2, 4, *[4] * rank)})


def conv_with_empty_bias() -> onnx.ModelProto:
    net = Net()
    net.batch_norm(net.node("Conv", ["x", net.constant("w", net.numbers(6, 4, 3, 3)), ""]), 6)
    return net.model(IMAGE)


def transposed(before: bool = False, **more: object) -> onnx.ModelProto:
    net = Net()
    if before:
        net.conv_transpose(net.batch_norm("x", 4), 4, 4, **more)  # type: ignore[arg-type]
    else:
        net.batch_norm(net.conv_transpose("x", 4, 4, **more), 4)  # type: ignore[arg-type]
    return net.model(IMAGE)


def gemm(c: tuple[int, ...] | None = None, before: bool = False, n: int = 5, rows: object = "n", **more: object):
    """`x` of shape (rows, 4) times (4, n); `c` is the shape of C."""
    net = Net()
    x = net.batch_norm("x", rows if more.get("transA") and before else 4) if before else "x"  # type: ignore[arg-type]
    weight = net.constant("w", net.numbers(n, 4) if more.get("transB") else net.numbers(4, n))
    bias = [] if c is None else [net.constant("c", net.numbers(*c))]
    y = net.node("Gemm", [x, weight, *bias], "gemm", **more)
    if not before:
        net.batch_norm(y, n)
    return net.model({"x": (4, rows) if more.get("transA") else (rows, 4)})


def matmul(
    x: tuple[object, ...] = ("n", 4), bias: tuple[int, ...] | None = None, left: bool = False, before: bool = False
) -> onnx.ModelProto:
    net = Net()
    data = net.batch_norm("x", 4) if before else "x"
    weight = net.constant("w", net.numbers(5, 4) if left else net.numbers(4, 5))
    y = net.node("MatMul", [weight, data] if left else [data, weight], "matmul")
    if bias is not None:
        y = net.node("Add", [net.constant("b", net.numbers(*bias)), y], "sum")
    if not before:
        net.batch_norm(y, 5)
    return net.model({"x": x})  # type: ignore[dict-item]


def matmul_of_many_leading_ones() -> onnx.ModelProto:
    net = Net()
    net.batch_norm(net.node("MatMul", ["x", net.constant("w", net.numbers(1, 4, 5))]), 1)
    return net.model({"x": ("n", 4)})


def between(*nodes: tuple[str, dict[str, object]], x: tuple[object, ...] = (4, 4)) -> onnx.ModelProto:
    """MatMul, some operators without weights, BN; all sizes are 4, so that a wrong axis would go unnoticed."""
    net = Net()
    y = net.node("MatMul", ["x", net.constant("w", net.numbers(4, 4))])
    for op, attributes in nodes:
        y = net.node(op, [y, net.integers("to", 4, 4)] if op == "Reshape" else [y], **attributes)
    net.batch_norm(y, 4)
    return net.model({"x": x})  # type: ignore[dict-item]


def conv_plus(*shape: int) -> onnx.ModelProto:
    """Conv, Add of a constant that is not per channel although some sizes coincide, BN."""
    net = Net()
    y = net.conv("x", 4, 4, pads=[1, 1, 1, 1])
    net.batch_norm(net.node("Add", [y, net.constant("c", net.numbers(*shape))]), 4)
    return net.model({"x": (4, 4, 4, 4)})


def false_rank() -> onnx.ModelProto:
    """A file that says rank 2 of a value of rank 3: on rank 2 the last axis would be the channel axis."""
    net = Net()
    net.batch_norm(net.node("MatMul", [net.node("Relu", ["x"], "y"), net.constant("w", net.numbers(4, 4))], "z"), 4)
    return net.model({"x": (4, 4, 4)}, value_info=[claim("y"), claim("z")])


def unknown_rank() -> onnx.ModelProto:
    """The file says a rank that nothing enforces."""
    net = Net()
    y = net.node("Anything", ["x"], "y", domain="custom")
    net.batch_norm(net.node("MatMul", [y, net.constant("w", net.numbers(4, 4))]), 4)
    return net.model({"x": (4, 4)}, value_info=[claim("y")])


def claim(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4])


def after(op: str, domain: str = "") -> onnx.ModelProto:
    net = Net()
    net.batch_norm(net.node(op, ["x"], domain=domain), 4)
    return net.model(IMAGE)


def norm(opset: int = 17, dtype: int = TensorProto.FLOAT, **more: object) -> onnx.ModelProto:
    net = Net(opset=opset, dtype=dtype)
    net.batch_norm(net.conv("x", 4, 6), 6, **more)  # type: ignore[arg-type]
    outputs = more.get("outputs", ["bn"])
    return net.model(IMAGE, outputs=[name for name in outputs if name and "unused" not in name])  # type: ignore[union-attr]


def stored(**arrays: object) -> onnx.ModelProto:
    return norm(stored={key: np.array(value, dtype=float) for key, value in arrays.items()})


def shared_output(reader: str) -> onnx.ModelProto:
    net = Net()
    y = net.conv("x", 4, 6)
    net.batch_norm(y, 6)
    outputs = ["bn"]
    if reader == "output":
        outputs.append(y)
    elif reader == "second norm":
        net.batch_norm(y, 6, name="bn2")
        outputs.append("bn2")
    elif reader == "shape":
        net.node("Cast", [net.node("Shape", [y])], "size", to=TensorProto.FLOAT)
        outputs.append("size")
    else:
        outputs.append(net.node("Relu", [y], "other"))
    return net.model(IMAGE, outputs)


def branches(captured: bool) -> onnx.ModelProto:
    """An If whose branch holds the BN, and the Conv too unless that is captured from outside."""
    net, body = Net(), Net(seed=5)
    if captured:
        net.conv("x", 4, 6, name="y")
    else:
        body.conv("x", 4, 6, name="y")
    body.batch_norm("y", 6, name="then")
    other = [helper.make_node("Identity", ["y" if captured else "long"], ["else"])]
    outs = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] for name in ("then", "else")]
    then_branch = helper.make_graph(body.nodes, "then_body", [], outs[0], body.constants)
    else_branch = helper.make_graph(other, "else_body", [], outs[1])
    if not captured:
        net.conv("x", 4, 6, name="long")
    net.constants.append(numpy_helper.from_array(np.array(True), "condition"))
    net.node("If", ["condition"], "out", then_branch=then_branch, else_branch=else_branch)
    return net.model(IMAGE)


def in_function() -> onnx.ModelProto:
    """A model-local function with Conv and BN, whose parameters are Constant nodes; called twice."""
    net, body = Net(), Net(seed=5)
    body.batch_norm(body.conv("a", 4, 4, pads=[1, 1, 1, 1]), 4)
    nodes = [helper.make_node("Constant", [], [constant.name], value=constant) for constant in body.constants]
    opsets = [helper.make_opsetid("", 17)]
    net.functions.append(helper.make_function("local", "Block", ["a"], ["bn"], nodes + body.nodes, opsets))
    net.node("Block", [net.node("Block", ["x"], domain="local")], domain="local")
    return net.model(IMAGE)


def overridable(ir_version: int = 8, name: str = "bn.weight") -> onnx.ModelProto:
    net = Net(ir_version=ir_version, opset=17 if ir_version > 3 else 8)
    net.batch_norm(net.conv("x", 4, 6, name="conv"), 6)
    declare = [constant.name for constant in net.constants] if ir_version < 4 else [name]
    return net.model(IMAGE, declare=declare)


def quantised(weight: bool) -> onnx.ModelProto:
    net = Net(opset=17)
    scale, zero = net.constant("scale", 0.1), "zero"
    net.constants.append(numpy_helper.from_array(np.array(0, dtype=np.int8), zero))
    if weight:
        net.constants.append(numpy_helper.from_array(np.ones((6, 4, 3, 3), dtype=np.int8), "q"))
        y = net.node("Conv", ["x", net.node("DequantizeLinear", ["q", scale, zero])])
    else:
        quantise = net.node("QuantizeLinear", [net.conv("x", 4, 6), scale, zero])
        y = net.node("DequantizeLinear", [quantise, scale, zero])
    net.batch_norm(y, 6)
    return net.model(IMAGE)


def computed_statistics() -> onnx.ModelProto:
    """Frozen BN as some exporters write it: the variance is computed, the scale comes from a Constant node."""
    net = Net()
    y = net.conv("x", 4, 3)
    deviation = net.constant("deviation", [0.5, 1.25, 2.0])
    variance = net.node("Mul", [deviation, deviation])
    gamma = net.node("Constant", [], value=tensor("g", [1.0, 0.5, 2.0]))
    rest = [net.constant("beta", net.numbers(3)), net.constant("mean", net.numbers(3))]
    net.node("BatchNormalization", [y, gamma, *rest, variance], "bn")
    return net.model(IMAGE)


def computed_zero_bias() -> onnx.ModelProto:
    """What torch's exporter writes for a Conv without bias, once before a BN and once elsewhere."""
    net = Net(opset=18)
    zero, one = net.constant("zero", 0.0), net.integers("one", 1)
    for name, x in (("first", "x"), ("second", "bn")):
        weight = net.constant(f"{name}.weight", net.numbers(4, 4, 3, 3))
        size = net.node("Expand", [net.node("Shape", [weight], start=0, end=1), one])
        bias = net.node("Expand", [net.node("CastLike", [zero, x]), size])
        y = net.node("Conv", [x, weight, bias], name, pads=[1, 1, 1, 1])
        if name == "first":
            net.batch_norm(y, 4)
    return net.model(IMAGE)


def cast_weight(kind: int) -> onnx.ModelProto:
    """A float16 Conv whose weight is stored as `kind` and cast at run time, as mixed-precision converters leave it."""
    net = Net(dtype=TensorProto.FLOAT16)
    wide = net.constant("w", net.numbers(6, 4, 3, 3), kind)
    net.batch_norm(net.node("Conv", ["x", net.node("Cast", [wide], to=TensorProto.FLOAT16)]), 6)
    return net.model(IMAGE)


def looped() -> onnx.ModelProto:
    """Conv and BN in the body of a Loop, with parameters of the outer graph."""
    net, body = Net(), Net(seed=5)
    body.batch_norm(body.conv("state", 4, 4, pads=[1, 1, 1, 1], bias=True), 4)
    net.constants = [*body.constants, numpy_helper.from_array(np.array(3), "times")]
    body.node("Identity", ["go"], "still")
    kinds = {"i": (TensorProto.INT64, []), "go": (TensorProto.BOOL, []), "state": (TensorProto.FLOAT, None)}
    given = [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    made = [
        helper.make_tensor_value_info("still", TensorProto.BOOL, []),
        helper.make_tensor_value_info("bn", TensorProto.FLOAT, None),
    ]
    net.node("Loop", ["times", "", "x"], "out", body=helper.make_graph(body.nodes, "body", given, made))
    return net.model(IMAGE)


def bomb() -> onnx.ModelProto:
    """Two hundred bytes that would be four terabytes."""
    net = Net()
    bias = net.node("Expand", [net.constant("zero", 0.0), net.integers("sizes", 1000, 1000, 1000, 1000)])
    net.batch_norm(net.node("Conv", ["x", net.constant("w", net.numbers(6, 4, 3, 3)), bias]), 6)
    return net.model(IMAGE)


def chain() -> onnx.ModelProto:
    net = Net()
    y = net.conv(net.batch_norm("x", 4, name="a"), 4, 6)
    net.batch_norm(net.batch_norm(y, 6, name="b"), 6, name="c")
    return net.model(IMAGE)


def behind_identity() -> onnx.ModelProto:
    net = Net()
    y = net.node("Identity", [net.conv("x", 4, 4, kernel=[1, 1])])
    net.conv(net.node("Identity", [net.batch_norm(y, 4)]), 4, 4)
    return net.model(IMAGE)


def siamese(norms: int = 1) -> onnx.ModelProto:
    """One weight in two Conv nodes; the BN parameters are shared too, or not."""
    net = Net()
    weight = net.constant("shared.weight", net.numbers(6, 4, 3, 3))
    for side in (0, 1):
        y = net.node("Conv", [f"x{side}", weight], f"conv{side}")
        if norms == 2 or side == 0:
            net.batch_norm(y, 6, name=f"bn{side}")
        else:
            stored = [f"bn0.{key}" for key in ("weight", "bias", "mean", "var")]
            net.node("BatchNormalization", [y, *stored], "bn1")
    return net.model({"x0": (2, 4, 6, 5), "x1": (2, 4, 6, 5)}, ["bn0", "bn1"])


def matmul_from_both_sides() -> onnx.ModelProto:
    """One square matrix on the right and on the left: the biases have equal bytes and different shapes."""
    net = Net()
    weight = net.constant("w", net.numbers(4, 4))
    net.batch_norm(net.node("MatMul", ["x0", weight]), 4, name="bn0")
    stored = [f"bn0.{key}" for key in ("weight", "bias", "mean", "var")]
    net.node("BatchNormalization", [net.node("MatMul", [weight, "x1"]), *stored], "bn1")
    return net.model({"x0": (3, 4), "x1": (2, 4, 4)}, ["bn0", "bn1"])


def before_identities() -> onnx.ModelProto:
    """Two Identity nodes in a row, and one beside them, between a BN and the operators that read it."""
    net = Net()
    y = net.batch_norm("x", 4)
    twice = net.node("Identity", [net.node("Identity", [y])])
    net.conv(twice, 4, 5, (1, 1), name="first")
    net.conv(net.node("Identity", [y]), 4, 6, (1, 1), name="second")
    return net.model(IMAGE, ["first", "second"])


def unnamed() -> onnx.ModelProto:
    net = Net()
    net.batch_norm(net.conv(net.batch_norm(net.conv("x", 4, 4), 4, name="a"), 4, 4), 4, name="b")
    for node in net.nodes:
        node.name = "" if node.op_type == "Conv" else "same"
    return net.model(IMAGE)


ROWS: dict[str, tuple[Build, list[Verdict]]] = {
    # Conv
    "conv 1d": (lambda: conv_of_rank(1), [None]),
    "conv 2d": (conv_then_bn, [None]),
    "conv 3d": (lambda: conv_of_rank(3), [None]),
    "conv with bias": (lambda: conv_then_bn(bias=True), [None]),
    "conv with empty third input": (conv_with_empty_bias, [None]),
    "conv grouped, strided, dilated": (lambda: conv_then_bn(group=2, strides=[2, 1], dilations=[1, 2]), [None]),
    "conv padded": (lambda: conv_then_bn(pads=[1, 0, 1, 2]), [None]),
    "bn before conv": (bn_then_conv, [None]),
    "bn before grouped conv": (lambda: bn_then_conv(group=2, bias=True), [None]),
    "bn before conv, VALID": (lambda: bn_then_conv(auto_pad="VALID"), [None]),
    "bn before padded conv": (lambda: bn_then_conv(pads=[0, 0, 1, 0]), [Reason.PADDED_BORDER]),
    "bn before conv, SAME": (lambda: bn_then_conv(auto_pad="SAME_UPPER"), [Reason.PADDED_BORDER]),
    "bn before 1x1 conv, SAME": (lambda: bn_then_conv(kernel=[1, 1], auto_pad="SAME_LOWER"), [None]),
    # ConvTranspose
    "transposed": (transposed, [None]),
    "transposed, groups": (lambda: transposed(group=2, bias=True), [None]),
    "transposed, depthwise": (lambda: transposed(group=4), [None]),
    "transposed, strided": (lambda: transposed(group=2, strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]), [None]),
    "bn before transposed": (lambda: transposed(before=True, group=2), [Reason.PADDED_BORDER]),
    "bn before transposed of one tap": (lambda: transposed(before=True, kernel=[1, 1], group=2), [None]),
    "bn before strided one tap": (
        lambda: transposed(before=True, kernel=[1, 1], strides=[2, 2]),
        [Reason.PADDED_BORDER],
    ),
    # Gemm
    "gemm without C": (gemm, [None]),
    "gemm, C ()": (lambda: gemm((), alpha=0.5, beta=2.0), [None]),
    "gemm, C (1,)": (lambda: gemm((1,), beta=0.3), [None]),
    "gemm, C (N,)": (lambda: gemm((5,), alpha=0.3, transB=1), [None]),
    "gemm, C (1, N)": (lambda: gemm((1, 5), alpha=3.0, beta=0.1), [None]),
    "gemm, transA": (lambda: gemm((5,), transA=1, alpha=0.3, rows=3), [None]),
    "gemm, C (M, 1)": (lambda: gemm((5, 1), rows=5), [Reason.NOT_PER_CHANNEL]),
    "gemm, C (M, N)": (lambda: gemm((5, 5), rows=5), [Reason.NOT_PER_CHANNEL]),
    "bn before gemm": (lambda: gemm((5,), before=True, alpha=0.3, beta=0.7), [None]),
    "bn before gemm, no C": (lambda: gemm(before=True, transB=1), [None]),
    "bn before gemm, transA": (lambda: gemm(before=True, transA=1, rows=4), [Reason.AXIS_DIFFERS]),
    # MatMul
    "matmul": (matmul, [None]),
    "matmul + bias": (lambda: matmul(bias=(5,)), [None]),
    "matmul + bias (1, N)": (lambda: matmul(bias=(1, 5)), [None]),
    "matmul + number": (lambda: matmul(bias=()), [None]),
    "matmul of rank 3": (lambda: matmul((2, 5, 4)), [Reason.AXIS_DIFFERS]),
    "matmul + constant of higher rank": (lambda: matmul(bias=(1, 1, 5)), [Reason.NOT_PER_CHANNEL] * 2),
    "matmul + constant per row": (lambda: matmul((5, 4), bias=(5, 1)), [Reason.AXIS_DIFFERS] * 2),
    "matmul, constant on the left": (lambda: matmul((2, 4, 5), left=True), [None]),
    "matmul, left, + bias (M, 1)": (lambda: matmul((2, 4, 5), bias=(5, 1), left=True), [None]),
    "matmul, left, + constant (M,)": (lambda: matmul((2, 4, 5), (5,), left=True), [Reason.AXIS_DIFFERS] * 2),
    "matmul, left, rank 2": (lambda: matmul((4, 5), left=True), [Reason.AXIS_DIFFERS]),
    "bn before matmul": (lambda: matmul(before=True), [None]),
    "bn before matmul of rank 3": (lambda: matmul((2, 4, 4), before=True), [Reason.AXIS_DIFFERS]),
    "bn before matmul + bias": (lambda: matmul(bias=(5,), before=True), [None]),
    "bn before matmul, left": (lambda: matmul((2, 4, 5), left=True, before=True), [None]),
    "matmul with a leading one": (matmul_of_many_leading_ones, [None]),
    "matmul, transpose, bn": (lambda: between(("Transpose", {"perm": [1, 0]})), [Reason.AXIS_DIFFERS]),
    "matmul, reshape, bn": (lambda: between(("Reshape", {}), x=(4, 4)), [None]),
    "a false value_info": (false_rank, [Reason.AXIS_DIFFERS]),
    "a rank that nothing tells": (unknown_rank, [Reason.AXIS_UNKNOWN]),
    # constants that are not per channel
    "conv + (W,)": (lambda: conv_plus(4), [Reason.AXIS_DIFFERS] * 2),
    "conv + (1, 1, H, 1)": (lambda: conv_plus(1, 1, 4, 1), [Reason.AXIS_DIFFERS] * 2),
    "conv + (N, 1, 1, 1)": (lambda: conv_plus(4, 1, 1, 1), [Reason.AXIS_DIFFERS] * 2),
    # neighbours
    "bn of an input": (lambda: after("Relu"), [NO_PRODUCER]),
    "unknown operator": (lambda: after("Frobnicate"), [Reason.UNKNOWN_OPERATOR]),
    "custom domain": (lambda: after("Relu", "custom"), [Reason.UNKNOWN_OPERATOR]),
    "quantised weight": (lambda: quantised(weight=True), [Reason.QUANTISED]),
    "quantised value": (lambda: quantised(weight=False), [Reason.QUANTISED]),
    # the batch norm itself
    "opset 7": (lambda: norm(7), [None]),
    "opset 9": (lambda: norm(9, momentum=0.5), [None]),
    "opset 9, spatial": (lambda: norm(8, spatial=0), [Reason.UNSUPPORTED_ATTRIBUTE]),
    "opset 14": (lambda: norm(14, epsilon=0.1), [None]),
    "opset 22": (lambda: norm(22), [None]),
    "opset 6": (lambda: norm(6, is_test=1), [Reason.OLD_OPSET]),
    "training mode": (lambda: norm(15, training_mode=1), [Reason.BATCH_STATISTICS]),
    "training mode, outputs": (
        lambda: norm(15, training_mode=1, outputs=["bn", "m", "v"]),
        [Reason.BATCH_STATISTICS],
    ),
    "extra outputs used": (lambda: norm(15, outputs=["bn", "m", "v"]), [Reason.EXTRA_OUTPUTS]),
    "five outputs mean training": (
        lambda: norm(9, outputs=["bn", "unused1", "unused2", "unused3", "unused4"]),
        [Reason.BATCH_STATISTICS],
    ),
    "five outputs, four empty": (lambda: norm(9, outputs=["bn", "", "", "", ""]), [None]),
    "NaN": (lambda: stored(mean=[0, 0, np.nan, 0, 0, 0]), [Reason.NON_FINITE]),
    "infinite scale": (lambda: stored(weight=[1, 1, np.inf, 1, 1, 1]), [Reason.NON_FINITE]),
    "negative variance": (lambda: stored(var=[1, 1, 1, -1, 1, 1]), [Reason.VARIANCE_NOT_POSITIVE]),
    "statistics of shape (1,)": (lambda: stored(mean=[0.5]), [Reason.NOT_PER_CHANNEL]),
    "computed statistics": (computed_statistics, [None]),
    # number types
    "float16": (lambda: norm(dtype=TensorProto.FLOAT16), [None]),
    "weight cast from float32": (lambda: cast_weight(TensorProto.FLOAT), [None]),
    "weight cast from bfloat16": (lambda: cast_weight(TensorProto.BFLOAT16), [None]),
    "double": (lambda: norm(dtype=TensorProto.DOUBLE), [None]),
    # who else reads
    "output": (lambda: shared_output("output"), [Reason.IS_GRAPH_OUTPUT]),
    "two norms": (lambda: shared_output("second norm"), [Reason.SHARED_OUTPUT] * 2),
    "another reader": (lambda: shared_output("relu"), [Reason.SHARED_OUTPUT]),
    "a reader of the shape": (lambda: shared_output("shape"), [None]),
    "captured": (lambda: branches(captured=True), [Reason.CAPTURED_BY_SUBGRAPH]),
    "inside a branch": (lambda: branches(captured=False), [None]),
    "inside a loop": (looped, [None]),
    "inside a function": (in_function, [None]),
    "overridable statistics": (overridable, [Reason.PARAMETER_NOT_CONSTANT]),
    "overridable weight": (lambda: overridable(name="conv.weight"), [Reason.PARAMETER_NOT_CONSTANT]),
    "all initializers are inputs, IR 3": (lambda: overridable(3), [None]),
    # structure
    "chain": (chain, [None, None, None]),
    "identities between": (behind_identity, [None]),
    "computed zero bias": (computed_zero_bias, [None]),
    "unnamed and namesakes": (unnamed, [None, None]),
    "siamese": (siamese, [None, None]),
    "one matrix on both sides": (matmul_from_both_sides, [None, None]),
    "bn before Identity nodes": (before_identities, [None]),
}


@pytest.mark.parametrize(("build", "verdicts"), ROWS.values(), ids=ROWS)
def test_row(build: Build, verdicts: list[Verdict]) -> None:
    model = frontend.from_proto(build())
    before = frontend.to_bytes(model)
    folded, report = frontend.fold_model(model)
    assert outcomes(report) == verdicts
    assert frontend.to_bytes(model) == before, "the input was changed"
    if None not in verdicts:
        assert frontend.to_bytes(folded) == before, "nothing folded, yet the model changed"
        return
    frontend.from_bytes(frontend.to_bytes(folded))  # valid
    left = sum(node.op_type == "BatchNormalization" for node in every_node(folded))
    assert left == sum(verdict is not None for verdict in verdicts)
    assert frontend.signature(folded) == frontend.signature(model)
    tolerance = 2e-2 if "FLOAT16" in str(model.graph.inputs[0].type) else 2e-5
    assert_same(model, folded, tolerance)


FOLDING = {name: row for name, row in ROWS.items() if None in row[1]}


@pytest.mark.parametrize(("build", "verdicts"), FOLDING.values(), ids=FOLDING)
def test_row_in_float64(build: Build, verdicts: list[Verdict]) -> None:
    wide = frontend.as_float64(frontend.from_proto(build()))
    folded, report = frontend.fold_model(wide)
    assert outcomes(report) == verdicts
    assert_same(wide, folded, 1e-12)


def outcomes(report: FoldReport) -> list[Verdict]:
    return [outcome.refusal.reason if outcome.refusal else None for outcome in report.outcomes]


def every_node(model: ir.Model) -> list[ir.Node]:
    return [*model.graph.all_nodes(), *(node for function in model.functions.values() for node in function)]


def assert_same(model: ir.Model, folded: ir.Model, tolerance: float) -> None:
    feeds = feeds_of(model)
    expected, found = run64(model, feeds), run64(folded, feeds)
    assert len(expected) == len(found) > 0
    for a, b in zip(expected, found, strict=True):
        assert np.isfinite(a).all()
        assert_allclose(b, a, rtol=tolerance, atol=tolerance)


# Who stands in the way, and where.


@pytest.mark.parametrize(
    "name", [name for name, (_, verdicts) in ROWS.items() if verdicts == [NO_PRODUCER] and name != "output"]
)
def test_no_linear_producer(name: str) -> None:
    graph = frontend.OnnxGraph(frontend.from_proto(ROWS[name][0]()))
    node = graph.affines()[0]
    affine = graph.read(node)
    assert isinstance(affine, ChannelAffine)
    refusal = into_producer(graph, node, affine)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.NO_LINEAR_PRODUCER


def test_a_refusal_names_the_blocker() -> None:
    _, report = frontend.fold_model(frontend.from_proto(shared_output("relu")))
    refusal = report.outcomes[0].refusal
    assert refusal is not None
    assert refusal.blocker == "other_node"


def test_unnamed_nodes_and_namesakes_are_called_by_their_output() -> None:
    _, report = frontend.fold_model(frontend.from_proto(unnamed()))
    assert [(o.site.name, o.into[0].name) for o in report.outcomes] == [("a", "conv0"), ("b", "conv2")]


def taken_over() -> onnx.ModelProto:
    """The result of an unnamed Conv takes the name of the output, and so does that of an unnamed Mul that stays."""
    net = Net()
    y = net.batch_norm(net.conv("x", 4, 4, name="conv"), 4)
    z = net.node("Mul", [net.node("Relu", ["x"]), net.constant("half", 0.5 * np.ones((4, 1, 1)))], "mul")
    net.node("Sub", [z, net.constant("zero", np.zeros(1))], "sub")
    for node in net.nodes:
        node.name = "" if node.op_type in ("Conv", "Mul") else node.name
    return net.model(IMAGE, [y, "sub"])


def bereft() -> onnx.ModelProto:
    """Conv and batch norm have one name; once the batch norm is gone, the Conv has it for itself."""
    proto = conv_then_bn()
    for node in proto.graph.node:
        node.name = "same"
    return proto


@pytest.mark.parametrize("build", [taken_over, bereft, unnamed])
def test_a_node_is_called_after_the_fold_as_it_was_before(build: Build) -> None:
    model = frontend.from_proto(build())
    folded, report = frontend.fold_model(model)
    before, after = frontend.evidence(model), frontend.evidence(folded)
    assert after.linears.keys() == before.linears.keys()
    assert after.affines.keys() == before.affines.keys() - {row.site.name for row in report.outcomes if row.folded}
    layer = derive(before, after, report)
    assert layer.status is Status.PASS, layer.because


@pytest.mark.parametrize("reader", ["Identity", "Shape"])
def test_a_batch_norm_whose_contents_nobody_reads_has_its_line(reader: str) -> None:
    net = Net()
    y = net.node("Relu", [net.conv("x", 4, 4, name="conv")])
    seen = net.node(reader, [net.batch_norm(y, 4)])
    if reader == "Shape":
        sliced = net.node("Slice", [seen, net.integers("start", 1), net.integers("end", 2)])
        bias = net.node("Expand", [net.constant("zero", np.zeros(1)), sliced])
        weight = net.constant("weight", net.numbers(4, 4, 1, 1))
        y = net.batch_norm(net.node("Conv", [y, weight, bias]), 4, name="second")
    model = frontend.from_proto(net.model(IMAGE, [y]))
    folded, report = frontend.fold_model(model)
    assert report.outcomes[0].site.name == "bn_node"
    assert sum(node.op_type == "BatchNormalization" for node in folded.graph) == report.left


def test_a_matmul_and_its_bias_are_one_node_named_by_the_matmul() -> None:
    _, report = frontend.fold_model(frontend.from_proto(matmul(bias=(5,))))
    assert [site.name for site in report.outcomes[0].into] == ["matmul_node"]


def test_a_site_knows_module_and_source() -> None:
    proto = conv_then_bn()
    notes = {
        "pkg.torch.onnx.name_scopes": "['', 'layer1', 'layer1.bn', 'batch_norm']",
        "pkg.torch.onnx.stack_trace": 'File "/a/net.py", line 7, in forward\n    x\n'
        'File "/b/site-packages/torch/nn/bn.py", line 9, in forward\n    y',
    }
    for key, value in notes.items():
        proto.graph.node[1].metadata_props.add(key=key, value=value)
    _, report = frontend.fold_model(frontend.from_proto(proto))
    assert report.outcomes[0].site.module == "layer1.bn"
    assert report.outcomes[0].site.source == ("net.py", 7)


def test_an_attribute_that_no_lens_names_is_refused() -> None:
    for position, op in ((0, "Conv"), (1, "BatchNormalization")):
        proto = conv_then_bn()
        proto.graph.node[position].attribute.append(helper.make_attribute("surprise", 1))
        _, report = frontend.fold_model(ir.from_proto(proto))
        assert outcomes(report) == [Reason.UNSUPPORTED_ATTRIBUTE], op


# Numbers.


def test_parameters_are_rounded_once() -> None:
    model = frontend.from_proto(conv_then_bn(bias=True))
    folded, _ = frontend.fold_model(model)
    wide, _ = frontend.fold_model(frontend.as_float64(model))
    for name, value in folded.graph.initializers.items():
        exact = wide.graph.initializers[name].const_value.numpy()
        assert np.array_equal(value.const_value.numpy(), exact.astype(np.float32))


def test_float16_with_float32_statistics() -> None:
    net = Net(opset=15, dtype=TensorProto.FLOAT16)
    net.batch_norm(net.conv("x", 4, 6, bias=True), 6, dtype=TensorProto.FLOAT)
    model = frontend.from_proto(net.model(IMAGE))
    folded, report = frontend.fold_model(model)
    assert report.folded == 1
    assert {value.const_value.dtype for value in folded.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert_same(model, folded, 2e-2)


def test_bfloat16() -> None:
    net = Net(opset=22, dtype=TensorProto.BFLOAT16)
    net.batch_norm(net.conv("x", 4, 6), 6, dtype=TensorProto.FLOAT)
    model = frontend.from_proto(net.model(IMAGE))
    folded, report = frontend.fold_model(model)
    assert report.folded == 1
    assert {value.const_value.dtype for value in folded.graph.initializers.values()} == {ir.DataType.BFLOAT16}
    assert_same(model, folded, 0.1)


def test_what_would_overflow_stays() -> None:
    net = Net(opset=15, dtype=TensorProto.FLOAT16)
    net.batch_norm(net.conv("x", 4, 2), 2, dtype=TensorProto.FLOAT, stored={"var": [1e-12, 1.0], "weight": [1e5, 1.0]})
    _, report = frontend.fold_model(frontend.from_proto(net.model(IMAGE)))
    assert outcomes(report) == [Reason.OVERFLOW]


def test_bfloat16_is_rounded_once_not_twice() -> None:
    above_a_tie = 1 + 2**-8 + 2**-30
    numbers = np.array([above_a_tie, -above_a_tie, 1 + 2**-8, 1e39, 0.0, -0.0, 2.0**-140])
    expected = [1 + 2**-7, -(1 + 2**-7), 1.0, np.inf, 0.0, -0.0, 0.0]
    assert rounded(numbers, ir.DataType.BFLOAT16).astype(np.float64).tolist() == expected
    assert numbers[:1].astype(ml_dtypes.bfloat16) == 1.0, "if this changes, the detour is no longer needed"


def test_epsilon_is_the_stored_float32() -> None:
    proto = norm(epsilon=0.1, stored={"var": np.zeros(6) + 1e-9})
    model = frontend.from_proto(proto)
    assert_same(frontend.as_float64(model), frontend.fold_model(frontend.as_float64(model))[0], 1e-12)


@pytest.mark.parametrize("name", ["conv grouped, strided, dilated", "transposed, strided", "gemm, C (1, N)", "chain"])
def test_onnxruntime_agrees(name: str) -> None:
    model = frontend.from_proto(ROWS[name][0]())
    folded, _ = frontend.fold_model(model)
    feeds = {key: array.astype(np.float32) for key, array in feeds_of(model).items()}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    results = [
        onnxruntime.InferenceSession(frontend.to_bytes(each), options, providers=["CPUExecutionProvider"]).run(
            None, feeds
        )
        for each in (model, folded)
    ]
    assert_allclose(results[1][0], results[0][0], rtol=1e-4, atol=1e-5)


# Writing.

LENSES: dict[str, Build] = {
    "conv": lambda: conv_then_bn(group=2, bias=True),
    "conv without bias": lambda: conv_then_bn(kernel=[1, 1]),
    "transposed": lambda: transposed(group=2, bias=True),
    "gemm": lambda: gemm((), alpha=0.5, beta=3.0),
    "gemm, transB": lambda: gemm((1, 5), alpha=0.5, transB=1),
    "matmul": matmul,
    "matmul + bias": lambda: matmul(bias=(1, 5)),
    "matmul, left": lambda: matmul((2, 4, 5), left=True),
    "matmul, left, + bias": lambda: matmul((2, 4, 5), bias=(5, 1), left=True),
}


@pytest.mark.parametrize("build", LENSES.values(), ids=LENSES)
def test_what_is_written_is_read(build: Build) -> None:
    graph = frontend.OnnxGraph(frontend.as_float64(frontend.from_proto(build())))
    norm_node = graph.affines()[0]
    node = graph.producer(graph.data(norm_node))
    assert node is not None
    op = graph.read(node)
    assert isinstance(op, LinearOp)
    random = np.random.default_rng(3)
    taps, bias = random.normal(size=op.evaluate().taps.shape), random.normal(size=op.out_channels)
    new = LinearOp(**{**vars(op), "stored": lambda: Parameters(taps, bias)})
    assert graph.fits(node, new) is None
    graph.write(node, new)
    again = frontend.OnnxGraph(frontend.from_proto(frontend.to_proto(graph_model(graph))))
    written = again.read(again.producer(again.data(again.affines()[0])))  # type: ignore[arg-type]
    assert isinstance(written, LinearOp)
    assert np.array_equal(written.evaluate().taps, taps)
    assert np.array_equal(written.evaluate().bias, bias)
    facts = ("in_channels", "out_channels", "groups", "in_axis", "out_axis", "bordered")
    assert [getattr(written, name) for name in facts] == [getattr(op, name) for name in facts]


def graph_model(graph: frontend.OnnxGraph) -> ir.Model:
    return graph._model


def test_the_same_input_gives_the_same_bytes() -> None:
    for build in (chain, siamese, in_function, lambda: matmul(before=True)):
        first, second = (frontend.fold_model(frontend.from_proto(build()))[0] for _ in range(2))
        assert frontend.to_bytes(first) == frontend.to_bytes(second)


def test_a_siamese_net_does_not_grow() -> None:
    model = frontend.from_proto(siamese())
    folded, report = frontend.fold_model(model)
    weights = {node.inputs[1].name for node in folded.graph if node.op_type == "Conv"}
    biases = {node.inputs[2].name for node in folded.graph if node.op_type == "Conv"}
    assert report.folded == 2
    assert len(weights) == len(biases) == 1
    assert len(folded.graph.initializers) == 2


def test_copies_of_a_shared_weight_obey_the_budget() -> None:
    model = frontend.from_proto(siamese(norms=2))
    assert outcomes(frontend.fold_model(model)[1]) == [Reason.GROWTH_BUDGET] * 2
    folded, report = frontend.fold_model(model, FoldOptions(max_growth=3.0))
    assert report.folded == 2
    assert_same(model, folded, 2e-5)


def test_a_parameter_that_others_read_is_copied() -> None:
    net = Net()
    y = net.conv("x", 4, 4, name="conv", bias=True, pads=[1, 1, 1, 1])
    net.batch_norm(y, 4)
    net.node("Conv", ["bn", "conv.weight", "conv.bias"], "tied")
    model = frontend.from_proto(net.model(IMAGE, ["tied"]))
    folded, report = frontend.fold_model(model, FoldOptions(max_growth=10))
    assert report.folded == 1
    old, new = model.graph.initializers["conv.weight"], folded.graph.initializers["conv.weight"]
    assert new.const_value is old.const_value
    assert_same(model, folded, 2e-5)


def test_new_names_are_unlike_any_name() -> None:
    net = Net()
    for taken in ("conv.bias", "matmul_bias"):
        net.node("Relu", ["x"], taken)
    net.batch_norm(net.conv("x", 4, 4, name="conv"), 4)
    model = frontend.from_proto(net.model(IMAGE, ["bn", "conv.bias"]))
    folded, _ = frontend.fold_model(model)
    names = [value.name for node in folded.graph for value in node.outputs] + list(folded.graph.initializers)
    assert len(names) == len(set(names))
    assert "conv.bias_1" in names
    assert_same(model, folded, 2e-5)


def test_an_added_bias_takes_the_name_of_the_output() -> None:
    folded, _ = frontend.fold_model(frontend.from_proto(matmul(before=True)))
    assert [node.op_type for node in folded.graph] == ["MatMul", "Add"]
    assert folded.graph.outputs[0].name == "matmul"
    assert folded.graph.outputs[0].producer().op_type == "Add"


def test_a_bias_of_zeros_is_not_written() -> None:
    proto = norm(stored={"bias": np.zeros(6), "mean": np.zeros(6)})
    folded, _ = frontend.fold_model(frontend.from_proto(proto))
    assert len(folded.graph[0].inputs) == 2


def test_gemm_is_left_with_unit_factors() -> None:
    folded, _ = frontend.fold_model(frontend.from_proto(gemm((5,), alpha=0.5, beta=2.0, transB=1)))
    assert set(folded.graph[0].attributes) == {"transB"}


def test_what_is_not_touched_stays() -> None:
    proto = conv_then_bn(bias=True)
    proto.doc_string, proto.producer_version, proto.model_version = "a net", "3", 7
    proto.metadata_props.add(key="author", value="somebody")
    proto.graph.initializer.append(tensor("never.read", [1.0, 2.0]))
    proto.graph.initializer.append(tensor("other", np.ones((1, 6, 1, 1))))
    proto.graph.node.append(helper.make_node("Constant", [], ["idle"], name="idle", value_float=3.0))
    proto.graph.node.append(helper.make_node("Max", ["bn", "other"], ["out"], name="max"))
    proto.graph.output[0].name = "out"
    folded, _ = frontend.fold_model(frontend.from_proto(proto))
    result = frontend.to_proto(folded)
    assert {tensor.name for tensor in result.graph.initializer} == {"conv0.weight", "conv0.bias", "never.read", "other"}
    kept = {tensor.name: tensor.SerializeToString() for tensor in proto.graph.initializer}
    assert all(kept[t.name] == t.SerializeToString() for t in result.graph.initializer if "conv" not in t.name)
    assert [node.name for node in result.graph.node] == ["conv0_node", "idle", "max"]
    for field in ("ir_version", "opset_import", "doc_string", "producer_version", "model_version", "metadata_props"):
        assert getattr(result, field) == getattr(proto, field)


def test_ir_version_3_stays_valid() -> None:
    folded, _ = frontend.fold_model(frontend.from_proto(overridable(3)))
    proto = frontend.to_proto(folded)
    declared = {value.name for value in proto.graph.input}
    assert {tensor.name for tensor in proto.graph.initializer} == declared - {"x"} == {"conv.weight", "conv.bias"}


def test_shape_bookkeeping_goes() -> None:
    folded, _ = frontend.fold_model(frontend.from_proto(computed_zero_bias()))
    assert [node.op_type for node in folded.graph] == ["Conv", "Conv"]
    assert set(folded.graph.initializers) == {"first.weight", "first.bias", "second.weight"}


def test_a_bomb_is_not_computed() -> None:
    _, report = frontend.fold_model(frontend.from_proto(bomb()))
    assert outcomes(report) == [Reason.PARAMETER_NOT_CONSTANT]
    assert set(frontend.evidence(frontend.from_proto(bomb())).linears) == set()


# What is said of a model.


def test_evidence_is_what_is_stored() -> None:
    proto = gemm((1, 5), alpha=0.5, beta=2.0, transB=1)
    found = frontend.evidence(frontend.from_proto(proto))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    linear, statistics = found.linears["gemm_node"], found.norms["bn_node"]
    assert (linear.layout, linear.alpha, linear.beta) == ("linear", 0.5, 2.0)
    assert np.array_equal(linear.weight, tensors["w"])
    assert linear.bias is not None
    assert np.array_equal(linear.bias, tensors["c"].reshape(-1))
    assert np.array_equal(statistics.variance, tensors["bn.var"])
    assert statistics.epsilon == float(np.float32(1e-5))


@pytest.mark.parametrize("name", [name for name, (_, verdicts) in ROWS.items() if verdicts == [None]])
def test_evidence_and_lenses_read_the_same(name: str) -> None:
    model = frontend.from_proto(ROWS[name][0]())
    found, graph = frontend.evidence(model), frontend.OnnxGraph(model)
    for node in every_node(model):
        op = graph.read(node)
        if not isinstance(op, LinearOp):
            continue
        linear = found.linears[graph.site(node).name]
        assert_allclose(
            np.sort(np.abs(linear.weight * linear.alpha), axis=None), np.sort(abs(op.evaluate().taps), axis=None)
        )
        bias = np.zeros(1) if linear.bias is None else linear.bias * linear.beta
        assert_allclose(np.broadcast_to(bias, op.out_channels), op.evaluate().bias)


def test_evidence_of_computed_parameters() -> None:
    found = frontend.evidence(frontend.from_proto(computed_statistics()))
    assert found.norms["bn_node"].variance.tolist() == [0.25, 1.5625, 4.0]
    zero = frontend.evidence(frontend.from_proto(computed_zero_bias())).linears["first_node"]
    assert zero.bias is not None
    assert zero.bias.tolist() == [0.0] * 4


def with_an_unread_branch(asks_for_its_shape: bool) -> onnx.ModelProto:
    """Two Conv with a batch norm and a Relu each; of the second result at most the shape is read."""
    net = Net()
    y = net.node("Relu", [net.batch_norm(net.conv("x", 4, 4, name="read"), 4, name="a")])
    unread = net.node("Relu", [net.batch_norm(net.conv("x", 4, 4, name="unread"), 4, name="b")])
    return net.model(IMAGE, [net.node("Reshape", [y, net.node("Shape", [unread])]) if asks_for_its_shape else y])


def damaged(model: ir.Model, name: str) -> ir.Model:
    """The model with one wrong weight in the operator of this name."""
    wrong = frontend.clone(model)
    (node,) = [each for each in every_node(wrong) if each.name == name]
    weight = node.inputs[1]
    assert weight is not None
    maker = weight.producer()
    stored = maker.attributes["value"].as_tensor() if maker else weight.const_value
    assert stored is not None
    array = stored.numpy().copy()
    array.flat[5] *= 1.001
    if maker:
        maker.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array, name=stored.name))
    else:
        weight.const_value = ir.Tensor(array, name=stored.name)
    return wrong


@pytest.mark.parametrize("asks_for_its_shape", [False, True])
def test_the_certificate_passes_over_what_nobody_reads_and_nothing_else(asks_for_its_shape: bool) -> None:
    model = frontend.from_proto(with_an_unread_branch(asks_for_its_shape))
    folded, report = frontend.fold_model(model)
    before = frontend.evidence(model)
    assert {site.name for outcome in report.outcomes for site in outcome.into} == {"read_node", "unread_node"}
    assert before.unread >= {"unread_node", "b_node"}
    assert not before.unread & {"read_node", "a_node"}
    for name, status in (("read_node", Status.FAIL), ("unread_node", Status.PASS)):
        assert derive(before, frontend.evidence(damaged(folded, name)), report).status is status
    every = replace(before, unread=frozenset())
    assert derive(every, frontend.evidence(damaged(folded, "unread_node")), report).status is Status.FAIL


@pytest.mark.parametrize("build", [lambda: branches(captured=False), in_function], ids=["body", "function"])
def test_the_certificate_looks_into_bodies_and_functions(build: Build) -> None:
    model = frontend.from_proto(build())
    folded, report = frontend.fold_model(model)
    (into,) = [site.name for outcome in report.outcomes for site in outcome.into]
    before, after = frontend.evidence(model), frontend.evidence(folded)
    assert into not in before.unread
    assert derive(before, after, report).status is Status.PASS
    assert derive(before, frontend.evidence(damaged(folded, into)), report).status is Status.FAIL


def with_constants_of_many_kinds() -> onnx.ModelProto:
    """Behind a fold, what no affine enters: a slope, a border, a target, a table, statistics that may be overridden."""
    net = Net()
    y = net.node("PRelu", [net.batch_norm(net.conv("x", 4, 4), 4), net.constant("slope", np.full((4, 1, 1), 0.25))])
    y = net.node("Pad", [y, net.integers("pads", *[0] * 7, 1), net.constant("border", np.array(0.5))])
    y = net.batch_norm(net.node("Relu", [y]), 4, name="late")
    y = net.node("Gather", [y, net.integers("picked", 2, 0, 1, 3)], axis=1)
    net.node("Reshape", [net.node("Sigmoid", [y]), net.integers("target", 0, -1, 1)])
    return net.model(IMAGE, declare=["late.mean"])


@pytest.mark.parametrize("name", ["slope", "border", "pads", "picked", "target", "late.mean", "late.var"])
def test_the_certificate_sees_any_constant_that_changes(name: str) -> None:
    model = frontend.from_proto(with_constants_of_many_kinds())
    folded, report = frontend.fold_model(model)
    before = frontend.evidence(model)
    assert derive(before, frontend.evidence(folded), report).status is Status.PASS
    changed = folded.graph.initializers[name]
    assert changed.const_value is not None
    array = changed.const_value.numpy().copy()
    array.flat[-1] += 1
    changed.const_value = ir.Tensor(array, name=name)
    layer = derive(before, frontend.evidence(folded), report)
    assert layer.status is Status.FAIL
    assert "a constant that" in layer.because


def test_a_bias_may_have_the_rank_of_the_matrix() -> None:
    net = Net()
    y = net.node("MatMul", ["x", net.constant("w", net.numbers(1, 4, 5))], "product")
    y = net.node("Add", [y, net.constant("b", net.numbers(1, 1, 5))], "sum")
    net.node("Mul", [y, net.constant("half", np.array(0.5))])
    model = frontend.from_proto(net.model({"x": ("n", 4)}))
    folded, report = frontend.fold_model(model)
    before = frontend.evidence(model)
    assert before.linears["product_node"].added == "sum_node"
    layer = derive(before, frontend.evidence(folded), report)
    assert layer.status is Status.PASS, layer.because


def test_what_a_body_captures_is_read() -> None:
    found = frontend.evidence(frontend.from_proto(branches(captured=True)))
    assert found.unread == frozenset()


def test_facts() -> None:
    found = frontend.facts(frontend.from_proto(computed_zero_bias()))
    assert (found.batch_norms, found.nodes, found.compute_nodes) == (1, 11, 3)
    assert found.macs == 2 * 4 * 6 * 5 * 4 * 9
    assert found.activation_bytes == 4 * (3 * 4 * 6 * 5)
    assert found.parameters == 2 * 144 + 16 + 1
    assert found.bytes == found.parameters * 4 + 8
    unknown = frontend.facts(frontend.from_proto(unknown_rank()))
    assert unknown.macs is unknown.activation_bytes is None


def test_signature() -> None:
    found = frontend.signature(frontend.from_proto(overridable()))
    assert [(port.name, port.dtype, port.shape) for port in found.inputs] == [("x", "float32", ("n", 4, 6, 5))]
    assert [(port.name, port.shape) for port in found.outputs] == [("bn", None)]


# Reading.


CONTENTS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "nothing": ("empty-file", lambda data: b""),
    "half": ("truncated", lambda data: data[: len(data) // 2]),
    "all but one byte": ("truncated", lambda data: data[:-1]),
    "a picture": ("not-onnx", lambda data: b"\x89PNG\r\n\x1a\n" + bytes(40)),
    "text": ("not-onnx", lambda data: b"just some text\n"),
    "only a version": ("not-onnx", lambda data: b"\x08\x08"),
}


@pytest.mark.parametrize(("code", "content"), CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_model_is_rejected(code: str, content: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content(conv_then_bn().SerializeToString()))
    with pytest.raises(Rejected) as error:
        frontend.read(path)
    assert error.value.code == code


def test_what_is_no_file_is_rejected(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "nothing.onnx", "not-found"), (tmp_path, "is-directory")):
        with pytest.raises(Rejected) as error:
            frontend.read(path)
        assert error.value.code == code


def typed(stored: onnx.TensorProto) -> onnx.TensorProto:
    """The tensor with its numbers in a typed field, not as raw bytes."""
    numbers = numpy_helper.to_array(stored).ravel().tolist()
    stored.ClearField("raw_data")
    stored.float_data.extend(numbers)
    return stored


def sparse_attribute() -> onnx.AttributeProto:
    """An attribute that no operator but Constant has."""
    return onnx.AttributeProto(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)


INVALID: dict[str, tuple[str, Callable[[onnx.ModelProto], object]]] = {
    "undefined input": ("invalid-model", lambda proto: proto.graph.node[1].input.__setitem__(0, "nowhere")),
    "output made twice": ("invalid-model", lambda proto: proto.graph.node[1].output.__setitem__(0, "conv0")),
    "too few numbers": ("invalid-model", lambda proto: typed(proto.graph.initializer[0]).float_data.pop()),
    "too few bytes": ("invalid-model", lambda proto: setattr(proto.graph.initializer[0], "raw_data", b"abc")),
    "sparse tensors": ("invalid-model", lambda proto: proto.graph.sparse_initializer.add()),
    "sparse attribute": ("unsupported-model", lambda proto: proto.graph.node[0].attribute.append(sparse_attribute())),
}


@pytest.mark.parametrize(("code", "change"), INVALID.values(), ids=INVALID)
def test_invalid_models_are_rejected(code: str, change: Callable[[onnx.ModelProto], object]) -> None:
    proto = conv_then_bn()
    change(proto)
    with pytest.raises(Rejected) as error:
        frontend.from_proto(proto)
    assert error.value.code == code
    assert "\n" not in str(error.value)


def with_external_data(folder: Path, location: str = "weights.bin", length: int = 1000) -> Path:
    proto = conv_then_bn()
    weight = proto.graph.initializer[0]
    (folder / "weights.bin").write_bytes(weight.raw_data[:length])
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_is_read_and_written(tmp_path: Path) -> None:
    model = frontend.read(with_external_data(tmp_path))
    folded, report = frontend.fold_model(model)
    assert report.folded == 1
    (tmp_path / "out").mkdir()
    files = frontend.save(model, tmp_path / "out" / "copy.onnx")
    assert [file.name for file in files] == ["copy.onnx", "copy.onnx.data"]
    assert_same(frontend.read(files[0]), folded, 2e-5)


@pytest.mark.parametrize(
    ("location", "length"), [("../weights.bin", 1000), ("/etc/hostname", 1000), ("none", 1000), ("weights.bin", 10)]
)
def test_external_data_stays_in_its_folder(location: str, length: int, tmp_path: Path) -> None:
    with pytest.raises(Rejected) as error:
        frontend.read(with_external_data(tmp_path, location, length))
    assert error.value.code == "external-data"


def test_an_offset_that_is_no_number_is_rejected(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data.add(key="offset", value="-4")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(Rejected) as error:
        frontend.read(path)
    assert error.value.code == "external-data"


def test_an_unreadable_file_is_the_environments_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(EnvironmentFailure, match="Permission denied"):
        frontend.read(path)


@pytest.mark.parametrize("dtype", ["FLOAT", "BFLOAT16", "FLOAT16", "INT64", "INT4"])
def test_a_large_tensor_is_written_as_it_would_be_with_the_others(dtype: str) -> None:
    numbers = np.random.default_rng(0).integers(-8, 8, (512, 300))
    kind = ir.DataType[dtype]
    tensor = ir.Tensor(numbers.astype(kind.numpy()), dtype=kind, name="large", doc_string="said")
    tensor.metadata_props["key"] = "kept"
    model = frontend.from_proto(chain())
    model.graph.initializers["large"] = ir.Value(name="large", const_value=tensor)
    assert tensor.nbytes >= frontend.wire.LARGE_BYTES
    written = onnx.ModelProto.FromString(frontend.to_bytes(model))
    assert written == frontend.to_proto(model)
    assert [each.name for each in written.graph.initializer][-1] == "large"
    assert model.graph.initializers["large"].const_value is tensor


def test_saving_is_deterministic(tmp_path: Path) -> None:
    model = frontend.from_proto(chain())
    (path,) = frontend.save(model, tmp_path / "a.onnx")
    assert path.read_bytes() == frontend.to_bytes(frontend.read(path)) == frontend.to_bytes(model)
