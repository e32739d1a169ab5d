"""What folding costs: `bnfold fold` as a whole process, against a process that only reads and writes the same file.

    python benchmarks/fold_time.py                      three generated models and the demo
    python benchmarks/fold_time.py a.onnx b.onnx        your own
    python benchmarks/fold_time.py --rounds 20

In each round both run once, and the order changes from round to round, so that a slow moment of the machine meets both.
The ratio is taken within a round; the table gives the median and the range of these ratios. Peak memory is the
largest resident set of the process. The check is off: this is the cost of folding alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from statistics import median

DEMO = Path(__file__).resolve().parents[1] / "bnfold" / "data" / "demo.onnx"
READ_AND_WRITE = "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"
# name, convolutions, channels: small tensors in many nodes; an ordinary network; few nodes with large tensors
GENERATED = (("deep, narrow", 1000, 8), ("ordinary", 50, 128), ("wide", 12, 512))
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Cost:
    """One process: wall time in seconds, largest resident set in bytes."""

    seconds: float
    peak: int


@dataclass(frozen=True)
class Pair:
    """One round."""

    plain: Cost
    fold: Cost


def cost(command: list[str]) -> Cost:
    """Run the command to its end. This process is kept small: a child's peak starts at that of its parent."""
    with tempfile.TemporaryFile() as complaint:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=complaint)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            complaint.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{complaint.read().decode()}")
    return Cost(seconds, usage.ru_maxrss * MAXRSS_UNIT)


def measure(model: Path, rounds: int, folder: Path) -> list[Pair]:
    """`rounds` pairs, after one that is not counted and warms the file cache."""
    plain = [sys.executable, "-c", READ_AND_WRITE, str(model), str(folder / "plain.onnx")]
    fold = [sys.executable, "-m", "bnfold", "fold", str(model), "--no-check", "--force", "--quiet"]
    fold += ["-o", str(folder / "folded.onnx")]
    pairs = []
    for index in range(rounds + 1):
        if index % 2:
            folded = cost(fold)
            pairs.append(Pair(cost(plain), folded))
        else:
            pairs.append(Pair(cost(plain), cost(fold)))
    return pairs[1:]


def generate(path: Path, convolutions: int, channels: int) -> None:
    """A chain of 3 × 3 convolutions, each with a batch norm and a ReLU."""
    from onnx import TensorProto, helper, save

    pattern = array("f", [((index * 7919) % 1009 - 504) / 50450 for index in range(9 * channels)]).tobytes()
    ones = array("f", [1.0] * channels).tobytes()
    nodes, tensors = [], []
    for index in range(convolutions):
        tensors.append(
            helper.make_tensor(f"w{index}", TensorProto.FLOAT, [channels, channels, 3, 3], pattern * channels, raw=True)
        )
        for name in ("gamma", "beta", "mean", "variance"):
            tensors.append(helper.make_tensor(f"{name}{index}", TensorProto.FLOAT, [channels], ones, raw=True))
        statistics = [f"{name}{index}" for name in ("gamma", "beta", "mean", "variance")]
        nodes += [
            helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", [f"c{index}", *statistics], [f"b{index}"], f"bn{index}"),
            helper.make_node("Relu", [f"b{index}"], [f"x{index + 1}"], f"relu{index}"),
        ]
    shape: list[int | str | None] = ["batch", channels, "height", "width"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x0", f"x{convolutions}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def row(name: str, size: int, pairs: list[Pair]) -> str:
    """One line of the table."""
    ratios = [pair.fold.seconds / pair.plain.seconds for pair in pairs]
    plain, fold = median(p.plain.seconds for p in pairs), median(p.fold.seconds for p in pairs)
    plain_peak, fold_peak = median(p.plain.peak for p in pairs), median(p.fold.peak for p in pairs)
    cells = [
        name,
        f"{size / 1e6:.1f}",
        f"{plain:.2f}",
        f"{fold:.2f}",
        f"{fold - plain:+.2f}",
        f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        f"{plain_peak / 1e6:.0f}",
        f"{fold_peak / 1e6:.0f}",
        f"{fold_peak / plain_peak:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time and memory of `bnfold fold` against reading and writing the file."
    )
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files; none: generated ones and the demo")
    parser.add_argument("--rounds", type=int, default=9, help="pairs of runs for each file")
    parser.add_argument("--generate", nargs=2, type=int, metavar=("CONVOLUTIONS", "CHANNELS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.generate:
        generate(arguments.models[0], *arguments.generate)
        return
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()};")
    print(
        f"{arguments.rounds} rounds; seconds and MB are medians, the ratio is the median of the rounds and its range.\n"
    )
    print("| Model | MB | Read and write, s | Fold, s | Difference, s | Ratio | Peak, MB | Peak of fold, MB | Ratio |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, path in named(arguments.models, folder):
            print(row(name, path.stat().st_size, measure(path, arguments.rounds, folder)), flush=True)


def named(models: list[Path], folder: Path) -> list[tuple[str, Path]]:
    """The models to measure. A process of its own generates models, so that this one stays small."""
    if models:
        return [(path.name, path) for path in models]
    found = [("demo", DEMO)]
    for name, convolutions, channels in GENERATED:
        path = folder / f"{channels}.onnx"
        command = [sys.executable, __file__, str(path), "--generate", str(convolutions), str(channels)]
        subprocess.run(command, check=True)
        found.append((f"{name}: {convolutions} × {channels} channels", path))
    return found


if __name__ == "__main__":
    main()
