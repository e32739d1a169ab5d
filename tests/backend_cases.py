"""The onnx package's own backend tests, run on what bnfold makes of their models.

    python tests/backend_cases.py             every test that needs no download; some minutes
    python tests/backend_cases.py --only BatchNorm

Each model is read, folded and written; onnxruntime runs the result where it runs the original, else onnx's reference
implementation does, and onnx's own runner compares with the data that it expects. The same is done without bnfold: a
test that fails then too says nothing of a fold. Exit code 1 where one fails only with bnfold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import unittest
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import onnx
import onnx.backend.base
import onnx.backend.test
import onnxruntime
from onnx.reference import ReferenceEvaluator

from bnfold.errors import Rejected
from bnfold.frontends import onnx as frontend

Run = Callable[[Sequence[Any]], Sequence[Any]]


class Prepared(onnx.backend.base.BackendRep):  # type: ignore[misc]
    """A model that runs."""

    def __init__(self, run: Run) -> None:
        self.run_once = run

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        return tuple(self.run_once(inputs))


def runner(original: onnx.ModelProto, model: onnx.ModelProto) -> Run:
    """The model in onnxruntime, if that takes the original, else in the reference implementation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    try:
        onnxruntime.InferenceSession(original.SerializeToString(), options, providers)
    except Exception:
        evaluator = ReferenceEvaluator(model)
        return lambda inputs: evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=False)))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers)
    names = [port.name for port in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=False)))


class Plain(onnx.backend.base.Backend):  # type: ignore[misc]
    """The models as they are."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> Prepared:
        return Prepared(runner(model, model))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


class Folded(Plain):
    """What bnfold makes of them."""

    models: ClassVar[Counter[str]] = Counter()
    refused: ClassVar[Counter[str]] = Counter()

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> Prepared:
        try:
            folded, report = frontend.fold_model(frontend.from_bytes(model.SerializeToString()))
        except Rejected as refusal:
            cls.refused[f"{refusal.code}: {str(refusal)[:100]}"] += 1
            raise unittest.SkipTest(str(refusal)) from refusal
        cls.models["read and written"] += 1
        cls.models["with folds"] += bool(report.folded)
        cls.models["affines folded"] += report.folded
        cls.models["affines left"] += len(report.outcomes) - report.folded
        return Prepared(runner(model, onnx.ModelProto.FromString(frontend.to_bytes(folded))))


def outcomes(backend: type[Plain], only: str) -> dict[str, str]:
    """By the name of each test: passed, skipped, or the first line of what is wrong."""
    cases = onnx.backend.test.BackendTest(backend, __name__).include(only).exclude("_cuda").test_suite
    found: dict[str, str] = {}

    class Result(unittest.TestResult):
        def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
            found[test.id()] = "passed"

        def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
            found[test.id()] = "skipped"

        def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
            found[test.id()] = f"{err[0].__name__}: {str(err[1]).strip().splitlines()[:1]}"

        addError = addFailure  # noqa: N815

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases.run(Result())
    return found


def compared(only: str) -> list[str]:
    """The tests that fail with bnfold alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ONNX_MODELS"] = folder
        plain, folded = outcomes(Plain, only), outcomes(Folded, only)
    good = {name for name, found in plain.items() if found == "passed"}
    print(f"{len(plain)} tests, of which {len(good)} pass without bnfold")
    print("with bnfold:", Counter(found if found in ("passed", "skipped") else "failed" for found in folded.values()))
    print("models:", dict(Folded.models))
    for why, count in Folded.refused.most_common():
        print(f"refused, {count}: {why}")
    return [f"{name}: {folded[name]}" for name in sorted(good) if folded[name] not in ("passed", "skipped")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="tests whose name has this")
    wrong = compared(parser.parse_args().only)
    print(f"wrong only with bnfold: {len(wrong)}", *wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
