"""L5: what goes wrong only with the runtime's own optimisations is the runtime's doing, and is said to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnfold import api
from bnfold.dialects import onnx_dialect
from bnfold.errors import NoVerdict
from bnfold.folding import FoldOptions
from bnfold.frontends import onnx as frontend
from bnfold.model import Arrays, Port, Runner, Signature
from bnfold.run import CheckOptions, RunOptions
from bnfold.verification import Side, check_folded
from bnfold.verify.check import CheckPlan, Subject, check_pair
from bnfold.verify.result import Layer, Status, Verdict, Verification

Array = NDArray[Any]


def layer(verification: Verification, name: str = "L5") -> Layer:
    return next(layer for layer in verification.layers if layer.layer == name)


def product_and_norm(*, folds: bool, shape: tuple[int, ...] = (16, 4)) -> onnx.ModelProto:
    """MatMul, a reshape to (4, 4, 4), BN over another axis than the product's columns, of the same size; a Conv."""
    random = np.random.default_rng(0)
    stored = {"w": random.normal(size=(4, 4)), "kernel": random.normal(size=(4, 4, 1))}
    stored |= {"gamma": random.uniform(0.5, 2, 4), "beta": random.normal(size=4)}
    stored |= {"mean": random.normal(size=4), "var": random.uniform(0.5, 2, 4)}
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()]
    constants.append(numpy_helper.from_array(np.array([4, 4, 4]), "shape"))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "product"),
        helper.make_node("Reshape", ["product", "shape"], ["shaped"], "reshape"),
        helper.make_node("BatchNormalization", ["shaped", "gamma", "beta", "mean", "var"], ["normed"], "bn"),
        helper.make_node(*(("Conv", ["normed", "kernel"]) if folds else ("Relu", ["normed"])), ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 4, 4))],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def folded(proto: onnx.ModelProto) -> Verification:
    dialect, model = onnx_dialect(), frontend.from_proto(proto)
    after, report = dialect.fold(model, FoldOptions())
    sides = Side(dialect, model), Side(dialect, after)
    return check_folded(*sides, report, FoldOptions(), RunOptions(), CheckOptions())


@pytest.mark.parametrize("folds", [True, False], ids=["folded into the convolution", "left as it is"])
def test_a_runtime_that_breaks_the_original_is_named_and_the_fold_is_not_blamed(folds: bool) -> None:
    """onnxruntime folds the batch norm into the columns of the product, which are not its channels."""
    found = folded(product_and_norm(folds=folds))
    assert found.verdict is Verdict.PROVED, found.sentence
    said = layer(found)
    assert said.status is Status.WARN
    assert "the runtime's own optimisations break the original: output y is" in said.because
    assert said.figure is not None
    assert said.figure > 1e4, "the figure says by how much"
    assert ("so does the candidate" in said.because) is not folds
    assert layer(found, "L4").status is Status.PASS


def test_two_models_are_told_apart_from_their_runtime_too() -> None:
    proto = product_and_norm(folds=True)
    found = api.check(proto, api.fold(proto).model)
    assert found.verdict is Verdict.PROVED, found.sentence
    assert layer(found).status is Status.WARN


def runner(factor: float, seed: int = 0) -> Callable[[], Runner]:
    """A model that doubles, in float32 with relative noise of 3e-7, off by `factor` times that."""
    random = np.random.default_rng(seed)

    def run(feeds: Mapping[str, Array]) -> Arrays:
        x = feeds["x"].astype(np.float64)
        return {"y": (2 * x * (1 + factor * 3e-7 * random.standard_normal(x.shape))).astype(np.float32)}

    return lambda: run


def exact() -> Runner:
    return lambda feeds: {"y": 2 * feeds["x"].astype(np.float64)}


def refuses() -> Runner:
    raise NoVerdict("fusion gone wrong")


def subject(off: float, on: float | None) -> Subject:
    signature = Signature((Port("x", "float32", (40, 50)),), (Port("y", "float32", (40, 50)),))
    optimised = None if on is None else refuses if on < 0 else runner(on, 2)
    return Subject(signature, exact, runner(off, 1), optimised=optimised)


RIGHT, WRONG, REFUSES = 1.0, 9.0, -1.0


@pytest.mark.parametrize(
    ("original", "candidate", "status", "verdict", "words"),
    [
        ((RIGHT, RIGHT), (RIGHT, RIGHT), Status.PASS, Verdict.VERIFIED, "change neither"),
        ((RIGHT, RIGHT), (RIGHT, WRONG), Status.FAIL, Verdict.FAILED, "break the candidate, not the original"),
        ((RIGHT, WRONG), (RIGHT, RIGHT), Status.WARN, Verdict.VERIFIED, "break the original"),
        ((RIGHT, WRONG), (RIGHT, WRONG), Status.WARN, Verdict.VERIFIED, "so does the candidate's"),
        ((RIGHT, RIGHT), (WRONG, WRONG), Status.WARN, Verdict.FAILED, "as it is without"),
        ((RIGHT, 3.0), (RIGHT, 5.0), Status.PASS, Verdict.VERIFIED, "change neither"),
        ((RIGHT, REFUSES), (RIGHT, RIGHT), Status.WARN, Verdict.VERIFIED, "fusion gone wrong"),
        ((RIGHT, RIGHT), (RIGHT, REFUSES), Status.SKIPPED, Verdict.VERIFIED, "the candidate cannot run"),
        ((RIGHT, RIGHT), (RIGHT, None), Status.PASS, Verdict.VERIFIED, "change neither"),
    ],
)
def test_who_is_to_blame(
    original: tuple[float, float | None],
    candidate: tuple[float, float | None],
    status: Status,
    verdict: Verdict,
    words: str,
) -> None:
    found = check_pair(subject(*original), subject(*candidate))
    assert layer(found).status is status, layer(found).because
    assert words in layer(found).because
    assert found.verdict is verdict, found.sentence


def test_a_model_that_decides_is_not_failed_by_the_runtime() -> None:
    second = replace(subject(RIGHT, WRONG), decides=True)
    assert layer(check_pair(subject(RIGHT, RIGHT), second)).status is Status.WARN


def test_a_runtime_without_optimisations_has_no_such_layer() -> None:
    """A layer that cannot exist is left out, not skipped: it is not missing at level full."""
    found = check_pair(subject(RIGHT, None), subject(RIGHT, None))
    assert [layer.layer for layer in found.layers if layer.status is Status.PASS] == ["L0", "L2", "L4"]
    assert found.verdict is Verdict.VERIFIED
    full = check_pair(subject(RIGHT, None), subject(RIGHT, None), CheckPlan(level="full"))
    assert [layer.layer for layer in full.layers if layer.status is Status.SKIPPED] == ["L3"], "they cannot be opened"


def test_what_does_not_run_without_optimisations_is_not_run_with_them() -> None:
    missing = replace(subject(RIGHT, RIGHT), actual=refuses)
    found = check_pair(missing, subject(RIGHT, RIGHT))
    assert layer(found).status is Status.SKIPPED
    assert layer(found).because == "fusion gone wrong"
