"""The power study: does `bnfold check` see what is wrong with a wrong fold, and do others?

    python benchmarks/power.py --cache zoo                                  hours on two cores; goes on where it stopped
    python benchmarks/power.py --cache zoo --models levit_128s --only "beta ignored"
    python benchmarks/power.py --cache zoo --doc docs/power.md                 the page of the documentation

Five networks of `zoo.py` (`networks.py` builds them), each folded by bnfold and then spoilt in one place
(`mutations.py`, `spoiling.py`); a mutation goes to `--spread` of the networks in turn. `bnfold.check(original, mutant)`
gets the two models and nothing else: no record of what was folded. The same pairs go to what else there is, at its
defaults:

- `torch.testing.assert_close` on the outputs of onnxruntime for one normal input;
- Polygraphy's comparator on the same outputs;
- onnxsim's check (`onnxsim.model_checking.compare`), which draws its own inputs;
- onnxslim's `--model-check`, which draws its own input.

The controls are the unspoilt folds, at which each should say nothing. Rows are kept in `CACHE/power.jsonl`, one as soon
as it is known, and are not computed again. In an environment with bnfold[all]: `pip install onnxslim polygraphy`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
from mutations import MUTATIONS
from spoiling import Mutant, Mutation, Pair
from zoo import study

import bnfold

MODELS = ("resnet50", "mobilenetv3_large_100", "efficientnet_b0", "densenet121", "levit_128s")
CONTROL = "none: the correct fold"
PEERS = ("assert_close", "polygraphy", "onnxsim", "onnxslim")
Row = dict[str, Any]
Arrays = dict[str, Any]


def planned(models: list[str], spread: int) -> Iterator[tuple[str, Mutation]]:
    """Which mutations each network gets: the next `spread` networks in turn."""
    for number, mutation in enumerate(MUTATIONS):
        for step in range(min(spread, len(models))):
            yield models[(number + step) % len(models)], mutation


def outcome(original: onnx.ModelProto, mutant: onnx.ModelProto, seed: int) -> Row:
    """What bnfold says of the pair: every layer that says no, the first of them with its figure."""
    started = time.perf_counter()
    found = bnfold.check(original, mutant, seed=seed)
    failed = [layer for layer in found.layers if layer.status == "fail"]
    first = failed[0] if failed else None
    return {
        "verdict": str(found.verdict),
        "sentence": found.sentence,
        "layers": [layer.layer for layer in failed],
        "figure": first and first.figure,
        "limit": first and first.limit,
        "affine": first and first.affine,
        "channel": first and first.channel,
        "seconds": round(time.perf_counter() - started, 1),
    }


def outputs(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    """What onnxruntime gives at its defaults."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip((port.name for port in session.get_outputs()), session.run(None, feeds), strict=True))


def normal(model: onnx.ModelProto, seed: int) -> Arrays:
    """One normal input of batch 1."""
    stored = {tensor.name for tensor in model.graph.initializer}
    random = np.random.default_rng(seed)
    return {
        port.name: random.standard_normal([size.dim_value or 1 for size in port.type.tensor_type.shape.dim], np.float32)
        for port in model.graph.input
        if port.name not in stored
    }


def by_assert_close(original: onnx.ModelProto, mutant: onnx.ModelProto, seed: int) -> bool:
    import torch

    feeds = normal(original, seed)
    one, other = ([torch.from_numpy(a) for a in outputs(m, feeds).values()] for m in (original, mutant))
    try:
        torch.testing.assert_close(other, one)
    except AssertionError:
        return True
    return False


def by_polygraphy(original: onnx.ModelProto, mutant: onnx.ModelProto, seed: int) -> bool:
    from polygraphy.comparator import IterationResult, SimpleCompareFunc

    feeds = normal(original, seed)
    one, other = (IterationResult(outputs(model, feeds)) for model in (original, mutant))
    return not all(bool(agreed) for agreed in SimpleCompareFunc()(one, other).values())


def by_onnxsim(original: onnx.ModelProto, mutant: onnx.ModelProto, seed: int) -> bool:
    from onnxsim.model_checking import compare

    np.random.seed(seed)
    shapes = {name: list(array.shape) for name, array in normal(original, seed).items()}
    return not compare(mutant, original, input_shapes=shapes, verbose=False)


def by_onnxslim(original: onnx.ModelProto, mutant: onnx.ModelProto, seed: int) -> bool:
    from onnxslim.utils import check_onnx, check_result, onnxruntime_inference

    np.random.seed(seed)
    shapes = [f"{name}:{','.join(map(str, array.shape))}" for name, array in normal(original, seed).items()]
    feeds, one, _ = check_onnx(original, shapes)
    other, _ = onnxruntime_inference(mutant, feeds)
    return not check_result(one, other)


CHECKS: dict[str, Callable[[onnx.ModelProto, onnx.ModelProto, int], bool]] = dict(
    zip(PEERS, (by_assert_close, by_polygraphy, by_onnxsim, by_onnxslim), strict=True)
)


def said(check: Callable[[onnx.ModelProto, onnx.ModelProto, int], bool], *pair: Any) -> bool | str:
    """Whether a peer calls the two different; in words where it ends otherwise."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return check(*pair)
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:200]


def difference(original: onnx.ModelProto, mutant: onnx.ModelProto, seed: int) -> float | None:
    """The largest difference of an output on the normal input, relative to the output's largest value."""
    feeds = normal(original, seed)
    try:
        pairs = zip(outputs(original, feeds).values(), outputs(mutant, feeds).values(), strict=True)
        found = [np.abs(one - other).max() / np.abs(one).max() for one, other in pairs]
    except Exception:  # a runtime that refuses the mutant has told the difference
        return None
    return float(max(found)) if np.isfinite(found).all() else None


def measured(pair: Pair, mutant: Mutant, seed: int) -> Row:
    models = pair.original, mutant.model
    row = {"place": mutant.place, "difference": difference(*models, seed)} | outcome(*models, seed)
    return row | {"peers": {name: said(check, *models, seed) for name, check in CHECKS.items()}}


def run(options: argparse.Namespace) -> list[Row]:
    """Every row that is asked for; those that are known already are read."""
    file = options.cache / "power.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(row["model"], row["mutation"]) for row in rows}
    plan = list(planned(options.models, options.spread))
    for model in options.models:
        wanted = [mutation for name, mutation in plan if name == model and options.only in ("", mutation.name)]
        if all((model, name) in known for name in (CONTROL, *(mutation.name for mutation in wanted))):
            continue
        pair = Pair.of(onnx.load(options.cache / f"{model}.onnx"))
        for mutation in (None, *wanted):
            name = mutation.name if mutation else CONTROL
            if (model, name) in known:
                continue
            mutant = pair.mutated(mutation, options.seed) if mutation else Mutant(pair.folded, "")
            row = {"model": model, "mutation": name, "seed": options.seed}
            row |= measured(pair, mutant, options.seed) if mutant else {"place": None}
            with file.open("a") as kept:
                kept.write(json.dumps(row) + "\n")
            rows.append(row)
            print(model, "|", name, "|", row.get("verdict", "no place for it"), row.get("layers", ""), flush=True)
    return [row for row in rows if row["model"] in options.models]


def document(rows: list[Row]) -> str:
    """The page: what was caught, what was not, and the table."""
    controls = [row for row in rows if row["mutation"] == CONTROL]
    mutants = [row for row in rows if row["mutation"] != CONTROL and row["place"]]
    nowhere = [row for row in rows if row["place"] is None]
    caught = [row for row in mutants if row["verdict"] == "failed"]
    layers = Counter(layer for row in caught for layer in row["layers"])
    first = Counter(row["layers"][0] for row in caught if row["layers"])
    blocks = [
        "# Power",
        "Correct folds by bnfold with one thing wrong written into each, and who sees it. `python benchmarks/power.py` "
        "makes this page; its first lines say how. Nothing in `bnfold check` was tuned to these mutations.",
        f"**{len(caught)} of {len(mutants)} mutants are called not equivalent by `bnfold check`**, which gets the two "
        "files and no record of the fold. Layers that said no (several may): "
        f"{listed(layers)}. First to say no: {listed(first)}.",
        "Peers at their defaults, on the same pairs: " + "; ".join(tally(name, mutants) for name in PEERS) + ".",
        survivors(mutants),
        f"## Controls\n\nThe correct folds; a *different* here is a false alarm.\n\n{table(controls)}",
        f"## Mutants\n\n{table(mutants)}",
    ]
    if nowhere:
        places = "; ".join(f"{row['mutation']} ({row['model']})" for row in nowhere)
        blocks.append(f"Not made, since the network has no place for it: {places}.")
    return "\n\n".join(blocks) + "\n"


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{layer} {count}" for layer, count in sorted(counts.items())) or "none"


def tally(name: str, mutants: list[Row]) -> str:
    answers = [row["peers"][name] for row in mutants]
    failed = sum(isinstance(answer, str) for answer in answers)
    return f"`{name}` {sum(answer is True for answer in answers)}" + (f" and {failed} errors" if failed else "")


def survivors(mutants: list[Row]) -> str:
    """Those that were not caught, in full."""
    left = [row for row in mutants if row["verdict"] != "failed"]
    if not left:
        return "None survived."
    return "## Survivors\n\n" + "\n".join(
        f"- {row['mutation']}, `{row['model']}` at `{row['place']}`: {row['sentence']}" for row in left
    )


def table(rows: list[Row]) -> str:
    head = ["mutation", "model", "at", "difference", "bnfold check", "first figure (limit)", *PEERS]
    lines = [head, ["---"] * len(head), *(cells(row) for row in sorted(rows, key=order))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def order(row: Row) -> tuple[int, str]:
    names = [CONTROL, *(mutation.name for mutation in MUTATIONS)]
    return names.index(row["mutation"]), row["model"]


def cells(row: Row) -> list[str]:
    words = {True: "different", False: "same"}
    place = f" at {row['affine']}" if row["affine"] else ""
    channel = f", channel {row['channel']}" if row["channel"] is not None else ""
    found = "failed: " + ", ".join(row["layers"]) if row["verdict"] == "failed" else row["verdict"]
    figure = "" if row["figure"] is None else f"{row['figure']:.3g} ({number(row['limit'])}){place}{channel}"
    peers = ["error" if isinstance(answer, str) else words[answer] for answer in row["peers"].values()]
    return [row["mutation"], row["model"], row["place"], number(row["difference"]), found, figure, *peers]


def number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"


def parse() -> argparse.Namespace:
    parser = study(__doc__, MODELS)
    parser.add_argument(
        "--spread", type=int, default=3, metavar="N", help="networks per mutation (default %(default)s)"
    )
    parser.add_argument("--only", default="", metavar="MUTATION", help="one mutation alone")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    rows = run(options)
    if options.doc:
        options.doc.write_text(document(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
