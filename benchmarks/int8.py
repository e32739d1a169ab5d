"""Int8 with and without folding first: accuracy on digits, latency there and on public architectures.

    python benchmarks/int8.py --cache zoo --json int8.json --doc docs/benchmarks.md
    python benchmarks/int8.py --cache zoo --json int8_busy.json --busy          one core kept busy meanwhile
    python benchmarks/int8.py --digits digits_resnet --models                 digits alone

Static quantisation by onnxruntime (QDQ, weights per channel, int8 weights and activations, MinMax calibration), of the
model as exported, of what onnxruntime's own preprocessing makes of it (`quant_pre_process`), and of what bnfold does.
Digits are calibrated on training images and scored on the images that training never saw; public architectures,
whose weights mean nothing, on random images, and only timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import page
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from peer_tables import Row, said
from sections import busy, environment, markdown

import bnfold
from bnfold.runtime import CannotRun, session

ROOT = Path(__file__).resolve().parents[1]
TITLE = "Int8"
DIGITS = ("digits_resnet", "digits_mobilenet", "digits_repvgg", "digits_conv1d", "digits_levit")
MODELS = ("resnet50", "mobilenetv3_large_100", "repvgg_a0", "mobileone_s0")
CALIBRATION = 64
PLAIN, PREPROCESSED, FOLDED = "as exported", "quant_pre_process", "bnfold"
TERMS = (
    "`quantize_static`: QDQ, int8 weights per channel, int8 activations, MinMax. *Times as fast* is the int8 model "
    "against the int8 model of the file as exported, one thread, batch 1; one that refuses inputs cannot be timed."
)


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Calibration inputs, one after the other."""

    def __init__(self, feeds: Sequence[Mapping[str, Any]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self.feeds, None)


def quantised(source: Path, target: Path, feeds: Sequence[Mapping[str, Any]]) -> None:
    quantize_static(
        source,
        target,
        Images(feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QInt8,
    )


def prepared(source: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """The three float models that are quantised."""
    yield PLAIN, source
    simplified = folder / "preprocessed.onnx"
    quant_pre_process(source, simplified, skip_symbolic_shape=True)  # which fails on what torch exports
    yield PREPROCESSED, simplified
    folded = folder / "folded.onnx"
    bnfold.save(bnfold.fold(source).model, folded)
    yield FOLDED, folded


def rows(name: str, source: Path, feeds: Sequence[Mapping[str, Any]], score: Any, budget: float) -> list[Row]:
    """One row for the float model and one for each int8 model; `score` maps a file to an accuracy or None."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, files = Path(scratch), dict[str, Path]()
        for kind, path in prepared(source, folder):
            target = folder / f"{len(files)}.int8.onnx"
            quantised(path, target, feeds)
            files[kind] = target
        found = [row(name, "float32", source, score)]
        found += [row(name, f"int8, {kind}", path, score) for kind, path in files.items()]
        try:
            benchmark = bnfold.bench(*files.values(), budget=budget)
        except bnfold.NoVerdict as refusal:
            found[1]["failure"] = str(refusal)
            return found
        by_file = dict(zip(map(str, files.values()), found[1:], strict=True))
        for pair in benchmark.comparisons:
            if pair.options == benchmark.mode:
                by_file[pair.b][pair.options] = [pair.ratio, pair.low, pair.high, str(pair.verdict)]
    print(table(found), file=sys.stderr, flush=True)
    return found


def row(name: str, weights: str, path: Path, score: Any) -> Row:
    return Row(model=name, tool=weights, nodes=len(onnx.load(path).graph.node), right=score(path))


def table(found: Sequence[Row]) -> str:
    return markdown(["model", "weights", "nodes", "right", "times as fast"], [cells(each) for each in found])


def cells(each: Row) -> list[str]:
    right = "" if each["right"] is None else f"{each['right']:.1%}"
    name = each["model"] if each["tool"] == "float32" else ""
    ratio = "cannot be timed" if "failure" in each else said(each.get("default"))
    return [name, each["tool"], str(each["nodes"]), right, ratio]


def digits(name: str, budget: float) -> list[Row]:
    """The rows of a trained network."""
    sys.path.insert(0, str(ROOT / "models"))
    import tasks

    split = tasks.load(name)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / f"{name}.onnx"
        bnfold.export(ROOT / "models" / f"{name}.pt", source, exclude=["*"], merge="never", check=False)
        names = [port.name for port in session(source).signature.inputs]
        feeds = [
            {port: values[index : index + 1] for port, values in zip(names, split.train_x, strict=True)}
            for index in range(CALIBRATION)
        ]
        tests = dict(zip(names, split.test_x, strict=True))

        def score(path: Path) -> float | None:
            try:
                (answers,) = session(path, threads=1)(tests).values()
            except CannotRun:
                return None
            return float(tasks.accuracy(name, answers, split.test_y))

        return rows(name, source, feeds, score, budget)


def public(name: str, cache: Path, budget: float) -> list[Row]:
    """The rows of a public architecture."""
    source = cache / f"{name}.onnx"
    (port,) = session(source).signature.inputs
    random = np.random.default_rng(0)
    shape = [size if isinstance(size, int) else 1 for size in port.shape or ()]
    feeds = [{port.name: random.standard_normal(shape).astype(np.float32)} for _ in range(4)]
    return rows(name, source, feeds, lambda path: None, budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--digits", nargs="*", default=DIGITS, metavar="NAME")
    parser.add_argument("--models", nargs="*", default=MODELS, metavar="NAME")
    parser.add_argument("--cache", type=Path, help="NAME.onnx of the public architectures lie here")
    parser.add_argument("--budget", type=float, default=30, help="seconds to measure one model")
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--doc", type=Path, help="replace the section of this script in this file")
    options = parser.parse_args()
    with busy() if options.busy else nullcontext():
        found = [each for name in options.digits for each in digits(name, options.budget)]
        for name in options.models:
            found += public(name, options.cache, options.budget)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    command = f"`python benchmarks/int8.py --cache zoo --budget {options.budget:g}`"
    text = "\n\n".join([command, TERMS, table(found), environment("onnxruntime", "onnx")])
    print(text)
    if options.doc:
        page.write(options.doc, TITLE, text)


if __name__ == "__main__":
    main()
