"""A small graph in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
INT64, BOOL = TensorProto.INT64, TensorProto.BOOL
Port = tuple[str, int, Sequence[int | str]]


class Net:
    """A graph under construction. Numbers come from its seed."""

    def __init__(self, seed: int, opset: int = 17, kind: type = np.float32) -> None:
        self.random = np.random.default_rng(seed)
        self.opset, self.kind = opset, kind
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def const(self, array: Any, kind: Any = None) -> str:
        name = f"const_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(array, dtype=kind or self.kind), name))
        return name

    def ints(self, *numbers: int) -> str:
        return self.const(numbers, np.int64)

    def op(self, kind: str, *inputs: str, count: int = 1, **attributes: Any) -> Any:
        name = f"{kind.lower()}_{len(self.nodes)}"
        outputs = [f"{name}_out{i or ''}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name, **attributes))
        return outputs[0] if count == 1 else outputs

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return self.random.normal(size=shape) * scale

    def conv(self, x: str, n: int, m: int, kernel: Sequence[int] = (3, 3), bias: bool = True, **more: Any) -> str:
        inside = n // more.get("group", 1)
        weight = self.const(self.normal(m, inside, *kernel, scale=1 / np.sqrt(inside * np.prod(kernel))))
        extra = [self.const(self.normal(m, scale=0.5))] if bias else []
        if "pads" not in more and "auto_pad" not in more:
            more["pads"] = [k // 2 for k in kernel] * 2
        return str(self.op("Conv", x, weight, *extra, kernel_shape=list(kernel), **more))

    def transposed(self, x: str, n: int, m: int, kernel: Sequence[int], bias: bool = True, **more: Any) -> str:
        weight = self.const(self.normal(n, m // more.get("group", 1), *kernel, scale=1 / np.sqrt(n)))
        extra = [self.const(self.normal(m, scale=0.5))] if bias else []
        return str(self.op("ConvTranspose", x, weight, *extra, kernel_shape=list(kernel), **more))

    def norm(self, x: str, n: int, epsilon: float = 1e-5, low: float = 0.3) -> str:
        gamma = self.random.uniform(0.5, 1.5, n) * np.where(self.random.random(n) < 0.3, -1, 1)
        numbers = (gamma, self.normal(n, scale=0.5), self.normal(n, scale=0.4), self.random.uniform(low, 2, n))
        return str(self.op("BatchNormalization", x, *map(self.const, numbers), epsilon=epsilon))

    def block(self, x: str, n: int, m: int, **more: Any) -> str:
        return str(self.op("Relu", self.norm(self.conv(x, n, m, **more), m)))

    def linear(self, x: str, n: int, m: int, **more: Any) -> str:
        shape = (m, n) if more.get("transB") else (n, m)
        weight = self.const(self.normal(*shape, scale=1 / np.sqrt(n)))
        return str(self.op("Gemm", x, weight, self.const(self.normal(m, scale=0.5)), **more))

    def pooled(self, x: str) -> str:
        return str(self.op("Flatten", self.op("GlobalAveragePool", x)))

    def quantised(self, x: str, scale: float, zero: int = 0, kind: Any = np.int8) -> str:
        parts = (self.const(scale), self.const(zero, kind))
        return str(self.op("DequantizeLinear", self.op("QuantizeLinear", x, *parts), *parts))

    def model(self, inputs: Sequence[Port], outputs: Sequence[Port]) -> onnx.ModelProto:
        for new, _, _ in outputs:
            assert new in {o for node in self.nodes for o in node.output}, new
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(*port) for port in inputs],
            [helper.make_tensor_value_info(*port) for port in outputs],
            self.stored,
        )
        ir_version = 8 if self.opset < 19 else 10
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir_version)
        onnx.checker.check_model(made, full_check=True)
        return made
