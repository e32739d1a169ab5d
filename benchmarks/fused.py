"""What onnxruntime makes of a file when it loads it at its defaults: its own fused operators, counted, as JSON.

    python benchmarks/fused.py model.onnx

A convolution or product can take in the activation behind it (attribute `activation`) and, of a convolution, the sum in
front of that activation (its fourth input). What else onnxruntime puts in place of several operators has a name in one
of its own domains. Operators of these domains that only bring a tensor into another layout are no fused operators.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import onnxruntime

ACTIVATIONS = (
    "Clip",
    "Elu",
    "Erf",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Tanh",
)
CONVOLUTIONS = ("Conv", "FusedConv")
SUMS = ("Add", "Sum")
# What onnxruntime also has in the layout of its own, operator for operator, and what only changes the layout.
SAME_IN_ITS_LAYOUT = ("Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Upsample")
LAYOUT = ("ReorderInput", "ReorderOutput")
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Fused:
    """What runs, what of it runs fused, and what runs on its own."""

    nodes: int
    convolutions: int
    activations: int
    sums: int
    others: int
    activations_alone: int
    sums_alone: int
    batch_norms_alone: int


def census(path: Path) -> Fused:
    nodes = optimised(path)
    activated = [node for node in nodes if any(each.name == "activation" and each.s for each in node.attribute)]
    summed = [node for node in nodes if node.op_type in CONVOLUTIONS and len(node.input) > 3 and node.input[3]]
    plain = (*SAME_IN_ITS_LAYOUT, *LAYOUT)
    others = [node for node in nodes if node.domain not in STANDARD and node.op_type not in plain]
    counted = {id(node) for node in (*activated, *summed)}
    return Fused(
        len(nodes),
        of_type(nodes, CONVOLUTIONS),
        len(activated),
        len(summed),
        sum(id(node) not in counted for node in others),
        of_type((node for node in nodes if node.domain in STANDARD), ACTIVATIONS),
        of_type(nodes, SUMS),
        of_type(nodes, ("BatchNormalization",)),
    )


def of_type(nodes: Iterable[onnx.NodeProto], types: tuple[str, ...]) -> int:
    return sum(node.op_type in types for node in nodes)


def optimised(path: Path) -> list[onnx.NodeProto]:
    """The nodes that run: the graph that onnxruntime writes down behind all optimisations that are on by default."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return list(onnx.load(target, load_external_data=False).graph.node)


if __name__ == "__main__":
    print(json.dumps(asdict(census(Path(sys.argv[1])))))
