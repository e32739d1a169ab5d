"""What merging parallel branches buys: operators, errors, latency, and what onnxruntime still fuses.

    python benchmarks/branches.py --cache zoo                     all parts; an hour and a half on two cores
    python benchmarks/branches.py --cache zoo --part nodes        operators and errors, a quarter of an hour
    python benchmarks/branches.py --cache zoo --part latency      wants a quiet machine
    python benchmarks/branches.py --part trained                  the RepVGG of models/: accuracy, nodes, latency
    python benchmarks/branches.py --cache zoo --part census       what onnxruntime fuses, over the zoo
    python benchmarks/branches.py --cache zoo --check             exit 1 where bnfold does less than it should

With `--doc docs/branches.md` each part that runs replaces its section there. The networks are those of `networks.py`:
random weights, calibrated statistics, a dynamic batch. What is needed is said in `zoo.py`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import latency
import numpy as np
from latency import CONTROL, Timed
from peers import DEFAULT, OWN, PLAIN
from sections import environment, replaced
from zoo import HERE, MODELS, PEERS, Failed, Row, answer, process

# Architectures of timm whose class merges something, with branches or with batch norms only.
MERGING = (
    "repvgg_a0",
    "repvgg_b0",
    "mobileone_s0",
    "mobileone_s1",
    "repghostnet_050",
    "fastvit_t8",
    "repvit_m0_9",
    "shvit_s1",
    "levit_128s",
)
TIMED = ("mobileone_s0", "repvgg_a0")
TOOLS = [*(peer for peer in PEERS if peer != "onnxruntime"), "bnfold, merge never", "bnfold"]
THREADS = (1, 2)
# Convolutions, exactly, and nodes, at most, behind bnfold in either dialect; no batch norm and no branch sum is left.
LIMITS = {"repvgg_a0": (22, 47), "mobileone_s0": (43, 89)}
# Times as fast as torch's default export, one thread.
FASTER_AT_LEAST = {"mobileone_s0": 3.5}
# The error of a float32 run is the rounding of the run; which of two equally good networks has less of it is chance.
ERROR_RATIO_AT_MOST = 1.1
PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "onnxscript", "onnxsim", "onnxslim", "onnxoptimizer")
NODES_TERMS = (
    "Branch sums are additions of linear images of one value (`benchmarks/counting.py`). Errors are against "
    "the network in float64, root mean square over all answers, relative to the largest: of a float32 run "
    "(onnxruntime without optimisation; torch), and of the numbers that are stored, run in float64. "
    "`reparameterize_model` is timm's: it calls what the network's own class has for the purpose."
)
LATENCY_TERMS = (
    "onnxruntime on the CPU, optimisations at their default, one image. Every measurement is a process of its "
    "own that loads one file and runs it for {seconds:g} s; {repetitions} repetitions visit all files in "
    "random order. Milliseconds are medians; *faster* is the median of the ratios within a repetition, of the "
    "first row over this one, with an interval of at least 95 %. BN and nodes are those of the file; the "
    "error is the largest difference from float64, relative to the largest answer. The control is the first "
    "file again."
)
TRAINED_TERMS = (
    "`models/digits_repvgg.pt`, trained in the form with branches, on the 450 test images of its task: "
    "outputs of ONNX files by onnxruntime at its defaults, of programs by torch. The decision is compared "
    "with that of the original in torch. The latency of one image is measured as above, {repetitions} "
    "repetitions of {seconds:g} s; a run of this network is tens of microseconds."
)
CENSUS_TERMS = (
    "The operators that run once onnxruntime has loaded a file at its defaults (`benchmarks/fused.py`), "
    "before → after bnfold. *Activations* are convolutions and products with an activation fused into them, "
    "*sums* convolutions with an addition fused into them, *others* all else that onnxruntime makes of "
    "several operators (FusedMatMul with a scale or a transposition, QuickGelu, …). *Alone* is what is not "
    "fused. *Gone* is what bnfold itself took away and onnxruntime could have fused otherwise: additions of "
    "branches + scales and shifts."
)
CENSUS_CHECK = (
    "Nothing is fused less, which `--check` asks of every row: activations fused are no fewer; sums fused "
    "with the branch sums that are gone, and others with the scales and shifts that are gone, are no fewer; "
    "activations alone, sums and batch norms alone, and all nodes that run are no more."
)
TITLE = "# Merged branches\n\nWritten by `benchmarks/branches.py`, part by part.\n"


@dataclass(frozen=True)
class Section:
    """What one part found: its text for the document, and what `--check` rejects."""

    text: str
    rejected: list[str]


def listed(*command: str | Path) -> list[Row]:
    """The list that a script prints last."""
    found: list[Row] = json.loads(process(*command).output.splitlines()[-1])
    return found


def nodes(options: argparse.Namespace) -> Section:
    """Operators and errors of every way to merge."""
    found = {}
    for name in options.models or MERGING:
        found[name] = answer(HERE / "merged.py", name, "--cache", options.cache)["rows"]
        print(name, "measured", flush=True)
    lines = [
        NODES_TERMS,
        "",
        "| Model | Tool | Given, by exporter and options | Convolutions | BN | Branch sums | Nodes | Error | Stored |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rows in found.items():
        for row in rows:
            counts = [str(row[key]) for key in ("convolutions", "batch_norms", "branch_sums", "compute_nodes")]
            errors = [f"{row['error']:.1e}", f"{row['stored']:.1e}" if "stored" in row else ""]
            lines.append(f"| {' | '.join([name, row['tool'], given(row), *counts, *errors])} |")
    return Section("\n".join(lines), [fault for name, rows in found.items() for fault in node_faults(name, rows)])


def given(row: Row) -> str:
    return f"`{row['exporter']}`, {row['dialect']}"


def node_faults(name: str, rows: list[Row]) -> Iterator[str]:
    """Each row of bnfold against its limits, and against the class's own method on what the same exporter gives."""
    own = {given(row): row for row in rows if row["tool"] == OWN}
    for row in (row for row in rows if row["tool"] == "bnfold"):
        where, rival = f"{name}, {given(row)}", own[given(row)]
        if name in LIMITS:
            convolutions, most = LIMITS[name]
            if (row["convolutions"], row["batch_norms"], row["branch_sums"]) != (convolutions, 0, 0):
                left = f"{row['convolutions']} convolutions, {row['batch_norms']} BN, {row['branch_sums']} branch sums"
                yield f"{where}: {left}, not {convolutions}, 0, 0"
            if row["compute_nodes"] > most:
                yield f"{where}: {row['compute_nodes']} nodes, at most {most}"
        for key in ("convolutions", "batch_norms", "branch_sums", "compute_nodes"):
            if row[key] > rival[key]:
                yield f"{where}: {row[key]} {key.replace('_', ' ')}, the class itself leaves {rival[key]}"
        if not row["error"] <= rival["error"] * ERROR_RATIO_AT_MOST:
            yield f"{where}: error {row['error']:.2e}, of the class itself {rival['error']:.2e}"
        if "stored" in row and not row["stored"] <= rival["stored"]:
            yield f"{where}: stored numbers wrong by {row['stored']:.2e}, of the class itself {rival['stored']:.2e}"


def speed(options: argparse.Namespace) -> Section:
    """Latency of every tool on both exports."""
    rejected: list[str] = []
    lines = [LATENCY_TERMS.format(seconds=options.seconds, repetitions=options.repetitions), ""]
    for name in options.models or TIMED:
        answer(HERE / "networks.py", name, "--cache", options.cache, "--default", "--own")
        with tempfile.TemporaryDirectory() as folder:
            files, failures = contenders(name, options.cache, Path(folder), options.tools)
            found = {label: measured(path, name, options.cache) for label, path in files.items()}
            feeds = one_image(next(iter(files.values())), options.cache / f"{name}.npz")
            times = {
                threads: latency.measure(files, feeds, Path(folder), threads, options.repetitions, options.seconds)
                for threads in THREADS
            }
        lines += timing_table(name, files, found, times, failures)
        rejected += slow(name, times)
    return Section("\n".join(lines), rejected)


def label(tool: str, exporter: str) -> str:
    return f"`{exporter}` | {tool}"


def contenders(name: str, cache: Path, folder: Path, tools: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """The files to measure by their labels, torch's default export first, and the tools that failed."""
    exports = {DEFAULT: cache / f"{name}.default.onnx", PLAIN: cache / f"{name}.onnx"}
    files = {label("as exported", exporter): path for exporter, path in exports.items()}
    failures = {}
    for number, (exporter, source) in enumerate(exports.items()):
        for tool in tools:
            target = folder / f"{number}.{tool.replace(', ', '.').replace(' ', '.')}.onnx"
            try:
                process(HERE / "peers.py", "run", tool, source, target)
                files[label(tool, exporter)] = target
            except Failed as failure:
                failures[label(tool, exporter)] = str(failure)
    files[label(OWN, DEFAULT)] = cache / f"{name}.own.default.onnx"
    files[label(OWN, PLAIN)] = cache / f"{name}.own.onnx"
    return files, failures


def measured(path: Path, name: str, cache: Path) -> Row:
    return answer(HERE / "peers.py", "measure", path, cache / f"{name}.npz")


def one_image(path: Path, stored: Path) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return {session.get_inputs()[0].name: np.load(stored)["x0"][:1]}


def timing_table(
    name: str,
    files: dict[str, Path],
    found: dict[str, Row],
    times: dict[int, dict[str, Timed]],
    failures: dict[str, str],
) -> Iterator[str]:
    heads = [f"{what}, {threads}" for threads in map(plural, times) for what in ("ms", "faster")]
    yield from (f"### {name}", "", f"| Exporter and options | Tool | BN | Nodes | Error | {' | '.join(heads)} |")
    yield "|---|---|--:|--:|--:|" + "--:|" * len(heads)
    for each in files:
        row = found[each]
        cells = [str(row["batch_norms"]), str(row["compute_nodes"]), f"{row['error']:.1e}", *timings(times, each)]
        yield f"| {each} | {' | '.join(cells)} |"
    yield f"| {label('control', DEFAULT)} | | | | {' | '.join(timings(times, CONTROL))} |"
    for each, failure in failures.items():
        yield f"| {each} | {failure.replace('|', '/')} |{' |' * (2 + len(heads))}"
    yield ""


def plural(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def timings(times: dict[int, dict[str, Timed]], name: str) -> list[str]:
    pairs = [(f"{found[name].seconds * 1e3:.2f}", str(found[name])) for found in times.values()]
    return [cell for pair in pairs for cell in pair]


def slow(name: str, times: dict[int, dict[str, Timed]]) -> Iterator[str]:
    """Where bnfold is not so many times as fast as the default export as it should be, with certainty."""
    if name in FASTER_AT_LEAST and 1 in times:
        for exporter in (DEFAULT, PLAIN):
            found = times[1][label("bnfold", exporter)]
            if not (found.low is not None and found.low >= FASTER_AT_LEAST[name]):
                yield f"{name}, {exporter}: {found} times as fast, at least {FASTER_AT_LEAST[name]}"


def trained(options: argparse.Namespace) -> Section:
    """The RepVGG of models/: its accuracy, decisions, operators and latency, before and after."""
    with tempfile.TemporaryDirectory() as folder:
        rows = listed(HERE / "trained.py", folder)
        files = {row["file"]: Path(folder) / row["file"] for row in rows if row["file"]}
        feeds = dict(np.load(Path(folder) / "image.npz"))
        times = {
            threads: latency.measure(files, feeds, Path(folder), threads, options.repetitions, options.seconds)
            for threads in THREADS
        }
    lines = [
        TRAINED_TERMS.format(seconds=options.seconds, repetitions=options.repetitions),
        "",
    ]
    heads = [f"{what}, {threads}" for threads in map(plural, times) for what in ("µs", "faster")]
    lines.append(f"| Given | Tool | Convolutions | BN | Nodes | Accuracy | Same decision | {' | '.join(heads)} |")
    lines.append("|---|---|--:|--:|--:|--:|--:|" + "--:|" * len(heads))
    for row in rows:
        counts = [str(row[key]) for key in ("convolutions", "batch_norms", "compute_nodes")]
        cells = [row["given"], row["tool"], *counts, f"{row['accuracy']:.4f}", f"{row['same']:.2%}"]
        for found in times.values():
            this = found.get(row["file"] or "")
            cells += ["", ""] if this is None else [f"{this.seconds * 1e6:.0f}", str(this)]
        lines.append(f"| {' | '.join(cells)} |")
    control = [
        cell for found in times.values() for cell in (f"{found[CONTROL].seconds * 1e6:.0f}", str(found[CONTROL]))
    ]
    lines.append(f"| `{DEFAULT}` | control | | | | | | {' | '.join(control)} |")
    return Section("\n".join(lines), list(trained_faults(rows)))


def trained_faults(rows: list[Row]) -> Iterator[str]:
    """Merging may neither cost accuracy nor leave a branch."""
    original = rows[0]["accuracy"]
    for row in rows:
        if row["accuracy"] != original or row["same"] != 1:
            what = f"accuracy {row['accuracy']}, {row['same']:.2%} of the decisions the same"
            yield f"digits_repvgg, {row['given']}, {row['tool']}: {what}"
        left = (row["convolutions"], row["batch_norms"], row["branch_sums"])
        if row["tool"] == "bnfold" and left != (row["blocks"], 0, 0):
            yield f"digits_repvgg, {row['given']}: convolutions, BN, branch sums {left} for {row['blocks']} blocks"


def census(options: argparse.Namespace) -> Section:
    """What onnxruntime fuses of every network of the zoo, as it was and folded."""
    rows = [row for name in options.models or MODELS for row in census_rows(name, options.cache)]
    lines = [
        CENSUS_TERMS,
        "",
        CENSUS_CHECK,
        "",
        "| Model | Given | Nodes | Activations | Sums | Others | Activations alone | Sums alone | BN alone | Gone |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    keys = ("nodes", "activations", "sums", "others", "activations_alone", "sums_alone", "batch_norms_alone")
    for row in rows:
        cells = [f"{row['before'][key]} → {row['after'][key]}" for key in keys]
        gone = f"{row['branch_sums']} + {row['affines']}"
        lines.append(f"| {row['model']} | `{row['exporter']}` | {' | '.join(cells)} | {gone} |")
    raw = [sum(row[side][key] for row in rows for key in keys[1:4]) for side in ("before", "after")]
    lines += ["", f"All fused operators together: {raw[0]} before, {raw[1]} after."]
    return Section("\n".join(lines), [fault for row in rows for fault in census_faults(row)])


def census_rows(name: str, cache: Path) -> Iterator[Row]:
    answer(HERE / "networks.py", name, "--cache", cache, "--default")
    for exporter, source in ((PLAIN, cache / f"{name}.onnx"), (DEFAULT, cache / f"{name}.default.onnx")):
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "folded.onnx"
            process(HERE / "peers.py", "run", "bnfold", source, target)
            counts = [answer(HERE / "counting.py", path) for path in (source, target)]
            gone = {key: counts[0][key] - counts[1][key] for key in ("branch_sums", "affines")}
            before, after = (answer(HERE / "fused.py", path) for path in (source, target))
            yield Row(model=name, exporter=exporter, before=before, after=after) | gone
    print(name, "counted", flush=True)


def census_faults(row: Row) -> Iterator[str]:
    before, after, where = row["before"], row["after"], f"{row['model']}, {row['exporter']}"
    for key, gone in (("activations", 0), ("sums", row["branch_sums"]), ("others", row["affines"])):
        if after[key] + gone < before[key]:
            yield f"{where}: {after[key]} {key} fused and {gone} gone, {before[key]} fused before"
    for keys in (("nodes",), ("activations_alone",), ("sums_alone", "batch_norms_alone")):
        now, then = (sum(side[key] for key in keys) for side in (after, before))
        if now > then:
            yield f"{where}: {now} {' and '.join(keys).replace('_', ' ')}, {then} before"


PARTS: dict[str, tuple[str, Callable[[argparse.Namespace], Section]]] = {
    "nodes": ("Operators and errors", nodes),
    "latency": ("Latency", speed),
    "trained": ("A trained network", trained),
    "census": ("What onnxruntime fuses", census),
}


def command(part: str, options: argparse.Namespace) -> str:
    words = ["python benchmarks/branches.py"]
    words += [] if part == "trained" else ["--cache zoo"]
    words += [f"--part {part}"]
    words += [f"--models {' '.join(options.models)}"] if options.models else []
    words += [f"--tools {shlex.join(options.tools)}"] if options.tools != TOOLS else []
    if part in ("latency", "trained"):
        words += [f"--repetitions {options.repetitions}", f"--seconds {options.seconds:g}"]
    return " ".join(words)


def written(document: str, part: str, text: str) -> str:
    """The document with the section of this part replaced."""
    return replaced(document, TITLE, [title for title, _ in PARTS.values()], PARTS[part][0], text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show what merging parallel branches buys.")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--cache", type=Path, help="where built networks are kept; none: a folder that is deleted")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="instead of those of the part")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS, help="of latency, beside the exports")
    parser.add_argument("--repetitions", type=int, default=12, help="of latency")
    parser.add_argument("--seconds", type=float, default=1.0, help="that one process runs one file")
    parser.add_argument("--doc", type=Path, help="replace the sections of these parts in this file")
    parser.add_argument("--check", action="store_true", help="exit 1 if bnfold does less than it should")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    rejected = []
    with tempfile.TemporaryDirectory() as folder:
        options.cache = options.cache or Path(folder)
        for part in options.part:
            section = PARTS[part][1](options)
            text = f"`{command(part, options)}`\n\n{section.text}\n\n{environment(*PACKAGES)}"
            print(f"\n## {PARTS[part][0]}\n\n{text}\n", flush=True)
            if options.doc:
                before = options.doc.read_text() if options.doc.exists() else ""
                options.doc.write_text(written(before, part, text))
            rejected += section.rejected
    if rejected:
        print("\n".join(["Rejected:", *rejected]), flush=True)
    if options.check and rejected:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
