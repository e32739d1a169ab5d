"""Is `bnfold bench` right? Twenty comparisons of a model with itself, and of models whose difference is known.

    python benchmarks/trust.py                                  both, some 25 minutes
    python benchmarks/trust.py --runs 20 --budget 12 --doc docs/benchmarks.md

The model is a chain of equal blocks, 3 × 3 convolution and ReLU. Slower by 3 % or 10 % is the same chain with 3 % or
10 % more blocks, so what is true is known before anything is measured. A copy is another file of the same bytes.
Exit code 1 if a copy got a verdict, or a slowdown of 10 % was missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import page
from onnx import TensorProto, helper, numpy_helper
from sections import environment, markdown

import bnfold
from bnfold.benchmark import Compared

TITLE = "Whether the measurement can be believed"
BLOCKS, CHANNELS, SIZE = 100, 16, 24
SLOWER_BY = (0, 3, 10)
"""Percent."""


@dataclass(frozen=True)
class Trial:
    """What was said of a known slowdown, run after run. `ratio` of a row is the first's time over the second's."""

    percent: int
    rows: tuple[Compared, ...]

    @property
    def truth(self) -> float:
        return 1 / (1 + self.percent / 100)

    @property
    def covered(self) -> int:
        known = [(row.low, row.high) for row in self.rows if row.low is not None and row.high is not None]
        return sum(low <= self.truth <= high for low, high in known)

    def said(self, verdict: str) -> int:
        return sum(row.verdict == verdict for row in self.rows)

    @property
    def widest(self) -> float:
        """The largest error of a ratio, as a part of it."""
        return max(abs(row.ratio / self.truth - 1) for row in self.rows if row.ratio is not None)


def chain(blocks: int) -> onnx.ModelProto:
    """`blocks` blocks, all with the same weights, that neither grow nor vanish."""
    random = np.random.default_rng(0)
    weight = random.normal(0, (2 / (9 * CHANNELS)) ** 0.5, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    nodes = []
    for index in range(blocks):
        nodes.append(helper.make_node("Conv", [f"x{index}", "w"], [f"c{index}"], f"conv{index}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"x{index + 1}"], f"relu{index}"))
    shape = ("batch", CHANNELS, SIZE, SIZE)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x0", f"x{blocks}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def trials(runs: int, budget: float) -> Iterator[Trial]:
    """Each slowdown, measured again and again with the runtime's optimisation at its default."""
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first.onnx"
        onnx.save(chain(BLOCKS), first)
        for percent in SLOWER_BY:
            other = Path(folder) / f"slower by {percent}.onnx"
            onnx.save(chain(BLOCKS + percent * BLOCKS // 100), other)
            rows = []
            for run in range(runs):
                found = bnfold.bench(first, other, budget=budget)
                rows.append(next(row for row in found.comparisons if row.options == found.mode))
                row = rows[-1]
                print(f"{percent} %, run {run + 1}: {row.ratio} [{row.low}, {row.high}] {row.verdict}", file=sys.stderr)
            yield Trial(percent, tuple(rows))


def table(found: list[Trial]) -> str:
    head = ["second model", "runs", "truth in the interval", "largest error"]
    head += ["slower", "faster", "no difference", "no verdict"]
    rows = []
    for trial in found:
        name = "a copy" if trial.percent == 0 else f"{trial.percent} % more blocks"
        said = [trial.said(word) for word in ("slower", "faster", "no_measurable_difference", "no_verdict")]
        rows.append([name, str(len(trial.rows)), str(trial.covered), f"{trial.widest:.1%}", *map(str, said)])
    return markdown(head, rows)


def wrong(found: list[Trial]) -> list[str]:
    """What must not be: a verdict on a copy, a verdict on the wrong side, 10 % that nobody saw."""
    sentences = []
    for trial in found:
        faster, slower = trial.said("faster"), trial.said("slower")
        if faster or (slower and trial.percent == 0):
            sentences.append(f"{trial.percent} % slower: {faster} called faster, {slower} slower")
        if trial.percent >= 10 and slower < len(trial.rows):
            sentences.append(f"{trial.percent} % slower: found in {slower} of {len(trial.rows)}")
    return sentences


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--budget", type=float, default=20, help="seconds for a run")
    parser.add_argument("--doc", type=Path, help="replace the section of this script in this file")
    options = parser.parse_args()
    found = list(trials(options.runs, options.budget))
    command = f"python benchmarks/trust.py --runs {options.runs} --budget {options.budget:g}"
    text = f"`{command}`\n\n{TERMS}\n\n{table(found)}\n\n{environment('onnxruntime')}"
    print(text)
    if options.doc:
        page.write(options.doc, TITLE, text)
    if sentences := wrong(found):
        raise SystemExit("\n".join(sentences))


TERMS = (
    "A chain of 100 equal blocks against a copy of itself, and against chains with 3 and with 10 blocks more, so that "
    "the true ratio is known. An interval of 95 % misses the truth once in twenty; a verdict needs 2 % of effect too."
)

if __name__ == "__main__":
    main()
