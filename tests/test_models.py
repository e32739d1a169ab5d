"""The trained networks: what `models.json` promises folds, in both dialects, and nothing is decided anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bnfold
from bnfold.verify.result import Verdict

ROOT = Path(__file__).resolve().parent.parent
PROMISES = {entry["name"]: entry for entry in json.loads((ROOT / "models/models.json").read_text())}
SHORT = ("digits_resnet", "digits_siamese", "digits_mlp")


@pytest.fixture
def networks(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of `models/`, importable as its own scripts import them."""
    monkeypatch.syspath_prepend(models)
    import nets
    import tasks

    yield nets, tasks
    for name in ("nets", "tasks"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", PROMISES)
def test_a_module_folds_as_promised_and_decides_the_same(name: str, networks: Any, models: Path) -> None:
    nets, tasks = networks
    net = nets.NETS[name]().eval()
    net.load_state_dict(bnfold.load(models / f"{name}.pt").state_dict)
    stored = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    data = tasks.load(name)
    folded = bnfold.fold(net, tuple(torch.from_numpy(array[:2]) for array in data.test_x))
    assert len(folded.report.norms) == PROMISES[name]["batch_norms"]
    assert folded.report.folded == PROMISES[name]["folds_today"]
    inputs = [torch.from_numpy(array) for array in data.test_x]
    with torch.no_grad():
        before, after = net(*inputs).numpy(), folded.model(*inputs).numpy()
    assert np.array_equal(tasks.decisions(name, before), tasks.decisions(name, after))
    assert round(tasks.accuracy(name, after, data.test_y), 4) == PROMISES[name]["test_accuracy"]
    assert not net.training
    assert all(torch.equal(stored[key], tensor) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in SHORT else pytest.mark.slow) for n in PROMISES])
def test_an_export_is_proved_and_leaves_what_was_promised(name: str, models: Path, tmp_path: Path) -> None:
    run = bnfold.export(models / f"{name}.pt", tmp_path / "model.onnx")
    assert run.fold is not None
    assert run.check is not None
    assert run.after is not None
    assert run.check.verdict is Verdict.PROVED
    assert run.fold.folded == PROMISES[name]["folds_today"]
    assert run.after.batch_norms == PROMISES[name]["batch_norms"] - PROMISES[name]["folds_today"]
