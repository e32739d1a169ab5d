"""What is left in an ONNX file, counted the same way whoever wrote it.

A value is *constant* if it is stored or computed from stored values alone, and *known* if it is constant or computed
from shapes. A node whose inputs are all known is bookkeeping; every other node computes, Identity too, as in the
reports of bnfold. An affine is an Add, Sub, Mul or Div of one value that is not known and one that is constant; the Add
behind a MatMul with a constant matrix is its bias and has a count of its own.

A *branch sum* is an Add, Sub or Sum of values that are not known and all are linear images of one value, by way of
convolutions and products with constant weights, batch norms, affines, Identity and other such sums.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import onnx

AFFINES = ("Add", "Sub", "Mul", "Div")
SUMS = ("Add", "Sub", "Sum")
CONVOLUTIONS = ("Conv", "ConvTranspose", "FusedConv")
LINEAR = (*CONVOLUTIONS, "BatchNormalization", "MatMul", "Gemm", "Identity", *AFFINES)
FROM_SHAPE = ("Shape", "Size")
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Counts:
    """What is left. `foreign` are nodes that only one runtime knows."""

    convolutions: int
    batch_norms: int
    branch_sums: int
    affines: int
    matmul_biases: int
    compute_nodes: int
    nodes: int
    foreign: int
    bytes: int


@dataclass
class _Pass:
    """One walk through the nodes in their order."""

    constant: set[str]
    known: set[str]
    products: set[str] = field(default_factory=set)
    roots: dict[str, str] = field(default_factory=dict)
    convolutions: int = 0
    batch_norms: int = 0
    branch_sums: int = 0
    affines: int = 0
    matmul_biases: int = 0
    bookkeeping: int = 0

    def visit(self, node: onnx.NodeProto) -> None:
        inputs = {name for name in node.input if name}
        if node.op_type == "CastLike":
            inputs = set(node.input[:1])
        if inputs <= self.constant and (inputs or node.op_type == "Constant"):
            self.constant.update(node.output)
        if inputs <= self.known or node.op_type in FROM_SHAPE:
            self.known.update(node.output)
            self.bookkeeping += 1
            return
        self._trace(node)
        self.convolutions += node.op_type in CONVOLUTIONS
        if node.op_type == "Identity":
            self.products.update(node.output if inputs & self.products else ())
        elif node.op_type == "BatchNormalization":
            self.batch_norms += 1
        elif node.op_type == "MatMul" and inputs & self.constant:
            self.products.update(node.output)
        elif node.op_type in AFFINES and node.domain in STANDARD and inputs & self.constant:
            is_bias = node.op_type == "Add" and bool(inputs & self.products)
            self.matmul_biases += is_bias
            self.affines += not is_bias

    def _trace(self, node: onnx.NodeProto) -> None:
        """What value the output is a linear image of, where that is one; a sum of images of one value is counted."""
        running = [name for name in node.input if name and name not in self.known]
        roots = {self.roots.get(name, name) for name in running}
        is_sum = node.op_type in SUMS and len(running) > 1
        if len(roots) == 1 and (is_sum or (node.op_type in LINEAR and len(running) == 1)):
            self.roots[node.output[0]] = roots.pop()
            self.branch_sums += is_sum


def count(path: Path) -> Counts:
    """Count over the main graph; exported networks have no other."""
    model = onnx.load(path)
    given = {value.name for value in model.graph.input}
    stored = {tensor.name for tensor in model.graph.initializer} - given
    walk = _Pass(set(stored), set(stored))
    for node in ordered(model.graph.node):
        walk.visit(node)
    return Counts(
        walk.convolutions,
        walk.batch_norms,
        walk.branch_sums,
        walk.affines,
        walk.matmul_biases,
        len(model.graph.node) - walk.bookkeeping,
        len(model.graph.node),
        sum(node.domain not in STANDARD for node in model.graph.node),
        path.stat().st_size,
    )


def ordered(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, each behind those that it reads: not every writer keeps the order that the standard asks for."""
    waiting = list(nodes)
    made_later = {name for node in waiting for name in node.output}
    found: list[onnx.NodeProto] = []
    while waiting:
        ready = [node for node in waiting if not made_later & set(node.input)]
        if not ready:
            raise ValueError("the graph has a cycle")
        found += ready
        made_later -= {name for node in ready for name in node.output}
        waiting = [node for node in waiting if made_later & set(node.output)]
    return found


if __name__ == "__main__":
    print(json.dumps(asdict(count(Path(sys.argv[1])))))
