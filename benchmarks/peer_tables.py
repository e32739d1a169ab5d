"""What each tool makes of public architectures, and what that is worth in onnxruntime: `peers.py tables`.

    python benchmarks/peers.py tables --cache zoo --json calm.json --doc docs/benchmarks.md
    python benchmarks/peers.py tables --cache zoo --json busy.json --busy           one core kept busy meanwhile
    python benchmarks/peers.py tables --calm calm.json int8.json --again busy.json int8_busy.json --doc FILE

Every tool gets the same file, torch's export without optimisation, and works in a process of its own. What they wrote
is then measured by `bnfold bench`, all of a model together, so that all are paired with the file as it was. Exit code 1
from `--again` if a verdict changed sides. Those of `int8.py` can be compared by it too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import page
from sections import busy, environment, markdown
from zoo import HERE, MODELS, PEERS, Cost, Failed, process

TITLE, LASTING = "Public architectures", "Whether verdicts last"
TOOLS = (*PEERS, "bnfold, merge never", "bnfold")
PLAIN = "as exported"
PACKAGES = ("onnxruntime", "onnx", "onnxscript", "onnxsim", "onnxslim", "onnxoptimizer", "torch", "timm")
SIDES = ("faster", "slower")
TERMS = (
    "*Nodes* and *BN left* are of the file, *BN that run* of what onnxruntime makes of it when it loads it at its "
    "defaults. *Tool* is the whole process: read, work, write. *Session* is the time to load the file. The ratios say "
    "how many times as fast as the file as exported, one thread, batch 1: with the runtime's own optimisation at its "
    "default, and off."
)

Row = dict[str, Any]


def by_tool(plain: Path, folder: Path) -> Iterator[tuple[str, Path, Cost | Failed]]:
    """What each tool makes of a file, where, and what that cost, or that it failed."""
    for number, tool in enumerate(TOOLS):
        target = folder / f"{number}.onnx"
        try:
            yield tool, target, process(HERE / "peers.py", "run", tool, plain, target)
        except Failed as failure:
            yield tool, target, failure


def measured(name: str, cache: Path, budget: float) -> list[Row]:
    """One row per tool for one model, the file as exported first."""
    with tempfile.TemporaryDirectory() as scratch:
        plain = cache / f"{name}.onnx"
        files, rows = {PLAIN: plain}, [Row(model=name, tool=PLAIN)]
        for tool, target, cost in by_tool(plain, Path(scratch)):
            if isinstance(cost, Failed):
                rows.append(Row(model=name, tool=tool, failure=str(cost)))
                continue
            files[tool] = target
            rows.append(Row(model=name, tool=tool, seconds=cost.seconds, peak=cost.peak))
        found = benched(list(files.values()), budget)
        contenders = dict(zip(files, found["contenders"], strict=True))
        for row in rows:
            if (contender := contenders.get(row["tool"])) is None:
                continue
            row |= {"nodes": contender["nodes"], "batch_norms": contender["bn"], "runs": contender["bn_after_runtime"]}
            row |= {"session_s": contender["session_s"], "p50_s": contender["p50_s"]}
            for pair in found["comparisons"]:
                if pair["b"] == contender["name"]:
                    row[pair["options"]] = [pair["ratio"], pair["low"], pair["high"], pair["verdict"]]
        rows[0]["control"] = found["control"] and [found["control"][key] for key in ("ratio", "low", "high")]
    return rows


def benched(files: Sequence[Path], budget: float) -> Row:
    """What `bnfold bench` says. In a process of its own: the memory of what is started from here, a tool for the next
    model, counts from that of this process on."""
    cost = process("-m", "bnfold", "bench", *files, "--budget", f"{budget:g}", "--json")
    found: Row = json.loads(cost.output)["bench"]
    return found


def table(rows: Sequence[Row]) -> str:
    head = ["model", "tool", "nodes", "BN left", "BN that run", "tool, s", "MB", "session, ms", "default", "off"]
    return markdown(head, [cells(row) for row in rows])


def cells(row: Row) -> list[str]:
    start = [row["model"] if row["tool"] == PLAIN else "", row["tool"]]
    if "failure" in row:
        return [*start, f"failed: {row['failure'].replace('|', '/')}", *[""] * 7]
    runs = "?" if row["runs"] is None else str(row["runs"])
    cost = [f"{row['seconds']:.1f}", f"{row['peak'] / 1e6:.0f}"] if "seconds" in row else ["", ""]
    session = f"{1e3 * row['session_s']:.0f}" if row["session_s"] else "?"
    ratios = [said(row.get(mode)) for mode in ("default", "off")]
    if row["tool"] == PLAIN and row.get("control"):
        ratios[0] = "control " + said([*row["control"], ""])
    return [*start, str(row["nodes"]), str(row["batch_norms"]), runs, *cost, session, *ratios]


def said(interval: Sequence[Any] | None) -> str:
    """A ratio with its interval; bold where it is a verdict."""
    if interval is None or interval[0] is None:
        return "" if interval is None else "no verdict"
    ratio, low, high, verdict = interval
    text = f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
    return f"**{text}**" if verdict in SIDES else text


def verdicts(rows: Sequence[Row]) -> dict[tuple[str, str, str], str]:
    return {
        (row["model"], row["tool"], mode): row[mode][3] for row in rows for mode in ("default", "off") if mode in row
    }


def changed(calm: Sequence[Row], busy: Sequence[Row]) -> tuple[list[str], str]:
    """What changed sides between two runs, and a table of what became of each verdict."""
    before, after = verdicts(calm), verdicts(busy)
    both = sorted(before.keys() & after.keys())
    words = ("faster", "slower", "no_measurable_difference", "no_verdict")
    counts = [[sum((before[key], after[key]) == (one, two) for key in both) for two in words] for one in words]
    head = ["first run, calm → second run, one core busy", *(word.replace("_", " ") for word in words)]
    body = [[word.replace("_", " "), *map(str, row)] for word, row in zip(words, counts, strict=True)]
    sides = [" ".join(key) for key in both if {before[key], after[key]} == set(SIDES)]
    return sides, markdown(head, body)


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="peers.py tables", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, help="NAME.onnx lie here (networks.py writes them)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--budget", type=float, default=60, help="seconds to measure one model")
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--calm", nargs="+", type=Path, metavar="FILE", help="files of --json, to compare with --again")
    parser.add_argument("--again", nargs="+", type=Path, metavar="FILE", help="files of --json --busy")
    parser.add_argument("--doc", type=Path, help="replace the section of this command in this file")
    options = parser.parse_args(words)
    if options.calm and options.again:
        compare(options.calm, options.again, options.doc)
        return
    if options.cache is None:
        parser.error("--cache is needed to measure")
    rows: list[Row] = []
    for name in options.models:
        with busy() if options.busy else nullcontext():
            rows += measured(name, options.cache, options.budget)
        print(table(rows[-len(TOOLS) - 1 :]), file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    command = f"`python benchmarks/peers.py tables --cache zoo --budget {options.budget:g}`"
    text = "\n\n".join([command, TERMS, table(rows), environment(*PACKAGES)])
    print(text)
    if options.doc:
        page.write(options.doc, TITLE, text)


def compare(calm: Sequence[Path], again: Sequence[Path], document: Path | None) -> None:
    """Write what became of the verdicts; exit code 1 if one changed sides."""
    before, after = ([row for path in paths for row in json.loads(path.read_text())] for paths in (calm, again))
    sides, found = changed(before, after)
    names = [" ".join(path.name for path in paths) for paths in (calm, again)]
    command = f"`python benchmarks/peers.py tables --calm {names[0]} --again {names[1]}`"
    told = "All that is measured above, and once more with one core kept busy. Verdicts that changed sides: "
    text = f"{command}\n\n{told}{len(sides)}.\n\n{found}"
    print(text)
    if document:
        page.write(document, LASTING, text)
    if sides:
        raise SystemExit("\n".join(["changed sides:", *sides]))
