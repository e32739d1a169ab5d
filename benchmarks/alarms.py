"""False alarms: what `bnfold check` says of folds that are right.

    python benchmarks/alarms.py --cache zoo                          an hour on two cores; goes on where it stopped
    python benchmarks/alarms.py --cache zoo --models levit_128s --contenders bnfold onnxsim
    python benchmarks/alarms.py --cache zoo --doc docs/alarms.md     the page of the documentation

Each network of `zoo.py` is folded by bnfold, with and without merging, and by each peer (`peers.py`). Whether a peer's
file is right is not asked of bnfold: its error on the stored inputs, against the network in float64, is at most
`ERROR_RATIO_AT_MOST` times that of the file as exported. Of every right one two things are measured:

- what `bnfold.check(original, candidate)` says, with nothing but the two files;
- ρ, the error against float64 over that of the original with the runtime's optimisations off, pooled over all nine
  families of inputs, with both models at each optimisation level of onnxruntime. The judgement is that of L5, with the
  level in the place of the default one.

Rows are kept in `CACHE/alarms.jsonl`, one as soon as it is known, and are not computed again. What is needed is said in
`zoo.py`. Exit code 1 if there is a false alarm.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from zoo import ERROR_RATIO_AT_MOST, HERE, MODELS, Failed, answer, measured, process, study

import bnfold
from bnfold.dialects import onnx_dialect
from bnfold.loading import Source, load
from bnfold.run import RunOptions
from bnfold.verification import Side
from bnfold.verify.draws import Neighbours
from bnfold.verify.ends import Tuned
from bnfold.verify.machines import Machine, Subject
from bnfold.verify.meters import EndToEnd
from bnfold.verify.plan import CheckPlan
from bnfold.verify.probes import FAMILIES, feeds_of

CONTENDERS = (
    "bnfold",
    "bnfold, merge never",
    "onnxscript",
    "onnxsim",
    "onnxscript+onnxsim",
    "onnxslim",
    "onnxoptimizer",
    "onnxruntime",
)
LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
BATCH = 2
Arrays = Mapping[str, NDArray[Any]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """One input of each family, what float64 gives for it, and what the original gives without optimisation."""

    subject: Subject
    feeds: tuple[Arrays, ...]
    exact: tuple[Arrays, ...]
    plain: tuple[Arrays, ...]
    neighbours: Neighbours
    machines: tuple[Machine, Machine]
    levels: Mapping[str, Machine]

    @classmethod
    def of(cls, original: Path, seed: int) -> Inputs:
        subject = subject_of(original)
        sizes = {axis: BATCH for port in subject.signature.inputs for axis in port.shape or () if isinstance(axis, str)}
        feeds = tuple(feeds_of(subject.signature, sizes, family, seed, 1) for family in FAMILIES)
        run, exactly = Session(original, "DISABLE_ALL"), subject.exact()
        signature = subject.signature
        machines = Machine(lambda: exactly, signature, signature), Machine(lambda: run, signature, signature)
        results = tuple(map(exactly, feeds)), tuple(map(run, feeds))
        levels = {level: Machine(lambda level=level: Kept(original, level), signature, signature) for level in LEVELS}
        return cls(subject, feeds, *results, Neighbours(feeds), machines, levels)

    def judged(self, candidate: Path, level: str) -> Row:
        """What L5 says of a candidate if this level were the default."""
        second = Machine(lambda: Session(candidate, level), self.subject.signature, subject_of(candidate).signature)
        tuned = Tuned(self.levels[level], second, *(EndToEnd() for _ in range(3)))
        for given, exact, plain in zip(self.feeds, self.exact, self.plain, strict=True):
            tuned.add(given, exact, plain)
        tuned.draw_again(self.neighbours, *self.machines)
        layer = tuned.layer(None, CheckPlan(), decides=False, strict=False)
        return {"status": str(layer.status), "because": layer.because, "ratio": tuned.after.worst_ratio}


class Session:
    """A file in onnxruntime at one optimisation level."""

    def __init__(self, path: Path, level: str) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
        options.log_severity_level = 4
        self.raw = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        names = [port.name for port in self.raw.get_outputs()]
        return dict(zip(names, self.raw.run(names, dict(feeds)), strict=True))


class Kept(Session):
    """One that remembers what it gave for the arrays that it was given, which live as long as it does."""

    def __init__(self, path: Path, level: str) -> None:
        super().__init__(path, level)
        self.known: dict[tuple[int, ...], dict[str, NDArray[Any]]] = {}

    def __call__(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        key = tuple(id(value) for value in feeds.values())
        if key not in self.known:
            self.known[key] = super().__call__(feeds)
        return self.known[key]


def subject_of(path: Path) -> Subject:
    return Side(onnx_dialect(), load(path, Source()).model).subject(RunOptions())


def rows_of(model: str, wanted: list[str], options: argparse.Namespace) -> Iterator[Row]:
    answer(HERE / "networks.py", model, "--cache", options.cache)
    original = options.cache / f"{model}.onnx"
    before = measured(original, model, options.cache)["error"]
    inputs = Inputs.of(original, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "candidate.onnx"
        for contender in wanted:
            candidate.unlink(missing_ok=True)
            row = Row(model=model, contender=contender)
            try:
                process(HERE / "peers.py", "run", contender, original, candidate)
                error = measured(candidate, model, options.cache)["error"]
            except Failed as failure:
                yield row | {"wrong": str(failure)}
                continue
            if error > ERROR_RATIO_AT_MOST * before:
                yield row | {"wrong": f"error {error:.1e}, {before:.1e} before"}
                continue
            found = bnfold.check(original, candidate, seed=options.seed)
            levels = {level: inputs.judged(candidate, level) for level in LEVELS}
            figures = {layer.layer: layer.figure for layer in found.layers}
            yield row | {
                "verdict": str(found.verdict),
                "sentence": found.sentence,
                "figures": figures,
                "levels": levels,
            }


def run(options: argparse.Namespace) -> list[Row]:
    """Every row that is asked for; those that are known already are read."""
    file = options.cache / "alarms.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(row["model"], row["contender"]) for row in rows}
    for model in options.models:
        wanted = [contender for contender in options.contenders if (model, contender) not in known]
        for row in rows_of(model, wanted, options) if wanted else ():
            with file.open("a") as kept:
                kept.write(json.dumps(row) + "\n")
            rows.append(row)
            print(model, "|", row["contender"], "|", row.get("verdict", row.get("wrong")), flush=True)
    return [row for row in rows if row["model"] in options.models and row["contender"] in options.contenders]


def alarms(rows: list[Row]) -> list[str]:
    """What is called not equivalent and is."""
    found = [f"{row['model']}, {row['contender']}: {row['sentence']}" for row in rows if row.get("verdict") == "failed"]
    for row in rows:
        for level, said in row.get("levels", {}).items():
            if said["status"] == "fail":
                found.append(f"{row['model']}, {row['contender']}, {level}: {said['because']}")
    return found


def document(rows: list[Row]) -> str:
    """The page: how many alarms, how ρ is distributed, and the table."""
    right, found = [row for row in rows if "levels" in row], alarms(rows)
    wrong = [f"- {row['model']}, {row['contender']}: {row['wrong']}" for row in rows if "wrong" in row]
    verdicts = {name: sum(row["verdict"] == name for row in right) for name in sorted({r["verdict"] for r in right})}
    parts = [
        "# False alarms",
        "Folds that are right, and what the check says of them. `python benchmarks/alarms.py` makes this page; its "
        "first lines say how.",
        f"**{len(found)} false alarms** in {len(right)} right folds of {len({row['model'] for row in right})} networks "
        f"({', '.join(f'{name}: {count}' for name, count in verdicts.items())}) and {len(right) * len(LEVELS)} runs of "
        f"{len(FAMILIES)} families of inputs.",
        *("\n".join(f"- {each}" for each in group) for group in [found] if group),
        f"## ρ, over all families\n\n{distribution(right)}",
        f"## Each fold\n\n{table(right)}",
    ]
    if wrong:
        parts.append("Not counted, since they failed or are wrong by the stored inputs:\n\n" + "\n".join(wrong))
    return "\n\n".join(parts) + "\n"


def distribution(rows: list[Row]) -> str:
    """Quantiles of ρ at each level, and of the largest ρ of a place on its own (L3)."""
    samples = {level: [row["levels"][level]["ratio"] for row in rows] for level in LEVELS}
    samples["L3, the worst place"] = [row["figures"].get("L3") for row in rows]
    lines = ["| level | folds | median | 90 % | largest | limit |", "|---|--:|--:|--:|--:|--:|"]
    for name, values in samples.items():
        numbers = np.array([value for value in values if value is not None])
        if numbers.size:
            middle, high, largest = np.quantile(numbers, (0.5, 0.9, 1.0))
            limit = 8 if name.startswith("L3") else 4
            lines.append(f"| {name} | {numbers.size} | {middle:.2f} | {high:.2f} | {largest:.2f} | {limit} |")
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    head = ["model", "folded by", "verdict", "L3", "L4", *(f"ρ {level}" for level in LEVELS)]
    lines = [head, ["---"] * 3 + ["--:"] * (len(head) - 3)]
    for row in rows:
        ratios = [row["levels"][level]["ratio"] for level in LEVELS]
        figures = [row["figures"].get(layer) for layer in ("L3", "L4")]
        numbers = ["" if value is None else f"{value:.2f}" for value in (*figures, *ratios)]
        lines.append([row["model"], row["contender"], row["verdict"], *numbers])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse() -> argparse.Namespace:
    parser = study(__doc__, MODELS)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    rows = run(options)
    if options.doc:
        options.doc.write_text(document(rows), encoding="utf-8")
    print(f"{len(alarms(rows))} false alarms in {sum('levels' in row for row in rows)} right folds")
    if found := alarms(rows):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
