"""What onnx's own checker says of a model, without a copy of its tensors."""

from __future__ import annotations

import onnx
import onnx.checker
import onnx.shape_inference
import onnx_ir as ir

from bnfold.frontends.onnx.inferred import SMALL
from bnfold.frontends.onnx.reading import outline


def complaint(model: ir.Model) -> str | None:
    """The first line of what the checker has against a model, types and shapes that it claims included; None where it
    has nothing. Large tensors become inputs of their type and shape."""
    proto = ir.to_proto(_light(model))
    checked = outline(proto)
    try:
        onnx.checker.check_model(checked)
        del checked.graph.input[:], checked.graph.output[:]
        for name in ("input", "output", "value_info", "initializer"):
            getattr(checked.graph, name).extend(getattr(proto.graph, name))
        onnx.shape_inference.infer_shapes(checked, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    return None


def mixed_types(model: ir.Model) -> str | None:
    """What onnx's inference says of a node whose inputs have types that do not go together; None if all do."""
    try:
        onnx.shape_inference.infer_shapes(ir.to_proto(_light(model)), check_type=True)
    except onnx.shape_inference.InferenceError as error:
        return str(error).strip().splitlines()[0].removeprefix("[ShapeInferenceError] ")
    return None


def _light(model: ir.Model) -> ir.Model:
    light = model.clone()
    graph = light.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size > SMALL:
            del graph.initializers[name]
            value.const_value, value.type, value.shape = (
                None,
                ir.TensorType(tensor.dtype),
                ir.Shape(tensor.shape.numpy()),
            )
            if not value.is_graph_input():
                graph.inputs.append(value)
    return light
