"""Wrong structures by a change of one node in a correct fold, each with the graphs it is made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper
from surgery import Array, Surgery, Unfit, attribute, drop_attribute, set_attribute
from wrong import Change, Random, folded_or_not, one_number, swapped

STRUCTURES: list[tuple[str, tuple[str, ...], Change]] = []
SOME = ("digits_resnet", "digits_mobilenet", "digits_unet", "digits_repvgg", "digits_densenet")


def structure(words: str, *names: str) -> Callable[[Change], Change]:
    def register(change: Change) -> Change:
        STRUCTURES.append((words, names, change))
        return change

    return register


def edit(
    words: str, names: tuple[str, ...], kind: str, do: Callable[[Surgery, onnx.NodeProto], None], at: int = 0
) -> None:
    """A change of one node of a kind: the one `at`, in the correct fold."""

    def change(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
        surgery = Surgery(folded_or_not(model))
        found = surgery.nodes(kind)
        if not found:
            raise Unfit(f"no {kind}")
        do(surgery, found[at])
        return surgery.clean()

    STRUCTURES.append((words, names, change))


def to_attribute(name: str, value: Any) -> Callable[[Surgery, onnx.NodeProto], None]:
    return lambda _, node: set_attribute(node, name, value)


def without_attribute(name: str) -> Callable[[Surgery, onnx.NodeProto], None]:
    return lambda _, node: drop_attribute(node, name)


def constant(index: int, numbers: Callable[[Array], Any]) -> Callable[[Surgery, onnx.NodeProto], None]:
    """Another constant as one input of the node, for this node only."""

    def do(surgery: Surgery, node: onnx.NodeProto) -> None:
        found = surgery.array(node.input[index])
        if found is None:
            raise Unfit("not stored")
        changed = np.asarray(numbers(found)).astype(found.dtype)
        node.input[index] = surgery.put(surgery.fresh("changed"), changed)

    return do


def retyped(kind: str) -> Callable[[Surgery, onnx.NodeProto], None]:
    def do(_: Surgery, node: onnx.NodeProto) -> None:
        node.op_type = kind

    return do


def inputs_swapped(_: Surgery, node: onnx.NodeProto) -> None:
    node.input[0], node.input[1] = node.input[1], node.input[0]


def first_only(surgery: Surgery, node: onnx.NodeProto) -> None:
    surgery.bypass(node, 0)


def second_only(surgery: Surgery, node: onnx.NodeProto) -> None:
    surgery.bypass(node, 1)


edit("a residual branch dropped", SOME[:2], "Add", first_only, -1)
edit("a residual branch dropped, the other one", ("digits_convmixer", "digits_levit"), "Add", second_only, -1)
edit("the last relu dropped", ("digits_resnet", "digits_conv1d", "digits_unet"), "Relu", first_only, -1)
edit("the second relu dropped", ("digits_densenet", "digits_repvgg"), "Relu", first_only, 1)
edit("a relu dropped that hardly matters", ("positive_relu",), "Relu", first_only)
edit("a clip dropped that hardly matters", ("positive_relu",), "Clip", first_only)
edit("relu6 made relu", ("clipped",), "Clip", constant(2, lambda x: 3e38))
edit("a clip's lower bound 0 made -0.1", ("clipped",), "Clip", constant(1, lambda x: -0.1), 1)
edit("a clip's upper bound 6 made 5.9", ("clipped",), "Clip", constant(2, lambda x: 5.9))
edit("the slope of a leaky relu at its default", ("clipped",), "LeakyRelu", without_attribute("alpha"))
edit("the slopes of a prelu of two channels swapped", ("clipped",), "PRelu", constant(1, swapped))
edit("pads moved by one", ("digits_resnet", "conv_3d"), "Conv", lambda _, node: moved_pads(node))
edit("auto_pad SAME_UPPER taken as SAME_LOWER", ("auto_pads",), "Conv", to_attribute("auto_pad", "SAME_LOWER"))
edit(
    "auto_pad SAME_UPPER taken as SAME_LOWER, an even kernel",
    ("auto_pads",),
    "Conv",
    to_attribute("auto_pad", "SAME_LOWER"),
    1,
)
edit(
    "dilation and pad 2 taken as 1",
    ("auto_pads",),
    "Conv",
    lambda s, n: (set_attribute(n, "dilations", [1, 1]), set_attribute(n, "pads", [1] * 4))[0],
    -1,
)
edit(
    "dilation and pad 1 taken as 2",
    ("digits_resnet",),
    "Conv",
    lambda s, n: (set_attribute(n, "dilations", [2, 2]), set_attribute(n, "pads", [2] * 4))[0],
    1,
)
edit(
    "dilation and pad 2 taken as 1, one axis",
    ("conv_1d",),
    "Conv",
    lambda s, n: (set_attribute(n, "dilations", [1]), set_attribute(n, "pads", [1, 1]))[0],
    -1,
)
edit(
    "stride of the other axis",
    ("conv_3d",),
    "Conv",
    lambda s, n: (set_attribute(n, "strides", [1, 2, 2]), set_attribute(n, "pads", [0, 0, 2, 0, 2, 0]))[0],
    1,
)
edit(
    "a transposed convolution's pads on one side",
    ("transposed_groups",),
    "ConvTranspose",
    to_attribute("pads", [2, 2, 0, 0]),
)
edit(
    "a transposed convolution's pads for output_padding",
    ("transposed_groups",),
    "ConvTranspose",
    lambda s, n: (set_attribute(n, "pads", [2, 2, 1, 1]), set_attribute(n, "output_padding", [1, 1]))[0],
)
edit("an average pool that counts its pads", ("pooling",), "AveragePool", to_attribute("count_include_pad", 1))
edit(
    "an average pool made a max pool",
    ("digits_densenet",),
    "AveragePool",
    lambda s, n: (retyped("MaxPool")(s, n), drop_attribute(n, "count_include_pad"))[0],
)
edit("a max pool's pads on one side", ("pooling",), "MaxPool", to_attribute("pads", [2, 2, 0, 0]))
edit(
    "a max pool dilated",
    ("pooling",),
    "MaxPool",
    lambda s, n: (set_attribute(n, "pads", [2] * 4), set_attribute(n, "dilations", [2, 2]))[0],
)
edit(
    "a global average pool made a global max pool",
    ("topk_head", "half_net"),
    "GlobalAveragePool",
    retyped("GlobalMaxPool"),
)
edit("nearest instead of linear", ("resized",), "Resize", to_attribute("mode", "nearest"))
edit(
    "asymmetric instead of half_pixel",
    ("resized",),
    "Resize",
    to_attribute("coordinate_transformation_mode", "asymmetric"),
)
edit(
    "align_corners instead of half_pixel",
    ("resized",),
    "Resize",
    to_attribute("coordinate_transformation_mode", "align_corners"),
)
edit("the softmax over another axis", ("attention",), "Softmax", to_attribute("axis", 2))
edit("the divisor of the scores √16 instead of √8", ("attention",), "Div", constant(1, lambda x: 4.0))
edit("the divisor of the scores lost", ("attention",), "Div", first_only)
edit("keys not transposed", ("attention",), "Transpose", to_attribute("perm", [0, 2, 3, 1]), 1)
edit("queries and keys swapped", ("attention",), "MatMul", lambda s, n: swap_readers(s), 3)
edit("ε of a layer norm 1e-3 instead of 1e-5", ("attention",), "LayerNormalization", to_attribute("epsilon", 1e-3))
edit("gain of a layer norm of two channels swapped", ("attention",), "LayerNormalization", constant(1, swapped))
edit("a residual in attention dropped", ("attention",), "Add", first_only, -1)
edit(
    "the exact gelu made the tanh approximation", ("digits_convmixer",), "Gelu", to_attribute("approximate", "tanh"), -1
)
edit("HardSigmoid at its default slope", ("depthwise", "digits_mobilenet"), "HardSigmoid", without_attribute("alpha"))
edit("HardSwish made Mish", ("depthwise",), "HardSwish", retyped("Mish"))
edit("a gate dropped", ("depthwise",), "Mul", first_only)
edit("alpha of a Gemm ignored", ("gemms",), "Gemm", without_attribute("alpha"), -1)
edit("beta of a Gemm ignored", ("gemms",), "Gemm", without_attribute("beta"), -1)
edit("transB of a square Gemm ignored", ("gemms",), "Gemm", without_attribute("transB"), 1)
edit("transB set on a square Gemm", ("gemms",), "Gemm", to_attribute("transB", 1))
edit("smallest instead of largest", ("topk_head", "fixed_scores"), "TopK", to_attribute("largest", 0))
edit("ArgMin instead of ArgMax", ("argmax_head", "casts"), "ArgMax", retyped("ArgMin"))
edit("the value of a hot element 0.999", ("casts",), "OneHot", constant(2, lambda x: [0.0, 0.999]))
edit("the IoU threshold 0.4 made 0.5", ("nms_head",), "NonMaxSuppression", constant(3, lambda x: [0.5]))
edit("the score threshold 0.45 made 0.35", ("nms_head",), "NonMaxSuppression", constant(4, lambda x: [0.35]))
edit("corners instead of centres", ("nms_head",), "NonMaxSuppression", without_attribute("center_point_box"))
edit("eight boxes of a class made seven", ("nms_head",), "NonMaxSuppression", constant(2, lambda x: [7]))
edit(
    "no score threshold, where all detections are below it",
    ("empty_detections",),
    "NonMaxSuppression",
    constant(4, lambda x: [0.5]),
)
edit("the boxes' offsets scaled by 0.101", ("nms_head",), "Mul", constant(1, lambda x: 0.101))
edit("Floor instead of Round", ("casts",), "Round", retyped("Floor"))
edit("Round left out before a cast", ("casts",), "Round", first_only)
edit("constants scaled by 4.001 before a rounding", ("casts",), "Mul", constant(1, lambda x: 4.001))
edit("an exclusive sum", ("indexing",), "CumSum", to_attribute("exclusive", 1))
edit("a sum in reverse", ("indexing",), "CumSum", to_attribute("reverse", 1))
edit("two gathered channels swapped", ("indexing",), "Gather", constant(1, swapped))
edit(
    "a slice one further",
    ("indexing",),
    "Slice",
    lambda s, n: (constant(1, lambda x: x - 1)(s, n), constant(2, lambda x: x - 1)(s, n))[0],
)
edit("a comparison with 0.501 instead of 0.5", ("indexing",), "Greater", constant(1, lambda x: 0.501))
edit(
    "the arms of a Where swapped",
    ("indexing",),
    "Where",
    lambda _, n: n.input.__setitem__(slice(1, 3), [n.input[2], n.input[1]]),
)
edit("the mean over the other of two equal axes", ("indexing",), "ReduceMean", to_attribute("axes", [2]))
edit("DCR instead of CRD", ("shuffled",), "DepthToSpace", to_attribute("mode", "DCR"))
edit("edge instead of reflect", ("shuffled",), "Pad", to_attribute("mode", "edge"))
edit("zeros instead of a reflected border", ("shuffled",), "Pad", to_attribute("mode", "constant"))
edit("the channel shuffle left out", ("shuffled",), "Transpose", lambda s, n: s.bypass(n))
edit("a square transpose left out", ("shuffled",), "Transpose", lambda s, n: s.bypass(n), -1)
edit("the branches of an If swapped", ("chosen_branch",), "If", lambda _, n: swap_arms(n))
edit("operands of a concatenation swapped", ("digits_unet", "digits_densenet"), "Concat", inputs_swapped, -1)
edit("operands of a subtraction swapped", ("shared_weight",), "Sub", inputs_swapped)
edit("a subtraction made an addition", ("shared_weight",), "Sub", retyped("Add"))
edit("Sigmoid made HardSigmoid", ("two_heads",), "Sigmoid", retyped("HardSigmoid"))
edit(
    "the slice's start moved by one",
    ("two_heads",),
    "Slice",
    lambda s, n: (constant(1, lambda x: x + 1)(s, n), constant(2, lambda x: x + 1)(s, n))[0],
)
edit("the scale of a quantiser off by 1 %", ("qdq_chain",), "QuantizeLinear", constant(1, lambda x: x * 1.01), 1)
edit("the scale of a dequantiser off by 0.1 %", ("qdq_chain",), "DequantizeLinear", constant(1, lambda x: x * 1.001), 1)
edit("the zero point of a quantiser off by one", ("qdq_per_channel",), "QuantizeLinear", constant(2, lambda x: x + 1))
edit("the scales of two channels swapped", ("qdq_per_channel",), "DequantizeLinear", constant(1, swapped), 1)
edit("the scales along the input channels", ("qdq_per_channel",), "DequantizeLinear", to_attribute("axis", 1), 1)
edit(
    "one quantised weight off by one step",
    ("qdq_per_channel",),
    "DequantizeLinear",
    constant(0, lambda x: one_number(x, np.random.default_rng(0), lambda each: each - np.sign(each))),
    1,
)
edit(
    "a relu dropped in front of a quantiser whose zero point is not its lowest",
    ("qdq_per_channel",),
    "Relu",
    first_only,
    -1,
)
edit("the batch baked in as 1", ("two_heads", "topk_head"), "Relu", lambda s, n: baked(s, n), 0)


def swap_readers(surgery: Surgery) -> None:
    """The first two projections change places."""
    first, second = surgery.nodes("MatMul")[:2]
    first.output[0], second.output[0] = second.output[0], first.output[0]


def moved_pads(node: onnx.NodeProto) -> None:
    pads = attribute(node, "pads")
    half = len(pads) // 2
    set_attribute(node, "pads", [p + 1 for p in pads[:half]] + [p - 1 for p in pads[half:]])


def swap_arms(node: onnx.NodeProto) -> None:
    for each in node.attribute:
        each.name = {"then_branch": "else_branch", "else_branch": "then_branch"}[each.name]


def baked(surgery: Surgery, node: onnx.NodeProto) -> None:
    """A reshape to a batch of one behind the node, as a shape computed once leaves it."""
    name = surgery.fresh("inner")
    target, node.output[0] = node.output[0], name
    shape = surgery.put(surgery.fresh("shape"), np.array([1, 8, 12, 12], dtype=np.int64))
    at = list(surgery.graph.node).index(node)
    surgery.graph.node.insert(at + 1, helper.make_node("Reshape", [name, shape], [target]))
