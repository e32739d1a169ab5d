"""A passage is an operator without weights that an affine may cross: here is how ONNX spells each of them.

`PASSAGES` gives, by operator, the attributes that its lens names and the lens, which makes a `Passage` out of facts:
sizes that the graph enforces and operands that are constant. Which sizes a Reshape leaves is in `shaping.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from bnfold.frontends.onnx import lenses, shaping, walking
from bnfold.frontends.onnx.elementwise import OLDEST
from bnfold.frontends.onnx.lenses import Looker, integer
from bnfold.frontends.onnx.shaping import counted, integers
from bnfold.graph import Passage, Reason
from bnfold.travel import Gate, Same, Sum

Lens = Callable[[ir.Node, Looker], Passage | Reason]

SPATIAL = frozenset(range(2, 64))
OF_ALL = frozenset({"Concat", "Add", "Sub", "Sum", "Mul", "Div", "MatMul"})
MOVERS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
SIZED = frozenset({"Reshape", "Expand", "CastLike", "Resize"})


def mapped(node: ir.Node) -> range:
    """The inputs that a passage maps; the others say how."""
    return range(len(node.inputs)) if node.op_type in OF_ALL else range(min(1, len(node.inputs)))


def made(node: ir.Node) -> Sequence[ir.Value]:
    """The outputs of a passage; no other one is read."""
    return node.outputs if node.op_type == "Split" else node.outputs[:1]


def passage(node: ir.Node, look: Looker) -> Passage | Reason:
    """What an operator of `PASSAGES` is."""
    named, lens = PASSAGES[node.op_type]
    if look.version(node) < OLDEST:
        return Reason.OLD_OPSET
    data = [node.inputs[port] for port in mapped(node)]
    if not data or None in data or lenses.refuses(node, named):
        return Reason.UNSUPPORTED_ATTRIBUTE
    others = [value for value in node.inputs[len(data) :] if value is not None]
    if node.op_type not in SIZED and any(look.constant(value) is None for value in others):
        return Reason.NOT_LINEAR
    if any(value.uses() or value.is_graph_output() for value in node.outputs[len(made(node)) :]):
        return Reason.NOT_LINEAR
    return lens(node, look)


def same(node: ir.Node, look: Looker) -> Passage:
    """Identity."""
    return Same(idle=True)


def dropout(node: ir.Node, look: Looker) -> Passage | Reason:
    """Dropout: an Identity unless the third input says that this is training."""
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    known = None if mode is None else look.constant(mode)
    return Same(idle=True) if known is None or not known.load().any() else Reason.NOT_LINEAR


def cast(node: ir.Node, look: Looker) -> Passage | Reason:
    """Cast and CastLike, between floats."""
    types = [None if value is None else look.dtype(value) for value in (node.inputs[0], node.outputs[0])]
    return Same() if all(dtype in walking.FLOATS for dtype in types) else Reason.NOT_LINEAR


def rectified(node: ir.Node, look: Looker) -> Passage:
    """Relu, LeakyRelu, PRelu: two lines that meet at zero."""
    return Same(fixes=(0.0,), positive=True)


def mean_pool(node: ir.Node, look: Looker) -> Passage:
    """AveragePool: zeros of the border are counted only on request, and then the divisor is what it is."""
    same_size = "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string().startswith("SAME")
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else ()
    beyond = any(pads) or same_size or integer(node, "ceil_mode", 0) != 0
    if beyond and integer(node, "count_include_pad", 0):
        return Same(SPATIAL, fixes=(0.0,), because=Reason.PADDED_BORDER)
    return Same(SPATIAL)


def global_mean(node: ir.Node, look: Looker) -> Passage:
    """GlobalAveragePool."""
    return Same(SPATIAL)


def maximum_pool(node: ir.Node, look: Looker) -> Passage:
    """MaxPool and GlobalMaxPool; the border never wins."""
    return Same(SPATIAL, positive=True, because=Reason.MIXED_SIGN_MAXPOOL)


def mean(node: ir.Node, look: Looker) -> Passage | Reason:
    """ReduceMean."""
    return _reduced(node, look, Same())


def total(node: ir.Node, look: Looker) -> Passage | Reason:
    """ReduceSum: what is added to each element is added many times."""
    return _reduced(node, look, Same(fixes=(0.0,)))


def extreme(node: ir.Node, look: Looker) -> Passage | Reason:
    """ReduceMax and ReduceMin."""
    return _reduced(node, look, Same(positive=True, because=Reason.MIXED_SIGN_MAXPOOL))


def _reduced(node: ir.Node, look: Looker, law: Same) -> Passage | Reason:
    axes, shape = integers(node, look, 1, "axes"), shaping.shape_of(node, look)
    if not axes and integer(node, "noop_with_empty_axes", 0):
        return Same()
    if shape is None:
        return Reason.AXIS_UNKNOWN
    every = range(len(shape))
    reduced = counted(axes or every, len(shape))
    if reduced is None:
        return Reason.AXIS_UNKNOWN
    kept = None if integer(node, "keepdims", 1) else tuple(axis for axis in every if axis not in reduced)
    return Same(frozenset(reduced), law.fixes, law.positive, kept, law.because)


def resize(node: ir.Node, look: Looker) -> Passage | Reason:
    """Resize and Upsample: weights that sum to one, unless values from outside are put in."""
    text = {
        name: attribute.as_string()
        for name, attribute in node.attributes.items()
        if attribute.type == ir.AttributeType.STRING
    }
    outside = text.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if outside or text.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return Reason.UNSUPPORTED_ATTRIBUTE
    shape = shaping.shape_of(node, look)
    if shape is None:
        return Reason.AXIS_UNKNOWN
    scales = _scales(node, look)
    if isinstance(scales, Reason):
        return scales
    if scales is None:
        return Same(shaping.changed(shape, look.shape(node.outputs[0])))
    given = node.attributes["axes"].as_ints() if "axes" in node.attributes else range(len(shape))
    axes = counted(given, len(shape))
    if axes is None or len(axes) != len(scales):
        return Reason.UNSUPPORTED_ATTRIBUTE
    return Same(frozenset(axis for axis, scale in zip(axes, scales, strict=True) if scale != 1))


def _scales(node: ir.Node, look: Looker) -> Sequence[float] | Reason | None:
    """The scales; None where sizes are given instead."""
    if "scales" in node.attributes:
        return node.attributes["scales"].as_floats()
    position = 1 if node.op_type == "Upsample" or look.version(node) < 11 else 2
    value = node.inputs[position] if len(node.inputs) > position else None
    if value is None:
        return None
    known = look.constant(value)
    if known is None:
        return Reason.NOT_LINEAR
    numbers: list[float] = known.array().reshape(-1).tolist()
    return numbers or None


def pad(node: ir.Node, look: Looker) -> Passage | Reason:
    """Pad by values of the data, or by a number that must map to itself."""
    shape = shaping.shape_of(node, look)
    pads = integers(node, look, 1, "pads")
    given = integers(node, look, 3, "axes")
    if shape is None or pads is None:
        return Reason.AXIS_UNKNOWN
    axes = counted(given if given is not None else range(len(shape)), len(shape))
    if axes is None or len(pads) != 2 * len(axes):
        return Reason.UNSUPPORTED_ATTRIBUTE
    half = len(axes)
    moved = frozenset(axis for index, axis in enumerate(axes) if pads[index] or pads[index + half])
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    if mode in ("reflect", "edge", "wrap"):
        return Same(moved)
    if mode != "constant":
        return Reason.UNSUPPORTED_ATTRIBUTE
    fixes = (_filling(node, look),) if max(pads, default=0) > 0 else ()
    return Same(moved, fixes, because=Reason.PADDED_BORDER)


def _filling(node: ir.Node, look: Looker) -> float:
    """The number that a Pad puts in."""
    if "value" in node.attributes:
        return lenses.real(node, "value", 0.0)
    value = node.inputs[2] if len(node.inputs) > 2 else None
    known = None if value is None else look.constant(value)
    return 0.0 if known is None or not known.size else float(known.array().reshape(-1)[0])


def add(node: ir.Node, look: Looker) -> Passage | Reason:
    """Add, Sum and Sub of values that are computed at run time."""
    shapes = shaping.shapes_of(node, look)
    if node.op_type != "Sum" and _has_constant(node, look):
        return Reason.NOT_LINEAR
    return Sum(shapes, (1, -1) if node.op_type == "Sub" else (1,) * len(shapes))


def multiply(node: ir.Node, look: Looker) -> Passage | Reason:
    """Mul and Div of values that are computed at run time, and their matrix product."""
    if _has_constant(node, look):
        return Reason.NOT_LINEAR
    uniform = node.op_type == "MatMul"
    return Gate(shaping.shapes_of(node, look), (0,) if node.op_type == "Div" else (0, 1), uniform)


def _has_constant(node: ir.Node, look: Looker) -> bool:
    return any(value is not None and look.constant(value) is not None for value in node.inputs)


def names(*attributes: str) -> frozenset[str]:
    """The attributes that a lens names."""
    return frozenset(attributes)


WINDOW = names("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
REDUCE = names("axes", "keepdims", "noop_with_empty_axes")
RESIZE = names("coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value", "mode")

PASSAGES: Mapping[str, tuple[frozenset[str], Lens]] = {
    "Identity": (names(), same),
    "Dropout": (names("ratio", "seed"), dropout),
    "Cast": (names("to", "saturate"), cast),
    "CastLike": (names("saturate"), cast),
    "Transpose": (names("perm"), shaping.transpose),
    "Reshape": (names("allowzero"), shaping.reshape),
    "Flatten": (names("axis"), shaping.flatten),
    "Squeeze": (names("axes"), shaping.squeeze),
    "Unsqueeze": (names("axes"), shaping.unsqueeze),
    "Expand": (names(), shaping.expand),
    "Slice": (names("starts", "ends", "axes"), shaping.cut),
    "Split": (names("axis", "split", "num_outputs"), shaping.split),
    "Gather": (names("axis"), shaping.gather),
    "Concat": (names("axis"), shaping.concat),
    "Add": (names(), add),
    "Sub": (names(), add),
    "Sum": (names(), add),
    "Mul": (names(), multiply),
    "Div": (names(), multiply),
    "MatMul": (names(), multiply),
    "AveragePool": (WINDOW | {"count_include_pad"}, mean_pool),
    "GlobalAveragePool": (names(), global_mean),
    "MaxPool": (WINDOW | {"storage_order"}, maximum_pool),
    "GlobalMaxPool": (names(), maximum_pool),
    "ReduceMean": (REDUCE, mean),
    "ReduceSum": (REDUCE, total),
    "ReduceMax": (REDUCE, extreme),
    "ReduceMin": (REDUCE, extreme),
    "Resize": (RESIZE | {"antialias", "axes", "keep_aspect_ratio_policy", "nearest_mode"}, resize),
    "Upsample": (names("mode", "scales"), resize),
    "Pad": (names("mode", "pads", "value"), pad),
    "Relu": (names(), rectified),
    "LeakyRelu": (names("alpha"), rectified),
    "PRelu": (names(), rectified),
}
