"""The zoo: what bnfold and its peers leave of public architectures, how wrong it is, and what it costs.

    python benchmarks/zoo.py --cache zoo                                        everything: half an hour on two cores
    python benchmarks/zoo.py --cache zoo --models levit_128s --contenders bnfold
    python benchmarks/zoo.py --cache zoo --contenders bnfold --check            exit 1 if bnfold leaves more than it may
    python benchmarks/zoo.py --cache zoo --markdown zoo.md --json zoo.json
    python benchmarks/zoo.py --cache zoo --doc docs/zoo.md      the page of the documentation
    python benchmarks/zoo.py --cache zoo --contenders bnfold --known zoo.json --doc docs/zoo.md
                                                                the same, with the rows of other tools from before

None of what this needs is needed by bnfold or by its tests. In an environment with bnfold[all]:

    pip install --no-deps timm==1.0.31 torchvision==0.28.0
    pip install huggingface_hub pyyaml pillow onnxslim onnxoptimizer

All contenders get the same files (`networks.py` builds them, `peers.py` runs the contenders, `counting.py` counts).
Each runs as a process of its own, whose whole wall time and largest resident set are given, imports included; one run,
so a difference of a few tenths of a second means nothing. This process imports none of it: a child's peak starts at
that of its parent. A row "before" measures the file as it was exported, so its error is that of float32.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo_document import PROGRAM, document

HERE = Path(__file__).resolve().parent
MODELS = (
    "resnet50",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "densenet121",
    "levit_128s",
    "repvgg_a0",
    "mobileone_s0",
    "convmixer_768_32",
    "regnety_002",
    "inception_v3",
    "resnetv2_50",
    "ghostnet_100",
)
PEERS = ("onnxscript", "onnxsim", "onnxslim", "onnxoptimizer", "onnxruntime")
# "bnfold" is `bnfold.fold` and `bnfold.save` from Python, the other is `bnfold fold --no-check`.
CONTENDERS = ("bnfold", "bnfold fold", *PEERS)
OPTIONAL = ("onnxruntime-extended", "onnxscript+onnxsim")
BATCH_NORMS_AT_MOST = {
    "densenet121": 62,
    "resnetv2_50": 17,
    "convmixer_768_32": 64,
}
NODES_AT_MOST = {
    "resnet50": 122,
    "levit_128s": 381,
    "densenet121": 368,
    "resnetv2_50": 139,
    "convmixer_768_32": 229,
    "repvgg_a0": 47,
    "mobileone_s0": 89,
}
# Folding in float64 and rounding once changes the error of a network by chance, up or down.
ERROR_RATIO_AT_MOST = 10
TIMEOUT = 900
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
Row = dict[str, Any]


class Failed(Exception):
    """A process failed; the last line that it wrote."""


@dataclass(frozen=True)
class Cost:
    """One process: wall time and processor time in seconds, largest resident set in bytes, and what it printed."""

    seconds: float
    processor: float
    peak: int
    output: str


def process(*command: str | Path) -> Cost:
    """Run a Python script or module to its end."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaint:
        started = time.perf_counter()
        child = subprocess.Popen([sys.executable, *command], stdout=output, stderr=complaint)
        killer = threading.Timer(TIMEOUT, child.kill)
        killer.start()
        _, status, usage = os.wait4(child.pid, 0)
        killer.cancel()
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        complaint.seek(0)
        output.seek(0)
        if child.returncode:
            raise Failed(complaint_of(complaint.read()) or f"ended by {child.returncode}")
        return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * MAXRSS_UNIT, output.read().decode())


def complaint_of(text: bytes) -> str:
    """The sentence of an error, which some wrap in pages of code: the last line that names an exception."""
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Rejected|Unusable|Fail)\b.*:", line)]
    return (named or lines or [""])[-1][:200]


def answer(*command: str | Path) -> Row:
    """The JSON that a script prints last."""
    found: Row = json.loads(process(*command).output.splitlines()[-1])
    return found


def run_model(name: str, options: argparse.Namespace) -> Iterator[Row]:
    """One row for the file as it is, one per contender, one for the exported program."""
    try:
        answer(HERE / "networks.py", name, "--cache", options.cache, "--seed", str(options.seed))
        yield Row(model=name, contender="before") | measured(options.cache / f"{name}.onnx", name, options.cache)
    except Failed as failure:
        yield Row(model=name, contender="before", failure=str(failure))
        return
    with tempfile.TemporaryDirectory() as folder:
        for contender in options.contenders:
            try:
                found = run_contender(contender, name, options.cache, Path(folder))
            except Failed as failure:
                found = Row(failure=str(failure))
            yield Row(model=name, contender=contender) | found
    if options.programs:
        try:
            found = answer(HERE / "programs.py", name, "--cache", options.cache)
        except Failed as failure:
            found = Row(failure=str(failure))
        yield Row(model=name, contender=PROGRAM) | found


def run_contender(contender: str, name: str, cache: Path, folder: Path) -> Row:
    source, target = cache / f"{name}.onnx", folder / "candidate.onnx"
    target.unlink(missing_ok=True)
    if contender == "bnfold fold":
        flags = ("--no-check", "--force", "--quiet")
        cost = process("-m", "bnfold", "fold", source, "-o", target, *flags)
    else:
        cost = process(HERE / "peers.py", "run", contender, source, target)
    found = Row(seconds=cost.seconds, processor=cost.processor, peak=cost.peak) | measured(target, name, cache)
    if contender == "bnfold":
        found["rows"] = json.loads(target.with_suffix(".rows.json").read_text())
    return found


def measured(candidate: Path, name: str, cache: Path) -> Row:
    return answer(HERE / "peers.py", "measure", candidate, cache / f"{name}.npz")


def violations(rows: list[Row]) -> list[str]:
    """Where bnfold leaves more than it may, is wrong, or the dialects disagree."""
    found = []
    before = {row["model"]: row for row in rows if row["contender"] == "before"}
    onnx = {row["model"]: row for row in rows if row["contender"] == "bnfold"}
    for row in rows:
        model = row["model"]
        if row["contender"] in ("before", "bnfold", "bnfold fold", PROGRAM) and "failure" in row:
            found.append(f"{model}, {row['contender']}: {row['failure']}")
        elif row["contender"] in ("bnfold", "bnfold fold"):
            found += [f"{model}, {row['contender']}: {each}" for each in too_much(model, row, before[model])]
        elif row["contender"] == PROGRAM:
            found += [f"{model}, {PROGRAM}: {each}" for each in program_faults(row, onnx.get(model))]
    return found


def too_much(model: str, row: Row, before: Row) -> Iterator[str]:
    limits = (
        ("batch_norms", "batch norms", BATCH_NORMS_AT_MOST.get(model, 0)),
        ("compute_nodes", "nodes", NODES_AT_MOST.get(model, before["compute_nodes"])),
        ("affines", "affines", before["affines"]),
    )
    for key, words, limit in limits:
        if row[key] > limit:
            yield f"{row[key]} {words}, at most {limit}"
    if row["error"] > ERROR_RATIO_AT_MOST * before["error"]:
        yield f"error {row['error']:.1e}, before {before['error']:.1e}"


def program_faults(row: Row, onnx: Row | None) -> Iterator[str]:
    if onnx and "failure" not in onnx and row["batch_norms"] != onnx["batch_norms"]:
        yield f"{row['batch_norms']} batch norms, {onnx['batch_norms']} in ONNX"
    if row["error"] > ERROR_RATIO_AT_MOST * row["error_before"]:
        yield f"error {row['error']:.1e}, before {row['error_before']:.1e}"
    if not row["loads"]:
        yield "what was loaded computes something else than what was saved"


def table(rows: list[Row]) -> str:
    """One line per model and contender."""
    lines = [
        "| Model | | BN | Affines | Product biases | Nodes | Error | Seconds | CPU, s | Peak, MB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row["contender"] == PROGRAM:
            continue
        cells = [row["model"], row["contender"], *(failed(row) or numbers(row))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def failed(row: Row) -> list[str] | None:
    return [row["failure"].replace("|", "/"), *[""] * 7] if "failure" in row else None


def numbers(row: Row) -> list[str]:
    counts = [str(row[key]) for key in ("batch_norms", "affines", "matmul_biases", "compute_nodes")]
    cost = ["", "", ""]
    if "seconds" in row:
        cost = [f"{row['seconds']:.1f}", f"{row['processor']:.1f}", f"{row['peak'] / 1e6:.0f}"]
    return [*counts, f"{row['error']:.1e}", *cost]


def program_table(rows: list[Row]) -> str:
    """The same networks as exported programs; the seconds are those of `bnfold.fold` alone."""
    lines = [
        "| Model | BN | BN in ONNX | Error before | Error | Saved and loaded | Seconds |",
        "|---|--:|--:|--:|--:|---|--:|",
    ]
    onnx = {row["model"]: row.get("batch_norms", "") for row in rows if row["contender"] == "bnfold"}
    for row in (row for row in rows if row["contender"] == PROGRAM):
        if "failure" in row:
            lines.append(f"| {row['model']} | {row['failure']} | | | | | |")
            continue
        cells = [row["model"], str(row["batch_norms"]), str(onnx.get(row["model"], ""))]
        cells += [f"{row['error_before']:.1e}", f"{row['error']:.1e}", "same" if row["loads"] else "**differs**"]
        lines.append(f"| {' | '.join(cells)} | {row['seconds']:.1f} |")
    return "\n".join(lines)


def left(rows: list[Row]) -> str:
    """Every batch norm that bnfold leaves: its name, the reason, and what stands in the way."""
    lines = []
    for row in rows:
        if row["contender"] != "bnfold" or "rows" not in row:
            continue
        lines += [f"{row['model']}  {describe(each)}" for each in row["rows"] if each["is_norm"] and each["reason"]]
    return "\n".join(lines)


def describe(affine: Row) -> str:
    blockers = " + ".join(filter(None, [affine["blocker"], *affine["also"]])) or "—"
    return f"{affine['name']}  {affine['reason']}  {blockers}"


def study(text: str | None, models: Iterable[str]) -> argparse.ArgumentParser:
    """The flags of a study of networks that were built before; `text` begins with what it shows."""
    parser = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "zoo", help="NAME.onnx lie here")
    parser.add_argument("--models", nargs="+", default=list(models), metavar="NAME")
    parser.add_argument("--doc", type=Path, metavar="FILE", help="write the page")
    return parser


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fold public architectures with bnfold and with its peers.")
    parser.add_argument("--cache", type=Path, help="where built networks are kept; none: a folder that is deleted")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="any of timm's names")
    parser.add_argument("--contenders", nargs="*", default=CONTENDERS, choices=(*CONTENDERS, *OPTIONAL), metavar="NAME")
    parser.add_argument("--programs", action=argparse.BooleanOptionalAction, default=True, help="exported programs too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    parser.add_argument("--json", type=Path, help="write all that was measured, with a row for every affine")
    parser.add_argument("--known", type=Path, nargs="*", default=(), help="rows of --json, unless measured again now")
    parser.add_argument("--doc", type=Path, help="write docs/zoo.md here")
    parser.add_argument("--check", action="store_true", help="exit 1 if bnfold exceeds a limit")
    return parser.parse_args()


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        options.cache = options.cache or Path(folder)
        rows = []
        for name in options.models:
            for row in run_model(name, options):
                rows.append(row)
                print(row["model"], row["contender"], *(failed(row) or summary(row)), file=sys.stderr, flush=True)
    text = f"{table(rows)}\n\n{program_table(rows)}\n\nLeft by bnfold:\n\n```\n{left(rows)}\n```"
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.doc:
        known = [row for path in options.known for row in json.loads(path.read_text())]
        options.doc.write_text(document([*known, *rows]))
    if options.check and (found := violations(rows)):
        raise SystemExit("\n".join(["", "Over the limits:", *found]))


def summary(row: Row) -> list[str]:
    return [f"BN {row['batch_norms']}", f"error {row['error']:.1e}", f"{row.get('seconds', 0):.1f} s"]


if __name__ == "__main__":
    main()
