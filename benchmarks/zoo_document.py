"""The rows of `zoo.py` as docs/zoo.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

Row = dict[str, Any]
PROGRAM = "exported program"
BEFORE = "before"
TOOLS = ("bnfold", "onnxscript", "onnxsim", "onnxslim", "onnxoptimizer", "onnxruntime")
MEANINGS = {
    "read-by-nonlinearity": "pre-activation: ReLU reads the batch norm, whose input others read too",
    "no-linear-producer": "behind an activation; a residual and a padded convolution read the batch norm",
    "joined": "behind an activation, and added to a residual that does not take its scale",
    "shared-output": "others read what the batch norm reads",
    "mixed-sign-maxpool": "behind a MaxPool, with scales of both signs; ReLU reads it",
}


def document(rows: list[Row]) -> str:
    """Everything that was measured, in sections; a tool that was not run has a dash."""
    table: dict[str, dict[str, Row]] = {}
    for row in rows:
        table.setdefault(row["model"], {})[row["contender"]] = row
    versions = ", ".join(f"{name} {version(name)}" for name in TOOLS if name != "bnfold")
    sections = (
        TITLE.format(models=len(table), timm=version("timm"), versions=versions),
        "## Batch norms left / nodes left",
        "\n".join(left(table)),
        "## Other affines, and the error",
        ERRORS,
        "\n".join(errors(table)),
        NOTES,
        "## What bnfold leaves, and why",
        "\n".join(reasons(table)),
        "`python benchmarks/reasons.py` takes away what each reason names and folds again.",
        "## Cost",
        COST,
        "\n".join(costs(table)),
    )
    return "\n\n".join(sections) + "\n"


def left(table: Mapping[str, Mapping[str, Row]]) -> Iterator[str]:
    columns = (BEFORE, *TOOLS)
    yield f"| Model | {' | '.join(columns)} | bnfold, exported program |"
    yield "|---|" + "--:|" * (len(columns) + 1)
    for model, found in table.items():
        cells = [counts(found.get(column)) for column in columns]
        yield f"| {model} | {' | '.join(cells)} | {counts(found.get(PROGRAM))} |"


def counts(row: Row | None) -> str:
    if row is None:
        return "—"
    return row.get("failure", "").replace("|", "/") or f"{row['batch_norms']} / {row.get('compute_nodes', '—')}"


def errors(table: Mapping[str, Mapping[str, Row]]) -> Iterator[str]:
    yield (
        "| Model | affines before → bnfold | biases of products before → bnfold | error before | error, bnfold "
        "| error, exported program |"
    )
    yield "|---|" + "--:|" * 5
    for model, found in table.items():
        before, after, program = (found.get(each, {}) for each in (BEFORE, "bnfold", PROGRAM))
        changes = [f"{before.get(key, '—')} → {after.get(key, '—')}" for key in ("affines", "matmul_biases")]
        sizes = [f"{row['error']:.1e}" if "error" in row else "—" for row in (before, after, program)]
        yield f"| {model} | {' | '.join(changes + sizes)} |"


def reasons(table: Mapping[str, Mapping[str, Row]]) -> Iterator[str]:
    yield "| Model | batch norms | reason | what it means |"
    yield "|---|--:|---|---|"
    for model, found in table.items():
        rows = found.get("bnfold", {}).get("rows", [])
        codes = Counter(row["reason"] for row in rows if row["is_norm"] and row["reason"])
        for code, count in codes.most_common():
            yield f"| {model} | {count} | `{code}` | {MEANINGS.get(code, '')} |"


def costs(table: Mapping[str, Mapping[str, Row]]) -> Iterator[str]:
    yield f"| Model | {' | '.join(TOOLS)} |"
    yield "|---|" + "--:|" * len(TOOLS)
    for model, found in table.items():
        yield f"| {model} | {' | '.join(cost(found.get(tool)) for tool in TOOLS)} |"


def cost(row: Row | None) -> str:
    return f"{row['processor']:.1f} s, {row['peak'] / 1e6:.0f} MB" if row and "processor" in row else "—"


TITLE = """# The zoo

What bnfold and five other tools leave of {models} public architectures (timm {timm}), all given the
same files: `torch.onnx.export(dynamo=True, optimize=False)` with a dynamic batch, random weights, γ of
both signs, and statistics calibrated by one forward pass. `python benchmarks/zoo.py --cache zoo --doc
docs/zoo.md` makes this page; `--check` fails where bnfold leaves more than it may. Counted by
`benchmarks/counting.py`, for every tool alike: batch norms (BN), affines (Add, Sub, Mul, Div by a
constant), and nodes that compute (all but what depends on constants and shapes only). onnxruntime is
its offline optimiser at level BASIC, whose nodes stay standard. Versions: {versions}."""

ERRORS = """A batch norm that becomes Mul and Add, or an Add that appears, would show here: affines left, and Adds
behind a matrix product with a constant (its bias). Error: the largest difference from the original in
float64, relative to its largest value, onnxruntime without optimisation."""

NOTES = """The affines left in levit_128s add a table of attention biases, which is not one number per channel. Its
new Adds are biases of MatMul nodes that had none, fewer than the batch norms that went.
convmixer_768_32 is measured on 96 × 96 images, and its error is large before any fold: 65 layers of
random weights amplify rounding. What merging leaves of repvgg_a0 and mobileone_s0, and what it buys, is
in [branches.md](branches.md)."""

COST = """Processor time in seconds and peak memory of the whole process, imports included, one run on a busy
two-core machine: tenths of a second mean nothing here, and not all columns were taken at the same time."""
