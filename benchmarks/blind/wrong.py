"""What a tool that folds or optimises gets wrong.

Three kinds of change: a wrong formula at one site of an otherwise correct fold (`FORMULAS`), wrong numbers in one layer
of a correct fold (`NUMBERS`), and a wrong structure (`STRUCTURES`, each with the graphs it is made for).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper
from surgery import Array, Formula, Layer, Surgery, Unfit, attribute, drop_attribute, fold, layer, set_attribute, sites
from surgery import replace as put_layer

Random = np.random.Generator
Change = Callable[[onnx.ModelProto, Random], onnx.ModelProto]


def by_scale(scale: Callable[[Layer], Array]) -> Formula:
    """The right structure with a wrong scale."""

    def formula(parts: Layer) -> tuple[Array, Array]:
        s = scale(parts)
        return parts.scaled(s), (parts.bias - parts.mean) * s + parts.beta

    return formula


def by_bias(bias: Callable[[Layer], Array]) -> Formula:
    return lambda parts: (parts.scaled(parts.scale), bias(parts))


def along_inputs(parts: Layer) -> tuple[Array, Array]:
    """The scale along the input channels, which goes unnoticed where there are as many of them."""
    if parts.weight.shape[0] != parts.weight.shape[1] or parts.groups != 1:
        raise Unfit("not square")
    turned = replace(parts, weight=parts.weight.swapaxes(0, 1)).scaled(parts.scale).swapaxes(0, 1)
    return turned, parts.folded()[1]


def blocks_confused(parts: Layer) -> tuple[Array, Array]:
    """The channels of groups in the order of a tile instead of a repeat."""
    if parts.groups < 2 or parts.groups == len(parts.scale):
        raise Unfit("no groups")
    order = np.arange(len(parts.scale)).reshape(parts.groups, -1).T.reshape(-1)
    return parts.scaled(parts.scale[order]), parts.folded()[1]


def swapped(numbers: Array, i: int = 0, j: int = 1) -> Array:
    order = np.arange(len(numbers))
    order[[i, j]] = order[[j, i]]
    return numbers[order]


def but_last(parts: Layer) -> tuple[Array, Array]:
    scale = parts.scale.copy()
    scale[-1] = 1
    bias = parts.folded()[1].copy()
    bias[-1] = parts.bias[-1]
    return parts.scaled(scale), bias


def needs_bias(parts: Layer) -> None:
    if not np.any(parts.bias):
        raise Unfit("no bias")


def bias_unscaled(parts: Layer) -> Array:
    needs_bias(parts)
    return parts.bias - parts.mean * parts.scale + parts.beta


def bias_lost(parts: Layer) -> Array:
    needs_bias(parts)
    return -parts.mean * parts.scale + parts.beta


def nan_in_one(parts: Layer) -> Array:
    bias = parts.folded()[1].copy()
    bias[len(bias) // 2] = np.nan
    return bias


FORMULAS: dict[str, Formula] = {
    "ε left out": by_scale(lambda p: p.gamma / np.sqrt(p.var)),
    "ε of another layer, 1e-3 for 1e-5 or the reverse": by_scale(
        lambda p: p.gamma / np.sqrt(p.var + (1e-3 if p.eps < 5e-4 else 1e-5))
    ),
    "√var + ε instead of √(var + ε)": by_scale(lambda p: p.gamma / (np.sqrt(p.var) + p.eps)),
    "the root left out": by_scale(lambda p: p.gamma / (p.var + p.eps)),
    "γ of the neighbour channel": by_scale(lambda p: np.roll(p.gamma, 1) / np.sqrt(p.var + p.eps)),
    "γ taken as 1": by_scale(lambda p: 1 / np.sqrt(p.var + p.eps)),
    "|γ|": by_scale(lambda p: np.abs(p.scale)),
    "the variance with n/(n-1), n = 4096": by_scale(lambda p: p.gamma / np.sqrt(p.var * 4096 / 4095 + p.eps)),
    "the scale computed in fp16": by_scale(lambda p: p.scale.astype(np.float16).astype(np.float64)),
    "the scale of two channels swapped": by_scale(lambda p: swapped(p.scale)),
    "scaled twice": lambda p: (p.scaled(p.scale**2), p.folded()[1]),
    "the weight not scaled": lambda p: (p.weight, p.folded()[1]),
    "β dropped": by_bias(lambda p: (p.bias - p.mean) * p.scale),
    "β of two channels swapped": by_bias(lambda p: (p.bias - p.mean) * p.scale + swapped(p.beta)),
    "the mean not scaled": by_bias(lambda p: p.bias * p.scale - p.mean + p.beta),
    "the mean dropped": by_bias(lambda p: p.bias * p.scale + p.beta),
    "the mean added": by_bias(lambda p: (p.bias + p.mean) * p.scale + p.beta),
    "the bias not scaled": by_bias(bias_unscaled),
    "the bias lost": by_bias(bias_lost),
    "NaN in the bias of one channel": by_bias(nan_in_one),
    "the last channel left out": but_last,
    "the scale along the input channels": along_inputs,
    "the channels of groups in another order": blocks_confused,
}


def one_number(numbers: Array, random: Random, change: Callable[[Any], Any]) -> Array:
    """One of the larger numbers changed."""
    made = numbers.copy().reshape(-1)
    candidates = np.argsort(-np.abs(made), kind="stable")[: max(1, len(made) // 4)]
    at = int(random.choice(candidates))
    made[at] = change(made[at])
    return made.reshape(numbers.shape)


def one_channel(numbers: Array, random: Random, factor: float) -> Array:
    made = numbers.copy()
    made[int(random.integers(len(made)))] *= factor
    return made


def as_int8(numbers: Array) -> Array:
    step = np.abs(numbers).max() / 127
    return (np.rint(numbers / step) * step).astype(numbers.dtype)


def through(kind: Any) -> Callable[[Array, Random], Array]:
    return lambda numbers, _: numbers.astype(kind).astype(numbers.dtype)


def small_to_zero(numbers: Array, _: Random) -> Array:
    return np.where(np.abs(numbers) < 0.02 * np.abs(numbers).max(), 0, numbers).astype(numbers.dtype)


def flipped(numbers: Array, _: Random) -> Array:
    if numbers.ndim < 3 or max(numbers.shape[2:]) < 2:
        raise Unfit("no kernel")
    return np.flip(numbers, axis=tuple(range(2, numbers.ndim)))


def kernel_turned(numbers: Array, _: Random) -> Array:
    if numbers.ndim != 4 or numbers.shape[2] != numbers.shape[3] or numbers.shape[2] < 2:
        raise Unfit("no square kernel")
    return numbers.swapaxes(2, 3)


def transposed(numbers: Array, _: Random) -> Array:
    if numbers.shape[0] != numbers.shape[1]:
        raise Unfit("not square")
    return numbers.swapaxes(0, 1)


def two_rows(numbers: Array, random: Random) -> Array:
    i, j = (int(each) for each in random.choice(len(numbers), 2, replace=False))
    return swapped(numbers, i, j)


def zero_row(numbers: Array, random: Random) -> Array:
    return one_channel(numbers, random, 0.0)


NUMBERS: dict[str, Callable[[Array, Random], Array]] = {
    "the sign of one weight": lambda n, r: one_number(n, r, lambda x: -x),
    "one weight off by 1e-3 of itself": lambda n, r: one_number(n, r, lambda x: x * (1 + 1e-3)),
    "one weight NaN": lambda n, r: one_number(n, r, lambda x: np.nan),
    "one channel off by 1e-2": lambda n, r: one_channel(n, r, 1 + 1e-2),
    "one channel off by 1e-3": lambda n, r: one_channel(n, r, 1 + 1e-3),
    "one channel off by 1e-4": lambda n, r: one_channel(n, r, 1 + 1e-4),
    "one channel off by 1e-5": lambda n, r: one_channel(n, r, 1 + 1e-5),
    "the layer stored through fp16": through(np.float16),
    "the layer stored through bf16": through(ml_dtypes.bfloat16),
    "the layer rounded to int8": lambda n, _: as_int8(n),
    "weights below 2 % of the largest set to zero": small_to_zero,
    "the kernel flipped": flipped,
    "height and width of the kernel swapped": kernel_turned,
    "the square weight transposed": transposed,
    "two output channels of the weight swapped": two_rows,
    "one output channel zero": zero_row,
}


def weights(surgery: Surgery) -> list[tuple[onnx.NodeProto, Array]]:
    found = []
    for node in surgery.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
        numbers = surgery.array(node.input[1])
        if numbers is not None and numbers.ndim > 1 and numbers.dtype.kind == "f":
            found.append((node, numbers))
    return found


def with_formula(formula: Formula) -> Change:
    """The fold with this formula at a random site where it applies."""

    def change(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
        count = len(sites(Surgery(model)))
        for at in random.permutation(count):
            try:
                return fold(model, formula, int(at))
            except Unfit:
                continue
        raise Unfit("at no site")

    return change


def folded_or_not(model: onnx.ModelProto) -> onnx.ModelProto:
    """Correctly folded, where there is something to fold."""
    return fold(model) if sites(Surgery(model)) else Surgery(model).clean()


def with_numbers(spoil: Callable[[Array, Random], Array]) -> Change:
    """The correct fold with the weight of one random layer changed."""

    def change(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
        surgery = Surgery(folded_or_not(model))
        found = weights(surgery)
        for at in random.permutation(len(found)):
            node, numbers = found[int(at)]
            try:
                changed = spoil(numbers, random)
            except Unfit:
                continue
            node.input[1] = surgery.put(surgery.fresh("weight"), changed.astype(numbers.dtype))
            return surgery.clean()
        raise Unfit("no such layer")

    return change


def bias_off(factor: float) -> Change:
    """One element of one bias off by a factor."""

    def change(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
        surgery = Surgery(folded_or_not(model))
        found = [n for n in surgery.nodes("Conv", "Gemm", "ConvTranspose") if len(n.input) > 2]
        found = [n for n in found if (b := surgery.array(n.input[2])) is not None and np.any(b)]
        if not found:
            raise Unfit("no bias")
        node = found[int(random.integers(len(found)))]
        numbers = surgery.array(node.input[2])
        assert numbers is not None
        changed = one_number(numbers, random, lambda x: x * factor)
        node.input[2] = surgery.put(surgery.fresh("bias"), changed)
        return surgery.clean()

    return change


def whole_half(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    """All weights through fp16."""
    surgery = Surgery(folded_or_not(model))
    for node, numbers in weights(surgery):
        node.input[1] = surgery.put(surgery.fresh("weight"), numbers.astype(np.float16).astype(numbers.dtype))
    return surgery.clean()


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


@structure("the shared weight folded for both with the scale of one", "shared_weight")
def shared_for_both(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    (first, norm), (second, other) = sites(surgery)
    ours, theirs = layer(surgery, first, norm), layer(surgery, second, other)
    put_layer(surgery, first, norm, *ours.folded())
    put_layer(surgery, second, other, ours.folded()[0], theirs.folded()[1])
    return surgery.clean()


@structure("the shared weight scaled by both, one after the other", "shared_weight")
def shared_twice(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    (first, norm), (second, other) = sites(surgery)
    ours, theirs = layer(surgery, first, norm), layer(surgery, second, other)
    both = ours.scaled(ours.scale * theirs.scale)
    put_layer(surgery, first, norm, both, ours.folded()[1])
    put_layer(surgery, second, other, both, theirs.folded()[1])
    return surgery.clean()


def forced(model: onnx.ModelProto, source: onnx.NodeProto, norm: onnx.NodeProto, surgery: Surgery) -> onnx.ModelProto:
    """Folded whatever stands between and whoever else reads it; what read the convolution reads the fold."""
    parts = layer(surgery, source, norm)
    weight, bias = parts.folded()
    kind = surgery.array(source.input[1]).dtype  # type: ignore[union-attr]
    source.input[1] = surgery.put(surgery.fresh("folded_weight"), weight.astype(kind))
    offset = surgery.put(surgery.fresh("folded_bias"), bias.astype(kind))
    if len(source.input) > 2:
        source.input[2] = offset
    else:
        source.input.append(offset)
    surgery.bypass(norm)
    return surgery.clean()


@structure("folded though the convolution is read elsewhere", "read_elsewhere")
def despite_reader(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    return forced(model, surgery.nodes("Conv")[0], surgery.nodes("BatchNormalization")[0], surgery)


@structure("folded though the convolution is an output", "inner_output")
def despite_output(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    norm, source = surgery.nodes("BatchNormalization")[0], surgery.nodes("Conv")[0]
    parts = layer(surgery, source, norm)
    weight, bias = parts.folded()
    source.input[1] = surgery.put(surgery.fresh("w"), weight.astype(np.float32))
    source.input[2] = surgery.put(surgery.fresh("b"), bias.astype(np.float32))
    target = norm.output[0]
    at = list(surgery.graph.node).index(norm)
    surgery.graph.node.remove(norm)
    surgery.graph.node.insert(at, helper.make_node("Identity", [source.output[0]], [target]))
    return surgery.clean()


@structure("a batch norm in training mode folded with its stored statistics", "training_mode")
def training_as_inference(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    norm = surgery.nodes("BatchNormalization")[0]
    drop_attribute(norm, "training_mode")
    del norm.output[1:]
    return fold(surgery.clean())


@structure("a batch norm in training mode made one of inference", "training_mode")
def training_lost(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    norm = surgery.nodes("BatchNormalization")[0]
    drop_attribute(norm, "training_mode")
    del norm.output[1:]
    return surgery.clean()


@structure("a factor per row folded as one per channel", "rows_constant")
def rows_as_channels(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    factor, source = surgery.nodes("Mul")[0], surgery.nodes("Conv")[0]
    scale, weight, bias = (surgery.array(n) for n in (factor.input[1], source.input[1], source.input[2]))
    assert scale is not None
    assert weight is not None
    assert bias is not None
    source.input[1] = surgery.put("scaled", weight * scale.reshape(-1, 1, 1, 1))
    source.input[2] = surgery.put("scaled_bias", bias * scale.reshape(-1))
    surgery.bypass(factor)
    return surgery.clean()


@structure("an offset per row folded as one per channel", "rows_constant")
def row_offset(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    node = surgery.nodes("Add")[0]
    found = surgery.array(node.input[1])
    assert found is not None
    node.input[1] = surgery.put("turned", found.reshape(1, 8, 1, 1))
    return surgery.clean()


@structure("a factor along the last axis folded as one per channel", "rows_constant")
def last_axis(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    node = surgery.nodes("Mul")[-1]
    found = surgery.array(node.input[1])
    assert found is not None
    node.input[1] = surgery.put("turned", found.reshape(1, 8, 1, 1))
    return surgery.clean()


def into_next(model: onnx.ModelProto) -> onnx.ModelProto:
    """The first batch norm folded into the convolution that reads it, whose border is then wrong."""
    surgery = Surgery(model)
    norm = surgery.nodes("BatchNormalization")[0]
    (reader,) = surgery.readers(norm.output[0])
    weight, bias = surgery.array(reader.input[1]), surgery.array(reader.input[2])
    parts = [surgery.array(name) for name in norm.input[1:5]]
    assert weight is not None
    assert bias is not None
    assert all(each is not None for each in parts)
    gamma, beta, mean, var = (np.asarray(each, dtype=np.float64) for each in parts)
    scale = gamma / np.sqrt(var + attribute(norm, "epsilon", 1e-5))
    offset = beta - mean * scale
    reader.input[2] = surgery.put("b", (bias + np.einsum("oihw,i->o", weight, offset)).astype(np.float32))
    reader.input[1] = surgery.put("w", (weight * scale.reshape(1, -1, 1, 1)).astype(np.float32))
    surgery.bypass(norm)
    return surgery.clean()


@structure("a batch norm folded into the padded convolution behind it", "norm_first")
def across_padding(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    return into_next(model)


def behind(model: onnx.ModelProto, index: int) -> onnx.ModelProto:
    """A batch norm folded into the convolution in front of what it really reads."""
    surgery = Surgery(model)
    norm = surgery.nodes("BatchNormalization")[index]
    between = surgery.maker(norm.input[0])
    assert between is not None
    source = surgery.maker(between.input[0])
    assert source is not None
    return forced(model, source, norm, surgery)


@structure("a batch norm folded through a max pool, γ of both signs", "norm_first")
def through_pool(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    return behind(model, 1)


@structure("a batch norm folded through a relu", "norm_first")
def through_relu(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    return behind(model, 2)


@structure("a 1×1 branch merged into the corner of the 3×3 kernel", "branches")
def corner(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    return merged(model, (0, 0), 1.0)


@structure("a 1×1 branch merged one to the right of the centre", "branches")
def beside(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    return merged(model, (1, 2), 1.0)


@structure("a 1×1 branch lost in a merge", "branches")
def branch_lost(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    return merged(model, (1, 1), 0.0)


def merged(model: onnx.ModelProto, at: tuple[int, int], factor: float) -> onnx.ModelProto:
    """The first 3×3 and 1×1 branch as one convolution."""
    surgery = Surgery(fold(model))
    wide, narrow = surgery.nodes("Conv")[1:3]
    weight, bias, small, offset = (surgery.array(n) for n in (*wide.input[1:3], *narrow.input[1:3]))
    assert weight is not None
    assert bias is not None
    assert small is not None
    assert offset is not None
    made = weight.copy()
    made[:, :, at[0], at[1]] += factor * small[:, :, 0, 0]
    wide.input[1], wide.input[2] = surgery.put("merged", made), surgery.put("merged_bias", bias + offset)
    (total,) = surgery.readers(wide.output[0])
    surgery.bypass(total, list(total.input).index(wide.output[0]))
    return surgery.clean()


@structure("the batch norm of an identity branch dropped", "branches", "digits_repvgg")
def identity_branch(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    surgery.bypass(surgery.only("BatchNormalization"))
    return surgery.clean()


@structure("two outputs change places", "two_heads")
def outputs_swapped(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    first, second = surgery.nodes("Sigmoid")
    first.output[0], second.output[0] = second.output[0], first.output[0]
    return surgery.clean()


@structure("two inputs change places", "shared_weight")
def ports_swapped(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    for node in surgery.nodes("Conv"):
        node.input[0] = {"left": "right", "right": "left"}[node.input[0]]
    return surgery.clean()


@structure("the two towers read one input", "digits_siamese")
def one_tower(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    for node in surgery.nodes("Conv"):
        if node.input[0] == "right":
            node.input[0] = "left"
    return surgery.clean()


@structure("a batch norm of half precision folded into an infinite weight", "half_net")
def overflow(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    def formula(parts: Layer) -> tuple[Array, Array]:
        scale = parts.scale.copy()
        scale[0] *= 1e7
        return parts.scaled(scale), parts.folded()[1]

    return fold(model, formula, 1)


@structure("all quantisers taken away", "qdq_chain", "qdq_per_channel")
def unquantised(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    for node in surgery.nodes("QuantizeLinear"):
        (reader,) = surgery.readers(node.output[0])
        surgery.redirect(node.output[0], node.input[0])
        surgery.bypass(reader)
    return surgery.clean()


@structure("one pair of quantisers taken away", "qdq_chain")
def one_unquantised(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    node = surgery.nodes("QuantizeLinear")[2]
    (reader,) = surgery.readers(node.output[0])
    surgery.redirect(node.output[0], node.input[0])
    surgery.bypass(reader)
    return surgery.clean()


@structure("two quantisers with the scale of another, their dequantisers as before", "qdq_chain")
def order_of_quantiser(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    first, second = surgery.nodes("QuantizeLinear")[1:3]
    first.input[1] = second.input[1] = surgery.nodes("QuantizeLinear")[0].input[1]
    return surgery.clean()


@structure("every weight below 1e-3 set to zero", *SOME[:3])
def all_small(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    for node, numbers in weights(surgery):
        node.input[1] = surgery.put(
            surgery.fresh("weight"), np.where(np.abs(numbers) < 1e-3, 0, numbers).astype(numbers.dtype)
        )
    return surgery.clean()


@structure("the output a constant", "digits_mlp")
def constant_output(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    last = surgery.nodes("Gemm")[-1]
    weight = surgery.array(last.input[1])
    assert weight is not None
    last.input[1] = surgery.put("nothing", np.zeros_like(weight))
    return surgery.clean()


@structure("the last layer negated", "digits_conv1d")
def negated(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    last = surgery.nodes("Gemm")[-1]
    weight = surgery.array(last.input[1])
    assert weight is not None
    last.input[1] = surgery.put("turned", -weight)
    return surgery.clean()


@structure("an offset of 1e-3 on every logit", "digits_conv3d")
def offset_logits(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    last = surgery.nodes("Gemm")[-1]
    bias = surgery.array(last.input[2])
    assert bias is not None
    last.input[2] = surgery.put("moved", (bias + 1e-3).astype(np.float32))
    return surgery.clean()


@structure("batch norms in front of linear layers dropped altogether", "digits_mlp")
def dropped_norm(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    surgery.bypass(surgery.nodes("BatchNormalization")[1])
    return surgery.clean()


@structure("ε of every batch norm at the default of another library, nothing folded", "digits_densenet", "digits_levit")
def every_epsilon(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    for node in surgery.nodes("BatchNormalization"):
        set_attribute(node, "epsilon", 1e-3)
    return surgery.clean()


@structure("γ and β of one batch norm change places, nothing folded", "digits_mlp", "norm_first")
def places(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    node = surgery.nodes("BatchNormalization")[-1]
    node.input[1], node.input[2] = node.input[2], node.input[1]
    return surgery.clean()


@structure("means and variances stored through fp16, nothing folded", "digits_convmixer")
def half_statistics(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    for node in surgery.nodes("BatchNormalization"):
        for i in (3, 4):
            found = surgery.array(node.input[i])
            assert found is not None
            node.input[i] = surgery.put(surgery.fresh("stat"), found.astype(np.float16).astype(np.float32))
    return surgery.clean()
