"""One network with parallel branches, merged in every way there is: what is left and how wrong it is, as JSON.

    python benchmarks/merged.py repvgg_a0 --cache zoo

The ways are those of bnfold, with and without merging, and the method of the network's own class, as ONNX and as
exported programs. Two errors are given, both against the network in float64 on the same inputs and relative to its
largest answer. *Error* is that of a float32 run (onnxruntime without optimisation; torch), most of which is the
rounding of the run itself. *Stored* is that of the stored numbers alone: they are rounded to float32, and the run is in
float64. Both are the root of the mean square over all answers, which one unlucky answer moves less than the largest.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import counting
import numpy as np
import onnxruntime
import programs
import torch
from networks import build, build_default, build_own, quiet
from peers import DEFAULT, OWN, PLAIN
from torch.export import ExportedProgram

import bnfold

Row = dict[str, Any]
PROGRAM = "torch.export"


def measure(name: str, cache: Path) -> list[Row]:
    """A row for each way, in both dialects."""
    stored = np.load(cache / f"{name}.npz")
    with tempfile.TemporaryDirectory() as folder:
        rows = [onnx_row(*way, stored) for way in onnx_ways(name, cache, Path(folder))]
    return rows + program_rows(name, cache, stored)


def onnx_ways(name: str, cache: Path, folder: Path) -> list[tuple[str, str, Path]]:
    """What each way leaves as a file: (tool, exporter and its options, file)."""
    plain, default = cache / f"{name}.onnx", cache / f"{name}.default.onnx"
    own, own_default = cache / f"{name}.own.onnx", cache / f"{name}.own.default.onnx"
    return [
        ("as exported", PLAIN, plain),
        ("as exported", DEFAULT, default),
        ("bnfold, merge never", PLAIN, folded(plain, folder / "never.onnx", merge="never")),
        ("bnfold", PLAIN, folded(plain, folder / "auto.onnx")),
        ("bnfold", DEFAULT, folded(default, folder / "default.onnx")),
        (OWN, PLAIN, own),
        (OWN, DEFAULT, own_default),
        (f"{OWN}, then bnfold", PLAIN, folded(own, folder / "own.onnx")),
    ]


def folded(source: Path, target: Path, merge: Any = "auto") -> Path:
    bnfold.save(bnfold.fold(source, merge=merge).model, target)
    return target


def onnx_row(tool: str, exporter: str, path: Path, stored: Any) -> Row:
    found = asdict(counting.count(path))
    kept = {key: found[key] for key in asdict(programs.Counts(0, 0, 0, 0))}
    error = root_mean_square(run_onnx(path, stored), stored)
    return Row(tool=tool, exporter=exporter, dialect="ONNX", error=error) | kept


def run_onnx(path: Path, stored: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [session.run(None, {name: stored[f"x{i}"]})[0] for i in range(len(stored.files) // 2)]


def program_rows(name: str, cache: Path, stored: Any) -> list[Row]:
    plain, own = (torch.export.load(cache / f"{name}{part}.pt2") for part in ("", ".own"))
    ways = [
        ("as exported", plain),
        ("bnfold, merge never", bnfold.fold(plain, merge="never").model),
        ("bnfold", bnfold.fold(plain).model),
        (OWN, own),
        (f"{OWN}, then bnfold", bnfold.fold(own).model),
    ]
    return [
        Row(tool=tool, exporter=PROGRAM, dialect="program")
        | asdict(programs.count(program))
        | {"error": root_mean_square(programs.run(program, stored), stored)}
        | {"stored": root_mean_square(run_double(program, stored), stored)}
        for tool, program in ways
    ]


@torch.no_grad()
def run_double(program: ExportedProgram, stored: Any) -> list[Any]:
    """The answers of the stored numbers in float64."""
    module = copy.deepcopy(program.module()).double()
    return [module(torch.from_numpy(stored[f"x{i}"]).double()).numpy() for i in range(len(stored.files) // 2)]


def root_mean_square(answers: list[Any], stored: Any) -> float:
    """Of all differences, relative to the largest answer in float64; infinite where sizes differ or one is NaN."""
    exact = [stored[f"y{i}"] for i in range(len(answers))]
    if any(got.shape != wanted.shape or not np.isfinite(got).all() for got, wanted in zip(answers, exact, strict=True)):
        return float("inf")
    squares = np.concatenate([(got - wanted).ravel() ** 2 for got, wanted in zip(answers, exact, strict=True)])
    return float(np.sqrt(squares.mean()) / max(np.abs(wanted).max() for wanted in exact))


def main() -> None:
    parser = argparse.ArgumentParser(description="Merge the branches of one network in every way there is.")
    parser.add_argument("name")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with quiet():
        build(arguments.name, arguments.cache, arguments.seed)
        build_default(arguments.name, arguments.cache)
        facts = build_own(arguments.name, arguments.cache, arguments.seed)
        rows = measure(arguments.name, arguments.cache)
    print(json.dumps({"own": facts, "rows": rows}))


if __name__ == "__main__":
    main()
