"""End to end: numbers by the ratio of their errors, ranks and rows by what lies within these errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold.model import Arrays, Port, Runner, Signature
from bnfold.verify.check import CheckPlan, Subject, check_pair
from bnfold.verify.decisions import Tally, places, rows, top
from bnfold.verify.meters import EndToEnd, Tolerance, loose_axes
from bnfold.verify.probes import ProbeOptions
from bnfold.verify.result import Layer, Status, Verdict, Verification

Array = NDArray[Any]
EPSILON = 2.0**-23


def array(*values: Any) -> Array:
    return np.array(values, dtype=np.float64)


EXACT = array([5, 4, 3, 2, 1, 0, -1])
BEFORE = EXACT + 0.01


def with_values(**places: float) -> Array:
    values = BEFORE.copy()
    for place, value in places.items():
        values[0, int(place[1:])] = value
    return values


@pytest.mark.parametrize(
    ("count", "candidate", "tally"),
    [
        (1, BEFORE, Tally(1, 0, 0)),
        (1, with_values(_1=5.02), Tally(1, 1, 0)),
        (1, with_values(_3=9.0), Tally(1, 1, 0)),
        (5, with_values(_0=4.0, _1=5.0), Tally(1, 0, 0)),
        (5, with_values(_5=1.02), Tally(1, 1, 0)),
    ],
)
def test_ranks_that_no_error_explains_differ(count: int, candidate: Array, tally: Tally) -> None:
    assert top(count, EXACT, BEFORE, candidate, EPSILON) == tally


def test_ranks_within_the_errors_are_excused_and_only_those() -> None:
    exact, before = array([1.00, 0.99, 0.5]), array([1.01, 1.00, 0.5])
    assert top(1, exact, before, array([0.99, 1.00, 0.5]), EPSILON) == Tally(1, 0, 1)
    assert top(1, exact, before, array([0.99, 0.98, 1.0]), EPSILON) == Tally(1, 1, 0), "the third is far behind"
    assert top(2, exact, before, array([1.01, 0.98, 0.99]), EPSILON) == Tally(1, 1, 0)


def test_an_integer_is_excused_where_the_original_is_not_what_float64_is() -> None:
    exact, before = np.array([1, 2, 3]), np.array([1, 2, 4])
    assert places(exact, before, np.array([1, 2, 3])) == Tally(3, 0, 1)
    assert places(exact, before, np.array([1, 5, 4])) == Tally(3, 1, 0)


BOXES = array([10, 10, 0.9, 1], [20, 20, 0.8, 2], [30, 30, 0.7, 3])
FLOATS = np.array([True, True, True, False])
NOISE = array([1e-5, -1e-5, 1e-7, 0])
BEFORE_BOXES = BOXES + NOISE


def changed(row: int, column: int, by: float) -> Array:
    values = BEFORE_BOXES.copy()
    values[row, column] += by
    return values


ROWS: dict[str, tuple[Array, Array, Tally]] = {
    "the same": (BOXES, BEFORE_BOXES, Tally(3)),
    "another order": (BOXES, BOXES[[2, 0, 1]] - NOISE, Tally(3)),
    "one less": (BOXES, BEFORE_BOXES[:2], Tally(3, 1)),
    "one more": (BOXES, np.concatenate([BEFORE_BOXES, array([1, 1, 0.5, 1])]), Tally(4, 1)),
    "one twice": (BOXES, BEFORE_BOXES[[0, 1, 2, 2]], Tally(4, 1)),
    "another label": (BOXES, changed(1, 3, 1), Tally(3, 1)),
    "another place": (BOXES, changed(0, 0, 1e-3), Tally(3, 1)),
    "one less, which float64 has not": (BOXES[:2], BEFORE_BOXES[:2], Tally(3, 0, 1)),
    "one more, which float64 has": (
        np.concatenate([BOXES, array([1, 1, 0.5, 1])]),
        np.concatenate([BEFORE_BOXES, array([1, 1, 0.5, 1])]),
        Tally(4, 0, 1),
    ),
    "none at all": (BOXES, BOXES[:0], Tally(3, 3)),
    "NaN stays NaN": (BOXES, changed(0, 0, np.nan), Tally(3, 1)),
}


@pytest.mark.parametrize(("exact", "candidate", "tally"), ROWS.values(), ids=ROWS.keys())
def test_rows_are_compared_as_sets(exact: Array, candidate: Array, tally: Tally) -> None:
    assert rows(exact, BEFORE_BOXES, candidate, FLOATS, EPSILON) == tally


def test_rows_that_are_too_many_are_not_compared() -> None:
    many = np.zeros((3000, 1))
    assert rows(many, many, many, np.array([True]), EPSILON) == Tally()


def test_the_outputs_whose_rows_are_counted_by_the_model() -> None:
    image = Port("image", "float32", ("n", 3, 8, 8))
    outputs = [("same", ("n", 5)), ("found", ("m", 4)), ("each", ("n", None, 6)), ("any", None), ("fixed", (1, 5))]
    signature = Signature((image,), tuple(Port(name, "float32", shape) for name, shape in outputs))
    assert loose_axes(signature) == {"found": 0, "each": 1, "any": 0}


def detections(order: list[int], labels: Array | None = None) -> dict[str, Array]:
    return {
        "boxes": BOXES[order, :2].astype(np.float32)[None],
        "scores": BOXES[order, 2].astype(np.float32),
        "labels": (np.arange(3) if labels is None else labels)[order],
    }


@pytest.mark.parametrize(
    ("candidate", "differ"),
    [
        (detections([0, 1, 2]), 0),
        (detections([2, 1, 0]), 0),
        (detections([2, 1]), 1),
        (detections([0, 1, 2]) | {"labels": np.array([1, 0, 2])}, 2),
        (detections([2, 1, 0]) | {"labels": np.arange(3)}, 2),
    ],
)
def test_what_belongs_to_one_detection_stays_together(candidate: Arrays, differ: int) -> None:
    reference = detections([0, 1, 2])
    exact = {name: value.astype(np.float64) for name, value in reference.items()}
    ends = EndToEnd(loose={"boxes": 1, "scores": 0, "labels": 0})
    ends.add(exact, reference, candidate)
    moved = differ or list(candidate["labels"]) != [0, 1, 2]
    assert [meter.decided.differ for meter in ends.meters.values()] == [differ] * 3
    assert all((meter.squares == {}) is bool(moved) for meter in ends.meters.values() if meter.name != "labels")


Function = Callable[[Array], Array]


def subject(
    function: Function, *, dtype: str = "float32", decides: bool = False, rounded: Function | None = None
) -> Subject:
    """A model that is a function; `rounded` is what it computes in the runtime, if that is another."""
    rows_out: tuple[int | str, ...] = ("rows", 4) if decides else ("n", 4)
    signature = Signature((Port("x", dtype, ("n", 4)),), (Port("y", dtype, rows_out),))

    def runner(compute: Function, cast: Any) -> Callable[[], Runner]:
        def run(feeds: Mapping[str, Array]) -> Arrays:
            with np.errstate(over="ignore"):
                return {"y": compute(feeds["x"].astype(np.float64)).astype(cast)}

        return lambda: run

    return Subject(signature, runner(function, np.float64), runner(rounded or function, dtype), decides)


def positive(x: Array) -> Array:
    return x[x[:, 0] > 0.3]


def layer(found: Verification, name: str = "L4") -> Layer:
    return next(layer for layer in found.layers if layer.layer == name)


PLAN = CheckPlan(probes=ProbeOptions(dims={"n": (40, 60)}))


def test_detections_in_another_order_are_the_same() -> None:
    found = check_pair(subject(positive, decides=True), subject(lambda x: positive(x)[::-1], decides=True), PLAN)
    assert layer(found).status is Status.PASS, layer(found).because
    assert found.verdict is Verdict.VERIFIED
    assert found.outputs[0].compared


def test_a_detection_less_is_a_difference_that_a_deciding_model_is_not_failed_for_by_itself() -> None:
    found = check_pair(subject(positive, decides=True), subject(lambda x: positive(x)[1:], decides=True), PLAN)
    assert layer(found).status is Status.SKIPPED
    assert "rows" in layer(found).because
    assert found.outputs[0].differ
    other = subject(lambda x: positive(x)[1:])
    assert check_pair(subject(positive), other, PLAN).verdict is Verdict.FAILED, "nothing decides: a wrong shape"


def test_a_detection_that_the_original_itself_gets_wrong_is_excused() -> None:
    """The runtime of both loses the last row; float64 and the candidate do not."""
    first = subject(positive, decides=True, rounded=lambda x: positive(x)[:-1])
    found = check_pair(first, subject(positive, decides=True), PLAN)
    assert layer(found).status is Status.PASS, layer(found).because
    assert found.outputs[0].excused
    assert not found.outputs[0].differ


def holes(above: float) -> Function:
    return lambda x: np.where(x > above, np.nan, 2 * x)


def test_what_is_not_a_number_is_so_at_the_same_places() -> None:
    assert check_pair(subject(holes(1)), subject(holes(1))).verdict is Verdict.VERIFIED
    for wrong in (holes(0.9), lambda x: 2 * x, lambda x: np.where(x > 1, np.inf, 2 * x)):
        found = check_pair(subject(holes(1)), subject(wrong))
        assert layer(found).status is Status.FAIL
        assert "NaN or infinite" in layer(found).because


def test_a_place_that_is_not_a_number_in_the_runtime_of_the_original_alone_is_not_compared() -> None:
    first = subject(lambda x: np.where(x > 1, np.inf, 2 * x), rounded=lambda x: 2 * x)
    found = check_pair(first, subject(lambda x: np.where(x > 1, np.inf, 2 * x)))
    assert layer(found).status is Status.PASS, layer(found).because


def test_only_the_candidate_overflows() -> None:
    assert check_pair(subject(twice, dtype="float16"), subject(overflowing, dtype="float16")).verdict is Verdict.FAILED


def twice(x: Array) -> Array:
    return 2 * x


def overflowing(x: Array) -> Array:
    return np.where(np.abs(x) > 1, x * 1e6, 2 * x)


def test_ranks_warn_and_fail_only_on_demand() -> None:
    wide = Tolerance(1.0, 1.0)
    first, second = subject(lambda x: x * 0 + [1, 0.5, 0.2, 0.9995]), subject(lambda x: x * 0 + [1, 0.5, 0.2, 1.0005])
    found = check_pair(first, second, CheckPlan(tolerance=wide))
    assert layer(found).status is Status.WARN
    assert "top-1" in layer(found).because
    assert check_pair(first, second, CheckPlan(tolerance=wide, min_top1=0.99)).verdict is Verdict.FAILED
    assert check_pair(first, first, CheckPlan(tolerance=wide, min_top1=0.99)).verdict is Verdict.VERIFIED
