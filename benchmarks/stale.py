"""Faults planted in the statistics of trained networks, and what bnfold finds and mends.

python benchmarks/stale.py faults      one fault of a kind in one batch norm: what `bnfold inspect` says of it
python benchmarks/stale.py averages    moving averages that lag behind: accuracy before, spoilt and recalibrated
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import bnfold

MODELS = Path(__file__).resolve().parent.parent / "models"
sys.path.insert(0, str(MODELS))

from nets import NETS  # noqa: E402
from tasks import accuracy, load  # noqa: E402

BATCH = 450
SITE = "layer1.0.bn1"


def set_to(name: str, number: float, *channels: int) -> Callable[[_BatchNorm], None]:
    """These channels of a parameter or statistic, or all of them, become this number."""

    def plant(norm: _BatchNorm) -> None:
        numbers: Tensor = getattr(norm, name).data
        numbers[list(channels) or slice(None)] = number

    return plant


def all_of(*plants: Callable[[_BatchNorm], None]) -> Callable[[_BatchNorm], None]:
    def plant(norm: _BatchNorm) -> None:
        for each in plants:
            each(norm)

    return plant


def begun_again(batches: int) -> Callable[[_BatchNorm], None]:
    """Running statistics as they are so many batches after the first step, where every batch has what is stored now."""

    def plant(norm: _BatchNorm) -> None:
        mean: Any = norm.running_mean
        variance: Any = norm.running_var
        begun = (1 - (norm.momentum or 0)) ** batches
        mean.mul_(1 - begun)
        variance.mul_(1 - begun).add_(begun)
        norm.num_batches_tracked.fill_(batches)  # type: ignore[union-attr]

    return plant


FAULTS: dict[str, Callable[[_BatchNorm], None]] = {
    "a variance that is NaN": set_to("running_var", float("nan"), 3),
    "a mean that is infinite": set_to("running_mean", float("inf"), 5),
    "a variance below zero": set_to("running_var", -0.5, 2),
    "a variance near zero": set_to("running_var", 1e-12, 7),
    "a huge variance": set_to("running_var", 1e7, 1),
    "a scale of zero": set_to("weight", 0.0, 4),
    "a channel that a ReLU never lets through": all_of(set_to("weight", 0.01, 6), set_to("bias", -5.0, 6)),
    "never trained": all_of(set_to("running_mean", 0.0), set_to("running_var", 1.0)),
    "ten batches since the start": begun_again(10),
    "a scale beyond float16": set_to("weight", 1e6, 0),
    "one scale far above the others": set_to("weight", 2000.0, 8),
    "an unusual epsilon": lambda norm: setattr(norm, "eps", 0.5),
    "the momentum of Keras": lambda norm: setattr(norm, "momentum", 0.99),
}


def trained(name: str) -> nn.Module:
    net: nn.Module = NETS[name]().eval()
    net.load_state_dict(bnfold.load(MODELS / f"{name}.pt").state_dict)
    return net


def norms(net: nn.Module) -> list[_BatchNorm]:
    return [part for part in net.modules() if isinstance(part, _BatchNorm)]


def findings(plant: Callable[[_BatchNorm], None] | None, folder: Path) -> Iterator[dict[str, Any]]:
    """What `bnfold inspect` finds in the trained residual network with one fault."""
    net = trained("digits_resnet")
    site: Any = net.get_submodule(SITE)
    if plant is not None:
        plant(site)
    path = folder / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.ones(2, 1, 8, 8),)), path)
    said = subprocess.run(
        [sys.executable, "-m", "bnfold", "inspect", str(path), "--json"], capture_output=True, text=True, check=True
    )
    document = json.loads(said.stdout)
    where = {each["id"]: each["module"] for each in document["affines"]}
    yield from ({**each, "where": where.get(each["affine"])} for each in document["findings"])


def print_faults() -> int:
    """1 if a fault is not found in the batch norm that has it, or anything is found where there is none."""
    missed = 0
    print("| planted in one batch norm | finding | severity | channels |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        missed += len(list(findings(None, Path(folder))))
        for title, plant in FAULTS.items():
            found = [each for each in findings(plant, Path(folder)) if each["where"] == SITE]
            missed += not found
            for each in found or [{"code": "NOTHING", "severity": "", "channels": []}]:
                code, channels = each["code"], ", ".join(map(str, each["channels"]))
                print(f"| {title} | `{code}` | {each['severity']} | {channels} |", flush=True)
    return int(missed > 0)


def spoilt(net: nn.Module) -> nn.Module:
    """A copy whose moving averages have drifted by a deviation and by a factor of e."""
    net = copy.deepcopy(net)
    random = torch.Generator().manual_seed(0)
    for norm in norms(net):
        mean: Any = norm.running_mean
        variance: Any = norm.running_var
        mean += variance.sqrt() * torch.randn(mean.shape, generator=random)
        variance *= torch.randn(variance.shape, generator=random).exp()
    return net


def print_averages() -> int:
    """1 if a network does not get back what it was able to, within half a percent."""
    print("| network | batch norms | trained | spoilt | recalibrated | means moved by up to | variances became |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    worse = False
    for name in NETS:
        if not (MODELS / f"{name}.pt").exists():
            continue
        net, split = trained(name), load(name)
        inputs = tuple(map(torch.from_numpy, split.test_x))

        def right(module: nn.Module, name: str = name, inputs: Any = inputs, labels: Any = split.test_y) -> float:
            with torch.no_grad():
                return float(accuracy(name, module(*inputs).numpy(), labels))

        drifted = spoilt(net)
        data = list(zip(*(torch.from_numpy(array).split(BATCH) for array in split.train_x), strict=True))
        result = bnfold.recalibrate(drifted, data)
        layers = result.report.layers
        before, stale, after = right(net), right(drifted), right(result.model)
        worse = worse or after < before - 0.005
        moved = max(layer.mean_max for layer in layers)
        low = min(layer.variance_low for layer in layers)
        high = max(layer.variance_high for layer in layers)
        print(
            f"| `{name}` | {len(layers)} | {before:.1%} | {stale:.1%} | {after:.1%} "
            f"| {moved:.3g} σ | {low:.3g} to {high:.3g} times |",
            flush=True,
        )
    return int(worse)


if __name__ == "__main__":
    sys.exit({"faults": print_faults, "averages": print_averages}[sys.argv[1]]())
