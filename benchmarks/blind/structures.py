"""Wrong structures that take more than one node: folds that were not allowed, merges, shared weights, quantisers."""

from __future__ import annotations

import numpy as np
import onnx
from edits import SOME, STRUCTURES, structure
from onnx import helper
from surgery import Array, Layer, Surgery, attribute, drop_attribute, fold, layer, set_attribute, sites
from surgery import replace as put_layer
from wrong import Random, folded_or_not, weights

__all__ = ["STRUCTURES"]


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
