"""Harmless rewrites of layers: operators said in other words, numbers moved from one into another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.version_converter
from harmless import REWRITES, Random, rewrite, wrap
from onnx import TensorProto, helper
from oracle import widen
from surgery import (
    FLOATS,
    Surgery,
    Unfit,
    attribute,
    drop_attribute,
    fold,
    set_attribute,
)
from wrong import folded_or_not, weights

__all__ = ["EXTERNAL", "REWRITES"]


def chain(surgery: Surgery) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """A convolution, a relu and a dense convolution that alone reads it."""
    for relu in surgery.nodes("Relu"):
        first, after = surgery.maker(relu.input[0]), surgery.readers(relu.output[0])
        if first is None or first.op_type != "Conv" or len(after) != 1 or after[0].op_type != "Conv":
            continue
        if len(surgery.readers(relu.input[0])) == 1 and attribute(after[0], "group", 1) == 1 and len(first.input) > 2:
            if surgery.is_output(relu.input[0]) or surgery.is_output(relu.output[0]):
                continue
            if all(surgery.array(name) is not None for name in (*first.input[1:3], after[0].input[1])):
                return first, after[0]
    raise Unfit("no such chain")


def retuned(
    model: onnx.ModelProto, out: Callable[[np.ndarray], np.ndarray], into: Callable[[np.ndarray], np.ndarray]
) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    first, second = chain(surgery)
    for node, index, change in ((first, 1, out), (first, 2, out), (second, 1, into)):
        numbers = surgery.array(node.input[index])
        assert numbers is not None
        node.input[index] = surgery.put(surgery.fresh("retuned"), change(numbers))
    return surgery.clean()


@rewrite("a factor of 8 moved from one convolution into the next, through a relu")
def equalised(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    return retuned(model, lambda n: n * n.dtype.type(8), lambda n: n / n.dtype.type(8))


@rewrite("hidden channels in another order")
def permuted(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    first, _second = chain(surgery)
    if attribute(first, "group", 1) != 1:
        raise Unfit("groups")
    count = surgery.array(first.input[1]).shape[0]  # type: ignore[union-attr]
    order = random.permutation(count)
    return retuned(model, lambda n: n[order], lambda n: n[:, order])


@rewrite("operands of every addition and product swapped")
def operands(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    found = surgery.nodes("Add", "Mul")
    if not found:
        raise Unfit("no Add")
    for node in found:
        node.input[0], node.input[1] = node.input[1], node.input[0]
    return surgery.model


@rewrite("computed and zero biases stored, missing ones added as zeros")
def zero_biases(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    for node in surgery.nodes("Conv"):
        weight = surgery.array(node.input[1])
        bias = surgery.array(node.input[2]) if len(node.input) > 2 else np.zeros(1)
        if weight is None or bias is None:
            continue
        spread = np.broadcast_to(bias.reshape(-1), weight.shape[:1]).astype(weight.dtype)
        name = surgery.put(surgery.fresh("bias"), spread)
        node.input[:] = [*node.input[:2], name]
    return surgery.clean()


@rewrite("Gemm as MatMul and Add")
def gemm_apart(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    done = 0
    for node in surgery.nodes("Gemm"):
        weight = surgery.array(node.input[1])
        plain = (
            attribute(node, "alpha", 1.0) == 1 and attribute(node, "beta", 1.0) == 1 and not attribute(node, "transA")
        )
        if weight is None or not plain or len(node.input) < 3:
            continue
        dense = surgery.put(surgery.fresh("dense"), weight.T if attribute(node, "transB") else weight)
        product = surgery.fresh("product")
        surgery.insert(node, helper.make_node("MatMul", [node.input[0], dense], [product]))
        surgery.insert(node, helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
        surgery.graph.node.remove(node)
        done += 1
    if not done:
        raise Unfit("no Gemm")
    return surgery.clean()


@rewrite("MatMul and Add as Gemm, alpha and beta in the numbers")
def gemm_plain(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    found = [n for n in surgery.nodes("Gemm") if attribute(n, "alpha", 1.0) != 1 or attribute(n, "transB")]
    if not found:
        raise Unfit("nothing to bring in")
    for node in found:
        weight, bias = surgery.array(node.input[1]), surgery.array(node.input[2])
        if weight is None or bias is None:
            continue
        alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
        made = (weight.T if attribute(node, "transB") else weight).astype(np.float64) * alpha
        node.input[1] = surgery.put(surgery.fresh("w"), made.astype(weight.dtype))
        node.input[2] = surgery.put(surgery.fresh("b"), (bias.astype(np.float64) * beta).astype(bias.dtype))
        for name in ("alpha", "beta", "transB"):
            drop_attribute(node, name)
    return surgery.clean()


@rewrite("Flatten as Reshape")
def flatten(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    node = surgery.only("Flatten")
    node.input.append(surgery.put("flat", np.array([0, -1], dtype=np.int64)))
    node.op_type = "Reshape"
    drop_attribute(node, "axis")
    return surgery.clean()


@rewrite("GlobalAveragePool as ReduceMean")
def mean(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    if model.opset_import[0].version >= 18:
        raise Unfit("axes are an input")
    surgery = Surgery(folded_or_not(model))
    node = surgery.only("GlobalAveragePool")
    node.op_type = "ReduceMean"
    set_attribute(node, "axes", [2, 3])
    set_attribute(node, "keepdims", 1)
    return surgery.clean()


@rewrite("Relu as a Clip without an upper bound")
def relu_clip(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    surgery.only("Relu")
    kind = next(n.dtype for _, n in weights(surgery))
    low = surgery.put("zero_bound", np.array(0, kind))
    for node in surgery.nodes("Relu"):
        node.op_type = "Clip"
        node.input.append(low)
    return surgery.clean()


@rewrite("HardSwish as x times HardSigmoid")
def hardswish(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    surgery.only("HardSwish")
    for node in surgery.nodes("HardSwish"):
        gate = surgery.fresh("gate")
        surgery.insert(node, helper.make_node("HardSigmoid", [node.input[0]], [gate], alpha=1 / 6, beta=0.5))
        node.op_type = "Mul"
        node.input.append(gate)
    return surgery.clean()


@rewrite("Dropout, dead nodes and unused initializers added")
def dead(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    surgery.put("nobody_reads_this", np.arange(7, dtype=np.float32))
    node = surgery.only("Conv", "Gemm", "MatMul")
    surgery.graph.node.append(helper.make_node("Neg", [node.output[0]], ["nobody_reads_that"]))
    if model.opset_import[0].version >= 12:
        wrap(surgery, node, lambda name, out: [helper.make_node("Dropout", [name], [out])])
    return surgery.model


@rewrite("groups of a convolution made dense with zeros")
def ungrouped(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    done = 0
    for node in surgery.nodes("Conv"):
        groups, weight = attribute(node, "group", 1), surgery.array(node.input[1])
        if groups == 1 or weight is None:
            continue
        rows, inside = weight.shape[0] // groups, weight.shape[1]
        full = np.zeros((weight.shape[0], inside * groups, *weight.shape[2:]), weight.dtype)
        for g in range(groups):
            full[g * rows : (g + 1) * rows, g * inside : (g + 1) * inside] = weight[g * rows : (g + 1) * rows]
        node.input[1] = surgery.put(surgery.fresh("full"), full)
        set_attribute(node, "group", 1)
        done += 1
    if not done:
        raise Unfit("no groups")
    return surgery.clean()


@rewrite("the pads of a convolution as a Pad node")
def padded(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    for node in surgery.nodes("Conv"):
        pads = attribute(node, "pads")
        if not pads or not any(pads) or attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
            continue
        half = len(pads) // 2
        ahead = surgery.put(surgery.fresh("pads"), np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64))
        name = surgery.fresh("padded")
        surgery.insert(node, helper.make_node("Pad", [node.input[0], ahead], [name]))
        node.input[0] = name
        set_attribute(node, "pads", [0] * len(pads))
        return surgery.clean()
    raise Unfit("no pads")


@rewrite("a 3×3 and a 1×1 branch merged")
def merged_branch(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(fold(model))
    for total in surgery.nodes("Add"):
        pair = [surgery.maker(name) for name in total.input]
        if any(each is None or each.op_type != "Conv" for each in pair):
            continue
        first, second = pair
        assert first is not None
        assert second is not None
        numbers = [surgery.array(n) for n in (*first.input[1:3], *second.input[1:3])]
        if first.input[0] != second.input[0] or any(each is None for each in numbers):
            continue
        big, small = sorted((numbers[0], numbers[2]), key=np.size, reverse=True)
        if big.shape[2:] != (3, 3) or small.shape[2:] != (1, 1):  # type: ignore[union-attr]
            continue
        made = big.astype(np.float64)  # type: ignore[union-attr]
        made[:, :, 1, 1] += small[:, :, 0, 0]  # type: ignore[index]
        bias = numbers[1].astype(np.float64) + numbers[3]  # type: ignore[union-attr, operator]
        keep = first if numbers[0] is big else second
        keep.input[1] = surgery.put(surgery.fresh("merged"), made.astype(np.float32))
        keep.input[2] = surgery.put(surgery.fresh("merged"), bias.astype(np.float32))
        surgery.bypass(total, list(total.input).index(keep.output[0]))
        return surgery.clean()
    raise Unfit("no such branches")


@rewrite("a newer operator set, by the version converter")
def newer(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    return onnx.version_converter.convert_version(model, model.opset_import[0].version + 2)


@rewrite("everything computed in double")
def in_double(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(model)
    if surgery.nodes("Conv", "ConvTranspose"):
        raise Unfit("onnxruntime convolves no doubles")
    kinds = {each.name: each.type.tensor_type.elem_type for each in (*surgery.graph.input, *surgery.graph.output)}
    widen(surgery.graph)
    for each in surgery.graph.input:
        if kinds[each.name] in FLOATS:
            each.type.tensor_type.elem_type = kinds[each.name]
            surgery.redirect(each.name, f"{each.name}_wide")
            cast = helper.make_node("Cast", [each.name], [f"{each.name}_wide"], to=TensorProto.DOUBLE)
            surgery.graph.node.insert(0, cast)
    for each in surgery.graph.output:
        if kinds[each.name] not in FLOATS:
            continue
        each.type.tensor_type.elem_type = kinds[each.name]
        node = surgery.maker(each.name)
        assert node is not None
        node.output[list(node.output).index(each.name)] = f"{each.name}_wide"
        surgery.redirect(each.name, f"{each.name}_wide")
        surgery.graph.node.append(helper.make_node("Cast", [f"{each.name}_wide"], [each.name], to=kinds[each.name]))
    return surgery.model


@rewrite("weights in a file of their own")
def external(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    return folded_or_not(model)  # how it is saved is the rewrite: see EXTERNAL


EXTERNAL = "weights in a file of their own"


@rewrite("a node in a local function")
def in_function(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    surgery = Surgery(folded_or_not(model))
    surgery.only("Relu")
    imports = list(surgery.model.opset_import)
    body = helper.make_node("Relu", ["given"], ["made"])
    surgery.model.functions.append(helper.make_function("blind", "Rectify", ["given"], ["made"], [body], imports))
    surgery.model.opset_import.append(helper.make_opsetid("blind", 1))
    for node in surgery.nodes("Relu"):
        node.op_type, node.domain = "Rectify", "blind"
    return surgery.model
