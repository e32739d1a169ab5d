"""What each layer of the check costs: seconds, and the largest resident memory while it runs.

    python benchmarks/layers.py --cache zoo                          resnet50 and densenet121
    python benchmarks/layers.py --cache zoo --models levit_128s --repeat 5
    python benchmarks/layers.py --cache zoo --doc docs/layers.md     the page of the documentation

`bnfold.check(original, folded)` of files that `networks.py` built and bnfold folded, in a fresh process each time. The
check makes the records of the fold again first (`fold`). L2 and what L4 and L5 compare with are one execution, that in
float64; L4 and L5 are in turn one loop of the runtime. Memory is polled from `/proc` every 5 ms: what the process holds
beyond what it held before the check began, with the original and the fold read.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import Any
from unittest import mock

from zoo import HERE, answer, process, study

MODELS = ("resnet50", "densenet121")
PHASES = {
    "fold": ("bnfold.frontends.onnx", "fold_model"),
    "L0": ("bnfold.verify.check", "licence_of"),
    "L1": ("bnfold.verify.check", "derive"),
    "L2, float64": ("bnfold.verify.execution.Execution", "_run_exact"),
    "L3": ("bnfold.verify.check", "examine"),
    "L4 and L5": ("bnfold.verify.execution.Execution", "_run_actual"),
}
OTHER = "all else"


class Meter:
    """The phase that runs now, the seconds of each so far, and its largest resident memory in bytes."""

    def __init__(self) -> None:
        self.phase, self.since, self.running = OTHER, time.perf_counter(), True
        self.seconds, self.peaks = Counter[str](), Counter[str]()
        self.poller = threading.Thread(target=self._poll, daemon=True)

    def enter(self, phase: str) -> str:
        """Begin a phase; the one that it interrupts."""
        now, former = time.perf_counter(), self.phase
        self.seconds[former] += now - self.since
        self.phase, self.since = phase, now
        return former

    def _poll(self) -> None:
        while self.running:
            phase = self.phase
            self.peaks[phase] = max(self.peaks[phase], resident())
            time.sleep(0.005)

    def around(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any, **options: Any) -> Any:
            former = self.enter(phase)
            try:
                return function(*arguments, **options)
            finally:
                self.enter(former)

        return measured

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """While this holds, every phase is measured."""
        with ExitStack() as stack:
            for phase, (place, name) in PHASES.items():
                holder = resolve_name(place)
                stack.enter_context(mock.patch.object(holder, name, self.around(phase, getattr(holder, name))))
            self.poller.start()
            try:
                yield
            finally:
                self.enter(OTHER)
                self.running = False
                self.poller.join()


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def once(original: Path, folded: Path) -> dict[str, Any]:
    """One check in this process."""
    import bnfold

    models = bnfold.load(original), bnfold.load(folded)
    before, meter = resident(), Meter()
    with meter.everywhere():
        found = bnfold.check(*models)
    figures = {phase: [meter.seconds[phase], meter.peaks[phase] - before] for phase in (*PHASES, OTHER)}
    return {"verdict": str(found.verdict), "before": before, "phases": figures}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The medians of all repetitions, for each network."""
    for model in options.models:
        answer(HERE / "networks.py", model, "--cache", options.cache)
        original = options.cache / f"{model}.onnx"
        with tempfile.TemporaryDirectory() as folder:
            folded = Path(folder) / "folded.onnx"
            process(HERE / "peers.py", "run", "bnfold", original, folded)
            runs = [answer(Path(__file__), "--once", original, folded) for _ in range(options.repeat)]
        assert {run["verdict"] for run in runs} == {"proved"}, "what is measured is a whole check of a right fold"
        phases = {
            phase: [median(run["phases"][phase][column] for run in runs) for column in range(2)]
            for phase in runs[0]["phases"]
        }
        yield {"model": model, "before": median(run["before"] for run in runs), "phases": phases}


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| model | phase | seconds | MB beyond the models |", "|---|---|--:|--:|"]
    for row in found:
        for phase, (seconds, peak) in row["phases"].items():
            lines.append(f"| {row['model']} | {phase} | {seconds:.1f} | {max(peak, 0) / 1e6:.0f} |")
        total = sum(seconds for seconds, _ in row["phases"].values())
        most = max(peak for _, peak in row["phases"].values())
        lines.append(f"| {row['model']} | **all** | **{total:.1f}** | **{most / 1e6:.0f}** |")
    return "\n".join(lines)


def document(found: list[dict[str, Any]], repeat: int) -> str:
    held = ", ".join(f"{row['model']} {row['before'] / 1e6:.0f} MB" for row in found)
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnx", "onnxruntime", "numpy"))
    return "\n\n".join(
        (
            "# What the check costs",
            "`python benchmarks/layers.py` makes this page; its first lines say how.",
            table(found),
            f"Medians of {repeat} runs. With both models read and nothing checked the process holds: {held}. "
            f"{platform.machine()}, Python {platform.python_version()}, {packages}.",
        )
    )


def main() -> None:
    parser = study(__doc__, MODELS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--once", nargs=2, type=Path, metavar="FILE", help="measure one check here")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(*options.once)))
        return
    found = list(rows(options))
    print(table(found))
    if options.doc:
        options.doc.write_text(document(found, options.repeat) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
