"""What merges and what must not, one row each.

A row is a recipe: a function of a `Speller` and the data, which spells a network as a torch module and as an ONNX
model, built directly and not exported. A row says how many linear operators and how many additions are left, and why
where they might have been fewer.

    python tests/merge_cases.py        how many rows there are
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from onnx import TensorProto
from onnx_build import Net
from torch import Tensor, nn

from bnfold.folding import FoldOptions

Sizes = int | Sequence[int]
Data = Any
"""A tensor, or the name of a value of an ONNX graph."""

CHANNELS = 8
IMAGE = (CHANNELS, 9, 9)
TYPES = {
    torch.float64: TensorProto.DOUBLE,
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}


class Speller(Protocol):
    """A dialect as recipes see it. `name` calls a part again that another call has made; numbers are random."""

    def conv(self, x: Data, kernel: Sizes = 3, outs: int = CHANNELS, **more: Any) -> Data:
        """A convolution: `stride`, `pad`, `dilation`, `groups`, `bias`, `scale` (of its weight), `name`."""

    def up(self, x: Data, kernel: Sizes = 3, outs: int = CHANNELS, **more: Any) -> Data:
        """A transposed convolution."""

    def linear(self, x: Data, outs: int = CHANNELS, bias: bool = True) -> Data:
        """A matrix product along the last axis."""

    def matmul(self, x: Data, outs: int = CHANNELS) -> Data:
        """A matrix product without a bias."""

    def bn(self, x: Data, training: bool = False, name: str | None = None) -> Data:
        """A batch norm."""

    def times(self, x: Data, single: bool = False) -> Data:
        """A product with one constant per channel, or with a single one."""

    def add(self, first: Data, *others: Data) -> Data:
        """One addition after the other."""

    def sub(self, first: Data, second: Data) -> Data: ...

    def relu(self, x: Data) -> Data: ...

    def sigmoid(self, x: Data) -> Data: ...

    def idle(self, x: Data) -> Data:
        """Operators that do nothing."""

    def turned(self, x: Data, there_and_back: bool = True) -> Data:
        """The last two axes exchanged, and back again."""

    def moved(self, x: Data) -> Data:
        """The channels behind the pixels; `CHANNELS` along every axis."""


Recipe = Callable[[Any, Data], Data]


@dataclass(frozen=True, eq=False)
class Row:
    """A recipe, and how many linear operators and additions stay; `why` is a reason that is given for it.

    `shape` is that of the data behind the batch axis; where `sized`, the network runs with that size alone. `last` says
    that the channels are on the last axis.
    """

    title: str
    recipe: Recipe
    linear: int = 1
    sums: int = 0
    why: str | None = None
    shape: Sequence[int] = IMAGE
    forms: tuple[str, ...] = ("fx", "program", "onnx")
    dtype: torch.dtype = torch.float32
    options: FoldOptions = field(default_factory=lambda: FoldOptions(max_growth=10.0))
    sized: bool = False
    last: bool = False

    @property
    def channel_axis(self) -> int:
        """Of the shape: where a matrix product has its channels, or a convolution."""
        return -1 if self.last else 0


FORMS = ("fx", "program", "onnx")
TORCH = ("fx", "program")
ONNX = ("onnx",)


class InTorch(nn.Module):
    """The network of a row; its parts are made when it first runs."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.recipe, self.axes = row.recipe, len(row.shape) - 1
        self.random = torch.Generator().manual_seed(sum(map(ord, row.title)))
        with torch.no_grad():
            self.double().eval()(torch.zeros(2, *row.shape, dtype=torch.float64))
        self.to(row.dtype)

    def forward(self, x: Tensor) -> Any:
        return self.recipe(TorchSpeller(self), x)

    def numbers(self, *shape: int, low: float | None = None) -> Tensor:
        normal = torch.randn(shape, generator=self.random, dtype=torch.float64) / 2
        return normal if low is None else torch.rand(shape, generator=self.random, dtype=torch.float64) + low


class TorchSpeller:
    """`Speller` over tensors."""

    def __init__(self, net: InTorch) -> None:
        self.net, self.count = net, 0

    def _part(self, name: str | None, make: Callable[[], Any], scale: float | None = None) -> Any:
        self.count += name is None
        name = name or f"part{self.count}"
        if not hasattr(self.net, name):
            made = make()
            for parameter in made.parameters() if isinstance(made, nn.Module) else ():
                numbers = self.net.numbers(*parameter.shape)
                parameter.data = numbers if scale is None else torch.full_like(numbers, scale)
            setattr(self.net, name, made.double().eval() if isinstance(made, nn.Module) else nn.Parameter(made))
        return getattr(self.net, name)

    def conv(self, x: Tensor, kernel: Sizes = 3, outs: int = CHANNELS, **more: Any) -> Tensor:
        return self._convolution((nn.Conv1d, nn.Conv2d, nn.Conv3d), x, kernel, outs, more)

    def up(self, x: Tensor, kernel: Sizes = 3, outs: int = CHANNELS, **more: Any) -> Tensor:
        kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        return self._convolution(kinds, x, kernel, outs, more)

    def _convolution(self, kinds: Any, x: Tensor, kernel: Sizes, outs: int, more: dict[str, Any]) -> Tensor:
        scale, name = more.pop("scale", None), more.pop("name", None)
        options = {"padding" if key == "pad" else key: value for key, value in more.items()}
        return self._part(name, lambda: kinds[self.net.axes - 1](x.shape[1], outs, kernel, **options), scale)(x)

    def linear(self, x: Tensor, outs: int = CHANNELS, bias: bool = True) -> Tensor:
        return self._part(None, lambda: nn.Linear(x.shape[-1], outs, bias))(x)

    def matmul(self, x: Tensor, outs: int = CHANNELS) -> Tensor:
        return x @ self._part(None, lambda: self.net.numbers(x.shape[-1], outs))

    def bn(self, x: Tensor, training: bool = False, name: str | None = None) -> Tensor:
        def make() -> nn.Module:
            kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[self.net.axes]
            made = kind(x.shape[1], track_running_stats=not training)
            if not training:
                made.running_mean = self.net.numbers(x.shape[1])
                made.running_var = self.net.numbers(x.shape[1], low=0.5)
            return made

        return self._part(name, make)(x)

    def times(self, x: Tensor, single: bool = False) -> Tensor:
        return x * self._part(
            None, lambda: self.net.numbers(*(() if single else (x.shape[1], *(1,) * self.net.axes)), low=0.5)
        )

    def add(self, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = first + other
        return first

    def sub(self, first: Tensor, second: Tensor) -> Tensor:
        return first - second

    def relu(self, x: Tensor) -> Tensor:
        return x.relu()

    def sigmoid(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def idle(self, x: Tensor) -> Tensor:
        return self._part(None, nn.Dropout)(self._part(None, nn.Identity)(x))

    def turned(self, x: Tensor, there_and_back: bool = True) -> Tensor:
        turned = x.transpose(-1, -2)
        return turned.transpose(-2, -1) if there_and_back else turned

    def moved(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class OnnxSpeller(Net):
    """`Speller` over an ONNX graph under construction: what it adds to `Net` are the channels of every value."""

    def __init__(self, row: Row, dtype: int | None = None) -> None:
        super().__init__(opset=17, dtype=dtype or TYPES[row.dtype], seed=sum(map(ord, row.title)))
        self.axes, self.channels = len(row.shape) - 1, {"x": row.shape[row.channel_axis]}

    def made(self, op: str, inputs: Sequence[str], channels: int | None = None, **attributes: Any) -> str:
        name = self.node(op, inputs, **attributes)
        self.channels[name] = channels or self.channels[inputs[0]]
        return name

    def _weight(self, name: str | None, shape: Sequence[int], scale: float | None = None) -> str:
        """A constant, or one that is there already."""
        name = name or f"weight{len(self.constants)}"
        if name not in [constant.name for constant in self.constants]:
            self.constant(name, self.numbers(*shape) if scale is None else np.full(shape, scale))
        return name

    def conv(self, x: str, kernel: Sizes = 3, outs: int = CHANNELS, **more: Any) -> str:  # type: ignore[override]
        return self._spelt("Conv", x, kernel, outs, more)

    def up(self, x: str, kernel: Sizes = 3, outs: int = CHANNELS, **more: Any) -> str:
        return self._spelt("ConvTranspose", x, kernel, outs, more)

    def _spelt(self, op: str, x: str, kernel: Sizes, outs: int, more: dict[str, Any]) -> str:
        kernel, groups, ins = self._each(kernel), more.pop("groups", 1), self.channels[x]
        name, scale, pad = more.pop("name", None), more.pop("scale", None), more.pop("pad", 0)
        shape = (outs, ins // groups, *kernel) if op == "Conv" else (ins, outs // groups, *kernel)
        inputs = [x, self._weight(name and f"{name}.weight", shape, scale)]
        if more.pop("bias", True):
            inputs.append(self._weight(name and f"{name}.bias", (outs,)))
        spelt = {
            "strides": self._each(more.pop("stride", 1)),
            "dilations": self._each(more.pop("dilation", 1)),
            "pads": pad if not isinstance(pad, int) and len(pad) == 2 * self.axes else [*self._each(pad)] * 2,
            "group": groups,
            **more,
        }
        if "auto_pad" in spelt:
            del spelt["pads"]
        return self.made(op, inputs, outs, **spelt)

    def _each(self, sizes: Sizes) -> list[int]:
        return [sizes] * self.axes if isinstance(sizes, int) else list(sizes)

    def linear(self, x: str, outs: int = CHANNELS, bias: bool = True) -> str:
        product = self.matmul(x, outs)
        return self.made("Add", [product, self._weight(None, (outs,))]) if bias else product

    def matmul(self, x: str, outs: int = CHANNELS) -> str:
        return self.made("MatMul", [x, self._weight(None, (self.channels[x], outs))], outs)

    def gemm(self, x: str, outs: int = CHANNELS, **attributes: Any) -> str:
        """Gemm, its weight stored as `transB` says."""
        shape = (outs, self.channels[x]) if attributes.get("transB") else (self.channels[x], outs)
        return self.made("Gemm", [x, self._weight(None, shape), self._weight(None, (outs,))], outs, **attributes)

    def bn(self, x: str, training: bool = False, name: str | None = None) -> str:
        made = f"bn{len(self.nodes)}"
        outputs = {"outputs": [made, f"{made}_mean", f"{made}_var"], "training_mode": 1} if training else {}
        self.batch_norm(x, self.channels[x], made, **outputs)
        self.channels[made] = self.channels[x]
        return made

    def times(self, x: str, single: bool = False) -> str:
        shape = () if single else (self.channels[x], *(1,) * self.axes)
        return self.made("Mul", [x, self._weight(None, shape)])

    def add(self, first: str, *others: str) -> str:
        for other in others:
            first = self.made("Add", [first, other])
        return first

    def sum(self, *terms: str) -> str:
        """All terms at once."""
        return self.made("Sum", terms)

    def sub(self, first: str, second: str) -> str:
        return self.made("Sub", [first, second])

    def relu(self, x: str) -> str:
        return self.made("Relu", [x])

    def sigmoid(self, x: str) -> str:
        return self.made("Sigmoid", [x])

    def idle(self, x: str) -> str:
        return self.made("Dropout", [self.made("Identity", [x])])

    def turned(self, x: str, there_and_back: bool = True) -> str:
        order = [*range(self.axes), self.axes + 1, self.axes]
        turned = self.made("Transpose", [x], perm=order)
        return self.made("Transpose", [turned], perm=order) if there_and_back else turned

    def moved(self, x: str) -> str:
        return self.made("Transpose", [x], perm=[0, 2, 3, 1])


def in_onnx(row: Row, dtype: int | None = None) -> onnx.ModelProto:
    """The network of a row as an ONNX model, in which only the channels of the data have a size unless `sized`."""
    speller = OnnxSpeller(row, dtype)
    results = row.recipe(speller, "x")
    sizes = [*row.shape] if row.sized else [f"size{axis}" for axis in range(len(row.shape))]
    sizes[row.channel_axis] = row.shape[row.channel_axis]
    return speller.model({"x": ["n", *sizes]}, [results] if isinstance(results, str) else list(results))


def same(kernel: int) -> dict[str, Any]:
    """Half of the kernel on each side: the data keeps its size."""
    return {"kernel": kernel, "pad": kernel // 2}


def block(b: Any, x: Data, name: str = "") -> Data:
    """A block of RepVGG as it is trained; parts of one name are one part."""
    parts = [f"{name}{part}" if name else None for part in ("dense", "norm", "point", "second", "third")]
    dense = b.bn(b.conv(x, **same(3), bias=False, name=parts[0]), name=parts[1])
    point = b.bn(b.conv(x, 1, bias=False, name=parts[2]), name=parts[3])
    return b.add(dense, point, b.bn(x, name=parts[4]))


def five(b: Any, x: Data) -> Data:
    """Five branches that nobody published together."""
    tall = b.bn(b.conv(x, (3, 1), pad=(2, 0), dilation=(2, 1)))
    return b.add(x, b.conv(x, 1), b.bn(x), tall, b.bn(b.conv(x, **same(5), groups=1, bias=False)))


def written_between(b: Any, x: Tensor) -> Tensor:
    """The data changes behind the back of the graph."""
    x = b.sigmoid(x)
    first = b.conv(x, **same(3))
    x[:, :1].mul_(-1.0)
    return b.add(first, b.conv(x, 1))


def chained(b: Any, x: Tensor) -> Tensor:
    total = b.conv(x, **same(3))
    total += b.conv(x, 1)
    return total.add_(x)


def overflowing(b: Any, x: Data) -> Data:
    return b.add(b.conv(x, **same(3), scale=40000.0), b.conv(x, 1, scale=40000.0))


LINE = (CHANNELS, 12)
VECTOR = (CHANNELS,)
TOKENS = (5, CHANNELS)
CUBE = (CHANNELS, CHANNELS, CHANNELS)
CLIP = (4, 5, 5, 5)

PARALLEL = (
    Row("3x3 + 1x1", lambda b, x: b.add(b.conv(x, **same(3)), b.conv(x, 1))),
    Row("1x1 + 3x3", lambda b, x: b.add(b.conv(x, 1), b.conv(x, **same(3)))),
    Row("3x3 + 3x3", lambda b, x: b.add(b.conv(x, **same(3)), b.conv(x, **same(3)))),
    Row("3x3 + x", lambda b, x: b.add(b.conv(x, **same(3)), x)),
    Row("x + 3x3 without bias", lambda b, x: b.add(x, b.conv(x, **same(3), bias=False))),
    Row("1x1 + x", lambda b, x: b.add(b.conv(x, 1), x)),
    Row("3x3 + x + x", lambda b, x: b.add(b.conv(x, **same(3)), x, x)),
    Row("x + x + 3x3", lambda b, x: b.add(x, x, b.conv(x, **same(3)))),
    Row("3x3 + BN(x)", lambda b, x: b.add(b.conv(x, **same(3)), b.bn(x))),
    Row("BN(3x3) + BN(x)", lambda b, x: b.add(b.bn(b.conv(x, **same(3))), b.bn(x))),
    Row("a block of RepVGG", block),
    Row("a block of RepVGG, ReLU behind", lambda b, x: b.relu(block(b, x))),
    Row("three blocks of RepVGG", lambda b, x: b.relu(block(b, b.relu(block(b, b.relu(block(b, x)))))), 3),
    Row("five branches", five),
    Row("3x3 + BN(BN(x))", lambda b, x: b.add(b.conv(x, **same(3)), b.bn(b.bn(x)))),
    Row("3x3 + x times a number", lambda b, x: b.add(b.conv(x, **same(3)), b.times(x, single=True))),
    Row("3x3 + x times numbers", lambda b, x: b.add(b.conv(x, **same(3)), b.bn(b.times(x)))),
    Row(
        "depthwise + depthwise + x",
        lambda b, x: b.add(b.conv(x, **same(3), groups=CHANNELS), b.conv(x, 1, groups=CHANNELS), x),
    ),
    Row("dense + depthwise", lambda b, x: b.add(b.conv(x, **same(3)), b.conv(x, 1, groups=CHANNELS))),
    Row("dense + grouped", lambda b, x: b.add(b.conv(x, **same(5)), b.conv(x, **same(3), groups=2))),
    Row("2 groups + 4 groups", lambda b, x: b.add(b.conv(x, 1, groups=4), b.conv(x, **same(3), groups=2))),
    Row(
        "4 groups + 6 groups of twelve",
        lambda b, x: b.add(b.conv(x, 1, 12, groups=6), b.conv(x, **same(5), outs=12, groups=2)),
        shape=(12, 9, 9),
    ),
    Row("other channels out", lambda b, x: b.add(b.conv(x, **same(3), outs=5), b.conv(x, 1, 5))),
    Row("stride 2", lambda b, x: b.add(b.conv(x, **same(3), stride=2), b.conv(x, 1, stride=2))),
    Row("strides 2 and 3", lambda b, x: b.add(b.conv(x, **same(3), stride=(2, 3)), b.conv(x, 1, stride=(2, 3)))),
    Row("dilated 3x3 + 1x1", lambda b, x: b.add(b.conv(x, 3, pad=2, dilation=2), b.conv(x, 1))),
    Row("5x5 + dilated 3x3", lambda b, x: b.add(b.conv(x, **same(5)), b.conv(x, 3, pad=2, dilation=2))),
    Row("5x5 with padding 1 + 3x3 with none", lambda b, x: b.add(b.conv(x, 5, pad=1), b.conv(x, 3))),
    Row(
        "3x3 + 1x3 + 3x1",
        lambda b, x: b.add(b.conv(x, (1, 3), pad=(0, 1)), b.conv(x, (3, 1), pad=(1, 0)), b.conv(x, **same(3))),
    ),
    Row("Conv1d", lambda b, x: b.add(b.conv(x, **same(3)), b.conv(x, 1), x), shape=LINE),
    Row(
        "Conv1d, dilations 1 and 2",
        lambda b, x: b.add(b.conv(x, 3, pad=2, dilation=2), b.conv(x, **same(3))),
        shape=LINE,
    ),
    Row("Conv3d", lambda b, x: b.add(b.conv(x, **same(3), outs=4), b.conv(x, 1, 4), b.bn(x)), shape=CLIP),
    Row("transposed, alike", lambda b, x: b.add(b.up(x, stride=2), b.up(x, stride=2))),
    Row("two Linear", lambda b, x: b.add(b.linear(x), b.linear(x)), shape=VECTOR),
    Row("x + Linear", lambda b, x: b.add(x, b.linear(x)), shape=VECTOR),
    Row(
        "two Linear on tokens", lambda b, x: b.add(b.linear(x, 6), b.linear(x, 6, bias=False)), shape=TOKENS, last=True
    ),
    Row("Linear on tokens + x", lambda b, x: b.add(b.linear(x), x), shape=TOKENS, last=True),
    Row("Linear + BN(x)", lambda b, x: b.add(b.linear(x), b.bn(x)), shape=VECTOR),
    Row("two matrix products", lambda b, x: b.add(b.matmul(x, 6), b.matmul(x, 6)), shape=TOKENS, last=True),
    Row("two matrix products on rows", lambda b, x: b.add(b.matmul(x), b.matmul(x), x), shape=VECTOR),
    Row("3x3 minus 1x1", lambda b, x: b.sub(b.conv(x, **same(3)), b.conv(x, 1))),
    Row("1x1 minus 3x3", lambda b, x: b.sub(b.conv(x, 1), b.conv(x, **same(3)))),
    Row("3x3 minus x", lambda b, x: b.sub(b.conv(x, **same(3)), x)),
    Row("x minus 3x3", lambda b, x: b.sub(x, b.conv(x, **same(3)))),
    Row("x minus the difference", lambda b, x: b.sub(x, b.sub(b.conv(x, 1), b.conv(x, **same(3))))),
    Row("BN behind the sum", lambda b, x: b.bn(b.add(b.conv(x, **same(3)), b.conv(x, 1), x))),
    Row("BN in front", lambda b, x: b.add(b.conv(b.bn(x), 3), b.conv(b.bn(x), 3))),
    Row("3x3 and 1x1 beside another value", lambda b, x: b.add(b.conv(x, **same(3)), b.sigmoid(x), b.conv(x, 1)), 1, 1),
    Row("pairs on two values", lambda b, x: pairs(b, x, b.sigmoid(x)), 2, 1),
    Row("on a value inside", lambda b, x: inside(b, b.sigmoid(x))),
    Row(
        "one part called twice", lambda b, x: b.add(b.conv(x, **same(3), name="one"), b.conv(x, **same(3), name="one"))
    ),
    Row(
        "siamese",
        lambda b, x: b.add(b.relu(block(b, x, "own")), b.relu(block(b, b.sigmoid(x), "own"))),
        2,
        1,
    ),
    Row(
        "idle operators between",
        lambda b, x: b.add(b.idle(b.conv(b.idle(x), **same(3))), b.idle(b.conv(x, 1)), b.idle(x)),
    ),
    Row(
        "turned there and back", lambda b, x: b.add(b.turned(b.conv(x, **same(3))), b.conv(b.turned(x), 1), b.turned(x))
    ),
    Row("sum of sums", lambda b, x: b.add(b.add(b.conv(x, **same(3)), b.conv(x, 1)), b.add(b.bn(x), b.conv(x, 1)))),
    Row("the largest last", lambda b, x: b.add(b.add(b.conv(x, 1), b.bn(x)), b.conv(x, **same(3)))),
    Row("float64", block, dtype=torch.float64),
    Row("float16", block, dtype=torch.float16),
    Row("bfloat16", block, dtype=torch.bfloat16),
    Row("written by add_ and +=", chained, forms=TORCH),
    Row("ReLU in place behind", lambda b, x: b.add(b.conv(x, **same(3)), b.conv(x, 1)).relu_(), forms=TORCH),
    Row("padding='same', even kernel", lambda b, x: b.add(b.conv(x, 4, pad="same"), b.conv(x, 1)), forms=TORCH),
    Row(
        "reflected borders, alike",
        lambda b, x: b.add(*(b.conv(x, **same(3), padding_mode="reflect") for _ in "ab")),
        forms=("fx",),
    ),
    Row("Sum of four", lambda b, x: b.sum(x, b.conv(x, 1), b.conv(x, **same(3)), b.bn(x)), forms=ONNX),
    Row(
        "Sum of four and another",
        lambda b, x: b.sum(x, b.relu(x), b.conv(x, 1), b.conv(x, **same(3))),
        1,
        1,
        forms=ONNX,
    ),
    Row(
        "Gemm + Gemm",
        lambda b, x: b.add(b.gemm(x, 6, transB=1, alpha=0.5), b.gemm(x, 6, beta=2.0)),
        shape=VECTOR,
        forms=ONNX,
    ),
    Row("Gemm + MatMul + x", lambda b, x: b.add(b.gemm(x, alpha=-2.0), b.matmul(x), x), shape=VECTOR, forms=ONNX),
    Row(
        "pads that differ",
        lambda b, x: b.add(b.conv(x, 3, pad=(1, 1, 1, 1)), b.conv(x, 2, pad=(0, 1, 1, 0))),
        forms=ONNX,
    ),
    Row(
        "pads that differ, stride 2",
        lambda b, x: b.add(b.conv(x, 3, pad=(2, 0, 0, 2), stride=2), b.conv(x, 1, stride=2)),
        forms=ONNX,
    ),
    Row("SAME_UPPER + 1x1", lambda b, x: b.add(b.conv(x, 2, auto_pad="SAME_UPPER"), b.conv(x, 1)), forms=ONNX),
    Row(
        "SAME_LOWER + SAME_UPPER",
        lambda b, x: b.add(b.conv(x, 4, auto_pad="SAME_LOWER"), b.conv(x, 2, auto_pad="SAME_UPPER"), x),
        forms=ONNX,
    ),
    Row("VALID", lambda b, x: b.add(b.conv(x, 3, auto_pad="VALID"), b.conv(x, 3)), forms=ONNX),
)


def pairs(b: Any, x: Data, y: Data) -> Data:
    return b.add(b.conv(x, **same(3)), b.conv(y, 1), b.conv(x, 1), b.conv(y, **same(3)))


def inside(b: Any, x: Data) -> Data:
    return b.relu(b.add(b.conv(x, **same(3)), b.conv(x, 1), x))


SERIAL = (
    Row("1x1, 3x3", lambda b, x: b.conv(b.conv(x, 1, 16), 3)),
    Row("3x3, 1x1", lambda b, x: b.conv(b.conv(x, **same(3), outs=16), 1)),
    Row("1x1 without bias, padded 3x3", lambda b, x: b.conv(b.conv(x, 1, 16, bias=False), **same(3))),
    Row("1x1 with stride, 3x3", lambda b, x: b.conv(b.conv(x, 1, 16, stride=2), 3)),
    Row("3x3, 1x1 with stride", lambda b, x: b.conv(b.conv(x, **same(3), outs=16), 1, stride=2)),
    Row("3x3, BN, 1x1", lambda b, x: b.conv(b.bn(b.conv(x, **same(3))), 1)),
    Row("depthwise 1x1, 3x3", lambda b, x: b.conv(b.conv(x, 1, groups=CHANNELS), 3)),
    Row("3x3, depthwise 1x1", lambda b, x: b.conv(b.conv(x, **same(3)), 1, groups=CHANNELS)),
    Row("in groups", lambda b, x: b.conv(b.conv(x, 1, 16, groups=2), 3, groups=2)),
    Row("three in a row", lambda b, x: b.conv(b.conv(b.conv(x, 1, 16), 3, 16), 1)),
    Row("idle operators between two", lambda b, x: b.conv(b.turned(b.idle(b.conv(x, 1, 16))), 3)),
    Row("two Linear in a row", lambda b, x: b.linear(b.linear(x, 16), 4), shape=VECTOR),
    Row("two matrix products in a row", lambda b, x: b.matmul(b.matmul(x, 16), 4), shape=TOKENS, last=True),
    Row("a branch of two", lambda b, x: b.add(b.conv(b.conv(x, 1, 16), 3), b.conv(x, 3))),
    Row("branches, then 1x1", lambda b, x: b.conv(block(b, x), 1)),
    Row("1x1 + x, then 3x3", lambda b, x: b.conv(b.add(b.conv(x, 1), x), 3)),
    Row("x + 1x1, then 3x3", lambda b, x: b.conv(b.add(x, b.conv(x, 1)), 3)),
    Row("1x1, then branches", lambda b, x: alike(b, b.conv(x, 1, 16))),
    Row("Conv1d in a row", lambda b, x: b.conv(b.conv(x, 1, 16), 3), shape=LINE),
    Row("Gemm, MatMul", lambda b, x: b.matmul(b.gemm(x, 16, alpha=0.5), 4), shape=VECTOR, forms=ONNX),
)

REFUSED = (
    Row(
        "strides that differ",
        lambda b, x: b.add(b.conv(x, 3), b.conv(x, **same(3), stride=2)),
        2,
        1,
        "windows-differ",
        shape=(CHANNELS, 5, 5),
        sized=True,
    ),
    Row("1x1 with bias, padded 3x3", lambda b, x: b.conv(b.conv(x, 1, 16), **same(3)), 2, 0, "padded-border"),
    Row("3x3, 3x3", lambda b, x: b.conv(b.conv(x, 3), 3), 2, 0, "windows-differ"),
    Row("a padded 1x1 behind 3x3", lambda b, x: b.conv(b.conv(x, 3), 1, pad=1), 2, 0, "windows-differ"),
    Row("depthwise, pointwise", lambda b, x: b.conv(b.conv(x, **same(3), groups=CHANNELS), 1), 2, 0, "more-work"),
    Row("a bottleneck", lambda b, x: b.linear(b.linear(x, 8), 64), 2, 0, "more-work", shape=(64,)),
    Row("the first read elsewhere", lambda b, x: twice(b, b.conv(x, 1, 16)), 3, 1, "shared-output"),
    Row("a branch read elsewhere", lambda b, x: elsewhere(b, b.conv(x, **same(3)), b.conv(x, 1)), 2, 2),
    Row("a branch that is an output", lambda b, x: beside(b, b.conv(x, **same(3)), b.conv(x, 1)), 2, 1),
    Row("other values", lambda b, x: b.add(b.conv(x, **same(3)), b.conv(b.sigmoid(x), 1)), 2, 1),
    Row("something between", lambda b, x: b.add(b.conv(x, **same(3)), b.relu(b.conv(x, 1))), 2, 1),
    Row("statistics of the batch", lambda b, x: b.add(b.conv(x, **same(3)), b.bn(x, training=True)), 1, 1),
    Row(
        "a sum that repeats the channel",
        lambda b, x: b.add(b.conv(x, 1), b.conv(x, **same(3), outs=1)),
        2,
        1,
        "axis-differs",
    ),
    Row("x + 3x3 with one channel", lambda b, x: b.add(x, b.conv(x, **same(3), outs=1)), 1, 1, "axis-differs"),
    Row("x of one channel + 3x3", lambda b, x: b.add(x, b.conv(x, **same(3))), 1, 1, "axis-differs", shape=(1, 9, 9)),
    Row(
        "a sum that repeats the pixels",
        lambda b, x: b.add(b.conv(x, **same(3)), b.conv(x, 5)),
        2,
        1,
        "windows-differ",
        shape=(CHANNELS, 5, 5),
        sized=True,
    ),
    Row(
        "1x3 + 3x1", lambda b, x: b.add(b.conv(x, (1, 3), pad=(0, 1)), b.conv(x, (3, 1), pad=(1, 0))), 2, 1, "more-work"
    ),
    Row(
        "dilations 1 and 2",
        lambda b, x: b.add(b.conv(x, **same(3)), b.conv(x, 3, pad=2, dilation=2)),
        2,
        1,
        "more-work",
    ),
    Row(
        "depthwise + dense", lambda b, x: b.add(b.conv(x, **same(3), groups=CHANNELS), b.conv(x, 1)), 2, 1, "more-work"
    ),
    Row("grouped 3x3 + dense 1x1", lambda b, x: b.add(b.conv(x, **same(3), groups=2), b.conv(x, 1)), 2, 1, "more-work"),
    Row(
        "strided + x of one pixel",
        lambda b, x: b.add(b.conv(x, 1, stride=2), x),
        1,
        1,
        "windows-differ",
        shape=(CHANNELS, 1, 1),
        sized=True,
    ),
    Row("transposed, kernels that differ", lambda b, x: b.add(b.up(x, 3, pad=1), b.up(x, 1)), 2, 1, "windows-differ"),
    Row(
        "transposed 5x5 + 3x3 + 1x1",
        lambda b, x: b.add(b.up(x, 5, pad=2), b.conv(x, **same(3)), b.conv(x, 1)),
        2,
        1,
        "windows-differ",
    ),
    Row("transposed + x", lambda b, x: b.add(b.up(x, 3, pad=1), x), 1, 1, "windows-differ"),
    Row(
        "a BN that is excluded",
        lambda b, x: b.add(b.conv(x, **same(3)), b.bn(x)),
        1,
        1,
        options=FoldOptions(exclude=("*",)),
    ),
    Row("no merging wanted", block, 2, 2, options=FoldOptions(merge="never")),
    Row("numbers too large for float16", overflowing, 2, 1, "overflow", dtype=torch.float16),
    Row(
        "Linear on tokens + turned",
        lambda b, x: b.add(b.linear(x), b.linear(b.turned(x, False))),
        2,
        1,
        shape=(CHANNELS, CHANNELS),
        sized=True,
        last=True,
    ),
    Row(
        "turned and not back",
        lambda b, x: b.add(b.conv(x, **same(3)), b.moved(b.moved(x))),
        1,
        1,
        shape=CUBE,
        sized=True,
    ),
    Row("turned, read between", lambda b, x: between(b, x, b.turned(x, False)), 1, 1),
    Row("written between", written_between, 2, 1, "mutated-in-place", forms=TORCH),
    Row(
        "reflected borders + zeros",
        lambda b, x: b.add(b.conv(x, **same(3), padding_mode="reflect"), b.conv(x, **same(3))),
        2,
        1,
        "windows-differ",
        forms=("fx",),
    ),
    Row(
        "reflected borders + x",
        lambda b, x: b.add(b.conv(x, **same(3), padding_mode="reflect"), x),
        1,
        1,
        "windows-differ",
        forms=("fx",),
    ),
    Row(
        "SAME_UPPER with stride 2",
        lambda b, x: b.add(b.conv(x, 3, auto_pad="SAME_UPPER", stride=2), b.conv(x, 1, stride=2)),
        2,
        1,
        "windows-differ",
        forms=ONNX,
    ),
    Row(
        "SAME_UPPER with stride 2, twice",
        lambda b, x: b.add(
            b.conv(x, 3, auto_pad="SAME_UPPER", stride=2), b.conv(x, 3, auto_pad="SAME_LOWER", stride=2)
        ),
        2,
        1,
        "windows-differ",
        forms=ONNX,
    ),
)


def between(b: Any, x: Data, y: Data) -> Data:
    return b.add(b.conv(x, **same(3)), b.turned(y, False)), b.sigmoid(y)


def twice(b: Any, y: Data) -> Data:
    return b.add(b.conv(y, 3, 16), b.conv(b.sigmoid(y), 3, 16))


def alike(b: Any, y: Data) -> Data:
    return b.add(b.conv(y, 3), b.conv(y, 3))


def elsewhere(b: Any, first: Data, second: Data) -> Data:
    return b.sub(b.sigmoid(second), b.relu(b.add(first, second)))


def beside(b: Any, first: Data, second: Data) -> Data:
    return b.add(first, second), second


SECTIONS = {"parallel": PARALLEL, "serial": SERIAL, "refused": REFUSED}
ROWS = tuple(row for section in SECTIONS.values() for row in section)


def main() -> None:
    """Say how many rows there are."""
    for name, rows in SECTIONS.items():
        print(f"{name:9} {len(rows)} rows: {', '.join(f'{sum(f in r.forms for r in rows)} as {f}' for f in FORMS)}")


if __name__ == "__main__":
    main()
