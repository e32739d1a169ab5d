"""Random ONNX models: none is folded wrongly, and what is planted is found."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from numpy_onnx import run
from onnx import TensorProto
from random_onnx import CAMPAIGN, FAULTS, check_many
from random_onnx_graphs import draw

SHORT = 60

FOUND_ONCE = (1005206, 1015129)
"""A bias that a batch norm had left was counted again where its operator was merged; a Gemm of a vector is none."""


def test_no_model_is_folded_wrongly() -> None:
    tally = check_many(range(SHORT))

    assert tally.wrong == []
    assert tally.counts["discarded"] <= SHORT // 20
    assert tally.rules["norm into-producer via"]
    assert tally.rules["norm into-consumer via"]


def test_what_long_runs_have_found_is_found_no_more() -> None:
    tally = check_many(FOUND_ONCE)

    assert tally.wrong == []
    assert tally.counts["checked"] == len(FOUND_ONCE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("start", range(0, 20_000, 1000))
def test_none_of_very_many_is_folded_wrongly(start: int) -> None:
    assert check_many(range(start, start + 1000)).wrong == []


@pytest.mark.parametrize("name", ["other readers not asked", "Split gives every piece the first channels"])
def test_a_planted_fault_is_found(name: str) -> None:
    assert CAMPAIGN.until_found(name, 600) is not None


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_found(name: str) -> None:
    assert CAMPAIGN.until_found(name, 2000) is not None


def test_the_interpreter_agrees_with_onnxruntime() -> None:
    agreed = sum(_agrees(seed) for seed in range(SHORT))

    assert agreed > SHORT // 8


def _agrees(seed: int) -> bool:
    """Whether both ran the model of a seed; what they compute must be the same. The runtime has it in float32 only."""
    drawn = draw(seed)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if drawn.model.graph.input[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        return False
    try:
        session = onnxruntime.InferenceSession(drawn.model.SerializeToString(), options)
    except Exception:  # of classes that it does not export: an operator that it lacks
        return False
    feed = {port.name: drawn.feeds[0][port.name] for port in session.get_inputs()}
    given = {name: array if array.dtype == bool else array.astype(np.float32) for name, array in feed.items()}
    with np.errstate(all="ignore"):
        outputs, largest = run(drawn.model, drawn.feeds[0])
    for mine, theirs in zip(outputs, session.run(None, given), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-3, atol=1e-4 * largest)
    return True
