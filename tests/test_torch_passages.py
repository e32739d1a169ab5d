"""What an affine crosses in torch: one row per operator, with its must-not-fold twins.

Each row is a small module with a convolution or a linear layer, and one batch norm or elementwise affine. It is folded
as an exported program with a dynamic batch and as a traced GraphModule, and compared in float64 at two batch sizes.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from bnfold.folding import FoldOptions
from bnfold.frontends import torch as frontend
from bnfold.graph import Reason
from bnfold.outcome import FoldReport

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, in `program.module()`

Expected = tuple[str | Reason, ...]
UP, DOWN = "into-producer", "into-consumer"
ROOMY = FoldOptions(max_growth=10)
UNKNOWN = Reason.AXIS_UNKNOWN  # a size of 1 would broadcast


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

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm(channels: int = 4, scale: str = "any", shift: bool = True, dims: int = 2) -> nn.Module:
    """A batch norm of scales of both signs, or positive ones, or all equal ones (its map is then one number)."""
    part = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](channels)
    part.running_var.copy_(normal(channels, seed=3).abs() + 0.5)
    part.weight.data.copy_(normal(channels, seed=2) + 0.1)
    if scale == "positive":
        part.weight.data.abs_()
    if shift:
        part.running_mean.copy_(normal(channels, seed=4))
        part.bias.data.copy_(normal(channels, seed=5))
    return part.eval()


@dataclass(frozen=True)
class Row:
    """A module and what becomes of its affines: as a program, and as a GraphModule with example inputs."""

    name: str
    run: Callable[[Any, Tensor], Any]
    expected: Expected
    as_graph: Expected
    parts: dict[str, Any]
    shape: tuple[int, ...]


def row(
    name: str,
    run: Callable[[Any, Tensor], Any],
    expected: Expected,
    as_graph: Expected | None = None,
    shape: tuple[int, ...] = (2, 3, 6, 8),
    **parts: Any,
) -> Row:
    return Row(name, run, expected, expected if as_graph is None else as_graph, parts, shape)


def conv(inside: int = 3, outside: int = 4, kernel: int = 3, **options: Any) -> nn.Module:
    return nn.Conv2d(inside, outside, kernel, **options)


CROSSED: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda y: F.dropout(y, 0.5, training=False),
    "contiguous": lambda y: y.contiguous().clone(),
    "average pool": lambda y: F.avg_pool2d(y, 2),
    "average pool, uncounted padding": lambda y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False),
    "average pool, ceil mode": lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True),
    "adaptive average pool": lambda y: F.adaptive_avg_pool2d(y, (3, 3)),
    "interpolate": lambda y: F.interpolate(y, scale_factor=2.0, mode="bilinear"),
    "interpolate to a size": lambda y: F.interpolate(y, size=(5, 7), mode="nearest"),
    "reflecting pad": lambda y: F.pad(y, (1, 2, 1, 0), mode="reflect"),
    "replicating pad": lambda y: F.pad(y, (1, 2, 1, 0), mode="replicate"),
    "circular pad": lambda y: F.pad(y, (1, 2, 1, 0), mode="circular"),
    "transposed thrice": lambda y: y.permute(0, 2, 3, 1).transpose(1, 3).swapaxes(2, 3),
    "flattened and back": lambda y: y.flatten(2).unflatten(2, (y.size(2), y.size(3))),
    "squeezed": lambda y: y.unsqueeze(1).squeeze(1),
    "cropped": lambda y: y[:, :, 1:-1, 1:],
    "cropped, the rest implied": lambda y: y[..., 1:],
    "narrowed": lambda y: y.narrow(2, 1, 4),
    "expanded to its own shape": lambda y: y.expand(y.shape),
    "in pieces and back": lambda y: (lambda a, b: torch.cat([a, b], 3))(*(y[..., :4], y[..., 4:])),
}
"""Both ways, with any scale and shift."""

OPAQUE: dict[str, Callable[[Tensor], Tensor]] = {
    "training dropout": lambda y: F.dropout(y, 0.0, training=True),
    "gelu": lambda y: F.gelu(y),
    "roll": lambda y: y.roll(1, 2),
    "cumulated": lambda y: y.cumsum(2),
    "hardswish in place": lambda y: F.hardswish(y, inplace=True),
}


def both_ways() -> Iterator[Row]:
    for name, crossed in (*CROSSED.items(), *OPAQUE.items()):
        behind, ahead = (UP, DOWN) if name in CROSSED else (Reason.NO_LINEAR_PRODUCER, Reason.READ_BY_NONLINEARITY)

        def upstream(m: Any, x: Tensor, crossed: Callable[[Tensor], Tensor] = crossed) -> Tensor:
            return m.bn(crossed(m.conv(x)))

        def downstream(m: Any, x: Tensor, crossed: Callable[[Tensor], Tensor] = crossed) -> Tensor:
            return m.conv(crossed(m.bn(x.sigmoid())))

        shared = "in pieces" in name  # each piece is asked for the whole value
        blocked = Reason.SHARED_OUTPUT if shared else behind
        yield row(f"{name}, then norm", upstream, (blocked,), conv=conv(padding=1), bn=norm())
        yield row(f"norm, then {name}", downstream, (ahead,), conv=conv(), bn=norm(3))


ROWS: tuple[Row, ...] = (
    *both_ways(),
    row("residual", lambda m, x: m.bn(m.a(x) + m.b(x)), (UP,), a=conv(), b=conv(), bn=norm()),
    row("residual sub", lambda m, x: m.bn(m.a(x) - m.b(x)), (UP,), a=conv(), b=conv(), bn=norm()),
    row(
        "residual alpha",
        lambda m, x: m.bn(torch.add(m.a(x), m.b(x), alpha=2)),
        (Reason.UNSUPPORTED_ATTRIBUTE,),
        a=conv(),
        b=conv(),
        bn=norm(),
    ),
    row(
        "residual add_",
        lambda m, x: m.bn(m.a(x).add_(m.b(x)).relu_()),
        (Reason.NO_LINEAR_PRODUCER,),
        a=conv(),
        b=conv(),
        bn=norm(),
    ),
    row("residual add_ nr", lambda m, x: m.bn(m.a(x).add_(m.b(x))), (UP,), a=conv(), b=conv(), bn=norm()),
    row(
        "residual to opaque",
        lambda m, x: m.bn(m.a(x) + m.b(x).sigmoid()),
        (Reason.NO_LINEAR_PRODUCER,),
        a=conv(),
        b=conv(),
        bn=norm(),
    ),
    row(
        "shift only residual",
        lambda m, x: (m.a(x) + m.b(x).sigmoid()) + m.c,
        (UP,),
        a=conv(),
        b=conv(),
        c=normal(4, 1, 1),
    ),
    row("cat", lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 1)), (UP,), a=conv(outside=2), b=conv(), bn=norm(6)),
    row("cat other axis", lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 2)), (UP,), a=conv(), b=conv(), bn=norm(4)),
    row("bn cat conv", lambda m, x: m.a(torch.cat([m.bn(x.sigmoid()), x], 1)), (DOWN,), a=conv(inside=6), bn=norm(3)),
    row(
        "split pieces",
        lambda m, x: (lambda a: torch.cat([m.bn(a[0]), a[1].sigmoid()], 1))(m.a(x).chunk(2, 1)),
        (UP,),
        a=conv(),
        bn=norm(2),
    ),
    row(
        "split pieces shared",
        lambda m, x: (lambda a: torch.cat([m.bn(a[0]), a[0].sigmoid()], 1))(m.a(x).chunk(2, 1)),
        (Reason.SHARED_OUTPUT,),
        a=conv(),
        bn=norm(2),
    ),
    row(
        "overlapping slices",
        lambda m, x: (lambda y: m.bn(y[:, :3]) + y[:, 1:].sigmoid())(m.a(x)),
        (Reason.SHARED_OUTPUT,),
        a=conv(),
        bn=norm(3),
    ),
    row(
        "disjoint slices",
        lambda m, x: (lambda y: m.bn(y[:, :2]) + y[:, 2:].sigmoid())(m.a(x)),
        (UP,),
        a=conv(),
        bn=norm(2),
    ),
    row(
        "split sizes",
        lambda m, x: (lambda a: torch.cat([m.bn(a[0]), a[1].sigmoid()], 1))(m.a(x).split([3, 1], 1)),
        (UP,),
        a=conv(),
        bn=norm(3),
    ),
    row(
        "unbind",
        lambda m, x: (lambda a: m.bn(a[0]) + a[-1].sigmoid())(m.a(x).unflatten(1, (2, 2)).unbind(1)),
        (Reason.SHARED_OUTPUT,),
        a=conv(),
        bn=norm(2),
    ),
    row(
        "split down",
        lambda m, x: (lambda a: m.a(a[0]) + m.b(a[1]))(m.bn(x.sigmoid()).split([2, 1], 1)),
        (DOWN,),
        a=conv(inside=2),
        b=conv(inside=1),
        bn=norm(3),
    ),
    row(
        "split down nonlinear",
        lambda m, x: (lambda a: m.a(a[0]) + a[1].exp())(m.bn(x.sigmoid()).split([2, 1], 1)),
        (Reason.READ_BY_NONLINEARITY,),
        a=conv(inside=2, kernel=1),
        bn=norm(3),
    ),
    row(
        "index_select",
        lambda m, x: m.bn(m.a(x).index_select(1, m.i)),
        (UP,),
        a=conv(),
        i=torch.tensor([3, 0, 1, 2]),
        bn=norm(),
    ),
    row("index list", lambda m, x: m.bn(m.a(x)[:, m.i]), (UP,), a=conv(), i=torch.tensor([3, 0, 1, 2]), bn=norm()),
    row(
        "index dup",
        lambda m, x: m.bn(m.a(x)[:, m.i]),
        (Reason.CHANNELS_MIXED,),
        a=conv(),
        i=torch.tensor([3, 0, 0, 2]),
        bn=norm(),
    ),
    row("select", lambda m, x: m.a(x)[:, 1] * 3.0 + 1, (UP, UP), a=conv()),
    row("reverse/step", lambda m, x: m.bn(m.a(x)[:, ::2]), (UP,), a=conv(), bn=norm(2)),
    row("maxpool pos", lambda m, x: m.bn(F.max_pool2d(m.a(x), 2)), (UP,), a=conv(), bn=norm(scale="positive")),
    row("maxpool neg", lambda m, x: m.bn(F.max_pool2d(m.a(x), 2)), (Reason.MIXED_SIGN_MAXPOOL,), a=conv(), bn=norm()),
    row(
        "maxpool mod",
        lambda m, x: m.a(m.p(m.bn(x.sigmoid()))),
        (DOWN,),
        a=conv(kernel=1),
        p=nn.MaxPool2d(2),
        bn=norm(3, scale="positive"),
    ),
    row(
        "maxpool idx",
        lambda m, x: (lambda p: m.bn(p[0]) + p[1])(F.max_pool2d(m.a(x), 2, return_indices=True)),
        (Reason.NO_LINEAR_PRODUCER,),
        a=conv(),
        bn=norm(scale="positive"),
    ),
    row(
        "maxpool idx unused",
        lambda m, x: (lambda p: m.bn(p[0]))(F.max_pool2d(m.a(x), 2, return_indices=True)),
        (UP,),
        a=conv(),
        bn=norm(scale="positive"),
    ),
    row("counted", lambda m, x: m.bn(F.avg_pool2d(m.a(x), 3, padding=1)), (Reason.PADDED_BORDER,), a=conv(), bn=norm()),
    row(
        "counted noshift", lambda m, x: m.bn(F.avg_pool2d(m.a(x), 3, padding=1)), (UP,), a=conv(), bn=norm(shift=False)
    ),
    row(
        "divisor",
        lambda m, x: m.bn(F.avg_pool2d(m.a(x), 3, divisor_override=3)),
        (Reason.NO_LINEAR_PRODUCER,),
        a=conv(),
        bn=norm(),
    ),
    row(
        "divisor ns",
        lambda m, x: m.bn(F.avg_pool2d(m.a(x), 3, divisor_override=3)),
        (UP,),
        a=conv(),
        bn=norm(shift=False),
    ),
    row("gap linear", lambda m, x: m.f(m.bn(x.sigmoid()).mean([2, 3])), (DOWN,), f=nn.Linear(3, 4), bn=norm(3)),
    row(
        "gap linear mods",
        lambda m, x: m.f(torch.flatten(m.p(m.bn(x.sigmoid())), 1)),
        (DOWN,),
        f=nn.Linear(3, 4),
        p=nn.AdaptiveAvgPool2d(1),
        bn=norm(3),
    ),
    row(
        "flatten linear",
        lambda m, x: m.f(torch.flatten(m.p(m.bn(x.sigmoid())), 1)),
        (DOWN,),
        f=nn.Linear(3 * 12, 4),
        p=nn.AdaptiveAvgPool2d((3, 4)),
        bn=norm(3),
    ),
    row(
        "view linear",
        lambda m, x: (lambda y: m.f(y.view(y.size(0), -1)))(m.p(m.bn(x.sigmoid()))),
        (DOWN,),
        f=nn.Linear(3 * 12, 4),
        p=nn.AdaptiveAvgPool2d((3, 4)),
        bn=norm(3),
    ),
    row("mean ch", lambda m, x: m.bn(x.sigmoid()).mean(1, keepdim=True), (Reason.CHANNELS_MIXED,), bn=norm(3)),
    row(
        "amax",
        lambda m, x: m.f(m.bn(x.sigmoid()).amax((2, 3))),
        (DOWN,),
        f=nn.Linear(3, 4),
        bn=norm(3, scale="positive"),
    ),
    row(
        "max dim",
        lambda m, x: m.f(m.bn(x.sigmoid()).max(3)[0].mean(2)),
        (DOWN,),
        f=nn.Linear(3, 4),
        bn=norm(3, scale="positive"),
    ),
    row("relu pos noshift", lambda m, x: m.bn(m.a(x).relu()), (UP,), a=conv(), bn=norm(scale="positive", shift=False)),
    row(
        "relu shift",
        lambda m, x: m.bn(m.a(x).relu()),
        (Reason.NO_LINEAR_PRODUCER,),
        a=conv(),
        bn=norm(scale="positive"),
    ),
    row("relu neg", lambda m, x: m.bn(m.a(x).relu()), (Reason.NO_LINEAR_PRODUCER,), a=conv(), bn=norm(shift=False)),
    row("leaky", lambda m, x: m.bn(F.leaky_relu(m.a(x), 0.2)), (UP,), a=conv(), bn=norm(scale="positive", shift=False)),
    row(
        "prelu", lambda m, x: m.bn(m.p(m.a(x))), (UP,), a=conv(), p=nn.PReLU(4), bn=norm(scale="positive", shift=False)
    ),
    row(
        "inplace relu after bn->conv",
        lambda m, x: m.a(m.r(m.bn(x))),
        (DOWN,),
        a=conv(),
        r=nn.ReLU(inplace=True),
        bn=norm(3, scale="positive", shift=False),
    ),
    row(
        "relu_ shared input",
        lambda m, x: m.a(m.bn(x).relu_()) + m.b(x),
        (DOWN,),
        a=conv(),
        b=conv(),
        bn=norm(3, scale="positive", shift=False),
    ),
    row("const pad", lambda m, x: m.bn(F.pad(m.a(x), (1, 1, 1, 1))), (Reason.PADDED_BORDER,), a=conv(), bn=norm()),
    row("const pad ns", lambda m, x: m.bn(F.pad(m.a(x), (1, 1, 1, 1))), (UP,), a=conv(), bn=norm(shift=False)),
    row(
        "pad channels",
        lambda m, x: m.bn(F.pad(m.a(x), (0, 0, 0, 0, 0, 1))),
        (Reason.CHANNELS_MIXED,),
        a=conv(),
        bn=norm(5),
    ),
    row(
        "zeropad mod",
        lambda m, x: m.a(m.p(m.bn(x.sigmoid()))),
        (Reason.PADDED_BORDER,),
        a=conv(),
        p=nn.ZeroPad2d(1),
        bn=norm(3),
    ),
    row(
        "reflect mod", lambda m, x: m.a(m.p(m.bn(x.sigmoid()))), (DOWN,), a=conv(), p=nn.ReflectionPad2d(1), bn=norm(3)
    ),
    row(
        "SE",
        lambda m, x: (lambda y: m.a(y * y.mean((2, 3), keepdim=True).sigmoid()))(m.bn(x.sigmoid())),
        (Reason.READ_BY_NONLINEARITY,),
        a=conv(),
        bn=norm(3),
    ),
    row("gate", lambda m, x: m.bn(m.a(x) * m.b(x).sigmoid()), (UP,), a=conv(), b=conv(), bn=norm(shift=False)),
    row("gate shift", lambda m, x: m.bn(m.a(x) * m.b(x).sigmoid()), (Reason.GATED,), a=conv(), b=conv(), bn=norm()),
    row("square", lambda m, x: (lambda y: y * y)(m.a(x)) * 2.0, (Reason.SHARED_OUTPUT,), a=conv()),
    row("mul num", lambda m, x: m.a(x) * 2.0, (UP,), a=conv()),
    row("rsub", lambda m, x: 1 - m.a(x), (UP,), a=conv()),
    row("div num", lambda m, x: m.a(x) / 3, (UP,), a=conv()),
    row("div zero", lambda m, x: m.a(x) / m.z, (Reason.NON_FINITE,), a=conv(), z=torch.zeros(4, 1, 1)),
    row("c/x", lambda m, x: 3 / (m.a(x).exp()), (Reason.NO_LINEAR_PRODUCER,), as_graph=(), a=conv()),
    row("neg", lambda m, x: -m.a(x), (UP,), a=conv()),
    row("layerscale", lambda m, x: m.a(x) * m.g, (UP,), a=conv(), g=nn.Parameter(normal(4, 1, 1))),
    row(
        "layerscale nlc",
        lambda m, x: x + m.a(x) * m.g,
        (UP,),
        shape=(2, 5, 6),
        a=nn.Linear(6, 6),
        g=nn.Parameter(normal(6)),
    ),
    row(  # a GraphModule takes images so narrow that the product broadcasts them
        "per W",
        lambda m, x: m.a(x) * m.g,
        (Reason.AXIS_DIFFERS,),
        as_graph=(Reason.AXIS_UNKNOWN,),
        a=conv(),
        g=nn.Parameter(normal(6)),
    ),
    row(
        "per W=C",
        lambda m, x: m.a(x) * m.g,
        (Reason.AXIS_DIFFERS,),
        as_graph=(Reason.AXIS_UNKNOWN,),
        shape=(2, 3, 6, 6),
        a=conv(),
        g=nn.Parameter(normal(4)),
    ),
    row(
        "broadcast data",
        lambda m, x: m.a(x) * m.g,
        (Reason.NOT_PER_CHANNEL,),
        a=conv(outside=1),
        g=nn.Parameter(normal(4, 1, 1)),
    ),
    row(
        "higher rank",
        lambda m, x: m.a(x) * m.g,
        (Reason.NOT_PER_CHANNEL,),
        a=conv(),
        g=nn.Parameter(normal(1, 1, 4, 1, 1)),
    ),
    row("computed", lambda m, x: m.a(x) * (m.g + 1) - m.g.exp(), (UP, UP), a=conv(), g=nn.Parameter(normal(4, 1, 1))),
    row("0-d", lambda m, x: m.a(x) * m.g, (UP,), a=conv(), g=torch.tensor(2.5)),
    row(
        "norm in",
        lambda m, x: m.a((x - m.mu) / m.sd),
        (DOWN, DOWN),
        (UNKNOWN, DOWN),
        a=conv(),
        mu=normal(3, 1, 1),
        sd=normal(3, 1, 1).abs() + 1,
    ),
    row(
        "norm in padded",
        lambda m, x: m.a(x / m.sd),
        (DOWN,),
        (UNKNOWN,),
        a=conv(padding=1),
        sd=normal(3, 1, 1).abs() + 1,
    ),
    row("mul_ inplace", lambda m, x: m.a(x).mul_(2.0).add_(1), (UP, UP), a=conv()),
    row("input inplace", lambda m, x: m.a(x.mul(2.0).add_(1)), (DOWN, DOWN), a=conv()),
    row(
        "view inplace",
        lambda m, x: (lambda y: (y[:, :1].mul_(-1), m.bn(y))[1])(m.a(x)),
        (Reason.MUTATED_IN_PLACE, Reason.MUTATED_IN_PLACE),
        a=conv(),
        bn=norm(),
    ),
    row("x*1", lambda m, x: x * 1.0, (UP,)),
    row("neg neg", lambda m, x: x.sigmoid().neg().neg(), (UP, UP)),
    row(
        "matmul bias",
        lambda m, x: x @ m.w + m.b,
        (),
        shape=(2, 5),
        w=nn.Parameter(normal(5, 3)),
        b=nn.Parameter(normal(3)),
    ),
    row(
        "matmul bias bn",
        lambda m, x: m.bn(x @ m.w + m.b),
        (UP,),
        shape=(2, 5),
        w=nn.Parameter(normal(5, 3)),
        b=nn.Parameter(normal(3)),
        bn=norm(3, dims=1),
    ),
    row(
        "attention",
        lambda m, x: ((m.q(x) @ m.k(x).transpose(1, 2)) * 0.25).softmax(-1),
        (UP,),
        shape=(2, 5, 6),
        q=nn.Linear(6, 4),
        k=nn.Linear(6, 4),
    ),
    row(
        "heads",
        lambda m, x: (
            (m.q(x).reshape(x.size(0), x.size(1), 2, 2).permute(0, 2, 1, 3) * 0.25)
            @ m.k(x).view(x.size(0), x.size(1), 2, 2).permute(0, 2, 3, 1)
        ),
        (UP,),
        shape=(2, 5, 6),
        q=nn.Linear(6, 4),
        k=nn.Linear(6, 4),
    ),
    row(
        "qkv",
        lambda m, x: (lambda t: (t[0] * 0.5) @ t[1].transpose(-2, -1) @ t[2])(
            m.q(x).reshape(x.size(0), x.size(1), 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        ),
        (UP,),
        shape=(2, 5, 6),
        q=nn.Linear(6, 12),
    ),
    row(
        "nlc bn",
        lambda m, x: m.bn(m.q(x).transpose(1, 2)).transpose(1, 2),
        (UP,),
        shape=(2, 5, 6),
        q=nn.Linear(6, 4),
        bn=norm(4, dims=1),
    ),
    row(
        "seq flatten bn",
        lambda m, x: m.bn(m.q(x).flatten(0, 1)).reshape(x.size(0), x.size(1), 4),
        (UP,),
        shape=(2, 5, 6),
        q=nn.Linear(6, 4),
        bn=norm(4, dims=1),
    ),
    row(
        "shuffle",
        lambda m, x: m.bn(m.a(x).view(x.size(0), 2, 2, 4, 6).transpose(1, 2).reshape(x.size(0), 4, 4, 6)),
        (Reason.CHANNELS_MIXED,),
        a=conv(),
        bn=norm(),
    ),
    row(
        "frozen-like mul add",
        lambda m, x: m.a(x) * m.g + m.h,
        (UP, UP),
        a=conv(),
        g=normal(1, 4, 1, 1),
        h=normal(1, 4, 1, 1),
    ),
    row("int data", lambda m, x: m.a((x.long() * 2).double()), (), a=conv()),
    row("sizes", lambda m, x: m.a(x).reshape(x.size(0) * 2, -1), (), a=conv()),
)


def build(case: Row) -> nn.Module:
    return Parts(case.run, **copy.deepcopy(case.parts)).eval().double()


def data(case: Row, batch: int = 2) -> Tensor:
    return normal(batch, *case.shape[1:]).double()


def outcomes(report: FoldReport) -> Expected:
    return tuple(o.rule if o.refusal is None else o.refusal.reason for o in report.outcomes)  # type: ignore[misc]


def assert_same(original: nn.Module, folded: Callable[..., Any], case: Row) -> None:
    for batch in (2, 5):
        with torch.no_grad():
            expected, found = (model(data(case, batch)) for model in (original, folded))
        assert expected.shape == found.shape
        if "zero" not in case.name:
            assert expected.isfinite().all(), "a reference that is not finite compares with nothing"
            assert (expected - found).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_row_as_a_program(case: Row) -> None:
    module = build(case)
    program = frontend.capture(module, (data(case),))
    assert frontend.dynamic_axes(program)
    folded, report = frontend.fold_program(program, ROOMY)
    assert outcomes(report) == case.expected
    assert_same(module, folded.module(), case)
    again = frontend.fold_program(folded, ROOMY)[1]
    assert not any(outcome.folded for outcome in again.outcomes)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_row_as_a_graph_module(case: Row) -> None:
    module = build(case)
    traced = fx.symbolic_trace(module)
    folded, report = frontend.fold_graph_module(traced, ROOMY, (data(case),))
    assert outcomes(report) == case.as_graph
    assert_same(module, folded, case)
    alone, _ = frontend.fold_graph_module(traced, ROOMY)
    assert_same(module, alone, case)


@pytest.mark.parametrize("name", ["layerscale", "computed", "norm in", "relu_ shared input", "mul_ inplace"])
def test_what_is_folded_can_be_saved_and_keeps_no_constant(name: str) -> None:
    case = next(case for case in ROWS if case.name == name)
    module = build(case)
    folded, _ = frontend.fold_program(frontend.capture(module, (data(case),)), ROOMY)
    assert not {"g", "mu", "sd", "bn.weight"} & set(folded.state_dict)
    archive = io.BytesIO()
    torch.export.save(folded, archive)
    archive.seek(0)
    assert_same(module, torch.export.load(archive).module(), case)


@pytest.mark.parametrize(
    ("constant", "folds"), [(2.0, True), (torch.tensor(2.0), True), (torch.full((4, 1, 1), 2.0), False)]
)
def test_an_affine_that_promotes_its_data_stays(constant: Any, folds: bool) -> None:
    module = Parts(lambda m, x: m.conv(x) * m.g, conv=conv(), g=constant).eval()
    module.conv.to(torch.bfloat16)
    example = normal(2, 3, 6, 8).to(torch.bfloat16)
    expected = (UP,) if folds else (Reason.UNSUPPORTED_ATTRIBUTE,)
    program, report = frontend.fold_program(frontend.capture(module, (example,)))
    traced, traced_report = frontend.fold_graph_module(fx.symbolic_trace(module), ROOMY, (example,))
    assert outcomes(report) == outcomes(traced_report) == expected
    assert program.module()(example).dtype is traced(example).dtype is module(example).dtype


def test_a_size_seen_once_is_no_fact() -> None:
    module = Parts(lambda m, x: m.conv(x) * m.g, conv=conv(), g=normal(6)).eval()
    _, report = frontend.fold_graph_module(fx.symbolic_trace(module), ROOMY, (normal(2, 3, 8, 8),))
    assert Reason.AXIS_DIFFERS in outcomes(report) or Reason.AXIS_UNKNOWN in outcomes(report)


def test_a_function_of_the_same_name_is_not_torchs() -> None:
    def relu(value: Tensor) -> Tensor:
        return value.sin()

    module = Parts(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=norm(scale="positive", shift=False)).eval()
    graph = fx.symbolic_trace(module)
    convolution = next(node for node in graph.graph.nodes if node.target == "conv")
    with graph.graph.inserting_after(convolution):
        foreign = graph.graph.call_function(relu, (convolution,))
    convolution.replace_all_uses_with(foreign, delete_user_cb=lambda user: user is not foreign)
    graph.recompile()
    _, report = frontend.fold_graph_module(graph)
    assert all(not outcome.folded for outcome in report.outcomes)


def test_a_size_that_broadcasting_stretches_is_no_fact() -> None:
    module = Parts(lambda m, x: m.linear(x + m.g), linear=nn.Linear(3, 2), g=normal(3)).eval().double()
    folded, report = frontend.fold_graph_module(fx.symbolic_trace(module), ROOMY, (normal(2, 3).double(),))
    assert outcomes(report) == (Reason.AXIS_UNKNOWN,)
    narrow = normal(4, 1).double()
    assert torch.equal(module(narrow), folded(narrow))


def test_observing_sizes_writes_nothing() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.conv(x) + m.g.add_(1)

    tracer = fx.Tracer()
    tracer.proxy_buffer_attributes = True  # else the trace itself would write
    module = Parts(body, conv=conv(), g=torch.zeros(1)).eval()
    folded, _ = frontend.fold_graph_module(fx.GraphModule(module, tracer.trace(module)), ROOMY, (normal(2, 3, 6, 8),))
    assert folded.g.item() == 0


class Counting(nn.Module):
    """A module that changes all that a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.plain, self.calls = torch.zeros(1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        self.plain.add_(1)
        self.calls += 1
        return x * torch.rand(1)


class WholeCounting(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Counting) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize("inputs", [None, (normal(2, 3, 6, 8),)])
def test_observing_sizes_leaves_the_state_of_called_modules_alone(inputs: tuple[Tensor, ...] | None) -> None:
    module = Parts(lambda m, x: m.counting(m.bn(m.conv(x))), conv=conv(), bn=norm(), counting=Counting()).eval()
    generator = torch.get_rng_state()
    traced = fx.GraphModule(module, WholeCounting().trace(module))
    folded, report = frontend.fold_graph_module(traced, ROOMY, inputs)
    assert outcomes(report) == (UP,)
    assert torch.equal(torch.get_rng_state(), generator)
    for part in (module.counting, folded.counting):
        assert (part.count.item(), part.plain.item(), part.calls) == (0, 0, 0)


def test_pieces_that_nobody_reads_take_nothing() -> None:
    module = Parts(lambda m, x: (m.bn(x).split(2, 1)[0], m.conv(x))[1], bn=norm(3), conv=conv()).eval()
    _, report = frontend.fold_graph_module(fx.symbolic_trace(module), ROOMY, (normal(2, 3, 6, 8),))
    assert outcomes(report) == (Reason.READ_BY_NONLINEARITY,)


CUTS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "split": lambda y: y.split(2, 1),
    "chunk": lambda y: y.chunk(2, 1),
    "unbind": lambda y: y.unbind(1),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("read", [(), (0,), (1,), (-1,), (0, 0), (0, 1)])
def test_pieces_are_read_once_twice_or_never(name: str, read: tuple[int, ...]) -> None:
    def body(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        pieces = CUTS[name](m.bn(m.conv(x).sigmoid()))
        _ = pieces[0], pieces[1]  # two nodes without a reader
        return m.conv(x), *(m.linear(pieces[index]) for index in read)

    module = Parts(body, conv=conv(kernel=1), bn=norm(), linear=nn.Linear(6, 6)).eval().double()
    inputs = (normal(2, 3, 6, 6).double(),)
    folded, report = frontend.fold_graph_module(fx.symbolic_trace(module), ROOMY, inputs)
    assert len(report.outcomes) == 1
    torch.testing.assert_close(folded(*inputs), module(*inputs), rtol=1e-10, atol=1e-10)


def test_an_operator_that_writes_what_the_fold_makes_needs_no_copy() -> None:
    module = Parts(lambda m, x: F.relu(m.bn(m.conv(x)), inplace=True), conv=conv(), bn=norm()).eval()
    folded, report = frontend.fold_program(frontend.capture(module, (normal(2, 3, 6, 8),)))
    assert outcomes(report) == (UP,)
    operators = [str(node.target) for node in folded.graph.nodes if node.op == "call_function"]
    assert operators == ["aten.conv2d.default", "aten.relu_.default"]


BIASED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "product plus bias": lambda m, y: y @ m.w + m.b,
    "bias plus product": lambda m, y: m.b + torch.mm(y, m.w),
    "a row": lambda m, y: torch.add(y @ m.w, m.b.view(1, -1)),
    "one element": lambda m, y: (y @ m.w).add(m.one),
    "by keyword": lambda m, y: torch.add(y @ m.w, other=m.b),
    "in place": lambda m, y: (y @ m.w).add_(m.b),
    "a number": lambda m, y: y @ m.w + 0.3,
}


@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("form", ["program", "module"])
def test_the_bias_of_a_product_takes_the_shift(name: str, form: str) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return torch.sigmoid(BIASED[name](m, m.bn(torch.sigmoid(x))))

    module = Parts(body, bn=norm(dims=1), w=nn.Parameter(normal(4, 5)), b=nn.Parameter(normal(5)), one=normal(1))
    module.eval().double()
    inputs = (normal(3, 4).double(),)
    before: Any = frontend.capture(module, inputs) if form == "program" else fx.symbolic_trace(module)
    fold: Any = (
        frontend.fold_program if form == "program" else partial(frontend.fold_graph_module, example_inputs=inputs)
    )
    folded, report = fold(before)
    again, late = fold(folded)
    assert (outcomes(report), outcomes(late)) == ((DOWN,), ())
    assert calls(again.graph) == calls(folded.graph) < calls(before.graph)
    run = folded.module() if form == "program" else folded
    torch.testing.assert_close(run(*inputs), module(*inputs), rtol=1e-12, atol=1e-12)


def calls(graph: fx.Graph) -> int:
    return sum(node.op.startswith("call") for node in graph.nodes)


def test_a_second_addition_is_no_bias() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.bn(torch.sigmoid(x)) @ m.w
        return torch.sigmoid(y + m.b) * torch.sigmoid(y + m.c)

    module = Parts(body, bn=norm(dims=1), w=normal(4, 5), b=normal(5), c=normal(5)).eval().double()
    inputs = (normal(3, 4).double(),)
    folded, report = frontend.fold_program(frontend.capture(module, inputs))
    assert outcomes(report) == (DOWN, Reason.SHARED_OUTPUT, Reason.SHARED_OUTPUT)
    assert outcomes(frontend.fold_program(folded)[1]) == (Reason.SHARED_OUTPUT, Reason.SHARED_OUTPUT)
    torch.testing.assert_close(folded.module()(*inputs), module(*inputs), rtol=1e-12, atol=1e-12)
