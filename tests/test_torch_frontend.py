"""The torch dialect: one row per fold or refusal, in both forms that torch has for a graph.

Each row is a small module. It is folded as an exported program and as a traced GraphModule; both must give the outcome
that the row names, agree with the original in float64, and leave the original as it was.
"""

from __future__ import annotations

import copy
import io
import operator
import pickle
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from bnfold.errors import BnfoldError, Rejected, UsageError
from bnfold.folding import FoldOptions
from bnfold.frontends import torch as frontend
from bnfold.frontends.torch.aliasing import mutated
from bnfold.frontends.torch.program import ProgramShelf, open_program
from bnfold.frontends.torch.rounding import rounded
from bnfold.graph import Reason
from bnfold.outcome import FoldReport

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, in `program.module()`

Expected = tuple[str | Reason, ...]
PRODUCER, CONSUMER = "into-producer", "into-consumer"


@pytest.fixture(autouse=True)
def _same_weights_each_time() -> None:
    torch.manual_seed(0)


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


class Parts(nn.Module):
    """A module of named parts whose forward pass is a function of itself and the data."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


class Unary(Parts):
    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Binary(Parts):
    def forward(self, x: Tensor, w: Tensor) -> Any:
        return self.run(self, x, w)


def image(channels: int = 4, size: int = 6) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def outcomes(report: FoldReport) -> Expected:
    """What became of the batch norms."""
    return tuple(o.rule if o.refusal is None else o.refusal.reason for o in report.norms)  # type: ignore[misc]


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
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(np.array_equal(after[name].numpy(), before[name].numpy(), equal_nan=True) for name in before)
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
    kind = Binary if body is _runtime_weight else Unary
    return lambda: kind(body, **copy.deepcopy(parts))


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
ROOMY = FoldOptions(max_growth=10)
APART = FoldOptions(merge="never")

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
    Row(
        "transposed, 1d",
        chain(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6)),
        (vectors(2, 4, 9),),
        (PRODUCER,),
        (UNKNOWN,),
    ),
    Row("before transposed", chain(bn(), nn.ConvTranspose2d(4, 4, 2)), (image(),), (Reason.PADDED_BORDER,)),
    Row("before conv", chain(bn(), conv()), (image(),), (CONSUMER,)),
    Row("before grouped conv", chain(bn(), conv(groups=2, bias=False)), (image(),), (CONSUMER,)),
    Row("before padded conv", chain(bn(), conv(padding=1)), (image(),), (Reason.PADDED_BORDER,)),
    Row("before same-padded conv", chain(bn(), conv(padding="same")), (image(),), (Reason.PADDED_BORDER,)),
    Row("before same-padded 1x1", chain(bn(), conv(kernel=1, padding="same")), (image(),), (CONSUMER,)),
    Row("linear", chain(nn.Linear(5, 3), nn.BatchNorm1d(3)), (vectors(2, 5),), (PRODUCER,), (UNKNOWN,)),
    Row("flattened linear", chain(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3)), (vectors(2, 3, 4),), (PRODUCER,)),
    Row(
        "linear, transpose, norm of equal sizes",
        function(lambda m, x: m.bn(m.fc(x).transpose(1, 2)), fc=nn.Linear(5, 3), bn=nn.BatchNorm1d(3).eval()),
        (vectors(2, 3, 5),),
        (PRODUCER,),
        (UNKNOWN,),
    ),
    Row(
        "linear, reshape, norm of equal sizes",
        function(lambda m, x: m.bn(m.fc(x).reshape(-1, 3, 2)), fc=nn.Linear(5, 3), bn=nn.BatchNorm1d(3).eval()),
        (vectors(2, 2, 5),),
        (Reason.CHANNELS_MIXED,),
        (UNKNOWN,),
    ),
    Row(
        "sequence of equal sizes",
        chain(nn.Linear(5, 3), nn.BatchNorm1d(3)),
        (vectors(2, 3, 5),),
        (Reason.AXIS_DIFFERS,),
        (UNKNOWN,),
    ),
    Row("before linear", chain(nn.Flatten(), nn.BatchNorm1d(5), nn.Linear(5, 3)), (vectors(2, 5),), (CONSUMER,)),
    Row(
        "in-place relu between",
        chain(nn.Flatten(), nn.Linear(5, 5), nn.ReLU(inplace=True), nn.BatchNorm1d(5), nn.Linear(5, 3)),
        (vectors(2, 5),),
        (CONSUMER,),
    ),
    Row(
        "unbatched conv",
        chain(conv(4, 4, 1), nn.BatchNorm1d(4)),
        (vectors(4, 4, 4),),
        (Reason.AXIS_DIFFERS,),
        (UNKNOWN,),
    ),
    Row(
        "functional",
        function(_functional, conv=conv(padding=1), mean=vectors(4), var=vectors(4).abs() + 0.1, scale=vectors(4)),
        (image(),),
        (PRODUCER,),
        (UNKNOWN,),
    ),
    Row("frozen norm", function(_frozen, conv=conv(), bn=FrozenBatchNorm2d(4)), (image(),), (PRODUCER,), (UNKNOWN,)),
    Row("norm with activation", chain(conv(), NormAct(4), conv(), bn()), (image(),), (PRODUCER, PRODUCER)),
    Row("standardised weight", chain(StandardisedConv(4, 4, 3), bn()), (image(),), (PRODUCER,)),
    Row("two norms in a row", chain(conv(), bn(), bn()), (image(),), (PRODUCER, PRODUCER)),
    Row("norms around a conv", chain(bn(), conv(), bn()), (image(),), (CONSUMER, PRODUCER)),
    Row("norm alone", chain(bn()), (image(),), (Reason.IS_GRAPH_OUTPUT,)),
    Row("before relu", chain(conv(), nn.ReLU(), bn(), nn.ReLU()), (image(),), (Reason.NO_LINEAR_PRODUCER,)),
    Row(
        "two norms on one conv",
        function(_two_norms, conv=conv(), bn=bn(), other=bn()),
        (image(),),
        (Reason.SHARED_OUTPUT, Reason.SHARED_OUTPUT),
    ),
    Row(
        "conv is an output",
        function(lambda m, x: (m.conv(x), m.bn(m.conv(x)))[::-1], conv=conv(), bn=bn()),
        (image(),),
        (PRODUCER,),
    ),
    Row(
        "value is an output",
        function(lambda m, x: (lambda y: (y, m.bn(y)))(m.conv(x)), conv=conv(), bn=bn()),
        (image(),),
        (Reason.IS_GRAPH_OUTPUT,),
    ),
    Row("norm is an output", function(_norm_is_output, conv=conv(), bn=bn()), (image(),), (Reason.IS_GRAPH_OUTPUT,)),
    Row(
        "conv called twice, one norm",
        function(lambda m, x: m.bn(m.conv(x)) + m.conv(x + 1), conv=conv(), bn=bn()),
        (image(),),
        (PRODUCER,),
    ),
    Row(
        "siamese",
        function(lambda m, x: m.bn(m.conv(x)) - m.bn(m.conv(x + 1)), conv=conv(), bn=bn()),
        (image(),),
        (PRODUCER, PRODUCER),
    ),
    Row(
        "conv called twice, two norms",
        function(lambda m, x: m.bn(m.conv(x)) + m.other(m.conv(x + 1)), conv=conv(), bn=bn(), other=bn()),
        (image(),),
        (PRODUCER, PRODUCER),
    ),
    Row("tied weights", tied, (image(),), (PRODUCER, PRODUCER)),
    Row(
        "view written in place", function(_view_mutation, conv=conv(), bn=bn()), (image(),), (Reason.MUTATED_IN_PLACE,)
    ),
    Row(
        "data written behind the norm",
        function(_mutated_before_consumer, conv=conv(8), bn=bn(8)),
        (image(),),
        (Reason.MUTATED_IN_PLACE,),
    ),
    Row("result written in place", function(_mutated_after, conv=conv(padding=1), bn=bn()), (image(),), (PRODUCER,)),
    Row(
        "matmul",
        function(_matmul, weight=nn.Parameter(vectors(5, 3)), bn=nn.BatchNorm1d(3)),
        (vectors(2, 5),),
        (PRODUCER,),
        (UNKNOWN,),
    ),
    Row(
        "constant on the left",
        function(_left_matmul, weight=nn.Parameter(vectors(3, 3)), bn=nn.BatchNorm1d(3)),
        (vectors(3, 3),),
        (Reason.NO_LINEAR_PRODUCER,),
    ),
    Row(
        "addmm",
        function(_addmm, weight=nn.Parameter(vectors(5, 3)), bias=nn.Parameter(vectors(1, 3)), bn=nn.BatchNorm1d(3)),
        (vectors(2, 5),),
        (PRODUCER,),
    ),
    Row(
        "addmm, one bias per row",
        function(_addmm, weight=nn.Parameter(vectors(5, 2)), bias=nn.Parameter(vectors(2, 1)), bn=nn.BatchNorm1d(2)),
        (vectors(2, 5),),
        (Reason.NOT_PER_CHANNEL,),
    ),
    Row(
        "weight from outside",
        function(_runtime_weight, bn=bn()),
        (image(), vectors(4, 4, 1, 1)),
        (Reason.PARAMETER_NOT_CONSTANT,),
    ),
    Row(
        "plain tensor as weight",
        function(lambda m, x: m.bn(functional.conv2d(x, m.held[0])), held=[vectors(4, 4, 1, 1).double()], bn=bn()),
        (image(),),
        (PRODUCER,),
    ),
    Row(
        "two functions in one module",
        function(
            lambda m, x: m.bn(functional.conv2d(m.bn(functional.conv2d(x, m.one)), m.two)),
            one=nn.Parameter(vectors(4, 4, 2, 2)),
            two=nn.Parameter(-vectors(4, 4, 1, 1)),
            bn=bn(),
        ),
        (image(),),
        (PRODUCER, PRODUCER),
    ),
    Row("batch statistics", chain(conv(), bn(track_running_stats=False)), (image(),), (Reason.BATCH_STATISTICS,)),
    Row("variance of minus epsilon", broken(running_var=-1.0), (image(),), (Reason.VARIANCE_NOT_POSITIVE,)),
    Row("mean not finite", broken(running_mean=float("nan")), (image(),), (Reason.NON_FINITE,)),
    Row("scale infinite", broken(weight=float("inf")), (image(),), (Reason.NON_FINITE,)),
)


@dataclass(frozen=True)
class Written:
    """A module that changes what its batch norm `bn`, the last one, or the operator before it has stored."""

    name: str
    body: Callable[[Any, Tensor], Tensor]
    tie: Callable[[Any], None] | None = None


def _trained_function(m: Any, x: Tensor) -> Tensor:
    functional.batch_norm(x, m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias, True, 0.3)
    return m.bn(m.conv(x))


def _trained_instances(m: Any, x: Tensor) -> Tensor:
    functional.instance_norm(x, m.bn.running_mean, m.bn.running_var, use_input_stats=True)
    return m.bn(m.conv(x))


def _trained_module(m: Any, x: Tensor) -> Tensor:
    m.other(x)
    return m.bn(m.conv(x))


def _share_statistics(m: Any) -> None:
    m.other.running_mean, m.other.running_var = m.bn.running_mean, m.bn.running_var
    m.other.train()


def _written_afterwards(m: Any, x: Tensor) -> Tensor:
    y = m.bn(functional.conv2d(x, m.conv.weight * m.factor))
    m.factor.mul_(0.5)
    return y


def _written_twin(m: Any, x: Tensor) -> Tensor:
    m.twin.weight.detach().mul_(1.1)
    return m.bn(m.conv(x))


def _share_weight(m: Any) -> None:
    m.conv.weight = m.twin.weight


WRITTEN = (
    Written("statistics, by a function", _trained_function),
    Written("statistics, by an instance norm", _trained_instances),
    Written("statistics, by another module", _trained_module, _share_statistics),
    Written("a factor of the weight", _written_afterwards),
    Written("the weight, by its other name", _written_twin, _share_weight),
)


def written(case: Written) -> nn.Module:
    parts = {"conv": conv(), "twin": conv(), "bn": bn(), "other": bn(), "factor": torch.ones(1)}
    module = perturbed(Unary(case.body, **parts))
    if case.tie is not None:
        case.tie(module)
    return module


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_what_the_model_writes_is_no_constant(case: Written) -> None:
    module = written(case)
    program = torch.export.export(copy.deepcopy(module), (image(),), strict=False)
    reports = [frontend.fold_program(program)[1], frontend.fold_module(module, (image(),))[1]]
    if case.tie is None:  # torch decomposes no program that writes a tied tensor
        reports.append(frontend.fold_program(program.run_decompositions())[1])
    tracer = fx.Tracer()
    tracer.proxy_buffer_attributes = True  # else the trace itself would write
    reports.append(frontend.fold_graph_module(fx.GraphModule(module, tracer.trace(module)))[1])
    assert [outcomes(report)[-1] for report in reports] == [Reason.PARAMETER_NOT_CONSTANT] * len(reports)


def test_a_written_input_of_a_functional_program_is_still_written() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.bn(m.conv(x))
        x.mul_(0.5)
        return y

    module = perturbed(Unary(body, conv=conv(), bn=bn())).double()
    program = torch.export.export(module, (image().double(),), strict=False).run_decompositions()
    folded, report = frontend.fold_program(program)
    assert outcomes(report) == (PRODUCER,)
    expected, found = image().double(), image().double()
    with torch.no_grad():
        assert_equal([program.module()(expected)], [folded.module()(found)])
    assert torch.equal(expected, found)
    assert torch.equal(expected, image().double() * 0.5)


def test_a_weight_that_loses_digits_on_its_way_is_refused() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.bn(functional.linear(x, m.weight.to(torch.bfloat16).float()))

    for weight, expected in ((vectors(3, 5), Reason.PARAMETER_NOT_CONSTANT), (torch.ones(3, 5), PRODUCER)):
        module = perturbed(Unary(body, weight=nn.Parameter(weight), bn=nn.BatchNorm1d(3)))
        _, report = frontend.fold_module(module, (vectors(2, 5),))
        assert outcomes(report) == (expected,)


def test_a_weight_of_other_bits_is_refused() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.bn(functional.linear(x, m.bits.view(torch.float32)))

    module = perturbed(Unary(body, bits=vectors(3, 5).view(torch.int32), bn=nn.BatchNorm1d(3)))
    program = frontend.capture(module, (vectors(2, 5),))
    _, report = frontend.fold_program(program)
    assert outcomes(report) == (Reason.PARAMETER_NOT_CONSTANT,)
    assert frontend.evidence(program).linears == {}


def _called_and_read(m: Any, x: Tensor) -> Tensor:
    return m.bn(functional.linear(x, m.linear.weight)) + m.linear(x)


def _called_beside(m: Any, x: Tensor) -> Tensor:
    return m.bn(functional.linear(x, m.weight)) + m.linear(x) + m.linear_1(x)


def _called_like_its_node(m: Any, x: Tensor) -> Tensor:
    return m.bn(functional.linear(x, m.linear))


def square() -> nn.Module:
    return nn.Linear(5, 5, bias=False)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (_called_and_read, {"linear": square()}),
        (_called_beside, {"linear": square(), "linear_1": square(), "weight": nn.Parameter(vectors(5, 5))}),
        (_called_like_its_node, {"linear": nn.Parameter(vectors(5, 5))}),
    ],
    ids=["module called", "modules of the node's name", "weight of the node's name"],
)
def test_a_new_bias_is_nobody_elses(body: Callable[..., Any], parts: dict[str, Any]) -> None:
    module = perturbed(Unary(body, **parts, bn=nn.BatchNorm1d(5))).double()
    data = vectors(2, 5).double()
    program = frontend.capture(module, (data,))
    for folded, report in (
        frontend.fold_program(program, ROOMY),
        frontend.fold_graph_module(fx.symbolic_trace(module), ROOMY, (data,)),
    ):
        assert outcomes(report) == (PRODUCER,)
        runnable = folded if isinstance(folded, nn.Module) else folded.module()
        assert_equal(run(module, data), run(runnable, data))


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
    folded, report = frontend.fold_program(program, ROOMY)
    assert outcomes(report) == row.expected
    assert_unchanged(module, before)
    assert set(program.state_dict) == set(before)
    if row.name not in UNCOMPARABLE:
        assert_equal(run(module, *data), run(folded.module(), *data))
    left = sum(isinstance(outcome, Reason) for outcome in row.expected)
    assert frontend.facts(folded).batch_norms == left


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_as_a_graph_module(row: Row) -> None:
    module = build(row).double()
    data, before = double(row.data), state(module)
    traced = fx.symbolic_trace(module)
    folded, report = frontend.fold_graph_module(traced, ROOMY)
    assert outcomes(report) == (row.as_graph or row.expected)
    assert_unchanged(module, before)
    if row.name not in UNCOMPARABLE:
        assert_equal(run(module, *data), run(folded, *data))
        assert_equal(run(module, *data), run(traced, *data), limit=0)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.as_graph and UNKNOWN in row.as_graph], ids=lambda row: row.name
)
def test_example_inputs_tell_the_ranks(row: Row) -> None:
    module = build(row).double()
    data = double(row.data)
    folded, report = frontend.fold_graph_module(fx.symbolic_trace(module), ROOMY, data)
    assert outcomes(report) == row.expected
    assert_equal(run(module, *data), run(folded, *data))


def small() -> nn.Module:
    """A padded conv and norm, an in-place activation, a conv without bias and norm, a classifier."""
    parts = (conv(3, 4, padding=1), bn(), nn.ReLU(inplace=True), conv(4, 6, bias=False), bn(6))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    return perturbed(nn.Sequential(*parts, *head))


def test_parameters_keep_their_names() -> None:
    program = frontend.capture(small(), (image(3),))
    folded, _ = frontend.fold_program(program)
    names = ["0.weight", "0.bias", "3.weight", "7.weight", "7.bias", "3.bias"]
    assert sorted(folded.state_dict) == sorted(names)
    assert folded.state_dict["7.weight"] is program.state_dict["7.weight"]
    assert [spec.name for spec in frontend.signature(folded).inputs] == [
        spec.name for spec in frontend.signature(program).inputs
    ]


def test_a_folded_program_does_all_that_programs_do() -> None:
    module = small().double()
    folded, report = frontend.fold_program(frontend.capture(module, (image(3).double(),)))
    assert report.folded == 2
    archive = io.BytesIO()
    torch.export.save(folded, archive)
    archive.seek(0)
    loaded = torch.export.load(archive)
    decomposed = loaded.run_decompositions()
    for batch in (1, 2, 5):
        data = torch.randn(batch, 3, 6, 6, dtype=torch.float64)
        for program in (folded, loaded, decomposed):
            assert_equal(run(module, data), run(program.module(), data))


def test_a_decomposed_program_folds_as_well() -> None:
    parts = (conv(3, 4, 1, bias=False), bn(), nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    module = perturbed(nn.Sequential(*parts)).double()
    data = image(3).double()
    program = frontend.capture(module, (data,)).run_decompositions()
    folded, report = frontend.fold_program(program, APART)
    assert outcomes(report) == (PRODUCER, PRODUCER)
    assert_equal(run(module, data), run(folded.module(), data))
    assert set(folded.state_dict) == {"0.weight", "0.bias", "3.weight", "3.bias", "5.weight", "5.bias"}


def test_extra_outputs_of_a_decomposed_norm_are_kept() -> None:
    program = frontend.capture(perturbed(nn.Sequential(conv(), bn())), (image(),)).run_decompositions()
    norm = next(node for node in program.graph.nodes if "batch_norm" in node.name)
    with program.graph.inserting_after(norm):
        saved = program.graph.call_function(operator.getitem, (norm, 1))
    program.graph.output_node().args = ((program.graph.output_node().args[0][0], saved),)  # type: ignore[index]
    graph, _ = open_program(ProgramShelf.of(program))
    assert graph.read(graph.affines()[0]) is Reason.EXTRA_OUTPUTS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once_from_float64(dtype: torch.dtype) -> None:
    module = small().to(dtype)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.float()
    program = frontend.capture(module, (image(3).to(dtype),))
    folded, report = frontend.fold_program(program)
    assert outcomes(report) == (PRODUCER, PRODUCER)
    weight, norm = module[0].weight.detach().double(), module[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    found = folded.state_dict["0.weight"]
    assert found.dtype is dtype
    assert folded.state_dict["3.bias"].dtype is dtype
    exact = (weight * scale.detach().reshape(-1, 1, 1, 1)).numpy()
    assert torch.equal(found, rounded(exact, dtype))


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 10), (torch.bfloat16, 7)])
def test_rounding_is_single(dtype: torch.dtype, digits: int) -> None:
    tie = 1 + 2.0 ** -(digits + 1)
    step = 2.0**-digits
    numbers = np.array([tie, tie + 2.0**-40, tie - 2.0**-40, -tie - 2.0**-40, 1.0, 0.0, 1e300, -1e300])
    expected = [1.0, 1 + step, 1.0, -1 - step, 1.0, 0.0, np.inf, -np.inf]
    assert rounded(numbers, dtype).tolist() == expected
    assert rounded(np.array([2.0**-24 * 1.5 + 2.0**-60]), torch.float16).item() == 2.0**-23


def test_overflow_is_refused_before_anything_is_written() -> None:
    module = perturbed(nn.Sequential(conv(), bn()))
    module[1].weight.data.fill_(1e5)
    module[0].half()
    program = frontend.capture(module, (image().half(),))
    _, report = frontend.fold_program(program)
    assert outcomes(report) == (Reason.OVERFLOW,)


def computed(name: str) -> nn.Module:
    wrap: dict[str, Callable[[nn.Module], nn.Module]] = {
        "weight norm": parametrizations.weight_norm,
        "old weight norm": torch.nn.utils.weight_norm,
        "spectral norm": parametrizations.spectral_norm,
        "old spectral norm": torch.nn.utils.spectral_norm,
        "pruning": lambda part: prune.l1_unstructured(part, "weight", 0.5),
    }
    return perturbed(nn.Sequential(wrap[name](conv()), bn(), nn.ReLU(), conv()))


COMPUTED = ("weight norm", "old weight norm", "spectral norm", "old spectral norm", "pruning")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_become_parameters(name: str) -> None:
    module, data = computed(name).double(), image().double()
    module(data)
    before, expected = state(module), run(module, data)
    program, report = frontend.fold_program(frontend.capture(module, (data,)))
    assert outcomes(report) == (PRODUCER,)
    assert set(program.state_dict) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert_equal(expected, run(program.module(), data))
    for example in ((data,), None):
        folded, report = frontend.fold_module(module, example)
        assert outcomes(report) == (PRODUCER,)
        assert_equal(expected, run(folded, data))
    assert_unchanged(module, before)
    assert_equal(expected, run(module, data), limit=0)


def test_a_hook_on_a_part_is_kept_and_refused() -> None:
    module, data, calls = small().double(), image(3).double(), []
    module[5] = nn.Sequential(nn.GELU(), nn.AdaptiveAvgPool2d(1))
    module[3].register_forward_hook(lambda part, given, result: calls.append(part) or result * 2)
    expected = run(module, data)
    for example in ((data,), None):
        calls.clear()
        folded, report = frontend.fold_module(module, example)
        assert outcomes(report) == (PRODUCER, Reason.READ_BY_NONLINEARITY)
        assert not calls, "folding runs no code of the caller"
        assert_equal(expected, run(folded, data))
        assert len(calls) == 1


@pytest.mark.parametrize("path", ["", "0"])
def test_a_hook_around_several_operators_is_refused(path: str) -> None:
    module = nn.Sequential(small(), nn.Identity()).eval()
    module.get_submodule(path).register_forward_pre_hook(lambda part, given: None)
    with pytest.raises(Rejected, match="hook") as caught:
        frontend.fold_module(module, (image(3),))
    assert caught.value.code == "hooked"


def test_a_hook_on_a_norm_of_a_graph_module_is_refused() -> None:
    module = small()
    module[1].register_forward_pre_hook(lambda part, given: None)
    _, report = frontend.fold_graph_module(fx.symbolic_trace(module))
    assert outcomes(report) == (Reason.HOOKED, PRODUCER)


def test_a_module_in_train_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"call model.eval\(\) first"):
        frontend.fold_module(small().train(), (image(3),))


def test_a_part_in_train_mode_keeps_its_batch_statistics() -> None:
    module = small()
    module[4].train()
    _, report = frontend.fold_module(module, (image(3),))
    assert outcomes(report) == (PRODUCER, Reason.BATCH_STATISTICS)
    _, report = frontend.fold_module(module)
    assert outcomes(report) == (PRODUCER, Reason.BATCH_STATISTICS)


def test_a_folded_module_is_a_module_of_its_own() -> None:
    module = small().double()
    before = state(module)
    folded, report = frontend.fold_module(module, (image(3, 8).double(),))
    assert report.left == 0
    assert not folded.eval().training
    for shape in ((1, 3, 8, 8), (5, 3, 11, 9)):
        data = torch.randn(shape, dtype=torch.float64)
        assert_equal(run(module, data), run(folded, data))
    for parameter in folded.parameters():
        parameter.data.fill_(0)
    assert_unchanged(module, before)
    assert module.training is False


def test_an_untraceable_module_asks_for_inputs() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.bn(m.conv(x)) if x.shape[0] > 0 else x

    module = perturbed(Unary(body, conv=conv(), bn=bn()))
    with pytest.raises(Rejected) as caught:
        frontend.fold_module(module)
    assert caught.value.hint is not None
    assert "example_inputs" in caught.value.hint
    _, report = frontend.fold_module(module, (image(),))
    assert report.left == 0


def test_inputs_that_do_not_fit_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        frontend.fold_module(small(), (image(5),))
    with pytest.raises(UsageError, match="do not fit"):
        frontend.fold_graph_module(fx.symbolic_trace(small()), FoldOptions(), (image(5),))


def test_a_folded_graph_module_has_fewer_parts_and_can_be_stored() -> None:
    module, data = small().double(), image(3).double()
    folded, _ = frontend.fold_graph_module(fx.symbolic_trace(module))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert isinstance(folded.get_submodule("3"), nn.Conv2d)
    for stored in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert_equal(run(module, data), run(stored, data))


def test_a_part_called_with_two_results_gets_a_copy() -> None:
    row = next(row for row in ROWS if row.name == "conv called twice, two norms")
    folded, _ = frontend.fold_graph_module(fx.symbolic_trace(build(row)), replace(ROOMY, merge="never"))
    assert {name for name, part in folded.named_modules() if isinstance(part, nn.Conv2d)} == {"conv", "conv_1"}
    siamese = next(row for row in ROWS if row.name == "siamese")
    folded, _ = frontend.fold_graph_module(fx.symbolic_trace(build(siamese)))
    assert [name for name, part in folded.named_modules() if isinstance(part, nn.Conv2d)] == ["conv"]


def test_equal_results_of_a_tied_weight_stay_tied() -> None:
    module = perturbed(Unary(lambda m, x: m.bn(m.one(x)) + m.bn(m.two(x)), one=conv(), two=conv(), bn=bn()))
    module.two.weight, module.two.bias = module.one.weight, module.one.bias
    for folded in (
        frontend.fold_program(frontend.capture(module, (image(),)), APART)[0].module(),
        frontend.fold_graph_module(fx.symbolic_trace(module), APART)[0],
    ):
        assert folded.one.weight is folded.two.weight
        assert_equal(run(module, image()), run(folded, image()), limit=1e-5)


def test_copies_beyond_the_growth_budget_are_refused() -> None:
    row = next(row for row in ROWS if row.name == "conv called twice, two norms")
    _, report = frontend.fold_program(frontend.capture(build(row), (image(),)), APART)
    assert outcomes(report) == (Reason.GROWTH_BUDGET, Reason.GROWTH_BUDGET)


def test_where_copies_cost_too_much_a_norm_goes_where_none_is_made() -> None:
    """The norm of a sum would go into both its terms, of which one is read again. Merged into the other, it does not
    ask for a copy; and folding again finds nothing more."""
    own, tied, x = nn.Linear(4, 4), nn.Linear(4, 4), torch.randn(3, 4)
    body = lambda m, x: m.tied(torch.relu(m.bn(x @ m.own.weight + m.tied(x))))  # noqa: E731
    module = perturbed(Unary(body, own=own, tied=tied, bn=nn.BatchNorm1d(4)))
    folded, report = frontend.fold_program(frontend.capture(module, (x,)))
    assert [(outcome.folded, outcome.copied_bytes) for outcome in report.outcomes] == [(True, 0)]
    assert_equal(run(module, x), run(folded.module(), x), limit=1e-5)
    _, again = frontend.fold_program(folded)
    assert not again.outcomes
    assert not again.merges


def test_a_weight_that_must_not_be_copied_takes_in_what_all_its_readers_do() -> None:
    """Two norms behind one convolution would cost a copy and go on to the next; what stands before both calls costs
    none."""
    body = lambda m, x: m.last(torch.cat([m.first(m.tied(y := x * m.scale)), m.second(m.tied(y))], 1))  # noqa: E731
    tied, last = nn.Conv2d(3, 4, 3), nn.Conv2d(8, 5, 1)
    scale = nn.Parameter(torch.tensor([2.0, -3.0, 0.5]).reshape(3, 1, 1))
    module = perturbed(
        Unary(body, tied=tied, last=last, first=nn.BatchNorm2d(4), second=nn.BatchNorm2d(4), scale=scale)
    )
    x = image(3)
    folded, report = frontend.fold_program(frontend.capture(module, (x,)), FoldOptions(max_growth=1.0))
    assert [(outcome.folded, outcome.copied_bytes) for outcome in report.outcomes] == [(True, 0)] * 3
    assert_equal(run(module, x), run(folded.module(), x), limit=1e-5)


def test_a_statistic_that_the_program_writes_is_no_constant() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        m.bn.running_mean.add_(1)
        return m.bn(m.conv(x))

    module = perturbed(Unary(body, conv=conv(), bn=bn()))
    _, report = frontend.fold_program(frontend.capture(module, (image(),)))
    assert outcomes(report) == (Reason.PARAMETER_NOT_CONSTANT,)


def test_a_norm_in_a_subgraph_is_listed() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = m.bn(m.conv(x))
        return m.other(m.next(y))

    module = perturbed(Unary(body, conv=conv(), bn=bn(), next=conv(), other=bn())).double()
    data = image().double()
    with torch.enable_grad():
        program = torch.export.export(module, (data,), strict=False)
    folded, report = frontend.fold_program(program)
    assert set(outcomes(report)) == {PRODUCER, Reason.CAPTURED_BY_SUBGRAPH}
    assert len({outcome.site.name for outcome in report.outcomes}) == 2
    assert_equal(run(module, data), run(folded.module(), data))


def test_sites_say_where_a_norm_comes_from() -> None:
    _, report = frontend.fold_program(frontend.capture(small(), (image(3),)), FoldOptions(exclude=("4",)))
    first, second = report.outcomes
    assert (first.site.op, first.site.module) == ("batch_norm", "1")
    assert (first.into[0].op, first.into[0].module) == ("conv2d", "0")
    assert outcomes(report)[1] is Reason.EXCLUDED
    assert second.site.module == "4"


def test_evidence_is_what_the_module_holds() -> None:
    module = small()
    program = frontend.capture(module, (image(3),))
    _, report = frontend.fold_program(program)
    evidence = frontend.evidence(program)
    assert set(evidence.norms) == {outcome.site.name for outcome in report.outcomes}
    assert {site.name for outcome in report.outcomes for site in outcome.into} <= set(evidence.linears)
    norm, linear = evidence.norms[report.outcomes[1].site.name], evidence.linears[report.outcomes[1].into[0].name]
    assert np.array_equal(norm.variance, module[4].running_var.numpy())
    assert np.array_equal(linear.weight, module[3].weight.detach().numpy())
    assert linear.bias is None
    assert norm.epsilon == module[4].eps


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_evidence_of_a_computed_weight_is_its_value(name: str) -> None:
    module = computed(name).double()
    evidence = frontend.evidence(frontend.capture(module, (image().double(),)))
    module(image().double())
    weight = evidence.linears["conv2d"].weight
    assert np.allclose(weight, module[0].weight.detach().numpy(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_float64_is_float64_throughout(dtype: torch.dtype) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.bn(m.conv(x.float().to(x.dtype) + torch.zeros(1, dtype=x.dtype)))

    module = perturbed(Unary(body, conv=conv(), bn=bn())).to(dtype)
    program = frontend.capture(module, (image().to(dtype),))
    exact = frontend.as_float64(program)
    signature = frontend.signature(exact)
    assert {port.dtype for port in (*signature.inputs, *signature.outputs)} == {"float64"}
    data = {"x": image().numpy()}
    expected = run(copy.deepcopy(module).double(), image().double())[0].numpy()
    (found,) = frontend.runner(exact, signature)(data).values()
    assert np.abs(found - expected).max() < 1e-13 * np.abs(expected).max()
    folded, _ = frontend.fold_program(exact)
    (unrounded,) = frontend.runner(folded, signature)(data).values()
    assert np.abs(unrounded - expected).max() < 1e-13 * np.abs(expected).max()
    assert all(tensor.dtype is not torch.float64 for tensor in program.state_dict.values())


def test_a_runner_starts_from_the_stored_state_each_time() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        m.count.add_(1)
        return x * m.count

    program = frontend.capture(Unary(body, count=torch.zeros(1)).eval(), (vectors(2, 3),))
    execute = frontend.runner(program, frontend.signature(program))
    data = {"x": vectors(2, 3).numpy()}
    (first,), (second,) = execute(data).values(), execute(data).values()
    assert np.array_equal(first, data["x"])
    assert np.array_equal(first, second)


def test_facts_count_what_is_there() -> None:
    program = frontend.capture(small(), (image(3),))
    before, after = frontend.facts(program), frontend.facts(frontend.fold_program(program)[0])
    assert (before.batch_norms, after.batch_norms) == (2, 0)
    assert before.compute_nodes - after.compute_nodes == 2
    assert before.macs == after.macs == 36 * 4 * 27 + 16 * 6 * 36 + 6 * 5
    assert after.parameters == sum(t.numel() for t in frontend.fold_program(program)[0].state_dict.values())
    assert before.bytes > after.bytes
    assert before.activation_bytes is not None
    assert after.activation_bytes is not None
    normed = 4 * (36 * 4 + 16 * 6)  # the results of the two batch norms
    assert before.activation_bytes - after.activation_bytes == normed


def test_capture_and_fold_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    frontend.fold_program(frontend.capture(small(), (image(3)[:1],)))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_captured_batch_is_dynamic_even_from_a_batch_of_one() -> None:
    program = frontend.capture(small(), (image(3)[:1],))
    assert frontend.dynamic_axes(program)
    assert run(program.module(), torch.randn(7, 3, 6, 6))[0].shape == (7, 5)


def test_values_written_through_views_are_pinned() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = x + 1
        z = y.view(-1)
        w = torch.relu_(x * 2)
        z.zero_()
        return y + w

    for graph in (
        fx.symbolic_trace(Unary(body)).graph,
        frontend.capture(Unary(body).eval(), (vectors(2, 3),)).graph,
    ):
        pinned = {node.name.rstrip("_1234") for node in mutated(graph, {})}
        assert pinned == {"add", "view", "zero"} or pinned == {"add", "view", "zero_"}


def test_onnx_holds_every_norm_and_nothing_of_this_machine() -> None:
    onnx_ir = pytest.importorskip("onnx_ir")
    module = small()
    program = frontend.capture(module, (image(3),))
    folded, _ = frontend.fold_program(program)
    for source, norms in ((program, 2), (folded, 0)):
        model = frontend.to_onnx(source)
        kinds = [node.op_type for node in model.graph]
        assert kinds.count("BatchNormalization") == norms
        assert kinds.count("Conv") == 2
        data = onnx_ir.to_proto(model).SerializeToString()
        assert b"stack_trace" not in data
        assert b"site-packages" not in data
        assert __file__.encode() not in data
    assert data == onnx_ir.to_proto(frontend.to_onnx(folded)).SerializeToString()


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's own, in `unflatten`
def test_a_folded_program_can_be_unflattened() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = small(), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(x).relu())

    module = Outer().eval()
    inner = ("inner", "inner.1", "inner.3")
    program = torch.export.export(module, (image(3),), preserve_module_call_signature=inner, strict=False)
    folded, report = frontend.fold_program(program)
    assert report.folded == 2
    assert_equal(run(module, image(3)), run(torch.export.unflatten(folded), image(3)), limit=1e-5)


def test_a_norm_that_a_tracer_keeps_whole_is_listed() -> None:
    class Keeping(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, NormAct) or super().is_leaf_module(m, module_qualified_name)

    module = perturbed(nn.Sequential(conv(), NormAct(4), conv(), bn()))
    folded, report = frontend.fold_graph_module(fx.GraphModule(module, Keeping().trace(module)))
    assert outcomes(report) == (Reason.UNKNOWN_OPERATOR, PRODUCER)
    assert_equal(run(module, image()), run(folded, image()), limit=1e-5)


def test_an_output_keeps_its_place_when_its_norm_folds() -> None:
    program = frontend.capture(perturbed(nn.Sequential(conv(), bn())), (image(),))
    folded, _ = frontend.fold_program(program)
    assert [port.shape for port in frontend.signature(folded).outputs] == [
        port.shape for port in frontend.signature(program).outputs
    ]
    assert folded.graph_signature.user_outputs == ("conv2d",)


def test_folding_again_changes_nothing() -> None:
    folded, _ = frontend.fold_program(frontend.capture(small(), (image(3),)))
    again, report = frontend.fold_program(folded)
    assert report.outcomes == ()
    assert list(again.state_dict) == list(folded.state_dict)
    assert all(again.state_dict[name] is folded.state_dict[name] for name in folded.state_dict)


def test_a_copy_of_a_part_takes_nothing_from_its_twin() -> None:
    module = perturbed(Unary(_two_calls, conv=conv(bias=False), bn=bn(), other=bn())).double()
    for tensor in (module.other.running_mean, module.other.bias.data):
        tensor.zero_()
    for folded in (
        frontend.fold_graph_module(fx.symbolic_trace(module), ROOMY)[0],
        frontend.fold_program(frontend.capture(module, (image().double(),)), ROOMY)[0].module(),
    ):
        assert_equal(run(module, image().double()), run(folded, image().double()))


def _two_calls(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.conv(x)) + m.other(m.conv(x + 1))


def test_the_module_of_a_program_folds_as_a_graph_module() -> None:
    module, data = small().double(), image(3).double()
    unlifted = frontend.capture(module, (data,)).module()
    folded, report = frontend.fold_graph_module(unlifted, FoldOptions(), (data,))
    assert outcomes(report) == (PRODUCER, PRODUCER)
    assert "1.running_mean" not in folded.state_dict()
    assert_equal(run(module, data), run(folded, data))


def test_a_hook_on_a_graph_module_itself_is_kept() -> None:
    traced, calls = fx.symbolic_trace(small()), []
    traced.register_forward_hook(lambda part, given, options, result: calls.append(options), with_kwargs=True)
    folded, report = frontend.fold_graph_module(traced)
    assert report.folded == 2
    folded(image(3))
    assert calls == [{}]


def holding(value: Any) -> nn.Module:
    module = small()
    module.held = value
    return module


@pytest.mark.parametrize(
    ("make", "kind", "code"),
    [
        (lambda: holding(threading.Lock()), Rejected, "uncopyable"),
        (lambda: holding(iter(number for number in range(3))), Rejected, "uncopyable"),
        (lambda: holding([torch.ones(2, requires_grad=True) * 2]), Rejected, "uncopyable"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()).eval(), UsageError, "usage"),
    ],
    ids=["lock", "generator", "computed tensor", "lazy"],
)
def test_a_module_that_cannot_be_copied_says_why(make: Any, kind: type[BnfoldError], code: str) -> None:
    for example in ((image(3),), None):
        with pytest.raises(kind) as caught:
            frontend.fold_module(make(), example)
        assert caught.value.code == code
        assert caught.value.hint is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_refused() -> None:
    scripted = torch.jit.trace(small(), image(3))
    for example in ((image(3),), None):
        with pytest.raises(Rejected) as caught:
            frontend.fold_module(scripted, example)
        assert caught.value.code == "scripted"


def test_one_tensor_is_no_tuple_of_inputs() -> None:
    for call in (frontend.fold_module, frontend.capture):
        with pytest.raises(UsageError, match="tuple of tensors"):
            call(small(), image(3))


def test_a_function_without_bias_folds_without_inputs() -> None:
    module = perturbed(
        Unary(lambda m, x: m.bn(functional.conv2d(x, m.w)), w=nn.Parameter(vectors(4, 4, 1, 1)), bn=bn())
    )
    folded, report = frontend.fold_module(module)
    assert report.folded == 1
    assert_equal(run(module, image()), run(folded, image()), limit=1e-5)


def test_folding_a_folded_module_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded, _ = frontend.fold_module(small(), (image(3),))
        frontend.fold_module(folded, (image(3),))
        frontend.fold_module(folded)
        frontend.capture(folded, (image(3),))


def test_ranks_are_observed_without_gradients() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        torch.mul(y, 2.0, out=y)
        return m.bn(y)

    traced = fx.symbolic_trace(perturbed(Unary(body, conv=conv(), bn=bn())))
    _, report = frontend.fold_graph_module(traced, FoldOptions(), (image(),))
    assert outcomes(report) == (Reason.MUTATED_IN_PLACE,)


def test_a_graph_module_in_train_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"call model.eval\(\) first"):
        frontend.fold_graph_module(fx.symbolic_trace(small()).train())


@pytest.mark.parametrize(
    "write", [lambda m: m.bn.running_mean.mul_(0.5), lambda m: m.bn.running_mean.data.add_(1)], ids=["plain", "data"]
)
def test_a_trace_that_writes_asks_for_inputs(write: Callable[[Any], Any]) -> None:
    module = perturbed(Unary(lambda m, x: (write(m), m.bn(m.conv(x)))[1], conv=conv(), bn=bn()))
    before = state(module)
    with pytest.raises(Rejected, match=r"writes to bn\.running_mean") as caught:
        frontend.fold_module(module)
    assert "example_inputs" in str(caught.value.hint)
    assert_unchanged(module, before)


class Variadic(Parts):
    def forward(self, x: Tensor, *more: Any) -> Any:
        return self.bn(self.conv(x)) + more[0] + more[1]["offset"]


def test_the_batch_of_variadic_arguments_is_dynamic() -> None:
    def data(batch: int) -> tuple[Any, ...]:
        return (torch.randn(batch, 4, 6, 6), torch.randn(batch, 4, 4, 4), {"offset": torch.randn(batch, 4, 4, 4)})

    module = perturbed(Variadic(None, conv=conv(), bn=bn()))
    folded, report = frontend.fold_module(module, data(1))
    assert report.folded == 1
    given = data(5)
    with torch.no_grad():
        assert_equal([module(*given)], [folded(*given)], limit=1e-5)


def test_one_axis_that_must_stay_does_not_fix_the_others() -> None:
    module = perturbed(Binary(lambda m, x, w: m.bn(m.conv(x)).flatten(1) @ w[0], conv=conv(), bn=bn()))
    program = frontend.capture(module, (image(), vectors(1, 64, 2)))
    assert run(program.module(), torch.randn(5, 4, 6, 6), vectors(1, 64, 2))[0].shape == (5, 2)


def test_a_sparse_buffer_does_not_disturb() -> None:
    module = small()
    module.register_buffer("sparse", torch.eye(3).to_sparse())
    for example in ((image(3),), None):
        assert frontend.fold_module(module, example)[1].left == 0


def test_a_weight_that_shares_memory_with_a_written_buffer_is_no_constant() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.bn(m.conv(x))
        m.count.add_(0.5)
        return y

    tracer = fx.Tracer()
    tracer.proxy_buffer_attributes = True  # else the trace itself would write
    convolution = conv()
    module = perturbed(Unary(body, conv=convolution, bn=bn(), count=convolution.weight.detach()))
    folded, report = frontend.fold_graph_module(fx.GraphModule(module, tracer.trace(module)), FoldOptions(), (image(),))
    assert outcomes(report) == (Reason.PARAMETER_NOT_CONSTANT,)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(folded(image()), module(image()))
    assert torch.equal(folded.count, folded.conv.weight)
