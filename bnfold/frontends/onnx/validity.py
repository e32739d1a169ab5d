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
    try:
        onnx.checker.check_model(_light(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    return None


def _light(model: ir.Model) -> onnx.ModelProto:
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
    small = [(str(name), value.const_value) for name, value in graph.initializers.items()]
    proto = outline(ir.to_proto(light))
    declared = {name for name, _ in small}
    kept = [info for info in proto.graph.input if info.name not in declared or info.name in _given(light)]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.graph.initializer.extend(ir.serde.serialize_tensor(tensor) for _, tensor in small if tensor is not None)
    proto.graph.value_info.extend(ir.to_proto(light).graph.value_info)
    return proto


def _given(model: ir.Model) -> set[str]:
    return {str(value.name) for value in model.graph.inputs}
