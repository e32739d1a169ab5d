"""One exported program folded by bnfold, and what is left of it, as JSON.

    python benchmarks/programs.py NAME --cache zoo

The folded program is run at both batch sizes, saved, loaded and run again. Errors are against the network in float64.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import quiet
from peers import error, rows
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

import bnfold

SUMS = ("add", "sub")
LINEAR = (*SUMS, "mul", "div", "batch_norm", "linear", "matmul", "dropout", "clone", "alias")


def measure(name: str, cache: Path) -> dict[str, Any]:
    program = torch.export.load(cache / f"{name}.pt2")
    started = time.perf_counter()
    folded = bnfold.fold(program)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(folded.model, Path(folder) / "folded.pt2")
        loaded = torch.export.load(Path(folder) / "folded.pt2")
    stored = np.load(cache / f"{name}.npz")
    answers = run(folded.model, stored)
    return asdict(count(folded.model)) | {
        "error_before": worst(run(program, stored), stored),
        "error": worst(answers, stored),
        "loads": all(np.array_equal(one, other) for one, other in zip(answers, run(loaded, stored), strict=True)),
        "seconds": seconds,
        "rows": rows(folded.report),
    }


@dataclass(frozen=True)
class Counts:
    """What is left in a program, by the same terms as in `counting.py`."""

    convolutions: int
    batch_norms: int
    branch_sums: int
    compute_nodes: int


def count(program: ExportedProgram) -> Counts:
    """A node computes if it makes tensors out of an input of the user."""
    given = set(program.graph_signature.user_inputs)
    running: dict[Node, Node] = {node: node for node in program.graph.nodes if node.name in given}
    convolutions = batch_norms = branch_sums = compute_nodes = 0
    for node in program.graph.nodes:
        inputs = [each for each in node.all_input_nodes if each in running]
        if node.op != "call_function" or not inputs or not isinstance(node.meta.get("val"), Tensor | tuple | list):
            continue
        name = getattr(node.target, "_opname", str(node.target)).removesuffix("_")
        roots = {running[each] for each in inputs}
        is_sum, is_convolution = name in SUMS and len(inputs) > 1, "conv" in name
        is_linear = is_sum or (len(inputs) == 1 and (is_convolution or name in LINEAR))
        running[node] = roots.pop() if is_linear and len(roots) == 1 else node
        branch_sums += is_sum and running[node] is not node
        convolutions += is_convolution
        batch_norms += "batch_norm" in name
        compute_nodes += name != "getitem"
    return Counts(convolutions, batch_norms, branch_sums, compute_nodes)


@torch.no_grad()
def run(program: ExportedProgram, stored: Any) -> list[Any]:
    """The answers to the stored inputs, which have different batch sizes."""
    module = program.module()
    return [module(torch.from_numpy(stored[f"x{i}"])).numpy() for i in range(len(stored.files) // 2)]


def worst(answers: list[Any], stored: Any) -> float:
    return max(error(answer, stored[f"y{i}"]) for i, answer in enumerate(answers))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fold one exported program of the zoo.")
    parser.add_argument("name")
    parser.add_argument("--cache", type=Path, required=True)
    arguments = parser.parse_args()
    with quiet():
        found = measure(arguments.name, arguments.cache)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
