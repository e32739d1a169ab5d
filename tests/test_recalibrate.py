"""Statistics from data: what each batch norm reads in the corrected network, against an independent formula.

The formula here is the plain one: hook one batch norm, concatenate all that it reads in float64, take numpy's mean and
unbiased variance, store them, and go on to the next.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_models import networks as networks
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bnfold
from bnfold.errors import BnfoldError, Rejected, UsageError
from bnfold.moments import DriftReport
from bnfold.verify.result import Verdict

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
Statistic = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


class Branches(nn.Module):
    """A trunk, two parallel branches, and a batch norm behind their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.left, self.left_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.right_norm = nn.BatchNorm2d(4)
        self.last = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.stem(x)))
        return self.last(torch.relu(self.left_norm(self.left(x)) + self.right_norm(x)))


class Twins(nn.Module):
    """One trunk called on two inputs, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm2d(4))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.trunk(one) - self.trunk(other) ** 2


def chain(*shared: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*copy.deepcopy(shared))


def images(seed: int, *shape: int) -> Tensor:
    """Numbers that are far from what fresh statistics say, and differ from batch to batch."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random) * (1 + seed) + 3 - seed


@dataclass(frozen=True)
class Row:
    """A network, its batches, its batch norms in an order that corrects what is before each, and the passes allowed."""

    name: str
    make: Callable[[], nn.Module]
    data: list[Any]
    order: tuple[str, ...]
    passes: int


IMAGES = [images(seed, 2 + seed, 3, 7, 6) for seed in range(3)]
PAIRS = [(image, 2 - image.flip(0)) for image in IMAGES]
CONV = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
TWINS = ("trunk.1", "trunk.4")
ROWS = [
    Row("two dimensions", chain(*CONV), IMAGES, ("1", "4"), 3),
    Row("one batch is corrected as it goes", chain(*CONV), IMAGES[2:], ("1", "4"), 1),
    Row("synchronised", chain(nn.SyncBatchNorm(3), nn.ReLU(), nn.SyncBatchNorm(3)), IMAGES, ("0", "2"), 3),
    Row(
        "a table",
        chain(nn.BatchNorm1d(5), nn.Linear(5, 4), nn.ReLU(), nn.BatchNorm1d(4)),
        [images(seed, 4, 5) for seed in range(3)],
        ("0", "3"),
        3,
    ),
    Row("a sequence", chain(nn.BatchNorm1d(4)), [images(seed, 2, 4, 9) for seed in range(2)], ("0",), 2),
    Row("three dimensions", chain(nn.BatchNorm3d(2)), [images(seed, 2, 2, 3, 4, 5) for seed in range(2)], ("0",), 2),
    Row("a batch of one row first", chain(nn.BatchNorm1d(4)), [images(1, 1, 4), images(2, 3, 4)], ("0",), 2),
    Row("written in place", chain(nn.Hardtanh(-3.0, 3.0, inplace=True), nn.BatchNorm2d(3)), IMAGES, ("1",), 2),
    Row("an empty batch", chain(*CONV), [IMAGES[0][:0], *IMAGES], ("1", "4"), 3),
    Row("branches are measured in one pass", Branches, IMAGES, ("first", "left_norm", "right_norm", "last"), 4),
    Row("shared, by position", Twins, PAIRS, TWINS, 3),
    Row("shared, by name", Twins, [{"other": other, "one": one} for one, other in PAIRS], TWINS, 3),
    Row("shared, one batch", Twins, [list(PAIRS[0])], TWINS, 3),
]


def call(net: nn.Module, batch: Any) -> Any:
    batch = copy.deepcopy(batch)
    if isinstance(batch, dict):
        return net(**batch)
    return net(*batch) if isinstance(batch, list | tuple) else net(batch)


def reads(net: nn.Module, name: str, data: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and unbiased variance of all that this batch norm reads."""
    seen: list[NDArray[np.float64]] = []

    def hook(_: nn.Module, args: tuple[Tensor], named: dict[str, Tensor]) -> None:
        channels_last = (*args, *named.values())[0].double().movedim(1, -1)
        seen.append(channels_last.reshape(-1, channels_last.shape[-1]).numpy().copy())

    handle = net.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        for batch in data:
            call(net, batch)
    handle.remove()
    values = np.concatenate(seen)
    return values.mean(axis=0), values.var(axis=0, ddof=1)


def expected(net: nn.Module, order: tuple[str, ...], data: list[Any]) -> Statistic:
    net = copy.deepcopy(net)
    found = {}
    for name in order:
        found[name] = reads(net, name, data)
        norm: Any = net.get_submodule(name)
        for buffer, value in zip((norm.running_mean, norm.running_var), found[name], strict=True):
            buffer.copy_(torch.from_numpy(value))
    return found


def distance(net: nn.Module, statistic: Statistic) -> float:
    """The largest difference of a stored mean or deviation, in deviations."""
    worst = 0.0
    for name, (mean, variance) in statistic.items():
        norm: Any = net.get_submodule(name)
        sigma = np.sqrt(variance + norm.eps)
        stored = np.sqrt(norm.running_var.double().numpy() + norm.eps)
        worst = max(worst, *(np.abs(norm.running_mean.double().numpy() - mean) / sigma), *np.abs(stored / sigma - 1))
    return float(worst)


def in_bytes(net: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_statistics_are_those_of_all_that_is_read_in_the_corrected_network(row: Row) -> None:
    torch.manual_seed(0)
    for net, data, limit in (
        (row.make().eval(), row.data, 2e-6),
        (row.make().double().eval(), pytree.tree_map(Tensor.double, row.data), 1e-13),
    ):
        before, given = in_bytes(net), copy.deepcopy(data)
        result = bnfold.recalibrate(net, data)
        right = expected(net, row.order, data)
        assert distance(result.model, right) < limit
        assert distance(net, right) > 0.5
        assert {layer.name for layer in result.report.layers} == set(row.order)
        assert result.report.passes <= row.passes
        assert in_bytes(net) == before
        assert all(map(torch.equal, pytree.tree_leaves(data), pytree.tree_leaves(given)))


def test_less_than_that_is_seen_by_the_same_measure() -> None:
    """Layers before it as they were, the mean of the batches' own statistics, a biased variance: each is far."""
    net = ROWS[0].make().eval()
    right = expected(net, ("1", "4"), IMAGES)

    def wrong(mean: Any, variance: Any) -> float:
        spoilt = copy.deepcopy(bnfold.recalibrate(net, IMAGES).model)
        norm: Any = spoilt.get_submodule("4")
        norm.running_mean.copy_(torch.as_tensor(mean))
        norm.running_var.copy_(torch.as_tensor(variance))
        return distance(spoilt, right)

    corrected = bnfold.recalibrate(net, IMAGES).model
    each = [reads(corrected, "4", [batch]) for batch in IMAGES]
    mean, variance = right["4"]
    assert wrong(mean, variance) < 2e-6
    assert wrong(*reads(net, "4", IMAGES)) > 0.1
    assert wrong(*(np.mean([statistic[i] for statistic in each], axis=0) for i in (0, 1))) > 0.05
    assert wrong(mean, variance * (1 - 1 / 200)) > 1e-3


def test_only_statistics_change() -> None:
    net = Twins().eval()
    net.trunk[0].weight.requires_grad_(False)
    net.trunk[4].momentum = None
    counters = [part.num_batches_tracked for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    for counter in counters:
        counter.fill_(7)
    result = bnfold.recalibrate(net, PAIRS)
    assert isinstance(result.model, Twins)
    for name, tensor in result.model.state_dict().items():
        changed = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(tensor, net.state_dict()[name]) != changed, name
        assert (tensor.dtype, tensor.shape) == (net.state_dict()[name].dtype, net.state_dict()[name].shape)
    for one, other in zip(net.parameters(), result.model.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad
        assert one.grad is None
        assert one.data_ptr() != other.data_ptr()
    assert result.model.trunk[1].num_batches_tracked == 0
    assert result.model.trunk[4].num_batches_tracked == 2 * len(PAIRS)
    assert not any(part.training or part._forward_pre_hooks for part in result.model.modules())
    assert torch.is_grad_enabled()


def test_what_is_right_stays_and_a_loader_may_shuffle() -> None:
    dataset = torch.utils.data.TensorDataset(images(1, 40, 3, 7, 6))
    data = torch.utils.data.DataLoader(dataset, batch_size=7, shuffle=True)
    once = bnfold.recalibrate(chain(*CONV)().eval(), data).model
    again = bnfold.recalibrate(once, data)
    assert all(layer.mean_max < 1e-6 and abs(layer.variance_high - 1) < 1e-5 for layer in again.report.layers)


def test_a_first_batch_that_is_not_like_the_rest_does_no_harm() -> None:
    data = [torch.zeros(2, 3, 7, 6), *IMAGES]
    blocks = [part for _ in range(12) for part in (nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))]
    torch.manual_seed(0)
    net = nn.Sequential(*blocks).eval()
    order = tuple(str(number) for number in range(0, 36, 3))
    assert distance(bnfold.recalibrate(net, data).model, expected(net, order, data)) < 1e-5


class Odd(nn.Module):
    """One batch norm that works, one that stores nothing, one that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.batch = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
        self.idle = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.batch(self.good(input=x))


def test_what_cannot_be_measured_is_left_and_named() -> None:
    net = Odd().eval()
    result = bnfold.recalibrate(net, IMAGES)
    assert [layer.name for layer in result.report.layers] == ["good"]
    assert [(row.name, row.code) for row in result.report.left] == [
        ("batch", "batch-statistics"),
        ("idle", "never-called"),
    ]
    assert distance(result.model, expected(net, ("good",), IMAGES)) < 2e-6
    assert torch.equal(result.model.idle.running_mean, net.idle.running_mean)
    assert result.model.batch.running_mean is None


# refusals


class Feeding(nn.Module):
    """A batch norm that reads what it made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(self.norm(x)))


class Changing:
    """Other numbers each time it is read."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.randn(2, 3, 7, 6) for _ in range(2)])


class Disguised:
    """An iterable that holds one iterator, which ends."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = iter(batches)

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches


def evaluated(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts).eval()


def partly_training() -> nn.Module:
    net = evaluated(nn.BatchNorm2d(3), nn.Dropout())
    net[1].train()
    return net


def exported() -> nn.Module:
    return torch.export.export(evaluated(nn.BatchNorm2d(3)), (IMAGES[0],)).module()


GOOD = nn.BatchNorm2d(3)
HUGE = torch.full((1, 3, 2, 2), 1e30) * torch.tensor([1.0, -1.0])
REFUSED: list[tuple[str, Callable[[], Any], Callable[[], Any], type[BnfoldError], str, str]] = [
    ("a path", lambda: "model.pt", lambda: IMAGES, UsageError, "usage", "not str"),
    ("train mode", lambda: nn.Sequential(GOOD), lambda: IMAGES, UsageError, "usage", "the module is in train mode"),
    ("a part in train mode", partly_training, lambda: IMAGES, UsageError, "usage", "'1' is in train mode"),
    ("lazy", lambda: evaluated(nn.LazyBatchNorm2d()), lambda: IMAGES, UsageError, "usage", "lazy"),
    ("no batch norm", lambda: evaluated(nn.ReLU()), lambda: IMAGES, UsageError, "usage", "no nn.BatchNorm"),
    ("exported", exported, lambda: IMAGES, UsageError, "usage", "no nn.BatchNorm"),
    ("an iterator", lambda: evaluated(GOOD), lambda: iter(IMAGES), UsageError, "usage", "only once"),
    ("one tensor", lambda: evaluated(GOOD), lambda: IMAGES[0], UsageError, "usage", "not one tensor"),
    ("a dict", lambda: evaluated(GOOD), lambda: {"x": IMAGES[0]}, UsageError, "usage", "not dict"),
    ("a number", lambda: evaluated(GOOD), lambda: 3, UsageError, "usage", "not int"),
    ("no batch", lambda: evaluated(GOOD), list, UsageError, "usage", "no batch"),
    ("text", lambda: evaluated(GOOD), lambda: ["image"], UsageError, "usage", "not str"),
    ("labels", lambda: evaluated(GOOD), lambda: [(IMAGES[0], 1)], UsageError, "usage", "does not fit"),
    ("another shape", lambda: evaluated(GOOD), lambda: [torch.ones(3)], UsageError, "usage", "does not fit"),
    (
        "one value",
        lambda: evaluated(nn.BatchNorm1d(3)),
        lambda: [IMAGES[0][:1, :, 0, 0]],
        UsageError,
        "too-few-values",
        "'0'",
    ),
    ("ended", lambda: evaluated(GOOD), lambda: Disguised(IMAGES), UsageError, "usage", "no batch"),
    ("NaN", lambda: evaluated(GOOD), lambda: [IMAGES[0] / 0 * 0], Rejected, "non-finite", "'0'"),
    ("too large", lambda: evaluated(nn.ReLU(), GOOD), lambda: [HUGE], Rejected, "non-finite", "'1'"),
    ("changing data", lambda: evaluated(GOOD), Changing, Rejected, "unsettled", "'0'"),
    ("feeds itself", lambda: Feeding().eval(), lambda: IMAGES, Rejected, "unsettled", "'norm'"),
]


@pytest.mark.parametrize(
    ("make", "data", "kind", "code", "words"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_is_refused_says_why_and_what_to_do(
    make: Callable[[], Any], data: Callable[[], Any], kind: type[BnfoldError], code: str, words: str
) -> None:
    net, batches = make(), data()
    with pytest.raises(kind, match=words) as caught:
        bnfold.recalibrate(net, batches)
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_compiled_module_is_measured_too() -> None:
    net = chain(*CONV)().eval()
    compiled: Any = torch.compile(net, backend="eager")
    compiled(IMAGES[0])
    result = bnfold.recalibrate(compiled, IMAGES)
    assert distance(result.model._orig_mod, expected(net, ("1", "4"), IMAGES)) < 2e-6


# a trained network


def spoilt(net: nn.Module) -> nn.Module:
    """A copy whose moving averages have drifted by a deviation and by a factor of e."""
    net = copy.deepcopy(net)
    random = torch.Generator().manual_seed(0)
    for norm in [part for part in net.modules() if isinstance(part, NORMS)]:
        mean: Any = norm.running_mean
        variance: Any = norm.running_var
        mean += variance.sqrt() * torch.randn(mean.shape, generator=random)
        variance *= torch.randn(variance.shape, generator=random).exp()
    return net


# The share of right answers of the trained network, of the spoilt one and of the recalibrated one, and what folds.
@pytest.mark.parametrize(
    ("name", "trained", "stale", "restored", "folds"),
    [
        ("digits_mlp", 0.9778, 0.6444, 0.9778, 3),
        pytest.param("digits_resnet", 0.9956, 0.2533, 0.9956, 8, marks=pytest.mark.slow),
    ],
)
def test_a_network_with_stale_statistics_is_restored_and_its_fold_is_proved(
    name: str, trained: float, stale: float, restored: float, folds: int, networks: Any, models: Path
) -> None:
    nets, tasks = networks
    net = nets.NETS[name]().eval()
    net.load_state_dict(bnfold.load(models / f"{name}.pt").state_dict)
    split = tasks.load(name)
    inputs = tuple(torch.from_numpy(array) for array in split.test_x)

    def accuracy(module: nn.Module) -> float:
        with torch.no_grad():
            return round(tasks.accuracy(name, module(*inputs).numpy(), split.test_y), 4)

    drifted = spoilt(net)
    data = list(zip(*(torch.from_numpy(array).split(450) for array in split.train_x), strict=True))
    result = bnfold.recalibrate(drifted, data)
    assert (accuracy(net), accuracy(drifted)) == (trained, stale)
    assert accuracy(result.model) == pytest.approx(restored, abs=0.003)
    assert max(layer.mean_max for layer in result.report.layers) > 1
    examples = tuple(tensor[:2] for tensor in inputs)
    folded = bnfold.fold(result.model, examples)
    assert folded.report.folded == folds
    assert bnfold.check(result.model, folded.model, examples, level="static").verdict is Verdict.PROVED


def test_a_report_is_short_and_is_json_even_where_the_old_statistics_were_broken() -> None:
    net: Any = evaluated(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    net[1].running_var[2] = float("nan")
    result = bnfold.recalibrate(net, IMAGES)
    assert torch.isfinite(result.model[1].running_var).all()
    row = json.loads(json.dumps(result.report.to_dict(), allow_nan=False))
    assert row["passes"] == 3
    assert (row["layers"][1]["name"], row["layers"][1]["variance_high"], row["layers"][1]["worst_channel"]) == (
        "1",
        "nan",
        2,
    )
    assert row["layers"][0]["count"] == sum(batch.numel() for batch in IMAGES) // 3
    assert repr(result).startswith(
        "Recalibrated(Sequential, DriftReport(2 of 2 batch norms in 3 passes; most in 1: means"
    )
    assert len(repr(result)) < 200
    assert repr(DriftReport((), (), 1)) == "DriftReport(0 of 0 batch norms in 1 pass)"
