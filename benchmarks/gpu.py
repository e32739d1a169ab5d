"""What folding buys on a CUDA device: onnxruntime's CUDA provider, and torch, eager and compiled.

    python benchmarks/gpu.py --cache zoo --json gpu.json              on the machine with the device
    python benchmarks/gpu.py --read gpu.json --doc docs/benchmarks.md              anywhere: write the section

The peers' files are measured in onnxruntime, exported programs and their folds in torch; where onnxruntime has no CUDA
provider, torch alone. Inputs and outputs stay on the device, every run is waited for, TF32 is off, cuDNN picks its
algorithm in the same way for all. Nothing is measured without a device: exit code 5.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import page
from peer_tables import PLAIN, by_tool, said
from sections import markdown
from zoo import MODELS, Failed

import bnfold
from bnfold.cli import main as bnfold_main
from bnfold.runtime import available_providers

TITLE = "On a GPU"
CUDA = "CUDAExecutionProvider"
OPTIONS = ("--provider", "cuda")
TF32_OFF = ("--provider-option", "use_tf32=0", "--provider-option", "cudnn_conv_algo_search=HEURISTIC")

Row = dict[str, Any]


def device() -> Row | None:
    """The device and its software; None where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return {
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "onnxruntime": CUDA in available_providers(),
    }


def bench(files: Sequence[Path], folder: Path, *words: str) -> Row:
    """What `bnfold bench --json` measures."""
    report = folder / "report.json"
    code = bnfold_main(["bench", *map(str, files), *OPTIONS, *words, "--quiet", "--report", str(report)])
    document: Row = json.loads(report.read_text())
    if code:
        return Row(failure=document["error"]["message"])
    found: Row = document["bench"]
    return found


def in_onnxruntime(name: str, cache: Path, words: Sequence[str]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        folder, plain = Path(scratch), cache / f"{name}.onnx"
        files = {PLAIN: plain}
        for tool, target, cost in by_tool(plain, folder):
            if isinstance(cost, Failed):
                yield Row(model=name, contender=tool, failure=str(cost))
            else:
                files[tool] = target
        yield from pairs(name, list(files), bench(list(files.values()), folder, *TF32_OFF, *words))


def in_torch(name: str, cache: Path, words: Sequence[str]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        folder, plain = Path(scratch), cache / f"{name}.pt2"
        folded = folder / "folded.pt2"
        bnfold.save(bnfold.fold(plain).model, folded)
        yield from pairs(name, ["torch", "torch, bnfold"], bench([plain, folded], folder, "--runtime", "torch", *words))


def pairs(name: str, names: Sequence[str], found: Row) -> Iterator[Row]:
    """One row per comparison, under the names of the contenders."""
    if "failure" in found:
        yield Row(model=name, contender=" / ".join(names), failure=found["failure"])
        return
    known = {contender["name"]: label for contender, label in zip(found["contenders"], names, strict=True)}
    seconds = {known[contender["name"]]: contender["p50_s"] for contender in found["contenders"]}
    for row in found["comparisons"]:
        interval = [row["ratio"], row["low"], row["high"], row["verdict"]]
        label = known[row["b"]]
        found_row = Row(model=name, contender=label, mode=row["options"], batch=row["batch"], interval=interval)
        yield found_row | {"p50_s": seconds[label], "control": found["control"]}


def table(rows: Sequence[Row]) -> str:
    head = ["model", "contender", "mode", "batch", "times as fast"]
    body = []
    for row in rows:
        if "failure" in row:
            body.append([row["model"], row["contender"], "", "", f"failed: {row['failure'].replace('|', '/')}"])
        else:
            body.append([row["model"], row["contender"], row["mode"], str(row["batch"]), said(row["interval"])])
    return markdown(head, body)


def section(measured: Row) -> str:
    machine = measured["machine"]
    told = ", ".join(f"{key} {value}" for key, value in machine.items() if key not in ("device", "onnxruntime"))
    lacking = "" if machine["onnxruntime"] else " onnxruntime had no CUDA provider there, so torch alone was measured."
    command = "`python benchmarks/gpu.py --cache zoo --json gpu.json`"
    return f"{command}\n\n{machine['device']}: {told}. TF32 off.{lacking}\n\n{table(measured['rows'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, help="NAME.onnx and NAME.pt2 lie here (networks.py writes them)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--budget", default="60")
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--read", type=Path, help="measure nothing, take this file of --json")
    parser.add_argument("--doc", type=Path, help="replace the section of this script in this file")
    options = parser.parse_args()
    if options.read:
        measured = json.loads(options.read.read_text())
    else:
        measured = {"machine": device(), "rows": []}
        if measured["machine"] is None:
            print("no CUDA device: nothing is measured", file=sys.stderr)
            raise SystemExit(5)
        words = ("--batch", options.batch, "--budget", options.budget)
        for name in options.models:
            ways = (in_onnxruntime, in_torch) if measured["machine"]["onnxruntime"] else (in_torch,)
            measured["rows"] += [row for way in ways for row in way(name, options.cache, words)]
            if options.json:
                options.json.write_text(json.dumps(measured, indent=1))
    print(section(measured))
    if options.doc:
        page.write(options.doc, TITLE, section(measured))


if __name__ == "__main__":
    main()
