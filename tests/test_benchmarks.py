"""What the benchmarks count, and that their checks reject what they should; they measure nothing here."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx_build import Net

import bnfold
from bnfold.benchmark import Compared, Comparison

ROOT = Path(__file__).resolve().parents[1]
MERGED = {
    "exporter": "dynamo=True, optimize=False",
    "dialect": "ONNX",
    "convolutions": 22,
    "batch_norms": 0,
    "branch_sums": 0,
    "compute_nodes": 47,
    "error": 1e-6,
    "stored": 1e-7,
}
FUSED = {
    "nodes": 10,
    "activations": 3,
    "sums": 1,
    "others": 1,
    "activations_alone": 1,
    "sums_alone": 1,
    "batch_norms_alone": 1,
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of `benchmarks/` as its own scripts import it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def block(net: Net) -> str:
    """A block of three branches and its two sums."""
    wide = net.batch_norm(net.conv("x", 4, 4, pads=[1] * 4), 4, "bn_wide")
    narrow = net.batch_norm(net.conv("x", 4, 4, kernel=(1, 1)), 4, "bn_narrow")
    return net.node("Add", [net.node("Add", [wide, narrow]), net.batch_norm("x", 4, "bn_same")])


def counted(bench: Any, net: Net, folder: Path) -> Any:
    onnx.save(net.model({"x": (1, 4, 6, 6)}), folder / "model.onnx")
    return bench("counting").count(folder / "model.onnx")


def test_sums_of_linear_images_of_one_value_are_counted(bench: Any, tmp_path: Path) -> None:
    net = Net()
    block(net)
    found = counted(bench, net, tmp_path)
    assert (found.convolutions, found.batch_norms, found.branch_sums, found.compute_nodes) == (2, 3, 2, 7)


def test_a_sum_behind_a_nonlinearity_is_no_branch_sum(bench: Any, tmp_path: Path) -> None:
    net = Net()
    net.node("Add", ["x", net.node("Relu", [net.conv("x", 4, 4, kernel=(1, 1))])])
    assert counted(bench, net, tmp_path).branch_sums == 0


def test_an_image_of_two_values_is_no_branch_sum(bench: Any, tmp_path: Path) -> None:
    net = Net()
    net.node("Add", ["x", net.conv("y", 4, 4, kernel=(1, 1))])
    onnx.save(net.model({"x": (1, 4, 6, 6), "y": (1, 4, 6, 6)}), tmp_path / "model.onnx")
    assert bench("counting").count(tmp_path / "model.onnx").branch_sums == 0


@pytest.mark.parametrize(
    ("ours", "own", "complaint"),
    [
        ({}, {}, None),
        ({"convolutions": 21}, {}, "21 convolutions, 0 BN, 0 branch sums, not 22, 0, 0"),
        ({"batch_norms": 1}, {"batch_norms": 1}, "22 convolutions, 1 BN, 0 branch sums, not 22, 0, 0"),
        ({"branch_sums": 1}, {"branch_sums": 1}, "22 convolutions, 0 BN, 1 branch sums, not 22, 0, 0"),
        ({"compute_nodes": 48}, {"compute_nodes": 48}, "48 nodes, at most 47"),
        ({}, {"compute_nodes": 46}, "47 compute nodes, the class itself leaves 46"),
        ({"error": 1.2e-6}, {}, "error 1.20e-06, of the class itself 1.00e-06"),
        ({"error": float("nan")}, {}, "error nan, of the class itself 1.00e-06"),
        ({"stored": 1.01e-7}, {}, "stored numbers wrong by 1.01e-07, of the class itself 1.00e-07"),
    ],
)
def test_what_merging_leaves_is_held_against_limits_and_the_class(
    bench: Any, ours: dict[str, Any], own: dict[str, Any], complaint: str | None
) -> None:
    branches = bench("branches")
    rows = [{"tool": "bnfold", **MERGED, **ours}, {"tool": branches.OWN, **MERGED, **own}]
    found = list(branches.node_faults("repvgg_a0", rows))
    assert [fault.rsplit(": ", 1)[1] for fault in found] == ([complaint] if complaint else [])


@pytest.mark.parametrize(
    ("after", "gone", "complaints"),
    [
        ({}, {}, 0),
        ({"activations": 2}, {}, 1),
        ({"activations_alone": 2}, {}, 1),
        ({"sums": 0}, {}, 1),
        ({"sums": 0}, {"branch_sums": 1}, 0),
        ({"others": 0}, {}, 1),
        ({"others": 0}, {"affines": 1}, 0),
        ({"sums_alone": 2, "batch_norms_alone": 0}, {}, 0),
        ({"sums_alone": 3, "batch_norms_alone": 0}, {}, 1),
        ({"nodes": 11}, {}, 1),
    ],
)
def test_what_the_runtime_fuses_is_held_against_what_it_fused(
    bench: Any, after: dict[str, int], gone: dict[str, int], complaints: int
) -> None:
    row = {
        "model": "m",
        "exporter": "e",
        "before": FUSED,
        "after": FUSED | after,
        "branch_sums": 0,
        "affines": 0,
    } | gone
    assert len(list(bench("branches").census_faults(row))) == complaints


def test_an_interval_covers_the_median_often_enough(bench: Any) -> None:
    outermost = bench("latency").outermost
    assert [outermost(count) for count in (5, 6, 9, 12)] == [None, 0, 1, 2]


def test_only_a_certain_ratio_is_fast_enough(bench: Any) -> None:
    branches, latency = bench("branches"), bench("latency")

    def faults(ratio: float, low: float | None) -> int:
        timed = latency.Timed(1.0, ratio, low, None if low is None else ratio + 1)
        times = {branches.label("bnfold", exporter): timed for exporter in (branches.DEFAULT, branches.PLAIN)}
        return len(list(branches.slow("mobileone_s0", {1: times})))

    assert [faults(3.6, 3.5), faults(3.6, 3.4), faults(3.6, None)] == [0, 2, 2]


def test_a_section_is_replaced_where_it_stands(bench: Any) -> None:
    written = bench("branches").written
    document = written(written("", "census", "old"), "nodes", "first")
    document = written(document, "census", "new")
    assert document.index("first") < document.index("new")
    assert "old" not in document


def test_a_section_without_a_title_in_the_order_is_not_kept(bench: Any) -> None:
    replaced = bench("sections").replaced
    document = replaced("# Old\n\n## b\n\nkept\n\n## c\n\ngone\n", "# New\n", ("a", "b"), "a", "first")
    assert document == "# New\n\n## a\n\nfirst\n\n## b\n\nkept\n"


def test_what_a_trial_of_the_benchmark_rejects(bench: Any) -> None:
    trust = bench("trust")

    def trial(percent: int, *verdicts: str, ratio: float = 1.0) -> Any:
        return trust.Trial(
            percent,
            tuple(Compared("a", "b", "default", ratio, 0.99, 1.01, 0.95, Comparison(word)) for word in verdicts),
        )

    calm = "no_measurable_difference"
    assert not trust.wrong([trial(0, calm, "no_verdict"), trial(3, calm, "slower"), trial(10, "slower", "slower")])
    assert trust.wrong([trial(0, "slower")])
    assert trust.wrong([trial(3, "faster", "slower")])
    assert trust.wrong([trial(10, "slower", calm)])
    assert trial(0, calm, calm).covered == 2
    assert trial(10, calm).covered == 0
    assert trial(10, calm, ratio=1 / 1.1).widest < 1e-9 < trial(0, calm, ratio=1.05).widest


def test_a_verdict_that_changes_sides_is_told(bench: Any) -> None:
    tables = bench("peer_tables")

    def rows(default: str, off: str = "no_verdict") -> list[dict[str, Any]]:
        return [{"model": "net", "tool": "bnfold", "default": [1.1, 1.0, 1.2, default], "off": [1.1, 1.0, 1.2, off]}]

    assert tables.changed(rows("faster"), rows("faster"))[0] == []
    assert tables.changed(rows("faster"), rows("no_measurable_difference"))[0] == []
    sides, table = tables.changed(rows("faster"), rows("slower"))
    assert sides == ["net bnfold default"]
    assert "| faster | 0 | 1 | 0 | 0 |" in table
    assert "| no verdict | 0 | 0 | 0 | 1 |" in table


def test_a_ratio_is_never_told_without_its_interval_and_bold_only_as_a_verdict(bench: Any) -> None:
    said = bench("peer_tables").said
    assert said([1.2345, 1.1, 1.3, "faster"]) == "**1.23 [1.10, 1.30]**"
    assert said([1.0, 0.9, 1.1, "no_measurable_difference"]) == "1.00 [0.90, 1.10]"
    assert said([None, None, None, "no_verdict"]) == "no verdict"
    assert said(None) == ""


def test_without_a_device_nothing_is_measured_on_a_gpu(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = bench("gpu")
    monkeypatch.setattr(gpu, "device", lambda: None)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--cache", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 5


def test_what_was_measured_on_a_gpu_is_written_with_its_machine(bench: Any) -> None:
    gpu = bench("gpu")
    contenders = [{"name": name, "p50_s": 0.1} for name in ("a.pt2", "b.pt2")]
    comparison = {"b": "b.pt2", "options": "eager", "batch": 1, "ratio": 2.0, "low": 1.9, "high": 2.1}
    found = {"contenders": contenders, "comparisons": [comparison | {"verdict": "faster"}], "control": None}
    rows = list(gpu.pairs("net", ["torch", "torch, bnfold"], found))
    machine = {"device": "Some GPU", "cuda": "13", "onnxruntime": False}
    text = gpu.section({"machine": machine, "rows": [*rows, *gpu.pairs("net", ["x"], {"failure": "out of memory"})]})
    assert "Some GPU: cuda 13. TF32 off. onnxruntime had no CUDA provider" in text
    assert "| net | torch, bnfold | eager | 1 | **2.00 [1.90, 2.10]** |" in text
    assert "failed: out of memory" in text


def test_a_chain_with_more_blocks_is_the_same_chain_longer(bench: Any) -> None:
    longer = bench("trust").chain(3)
    assert [node.op_type for node in longer.graph.node] == ["Conv", "Relu"] * 3
    onnx.checker.check_model(longer, full_check=True)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found_beside_a_constant(bench: Any, power: float) -> None:
    scale = bench("scale")
    points = [scale.Point(size, 3 + (size - 100) ** power, 0, 1.0) for size in (100, 1000, 10_000, 100_000)]
    assert scale.exponent(points, lambda point: point.seconds) == pytest.approx(power)
    assert math.isnan(scale.exponent(points[:2], lambda point: point.seconds))


def test_models_that_are_folded_wrongly_elsewhere_are_folded_rightly_here(bench: Any) -> None:
    wrong_folds = bench("wrong_folds")
    folded = {name: bnfold.fold(build()) for name, build in wrong_folds.MODELS.items()}
    gaps = {name: wrong_folds.difference(build(), folded[name].model) for name, build in wrong_folds.MODELS.items()}
    assert max(gaps.values()) < 1e-5
    reasons = {row.refusal.reason.code for result in folded.values() for row in result.report.outcomes if row.refusal}
    assert reasons == {"overflow", "batch-statistics", "axis-differs", "is-graph-output", "growth-budget"}


@pytest.mark.parametrize(
    ("gap", "verdict", "is_missed"),
    [
        ("1.5e+00", "failed", False),
        ("1.5e+00", "verified", True),
        ("1.7e-07", "verified", False),
        ("1.7e-07", "failed", True),
        ("not finite", "proved", True),
        ("the runtime refuses the result", "failed", False),
        ("the tool fails: RuntimeError", "", False),
    ],
)
def test_a_check_that_says_other_than_the_runtime_is_told(bench: Any, gap: str, verdict: str, is_missed: bool) -> None:
    assert bool(bench("wrong_folds").missed([["model", "tool", "1 of 2", gap, verdict, ""]])) == is_missed


def test_a_false_alarm_is_counted_by_verdict_and_by_level(bench: Any) -> None:
    alarms = bench("alarms")
    levels = {level: {"status": "pass", "because": "", "ratio": 1.0} for level in alarms.LEVELS}
    row = {
        "model": "m",
        "contender": "c",
        "verdict": "proved",
        "sentence": "",
        "figures": {"L3": 2.0},
        "levels": levels,
    }
    broken = {**levels, "ENABLE_BASIC": {"status": "fail", "because": "too far", "ratio": 9.0}}
    assert alarms.alarms([row]) == []
    assert alarms.alarms([row | {"verdict": "failed", "sentence": "not equivalent"}]) == ["m, c: not equivalent"]
    assert alarms.alarms([row | {"levels": broken}]) == ["m, c, ENABLE_BASIC: too far"]
    page = alarms.document([row, row | {"levels": broken}, {"model": "m", "contender": "d", "wrong": "it crashed"}])
    assert "**1 false alarms** in 2 right folds" in page
    assert "| ENABLE_BASIC | 2 | 5.00 | 8.20 | 9.00 | 4 |" in page
    assert "m, d: it crashed" in page


def test_levels_of_the_runtime_are_judged_by_what_they_give(bench: Any, tmp_path: Path) -> None:
    """A right fold passes at every level; one with another bias fails at every one."""
    alarms, net = bench("alarms"), Net()
    net.batch_norm(net.conv("x", 4, 4, bias=True), 4, "bn")
    model = net.model({"x": (1, 4, 6, 6)})
    folded = bnfold.fold(model).model
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(folded)
    bias = next(tensor for tensor in spoilt.graph.initializer if len(tensor.dims) == 1)
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1e-3, bias.name))
    for name, each in (("model", model), ("folded", folded), ("spoilt", spoilt)):
        onnx.save(each, tmp_path / f"{name}.onnx")
    inputs = alarms.Inputs.of(tmp_path / "model.onnx", 0)
    assert len(inputs.feeds) == 9
    for level in alarms.LEVELS:
        assert inputs.judged(tmp_path / "folded.onnx", level)["status"] == "pass"
        assert inputs.judged(tmp_path / "spoilt.onnx", level)["status"] == "fail"


def test_every_layer_of_a_check_is_a_phase(bench: Any, tmp_path: Path) -> None:
    layers, net = bench("layers"), Net()
    net.batch_norm(net.conv("x", 4, 4, bias=True), 4, "bn")
    original, folded = tmp_path / "original.onnx", tmp_path / "folded.onnx"
    onnx.save(net.model({"x": (1, 4, 6, 6)}), original)
    bnfold.save(bnfold.fold(original).model, folded)
    found = layers.once(original, folded)
    assert found["verdict"] == "proved"
    assert set(found["phases"]) == {*layers.PHASES, layers.OTHER}
    assert all(seconds > 0 for seconds, _ in found["phases"].values()), "a phase that is renamed is never entered"
    assert found["before"] > 10_000_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_a_command_is_that_of_what_it_starts_too(bench: Any) -> None:
    inner = "import time; held = bytearray(b'1' * 64_000_000); time.sleep(1)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    large = bench("large_model")
    found = large.peak_of(["-c", outer], program=())
    assert found["exit_code"] == 0
    assert found["peak_anonymous_bytes"] > 64_000_000
