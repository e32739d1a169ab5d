"""What folds and what must not, one row each.

A row is a tiny network, what reaches it, and what must become of each of its affines in topological order. It is meant
for all three forms of a network: a traced module, an exported program and an ONNX file. `fx`, `program` and `onnx` name
what differs there: another outcome, or `Absent` with the reason why the form has no such row. A network that only ONNX
can spell is an ONNX model from the start.

    python tests/cases.py        how many rows there are

An outcome is a word: `producer` or `consumer` (the rule that folded the affine) or the code of the reason why it stays;
`word+` is one or more of them, for a dialect may spell one affine with several operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from onnx_build import Net
from torch import Tensor, nn
from torch.nn import functional

from bnfold.folding import FoldOptions

Shape = tuple[int, ...]
GENEROUS = FoldOptions(max_growth=100.0)
RANDOM = torch.Generator().manual_seed(0)


@dataclass(frozen=True)
class Absent:
    """There is no such row in this form."""

    because: str


@dataclass(frozen=True, eq=False)
class Row:
    """A network, the shapes that it is given (axis 0 is the batch), and what becomes of its affines.

    `batch` is False where the first axis has one size only; `dtype` None keeps the types of the network; `runs` is
    False where no executor computes the network in float64: then nothing may change.
    """

    title: str
    net: nn.Module | onnx.ModelProto
    expected: str
    shapes: tuple[Shape, ...] = ((2, 4, 6, 6),)
    fx: str | Absent | None = None
    program: str | Absent | None = None
    onnx: str | Absent | None = None
    options: FoldOptions = GENEROUS
    batch: bool = True
    dtype: torch.dtype | None = torch.float64
    limit: float = 1e-10
    runs: bool = True

    def outcome(self, form: str) -> str | Absent:
        """What is expected in this form."""
        override: str | Absent | None = getattr(self, form)
        if isinstance(self.net, onnx.ModelProto) and form != "onnx":
            return ONLY_IN_ONNX
        return self.expected if override is None else override

    @property
    def folds(self) -> bool:
        """Whether every affine of the row folds."""
        return all(word.rstrip("+") in ("producer", "consumer") for word in self.expected.split())


FORMS = ("fx", "program", "onnx")
INFINITE = Absent("what infinity minus infinity is depends on the order of the executor")
ONLY_IN_ONNX = Absent("torch has no such attribute, input or type")
FUNCTIONAL = Absent("the exporter writes no operator that works in place")
NO_SIZES = "axis-unknown"  # a traced module does not hold the sizes of its inputs
NARROW = "axis-unknown"  # a traced module takes images so small that such a constant broadcasts them


def numbers(*shape: int, low: float | None = None) -> Tensor:
    """Random numbers, from `low` to `low + 1` where that is given."""
    normal = torch.randn(shape, generator=RANDOM, dtype=torch.float64)
    return normal if low is None else torch.rand(shape, generator=RANDOM, dtype=torch.float64) + low


def filled(module: Any) -> Any:
    """Weights that no mistake leaves unchanged."""
    for parameter in module.parameters():
        parameter.data = numbers(*parameter.shape).to(parameter.dtype) * 0.5
    return module.eval()


def conv(inside: int = 4, outside: int = 4, kernel: Any = 3, kind: Any = nn.Conv2d, **options: Any) -> Any:
    return filled(kind(inside, outside, kernel, **options))


def up(inside: int = 4, outside: int = 4, kernel: int = 3, kind: Any = nn.ConvTranspose2d, **options: Any) -> Any:
    return filled(kind(inside, outside, kernel, **options))


def linear(inside: int = 4, outside: int = 4, **options: Any) -> Any:
    return filled(nn.Linear(inside, outside, **options))


def bn(channels: int = 4, kind: Any = nn.BatchNorm2d, gamma: Any = None, **stored: Any) -> Any:
    """A batch norm whose scales have both signs, unless `gamma` or another tensor is given."""
    options = {key: stored.pop(key) for key in ("affine", "track_running_stats", "eps") if key in stored}
    norm = filled(kind(channels, **{"eps": 2.0**-17, **options}))
    if norm.running_mean is not None:
        norm.running_mean.copy_(numbers(channels))
        norm.running_var.copy_(numbers(channels, low=0.5))
    if norm.weight is not None:
        signs = torch.tensor([1.0, -1.0]).repeat(channels)[:channels]
        norm.weight.data.copy_(numbers(channels, low=0.5) * signs if gamma is None else torch.as_tensor(gamma))
    for name, value in stored.items():
        getattr(norm, name).data.copy_(torch.as_tensor(value))
    return norm


def bn1(channels: int = 4, **options: Any) -> Any:
    return bn(channels, nn.BatchNorm1d, **options)


def scaling(channels: int = 4, kind: Any = nn.BatchNorm2d) -> Any:
    """A batch norm that scales and does not shift."""
    return bn(channels, kind, bias=0.0, running_mean=0.0)


def rising(channels: int = 4) -> Any:
    """A batch norm with positive scales."""
    return bn(channels, gamma=numbers(channels, low=0.5))


def chain(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts).eval()


class Parts(nn.Module):
    """A module of named parts whose forward pass is a function of itself and the data."""

    def __init__(self, run: Callable[..., Any], parts: dict[str, Any]) -> None:
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
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.run(self, x, y)


def net(run: Callable[..., Any], **parts: Any) -> nn.Module:
    """A module of these parts; `run` is given the module and the data."""
    kind = Binary if run.__code__.co_argcount == 3 else Unary
    return kind(run, parts).eval()


class Do(nn.Module):
    """A function as a part of a chain."""

    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(x)


def behind(run: Callable[[Any, Tensor], Any], **parts: Any) -> nn.Module:
    """A convolution, and what `run` does to its result."""
    return net(lambda m, x: run(m, m.conv(x)), conv=conv(), **parts)


def before(run: Callable[[Any, Tensor], Any], last: nn.Module | None = None, **parts: Any) -> nn.Module:
    """What `run` does to the data, and an unpadded convolution that reads it."""
    return net(lambda m, x: m.last(run(m, x)), last=last or conv(), **parts)


def between(*parts: nn.Module, first: nn.Module | None = None, norm: nn.Module | None = None) -> nn.Module:
    """Operators between a convolution and the batch norm behind it."""
    return chain(first or conv(), *parts, norm or bn())


def ahead(*parts: nn.Module, last: nn.Module | None = None, norm: nn.Module | None = None) -> nn.Module:
    """Operators between a batch norm and the convolution behind it."""
    return chain(norm or bn(), *parts, last or conv())


class FrozenBatchNorm2d(nn.Module):
    """Detection networks store their batch norms so: four buffers and arithmetic."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, low in (("weight", None), ("bias", None), ("running_mean", None), ("running_var", 0.5)):
            self.register_buffer(name, numbers(channels, low=low))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


def handwritten(x: Tensor, m: Any) -> Tensor:
    return (x - m.mean) / torch.sqrt(m.var + 1e-3) * m.gamma + m.beta


def statistics(*shape: int) -> dict[str, Tensor]:
    return {"mean": numbers(*shape), "var": numbers(*shape, low=0.5), "gamma": numbers(*shape), "beta": numbers(*shape)}


C = (1, 4, 1, 1)

NEIGHBOURS = (
    Row("Conv2d", chain(conv(), bn()), "producer"),
    Row("Conv2d without bias", chain(conv(bias=False), bn()), "producer"),
    Row("Conv1d", chain(conv(kind=nn.Conv1d), bn1()), "producer", ((2, 4, 8),)),
    Row("Conv3d", chain(conv(kind=nn.Conv3d), bn(4, nn.BatchNorm3d)), "producer", ((2, 4, 4, 4, 4),)),
    Row("Conv2d in groups", chain(conv(4, 6, groups=2), bn(6)), "producer"),
    Row("depthwise Conv2d with multiplier", chain(conv(4, 8, groups=4), bn(8)), "producer"),
    Row("Conv2d with stride, dilation and padding", chain(conv(stride=2, dilation=2, padding=2), bn()), "producer"),
    Row("Conv2d that pads by reflection", chain(conv(padding=1, padding_mode="reflect"), bn()), "producer"),
    Row("Conv2d with padding='same'", chain(conv(padding="same"), bn()), "producer"),
    Row("ConvTranspose2d", chain(up(4, 6), bn(6)), "producer"),
    Row("ConvTranspose2d in groups, as many in as out", chain(up(4, 4, groups=2, stride=2), bn()), "producer"),
    Row(
        "ConvTranspose1d with output_padding",
        chain(up(4, 4, kind=nn.ConvTranspose1d, stride=2, output_padding=1), bn1()),
        "producer",
        ((2, 4, 8),),
    ),
    Row("Linear", chain(linear(5, 3), bn1(3)), "producer", ((2, 5),)),
    Row("Linear on sequences, sizes coincide", chain(linear(), bn1()), "axis-differs", ((2, 4, 4),)),
    Row("matrix product", net(lambda m, x: m.bn(x @ m.w), w=numbers(5, 3), bn=bn1(3)), "producer", ((2, 5),)),
    Row(
        "constant matrix on the left",
        net(lambda m, x: m.bn(m.w @ x), w=numbers(4, 4), bn=bn1()),
        "producer",
        ((2, 4, 4),),
        fx="no-linear-producer",
        program="no-linear-producer",
    ),
    Row(
        "addmm with factors",
        net(
            lambda m, x: m.bn(torch.addmm(m.b, x, m.w, alpha=2.5, beta=-0.5)), b=numbers(3), w=numbers(5, 3), bn=bn1(3)
        ),
        "producer",
        ((2, 5),),
    ),
    Row(
        "addmm with one bias per row",
        net(lambda m, x: m.bn(torch.addmm(m.b, x, m.w)), b=numbers(2, 1), w=numbers(5, 3), bn=bn1(3)),
        "not-per-channel",
        ((2, 5),),
        batch=False,
    ),
    Row("batch norm without gamma and beta", chain(conv(), bn(affine=False)), "producer"),
    Row("two batch norms in a row", chain(conv(), bn(), bn()), "producer producer"),
    Row("batch norms around a convolution", chain(bn(), conv(), bn()), "consumer producer"),
    Row(
        "functional batch norm",
        net(
            lambda m, x: functional.batch_norm(m.conv(x), m.mean, m.var, m.gamma, m.beta, eps=2.0**-10),
            conv=conv(),
            **statistics(4),
        ),
        "producer",
    ),
    Row("batch norm alone", chain(bn()), "is-graph-output"),
    Row("between two nonlinear operators", chain(nn.Sigmoid(), bn(), nn.Sigmoid()), "read-by-nonlinearity"),
    Row("between ReLUs, behind a convolution", chain(conv(), nn.ReLU(), bn(), nn.ReLU()), "no-linear-producer"),
    Row(
        "statistics of the batch",
        chain(conv(), bn(track_running_stats=False)),
        "batch-statistics",
        onnx=Absent("the exporter writes instance or batch statistics as arithmetic"),
    ),
    Row(
        "weight from outside",
        net(lambda m, x, y: m.bn(functional.conv2d(x, y)), bn=bn()),
        "parameter-not-constant",
        ((2, 4, 6, 6), (4, 4, 1, 1)),
        batch=False,
    ),
    Row("excluded by name", chain(conv(), bn()), "excluded", options=FoldOptions(exclude=("*",))),
)

SPELLINGS = (
    Row("x * c", behind(lambda m, x: x * m.c, c=numbers(*C)), "producer"),
    Row("c * x", behind(lambda m, x: m.c * x, c=numbers(*C)), "producer"),
    Row("x / c", behind(lambda m, x: x / m.c, c=numbers(*C, low=0.5)), "producer"),
    Row("x + c", behind(lambda m, x: x + m.c, c=numbers(*C)), "producer"),
    Row("c + x", behind(lambda m, x: m.c + x, c=numbers(*C)), "producer"),
    Row("x - c", behind(lambda m, x: x - m.c, c=numbers(*C)), "producer"),
    Row("c - x", behind(lambda m, x: m.c - x, c=numbers(*C)), "producer"),
    Row("-x", behind(lambda m, x: -x), "producer"),
    Row("x times a number", behind(lambda m, x: x * 0.5), "producer"),
    Row("x divided by a number, plus another", behind(lambda m, x: x / 3.0 + 2.0), "producer producer"),
    Row("a number minus x", behind(lambda m, x: 1.0 - x), "producer"),
    Row("constant of lower rank", behind(lambda m, x: x * m.c, c=numbers(4, 1, 1)), "producer"),
    Row("constant of rank 0", behind(lambda m, x: x * m.c, c=numbers()), "producer"),
    Row("constant of one element", behind(lambda m, x: x * m.c, c=numbers(1)), "producer"),
    Row("constant of one element and full rank", behind(lambda m, x: x + m.c, c=numbers(1, 1, 1, 1)), "producer"),
    Row("reciprocal of a constant", behind(lambda m, x: x * m.c.reciprocal(), c=numbers(*C, low=0.5)), "producer"),
    Row(
        "learnable scale and bias",
        behind(lambda m, x: m.s * x + m.b, s=nn.Parameter(numbers(1)), b=nn.Parameter(numbers(1))),
        "producer producer",
    ),
    Row(
        "learnable affine of full rank",
        behind(lambda m, x: m.s * x + m.b, s=nn.Parameter(numbers(*C)), b=nn.Parameter(numbers(*C))),
        "producer producer",
    ),
    Row(
        "learnable affine, batch norm behind",
        behind(lambda m, x: m.bn(m.s * x + m.b), bn=bn(), s=nn.Parameter(numbers(1)), b=nn.Parameter(numbers(1))),
        "producer producer producer",
    ),
    Row("hand-written, stored as (1, C, 1, 1)", behind(lambda m, x: handwritten(x, m), **statistics(*C)), "producer+"),
    Row(
        "hand-written, stored as (C,)",
        behind(
            lambda m, x: (
                (x - m.mean[None, :, None, None]) * (m.gamma * torch.rsqrt(m.var + 1e-3)).view(1, -1, 1, 1)
                + m.beta.reshape(-1, 1, 1)
            ),
            **statistics(4),
        ),
        "producer+",
    ),
    Row(
        "hand-written behind Linear",
        net(lambda m, x: handwritten(m.fc(x), m), fc=linear(), **statistics(4)),
        "producer+",
        ((2, 4),),
    ),
    Row(
        "hand-written in front of a convolution",
        before(lambda m, x: handwritten(x, m), **statistics(*C)),
        "consumer+",
        fx="axis-unknown consumer+",
    ),
    Row(
        "hand-written with a power",
        behind(lambda m, x: (x - m.mean) * m.gamma * (m.var + 1e-3) ** -0.5 + m.beta, **statistics(*C)),
        "producer+",
    ),
    Row("frozen batch norm", chain(conv(), FrozenBatchNorm2d(4)), "producer+"),
    Row(
        "frozen batch norm, called twice",
        net(lambda m, x: m.bn(m.two(m.bn(m.one(x)))), bn=FrozenBatchNorm2d(4), one=conv(), two=conv()),
        "producer+",
    ),
    Row(
        "layer scale behind Linear",
        net(lambda m, x: x + m.fc(x) * m.s, fc=linear(), s=nn.Parameter(numbers(4))),
        "producer",
        ((2, 3, 4),),
    ),
    Row(
        "layer scale behind a convolution",
        net(lambda m, x: x + m.conv(x) * m.s, conv=conv(padding=1), s=nn.Parameter(numbers(4, 1, 1))),
        "producer",
    ),
    Row(
        "input normalisation, unpadded",
        before(lambda m, x: (x - m.mean) / m.std, mean=numbers(*C), std=numbers(*C, low=0.5)),
        "consumer consumer",
        fx="axis-unknown consumer",
    ),
    Row(
        "input normalisation, padded: the division folds",
        before(lambda m, x: (x - m.mean) / m.std, conv(padding=1), mean=numbers(*C), std=numbers(*C, low=0.5)),
        "padded-border consumer",
        fx="axis-unknown consumer",
    ),
    Row("input scaled, padded", before(lambda m, x: x / 255.0, conv(padding=1)), "consumer"),
    Row("two affines that cancel", before(lambda m, x: torch.sigmoid(x.neg().neg())), "producer producer"),
    Row("times one", before(lambda m, x: torch.sigmoid(x * m.c), c=torch.ones(1, 4, 1, 1)), "producer", fx=NO_SIZES),
    Row("constant along the width", behind(lambda m, x: x * m.c, c=numbers(4)), "axis-differs", fx=NARROW),
    Row("constant along the height", behind(lambda m, x: x * m.c, c=numbers(1, 1, 4, 1)), "axis-differs", fx=NARROW),
    Row(
        "constant per sample",
        behind(lambda m, x: x * m.c, c=numbers(2, 1, 1, 1)),
        "axis-unknown",
        onnx="axis-differs",
        batch=False,
    ),
    Row("constant per pixel", behind(lambda m, x: x * m.c, c=numbers(4, 4)), "not-per-channel", fx=NARROW),
    Row(
        "constant per channel and pixel",
        behind(lambda m, x: x + m.c, c=numbers(1, 4, 4, 4)),
        "not-per-channel",
        fx=NARROW,
    ),
    Row("constant of higher rank", behind(lambda m, x: x * m.c, c=numbers(1, 1, 4, 1, 1)), "not-per-channel"),
    Row(
        "constant that widens its data",
        net(lambda m, x: m.conv(x) * m.c, conv=conv(4, 1), c=numbers(*C)),
        "not-per-channel",
    ),
    Row(
        "constant that is not finite",
        behind(lambda m, x: torch.sigmoid(x * m.c), c=torch.full(C, float("inf"))),
        "non-finite",
    ),
    Row("division by zero", behind(lambda m, x: torch.sigmoid(x / m.c), c=torch.zeros(C)), "non-finite"),
    Row(
        "constant divided by x, batch norm behind",
        behind(lambda m, x: m.bn(m.c / x.exp()), c=numbers(*C), bn=bn()),
        "no-linear-producer",
    ),
    Row(
        "position embedding",
        net(lambda m, x: m.fc(x) + m.c, fc=linear(), c=numbers(1, 3, 4)),
        "not-per-channel",
        ((2, 3, 4),),
        fx=NO_SIZES,
    ),
    Row(
        "add with alpha",
        behind(lambda m, x: torch.add(x, m.c, alpha=2.5), c=numbers(*C)),
        "producer+",
        fx="unsupported-attribute",
        program="unsupported-attribute",
    ),
    Row(
        "subtract with alpha",
        behind(lambda m, x: torch.sub(x, m.c, alpha=2.5), c=numbers(*C)),
        "producer+",
        fx="unsupported-attribute",
        program="unsupported-attribute",
    ),
    Row("scale read twice", behind(lambda m, x: x * m.c * m.c, c=numbers(*C)), "producer producer"),
)


def pieces(m: Any, x: Tensor) -> Tensor:
    one, two = m.conv(x).chunk(2, 1)
    return torch.cat([m.bn(one), m.other(two)], 1)


UPSTREAM = (
    Row("Identity", between(nn.Identity()), "producer"),
    Row("Dropout", between(nn.Dropout()), "producer"),
    Row("Dropout2d", between(nn.Dropout2d()), "producer"),
    Row("contiguous and clone", between(Do(lambda x: x.contiguous().clone())), "producer"),
    Row("cast to a narrower float", between(Do(lambda x: x.float()), Do(lambda x: x.double())), "producer", limit=1e-6),
    Row("channels moved last", behind(lambda m, x: x.permute(0, 2, 3, 1) * m.c, c=numbers(4)), "producer"),
    Row(
        "Linear, then channels first", chain(linear(), Do(lambda x: x.transpose(1, 2)), bn1()), "producer", ((2, 3, 4),)
    ),
    Row(
        "Linear, then transposed wrongly",
        chain(linear(), Do(lambda x: x.transpose(0, 1)), bn1()),
        "axis-differs",
        ((4, 4, 4),),
        batch=False,
    ),
    Row("pixels in a row", between(nn.Flatten(2), norm=bn1()), "producer"),
    Row(
        "pixels in a row by reshape",
        between(Do(lambda x: x.reshape(x.shape[0], 4, -1)), norm=bn1()),
        "producer",
    ),
    Row("pixels in a row by view", between(Do(lambda x: x.view(-1, 4, 16)), norm=bn1()), "producer", fx=NO_SIZES),
    Row(
        "tokens side by side",
        net(lambda m, x: m.bn(m.fc(x).flatten(0, 1)).reshape(x.shape), fc=linear(), bn=bn1()),
        "producer",
        ((2, 3, 4),),
    ),
    Row("all flat, every number its own norm", between(nn.Flatten(), norm=bn1(64)), "channels-mixed"),
    Row(
        "all flat, one norm per channel",
        between(
            nn.Flatten(),
            norm=bn1(
                64,
                **{
                    name: numbers(4, low=0.5).repeat_interleave(16)
                    for name in ("weight", "bias", "running_mean", "running_var")
                },
            ),
        ),
        "producer",
    ),
    Row("channels in two axes", behind(lambda m, x: x.unflatten(1, (2, 2)) * m.c, c=numbers(2, 1, 1, 1)), "producer"),
    Row(
        "reshaped across the channels",
        between(Do(lambda x: x.reshape(-1, 2, 8, 4)), norm=bn(2)),
        "producer",
        fx=NO_SIZES,
    ),
    Row(
        "pixels become channels",
        between(Do(lambda x: x.reshape(-1, 8, 2, 4)), norm=bn(8)),
        "channels-mixed",
        fx=NO_SIZES,
    ),
    Row("squeezed", net(lambda m, x: m.bn(m.conv(x).squeeze(3)), conv=conv(kernel=(3, 6)), bn=bn1()), "producer"),
    Row("unsqueezed", chain(linear(), Do(lambda x: x.unsqueeze(2)), bn1()), "producer", ((2, 4),)),
    Row("first half of the channels", between(Do(lambda x: x[:, :2]), norm=bn(2)), "producer"),
    Row("every second channel, from the end", between(Do(lambda x: x[:, 1:4:2]), norm=bn(2)), "producer"),
    Row("a part of the width", between(Do(lambda x: x[..., 1:3])), "producer"),
    Row(
        "channels in another order",
        behind(lambda m, x: m.bn(x.index_select(1, m.order)), bn=bn(), order=torch.tensor([2, 0, 3, 1])),
        "producer",
    ),
    Row(
        "a channel taken twice, with two norms",
        behind(lambda m, x: m.bn(x.index_select(1, m.order)), bn=bn(2), order=torch.tensor([1, 1])),
        "channels-mixed",
    ),
    Row("halves with norms of their own", net(pieces, conv=conv(4, 4), bn=bn(2), other=bn(2)), "producer producer"),
    Row(
        "half with a norm, the whole read too",
        behind(lambda m, x: (m.bn(x[:, :2]), x.sum()), bn=bn(2)),
        "shared-output",
    ),
    Row(
        "beside another convolution",
        net(lambda m, x: m.bn(torch.cat([m.one(x), m.two(x)], 1)), one=conv(4, 2), two=conv(4, 3), bn=bn(5)),
        "producer",
    ),
    Row(
        "below another convolution",
        net(lambda m, x: m.bn(torch.cat([m.one(x), m.two(x)], 2)), one=conv(), two=conv(), bn=bn()),
        "producer",
    ),
    Row(
        "beside the data",
        net(lambda m, x: m.bn(torch.cat([m.conv(x), x], 1)), conv=conv(padding=1), bn=bn(8)),
        "is-graph-output",
    ),
    Row("beside itself", behind(lambda m, x: m.bn(torch.cat([x, x], 1)), bn=bn(8)), "shared-output"),
    Row(
        "sum of two convolutions",
        net(lambda m, x: m.bn(m.one(x) + m.two(x)), one=conv(), two=conv(), bn=bn()),
        "producer",
    ),
    Row(
        "difference of two convolutions",
        net(lambda m, x: m.bn(m.one(x) - m.two(x)), one=conv(), two=conv(), bn=bn()),
        "producer",
    ),
    Row(
        "sum with alpha",
        net(lambda m, x: m.bn(torch.add(m.one(x), m.two(x), alpha=2.5)), one=conv(), two=conv(), bn=bn()),
        "unsupported-attribute",
        onnx="producer+",
    ),
    Row("residual", net(lambda m, x: m.bn(m.conv(x) + x), conv=conv(padding=1), bn=bn()), "producer"),
    Row(
        "residual around a nonlinear operator",
        net(lambda m, x: m.bn(m.conv(x.sigmoid()) + x), conv=conv(padding=1), bn=bn()),
        "is-graph-output",
    ),
    Row(
        "sum with one pixel",
        net(lambda m, x: m.bn(m.one(x) + m.two(x)), one=conv(), two=conv(kernel=6), bn=bn()),
        "producer",
    ),
    Row(
        "sum with one channel",
        net(lambda m, x: m.bn(m.one(x) + m.two(x)), one=conv(), two=conv(4, 1), bn=bn()),
        "channels-mixed",
    ),
    Row(
        "constant added to the sum",
        net(lambda m, x: m.one(x) + m.two(x) + m.c, one=conv(), two=conv(), c=numbers(*C)),
        "producer",
    ),
    Row(
        "gate with a shift behind it",
        net(lambda m, x: m.bn(m.one(x) * m.two(x).sigmoid()), one=conv(), two=conv(), bn=bn()),
        "gated",
    ),
    Row(
        "gate with a scale behind it",
        net(lambda m, x: m.one(x) * m.two(x).sigmoid() * m.c, one=conv(), two=conv(), c=numbers(*C)),
        "producer",
    ),
    Row(
        "squeeze and excite",
        net(
            lambda m, x: (lambda y: y * m.two(y.mean((2, 3), True)).sigmoid() * 0.5)(m.one(x)),
            one=conv(),
            two=conv(kernel=1),
        ),
        "shared-output",
    ),
    Row("average pool", between(nn.AvgPool2d(2)), "producer"),
    Row("average pool that counts its padding", between(nn.AvgPool2d(2, padding=1)), "padded-border"),
    Row("average pool that does not", between(nn.AvgPool2d(2, padding=1, count_include_pad=False)), "producer"),
    Row("average pool that rounds up", between(nn.AvgPool2d(3, ceil_mode=True)), "producer", onnx="padded-border"),
    Row(
        "average pool with a divisor",
        between(nn.AvgPool2d(2, divisor_override=3)),
        "no-linear-producer",
        onnx=Absent("the exporter has no such pool"),
    ),
    Row("global average pool", between(nn.AdaptiveAvgPool2d(1)), "producer"),
    Row("adaptive average pool", between(nn.AdaptiveAvgPool2d(2)), "producer"),
    Row("mean of the pixels", between(Do(lambda x: x.mean((2, 3))), norm=bn1()), "producer"),
    Row(
        "mean of the channels, one norm for all", between(Do(lambda x: x.mean(1, keepdim=True)), norm=bn(1)), "producer"
    ),
    Row("max pool, scales above zero", between(nn.MaxPool2d(2), norm=rising()), "producer"),
    Row("max pool, scales of both signs", between(nn.MaxPool2d(2)), "mixed-sign-maxpool"),
    Row("adaptive max pool, scales above zero", between(nn.AdaptiveMaxPool2d(1), norm=rising()), "producer"),
    Row("ReLU, scales above zero", behind(lambda m, x: x.relu() * m.c, c=numbers(*C, low=0.5)), "producer"),
    Row(
        "ReLU, scales of both signs",
        behind(lambda m, x: x.relu() * m.c, c=torch.tensor([1.0, -1, 2, 3]).view(C)),
        "no-linear-producer",
    ),
    Row("ReLU and a shift", between(nn.ReLU(), norm=rising()), "no-linear-producer"),
    Row(
        "LeakyReLU, scales above zero",
        behind(lambda m, x: functional.leaky_relu(x, 0.125) * m.c, c=numbers(*C, low=0.5)),
        "producer",
    ),
    Row(
        "PReLU, scales above zero",
        behind(lambda m, x: m.act(x) * m.c, act=nn.PReLU(4), c=numbers(*C, low=0.5)),
        "producer",
    ),
    *(
        Row(
            f"{kind.__name__}, scales above zero",
            behind(lambda m, x: m.act(x) * m.c, act=kind(), c=numbers(*C, low=0.5)),
            "no-linear-producer",
            onnx="shared-output" if kind is nn.SiLU else None,
        )
        for kind in (nn.Tanh, nn.SiLU, nn.Hardtanh, nn.ReLU6)
    ),
    Row("reflected border", between(nn.ReflectionPad2d(1)), "producer"),
    Row("repeated border", between(nn.ReplicationPad2d(1)), "producer"),
    Row("border of zeros", between(nn.ZeroPad2d(1)), "padded-border"),
    Row("border of zeros, scale alone", between(nn.ZeroPad2d(1), norm=scaling()), "producer"),
    Row("border of ones, scale alone", between(nn.ConstantPad2d(1, 1.0), norm=scaling()), "padded-border"),
    Row("nearest neighbours", between(nn.Upsample(scale_factor=2)), "producer"),
    Row("bilinear", between(nn.Upsample(scale_factor=2, mode="bilinear")), "producer"),
    Row("pixel shuffle", between(nn.PixelShuffle(2), first=conv(4, 16)), "no-linear-producer"),
    Row("softmax over pixels", between(nn.Softmax(3)), "no-linear-producer"),
    Row(
        "sum over pixels, scale alone",
        between(Do(lambda x: x.sum((2, 3))), norm=scaling(4, nn.BatchNorm1d)),
        "producer",
    ),
    Row(
        "expanded",
        net(lambda m, x: m.bn(m.conv(x).expand(-1, -1, 3, 3)), conv=conv(kernel=6), bn=bn()),
        "producer",
        fx="no-linear-producer",
        program="no-linear-producer",
    ),
    Row("less its maximum over channels", between(Do(lambda x: x - x.amax(1, keepdim=True))), "channels-mixed"),
    Row(
        "channels shuffled",
        between(Do(lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2))),
        "channels-mixed",
    ),
    Row("sequence of passages", between(nn.Dropout(), nn.AvgPool2d(2), nn.Flatten(2), norm=bn1()), "producer"),
)

DOWNSTREAM = (
    Row("into Conv2d", ahead(), "consumer"),
    Row("into Conv2d in groups", ahead(last=conv(4, 6, groups=2)), "consumer"),
    Row("into depthwise Conv2d", ahead(last=conv(groups=4)), "consumer"),
    Row(
        "into Conv1d with stride and dilation",
        chain(bn1(), conv(kind=nn.Conv1d, stride=2, dilation=2)),
        "consumer",
        ((2, 4, 9),),
    ),
    Row("into padded Conv2d", ahead(last=conv(padding=1)), "padded-border"),
    Row("into padded Conv2d, scale alone", ahead(last=conv(padding=1), norm=scaling()), "consumer"),
    Row("into Conv2d with padding='same'", ahead(last=conv(padding="same")), "padded-border"),
    Row("into Conv2d with padding='valid'", ahead(last=conv(padding="valid")), "consumer"),
    Row("into Conv2d that pads by reflection", ahead(last=conv(padding=1, padding_mode="reflect")), "consumer"),
    Row("into Conv2d that pads in a circle", ahead(last=conv(padding=1, padding_mode="circular")), "consumer"),
    Row("into ConvTranspose2d", ahead(last=up()), "padded-border"),
    Row("into ConvTranspose2d, scale alone", ahead(last=up(4, 6, groups=2), norm=scaling()), "consumer"),
    Row("into ConvTranspose2d of one tap", ahead(last=up(kernel=1)), "consumer"),
    Row("into ConvTranspose2d of one tap with stride", ahead(last=up(kernel=1, stride=2)), "padded-border"),
    Row("into Linear", chain(bn1(5), linear(5, 3)), "consumer", ((2, 5),)),
    Row("into Linear on another axis", chain(bn1(), linear()), "axis-differs", ((2, 4, 4),)),
    Row("into a matrix product", net(lambda m, x: m.bn(x) @ m.w, bn=bn1(5), w=numbers(5, 3)), "consumer", ((2, 5),)),
    Row(
        "into addmm",
        net(lambda m, x: torch.addmm(m.b, m.bn(x), m.w, alpha=0.5, beta=2), bn=bn1(5), w=numbers(5, 3), b=numbers(3)),
        "consumer",
        ((2, 5),),
    ),
    Row("through Flatten into Linear", ahead(nn.Flatten(), last=linear(144, 3)), "consumer"),
    Row("through ReLU", ahead(nn.ReLU()), "read-by-nonlinearity"),
    Row(
        "through ReLU, positive scale alone",
        before(lambda m, x: (x * m.c).relu(), c=numbers(*C, low=0.5)),
        "consumer",
        fx=NO_SIZES,
    ),
    Row("through a sigmoid", ahead(nn.Sigmoid()), "read-by-nonlinearity"),
    Row("through Identity and Dropout", ahead(nn.Identity(), nn.Dropout()), "consumer"),
    Row("through an average pool", ahead(nn.AvgPool2d(2)), "consumer"),
    Row("through an average pool that counts its padding", ahead(nn.AvgPool2d(2, padding=1)), "padded-border"),
    Row("through a global pool and Flatten", ahead(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last=linear()), "consumer"),
    Row("through the mean of the pixels", ahead(Do(lambda x: x.mean((2, 3))), last=linear()), "consumer"),
    Row(
        "through the mean of the channels",
        ahead(Do(lambda x: x.mean(1, keepdim=True)), last=conv(1, 4)),
        "channels-mixed",
    ),
    Row(
        "through a max pool, scales above zero", ahead(nn.MaxPool2d(2), last=conv(kernel=2), norm=rising()), "consumer"
    ),
    Row("through a max pool, scales of both signs", ahead(nn.MaxPool2d(2), last=conv(kernel=2)), "mixed-sign-maxpool"),
    Row("through reflection", ahead(nn.ReflectionPad2d(1)), "consumer"),
    Row("through a border of zeros", ahead(nn.ZeroPad2d(1)), "padded-border"),
    Row("through a border of zeros, scale alone", ahead(nn.ZeroPad2d(1), norm=scaling()), "consumer"),
    Row("through nearest neighbours", ahead(nn.Upsample(scale_factor=2)), "consumer"),
    Row("through bilinear resizing", ahead(nn.Upsample(scale_factor=2, mode="bilinear")), "consumer"),
    Row(
        "through a permutation into Linear",
        before(lambda m, x: m.bn(x).permute(0, 2, 3, 1), linear(4, 3), bn=bn()),
        "consumer",
    ),
    Row(
        "through reshape into Linear",
        chain(bn(), Do(lambda x: x.reshape(-1, 144)), linear(144, 3)),
        "consumer",
        fx=NO_SIZES,
    ),
    Row("through unsqueeze", chain(bn1(), Do(lambda x: x.unsqueeze(3)), conv(kernel=1)), "consumer", ((2, 4, 3),)),
    Row("a slice of the channels", chain(bn(), Do(lambda x: x[:, 1:3]), conv(2, 3)), "consumer"),
    Row(
        "both halves, each into its convolution",
        net(
            lambda m, x: (lambda y: m.one(y[0]) + m.two(y[1]))(m.bn(x).chunk(2, 1)),
            bn=bn(),
            one=conv(2, 4),
            two=conv(2, 4),
        ),
        "consumer",
    ),
    Row(
        "one half into a sigmoid",
        net(lambda m, x: (lambda y: m.one(y[0]) + y[1].sigmoid().mean())(m.bn(x).chunk(2, 1)), bn=bn(), one=conv(2, 4)),
        "read-by-nonlinearity",
    ),
    Row("beside the data", before(lambda m, x: torch.cat([m.bn(x), x], 1), conv(8, 4), bn=bn()), "consumer"),
    Row("beside its own data, off the channels", before(lambda m, x: torch.cat([m.bn(x), x], 2), bn=bn()), "joined"),
    Row(
        "beside itself, off the channels",
        before(lambda m, x: (lambda y: torch.cat([y, y], 2))(m.bn(x)), bn=bn()),
        "consumer",
    ),
    Row("added to the data", before(lambda m, x: m.bn(x) + x, bn=bn()), "joined"),
    Row(
        "a shift added to the data",
        before(lambda m, x: (x + m.c) + x.sigmoid(), c=numbers(*C)),
        "consumer",
        fx=NO_SIZES,
    ),
    Row("both terms of a sum", before(lambda m, x: (lambda y: y[..., 1:] + y[..., :-1])(m.bn(x)), bn=bn()), "consumer"),
    Row("minus itself moved", before(lambda m, x: (lambda y: y[..., 1:] - y[..., :-1])(m.bn(x)), bn=bn()), "consumer"),
    Row("through a gate", before(lambda m, x: m.bn(x) * x.sigmoid(), bn=bn()), "gated"),
    Row(
        "through a gate, scale alone",
        before(lambda m, x: x * m.c * x.sigmoid(), c=numbers(*C)),
        "consumer",
        fx=NO_SIZES,
    ),
    Row(
        "times itself",
        before(lambda m, x: (lambda y: y * y)(x * m.c), c=numbers(*C)),
        "read-by-nonlinearity",
        fx=NO_SIZES,
    ),
    Row(
        "into two convolutions",
        net(lambda m, x: (lambda y: m.one(y) + m.two(y))(m.bn(x)), bn=bn(), one=conv(), two=conv(4, 4, (3, 3))),
        "consumer",
    ),
    Row(
        "into a convolution and a padded one",
        net(lambda m, x: (lambda y: (m.one(y), m.two(y)))(m.bn(x)), bn=bn(), one=conv(), two=conv(padding=1)),
        "padded-border",
    ),
    Row(
        "into a convolution and a sigmoid",
        net(lambda m, x: (lambda y: (m.one(y), y.sigmoid()))(m.bn(x)), bn=bn(), one=conv()),
        "read-by-nonlinearity",
    ),
    Row(
        "into a convolution and out",
        net(lambda m, x: (lambda y: (m.one(y), y))(m.bn(x)), bn=bn(), one=conv()),
        "is-graph-output",
    ),
    Row(
        "into a convolution twice",
        before(lambda m, x: m.bn(x), net(lambda m, x: m.one(x[..., 1:]) - m.one(x[..., :-1]), one=conv()), bn=bn()),
        "consumer",
    ),
    Row("batch norms in a row, in front", chain(bn(), bn(), conv()), "consumer consumer"),
    Row(
        "pre-activation block",
        chain(bn(), nn.ReLU(), conv(padding=1), bn(), nn.ReLU(), conv(padding=1)),
        "read-by-nonlinearity producer",
    ),
)


OPAQUE: dict[str, Callable[[Tensor], Tensor]] = {
    "absolute value": torch.abs,
    "exponential": torch.exp,
    "square": lambda x: x**2,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "softmax over channels": lambda x: x.softmax(1),
    "running sum": lambda x: x.cumsum(3),
    "rounding": torch.round,
    "arctangent": torch.atan,
    "tangent": torch.tan,
    "sine": torch.sin,
}

# What stands between: nothing crosses it in either direction.
OTHERS = (
    *(Row(f"{name}, norm behind", between(Do(run)), "no-linear-producer") for name, run in OPAQUE.items()),
    *(Row(f"{name}, norm in front", ahead(Do(run)), "read-by-nonlinearity") for name, run in OPAQUE.items()),
    Row("into padded Conv1d", chain(bn1(), conv(kind=nn.Conv1d, padding=1)), "padded-border", ((2, 4, 8),)),
    Row(
        "into padded Conv3d",
        chain(bn(4, nn.BatchNorm3d), conv(kind=nn.Conv3d, padding=(0, 0, 1))),
        "padded-border",
        ((2, 4, 4, 4, 4),),
    ),
    Row("into padded depthwise Conv2d", ahead(last=conv(groups=4, padding=(1, 0))), "padded-border"),
    Row("into ConvTranspose1d", chain(bn1(), up(kind=nn.ConvTranspose1d)), "padded-border", ((2, 4, 8),)),
    Row("adaptive max pool, scales of both signs", between(nn.AdaptiveMaxPool2d(1)), "mixed-sign-maxpool"),
    Row(
        "max pool in one dimension, scales of both signs",
        chain(conv(kind=nn.Conv1d), nn.MaxPool1d(2), bn1()),
        "mixed-sign-maxpool",
        ((2, 4, 8),),
    ),
    Row("scale of zero behind a max pool", between(nn.MaxPool2d(2), norm=bn(gamma=0.0)), "mixed-sign-maxpool"),
    Row("LeakyReLU and a shift", between(nn.LeakyReLU(0.125), norm=rising()), "no-linear-producer"),
    Row("LeakyReLU, scales of both signs", between(nn.LeakyReLU(0.125), norm=scaling()), "no-linear-producer"),
    Row("PReLU, norm in front", ahead(nn.PReLU(4)), "read-by-nonlinearity"),
    Row(
        "sum of convolutions, one read elsewhere",
        net(lambda m, x: (lambda y: m.bn(m.one(x) + y) - y.sigmoid())(m.two(x)), one=conv(), two=conv(), bn=bn()),
        "shared-output",
    ),
    Row(
        "concatenation, one part read elsewhere",
        net(
            lambda m, x: (lambda y: m.bn(torch.cat([m.one(x), y], 1)).sum() - y.sigmoid().sum())(m.two(x)),
            one=conv(4, 2),
            two=conv(4, 2),
            bn=bn(),
        ),
        "shared-output",
    ),
    Row(
        "sum of a convolution and a sigmoid",
        net(lambda m, x: m.bn(m.one(x) + m.two(x).sigmoid()), one=conv(), two=conv(), bn=bn()),
        "no-linear-producer",
    ),
    Row(
        "product of two convolutions",
        net(lambda m, x: m.bn(m.one(x) * m.two(x)), one=conv(), two=conv(), bn=bn()),
        "gated",
    ),
    Row(
        "quotient of two convolutions",
        net(lambda m, x: m.bn(m.one(x) / (m.two(x).exp() + 1)), one=conv(), two=conv(), bn=bn()),
        "no-linear-producer gated",
    ),
    Row(
        "two norms added", net(lambda m, x: m.conv(m.bn(x) + m.two(x)), conv=conv(), bn=bn(), two=bn()), "joined joined"
    ),
    Row("norm added to its own data", before(lambda m, x: x - m.bn(x), bn=bn()), "joined"),
    Row("norm beside its own data on the width", before(lambda m, x: torch.cat([x, m.bn(x)], 3), bn=bn()), "joined"),
    Row("shift of a sum over pixels", between(Do(lambda x: x.sum((2, 3))), norm=bn1()), "no-linear-producer"),
    Row(
        "norm of a part, the rest goes through a sigmoid",
        before(lambda m, x: (lambda y: torch.cat([y[:, :2], y[:, 2:].sigmoid()], 1))(m.bn(x)), bn=bn()),
        "read-by-nonlinearity",
    ),
    Row(
        "norm of the result, its maximum too",
        behind(lambda m, x: m.bn(x) - x.amax((2, 3), True), bn=bn()),
        "shared-output",
    ),
    Row(
        "dense block",
        net(
            lambda m, x: (lambda y: torch.cat([y, m.two(m.bn(y).relu())], 1))(m.one(x)),
            one=conv(),
            two=conv(kernel=1),
            bn=bn(),
        ),
        "read-by-nonlinearity",
    ),
)


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (part(x).reshape(-1, 3, 2, 2).transpose(1, 2) for part in (m.q, m.k, m.v))
    scores = q @ k.transpose(2, 3) / 2.0
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 3, 4)


def levit(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.fc(x).flatten(0, 1)).reshape_as(x).sigmoid()


ATTENTION = (
    Row("1/√d behind the product", net(attention, q=linear(), k=linear(), v=linear()), "producer", ((2, 3, 4),)),
    Row(
        "1/√d on the query",
        net(lambda m, x: (m.q(x) * 0.5 @ m.k(x).transpose(1, 2)).softmax(-1), q=linear(), k=linear()),
        "producer",
        ((2, 3, 4),),
    ),
    Row(
        "1/√d, neither factor is linear",
        net(lambda m, x, y: (x @ y.transpose(1, 2) / 2.0).softmax(-1)),
        "read-by-nonlinearity",
        ((2, 3, 4), (2, 3, 4)),
    ),
    Row(
        "1/√d, the query is read elsewhere",
        net(
            lambda m, x: (lambda q: ((q @ m.k(x).transpose(1, 2) / 2.0).softmax(-1), q))(m.q(x)), q=linear(), k=linear()
        ),
        "producer",
        ((2, 3, 4),),
    ),
    Row(
        "scale per column of a run-time product",
        net(lambda m, x: (m.q(x) @ m.k(x).transpose(1, 2) * m.c).softmax(-1), q=linear(), k=linear(), c=numbers(3)),
        "channels-mixed",
        ((2, 3, 4),),
        fx=NO_SIZES,
    ),
    Row(
        "shift of a run-time product",
        net(lambda m, x: (m.q(x) @ m.k(x).transpose(1, 2) + 2.0).sigmoid(), q=linear(), k=linear()),
        "gated",
        ((2, 3, 4),),
    ),
    Row("norm over tokens", net(levit, fc=linear(), bn=bn1()), "producer", ((2, 3, 4),)),
    Row(
        "norm of keys and values before they part",
        net(
            lambda m, x: (lambda y: y[0].softmax(-1) + y[1])(
                m.bn(m.fc(x).flatten(0, 1)).unflatten(0, (-1, 3)).split([2, 2], 2)
            ),
            fc=linear(),
            bn=bn1(),
        ),
        "producer",
        ((2, 3, 4),),
    ),
    Row("scale of the values", net(lambda m, x: x.softmax(-1) @ (m.v(x) * 0.5), v=linear()), "producer", ((2, 4, 4),)),
    Row(
        "scale of all outputs, into the projection",
        net(lambda m, x: m.o((x.softmax(-1) @ x) * 0.5), o=linear()),
        "consumer",
        ((2, 4, 4),),
    ),
)


def tied() -> nn.Module:
    one, two = conv(), conv()
    two.weight = one.weight
    return chain(one, bn(), two, bn())


def tied_to_embedding() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return functional.linear(m.bn(m.fc(x)), m.fc.weight.t())

    return net(run, fc=linear(4, 3), bn=bn1(3))


TIGHT = FoldOptions(max_growth=1.0)

REUSE = (
    Row(
        "convolution and norm called twice",
        net(lambda m, x: m.bn(m.conv(x)) - m.bn(m.conv(x.sigmoid())), conv=conv(), bn=bn()),
        "producer producer",
    ),
    Row(
        "the same without room for copies",
        net(lambda m, x: m.bn(m.conv(x)) - m.bn(m.conv(x.sigmoid())), conv=conv(), bn=bn()),
        "producer producer",
        options=TIGHT,
    ),
    Row(
        "one convolution under two norms",
        net(lambda m, x: m.bn(m.conv(x)) - m.two(m.conv(x.sigmoid())), conv=conv(), bn=bn(), two=bn()),
        "producer producer",
    ),
    Row(
        "one convolution under two norms, no room",
        net(lambda m, x: m.bn(m.conv(x)) - m.two(m.conv(x.sigmoid())), conv=conv(), bn=bn(), two=bn()),
        "growth-budget growth-budget",
        options=TIGHT,
    ),
    Row(
        "one norm behind two convolutions",
        net(lambda m, x: m.bn(m.one(x)) - m.bn(m.two(x)), one=conv(), two=conv(), bn=bn()),
        "producer producer",
    ),
    Row(
        "two norms on one result",
        behind(lambda m, x: m.bn(x) - m.two(x), bn=bn(), two=bn()),
        "shared-output shared-output",
    ),
    Row(
        "convolution called twice, one call normed",
        net(lambda m, x: m.bn(m.conv(x)) - m.conv(x.sigmoid()), conv=conv(), bn=bn()),
        "producer",
    ),
    Row("tied weights", tied(), "producer producer"),
    Row("weight used transposed as well", tied_to_embedding(), "producer", ((2, 4),)),
    Row(
        "norm with several readers",
        behind(lambda m, x: (lambda y: y.relu() + y.sigmoid())(m.bn(x)), bn=bn()),
        "producer",
    ),
    Row("result read by an activation too", behind(lambda m, x: m.bn(x) + x.sigmoid(), bn=bn()), "shared-output"),
    Row("result is an output too", behind(lambda m, x: (x, m.bn(x)), bn=bn()), "is-graph-output"),
    Row("only the shape is read too", behind(lambda m, x: m.bn(x).reshape(x.shape[0], -1), bn=bn()), "producer"),
    Row(
        "one norm in front of and behind a convolution",
        net(lambda m, x: m.bn(m.conv(m.bn(x))), conv=conv(), bn=bn()),
        "consumer producer",
    ),
    Row(
        "norm called on both inputs",
        net(lambda m, x, y: m.conv(m.bn(x)) - m.conv(m.bn(y)), conv=conv(), bn=bn()),
        "consumer consumer",
        ((2, 4, 6, 6), (2, 4, 6, 6)),
    ),
    Row(
        "affine shared by two branches",
        net(lambda m, x: m.one(x) * m.c - m.two(x) * m.c, one=conv(), two=conv(), c=nn.Parameter(numbers(*C))),
        "producer producer",
    ),
    Row(
        "affine constant that is an output",
        behind(lambda m, x: (x * m.c, m.c), c=nn.Parameter(numbers(*C))),
        "producer",
    ),
)


def narrow(*parts: nn.Module, dtype: torch.dtype) -> nn.Module:
    return chain(*parts).to(dtype)


def kept(title: str, module: nn.Module, expected: str, limit: float, **more: Any) -> Row:
    """A row in the types that its network has."""
    return Row(title, module, expected, dtype=None, limit=limit, **more)


HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32

PRECISION = (
    kept("float16", narrow(conv(), bn(), dtype=HALF), "producer", 1e-2),
    kept("bfloat16", narrow(conv(), bn(), dtype=BRAIN), "producer", 5e-2),
    kept("float32", narrow(conv(), bn(), dtype=SINGLE), "producer", 1e-5),
    kept("float32 into a consumer", narrow(bn(), conv(), dtype=SINGLE), "consumer", 1e-5),
    kept("float16 into a consumer", narrow(bn(), conv(), dtype=HALF), "consumer", 5e-2),
    kept("float16 with statistics in float32", chain(conv().half(), bn().float()), "producer", 1e-2),
    kept("float16, gamma too large for it", narrow(conv(), bn(gamma=6e4), nn.Sigmoid(), dtype=HALF), "overflow", 1e-2),
    kept(
        "float32, times a float64 constant",
        net(lambda m, x: m.conv(x) * m.c, conv=conv().float(), c=numbers(*C)),
        "unsupported-attribute",
        1e-5,
        onnx="producer",
    ),
    kept(
        "integers, then a scale",
        net(lambda m, x: m.conv((x * 10).to(torch.int64) * 3 * m.c), conv=conv().float(), c=torch.tensor(0.5)),
        "read-by-nonlinearity",
        1e-5,
        onnx="read-by-nonlinearity consumer",
    ),
    Row("variance of minus epsilon", chain(conv(), bn(running_var=-1.0), nn.Sigmoid()), "variance-not-positive"),
    Row("mean not a number", chain(conv(), bn(running_mean=float("nan")), nn.Sigmoid()), "non-finite"),
    Row("variance infinite", chain(conv(), bn(running_var=float("inf")), nn.Sigmoid()), "non-finite"),
    Row("scale infinite", chain(conv(), bn(gamma=float("inf")), nn.Sigmoid()), "non-finite", onnx=INFINITE),
    Row("variance of zero", chain(conv(), bn(running_var=0.0)), "producer"),
    Row("gamma of zero", chain(conv(), bn(gamma=0.0)), "producer"),
    Row("epsilon of one", chain(conv(), bn(eps=1.0)), "producer"),
)


def view_written(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, :1].mul_(-1)
    return m.bn(y)


def written_behind(m: Any, x: Tensor) -> Tensor:
    y = torch.cat([x, x], 1)
    z = m.bn(y)
    y.mul_(2)
    return m.conv(z) + y.sum()


def written_after(m: Any, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    y.add_(x)
    return y.relu_()


def plus_equals(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y += m.c
    return y


def copied(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.copy_(m.conv(x))
    return m.bn(y)


def hooked(module: nn.Module) -> nn.Module:
    module[0].register_forward_hook(lambda module, inputs, result: result.sigmoid())
    return module


HOOKS = Absent("a hook is traced into the program")
IN_PLACE = (
    Row(
        "view written in place",
        net(view_written, conv=conv(), bn=bn()),
        "mutated-in-place+",
        onnx="shared-output no-linear-producer",
    ),
    Row(
        "data written behind the norm",
        net(written_behind, conv=conv(8), bn=bn(8)),
        "mutated-in-place+",
        onnx="consumer shared-output",
    ),
    Row("result written in place", net(written_after, conv=conv(padding=1), bn=bn()), "producer"),
    Row("in-place ReLU behind the norm", chain(conv(), bn(), nn.ReLU(inplace=True)), "producer"),
    Row("in-place ReLU between", behind(lambda m, x: x.relu_() * m.c, c=numbers(*C, low=0.5)), "producer"),
    Row(
        "in-place addition of two convolutions",
        net(lambda m, x: m.bn(m.one(x).add_(m.two(x))), one=conv(), two=conv(), bn=bn()),
        "producer",
    ),
    Row("in-place scale", behind(lambda m, x: x.mul_(m.c), c=numbers(*C)), "producer"),
    Row(
        "copied into",
        net(copied, conv=conv(padding=1), bn=bn()),
        "mutated-in-place",
        program="no-linear-producer",
        onnx="producer",
    ),
    Row("Python's +=", net(plus_equals, conv=conv(), c=numbers(*C)), "producer"),
    Row(
        "hook between",
        hooked(chain(conv(), bn())),
        "hooked",
        program="no-linear-producer",
        onnx="no-linear-producer",
    ),
    Row("weight norm", chain(nn.utils.parametrizations.weight_norm(conv()), bn()), "producer"),
)


def stored(title: str, build: Callable[[], onnx.ModelProto], expected: str, **more: Any) -> Row:
    """A row that only ONNX can spell."""
    return Row(title, build(), expected, **more)


DATA = {"x": ("n", 4, 6, 6)}
ROWS = {"x": ("n", 5)}
DOUBLE = TensorProto.DOUBLE


def graph(run: Callable[[Net], Any], inputs: Any = None, **options: Any) -> Callable[[], onnx.ModelProto]:
    """A model of the nodes that `run` adds, in float64; it may answer with the outputs, or a dict for `Net.model`."""

    def build() -> onnx.ModelProto:
        made = Net(**{"dtype": DOUBLE, "seed": 1} | options)
        answer = run(made)
        more = answer if isinstance(answer, dict) else {"outputs": [answer] if isinstance(answer, str) else answer}
        return made.model(inputs or DATA, **more)

    return build


def padded_by(auto_pad: str, shift: bool = True, **more: Any) -> Callable[[], onnx.ModelProto]:
    still = {} if shift else {"stored": {"bias": np.zeros(4), "mean": np.zeros(4)}}
    return graph(lambda g: g.conv(g.batch_norm("x", 4, **still), 4, 4, auto_pad=auto_pad, **more))


def gemm(c: Shape | None, inputs: Any = None, **more: Any) -> Callable[[], onnx.ModelProto]:
    def run(g: Net) -> str:
        shape = (3, 5) if more.get("transB") else (5, 3)
        operands = ["x", g.constant("w", g.numbers(*shape))]
        if c is not None:
            operands.append(g.constant("c", g.numbers(*c)))
        return g.batch_norm(g.node("Gemm", operands, **more), 3)

    return graph(run, inputs or ROWS)


def gemm_reader(g: Net) -> str:
    return g.node("Gemm", [g.batch_norm("x", 5), g.constant("w", g.numbers(5, 3)), ""][:2], alpha=2.5)


def through(op: str, *constants: Any, first: Any = None, norm: Any = None, **more: Any) -> Any:
    """An operator between a convolution and its batch norm; the constants are its further inputs, None where empty."""

    def run(g: Net) -> str:
        x = (first or (lambda g: g.conv("x", 4, 4)))(g)
        names = [x]
        for index, value in enumerate(constants):
            if value is None:
                names.append("")
            elif np.asarray(value).dtype.kind == "i":
                names.append(g.integers(f"k{index}", *np.atleast_1d(value).tolist()))
            else:
                names.append(g.constant(f"k{index}", value))
        options = {key: more[key] for key in more if key not in ("opset",)}
        y = g.node(op, names, **options)
        return (norm or (lambda g, y: g.batch_norm(y, 4)))(g, y)

    return graph(run, opset=more.get("opset", 17))


def positive(g: Net, x: str, channels: int = 4) -> str:
    return g.batch_norm(x, channels)


def with_if(g: Net) -> dict[str, Any]:
    y = g.conv("x", 4, 4)
    g.constants.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))
    branches = {}
    for key, op in (("then_branch", "Sigmoid"), ("else_branch", "Abs")):
        info = helper.make_tensor_value_info(f"{key}_out", DOUBLE, None)
        node = helper.make_node(op, [y], [f"{key}_out"], name=f"{key}_node")
        branches[key] = helper.make_graph([node], key, [], [info])
    g.node("If", ["flag"], "chosen", **branches)
    return {"outputs": [g.batch_norm(y, 4), "chosen"], "declare": ["flag"]}


def overridable(g: Net) -> dict[str, Any]:
    g.batch_norm(g.conv("x", 4, 4, name="c"), 4)
    return {"declare": ["c.weight"]}


def overridable_norm(g: Net) -> dict[str, Any]:
    g.batch_norm(g.conv("x", 4, 4), 4)
    return {"declare": ["bn.mean"]}


def lying(g: Net) -> dict[str, Any]:
    """MatMul of rank 3 whose value_info claims rank 2; its batch norm is along the wrong axis."""
    product = g.node("MatMul", ["x", g.constant("w", g.numbers(4, 4))], "product")
    g.batch_norm(product, 4)
    return {"value_info": [helper.make_tensor_value_info("product", DOUBLE, (2, 4))]}


def dequantised(g: Net) -> str:
    """Behind a convolution, Q and DQ; then a batch norm."""
    y = g.conv("x", 4, 4)
    g.constant("step", np.array(0.1), TensorProto.FLOAT)
    g.constants.append(helper.make_tensor("zero", TensorProto.UINT8, [], [128]))
    q = g.node("QuantizeLinear", [y, "step", "zero"])
    return g.batch_norm(g.node("DequantizeLinear", [q, "step", "zero"]), 4)


def dequantised_weight(g: Net) -> str:
    g.constants.append(helper.make_tensor("q", TensorProto.INT8, [4, 4, 1, 1], list(range(-8, 8))))
    g.constant("step", np.array(0.1), TensorProto.FLOAT)
    weight = g.node("DequantizeLinear", ["q", "step"])
    return g.batch_norm(g.node("Conv", ["x", weight]), 4)


def matmul_bias(g: Net) -> str:
    product = g.node("MatMul", ["x", g.constant("w", g.numbers(5, 3))])
    return g.batch_norm(g.node("Add", [g.constant("b", g.numbers(3)), product]), 3)


def split(g: Net) -> list[str]:
    y = g.conv("x", 4, 4)
    g.nodes.append(helper.make_node("Split", [y, g.integers("k", 1, 3)], ["one", "three"], name="split", axis=1))
    return [g.batch_norm("one", 1, "a"), g.batch_norm("three", 3, "b")]


def unnamed(g: Net) -> dict[str, Any]:
    g.batch_norm(g.conv("x", 4, 4), 4, "a")
    g.batch_norm(g.conv("a", 4, 4), 4, "b")
    for node in g.nodes:
        node.name = ""
    return {}


def empty_bias(g: Net) -> str:
    return g.batch_norm(g.node("Conv", ["x", g.constant("w", g.numbers(4, 4, 3, 3)), ""]), 4)


def extra_outputs(g: Net) -> list[str]:
    g.batch_norm(g.conv("x", 4, 4), 4, "bn", outputs=["bn", "mean", "var", "a", "b"])
    return ["bn", "mean"]


def arithmetic(op: str, constant: Any, reverse: bool = False) -> Callable[[], onnx.ModelProto]:
    def run(g: Net) -> str:
        y, c = g.conv("x", 4, 4), g.constant("k", constant)
        return g.node(op, [c, y] if reverse else [y, c])

    return graph(run)


def computed_affine(g: Net) -> str:
    """The constant part in graph nodes: γ · Reciprocal(Sqrt(var + ε))."""
    inner = g.node("Add", [g.constant("var", g.numbers(1, 4, 1, 1) ** 2), g.constant("eps", np.array(1e-3))])
    scale = g.node("Mul", [g.node("Reciprocal", [g.node("Sqrt", [inner])]), g.constant("g", g.numbers(1, 4, 1, 1))])
    return g.node("Mul", [scale, g.node("Sub", [g.conv("x", 4, 4), g.constant("mean", g.numbers(4, 1, 1))])])


def sum_of_three(g: Net) -> str:
    terms = [g.conv("x", 4, 4) for _ in range(3)]
    return g.batch_norm(g.node("Sum", terms), 4)


def clip(g: Net) -> str:
    bounds = [g.constant("low", np.array(-1.0)), g.constant("high", np.array(1.0))]
    return g.batch_norm(g.node("Clip", [g.conv("x", 4, 4), *bounds]), 4)


def indices_used(g: Net) -> list[str]:
    g.nodes.append(helper.make_node("MaxPool", [g.conv("x", 4, 4)], ["m", "i"], name="pool", kernel_shape=[2, 2]))
    return [g.batch_norm("m", 4), "i"]


def foreign(g: Net) -> str:
    y = g.node("Secret", [g.conv("x", 4, 4)], domain="acme")
    return g.batch_norm(y, 4)


def flattened(axis: int) -> Callable[[], onnx.ModelProto]:
    def run(g: Net) -> str:
        y = g.conv("x", 4, 4)
        return g.batch_norm(g.node("Flatten", [y], axis=axis), 4)

    return graph(run, {"x": (1, 4, 3, 3)})


def one_each(g: Net, y: str) -> str:
    return g.batch_norm(y, 4, stored={"weight": np.array([1.0, 2, 3, 4])})


ZEROS = {"stored": {"bias": np.zeros(4), "mean": np.zeros(4)}}
UNPADDED_CONV = {"kernel": (3, 3)}
VECTOR = np.array([1.0, -2, 3, 4]).reshape(1, 4, 1, 1)
STORED = (
    stored("auto_pad VALID, in front", padded_by("VALID"), "consumer"),
    stored("auto_pad NOTSET, in front", padded_by("NOTSET"), "consumer"),
    stored("auto_pad SAME_UPPER, in front", padded_by("SAME_UPPER"), "padded-border"),
    stored("auto_pad SAME_LOWER, in front", padded_by("SAME_LOWER", strides=[2, 2]), "padded-border"),
    stored("auto_pad SAME_UPPER of one tap", padded_by("SAME_UPPER", kernel=(1, 1)), "consumer"),
    stored("auto_pad SAME_UPPER, scale alone", padded_by("SAME_UPPER", shift=False), "consumer"),
    stored("Gemm, C per column", gemm((3,), alpha=2.5, beta=-0.5), "producer"),
    stored("Gemm, C of rank 2", gemm((1, 3), alpha=0.5, transB=1), "producer"),
    stored("Gemm, C of rank 0", gemm((), beta=3.0), "producer"),
    stored("Gemm, C of one element", gemm((1,), beta=3.0), "producer"),
    stored("Gemm, beta of zero", gemm((3,), beta=0.0), "producer"),
    stored("Gemm without C", gemm(None, alpha=2.0), "producer"),
    stored("Gemm, C per row", gemm((2, 1), {"x": (2, 5)}), "not-per-channel", batch=False),
    stored("Gemm, C of full shape", gemm((2, 3), {"x": (2, 5)}), "not-per-channel", batch=False),
    stored("Gemm with transA", gemm((3,), {"x": (5, "n")}, transA=1), "producer", batch=False),
    stored("into Gemm with alpha", graph(gemm_reader, ROWS), "consumer"),
    stored("MatMul, bias in front", graph(matmul_bias, ROWS), "producer"),
    stored("Conv with an empty bias", graph(empty_bias), "producer"),
    stored("nodes without names", graph(unnamed), "producer producer"),
    stored(
        "ConvTranspose with output_shape",
        graph(
            lambda g: g.batch_norm(g.conv_transpose("x", 4, 4, output_shape=[9, 9], strides=[2, 2]), 4),
            {"x": ("n", 4, 4, 4)},
        ),
        "producer",
    ),
    stored(
        "into ConvTranspose with output_shape",
        graph(
            lambda g: g.conv_transpose(g.batch_norm("x", 4), 4, 4, (1, 1), output_shape=[9, 9], strides=[2, 2]),
            {"x": ("n", 4, 4, 4)},
        ),
        "padded-border",
    ),
    stored(
        "training_mode",
        graph(lambda g: g.batch_norm(g.conv("x", 4, 4), 4, training_mode=1, outputs=["bn", "m", "v"])),
        "batch-statistics",
    ),
    stored("statistics are outputs, opset 9", graph(extra_outputs, opset=9), "batch-statistics", runs=False),
    stored("opset 7", graph(lambda g: g.batch_norm(g.conv("x", 4, 4), 4), opset=7, ir_version=4), "producer"),
    stored("opset 9", graph(lambda g: g.batch_norm(g.conv("x", 4, 4), 4), opset=9, ir_version=4), "producer"),
    stored("opset 13", graph(lambda g: g.batch_norm(g.conv("x", 4, 4), 4), opset=13), "producer"),
    stored("opset 22", graph(lambda g: g.batch_norm(g.conv("x", 4, 4), 4), opset=22, ir_version=10), "producer"),
    stored("read by If", graph(with_if), "captured-by-subgraph"),
    stored("weight that can be overridden", graph(overridable), "parameter-not-constant"),
    stored("statistics that can be overridden", graph(overridable_norm), "parameter-not-constant"),
    stored("value_info of a false rank", graph(lying, {"x": (2, 4, 4)}), "axis-differs", batch=False),
    stored("quantised result", graph(dequantised), "quantised", runs=False),
    stored("quantised weight", graph(dequantised_weight), "quantised", runs=False),
    stored("operator of another domain", graph(foreign), "unknown-operator", runs=False),
    stored("Split", graph(split), "producer producer"),
    stored("Slice from the end", through("Slice", -1, -9, 1, -1), "producer"),
    stored("Gather of channels", through("Gather", [3, 1, 0, 2], axis=1), "producer"),
    stored("Gather of negative channels", through("Gather", [-1, -2, 0, 1], axis=1), "producer"),
    stored(
        "Squeeze and Unsqueeze by attribute",
        graph(
            lambda g: g.batch_norm(
                g.node("Squeeze", [g.node("Unsqueeze", [g.conv("x", 4, 4)], axes=[0])], axes=[0]), 4
            ),
            opset=11,
        ),
        "producer",
    ),
    stored("Reshape with 0 and -1", through("Reshape", [0, 4, -1]), "producer"),
    stored("Reshape with allowzero", through("Reshape", [-1, 4, 16], allowzero=1), "producer"),
    stored(
        "Flatten on axis 1 of one pixel",
        graph(lambda g: g.batch_norm(g.node("Flatten", [g.node("GlobalAveragePool", [g.conv("x", 4, 4)])]), 4)),
        "producer",
    ),
    stored(
        "Transpose by default",
        through("Transpose", norm=lambda g, y: g.node("Mul", [y, g.constant("s", VECTOR[..., 0])])),
        "producer",
    ),
    stored("Sum of three", graph(sum_of_three), "producer"),
    stored("Clip", graph(clip), "no-linear-producer"),
    stored(
        "Cast to integer and back",
        graph(
            lambda g: g.batch_norm(
                g.node("Cast", [g.node("Cast", [g.conv("x", 4, 4)], to=TensorProto.INT32)], to=DOUBLE), 4
            )
        ),
        "no-linear-producer",
    ),
    stored("GlobalMaxPool, scales above zero", through("GlobalMaxPool"), "producer"),
    stored("MaxPool, indices used", graph(indices_used), "no-linear-producer"),
    stored("MaxPool with padding", through("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), "producer"),
    stored("ReduceMean by attribute", through("ReduceMean", axes=[2, 3], keepdims=0), "producer"),
    stored(
        "ReduceMean over all but the batch",
        through("ReduceMean", axes=[1, 2, 3], keepdims=1, norm=lambda g, y: g.batch_norm(y, 1)),
        "producer",
    ),
    stored("ReduceMax over pixels", through("ReduceMax", axes=[2, 3], keepdims=1), "producer"),
    stored(
        "AveragePool, SAME_UPPER, padding counted",
        through("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_UPPER", count_include_pad=1),
        "padded-border",
    ),
    stored("Pad by edge", through("Pad", [0, 0, 1, 1, 0, 0, 1, 1], mode="edge"), "producer"),
    stored("Pad by a number", through("Pad", [0, 0, 1, 1, 0, 0, 1, 1], np.array(1.5)), "padded-border"),
    stored(
        "Pad of the channels",
        through("Pad", [0, 1, 0, 0, 0, 1, 0, 0], mode="edge", norm=lambda g, y: g.batch_norm(y, 6)),
        "channels-mixed",
    ),
    stored("Resize by nearest", through("Resize", None, np.array([1.0, 1, 2, 2]), mode="nearest"), "producer"),
    stored(
        "Resize that extrapolates",
        through(
            "Resize",
            np.array([0.0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5]),
            np.array([1.0, 1, 2, 2]),
            mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize",
        ),
        "unsupported-attribute",
    ),
    stored("constant divided by x", arithmetic("Div", VECTOR, reverse=True), ""),
    stored("constant minus x", arithmetic("Sub", VECTOR, reverse=True), "producer"),
    stored("constant of higher rank", arithmetic("Mul", VECTOR[None]), "not-per-channel"),
    stored("constant per row", arithmetic("Mul", VECTOR.reshape(4, 1)), "axis-differs"),
    stored("constant part computed by nodes", graph(computed_affine), "producer producer"),
    stored(
        "Sub between run-time values, sign kept",
        graph(lambda g: g.batch_norm(g.node("Sub", [g.conv("x", 4, 4), g.conv("x", 4, 4)]), 4)),
        "producer",
    ),
)

SECTIONS = {
    "neighbours": NEIGHBOURS,
    "spellings": SPELLINGS,
    "upstream": UPSTREAM,
    "downstream": DOWNSTREAM,
    "other operators": OTHERS,
    "attention": ATTENTION,
    "reuse": REUSE,
    "precision": PRECISION,
    "in place": IN_PLACE,
    "stored": STORED,
}


def main() -> None:
    """Say how many rows there are."""
    rows = [row for section in SECTIONS.values() for row in section]
    folding = sum(row.folds for row in rows)
    print(f"{len(rows)} rows: {folding} fold, {len(rows) - folding} must not")
    for form in FORMS:
        present = [row for row in rows if not isinstance(row.outcome(form), Absent)]
        print(f"{form:8} {len(present)} rows: {sum(row.folds for row in present)} fold")


if __name__ == "__main__":
    main()
