"""How time and memory of a fold grow: with the nodes of a graph, and with the bytes of its weights.

    python benchmarks/scale.py                                         both, some 10 minutes and 14 GB of disk
    python benchmarks/scale.py --nodes 100 1000 10000 --megabytes 10 100 1000 --doc docs/benchmarks.md

Nodes: a chain of small convolutions, each with a batch norm and a ReLU. Weights: a chain of wide matrix products with a
batch norm each, all numbers in one external file, beside the time to copy that file. Each size is folded in a process
of its own, `bnfold fold --no-check`, and the time is the best of three; exponents are fitted to what is more
than at the smallest size. Memory is anonymous: what the process holds itself, without the pages of files that it reads.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import page
from fold_time import generate
from large_model import peak_of, write_model
from sections import environment, markdown

TITLE = "Folding, as the model grows"
NODES = (100, 300, 1_000, 3_000, 10_000, 30_000)
MEGABYTES = (10, 100, 1_000, 6_000)
GOALS = (
    "Every weight is folded, and each convolution or product has a batch norm, so no file of its size is more work. "
    "What is wanted is 10,000 nodes in 5 s, and 6 GB in twice the time of copying and in 1.5 GB of memory."
)
WIDTH = 4096
BEST_OF = 3
GROWS_AT_MOST = 1.2
"""The largest exponent that is still called linear."""


@dataclass(frozen=True)
class Point:
    """One size: nodes or bytes, seconds of the whole process, peak anonymous bytes, and seconds to copy the files."""

    size: int
    seconds: float
    peak: int
    copying: float


def folded(model: Path, folder: Path) -> tuple[float, int]:
    """Seconds and peak anonymous bytes of one fold in a process of its own."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    found = peak_of(["fold", str(model), "-o", str(out / "folded.onnx"), "--no-check", "-q"])
    if found["exit_code"]:
        raise SystemExit(f"bnfold fold {model} failed: {found['said']}")
    return float(found["seconds"]), int(found["peak_anonymous_bytes"])


def copied(model: Path, folder: Path) -> float:
    """Seconds to copy the model's files, written through to the disk as a fold does."""
    start = time.perf_counter()
    for path in model.parent.iterdir():
        target = folder / "copied"
        with path.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 24)
            copy.flush()
            os.fsync(copy.fileno())
        target.unlink()
    return time.perf_counter() - start


def point(size: int, write: Callable[[Path], Path]) -> Point:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "model").mkdir()
        model = write(folder / "model")
        times, peaks, copies = [], [], []
        for _ in range(BEST_OF):
            copies.append(copied(model, folder))
            seconds, peak = folded(model, folder)
            times.append(seconds)
            peaks.append(peak)
    found = Point(size, min(times), max(peaks), min(copies))
    print(f"{size}: {found.seconds:.2f} s, {found.peak / 1e6:.0f} MB, copied in {found.copying:.2f} s", file=sys.stderr)
    return found


def by_nodes(sizes: Sequence[int]) -> list[Point]:
    def writer(nodes: int) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            generate(folder / "model.onnx", nodes // 3, 8)
            return folder / "model.onnx"

        return write

    return [point(nodes, writer(nodes)) for nodes in sizes]


def by_bytes(megabytes: Sequence[int]) -> list[Point]:
    def writer(size: int) -> Callable[[Path], Path]:
        width = WIDTH if size >= 1000 else WIDTH // 8
        layers = max(size * 1_000_000 // (4 * width * width), 1)
        return lambda folder: write_model(folder, layers=layers, width=width, every=1)

    return [point(size * 1_000_000, writer(size)) for size in megabytes]


def exponent(points: Sequence[Point], of: Callable[[Point], float]) -> float:
    """The slope of a straight line on logarithmic axes through what grows beyond the first point; NaN for fewer than
    three."""
    first, *rest = points
    if len(rest) < 2:
        return math.nan
    sizes = [math.log(each.size - first.size) for each in rest]
    values = [math.log(max(of(each) - of(first), 1e-3)) for each in rest]
    return statistics.linear_regression(sizes, values).slope


def table(points: Sequence[Point], name: str, unit: int, *, copies: bool) -> str:
    head = [name, "seconds", "MB of memory", *(["seconds to copy", "times as long as copying"] if copies else [])]
    rows = []
    for each in points:
        beside = [f"{each.copying:.2f}", f"{each.seconds / each.copying:.2f}"] if copies else []
        rows.append([f"{each.size // unit:,}", f"{each.seconds:.2f}", f"{each.peak / 1e6:.0f}", *beside])
    grown = f"Time grows as size to the power of {exponent(points, lambda p: p.seconds):.2f} beyond the smallest"
    return f"{markdown(head, rows)}\n\n{grown}, memory to that of {exponent(points, lambda p: p.peak / 1e6):.2f}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--megabytes", type=int, nargs="+", default=MEGABYTES)
    parser.add_argument("--doc", type=Path, help="replace the section of this script in this file")
    options = parser.parse_args()
    graphs, weights = by_nodes(options.nodes), by_bytes(options.megabytes)
    numbers = [" ".join(map(str, each)) for each in (options.nodes, options.megabytes)]
    command = f"`python benchmarks/scale.py --nodes {numbers[0]} --megabytes {numbers[1]}`"
    text = "\n\n".join(
        [
            command,
            "`bnfold fold --no-check` as a whole process, best of three; memory is the largest anonymous set.",
            GOALS,
            table(graphs, "nodes", 1, copies=False),
            table(weights, "MB of weights", 1_000_000, copies=True),
            environment("onnx", "onnx-ir"),
        ]
    )
    print(text)
    if options.doc:
        page.write(options.doc, TITLE, text)
    if exponent(graphs, lambda p: p.seconds) > GROWS_AT_MOST:
        raise SystemExit("the time of a fold grows faster than the graph")


if __name__ == "__main__":
    main()
