"""One exported program folded by bnfold, and what is left of it, as JSON.

    python benchmarks/programs.py NAME --cache zoo

The folded program is run at both batch sizes, saved, loaded and run again. Errors are against the network in float64.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import quiet
from peers import error, rows
from torch.export import ExportedProgram

import bnfold


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
    return {
        "batch_norms": batch_norm_calls(folded.model),
        "error_before": worst(run(program, stored), stored),
        "error": worst(answers, stored),
        "loads": all(np.array_equal(one, other) for one, other in zip(answers, run(loaded, stored), strict=True)),
        "seconds": seconds,
        "rows": rows(folded.report),
    }


def batch_norm_calls(program: ExportedProgram) -> int:
    return sum("batch_norm" in str(node.target) for node in program.graph.nodes if node.op == "call_function")


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
