"""What exporters write around an operator is taken away before anything is matched.

A convolution without bias gets one that is computed at run time (Shape → Expand → CastLike), and Identity nodes stand
for copies. Both go, nothing else is touched: weights that are computed are read where they stand (`constants.py`), so
that nothing grows.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.constants import Constant, Constants
from bnfold.frontends.onnx.rounding import rounded
from bnfold.frontends.onnx.storing import Unused, is_fixed, skip, sweep

BIASED = ("Conv", "ConvTranspose", "Gemm")
GEMM_WITHOUT_BIAS = 11
LISTS = {"value_int", "value_ints"}


def normalise(model: ir.Model, constants: Constants | None = None) -> None:
    """Clear computed biases and Identity nodes, in place; remove what nobody reads then."""
    known, before = constants or Constants(model), Unused.of(model)
    for node in list(walking.nodes(model)):
        if walking.is_standard(node, *BIASED):
            _clear_bias(node, known, model)
        elif walking.is_standard(node, "Identity"):
            _clear_identity(node)
    sweep(model, before)


def tidy(model: ir.Model) -> None:
    """Store every whole-number constant that a fresh export computes at run time (sizes, axes), in place.

    Constants that are lists of numbers become tensors: onnxruntime's quantiser, for one, knows no others.
    """
    constants, before = Constants(model), Unused.of(model)
    for node in list(model.graph):
        for name in LISTS & node.attributes.keys() if walking.is_standard(node, "Constant") else ():
            numbers = np.asarray(node.attributes.pop(name).value, np.int64)
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(numbers))
        for value in node.outputs if not walking.is_standard(node, "Constant") else ():
            known = constants.of(value)
            if known is not None and known.exact and known.dtype.is_integer() and not value.is_graph_output():
                _store(value, known)
    sweep(model, before)


def _clear_identity(node: ir.Node) -> None:
    data, result = next(iter(node.inputs), None), node.outputs[0]
    if data is not None and data.graph is node.graph and not (result.is_graph_output() and is_fixed(data)):
        skip(node, data)


def _clear_bias(node: ir.Node, constants: Constants, model: ir.Model) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    maker = None if bias is None else bias.producer()
    if bias is None or maker is None or walking.is_standard(maker, "Constant"):
        return
    weight = node.inputs[1]
    if weight is None or (weight.producer() is None and weight.const_value is None):
        return  # the weight comes from outside, and nothing folds into it
    constant = constants.of(bias)
    if constant is None or not constant.exact or constant.dtype not in walking.FLOATS:
        return
    optional = node.op_type != "Gemm" or walking.model_opset(model) >= GEMM_WITHOUT_BIAS
    if optional and not np.any(constant.array()):
        node.resize_inputs(2)
    elif not bias.is_graph_output() and model.ir_version >= 4 and bias.graph not in walking.function_graphs(model):
        _store(bias, constant)


def _store(value: ir.Value, constant: Constant) -> None:
    """Replace a computed value by an initializer of its name."""
    graph, maker, name = value.graph, value.producer(), value.name
    if graph is None or maker is None or name is None:
        return
    tensor = ir.Tensor(rounded(constant.array(), constant.dtype), name=name)
    stored = ir.Value(name=name, const_value=tensor, type=ir.TensorType(constant.dtype), shape=ir.Shape(constant.shape))
    value.replace_all_uses_with(stored)
    graph.remove(maker, safe=True)
    graph.initializers[name] = stored
