"""Planted faults in the statistics of a batch norm: each is a finding, in both dialects; healthy networks have none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from command_line import demo_in, validated
from onnx_build import Net
from torch import nn
from torch.export import ExportedProgram

import bnfold
from bnfold.cli import main
from bnfold.dialects import Dialect, onnx_dialect, torch_dialect
from bnfold.errors import Exit
from bnfold.evidence import Evidence, StoredLinear, StoredNorm
from bnfold.folding import FoldOptions
from bnfold.frontends import onnx as frontend
from bnfold.graph import Reason, Site
from bnfold.outcome import FoldReport, Merged, Outcome
from bnfold.pipeline import run_inspect
from bnfold.reports import explain
from bnfold.reports.conditions import FIRES, FOUND_REASONS, Condition
from bnfold.reports.findings import findings
from bnfold.reports.statistics import remarks
from bnfold.run import Finding, Run
from bnfold.stages import exported

Told = tuple[str, str, tuple[int, ...]]
Stored = dict[str, list[float]]

HEALTHY: Stored = {"weight": [1.0] * 4, "bias": [0.5] * 4, "mean": [0.1] * 4, "var": [1.2] * 4}

ALL = (0, 1, 2, 3)

STATISTICS: dict[str, tuple[Stored, list[Told]]] = {
    "healthy": ({}, []),
    "nan": ({"var": [1, np.nan, 1, 1]}, [("non-finite", "error", (1,))]),
    "infinite": ({"mean": [1, 1, 1, np.inf]}, [("non-finite", "error", (3,))]),
    "negative": ({"var": [1, 1, -1, 1]}, [("variance-not-positive", "error", (2,))]),
    "still": ({"var": [1e-12, 1, 1, 1], "weight": [0.01, 1, 1, 1]}, [("near-zero-variance", "note", (0,))]),
    "outlying": ({"var": [1e-3, 1e4, 1e4, 1e4], "weight": [0.001, 1, 1, 1]}, [("near-zero-variance", "note", (0,))]),
    "small but alike": ({"var": [1.1e-6] * 4}, []),
    "below epsilon": ({"var": [9e-7, 1, 1, 1], "weight": [0.01, 1, 1, 1]}, [("near-zero-variance", "note", (0,))]),
    "all below epsilon": ({"var": [1e-7] * 4}, [("near-zero-variance", "warning", ALL)]),
    "nearly outlying": ({"var": [1.1e-2, 1e4, 1e4, 1e4], "weight": [0.001, 1, 1, 1]}, []),
    "below epsilon and outlying": (
        {"var": [1e-9, 1e-3, 1e4, 1e4], "weight": [1e-5, 0.001, 1, 1]},
        [("near-zero-variance", "note", (0,)), ("near-zero-variance", "note", (1,))],
    ),
    "mostly still": (
        {"var": [0, 0, 0, 1], "weight": [0.01, 0.01, 0.01, 1]},
        [("near-zero-variance", "warning", (0, 1, 2))],
    ),
    "huge": ({"var": [1, 1, 1, 1e6]}, [("huge-variance", "warning", (3,))]),
    "large": ({"var": [1, 1, 1, 6e4]}, []),
    "constant": ({"weight": [1, 0, 1, 1]}, [("constant-channels", "note", (1,))]),
    "dead by gamma and beta": ({"weight": [0] * 4, "bias": [0] * 4}, [("dead-channels", "warning", ALL)]),
    "dead by the relu": ({"weight": [1, 1, 0.01, 1], "bias": [1, 1, -0.5, 1]}, [("dead-channels", "note", (2,))]),
    "rarely above zero": ({"weight": [1, 1, 0.1, 1], "bias": [1, 1, -0.5, 1]}, []),
    "untrained": ({"mean": [0] * 4, "var": [1] * 4}, [("untrained", "warning", ())]),
    "one channel untrained": ({"mean": [0, 1, 1, 1], "var": [1, 2, 2, 2]}, []),
    "overflow": ({"weight": [1e7] * 4}, [("float16-overflow", "warning", ALL)]),
    "spread": ({"weight": [1, 1, 500, 1]}, [("scale-spread", "note", (2,))]),
    "two faults": (
        {"var": [np.nan, 1, 1, 1], "weight": [1, 0, 1, 1]},
        [("non-finite", "error", (0,)), ("constant-channels", "note", (1,))],
    ),
}


def findings_of(dialect: Dialect, model: Any) -> list[Finding]:
    folded, report = dialect.fold(model, FoldOptions())
    return findings(dialect.evidence(model), dialect.evidence(folded), report)


def found(dialect: Dialect, model: Any) -> list[Told]:
    told = findings_of(dialect, model)
    assert {finding.affine for finding in told} <= {"A001"}
    return [(finding.code, finding.severity, finding.channels) for finding in told]


def in_onnx(
    stored: Stored | None = None, front: Callable[[Net], str] = lambda net: "x", **more: Any
) -> onnx.ModelProto:
    net = Net(opset=15)
    conv = net.conv(front(net), 3, 4, (1, 1))
    net.node("Relu", [net.batch_norm(conv, 4, stored=HEALTHY | (stored or {}), **more)])
    return net.model({"x": (2, 3, 5, 5)})


def found_in_onnx(proto: onnx.ModelProto) -> list[Told]:
    return found(onnx_dialect(), frontend.from_proto(proto))


@cache
def in_torch(*front: nn.Module, train: bool = False, **more: Any) -> ExportedProgram:
    torch.manual_seed(0)
    net = nn.Sequential(*front, nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, **more), nn.ReLU()).train(train)
    program = torch.export.export(net, (torch.randn(2, 3, 5, 5),))
    store(program, len(front) + 1, HEALTHY)
    return program


def store(program: ExportedProgram, index: int, stored: Stored) -> None:
    names = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    with torch.no_grad():
        for key, numbers in stored.items():
            program.state_dict[f"{index}.{names[key]}"].copy_(torch.tensor(numbers))


@pytest.mark.parametrize("case", STATISTICS)
def test_a_fault_of_the_statistics_in_onnx(case: str) -> None:
    stored, told = STATISTICS[case]
    assert found_in_onnx(in_onnx(stored)) == told


@pytest.mark.parametrize("case", STATISTICS)
def test_a_fault_of_the_statistics_in_torch(case: str) -> None:
    stored, told = STATISTICS[case]
    program = in_torch()
    store(program, 1, HEALTHY | stored)
    assert found(torch_dialect(), program) == told


def dropout(*inputs: float, **attributes: Any) -> Callable[[Net], str]:
    def front(net: Net) -> str:
        return net.node("Dropout", ["x", *(net.constant(f"ratio{each}", each) for each in inputs)], **attributes)

    return front


def behind_relu(net: Net) -> str:
    return net.node("Relu", [dropout(0.3)(net)])


def behind_many(net: Net) -> str:
    value = dropout(0.3)(net)
    for _ in range(9):
        value = net.node("Relu", [value])
    return value


def added_to_itself(net: Net) -> str:
    return net.node("Add", [dropout(0.3)(net), "x"])


def behind_softmax(net: Net) -> str:
    return net.node("Softmax", [dropout(0.3)(net)])


@pytest.mark.parametrize(
    ("proto", "told"),
    [
        (in_onnx(epsilon=0.9), [("unusual-epsilon", "note", ())]),
        (in_onnx(momentum=0.1), [("unusual-momentum", "note", ())]),
        (in_onnx(momentum=0.9997), []),
        (in_onnx(front=dropout()), [("dropout-before-norm", "note", ())]),
        (in_onnx(front=behind_relu), [("dropout-before-norm", "note", ())]),
        (in_onnx(front=dropout(0.0)), []),
        (in_onnx(front=added_to_itself), []),
        (in_onnx(front=behind_many), []),
        (in_onnx(front=behind_softmax), []),
        (in_onnx(training_mode=1), [("batch-statistics", "warning", ())]),
    ],
)
def test_a_fault_of_the_settings_or_the_place_in_onnx(proto: onnx.ModelProto, told: list[Told]) -> None:
    assert found_in_onnx(proto) == told


@pytest.mark.parametrize(
    ("front", "more", "told"),
    [
        ((), {"eps": 0.9}, [("unusual-epsilon", "note", ())]),
        ((), {"momentum": 0.99}, [("unusual-momentum", "note", ())]),
        ((), {"momentum": None}, []),
        ((nn.Dropout(0.3), nn.ReLU()), {}, [("dropout-before-norm", "note", ())]),
        ((nn.Dropout(0.0),), {}, []),
        ((nn.Dropout(0.3), nn.Softmax(1)), {}, []),
        ((nn.AlphaDropout(0.3),), {}, []),
        ((), {"train": True}, [("batch-statistics", "warning", ())]),
    ],
)
def test_a_fault_of_the_settings_or_the_place_in_torch(
    front: tuple[nn.Module, ...], more: dict[str, Any], told: list[Told]
) -> None:
    assert found(torch_dialect(), in_torch(*front, **more)) == told


NONE_STORED = "; it stores no running statistics (track_running_stats=False), so eval() changes nothing"


@pytest.mark.parametrize(
    ("more", "told", "remedy"),
    [
        ({"train": True}, "", "call model.eval() before exporting"),
        ({"track_running_stats": False}, NONE_STORED, "train it with track_running_stats=True"),
        ({"train": True, "track_running_stats": False}, NONE_STORED, "train it with track_running_stats=True"),
    ],
)
def test_why_the_statistics_of_the_batch_are_used_in_torch(more: dict[str, Any], told: str, remedy: str) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, track_running_stats=more.get("track_running_stats", True))
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm).train(more.get("train", False))
    (finding,) = findings_of(torch_dialect(), torch.export.export(net, (torch.randn(2, 3, 5, 5),)))
    assert finding.message == f"1: {Reason.BATCH_STATISTICS.message}{told}"
    assert finding.remedy == remedy


def test_why_the_statistics_of_the_batch_are_used_is_not_told_in_onnx() -> None:
    (finding,) = findings_of(onnx_dialect(), frontend.from_proto(in_onnx(training_mode=1)))
    assert finding.message.endswith(Reason.BATCH_STATISTICS.message)
    assert finding.remedy == Reason.BATCH_STATISTICS.remedy
    assert all(part in finding.remedy for part in ("model.eval()", "track_running_stats=False"))


def taken(numbers: list[float], former: float = 1.0) -> list[Told]:
    """What is told of an operator with a weight for each channel, all of which were `former` before."""
    before, after = (StoredLinear("linear", np.array(each).reshape(-1, 1), None) for each in ([former] * 4, numbers))
    report = FoldReport((Outcome(Site("bn", "BatchNormalization"), 4, 1, "", (Site("fc", "Gemm"),), None),))
    told = findings(Evidence({}, {"fc": before}), Evidence({}, {"fc": after}), report)
    return [(finding.code, finding.severity, finding.channels) for finding in told]


@pytest.mark.parametrize(
    ("numbers", "former", "told"),
    [
        ([1, 1, 1, 32], 1, []),
        ([1, 1, 1, -33], 1, [("scale-spread", "note", (3,))]),
        ([0, 0, 0, 33], 1, []),
        ([0, 0, 0, 0], 1, []),
        ([65504] * 4, 1, []),
        ([65505] * 4, 1, [("float16-overflow", "warning", ALL)]),
        ([65505] * 4, 65505, []),
    ],
)
def test_what_folding_did_to_an_operator(numbers: list[float], former: float, told: list[Told]) -> None:
    assert taken(numbers, former) == told


PLAIN, PEAKED = [1.0] * 99 + [-1.0], [0.1] * 99 + [-4.0]


@pytest.mark.parametrize(
    ("rule", "merges", "before", "after", "channels"),
    [
        ("into-consumer", False, [PLAIN, PLAIN], [PLAIN, PEAKED], (1,)),
        ("merge-branches", False, [PLAIN, PLAIN], [PEAKED, PEAKED], (0, 1)),
        ("into-producer", True, [PLAIN, PLAIN], [PLAIN, PEAKED], (1,)),
        ("into-producer", False, [PLAIN, PLAIN], [PLAIN, PEAKED], None),
        ("into-consumer", False, [PLAIN, PEAKED], [PEAKED, PEAKED], (0,)),
        ("into-consumer", False, [PEAKED, PEAKED], [PEAKED, PEAKED], None),
        ("into-consumer", False, [PLAIN, PLAIN], [PLAIN, [0.6] * 99 + [4.9]], None),
        ("into-consumer", False, [PLAIN, PLAIN], [PLAIN, [math.nan] * 99 + [4.9]], None),
        ("into-consumer", False, [PLAIN], [PLAIN, PEAKED], (1,)),
    ],
)
def test_weights_far_above_the_others_of_their_channel(
    rule: str, merges: bool, before: Any, after: Any, channels: tuple[int, ...] | None
) -> None:
    into = Site("op", "Conv", "net.conv")
    merged = (Merged("merge-branches", into, (Site("other", "Conv"),), 0, 0, None, None),) * merges
    report = FoldReport((Outcome(Site("bn", "BatchNormalization"), 2, 1, rule, (into,), None),), merges=merged)
    then, now = (Evidence({}, {"op": StoredLinear("linear", np.array(each), None)}) for each in (before, after))
    told = [(finding.code, finding.channels) for finding in findings(then, now, report)]
    assert told == ([] if channels is None else [("channel-peak", channels)])
    assert all("of net.conv:" in finding.message for finding in findings(then, now, report))


def norm(**stored: Any) -> StoredNorm:
    arrays = {key: np.array(numbers, np.float32) for key, numbers in (HEALTHY | stored).items()}
    return StoredNorm(arrays["weight"], arrays["bias"], arrays["mean"], arrays["var"], 1e-5)


def test_a_relu_that_is_not_the_only_reader_kills_no_channel() -> None:
    stored = norm(weight=[1, 1, 0.01, 1], bias=[1, 1, -0.5, 1])
    assert list(remarks(stored, stays=False)) == []
    assert len(list(remarks(replace(stored, rectified=True), stays=False))) == 1


def test_a_scale_beyond_float16_is_told_where_the_batch_norm_stays() -> None:
    large = norm(weight=[1, 1e7, 1, 1])
    (remark,) = remarks(large, stays=True)
    assert remark.condition is Condition.FLOAT16_OVERFLOW
    assert "9.13e+06" in remark.text
    assert list(remarks(large, stays=False)) == []


def test_a_variance_near_zero_is_told_with_epsilon_and_the_scale() -> None:
    (remark,) = remarks(norm(var=[6.95e-8, 1, 1, 1], weight=[0.96, 1, 1, 1]), stays=False)
    cause = "its input hardly varied in training, or the weights in front of it are tiny"
    limit = "below 0.1 times epsilon (1e-05), so epsilon sets the scale, which is 303"
    assert remark.text == f"the running variance is 6.95e-08, {limit}: {cause}"
    (remark,) = remarks(norm(var=[1e-3, 2e-3, 1e4, 1e4]), stays=False)
    limit = "below 1e-06 times the median channel's (5e+03), with a scale of 22.3 to 31.5"
    assert remark.text == f"the running variance is 0.001 to 0.002, {limit}: {cause}"


def weighed(factor: float) -> nn.Sequential:
    """A network in which the weights of the second channel are so many times those of the others."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([2.0, 2.0 * factor, -2.0, 2.0]).reshape(4, 1, 1, 1)
        net[1].running_var[:] = torch.tensor([1.0, 1e-9, 1.0, 1.0])
    return net


@pytest.mark.parametrize("opset", [None, 18])
@pytest.mark.parametrize(
    ("factor", "cause"),
    [
        (1.0, "its input hardly varied in training, or the weights in front of it are tiny"),
        (0.09, "the weights of 0 in front of it are at least 11.1 times smaller than the median channel's"),
        (0.11, "its input hardly varied in training, or the weights in front of it are tiny"),
        (0.0, "the weights of 0 in front of it are 0"),
    ],
)
def test_tiny_weights_in_front_are_named(factor: float, cause: str, opset: int | None) -> None:
    program: Any = torch.export.export(weighed(factor), (torch.ones(2, 1, 3, 3),))
    dialect, model = (torch_dialect(), program) if opset is None else (onnx_dialect(), exported(program, opset))
    (message,) = [each.message for each in findings_of(dialect, model) if each.code == "near-zero-variance"]
    assert message.startswith("channel 1 of 1: ")
    assert message.endswith(f": {cause}")


def test_weights_in_front_of_another_operator_are_not_named() -> None:
    net = weighed(1e-4)
    program = torch.export.export(nn.Sequential(net[0], nn.BatchNorm2d(4), net[1]).eval(), (torch.ones(2, 1, 3, 3),))
    (message,) = [each.message for each in findings_of(torch_dialect(), program) if each.code == "near-zero-variance"]
    assert message.endswith("or the weights in front of it are tiny")


def counted(batches: int, momentum: float | None = 0.1, variance: float = 1.2) -> list[Told]:
    """What is found in a batch norm that has counted so many batches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU()).eval()
    net[1].num_batches_tracked.fill_(batches)
    net[1].running_mean.fill_(0.1)
    net[1].running_var[:] = torch.tensor([1.2, 1.2, 1.2, variance])
    return found(torch_dialect(), torch.export.export(net, (torch.randn(2, 3, 5, 5),)))


YOUNG, VERY_YOUNG = ("few-batches", "note", ()), ("few-batches", "warning", ())


@pytest.mark.parametrize(
    ("batches", "more", "told"),
    [
        (0, {}, []),
        (1, {}, [VERY_YOUNG]),
        (6, {}, [VERY_YOUNG]),
        (7, {}, [YOUNG]),
        (10, {}, [YOUNG]),
        (43, {}, [YOUNG]),
        (44, {}, []),
        (10**18, {}, []),
        (10, {"momentum": None}, []),
        (10, {"momentum": 0.0}, []),
        (1, {"momentum": 0.4}, [VERY_YOUNG]),
        (10, {"momentum": 0.4}, []),
        (10, {"variance": 0.35}, [YOUNG]),
        (10, {"variance": 0.34}, []),
    ],
)
def test_statistics_of_few_batches(batches: int, more: dict[str, Any], told: list[Told]) -> None:
    assert counted(batches, **more) == told


def test_without_a_counter_nothing_is_said_of_few_batches() -> None:
    assert found_in_onnx(in_onnx()) == []
    few = replace(norm(), kept=0.9, batches=10)
    assert [remark.condition for remark in remarks(few, stays=False)] == [Condition.FEW_BATCHES]
    assert list(remarks(replace(few, batches=None), stays=False)) == []
    assert list(remarks(replace(few, kept=None), stays=False)) == []


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, while it decomposes
@pytest.mark.parametrize("decomposed", [False, True])
def test_ten_batches_of_training_leave_the_part_that_is_told(decomposed: bool, tmp_path: Path) -> None:
    """The batches have the mean 100 and the variance 4, so that what is stored shows what the training left."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    with torch.no_grad():
        for _ in range(10):
            net.train()(100 + 2 * torch.randn(4096, 2))
    begun = 0.9**10
    assert torch.allclose(net[0].running_mean, torch.tensor(100 * (1 - begun)), rtol=1e-3)
    assert torch.allclose(net[0].running_var, torch.tensor(begun + 4 * (1 - begun)), rtol=2e-2)
    program = torch.export.export(net.eval(), (torch.randn(4, 2),))
    if decomposed:
        program = program.run_decompositions()
    torch.export.save(program, tmp_path / "net.pt2")
    run = Run("inspect")
    run_inspect(run, tmp_path / "net.pt2")
    (message,) = [each.message for each in run.findings if each.code == "few-batches"]
    assert "has counted 10 batches with a momentum of 0.1: 0.9^10 = 34.9 % of its running statistics" in message
    command = ["inspect", str(tmp_path / "net.pt2"), "--fail-on"]
    assert main([*command, "few-batches"]) == Exit.POLICY
    assert main([*command, "warning"]) == Exit.OK


def test_recalibrated_statistics_are_of_no_few_batches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    data = [10 * torch.randn(8, 3, 5, 5) for _ in range(3)]
    with torch.no_grad():
        net(data[0])

    def codes(module: nn.Module) -> list[str]:
        return [code for code, _, _ in found(torch_dialect(), torch.export.export(module, (data[0],)))]

    assert codes(net.eval()) == ["few-batches"]
    assert codes(bnfold.recalibrate(net, data).model) == []


EXPECTED = "1.43 times as large where they are independent and of mean 0"


def noise(model: Any, dialect: Dialect) -> str:
    """What is said of how much the dropout in front of the batch norm adds."""
    (message,) = [each.message for each in findings_of(dialect, model) if each.code == "dropout-before-norm"]
    _, said = message.split("its stored variance is that of noisier inputs, ")
    return said


@pytest.mark.parametrize("dropping", [nn.Dropout(0.3), nn.Dropout1d(0.3)])
@pytest.mark.parametrize("between", [nn.Identity(), nn.ReLU(), nn.LeakyReLU(0.5)])
def test_a_dropout_directly_in_front_adds_what_is_told(dropping: nn.Module, between: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(dropping, between, nn.BatchNorm1d(4, momentum=None), nn.Conv1d(4, 1, 1))
    x = torch.tensor([0.0, 1.0, -1.5, 2.0])[:, None] + torch.randn(200_000, 4, 2)
    with torch.no_grad():
        net.train()(x)
        factors = net[2].running_var / between(x).var((0, 2))
    said = noise(torch.export.export(net.eval(), (x[:2],)), torch_dialect())
    worst = int(factors.argmax())
    assert f" in channel {worst}, by its mean of " in said
    assert float(said.split()[0]) == pytest.approx(float(factors[worst]), rel=0.03)
    assert factors[worst] > 1.8


@pytest.mark.parametrize("between", [nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.ReLU())])
def test_how_much_a_dropout_in_front_of_a_linear_layer_adds_is_not_known(between: nn.Module) -> None:
    net = nn.Sequential(nn.Dropout(0.3), between, nn.BatchNorm1d(4)).eval()
    net[2].running_mean.fill_(1.0)
    assert noise(torch.export.export(net, (torch.randn(2, 4),)), torch_dialect()) == EXPECTED


@pytest.mark.parametrize(
    ("front", "stored", "said"),
    [
        (dropout(0.3), {}, "1.43 times as large as without it in channel 0, by its mean of 0.1 and variance of 1.2"),
        (
            behind_relu,
            {"mean": [0.1, 1, 0.1, 0.1]},
            "2.22 times as large as without it in channel 1, by its mean of 1 ",
        ),
        (
            behind_relu,
            {"mean": [9, 1, 1, 1], "weight": [0, 1, 1, 1], "bias": [1] * 4},
            "2.22 times as large as without",
        ),
        (
            dropout(0.3),
            {"mean": [9, 1, 1, 1]},
            "and noise alone in channel 0, by its mean of 9 and variance of 1.2, if ",
        ),
        (dropout(0.3), {"mean": [0] * 4, "var": [1] * 4}, EXPECTED),
        (dropout(0.3), {"weight": [0] * 4}, EXPECTED),
        (lambda net: net.conv(dropout(0.3)(net), 3, 4, (1, 1)), {}, EXPECTED),
        (lambda net: net.node("Add", [dropout(0.3)(net), net.constant("c", [1.0])]), {}, EXPECTED),
    ],
)
def test_what_is_told_of_a_dropout_in_onnx(front: Callable[[Net], str], stored: Stored, said: str) -> None:
    net = Net(opset=15)
    net.batch_norm(front(net), 4, stored=HEALTHY | stored)
    channels = 3 if any(node.op_type == "Conv" for node in net.nodes) else 4
    model = frontend.from_proto(net.model({"x": (2, channels, 5, 5)}))
    assert noise(model, onnx_dialect()).startswith(said)


def test_a_frozen_batch_norm_stores_no_statistics_and_is_not_untrained() -> None:
    frozen = replace(norm(mean=[0] * 4, var=[1] * 4), epsilon=0.0)
    assert [remark.condition for remark in remarks(frozen, stays=False)] == [Condition.UNUSUAL_EPSILON]


def test_statistics_of_unlike_shapes_are_not_looked_at() -> None:
    assert list(remarks(replace(norm(var=[-1] * 4), mean=np.zeros(3)), stays=True)) == []


@pytest.mark.parametrize(
    ("stored", "words", "code"),
    [
        ({}, ["warning"], Exit.OK),
        ({"var": [1, 1, 1, 1e6]}, ["warning"], Exit.POLICY),
        ({"var": [1, 1, 1, 1e6]}, ["error"], Exit.OK),
        ({"var": [1, np.nan, 1, 1]}, ["error"], Exit.POLICY),
        ({"var": [1, np.nan, 1, 1]}, ["warning"], Exit.POLICY),
        ({"weight": [1, 0, 1, 1]}, ["warning"], Exit.OK),
        ({"weight": [1, 0, 1, 1]}, ["error", "constant-channels"], Exit.POLICY),
        ({"weight": [1, 0, 1, 1]}, ["dead-channels"], Exit.OK),
    ],
)
def test_fail_on_exits_with_3(
    stored: Stored, words: list[str], code: Exit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(in_onnx(stored), tmp_path / "m.onnx")
    flags = [flag for word in words for flag in ("--fail-on", word)]
    assert main(["inspect", str(tmp_path / "m.onnx"), "--json", *flags]) == code
    captured = capsys.readouterr()
    document = validated(captured.out)
    assert document["status"] == ("policy" if code else "ok")
    assert bool(document["findings"]) == bool(stored)
    assert ("not allowed by --fail-on: 1 " in captured.err) == bool(code)


@pytest.mark.parametrize("word", [each.code for each in (*Condition, *FOUND_REASONS)])
def test_every_finding_can_be_named_and_is_explained(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (entry,) = explain.lookup(word)
    lines = explain.render((entry,)).splitlines()
    assert max(map(len, lines)) <= 80
    text = "".join("".join(lines).split())  # they break anywhere
    fires = FIRES[entry] if isinstance(entry, Reason) else entry.fires
    assert all("".join(part.split()) in text for part in (entry.message, entry.remedy, fires, "Example: "))
    assert word in explain.render(explain.lookup(None))
    assert main(["inspect", str(tmp_path / "absent.onnx"), "--fail-on", word]) != Exit.USAGE
    assert "--fail-on" not in capsys.readouterr().err


def graver(path: Path) -> list[str]:
    """The findings about a model file that are more than notes."""
    run = Run("inspect")
    run_inspect(run, path)
    assert run.fold is not None
    assert run.fold.norms
    return [finding.message for finding in run.findings if finding.severity != "note"]


def test_the_shipped_model_is_healthy(tmp_path: Path) -> None:
    assert graver(demo_in(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "models").glob("*.pt")), ids=lambda path: path.stem
)
def test_a_trained_model_has_no_warning(path: Path) -> None:
    assert graver(path) == []
