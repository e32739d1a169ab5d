"""The benchmark on made-up timings, whose truth is known, and once in earnest. No test asserts a time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import demo_in
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bnfold.benchmark import (
    Benchmark,
    BenchOptions,
    Comparison,
    Contender,
    Interval,
    Measured,
    child,
    measure,
    parse_gates,
)
from bnfold.benchmark import processes as processes_room
from bnfold.benchmark.child import FEWEST_ROUNDS, perform
from bnfold.benchmark.processes import Processes
from bnfold.benchmark.statistics import judge, percentile, ratio_interval
from bnfold.cli import main
from bnfold.errors import EnvironmentFailure, Exit, NoVerdict, UsageError
from bnfold.model import Cost, ModelFacts
from bnfold.verify.inputs import parse_input

Array = NDArray[Any]
FACTS = ModelFacts(batch_norms=2, nodes=5, compute_nodes=4, parameters=100, bytes=400, cost=lambda: Cost(1000))


def timings(ratio: float, *, processes: int = 10, rounds: int = 200, seed: int = 0) -> list[Array]:
    """Skewed noise within a process, and a shift of each process that both contenders share in part."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(processes):
        machine, mine, other = np.exp(generator.normal(0, [0.1, 0.004, 0.004]))
        noise = np.exp(np.abs(generator.normal(0, 0.05, (rounds, 2))))
        made.append(1e-3 * machine * noise * [ratio * mine, other])
    return made


def test_a_known_effect_is_found_and_its_size_is_right() -> None:
    for ratio, verdict in ((1.1, Comparison.FASTER), (1 / 1.1, Comparison.SLOWER)):
        interval = ratio_interval(timings(ratio))
        assert interval is not None
        assert interval.low < ratio < interval.high
        assert judge(interval, Interval(1.0, 0.99, 1.01)) is verdict


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(50):
        interval = ratio_interval(timings(1.0, processes=5, rounds=30, seed=seed))
        assert interval is not None
        covered += not interval.excludes_one
    assert covered >= 45


def test_fewer_processes_make_a_wider_interval() -> None:
    def width(processes: int) -> float:
        widths = []
        for seed in range(10):
            interval = ratio_interval(timings(1.0, processes=processes, seed=seed))
            assert interval is not None
            widths.append(interval.high / interval.low)
        return float(np.mean(widths))

    assert width(2) > width(4) > width(12)


def test_one_process_says_nothing() -> None:
    assert ratio_interval(timings(1.5, processes=1)) is None
    assert ratio_interval([np.empty((0, 2)), *timings(1.5, processes=1)]) is None


def test_the_same_timings_give_the_same_interval() -> None:
    assert ratio_interval(timings(1.2)) == ratio_interval(timings(1.2))


GATED = ["--gate", "bn<=8"]
CALM = Interval(1.0, 0.995, 1.005)


@pytest.mark.parametrize(
    ("interval", "control", "verdict"),
    [
        (Interval(1.10, 1.05, 1.15), CALM, Comparison.FASTER),
        (Interval(0.90, 0.85, 0.95), CALM, Comparison.SLOWER),
        (Interval(1.01, 1.005, 1.015), CALM, Comparison.NO_MEASURABLE_DIFFERENCE),
        (Interval(0.99, 0.985, 0.995), CALM, Comparison.NO_MEASURABLE_DIFFERENCE),
        (Interval(1.10, 0.99, 1.20), CALM, Comparison.NO_MEASURABLE_DIFFERENCE),
        (Interval(1.10, 1.05, 1.15), Interval(1.03, 1.01, 1.05), Comparison.NO_VERDICT),
        (Interval(1.10, 1.05, 1.15), None, Comparison.NO_VERDICT),
        (None, CALM, Comparison.NO_VERDICT),
    ],
)
def test_the_verdict_needs_an_interval_an_effect_and_a_calm_control(
    interval: Interval | None, control: Interval | None, verdict: Comparison
) -> None:
    assert judge(interval, control) is verdict


@pytest.mark.parametrize(
    ("control", "words", "code"),
    [
        (Interval(1.03, 1.01, 1.05), [], Exit.NO_VERDICT),
        (Interval(1.03, 1.01, 1.05), GATED, Exit.OK),
        (CALM, [], Exit.OK),
    ],
)
def test_a_spoilt_control_is_no_verdict_unless_only_counts_are_asked_for(
    control: Interval, words: list[str], code: Exit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "control", control)
    demo = str(demo_in(tmp_path))
    assert main(["bench", demo, demo, "--budget", "1", "--processes", "2", "-q", *words]) == code


def test_a_percentile_needs_enough_timings_beyond_it() -> None:
    assert percentile(np.empty(0), 0.5) is None
    assert percentile(np.array([1.0, 2.0, 4.0]), 0.5) == 2.0
    assert percentile(np.arange(49.0), 0.9) is None
    assert percentile(np.arange(51.0), 0.9) == 45.0
    assert percentile(np.arange(499.0), 0.99) is None
    assert percentile(np.arange(501.0), 0.99) == 495.0


def benchmark(**changes: Any) -> Benchmark:
    row: dict[str, Any] = dict.fromkeys(Measured.__dataclass_fields__)
    row |= {"name": "folded", "path": "b.onnx", "bn": 1, "nodes": 5, "parameters": 10, "macs": 100, "bytes": 400}
    return Benchmark((Measured(**(row | changes)),), (), None, 1, 0, 1, "cpu")


def missed(rules: list[str], benchmark: Benchmark, *, proved: bool = False) -> list[str | None]:
    return [rule.missed(benchmark.contenders[-1], proved=proved) for rule in parse_gates(rules)]


def test_a_gate_closes_on_counts() -> None:
    assert missed(["bn<=1", "nodes <= 5", "macs<=100", "bytes<=400"], benchmark()) == [None] * 4
    assert missed(["bn<=0", "bytes<=399"], benchmark()) == [
        "folded has bn 1, more than 0",
        "folded has bytes 400, more than 399",
    ]
    assert missed(["macs<=5"], benchmark(macs=None)) == ["folded has macs unknown, more than 5"]
    assert missed(["proved"], benchmark(), proved=True) == [None]
    assert missed(["proved"], benchmark(), proved=False) == missed(["proved"], benchmark()) == ["folded is not proved"]


@pytest.mark.parametrize("rule", ["p50<=1", "bn<1", "bn<=", "", "bn<=0.5", "quick"])
def test_a_gate_on_a_clock_or_on_nonsense_is_a_usage_error(rule: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gates([rule])
    assert caught.value.code == "bad-gate"


def write(path: Path, *ops: str, name: str = "x", shape: Sequence[Any] = ("batch", 8)) -> Contender:
    values = [name, *(f"v{i}" for i in range(1, len(ops))), "y"]
    nodes = [helper.make_node(op, [values[i]], [values[i + 1]]) for i, op in enumerate(ops)]
    x, y = (helper.make_tensor_value_info(value, TensorProto.FLOAT, shape) for value in (name, "y"))
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(proto, path)
    return Contender(path.stem, path, FACTS)


def test_measuring_in_earnest(tmp_path: Path) -> None:
    said: list[str] = []
    contenders = [write(tmp_path / "a.onnx", "Relu", "Exp"), write(tmp_path / "b.onnx", "Exp")]
    found = measure(contenders, BenchOptions(batches=(3,), budget=0.1, processes=2), said.append)
    assert [row.name for row in found.contenders] == ["a", "b"]
    assert [(row.a, row.b, row.options) for row in found.comparisons] == [("a", "b", "default"), ("a", "b", "off")]
    assert found.processes == 2
    assert found.batch == 3
    assert found.provider == "CPUExecutionProvider"
    assert found.control is not None
    assert not found.interrupted
    assert any(line.startswith("process 2") for line in said)
    for row in found.contenders:
        assert (row.bn, row.bn_after_runtime, row.macs, row.bytes) == (2, 0, 1000, 400)
        assert row.p50_s
        assert row.throughput == 3 / row.p50_s
        assert row.session_s
        assert row.first_run_s
        assert row.peak_bytes is None or row.peak_bytes > 1_000_000


def test_several_batch_sizes_are_measured_and_the_first_is_spoken_of(tmp_path: Path) -> None:
    contenders = [write(tmp_path / "a.onnx", "Relu", "Exp"), write(tmp_path / "b.onnx", "Exp")]
    found = measure(contenders, BenchOptions(batches=(2, 5), budget=0.1, processes=2))
    assert found.batch == 2
    rows = [(row.options, row.batch) for row in found.comparisons]
    assert rows == [("default", 2), ("off", 2), ("default", 5)]
    for row in found.contenders:
        assert [each.batch for each in row.batches] == [2, 5]
        assert all(each.p50_s and each.throughput == each.batch / each.p50_s for each in row.batches)
        assert (row.p50_s, row.throughput) == (row.batches[0].p50_s, row.batches[0].throughput)
    assert [row.operators_after_runtime for row in found.contenders] == [{"Relu": 1, "Exp": 1}, {"Exp": 1}]


def test_a_batch_that_the_model_fixes_is_measured_once(tmp_path: Path) -> None:
    fixed = write(tmp_path / "a.onnx", "Exp", shape=(2, 8))
    found = measure([fixed], BenchOptions(batches=(1, 2, 4), budget=0.1, processes=2))
    assert [each.batch for each in found.contenders[0].batches] == [2]
    assert any("batch is 2, as the model or the data fix it, not 1, 4" in note for note in found.notes)


@pytest.mark.parametrize(("noise", "processes"), [(0.0, 5), (0.2, 9)])
def test_measuring_stops_once_nothing_more_is_to_be_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float, processes: int
) -> None:
    generator = np.random.default_rng(0)

    def answered(job: Any) -> Any:
        shift = float(np.exp(generator.normal(0, noise)))
        times = [[(1e-3 * shift, 1e-3)] * 20 for _ in job["pairs"]]
        known = dict.fromkeys(job["models"], 1.0)
        return {"times": times, "session_s": known, "first_run_s": known, "peak_bytes": 1}

    monkeypatch.setattr(processes_room, "start_child", answered)
    contenders = [write(tmp_path / "a.onnx", "Exp"), write(tmp_path / "b.onnx", "Exp")]
    stages: list[str] = []
    found = measure(contenders, BenchOptions(budget=60, processes=9), stages.append)
    assert found.processes == processes
    assert stages[-processes] == "process 1 of 9, about 60 s left"
    assert any("narrower" in note for note in found.notes) == (processes < 9)


def test_one_model_alone_is_measured_with_its_control(tmp_path: Path) -> None:
    found = measure([write(tmp_path / "a.onnx", "Exp", shape=(2, 8))], BenchOptions(budget=0.1, processes=2))
    assert found.comparisons == ()
    assert found.control is not None
    assert any("batch is 2" in note for note in found.notes)


def test_the_budget_stops_after_two_processes(tmp_path: Path) -> None:
    found = measure([write(tmp_path / "a.onnx", "Exp")], BenchOptions(budget=0.01, processes=50))
    assert found.processes == 2
    assert any("raise --budget" in note for note in found.notes)


@pytest.mark.parametrize("answered", [0, 1, 3])
def test_an_interruption_gives_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: int) -> None:
    start, calls = processes_room.start_child, iter(range(100))

    def interrupted(job: Any) -> Any:
        if next(calls) >= answered:
            raise KeyboardInterrupt
        return start(job)

    monkeypatch.setattr(processes_room, "start_child", interrupted)
    contenders = [write(tmp_path / "a.onnx", "Exp"), write(tmp_path / "b.onnx", "Exp")]
    found = measure(contenders, BenchOptions(budget=0.1, processes=10))
    assert found.interrupted
    assert found.processes == max(answered - 2, 0)
    assert all(row.verdict is Comparison.NO_VERDICT for row in found.comparisons)
    assert (found.contenders[0].peak_bytes is None) == (answered == 0)


def test_contenders_must_take_the_same_inputs_and_have_names(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.onnx", "Exp"), write(tmp_path / "b.onnx", "Exp", name="other")
    with pytest.raises(UsageError, match="inputs"):
        measure([first, second])
    with pytest.raises(UsageError):
        measure([first, first])
    with pytest.raises(UsageError):
        measure([])


def test_a_contender_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoVerdict, match=r"broken: .*Nonsense"):
        measure([write(tmp_path / "broken.onnx", "Nonsense")])
    narrow = BenchOptions(inputs=[parse_input("1,8")])
    with pytest.raises(UsageError):
        measure([write(tmp_path / "c.onnx", "Exp", shape=(1, 4))], narrow)


def test_a_provider_that_is_missing_is_not_the_models_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        measure([write(tmp_path / "a.onnx", "Exp")], BenchOptions(provider="Imaginary"))
    assert caught.value.code == "provider-missing"


def job(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    a, b = write(tmp_path / "a.onnx", "Exp"), write(tmp_path / "b.onnx", "Relu")
    np.savez(tmp_path / "inputs.npz", x=np.ones((1, 8), np.float32))
    models = {c.name: {"path": str(c.path), "optimise": True} for c in (a, b)}
    options = {
        "runtime": "onnxruntime",
        "provider": "cpu",
        "provider_options": {},
        "threads": 1,
        "seed": 0,
        "seconds": 0.0,
    }
    return {
        "models": models,
        "pairs": [["a", "b", "1"]],
        "inputs": {"1": str(tmp_path / "inputs.npz")},
        **options,
        **changes,
    }


def test_a_process_times_each_pair_at_least_twice(tmp_path: Path) -> None:
    answer = perform(job(tmp_path))
    assert len(answer["times"][0]) >= FEWEST_ROUNDS
    assert all(before > 0 and after > 0 for before, after in answer["times"][0])
    assert set(answer["session_s"]) == set(answer["first_run_s"]) == {"a", "b"}
    assert perform(job(tmp_path, pairs=[]))["times"] == []


def test_each_model_is_prepared_and_warmed_once_for_a_size_however_many_pairs_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, runs = [], Counter[str]()

    class Model:
        def __init__(self, name: str) -> None:
            self.name = name

        def prepared(self, feeds: Any) -> Any:
            prepared.append(self.name)
            return lambda: runs.update([self.name])

    monkeypatch.setattr(child, "_open", lambda job, path, optimise: Model(Path(path).stem))
    monkeypatch.setattr(child, "_visit", lambda first, second: [])
    perform(job(tmp_path, pairs=[["a", "b", "1"]] * 3))
    assert sorted(prepared) == ["a", "b"]
    assert runs == {"a": child.WARM_UP + 1, "b": child.WARM_UP + 1}


def test_the_order_of_loading_is_random_and_seeded(tmp_path: Path) -> None:
    def order(seed: int) -> list[str]:
        return list(perform(job(tmp_path, seed=seed, pairs=[]))["session_s"])

    seeds = range(6)
    expected = []
    for seed in seeds:
        names = ["a", "b"]
        random.Random(seed).shuffle(names)
        expected.append(names)
    assert [order(seed) for seed in seeds] == expected
    assert ["b", "a"] in expected


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    broken = job(tmp_path)
    broken["models"]["b"]["path"] = str(tmp_path / "missing.onnx")
    with pytest.raises(NoVerdict, match="missing"):
        processes_room.start_child(broken)
    with pytest.raises(EnvironmentFailure, match="died"):
        processes_room.start_child({})
