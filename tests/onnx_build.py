"""Small ONNX models, written by hand, and what they compute in float64.

    net = Net()
    net.batch_norm(net.conv("x", 3, 4), 4)
    model = net.model({"x": (2, 3, 5, 5)})

Each method adds one node and returns the name of its result; constants are seeded and named after the node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference.op_run import OpRun

from bnfold.frontends import onnx as frontend

Numbers = NDArray[Any]


class Net:
    """A graph under construction. `dtype` is an ONNX element type, that of the weights."""

    def __init__(self, opset: int = 17, ir_version: int = 8, dtype: int = TensorProto.FLOAT, seed: int = 0) -> None:
        self.opset, self.ir_version, self.dtype = opset, ir_version, dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self._random = np.random.default_rng(seed)

    def numbers(self, *shape: int) -> Numbers:
        """Random numbers around zero, of a size that keeps a network's values small."""
        return self._random.normal(0, 0.5, shape)

    def constant(self, name: str, array: Any, dtype: int | None = None) -> str:
        """An initializer."""
        self.constants.append(tensor(name, array, dtype or self.dtype))
        return name

    def integers(self, name: str, *numbers: int) -> str:
        """An int64 initializer of rank 1."""
        self.constants.append(numpy_helper.from_array(np.array(numbers, dtype=np.int64), name))
        return name

    def node(self, op: str, inputs: Sequence[str], name: str | None = None, **attributes: Any) -> str:
        """A node with one output, which is called as the node."""
        name = name or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{name}_node", **attributes))
        return name

    def conv(self, x: str, cin: int, cout: int, kernel: Sequence[int] = (3, 3), bias: bool = False, **more: Any) -> str:
        """Conv with random weights."""
        return self._convolution("Conv", x, (cout, cin // more.get("group", 1), *kernel), cout if bias else 0, more)

    def conv_transpose(
        self, x: str, cin: int, cout: int, kernel: Sequence[int] = (3, 3), bias: bool = False, **more: Any
    ) -> str:
        """ConvTranspose with random weights."""
        shape = (cin, cout // more.get("group", 1), *kernel)
        return self._convolution("ConvTranspose", x, shape, cout if bias else 0, more)

    def _convolution(self, op: str, x: str, shape: Sequence[int], bias: int, more: dict[str, Any]) -> str:
        name = more.pop("name", f"conv{len(self.nodes)}")
        inputs = [x, self.constant(f"{name}.weight", self.numbers(*shape))]
        if bias:
            inputs.append(self.constant(f"{name}.bias", self.numbers(bias)))
        return self.node(op, inputs, name, **more)

    def batch_norm(self, x: str, channels: int, name: str = "bn", dtype: int | None = None, **more: Any) -> str:
        """BatchNormalization at inference with random statistics, of `dtype` if they have another than the weights."""
        outputs = more.pop("outputs", [name])
        arrays = {
            "weight": self._random.uniform(0.5, 1.5, channels),
            "bias": self.numbers(channels),
            "mean": self.numbers(channels),
            "var": self._random.uniform(0.5, 2, channels),
        } | more.pop("stored", {})
        inputs = [self.constant(f"{name}.{key}", array, dtype) for key, array in arrays.items()]
        self.nodes.append(helper.make_node("BatchNormalization", [x, *inputs], outputs, name=f"{name}_node", **more))
        return name

    def model(
        self,
        inputs: Mapping[str, Sequence[int | str | None] | None],
        outputs: Sequence[str] | None = None,
        value_info: Sequence[onnx.ValueInfoProto] = (),
        declare: Sequence[str] = (),
    ) -> onnx.ModelProto:
        """The model; its output is that of the last node unless given. `declare` makes initializers inputs too."""
        given = [helper.make_tensor_value_info(name, self.dtype, shape) for name, shape in inputs.items()]
        given += [
            helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims)
            for constant in self.constants
            if constant.name in declare
        ]
        names = outputs or [self.nodes[-1].output[0]]
        results = [helper.make_tensor_value_info(name, self.dtype, None) for name in names]
        graph = helper.make_graph(self.nodes, "net", given, results, self.constants, value_info=value_info)
        domains = {node.domain for node in self.nodes} | {function.domain for function in self.functions}
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in sorted(domains - {""}))]
        return helper.make_model(
            graph, opset_imports=opsets, functions=self.functions, ir_version=self.ir_version, producer_name="tests"
        )


def tensor(name: str, array: Any, dtype: int = TensorProto.FLOAT) -> onnx.TensorProto:
    """A tensor of any float type."""
    numbers = np.asarray(array, dtype=np.float64).astype(helper.tensor_dtype_to_np_dtype(dtype))
    return numpy_helper.from_array(numbers, name)


def run64(model: ir.Model, feeds: Mapping[str, Numbers]) -> list[Numbers]:
    """All outputs, computed in float64 by onnx's reference, with the two operators that it has wrong replaced."""
    proto = frontend.to_proto(frontend.as_float64(model))
    runner = onnx.reference.ReferenceEvaluator(proto, new_ops=[BatchNormalization, ConvTranspose])
    wide = {name: array.astype(np.float64) for name, array in feeds.items()}
    return [np.asarray(array) for array in runner.run(None, wide)]  # type: ignore[union-attr]


def feeds_of(model: ir.Model, seed: int = 1, unknown: int = 2) -> dict[str, Numbers]:
    """Random inputs; an axis without a size has `unknown` elements."""
    random = np.random.default_rng(seed)
    ports = frontend.signature(model).inputs
    return {
        port.name: random.normal(size=[size if isinstance(size, int) else unknown for size in port.shape or ()])
        for port in ports
    }


class BatchNormalization(OpRun):
    """At inference, in every opset since 7."""

    op_domain = ""

    def _run(self, x: Numbers, *arrays: Numbers, epsilon: float = 1e-5, **_: Any) -> tuple[Numbers, ...]:
        gamma, beta, mean, variance = (array.reshape(-1, *[1] * (x.ndim - 2)) for array in arrays)
        result = (x - mean) / np.sqrt(variance + float(np.float32(epsilon))) * gamma + beta
        return (result, *[mean] * (len(self.onnx_node.output) - 1))


class ConvTranspose(OpRun):
    """By its definition: every input element adds its kernel to the output. No dilation, no `auto_pad`."""

    op_domain = ""

    def _run(self, x: Numbers, weight: Numbers, bias: Numbers | None = None, **more: Any) -> tuple[Numbers]:
        kernel, group = weight.shape[2:], more.get("group") or 1
        strides = more.get("strides") or [1] * len(kernel)
        pads = more.get("pads") or [0] * 2 * len(kernel)
        extra = more.get("output_padding") or [0] * len(kernel)
        sizes = [(n - 1) * s + k + e for n, s, k, e in zip(x.shape[2:], strides, kernel, extra, strict=True)]
        inner = x.reshape(x.shape[0], group, -1, *x.shape[2:])
        taps = weight.reshape(group, -1, *weight.shape[1:])
        full = np.zeros((x.shape[0], group, weight.shape[1], *sizes))
        for offset in product(*map(range, kernel)):
            part = np.einsum("ngi...,gio->ngo...", inner, taps[(..., *offset)])
            at = [slice(o, o + n * s, s) for o, n, s in zip(offset, x.shape[2:], strides, strict=True)]
            full[(..., *at)] += part
        full = full.reshape(x.shape[0], -1, *sizes)
        half = len(kernel)
        crop = [slice(before, n - after) for before, after, n in zip(pads[:half], pads[half:], sizes, strict=True)]
        result = full[(..., *crop)]
        return (result if bias is None else result + bias.reshape(-1, *[1] * half),)
