"""Graphs built to have one operator each in the way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from net import BOOL, FLOAT, HALF, INT64, Net, Port
from onnx import helper, numpy_helper

BUILT: dict[str, Callable[[], onnx.ModelProto]] = {}


def base(build: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    BUILT[build.__name__] = build
    return build


IMAGE: Port = ("x", FLOAT, ("batch", 3, 12, 12))


@base
def qdq_chain() -> onnx.ModelProto:
    net = Net(1, opset=19)
    y = net.quantised("x", 0.03)
    for n, m in ((3, 8), (8, 8), (8, 8)):
        y = net.quantised(net.op("Relu", net.norm(net.conv(y, n, m), m)), 0.04)
    return net.model([IMAGE], [(net.linear(net.pooled(y), 8, 5), FLOAT, ("batch", 5))][:1])


@base
def qdq_per_channel() -> onnx.ModelProto:
    """Square, so that the axis of the scales can be mistaken."""
    net = Net(2, opset=21)
    y = net.quantised(net.block("x", 3, 8), 0.02, 128, np.uint8)
    scales, zeros = net.const(net.random.uniform(0.002, 0.01, 8)), net.const(np.zeros(8), np.int8)
    stored = net.const(net.random.integers(-127, 128, (8, 8, 1, 1)), np.int8)
    weight = net.op("DequantizeLinear", stored, scales, zeros, axis=0)
    y = net.op("Relu", net.op("Conv", y, weight, net.const(net.normal(8, scale=0.3)), kernel_shape=[1, 1]))
    return net.model([IMAGE], [(net.quantised(y, 0.01, 128, np.uint8), FLOAT, ("batch", 8, 12, 12))])


@base
def topk_head() -> onnx.ModelProto:
    net = Net(3)
    y = net.linear(net.pooled(net.block(net.block("x", 3, 8), 8, 16, strides=[2, 2])), 16, 20)
    values, places = net.op("TopK", net.op("Softmax", y, axis=1), net.ints(5), count=2, axis=1, largest=1, sorted=1)
    return net.model([IMAGE], [(values, FLOAT, ("batch", 5)), (places, INT64, ("batch", 5))])


def detector(seed: int, threshold: float, candidates: int = 36) -> onnx.ModelProto:
    net = Net(seed)
    y = net.block(net.block("x", 3, 8), 8, 8, strides=[2, 2])
    heads = net.norm(net.conv(y, 8, 6), 6)
    offsets, logits = net.op("Split", heads, net.ints(4, 2), count=2, axis=1)
    flat = net.op("Transpose", net.op("Reshape", offsets, net.ints(0, 4, -1)), perm=[0, 2, 1])
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(6), indexing="ij"), -1).reshape(1, candidates, 2)
    grid = np.concatenate([grid, np.full((1, candidates, 2), 2.5)], -1)
    boxes = net.op("Add", net.op("Mul", flat, net.const(0.1)), net.const(grid))
    scores = net.op("Sigmoid", net.op("Reshape", logits, net.ints(0, 2, -1)))
    limits = (net.ints(8), net.const([0.4]), net.const([threshold]))
    found = net.op("NonMaxSuppression", boxes, scores, *limits, center_point_box=1)
    return net.model([IMAGE], [(found, INT64, ("found", 3)), (boxes, FLOAT, ("batch", candidates, 4))])


@base
def nms_head() -> onnx.ModelProto:
    return detector(4, 0.45)


@base
def empty_detections() -> onnx.ModelProto:
    return detector(5, 0.9999)


@base
def argmax_head() -> onnx.ModelProto:
    net = Net(6)
    y = net.conv(net.block(net.block("x", 3, 12), 12, 12), 12, 12, kernel=(1, 1))
    return net.model([IMAGE], [(net.op("ArgMax", y, axis=1, keepdims=1), INT64, ("batch", 1, 12, 12))])


@base
def half_net() -> onnx.ModelProto:
    net = Net(7, kind=np.float16)
    y = net.block(net.block("x", 3, 8), 8, 16, strides=[2, 2])
    y = net.norm(net.conv(y, 16, 16, group=16), 16, low=0.6)
    y = net.linear(net.pooled(y), 16, 10)
    return net.model([("x", HALF, ("batch", 3, 12, 12))], [(y, HALF, ("batch", 10))])


@base
def half_mixed() -> onnx.ModelProto:
    """Half in the middle, float32 at both ends."""
    net = Net(8, kind=np.float16)
    y = net.op("Cast", "x", to=HALF)
    y = net.block(net.block(y, 3, 8), 8, 8)
    return net.model([IMAGE], [(net.op("Cast", net.pooled(y), to=FLOAT), FLOAT, ("batch", 8))])


@base
def conv_1d() -> onnx.ModelProto:
    net = Net(9)
    y = net.block(net.block("x", 4, 8, kernel=(3,)), 8, 8, kernel=(5,), group=2)
    y = net.op("MaxPool", y, kernel_shape=[2], strides=[2])
    y = net.norm(net.conv(y, 8, 8, kernel=(3,), dilations=[2], pads=[2, 2]), 8)
    return net.model([("x", FLOAT, ("batch", 4, 24))], [(y, FLOAT, ("batch", 8, 12))])


@base
def conv_3d() -> onnx.ModelProto:
    net = Net(10)
    y = net.block(net.block("x", 2, 6, kernel=(3, 3, 3)), 6, 6, kernel=(1, 3, 3), strides=[1, 2, 2])
    y = net.norm(net.transposed(y, 6, 4, (2, 2, 2), strides=[2, 2, 2]), 4)
    return net.model([("x", FLOAT, ("batch", 2, 4, 8, 8))], [(y, FLOAT, ("batch", 4, 8, 8, 8))])


@base
def transposed_groups() -> onnx.ModelProto:
    net = Net(11)
    y = net.block("x", 3, 8, strides=[2, 2])
    y = net.op("Relu", net.norm(net.transposed(y, 8, 8, (4, 4), strides=[2, 2], pads=[1, 1, 1, 1], group=2), 8))
    y = net.norm(net.transposed(y, 8, 6, (3, 3), group=2, pads=[1, 1, 1, 1]), 6, epsilon=1e-3)
    return net.model([IMAGE], [(y, FLOAT, ("batch", 6, 12, 12))])


@base
def gemms() -> onnx.ModelProto:
    """Square weights, with and without transB."""
    net = Net(12)
    y = net.op("Relu", net.norm(net.linear("x", 16, 16), 16))
    y = net.op("Relu", net.norm(net.linear(y, 16, 16, transB=1), 16, epsilon=1e-3))
    y = net.linear(y, 16, 16, alpha=0.5, beta=2.0)
    weight, bias = net.const(net.normal(16, 16, scale=0.25)), net.const(net.normal(16))
    y = net.norm(net.op("Add", net.op("MatMul", y, weight), bias), 16)
    return net.model([("x", FLOAT, ("batch", 16))], [(y, FLOAT, ("batch", 16))])


@base
def attention() -> onnx.ModelProto:
    """As many tokens as features per head, so that axes can be mistaken; square projections."""
    net = Net(13)
    parts = []
    for _ in range(3):
        weight, bias = net.const(net.normal(16, 16, scale=0.5)), net.const(net.normal(16, scale=0.3))
        y = net.op("Add", net.op("MatMul", "x", weight), bias)
        y = net.op("Reshape", y, net.ints(0, 8, 2, 8))
        parts.append(net.op("Transpose", y, perm=[0, 2, 1, 3]))
    q, k, v = parts
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    weights = net.op("Softmax", net.op("Div", scores, net.const(np.sqrt(8))), axis=3)
    y = net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    y = net.op("Reshape", y, net.ints(0, 8, 16))
    y = net.op("Add", net.op("MatMul", y, net.const(net.normal(16, 16, scale=0.3))), "x")
    gain, offset = net.const(net.random.uniform(0.5, 1.5, 16)), net.const(net.normal(16, scale=0.2))
    y = net.op("LayerNormalization", y, gain, offset, axis=-1, epsilon=1e-5)
    return net.model([("x", FLOAT, ("batch", 8, 16))], [(y, FLOAT, ("batch", 8, 16))])


@base
def resized() -> onnx.ModelProto:
    net = Net(14)
    y = net.block("x", 3, 6, strides=[2, 2])
    scales = net.const([1, 1, 2, 2], np.float32)
    more = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    y = net.op("Resize", y, "", scales, **more)
    y = net.norm(net.conv(y, 6, 4), 4)
    return net.model([IMAGE], [(y, FLOAT, ("batch", 4, 12, 12))])


@base
def pooling() -> onnx.ModelProto:
    net = Net(15)
    y = net.block("x", 3, 6)
    more = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    y = net.norm(net.conv(net.op("AveragePool", y, count_include_pad=0, **more), 6, 6), 6)
    y = net.op("MaxPool", y, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    return net.model([IMAGE], [(y, FLOAT, ("batch", 6, 6, 6))])


@base
def auto_pads() -> onnx.ModelProto:
    net = Net(16)
    y = net.block("x", 3, 6, auto_pad="SAME_UPPER", strides=[2, 2])
    y = net.op("Relu", net.norm(net.conv(y, 6, 6, kernel=(2, 2), auto_pad="SAME_UPPER"), 6))
    y = net.norm(net.conv(y, 6, 6, kernel=(3, 3), dilations=[2, 2], pads=[2, 2, 2, 2]), 6)
    return net.model([IMAGE], [(y, FLOAT, ("batch", 6, 6, 6))])


@base
def clipped() -> onnx.ModelProto:
    net = Net(17, opset=13)
    low, high = net.const(0.0), net.const(6.0)
    y = net.op("Clip", net.norm(net.conv("x", 3, 8), 8), low, high)
    y = net.op("Clip", net.norm(net.conv(y, 8, 8, group=8), 8), low, net.const(6.0))
    y = net.op("LeakyRelu", net.norm(net.conv(y, 8, 8, kernel=(1, 1)), 8), alpha=0.1)
    y = net.op("PRelu", y, net.const(net.random.uniform(0.05, 0.4, (8, 1, 1))))
    return net.model([IMAGE], [(net.pooled(y), FLOAT, ("batch", 8))])


@base
def shared_weight() -> onnx.ModelProto:
    """One stored weight, two convolutions, two different batch norms."""
    net = Net(18)
    weight = net.const(net.normal(6, 3, 3, 3, scale=0.3))
    more = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    ends = [net.norm(net.op("Conv", x, weight, **more), 6) for x in ("left", "right")]
    y = net.op("Sub", *[net.op("Relu", each) for each in ends])
    ports: list[Port] = [(name, FLOAT, ("batch", 3, 8, 8)) for name in ("left", "right")]
    return net.model(ports, [(y, FLOAT, ("batch", 6, 8, 8))])


@base
def read_elsewhere() -> onnx.ModelProto:
    net = Net(19)
    inner = net.conv("x", 3, 6)
    y = net.op("Add", net.op("Relu", net.norm(inner, 6)), net.op("Sigmoid", inner))
    y = net.norm(net.conv(y, 6, 6), 6)
    return net.model([IMAGE], [(y, FLOAT, ("batch", 6, 12, 12))])


@base
def inner_output() -> onnx.ModelProto:
    """The convolution's own output is an output, and the unused one is kept."""
    net = Net(20)
    inner = net.conv("x", 3, 6)
    y = net.norm(inner, 6)
    z = net.block(y, 6, 6)
    ports: list[Port] = [(name, FLOAT, ("batch", 6, 12, 12)) for name in (inner, y, z)]
    return net.model([IMAGE], ports)


@base
def training_mode() -> onnx.ModelProto:
    net = Net(21)
    y = net.norm(net.conv("x", 3, 6), 6)
    del net.nodes[-1].output[0]
    net.nodes[-1].output.extend([y, "mean_now", "var_now"])
    net.nodes[-1].attribute.append(helper.make_attribute("training_mode", 1))
    return net.model([IMAGE], [(net.block(y, 6, 6), FLOAT, ("batch", 6, 12, 12))])


@base
def rows_constant() -> onnx.ModelProto:
    """As many rows as channels: a constant per row is none per channel."""
    net = Net(22)
    y = net.conv("x", 3, 8)
    y = net.op("Mul", y, net.const(net.random.uniform(0.5, 1.5, (1, 1, 8, 1))))
    y = net.op("Add", y, net.const(net.normal(1, 1, 8, 1)))
    y = net.block(y, 8, 8)
    y = net.op("Mul", net.conv(y, 8, 8), net.const(net.random.uniform(0.5, 1.5, (8,))))
    return net.model([("x", FLOAT, ("batch", 3, 8, 8))], [(y, FLOAT, ("batch", 8, 8, 8))])


@base
def two_heads() -> onnx.ModelProto:
    net = Net(23)
    y = net.block("x", 3, 8)
    a = net.op("Sigmoid", net.norm(net.conv(y, 8, 4), 4))
    b = net.op("Sigmoid", net.norm(net.conv(y, 8, 4), 4))
    c = net.op("Concat", net.op("Slice", a, net.ints(0), net.ints(2), net.ints(1)), b, axis=1)
    ports: list[Port] = [(name, FLOAT, ("batch", 4, 12, 12)) for name in (a, b)]
    return net.model([IMAGE], [*ports, (c, FLOAT, ("batch", 6, 12, 12))])


@base
def shuffled() -> onnx.ModelProto:
    """Channel shuffle, depth to space, reflected borders, square transposes."""
    net = Net(24)
    y = net.op("Pad", "x", net.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
    y = net.op("Relu", net.norm(net.conv(y, 3, 8, pads=[0, 0, 0, 0]), 8))
    y = net.op("Reshape", y, net.ints(0, 2, 4, 12, 12))
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), net.ints(0, 8, 12, 12))
    y = net.norm(net.conv(y, 8, 8, group=2), 8)
    y = net.op("Transpose", y, perm=[0, 1, 3, 2])
    y = net.op("DepthToSpace", y, blocksize=2, mode="CRD")
    return net.model([IMAGE], [(y, FLOAT, ("batch", 2, 24, 24))])


@base
def norm_first() -> onnx.ModelProto:
    """Batch norms that a padded convolution reads, and one behind an activation and a pool."""
    net = Net(25)
    y = net.op("Relu", net.conv(net.norm("x", 3), 3, 6))
    y = net.op("MaxPool", net.conv(y, 6, 6), kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Relu", net.norm(y, 6))
    y = net.norm(net.op("Relu", net.conv(y, 6, 6, kernel=(1, 1))), 6)
    return net.model([IMAGE], [(net.conv(y, 6, 4, kernel=(1, 1)), FLOAT, ("batch", 4, 6, 6))])


@base
def branches() -> onnx.ModelProto:
    """RepVGG in training form, two blocks."""
    net = Net(26)
    y = net.block("x", 3, 6)
    for _ in range(2):
        wide, narrow = net.norm(net.conv(y, 6, 6, bias=False), 6), net.norm(net.conv(y, 6, 6, (1, 1), bias=False), 6)
        y = net.op("Relu", net.op("Add", net.op("Add", wide, narrow), net.norm(y, 6)))
    return net.model([IMAGE], [(y, FLOAT, ("batch", 6, 12, 12))])


@base
def depthwise() -> onnx.ModelProto:
    """A channel multiplier, groups, squeeze and excite."""
    net = Net(27)
    y = net.op("HardSwish", net.norm(net.conv("x", 3, 12, group=3), 12))
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", y), 12, 4, (1, 1)))
    gate = net.op("HardSigmoid", net.conv(gate, 4, 12, (1, 1)), alpha=1 / 6, beta=0.5)
    y = net.norm(net.conv(net.op("Mul", y, gate), 12, 12, group=4), 12)
    return net.model([IMAGE], [(net.linear(net.pooled(y), 12, 6), FLOAT, ("batch", 6))])


@base
def chosen_branch() -> onnx.ModelProto:
    """An If on an input."""
    net = Net(28)
    y = net.block("x", 3, 4)
    shapes = helper.make_tensor_value_info
    ends = [
        helper.make_graph(
            [helper.make_node(kind, [y], [f"made_{kind}"])], kind, [], [shapes(f"made_{kind}", FLOAT, None)]
        )
        for kind in ("Sigmoid", "Tanh")
    ]
    z = net.op("If", "flag", then_branch=ends[0], else_branch=ends[1])
    z = net.norm(net.conv(z, 4, 4), 4)
    return net.model([IMAGE, ("flag", BOOL, ())], [(z, FLOAT, ("batch", 4, 12, 12))])


@base
def indexing() -> onnx.ModelProto:
    """Gather, Slice, CumSum, Where and a comparison; a mean over one of two equal axes."""
    net = Net(29)
    y = net.block("x", 3, 8)
    y = net.op("Gather", y, net.ints(3, 1, 0, 2, 7, 5), axis=1)
    y = net.op("Slice", y, net.ints(1), net.ints(11), net.ints(3), net.ints(1))
    y = net.op("Slice", y, net.ints(1), net.ints(11), net.ints(2), net.ints(1))
    y = net.op("CumSum", y, net.const(2, np.int64), exclusive=0)
    y = net.op("Where", net.op("Greater", y, net.const(0.5)), y, net.op("Neg", y))
    y = net.norm(net.conv(y, 6, 6), 6)
    return net.model([IMAGE], [(net.op("ReduceMean", y, axes=[3], keepdims=0), FLOAT, ("batch", 6, 10))])


@base
def positive_relu() -> onnx.ModelProto:
    """Activations that hardly matter: what reaches them is almost always inside."""
    net = Net(30)
    y = net.norm(net.conv("x", 3, 6, (1, 1)), 6)
    y = net.op("Relu", net.op("Add", y, net.const(np.full((6, 1, 1), 5.0))))
    y = net.op("Clip", net.norm(net.conv(y, 6, 6, (1, 1)), 6), net.const(-40.0), net.const(8.0))
    return net.model([IMAGE], [(net.pooled(y), FLOAT, ("batch", 6))])


@base
def casts() -> onnx.ModelProto:
    """Integers out of floats: round, floor, a one-hot of a decision."""
    net = Net(31)
    y = net.norm(net.conv("x", 3, 6), 6)
    steps = net.op("Cast", net.op("Round", net.op("Mul", y, net.const(4.0))), to=INT64)
    y = net.op("Softmax", net.linear(net.pooled(y), 6, 6), axis=1)
    best = net.op("ArgMax", y, axis=1, keepdims=0)
    hot = net.op("OneHot", best, net.const(6, np.int64), net.const([0.0, 1.0]), axis=1)
    return net.model([IMAGE], [(steps, INT64, ("batch", 6, 12, 12)), (hot, FLOAT, ("batch", 6))])


@base
def tiny_variance() -> onnx.ModelProto:
    """Where ε matters: variances around it."""
    net = Net(32)
    y = net.norm(net.op("Mul", net.conv("x", 3, 6), net.const(3e-3)), 6, low=0.3)
    numbers = numpy_helper.from_array(np.linspace(3e-6, 3e-5, 6, dtype=np.float32), net.nodes[-1].input[4])
    next(t for t in net.stored if t.name == net.nodes[-1].input[4]).CopyFrom(numbers)
    mean = np.linspace(-1e-3, 1e-3, 6, dtype=np.float32)
    next(t for t in net.stored if t.name == net.nodes[-1].input[3]).CopyFrom(
        numpy_helper.from_array(mean, net.nodes[-1].input[3])
    )
    y = net.norm(net.conv(net.op("Relu", y), 6, 6), 6, epsilon=1e-3)
    return net.model([IMAGE], [(y, FLOAT, ("batch", 6, 12, 12))])


@base
def fixed_scores() -> onnx.ModelProto:
    """A ranking with ties: constant scores beside computed ones."""
    net = Net(33)
    y = net.linear(net.pooled(net.block("x", 3, 8)), 8, 8)
    bounded = net.op("Clip", y, net.const(-0.2), net.const(0.2))
    values, places = net.op("TopK", net.op("Abs", bounded), net.ints(3), count=2, axis=1)
    return net.model([IMAGE], [(values, FLOAT, ("batch", 3)), (places, INT64, ("batch", 3)), (y, FLOAT, ("batch", 8))])
