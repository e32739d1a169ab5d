"""Chance and mistake: networks that magnify rounding are no reason to doubt a right fold, nor a hiding place."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold.model import Port, Runner, Signature
from bnfold.verify.check import Subject, check_pair
from bnfold.verify.compare import moved_by_rounding
from bnfold.verify.draws import Neighbours, draw_again
from bnfold.verify.machines import Machine
from bnfold.verify.meters import EndToEnd
from bnfold.verify.result import Layer, Status, Verification

Array = NDArray[Any]
Wrong = Callable[[Array], float]
SEEDS = range(40)


def never(x: Array) -> float:
    return 0.0


def always(x: Array) -> float:
    return 0.1


def chaotic(seed: int, wrong: Wrong = never, optimised: Wrong | None = None) -> Subject:
    """Twice the input; in the runtime times a number that the last bits of the input draw, mostly near 1e-5 from 1 and
    sometimes near 1e-2, and times another that is wrong by so much."""

    def runner(wrong: Wrong, salt: int) -> Callable[[], Runner]:
        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            x = feeds["x"]
            random = np.random.default_rng((seed, salt, zlib.crc32(x.tobytes())))
            drawn = 10 ** random.uniform(-5, -2) * random.standard_normal()
            return {"y": (2 * x.astype(np.float64) * (1 + drawn + wrong(x))).astype(np.float32)}

        return lambda: run

    def exact() -> Runner:
        return lambda feeds: {"y": 2 * feeds["x"].astype(np.float64)}

    port = Port("x", "float32", (2, 60))
    signature = Signature((port,), (Port("y", "float32", (2, 60)),))
    return Subject(signature, exact, runner(wrong, 1), optimised=runner(optimised or wrong, 2))


def layer(found: Verification, name: str) -> Layer:
    return next(each for each in found.layers if each.layer == name)


def test_chance_is_no_failure_where_one_run_would_have_been_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(chaotic(seed), chaotic(seed + 1000)) for seed in SEEDS]
    said = [check_pair(*pair) for pair in pairs]
    assert [layer(each, name).status for each in said for name in ("L4", "L5")].count(Status.FAIL) == 0
    told = [each for each in said if "rounding alone takes" in layer(each, "L4").because]
    assert told, "some of them needed more than one draw"
    monkeypatch.setattr("bnfold.verify.draws.MOST_BYTES", 0)
    assert layer(check_pair(*pairs[said.index(told[0])]), "L4").status is Status.FAIL


def test_what_is_wrong_every_time_fails_whatever_chance_does_beside_it() -> None:
    for seed in SEEDS:
        found = layer(check_pair(chaotic(seed), chaotic(seed + 1000, always)), "L4")
        assert found.status is Status.FAIL, (seed, found.because)


@pytest.mark.parametrize(("wrong", "typical"), [(0.0, {0}), (1e-3, set())])
def test_a_mistake_at_one_input_is_not_excused_by_chance_at_another(wrong: float, typical: set[int]) -> None:
    chance, steady = (np.full((2, 60), value, np.float32) for value in (1.0, 5.0))

    def machine(error: Callable[[Array], float]) -> Machine:
        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            x = feeds["x"]
            return {"y": (x.astype(np.float64) * (1 + error(x))).astype(np.float32)}

        signature = Signature((Port("x", "float32", (2, 60)),), (Port("y", "float32", (2, 60)),))
        return Machine(lambda: run, signature, signature)

    exact = machine(lambda x: 0.0)
    reference = machine(lambda x: 1e-3 if x[0, 0] < 2 else 1e-6)
    candidate = machine(lambda x: 1e-2 if np.array_equal(x, chance) else 1e-3 if x[0, 0] < 2 else 1e-6 + wrong)
    ends, feeds = EndToEnd(), [{"x": chance}, {"x": steady}]
    for each in feeds:
        results = [one.run(each) for one in (exact, reference, candidate)]
        ends.add(*(result for result in results if result is not None))
    draw_again(ends, Neighbours(feeds), exact, reference, candidate, 4.0)
    assert ends.meters["y"].typical.keys() == typical
    assert (ends.worst_ratio or 0.0) > 4.0 if wrong else ends.worst_ratio == pytest.approx(1.0, rel=0.2)


def test_a_mistake_of_the_optimised_model_alone_is_seen() -> None:
    for seed in SEEDS:
        found = check_pair(chaotic(seed), chaotic(seed + 1000, never, always))
        assert layer(found, "L4").status is not Status.FAIL
        assert layer(found, "L5").status is Status.FAIL


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_inputs_move_by_one_rounding_of_their_own_type(dtype: Any) -> None:
    feeds = {"x": np.ones((2, 30), dtype)}
    (moved,) = moved_by_rounding(feeds, [0], widened=False)
    assert moved["x"].dtype == dtype
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    assert set(np.unique(np.abs(moved["x"].astype(np.float64) - 1))) == {epsilon}
