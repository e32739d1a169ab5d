"""What bnfold makes of every shipped model: `python models/table.py`.

Each model is exported to ONNX and folded as a torch program; both are compared with the original on the test set of its
task. A row says how many batch norms there are before and after, why the rest stays, the verdict of the check, the
accuracy before and after, and on how many test inputs the decision is the same.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from nets import NETS
from tasks import accuracy, decisions, load

import bnfold

HERE = Path(__file__).parent


def onnx_outputs(path: Path, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """The first output of an ONNX file in onnxruntime at its defaults."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return np.asarray(session.run(None, dict(zip(names, inputs, strict=True)))[0])


def torch_outputs(module: torch.nn.Module, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """What a torch module computes, in the dtype of the inputs."""
    with torch.no_grad():
        return module(*(torch.from_numpy(array) for array in inputs)).numpy()


def reasons(report: bnfold.FoldReport) -> str:
    """How often each reason was given."""
    counts = Counter(o.refusal.reason.code for o in report.outcomes if o.refusal)
    return ", ".join(f"{count} {code}" for code, count in sorted(counts.items())) or "-"


def export_row(name: str, folder: Path) -> list[str]:
    """One model through `bnfold.export`, original and result compared on the test set."""
    data = load(name)
    run = bnfold.export(HERE / f"{name}.pt", folder / f"{name}.onnx")
    net = NETS[name]().eval()
    net.load_state_dict(bnfold.load(HERE / f"{name}.pt").state_dict)
    before = torch_outputs(net, data.test_x)
    after = onnx_outputs(folder / f"{name}.onnx", data.test_x)
    return [*row(name, run.fold, before, after, data.test_y), f"{run.check.verdict}"]


def fold_row(name: str) -> list[str]:
    """One model through `bnfold.fold(module)`: compared in float64, and the caller's module looked at afterwards."""
    data = load(name)
    net = NETS[name]().eval()
    net.load_state_dict(bnfold.load(HERE / f"{name}.pt").state_dict)
    stored = copy.deepcopy(net.state_dict())
    folded = bnfold.fold(net, tuple(torch.from_numpy(array[:2]) for array in data.test_x))
    unchanged = not net.training and all(torch.equal(stored[key], tensor) for key, tensor in net.state_dict().items())
    before, after = torch_outputs(net, data.test_x), torch_outputs(folded.model, data.test_x)
    columns = row(name, folded.report, before, after, data.test_y)
    return [*columns, f"{float64_error(net, data.test_x):.1e}", "yes" if unchanged else "NO"]


def float64_error(net: torch.nn.Module, inputs: tuple[np.ndarray, ...]) -> float:
    """Largest difference between a network in double and its fold in double, relative to the largest output."""
    wide = copy.deepcopy(net).double()
    doubles = tuple(array.astype(np.float64) for array in inputs)
    folded = bnfold.fold(wide, tuple(torch.from_numpy(array[:2]) for array in doubles)).model
    expected = torch_outputs(wide, doubles)
    return float(np.abs(torch_outputs(folded, doubles) - expected).max() / np.abs(expected).max())


def row(name: str, report: bnfold.FoldReport, before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> list[str]:
    """The columns that both tables share."""
    same = np.mean(decisions(name, before) == decisions(name, after))
    counts = [str(len(report.outcomes)), str(report.left), reasons(report)]
    scores = [f"{accuracy(name, outputs, labels):.4f}" for outputs in (before, after)]
    return [name, *counts, *scores, f"{same:.2%}"]


SHARED = ("model", "BN", "left", "reasons", "accuracy before", "after", "same decision")


def print_table(header: tuple[str, ...], rows: list[list[str]]) -> None:
    """A markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header))
    for columns in rows:
        print("| " + " | ".join(columns) + " |")


def main() -> None:
    """Print both tables, or only the rows of the models named on the command line."""
    names = sys.argv[1:] or list(NETS)
    print("`bnfold export` (onnxruntime)\n")
    with tempfile.TemporaryDirectory() as folder:
        print_table((*SHARED, "verdict"), [export_row(name, Path(folder)) for name in names])
    print("\n`bnfold.fold(module)` (torch)\n")
    print_table((*SHARED, "float64 error", "caller unchanged"), [fold_row(name) for name in names])


if __name__ == "__main__":
    main()
