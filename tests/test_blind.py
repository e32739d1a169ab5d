"""The material of the blind trial: its fold and its oracle are right, its list of hashes is of use."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

BLIND = Path(__file__).resolve().parents[1] / "benchmarks" / "blind"


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of `benchmarks/blind/` as its own script does."""
    monkeypatch.syspath_prepend(BLIND)
    return importlib.import_module


def material(folder: Path) -> None:
    """One pair of two toy files and its manifest."""
    place = folder / "000"
    place.mkdir()
    for name in ("reference.onnx", "candidate.onnx"):
        (place / name).write_bytes(name.encode())
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(place.iterdir())}
    pair = {"number": 0, "label": "mutant", "what": "nothing", "base": "none", "effect": 0.0, "sha256": sums}
    (folder / "manifest.json").write_text(json.dumps({"pairs": [pair]}))


def test_what_the_manifest_lists_is_accepted_and_a_changed_file_is_not(blind: Any, tmp_path: Path) -> None:
    material(tmp_path)
    assert [pair["number"] for pair in blind("trial").intact(tmp_path)] == [0]
    (tmp_path / "000" / "candidate.onnx").write_bytes(b"another")
    with pytest.raises(SystemExit, match="is not the file of the manifest"):
        blind("trial").intact(tmp_path)


@pytest.mark.parametrize("name", ["hashes.txt", "hashes_seed1.txt"])
def test_a_committed_list_holds_two_hashes_or_more_for_each_pair(name: str) -> None:
    first, *lines = (BLIND / name).read_text().splitlines()
    assert first.split()[0] == "manifest.json"
    assert len(lines) >= 200
    for number, line in enumerate(lines):
        name, *sums = line.split()
        assert int(name) == number
        assert len(sums) >= 2
        assert all(len(each) == 64 for each in sums)


@pytest.mark.parametrize("name", ["conv_1d", "transposed_groups", "gemms", "half_net", "nms_head", "shared_weight"])
def test_a_correct_fold_computes_the_same_and_a_spoilt_one_does_not(blind: Any, name: str) -> None:
    oracle, surgery, wrong = blind("oracle"), blind("surgery"), blind("wrong")
    model = blind("bases").BUILT[name]()
    feeds = oracle.feeds(model, 1, 2)
    right = oracle.run(model, feeds)
    formula = wrong.FORMULAS["β of two channels swapped"]
    assert oracle.distance(right, oracle.run(surgery.fold(model), feeds)) < (2e-2 if "half" in name else 1e-6)
    assert oracle.distance(right, oracle.run(surgery.fold(model, formula, 0), feeds)) > 1e-4


@pytest.mark.parametrize(
    ("ours", "theirs", "far"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 3.0], 0.5),
        ([1.0, 2.0], [1.0, np.nan], np.inf),
        ([1.0, 2.0], [[1.0, 2.0]], np.inf),
        ([1, 2], [1, 3], np.inf),
        ([1, 2], [1, 2], 0.0),
    ],
)
def test_the_distance_sees_numbers_shapes_and_non_finite_places(blind: Any, ours: Any, theirs: Any, far: float) -> None:
    assert blind("oracle").distance([np.array(ours)], [np.array(theirs)]) == far


def test_the_chain_of_the_quantised_trial_is_folded_altogether(blind: Any) -> None:
    model = blind("qdq").original(0)
    kinds = [node.op_type for node in blind("surgery").fold(model).graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("QuantizeLinear") == 12
    onnx.checker.check_model(blind("surgery").fold(model), full_check=True)
