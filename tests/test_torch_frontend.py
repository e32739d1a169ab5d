"""The torch dialect: one row per fold or refusal, in both forms that torch has for a graph.

Each row is a small module. It is folded as an exported program and as a traced GraphModule; both must give the outcome
that the row names, agree with the original in float64, and leave the original as it was.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from bnfold.errors import Rejected, UsageError
from bnfold.folding import FoldOptions, FoldReport
from bnfold.frontends import torch as frontend
from bnfold.frontends.torch.aliasing import mutated
from bnfold.frontends.torch.rounding import rounded
from bnfold.graph import Reason

Expected = tuple[str | Reason, ...]
PRODUCER, CONSUMER = "into-producer", "into-consumer"


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and weights that no mistake leaves unchanged, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        mean, variance = getattr(part, "running_mean", None), getattr(part, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            mean.copy_(torch.randn(mean.shape, generator=generator))
            variance.copy_(torch.rand(variance.shape, generator=generator) + 0.5)
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.weight is not None:
            part.weight.data.copy_(torch.randn(part.weight.shape, generator=generator) + 0.1)
            part.bias.data.copy_(torch.randn(part.bias.shape, generator=generator))
    return module.eval()


class Function(nn.Module):
    """A module of named parts whose forward pass is a function of itself and the data."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *data: Tensor) -> Any:
        return self.run(self, *data)


def image(channels: int = 4, size: int = 6) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def outcomes(report: FoldReport) -> Expected:
    return tuple(o.rule if o.refusal is None else o.refusal.reason for o in report.outcomes)  # type: ignore[misc]


def flat(result: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def run(module: Callable[..., Any], *data: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return flat(module(*(tensor.clone() for tensor in data)))


def assert_equal(expected: list[Tensor], found: list[Tensor], limit: float = 1e-11) -> None:
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert one.isfinite().all(), "a reference that is not finite compares with nothing"
        assert (one - other).abs().max() <= limit * one.abs().max().clamp_min(1e-300)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_unchanged(module: nn.Module, before: dict[str, Tensor]) -> None:
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


@dataclass(frozen=True)
class Row:
    """A module, its data, and what becomes of its batch norms as a program and, if that differs, as a GraphModule."""

    name: str
    build: Callable[[], nn.Module]
    data: tuple[Tensor, ...]
    expected: Expected
    as_graph: Expected | None = None


def conv(inside: int = 4, outside: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, **options)


def bn(channels: int = 4, **options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)


def chain(*parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*copy.deepcopy(parts))


def function(body: Callable[..., Any], **parts: Any) -> Callable[[], nn.Module]:
    return lambda: Function(body, **copy.deepcopy(parts))


def _functional(m: Any, x: Tensor) -> Tensor:
    return functional.batch_norm(m.conv(x), m.mean, m.var, weight=m.scale, training=False, eps=1e-3)


def _view_mutation(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, :1].mul_(-1)
    return m.bn(y)


def _mutated_before_consumer(m: Any, x: Tensor) -> Tensor:
    y = torch.cat([x, x], 1)
    z = m.bn(y)
    y.mul_(2)
    return m.conv(z) + y.sum()


def _mutated_after(m: Any, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    y.add_(x)
    return y.relu_()


def _two_norms(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    return m.bn(y), m.other(y)


def _norm_is_output(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.bn(x)
    return y, m.conv(y)


def _matmul(m: Any, x: Tensor) -> Tensor:
    return m.bn(x @ m.weight)


def _left_matmul(m: Any, x: Tensor) -> Tensor:
    return m.bn(torch.matmul(m.weight, x))


def _addmm(m: Any, x: Tensor) -> Tensor:
    return m.bn(torch.addmm(m.bias, x, m.weight, alpha=2.5, beta=-0.5))


def _runtime_weight(m: Any, x: Tensor, w: Tensor) -> Tensor:
    return m.bn(functional.conv2d(x, w))


def _frozen(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.conv(x))


class FrozenBatchNorm2d(nn.Module):
    """The arithmetic of torchvision's module of this name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels, generator=generator) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scale = self.weight.reshape(shape) * (self.running_var.reshape(shape) + 1e-5).rsqrt()
        shift = self.bias.reshape(shape) - self.running_mean.reshape(shape) * scale
        return x * scale + shift


class NormAct(nn.BatchNorm2d):
    """A batch norm that applies its own activation."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return functional.relu(y, inplace=True)


class StandardisedConv(nn.Conv2d):
    """A convolution that normalises its own weight, with the operator of a batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        flattened = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(flattened, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return functional.conv2d(x, weight, self.bias)


def broken(channels: int = 4, **values: float) -> nn.Module:
    def build() -> nn.Module:
        module = perturbed(nn.Sequential(conv(), bn(channels)))
        for name, value in values.items():
            getattr(module[1], name).data[1] = value
        return module

    return build  # type: ignore[return-value]


def tied() -> nn.Module:
    module = nn.Sequential(conv(kernel=1), conv(kernel=1), bn(), nn.ReLU(), conv(kernel=1), bn())
    module[4].weight = module[1].weight
    return module


UNKNOWN = Reason.AXIS_UNKNOWN

ROWS = (
    Row("conv", chain(conv(), bn()), (image(),), (PRODUCER,)),
    Row("conv without bias", chain(conv(bias=False), bn()), (image(),), (PRODUCER,)),
    Row("norm without affine", chain(conv(), bn(affine=False)), (image(),), (PRODUCER,)),
    Row("grouped conv", chain(conv(4, 8, groups=2), bn(8)), (image(),), (PRODUCER,)),
    Row("depthwise conv", chain(conv(4, 4, groups=4, padding=1), bn()), (image(),), (PRODUCER,)),
    Row("padding same", chain(conv(padding="same"), bn()), (image(),), (PRODUCER,)),
    Row("reflected padding", chain(bn(), conv(padding=1, padding_mode="reflect")), (image(),), (CONSUMER,)),
    Row("conv1d", chain(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (vectors(2, 4, 9),), (PRODUCER,), (UNKNOWN,)),
    Row("conv3d", chain(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (vectors(2, 2, 4, 4, 4),), (PRODUCER,)),
    Row("sync batch norm", chain(conv(), nn.SyncBatchNorm(4)), (image(),), (PRODUCER,), (UNKNOWN,)),
    Row("transposed", chain(nn.ConvTranspose2d(4, 4, 2, stride=2), bn()), (image(),), (PRODUCER,)),
    Row("transposed, groups", chain(nn.ConvTranspose2d(4, 4, 3, groups=2), bn()), (image(),), (PRODUCER,)),
    Row("transposed, 1d", chain(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6)), (vectors(2, 4, 9),), (PRODUCER,), (UNKNOWN,)),
    Row("before transposed", chain(bn(), nn.ConvTranspose2d(4, 4, 2)), (image(),), (Reason.PADDED_BORDER,)),
    Row("before conv", chain(bn(), conv()), (image(),), (CONSUMER,)),
    Row("before grouped conv", chain(bn(), conv(groups=2, bias=False)), (image(),), (CONSUMER,)),
    Row("before padded conv", chain(bn(), conv(padding=1)), (image(),), (Reason.PADDED_BORDER,)),
    Row("before same-padded conv", chain(bn(), conv(padding="same")), (image(),), (Reason.PADDED_BORDER,)),
    Row("before same-padded 1x1", chain(bn(), conv(kernel=1, padding="same")), (image(),), (CONSUMER,)),
    Row("linear", chain(nn.Linear(5, 3), nn.BatchNorm1d(3)), (vectors(2, 5),), (PRODUCER,), (UNKNOWN,)),
    Row("flattened linear", chain(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3)), (vectors(2, 3, 4),), (PRODUCER,)),
    Row("sequence of equal sizes", chain(nn.Linear(5, 3), nn.BatchNorm1d(3)), (vectors(2, 3, 5),), (Reason.AXIS_DIFFERS,), (UNKNOWN,)),
    Row("before linear", chain(nn.Flatten(), nn.BatchNorm1d(5), nn.Linear(5, 3)), (vectors(2, 5),), (CONSUMER,)),
    Row("in-place relu between", chain(nn.Flatten(), nn.Linear(5, 5), nn.ReLU(inplace=True), nn.BatchNorm1d(5), nn.Linear(5, 3)), (vectors(2, 5),), (CONSUMER,)),
    Row("unbatched conv", chain(conv(4, 4, 1), nn.BatchNorm1d(4)), (vectors(4, 4, 4),), (Reason.AXIS_DIFFERS,), (UNKNOWN,)),
    Row("functional", function(_functional, conv=conv(padding=1), mean=vectors(4), var=vectors(4).abs() + 0.1, scale=vectors(4)), (image(),), (PRODUCER,), (UNKNOWN,)),
    Row("frozen norm", function(_frozen, conv=conv(), bn=FrozenBatchNorm2d(4)), (image(),), (PRODUCER,), (UNKNOWN,)),
    Row("norm with activation", chain(conv(), NormAct(4), conv(), bn()), (image(),), (PRODUCER, PRODUCER), (UNKNOWN, PRODUCER)),
    Row("standardised weight", chain(StandardisedConv(4, 4, 3), bn()), (image(),), (PRODUCER,)),
    Row("two norms in a row", chain(conv(), bn(), bn()), (image(),), (PRODUCER, PRODUCER)),
    Row("norms around a conv", chain(bn(), conv(), bn()), (image(),), (CONSUMER, PRODUCER)),
    Row("norm alone", chain(bn()), (image(),), (Reason.IS_GRAPH_OUTPUT,)),
    Row("before relu", chain(conv(), nn.ReLU(), bn(), nn.ReLU()), (image(),), (Reason.READ_BY_NONLINEARITY,)),
    Row("two norms on one conv", function(_two_norms, conv=conv(), bn=bn(), other=bn()), (image(),), (Reason.SHARED_OUTPUT, Reason.SHARED_OUTPUT)),
    Row("conv is an output", function(lambda m, x: (m.conv(x), m.bn(m.conv(x)))[::-1], conv=conv(), bn=bn()), (image(),), (PRODUCER,)),
    Row("value is an output", function(lambda m, x: (lambda y: (y, m.bn(y)))(m.conv(x)), conv=conv(), bn=bn()), (image(),), (Reason.IS_GRAPH_OUTPUT,)),
    Row("norm is an output", function(_norm_is_output, conv=conv(), bn=bn()), (image(),), (Reason.IS_GRAPH_OUTPUT,)),
    Row("conv called twice, one norm", function(lambda m, x: m.bn(m.conv(x)) + m.conv(x + 1), conv=conv(), bn=bn()), (image(),), (PRODUCER,)),
    Row("siamese", function(lambda m, x: m.bn(m.conv(x)) - m.bn(m.conv(x + 1)), conv=conv(), bn=bn()), (image(),), (PRODUCER, PRODUCER)),
    Row("conv called twice, two norms", function(lambda m, x: m.bn(m.conv(x)) + m.other(m.conv(x + 1)), conv=conv(), bn=bn(), other=bn()), (image(),), (PRODUCER, PRODUCER)),
    Row("tied weights", tied, (image(),), (PRODUCER, PRODUCER)),
    Row("view written in place", function(_view_mutation, conv=conv(), bn=bn()), (image(),), (Reason.MUTATED_IN_PLACE,)),
    Row("data written behind the norm", function(_mutated_before_consumer, conv=conv(8), bn=bn(8)), (image(),), (Reason.MUTATED_IN_PLACE,)),
    Row("result written in place", function(_mutated_after, conv=conv(padding=1), bn=bn()), (image(),), (PRODUCER,)),
    Row("matmul", function(_matmul, weight=nn.Parameter(vectors(5, 3)), bn=nn.BatchNorm1d(3)), (vectors(2, 5),), (PRODUCER,), (UNKNOWN,)),
    Row("constant on the left", function(_left_matmul, weight=nn.Parameter(vectors(3, 3)), bn=nn.BatchNorm1d(3)), (vectors(3, 3),), (Reason.NO_LINEAR_PRODUCER,)),
    Row("addmm", function(_addmm, weight=nn.Parameter(vectors(5, 3)), bias=nn.Parameter(vectors(1, 3)), bn=nn.BatchNorm1d(3)), (vectors(2, 5),), (PRODUCER,), (UNKNOWN,)),
    Row("addmm, one bias per row", function(_addmm, weight=nn.Parameter(vectors(5, 2)), bias=nn.Parameter(vectors(2, 1)), bn=nn.BatchNorm1d(2)), (vectors(2, 5),), (Reason.NOT_PER_CHANNEL,)),
    Row("weight from outside", function(_runtime_weight, bn=bn()), (image(), vectors(4, 4, 1, 1)), (Reason.PARAMETER_NOT_CONSTANT,)),
    Row("batch statistics", chain(conv(), bn(track_running_stats=False)), (image(),), (Reason.BATCH_STATISTICS,)),
    Row("variance of minus epsilon", broken(running_var=-1e-5), (image(),), (Reason.VARIANCE_NOT_POSITIVE,)),
    Row("mean not finite", broken(running_mean=float("nan")), (image(),), (Reason.NON_FINITE,)),
    Row("scale infinite", broken(weight=float("inf")), (image(),), (Reason.NON_FINITE,)),
)  # fmt: skip

UNCOMPARABLE = {"variance of minus epsilon", "mean not finite", "scale infinite"}


def build(row: Row) -> nn.Module:
    module = row.build()
    return module.eval() if row.name in UNCOMPARABLE else perturbed(module)


def double(data: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in data)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_as_a_program(row: Row) -> None:
    module = build(row).double()
    data, before = double(row.data), state(module)
    program = frontend.capture(module, data)
    folded, report = frontend.fold_program(program)
    assert outcomes(report) == row.expected
    assert_unchanged(module, before)
    assert list(program.state_dict) == list(before)
    if row.name not in UNCOMPARABLE:
        assert_equal(run(module, *data), run(folded.module(), *data))
    left = sum(isinstance(outcome, Reason) for outcome in row.expected)
    assert frontend.facts(folded).batch_norms == left


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_as_a_graph_module(row: Row) -> None:
    module = build(row).double()
    data, before = double(row.data), state(module)
    traced = fx.symbolic_trace(module)
    folded, report = frontend.fold_graph_module(traced)
    assert outcomes(report) == (row.as_graph or row.expected)
    assert_unchanged(module, before)
    if row.name not in UNCOMPARABLE:
        assert_equal(run(module, *data), run(folded, *data))
        assert_equal(run(module, *data), run(traced, *data), limit=0)


@pytest.mark.parametrize("row", [row for row in ROWS if row.as_graph], ids=lambda row: row.name)
def test_example_inputs_tell_the_ranks(row: Row) -> None:
    module = build(row).double()
    data = double(row.data)
    folded, report = frontend.fold_graph_module(fx.symbolic_trace(module), FoldOptions(), data)
    assert outcomes(report) == row.expected
    assert_equal(run(module, *data), run(folded, *data))
