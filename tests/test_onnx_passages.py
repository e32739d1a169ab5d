"""Rows: what an affine crosses in an ONNX graph, each with a twin that it must not cross; then elementwise affines.

Every row is folded and computed in float64 before and after, for two sizes of whatever has no size. Sizes are alike on
purpose: where an axis is mistaken for another, only the numbers tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto, helper, numpy_helper
from onnx_build import Net, feeds_of, run64

from bnfold.folding import FoldOptions
from bnfold.frontends import onnx as frontend
from bnfold.graph import Reason
from bnfold.outcome import FoldReport
from bnfold.travel import Split

Step = Callable[[Net, str], str]
Build = Callable[[], onnx.ModelProto]
Verdicts = list[Reason | None]
Row = tuple[Build, Verdicts]
Shape = Sequence[int | str]

IMAGE: Shape = ("n", 4, 4, 4)
OPEN: Shape = ("n", 4, "h", "w")
NO_PRODUCER, NONLINEAR = Reason.NO_LINEAR_PRODUCER, Reason.READ_BY_NONLINEARITY
UNSHIFTED: dict[str, Any] = {"bias": np.zeros(4), "mean": np.zeros(4)}
MIXED_SIGNS: dict[str, Any] = {"weight": np.array([1.0, -1.0, 0.5, 2.0])}
ANYTHING = FoldOptions(max_growth=100.0, merge="never")


def op(name: str, *operands: object, **attributes: object) -> Step:
    """One node behind the value: a list is an int64 operand, an array a float one, a text a value of the graph."""

    def step(net: Net, y: str) -> str:
        return net.node(name, [y, *[operand_of(net, each) for each in operands]], **attributes)

    return step


def operand_of(net: Net, operand: object) -> str:
    name = f"operand{len(net.constants)}"
    if isinstance(operand, list):
        net.constants.append(numpy_helper.from_array(np.array(operand, dtype=np.int64), name))
    elif isinstance(operand, bool | int):
        net.constants.append(numpy_helper.from_array(np.array(operand), name))
    elif isinstance(operand, np.ndarray):
        net.constant(name, operand)
    else:
        name = str(operand)
    return name


def steps(*each: Step) -> Step:
    def step(net: Net, y: str) -> str:
        for one in each:
            y = one(net, y)
        return y

    return step


def up(step: Step, x: Shape = IMAGE, norm: int = 4, opset: int = 17, **stored: Any) -> Build:
    """Conv, the step, BatchNormalization."""

    def build() -> onnx.ModelProto:
        net = Net(opset=opset, ir_version=8 if opset < 21 else 10)
        net.batch_norm(step(net, net.conv("x", 4, 4, (1,) * (len(x) - 2))), norm, stored=stored)
        return net.model({"x": x}, ["bn"])

    return build


def down(step: Step, x: Shape = IMAGE, kernel: int = 2, opset: int = 17, norm: int = 4, **stored: Any) -> Build:
    """BatchNormalization, the step, Conv."""

    def build() -> onnx.ModelProto:
        net = Net(opset=opset, ir_version=8 if opset < 21 else 10)
        net.conv(step(net, net.batch_norm("x", norm, stored=stored)), 4, 3, (1,) * kernel, name="last")
        return net.model({"x": x}, ["last"])

    return build


def both(step: Step, x: Shape = IMAGE, opset: int = 17, **stored: Any) -> tuple[Build, Build]:
    return up(step, x, opset=opset, **stored), down(step, x, opset=opset, **stored)


def crossing(title: str, step: Step, up_says: Verdicts, down_says: Verdicts, **more: Any) -> dict[str, Row]:
    builds = both(step, **more)
    return {f"{title}, up": (builds[0], up_says), f"{title}, down": (builds[1], down_says)}


def crossed(title: str, step: Step, **more: Any) -> dict[str, Row]:
    return crossing(title, step, [None], [None], **more)


def refused(title: str, step: Step, reason: Reason, **more: Any) -> dict[str, Row]:
    return crossing(title, step, [reason], [reason], **more)


def opaque(title: str, step: Step, **more: Any) -> dict[str, Row]:
    return crossing(title, step, [NO_PRODUCER], [NONLINEAR], **more)


def training(net: Net, y: str) -> str:
    """Random at run time, so it is there in the graph but its numbers are of no use: a ratio of zero."""
    return op("Dropout", np.array(0.0), True)(net, y)


def dropout_with_mask(net: Net, y: str) -> str:
    net.nodes.append(helper.make_node("Dropout", [y], ["dropped", "mask"], name="dropout_node"))
    return net.node("Mul", ["dropped", net.node("Cast", ["mask"], to=TensorProto.FLOAT)])


def pool_with_indices(net: Net, y: str) -> str:
    net.nodes.append(helper.make_node("MaxPool", [y], ["pooled", "where"], name="pool_node", kernel_shape=[1, 1]))
    return net.node("Add", ["pooled", net.node("Cast", ["where"], to=TensorProto.FLOAT)])


def halves(axis: int, *picked: int, sizes: Sequence[int] = (2, 2), **attributes: Any) -> Step:
    """Split into two and put together again in another order."""

    def step(net: Net, y: str) -> str:
        inputs = [y] if "split" in attributes or "num_outputs" in attributes else [y, net.integers("sizes", *sizes)]
        names = ["left", "right"]
        net.nodes.append(helper.make_node("Split", inputs, names, name="split_node", axis=axis, **attributes))
        return net.node("Concat", [names[index] for index in picked], axis=axis)

    return step


def size_of(net: Net, y: str, axis: int) -> str:
    return net.node("Gather", [net.node("Shape", [y]), operand_of(net, [axis])])


def as_seen_at_run_time(*sizes: int | str) -> Step:
    """Reshape to sizes that an exporter computes: "2" is the size of axis 2 of the value."""

    def step(net: Net, y: str) -> str:
        parts = [size_of(net, y, int(size)) if isinstance(size, str) else operand_of(net, [size]) for size in sizes]
        return net.node("Reshape", [y, net.node("Concat", parts, axis=0)])

    return step


def to_tokens_and_back(net: Net, y: str) -> str:
    """(N, L, C) → (N·L, C) → (N, L, C), the sizes computed at run time."""
    long = net.node("Mul", [size_of(net, y, 0), size_of(net, y, 1)])
    flat = net.node("Reshape", [y, net.node("Concat", [long, operand_of(net, [4])], axis=0)])
    sizes = [size_of(net, y, 0), size_of(net, y, 1), operand_of(net, [4])]
    back = net.node("Reshape", [net.node("Mul", [flat, operand_of(net, np.array([1.0, 2, 3, 4]))]), concat(net, sizes)])
    return net.node("Transpose", [back], perm=[0, 2, 1])


def concat(net: Net, parts: list[str], axis: int = 0) -> str:
    return net.node("Concat", parts, axis=axis)


def heads(net: Net, y: str) -> str:
    """(B, N, 3·h·d) → (B, N, 3, h, d) → (3, B, h, N, d), as in attention, and the first of the three."""
    split = op("Reshape", [0, -1, 3, 2, 4])(net, net.node("MatMul", [y, operand_of(net, net.numbers(4, 24))]))
    return op("Gather", 0, axis=0)(net, net.node("Transpose", [split], perm=[2, 0, 3, 1, 4]))


def shuffle(net: Net, y: str) -> str:
    """Two groups of channels take turns: the new channel is made of two digits of the old one."""
    groups = op("Transpose", perm=[0, 2, 1, 3, 4])(net, op("Reshape", [0, 2, 2, 4, 4])(net, y))
    return op("Reshape", [0, 4, 4, 4])(net, groups)


def gated(net: Net, y: str) -> str:
    """Squeeze and excite."""
    squeezed = net.node("Sigmoid", [net.conv(net.node("GlobalAveragePool", ["x"]), 4, 4, (1, 1), name="excite")])
    return net.node("Mul", [y, squeezed])


def beside(name: str, **attributes: Any) -> Step:
    """The value and that of another convolution."""
    return lambda net, y: net.node(name, [y, net.conv("x", 4, 4, (1, 1), name="other")], **attributes)


def resized(*scales: float, opset: int = 17, **attributes: Any) -> Step:
    def step(net: Net, y: str) -> str:
        return net.node("Resize", [y, "", net.constant("scales", scales, TensorProto.FLOAT)], **attributes)

    return step


def resized_to(*sizes: int, **attributes: Any) -> Step:
    return lambda net, y: net.node("Resize", [y, "", "", operand_of(net, list(sizes))], **attributes)


def looks_like(net: Net, y: str) -> str:
    return net.node("CastLike", [y, "x"])


def expanded(*sizes: int) -> Step:
    return op("Expand", list(sizes))


ROWS: dict[str, Row] = {
    # the channel stays
    **crossed("Identity", op("Identity")),
    **crossed("two of them", steps(op("Identity"), op("Identity"))),
    **crossed("Dropout 7", op("Dropout", ratio=0.5), opset=7),
    **crossed("Dropout 12", op("Dropout"), opset=13),
    **crossed("Dropout, not training", op("Dropout", np.array(0.5), False)),
    **opaque("Dropout, training", training),
    **opaque("Dropout, mask read", dropout_with_mask, **UNSHIFTED),
    **crossed("Cast", steps(op("Cast", to=TensorProto.FLOAT16), op("Cast", to=TensorProto.FLOAT))),
    **crossed("CastLike", looks_like),
    **opaque("Cast to whole numbers", steps(op("Cast", to=TensorProto.INT64), op("Cast", to=TensorProto.FLOAT))),
    **crossed("Expand that changes nothing", expanded(1, 4, 1, 1), x=OPEN),
    **crossed("Expand of the batch", expanded(2, 1, 1, 1), x=(1, 4, 3, 3)),
    # pools
    **crossed("AveragePool", op("AveragePool", kernel_shape=[2, 2])),
    **crossed("AveragePool, open", op("AveragePool", kernel_shape=[2, 2], ceil_mode=1), x=(2, 4, 5, 5)),
    **crossed("AveragePool, padded", op("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 0, 0])),
    **refused(
        "AveragePool, zeros counted",
        op("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1),
        Reason.PADDED_BORDER,
    ),
    **crossed(
        "AveragePool, zeros counted, no shift",
        op("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1),
        **UNSHIFTED,
    ),
    **crossed("AveragePool, nothing to count", op("AveragePool", kernel_shape=[2, 2], count_include_pad=1)),
    **crossed("GlobalAveragePool", op("GlobalAveragePool"), x=OPEN),
    **crossed("ReduceMean", op("ReduceMean", axes=[2, -1]), x=OPEN),
    **crossed("ReduceMean 18", op("ReduceMean", [2, 3]), opset=18),
    **crossed("ReduceMean of nothing", op("ReduceMean", [], noop_with_empty_axes=1), opset=18),
    "ReduceMean, axes dropped": (up(op("ReduceMean", axes=[2, 3], keepdims=0)), [None]),
    "ReduceMean, batch dropped": (
        up(steps(op("ReduceMean", axes=[0], keepdims=0), op("Transpose", perm=[1, 0, 2]))),
        [None],
    ),
    "ReduceMean, batch dropped, channels first": (
        up(op("ReduceMean", axes=[0], keepdims=0)),
        [Reason.AXIS_DIFFERS],
    ),
    "ReduceMean of channels": (up(op("ReduceMean", axes=[1]), norm=1), [None]),
    "ReduceMean of channels, down": (
        down(steps(op("ReduceMean", axes=[1]), expanded(1, 4, 1, 1))),
        [Reason.CHANNELS_MIXED],
    ),
    **refused("ReduceSum", op("ReduceSum", [2]), NO_PRODUCER)
    | {"ReduceSum, down": (down(op("ReduceSum", [2])), [NONLINEAR])},
    **crossed("ReduceSum, no shift", op("ReduceSum", [2]), **UNSHIFTED),
    **crossed("MaxPool", op("MaxPool", kernel_shape=[2, 2], pads=[1, 0, 0, 0])),
    **crossed("GlobalMaxPool", op("GlobalMaxPool"), x=OPEN),
    **crossed("ReduceMax", op("ReduceMax", axes=[2])),
    **crossed("ReduceMin", op("ReduceMin", [3], keepdims=1), opset=18),
    **refused("MaxPool, signs", op("MaxPool", kernel_shape=[2, 2]), Reason.MIXED_SIGN_MAXPOOL, **MIXED_SIGNS),
    **refused("GlobalMaxPool, signs", op("GlobalMaxPool"), Reason.MIXED_SIGN_MAXPOOL, **MIXED_SIGNS),
    **refused("ReduceMax, signs", op("ReduceMax", axes=[2]), Reason.MIXED_SIGN_MAXPOOL, **MIXED_SIGNS),
    **opaque("MaxPool, indices read", pool_with_indices),
    # resizing
    **crossed("Resize nearest", resized(1, 1, 2, 2), x=OPEN),
    **crossed("Resize linear", resized(1, 1, 1.5, 0.5, mode="linear")),
    **crossed("Resize cubic", resized(1, 1, 2, 2, mode="cubic", coordinate_transformation_mode="align_corners")),
    **crossed("Resize to sizes", resized_to(2, 4, 6, 7, mode="linear"), x=(2, 4, 4, 4)),
    **crossed("Resize 10", op("Resize", np.array([1.0, 1, 2, 2]), mode="nearest"), opset=10),
    **crossed("Upsample 9", op("Upsample", np.array([1.0, 1, 2, 2]), mode="nearest"), opset=9),
    **crossed("Upsample 7", op("Upsample", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"), opset=7),
    "Resize of channels": (up(resized(1, 2, 1, 1), norm=8), [Reason.CHANNELS_MIXED]),
    # lines that meet at zero
    **opaque("Relu", op("Relu")),
    **crossed("Relu, no shift", op("Relu"), **UNSHIFTED),
    **opaque("Relu, no shift, signs", op("Relu"), **UNSHIFTED, **MIXED_SIGNS),
    **crossed("LeakyRelu, no shift", op("LeakyRelu", alpha=0.3), **UNSHIFTED),
    **opaque("LeakyRelu", op("LeakyRelu", alpha=0.3)),
    **crossed("PRelu, no shift", op("PRelu", np.full((4, 1, 1), 0.2)), **UNSHIFTED),
    **opaque("PRelu, slope computed", op("PRelu", "x"), **UNSHIFTED),
    **opaque("Clip", op("Clip", np.array(0.0), np.array(6.0)), **UNSHIFTED),
    **opaque("Softmax", op("Softmax", axis=1), **UNSHIFTED),
    # padding
    **crossed("Pad reflect", op("Pad", [0, 0, 1, 1, 0, 0, 1, 0], mode="reflect")),
    **crossed("Pad edge", op("Pad", [0, 0, 1, 1, 0, 0, 1, 0], mode="edge"), x=OPEN),
    **crossed("Pad wrap", op("Pad", [0, 0, 1, 1, 0, 0, 1, 0], mode="wrap"), opset=19),
    **crossed("Pad by nothing", op("Pad", [0] * 8)),
    **crossed("Pad that crops", op("Pad", [0, 0, -1, 0, 0, 0, 0, -1])),
    **crossed("Pad zeros, no shift", op("Pad", [0, 0, 1, 1, 0, 0, 1, 0]), **UNSHIFTED),
    **crossed("Pad 2", op("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 0], value=0.0), opset=7, **UNSHIFTED),
    **crossed("Pad 18", op("Pad", [1, 2], np.array(0.0), [-1]), opset=18, **UNSHIFTED),
    **refused("Pad zeros", op("Pad", [0, 0, 1, 1, 0, 0, 1, 0]), Reason.PADDED_BORDER),
    **refused("Pad ones", op("Pad", [0, 0, 1, 1, 0, 0, 1, 0], np.array(1.0)), Reason.PADDED_BORDER, **UNSHIFTED),
    **refused("Pad 2, ones", op("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 0], value=1.0), Reason.PADDED_BORDER, opset=7),
    "Pad of channels": (up(op("Pad", [0, 1, 0, 0, 0, 1, 0, 0]), norm=6), [Reason.CHANNELS_MIXED]),
    # other shapes
    **crossed("Transpose twice", steps(op("Transpose", perm=[0, 2, 3, 1]), op("Transpose", perm=[0, 3, 1, 2])), x=OPEN),
    "Transpose": (up(op("Transpose", perm=[0, 2, 1, 3])), [Reason.AXIS_DIFFERS]),
    "Transpose that reverses": (up(op("Transpose"), x=("n", 4, 4)), [None]),
    "Transpose that reverses four axes": (up(op("Transpose")), [Reason.AXIS_DIFFERS]),
    "Transpose, down": (down(op("Transpose", perm=[0, 2, 1, 3])), [Reason.AXIS_DIFFERS]),
    "Flatten": (up(op("Flatten"), norm=64), [Reason.CHANNELS_MIXED]),
    "Flatten of one pixel": (up(steps(op("GlobalAveragePool"), op("Flatten")), x=OPEN), [None]),
    "Reshape that drops pixels": (up(op("Reshape", [0, 4, -1]), x=OPEN), [None]),
    "Reshape to rows": (up(op("Reshape", [-1, 4, 2, 2])), [Reason.AXIS_DIFFERS]),
    "Reshape of pixels to channels": (up(op("Reshape", [0, 16, 2, -1]), norm=16), [Reason.CHANNELS_MIXED]),
    "Reshape with the batch in front": (up(op("Reshape", [-1, 4, 16])), [None]),
    "Reshape, allowzero": (up(op("Reshape", [-1, 4, 16], allowzero=1)), [None]),
    "Reshape to groups": (up(op("Reshape", [0, 2, -1]), norm=2, x=IMAGE), [None]),
    **refused("channel shuffle", shuffle, Reason.CHANNELS_MIXED),
    "Reshape computed": (up(as_seen_at_run_time("0", 4, -1), x=OPEN), [None]),
    "Reshape computed, to channels": (up(as_seen_at_run_time("0", -1, 2, 2), norm=16), [Reason.CHANNELS_MIXED]),
    "tokens": (up(steps(op("Transpose", perm=[0, 2, 1]), to_tokens_and_back), x=("n", 4, "l")), [None, None]),
    "Squeeze 11": (up(steps(op("GlobalAveragePool"), op("Squeeze", axes=[2, 3])), opset=11), [None]),
    "Squeeze 13": (up(steps(op("GlobalAveragePool"), op("Squeeze", [-1, 2])), x=OPEN), [None]),
    "Squeeze of all": (up(steps(op("GlobalAveragePool"), op("Squeeze")), x=(2, 4, 3, 3)), [None]),
    "Squeeze of all, batch open": (up(steps(op("GlobalAveragePool"), op("Squeeze"))), [Reason.AXIS_UNKNOWN]),
    "Unsqueeze 11": (up(op("Unsqueeze", axes=[4]), opset=11), [None]),
    "Unsqueeze 13": (up(op("Unsqueeze", [-1, 2])), [None]),
    "Unsqueeze in front": (up(op("Unsqueeze", [1]), norm=1), [None]),
    # pieces
    **crossed("Slice of pixels", op("Slice", [1], [2**63 - 1], [-1], [2]), x=OPEN),
    **crossed("Slice 1", op("Slice", starts=[0, 1], ends=[2, 9], axes=[2, 3]), opset=9),
    **crossed("Slice of nothing", op("Slice", [0, 0], [2**62, 4], [0, 1])),
    **crossed("Slice that turns channels round", op("Slice", [-1], [-(2**62)], [1], [-1])),
    "Slice of channels": (up(op("Slice", [1], [3], [1]), norm=2), [None]),
    "Slice by what is computed": (
        up(lambda net, y: op("Slice", [0], size_of(net, "x", 2), [2])(net, y), x=OPEN),
        [NO_PRODUCER],
    ),
    **crossed("Split", halves(1, 1, 0)),
    **crossed("Split into nothing and all", halves(1, 1, 0, sizes=(0, 4))),
    **crossed("Split 11", halves(1, 0, 1, split=[2, 2]), opset=11),
    **crossed("Split 18", halves(1, 1, 0, num_outputs=2), opset=18),
    **crossing("Split of pixels", halves(3, 1, 0), [Reason.SHARED_OUTPUT], [None]),
    **crossed("Gather", op("Gather", [3, 1, 0, -2], axis=1)),
    **crossed("Gather of pixels", op("Gather", [0, 0, 1], axis=-1), x=OPEN),
    "Gather of one": (up(op("Gather", 1, axis=-1)), [None]),
    "Gather of one channel": (up(steps(op("Gather", 1, axis=1), op("Unsqueeze", [1])), norm=1), [None]),
    "Gather twice": (up(op("Gather", [1, 1, 2], axis=1), norm=3), [Reason.CHANNELS_MIXED]),
    "Gather of a table": (up(op("Gather", [[0, 1], [2, 3]], axis=2)), [NO_PRODUCER]),
    # joins
    "Concat": (up(beside("Concat", axis=1), norm=8), [None]),
    "Concat of pixels": (up(beside("Concat", axis=-1)), [None]),
    "Concat of a stranger": (up(lambda net, y: net.node("Concat", [y, "x"], axis=1), norm=8), [Reason.IS_GRAPH_OUTPUT]),
    "Concat, down": (
        down(
            lambda net, y: net.node(
                "Slice", [net.node("Concat", [y, "x"], axis=1), *[operand_of(net, [n]) for n in (2, 6, 1)]]
            )
        ),
        [None],
    ),
    "Concat of pixels, down": (down(lambda net, y: net.node("Concat", [y, "x"], axis=2)), [Reason.JOINED]),
    "Add": (up(beside("Add")), [None]),
    "Sub": (up(beside("Sub")), [None]),
    "Sum": (up(beside("Sum")), [None]),
    "Sum of three": (
        up(lambda net, y: net.node("Sum", [y, net.conv("x", 4, 4, (1, 1)), net.conv("x", 4, 4, (1, 1))])),
        [None],
    ),
    "Mean": (up(beside("Mean")), [NO_PRODUCER]),
    "Add of a stranger": (up(lambda net, y: net.node("Add", [y, "x"])), [Reason.IS_GRAPH_OUTPUT]),
    "Add to itself": (up(lambda net, y: net.node("Add", [y, y])), [Reason.SHARED_OUTPUT]),
    "Add of a stranger, down": (down(lambda net, y: net.node("Add", [y, "x"])), [Reason.JOINED]),
    "Add to itself, down": (down(lambda net, y: net.node("Add", [y, y])), [None]),
    "Mul by a gate": (up(gated), [Reason.GATED]),
    "Mul by a gate, no shift": (up(gated, **UNSHIFTED), [None]),
    "Mul by a gate, down": (down(gated, **UNSHIFTED), [None]),
    "Div by a gate": (up(lambda net, y: net.node("Div", [y, net.node("Exp", ["x"])]), **UNSHIFTED), [None]),
    "a gate divided": (up(lambda net, y: net.node("Div", [net.node("Exp", ["x"]), y]), **UNSHIFTED), [NO_PRODUCER]),
    "Mul by itself": (up(lambda net, y: net.node("Mul", [y, y]), **UNSHIFTED), [Reason.SHARED_OUTPUT]),
    "Mul by itself, down": (down(lambda net, y: net.node("Mul", [y, y]), **UNSHIFTED), [NONLINEAR]),
    "Einsum": (up(op("Einsum", equation="nchw->nchw")), [NO_PRODUCER]),
}


# Elementwise affines.


def behind(step: Step, x: Shape = IMAGE, opset: int = 17) -> Build:
    """Conv, then the step."""

    def build() -> onnx.ModelProto:
        net = Net(opset=opset)
        return net.model({"x": x}, [step(net, net.conv("x", 4, 4, (1,) * (len(x) - 2), name="first"))])

    return build


def ahead(step: Step, x: Shape = IMAGE) -> Build:
    """The step, then Conv."""

    def build() -> onnx.ModelProto:
        net = Net()
        return net.model({"x": x}, [net.conv(step(net, "x"), 4, 3, (1,) * (len(x) - 2), name="last")])

    return build


def by(name: str, *shape: int, first: bool = False, low: float = 0.5) -> Step:
    """An operator with a constant of this shape."""

    def step(net: Net, y: str) -> str:
        constant = operand_of(net, np.random.default_rng(len(shape)).uniform(low, 2, shape))
        return net.node(name, [constant, y] if first else [y, constant])

    return step


def row_of(name: str, *shape: int, **more: Any) -> Row:
    return behind(by(name, *shape, **more)), [None]


def matmul(*each: Step, x: Shape = ("n", 3, 4)) -> Build:
    def build() -> onnx.ModelProto:
        net = Net()
        return net.model({"x": x}, [steps(*each)(net, net.node("MatMul", ["x", operand_of(net, net.numbers(4, 4))]))])

    return build


def before_matmul(*each: Step, x: Shape = ("n", 3, 4)) -> Build:
    def build() -> onnx.ModelProto:
        net = Net()
        return net.model({"x": x}, [net.node("MatMul", [steps(*each)(net, "x"), operand_of(net, net.numbers(4, 4))])])

    return build


def written_out(net: Net, y: str) -> str:
    """(x − mean) / √(var + ε) · γ + β, the root computed by nodes and γ stored in another type."""
    numbers = [net.constant(name, np.linspace(0.5, 2, 4).reshape(1, 4, 1, 1)) for name in ("mean", "var", "beta")]
    mean, variance, beta = numbers
    gamma = net.constant("gamma", np.linspace(-1, 2, 4).reshape(4, 1, 1), TensorProto.DOUBLE)
    epsilon = net.node("Constant", [], value_float=1e-3)
    root = net.node("Sqrt", [net.node("Add", [variance, epsilon])])
    normal = net.node("Div", [net.node("Sub", [y, mean]), root])
    return net.node("Add", [net.node("Mul", [normal, net.node("Cast", [gamma], to=TensorProto.FLOAT)]), beta])


def layer_scale(net: Net, y: str) -> str:
    """A token mixer: γ of shape (C,) on the last axis, and the residual that the scale must not reach."""
    scaled = by("Mul", 4)(net, net.node("Transpose", [y], perm=[0, 2, 1]))
    return net.node("Add", [net.node("Transpose", [scaled], perm=[0, 2, 1]), "x"])


def attention_scale(net: Net, y: str) -> str:
    """softmax(q kᵀ / √d) v: one number, which only q or k can take."""
    other = net.node("Transpose", [net.conv("x", 4, 4, (1,), name="key")], perm=[0, 2, 1])
    scores = by("Div", first=False)(net, net.node("MatMul", [other, y]))
    return net.node("Softmax", [scores])


def read_elsewhere(net: Net, y: str) -> str:
    """A factor that another operator reads too: it must stay."""
    factor = net.constant("factor", np.linspace(1, 2, 4).reshape(4, 1, 1))
    return net.node("Max", [net.node("Mul", [y, factor]), factor])


def of_unknown_shape(step: Step) -> Build:
    """Inside a function nothing is known of shapes."""

    def build() -> onnx.ModelProto:
        net, body = Net(), Net(seed=5)
        y = step(body, body.conv("a", 4, 4, (1, 1)))
        nodes = [helper.make_node("Constant", [], [constant.name], value=constant) for constant in body.constants]
        opsets = [helper.make_opsetid("", 17)]
        net.functions.append(helper.make_function("local", "Block", ["a"], [y], nodes + body.nodes, opsets))
        net.node("Block", ["x"], domain="local")
        return net.model({"x": IMAGE})

    return build


def overridable() -> onnx.ModelProto:
    net = Net()
    net.node("Mul", [net.conv("x", 4, 4, (1, 1)), net.constant("factor", np.full((4, 1, 1), 2.0))], "out")
    return net.model({"x": IMAGE}, ["out"], declare=["factor"])


def quantised(net: Net, y: str) -> str:
    net.constants.append(numpy_helper.from_array(np.array(0, dtype=np.int8), "zero"))
    scale = net.constant("scale", 0.1)
    near = net.node("QuantizeLinear", [y, scale, "zero"])
    return by("Mul", 4, 1, 1)(net, net.node("DequantizeLinear", [near, scale, "zero"]))


def on_whole_numbers(net: Net, y: str) -> str:
    whole = net.node("Cast", [y], to=TensorProto.INT64)
    return net.node("Cast", [net.node("Neg", [net.node("Mul", [whole, operand_of(net, [3])])])], to=TensorProto.FLOAT)


def straight_through(*names: str) -> Build:
    """From the input to the output, past affines that do nothing together."""

    def build() -> onnx.ModelProto:
        net, y = Net(), "x"
        for name in names:
            y = net.node(name, [y, operand_of(net, np.array(2.0))])
        return net.model({"x": IMAGE}, [y])

    return build


def output_of_an_output() -> onnx.ModelProto:
    net = Net()
    y = net.node("Relu", ["x"], "first")
    return net.model({"x": IMAGE}, [y, by("Mul", low=2)(net, net.node("Mul", [y, operand_of(net, np.array(0.5))]))])


def read_by(reader: Step, step: Step) -> Build:
    """Two readers of one convolution."""

    def build() -> onnx.ModelProto:
        net = Net()
        y = net.conv("x", 4, 4, (1, 1))
        return net.model({"x": IMAGE}, [step(net, y), reader(net, y)])

    return build


AFFINES: dict[str, Row] = {
    **{
        f"{name} {shape}": row_of(name, *shape)
        for name in ("Add", "Sub", "Mul", "Div")
        for shape in ((), (4, 1, 1), (1, 4, 1, 1))
    },
    "a constant minus": row_of("Sub", 4, 1, 1, first=True),
    "a constant times": row_of("Mul", 1, 1, 1, 1, first=True),
    "a constant by": (behind(by("Div", 4, 1, 1, first=True)), []),
    "Neg": (behind(op("Neg")), [None]),
    "ahead of Conv": (ahead(steps(by("Sub", 4, 1, 1), by("Div", 1, 4, 1, 1))), [None, None]),
    "ahead of Conv, open channels": (ahead(by("Sub", 4, 1, 1), x=("n", "c", 4, 4)), [Reason.AXIS_UNKNOWN]),
    "one number, open sizes": (ahead(by("Mul"), x=OPEN), [None]),
    "(W,)": (behind(by("Mul", 4)), [Reason.AXIS_DIFFERS]),
    "(H, 1)": (behind(by("Add", 4, 1)), [Reason.AXIS_DIFFERS]),
    "(N, 1, 1, 1)": (behind(by("Mul", 4, 1, 1, 1), x=(4, 4, 4, 4)), [Reason.AXIS_DIFFERS]),
    "(N, 1, 1, 1), open": (behind(by("Mul", 2, 1, 1, 1)), [Reason.AXIS_UNKNOWN]),
    "(C, H, 1)": (behind(by("Mul", 4, 4, 1)), [Reason.NOT_PER_CHANNEL]),
    "(C, H, W)": (behind(by("Add", 4, 4, 4)), [Reason.NOT_PER_CHANNEL]),
    "(1, 1, 4, 1, 1)": (behind(by("Mul", 1, 1, 4, 1, 1)), [Reason.NOT_PER_CHANNEL]),
    "(1, 1, 1, 1, 1)": (behind(by("Mul", 1, 1, 1, 1, 1)), [Reason.NOT_PER_CHANNEL]),
    "data that broadcasts": (
        behind(steps(op("ReduceMean", axes=[1]), by("Mul", 4, 1, 1))),
        [Reason.NOT_PER_CHANNEL],
    ),
    "zero divisor": (behind(op("Div", np.array([1.0, 2, 0, 4]).reshape(4, 1, 1))), [Reason.NON_FINITE]),
    "infinite factor": (behind(op("Mul", np.array(np.inf))), [Reason.NON_FINITE]),
    "written out": (behind(written_out), [None] * 4),
    "layer scale": (behind(layer_scale, x=("n", 4, 5)), [None]),
    "attention scale": (behind(attention_scale, x=("n", 4, 5)), [None]),
    "MatMul, bias, more": (matmul(by("Add", 4), by("Add", 4), by("Mul", 4), by("Sub")), [None] * 3),
    "MatMul, scale first": (matmul(by("Mul", 4), by("Add", 4)), [None, None]),
    "Add, MatMul": (before_matmul(op("Relu"), by("Add", 4)), [Reason.NO_GAIN]),
    "Add, Add, MatMul": (before_matmul(op("Relu"), by("Add", 4), by("Add", 4)), [None, None]),
    "MatMul, along tokens": (matmul(by("Add", 4), by("Mul", 3, 1)), [Reason.AXIS_DIFFERS]),
    "attention heads": (matmul(heads, by("Mul", 4)), [None]),
    "attention heads, along tokens": (matmul(heads, by("Mul", 3, 1)), [Reason.AXIS_DIFFERS]),
    "a constant that others read": (behind(read_elsewhere), [None]),
    "two readers, one affine": (read_by(op("Relu"), by("Mul", 4, 1, 1)), [Reason.SHARED_OUTPUT]),
    "in a function, one number": (of_unknown_shape(by("Mul")), [None]),
    "in a function, per channel": (of_unknown_shape(by("Mul", 4, 1, 1)), [Reason.AXIS_UNKNOWN]),
    "in a function, one number of some rank": (of_unknown_shape(by("Mul", 1, 1, 1)), [Reason.AXIS_UNKNOWN]),
    "an overridable constant": (overridable, []),
    "quantised": (behind(quantised), [Reason.QUANTISED]),
    "whole numbers": (behind(on_whole_numbers), []),
    "nothing at all": (straight_through("Mul", "Div"), [None, None]),
    "an output of an output": (output_of_an_output, [None, None]),
    "opset 6": (behind(by("Mul", 4, 4, 4), opset=6, x=(4, 4, 4, 4)), [Reason.OLD_OPSET]),
}


EVERY = ROWS | AFFINES
NOT_IN_REFERENCE = ("Resize 10", "Upsample 7", "Resize cubic", "Pad that crops")


@pytest.mark.parametrize("name", EVERY)
def test_row(name: str) -> None:
    build, verdicts = EVERY[name]
    proto = build()
    in_float32 = name.startswith(NOT_IN_REFERENCE)
    model = frontend.from_proto(proto) if in_float32 else frontend.as_float64(frontend.from_proto(proto))
    folded, report = frontend.fold_model(model, ANYTHING)
    assert outcomes(report) == verdicts
    if None not in verdicts:
        assert frontend.to_bytes(folded) == frontend.to_bytes(model), "nothing folded, yet the model changed"
        return
    frontend.from_bytes(frontend.to_bytes(folded))  # valid
    assert frontend.signature(folded) == frontend.signature(model)
    for unknown in (2, 3):
        if in_float32:
            assert_same(run32, model, folded, unknown, 1e-4)
        else:
            assert_same(run64, model, folded, unknown, 1e-11)


PICKED: dict[str, tuple[Step, list[list[int]]]] = {
    "Gather": (op("Gather", [3, -1, 0, -4], axis=1), [[3, 3, 0, 0]]),
    "Gather of the last": (op("Gather", -1, axis=1), [[3]]),
    "Slice": (op("Slice", [-3], [-1], [1]), [[1, 2]]),
    "Slice backwards": (op("Slice", [-1], [-(2**62)], [1], [-2]), [[3, 1]]),
    "Slice backwards from beyond": (op("Slice", [2**62], [-4], [1], [-1]), [[3, 2, 1]]),
    "Slice from before the first": (op("Slice", [-9], [2], [1]), [[0, 1]]),
    "Slice of nothing": (op("Slice", [3], [1], [1]), [[]]),
    "Split": (halves(1, 1, 0, sizes=(1, 3)), [[0], [1, 2, 3]]),
    "Split into nothing and all": (halves(-3, 0, 1, sizes=(0, 4)), [[], [0, 1, 2, 3]]),
}


@pytest.mark.parametrize("name", PICKED)
def test_channels_that_are_picked_are_counted_from_the_front(name: str) -> None:
    step, picks = PICKED[name]
    model = frontend.from_proto(up(step)())
    graph = frontend.OnnxGraph(model)
    (reading,) = [found for node in model.graph if isinstance(found := graph.read(node), Split)]
    assert reading.picks is not None
    assert [list(picked) for picked in reading.picks] == picks


def outcomes(report: FoldReport) -> Verdicts:
    return [outcome.refusal.reason if outcome.refusal else None for outcome in report.outcomes]


Run = Callable[[ir.Model, dict[str, Any]], list[Any]]


def assert_same(run: Run, model: ir.Model, folded: ir.Model, unknown: int, tolerance: float) -> None:
    feeds = feeds_of(model, unknown=unknown)
    expected, found = run(model, feeds), run(folded, feeds)
    assert len(expected) == len(found) > 0
    for a, b in zip(expected, found, strict=True):
        assert np.isfinite(a).all()
        assert_allclose(b, a, rtol=tolerance, atol=tolerance)


def run32(model: ir.Model, feeds: dict[str, Any]) -> list[Any]:
    """By onnxruntime, without its own optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(frontend.to_bytes(model), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: array.astype(np.float32) for name, array in feeds.items()}))
