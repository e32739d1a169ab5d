"""Operators that fold: linear ones and affines; and opaque ones and writes, which stop a fold."""

from __future__ import annotations

import operator
from typing import Any

import torch
from random_torch_builder import Builder, Op, Unfit
from random_torch_passages import kept_channel, spatial_axes
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

aten = torch.ops.aten
CHANNELS = (2, 3, 4, 4, 6)

# linear operators


def _spatial(b: Builder, value: fx.Node) -> tuple[int, int]:
    """The number of axes of pixels and of channels of a value that a convolution can read, without a batch too."""
    if b.rank(value) == 2 and b.channel[value] == 0:
        return 1, b.shape(value)[0]
    return spatial_axes(b, value), b.shape(value)[1]


def _trained(b: Builder, module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.data = b.tensor(*parameter.shape, spread=0.5)
    return module.requires_grad_(b.chance(0.8))


def plain(b: Builder, value: fx.Node, out: int = 0) -> fx.Node:
    """A linear operator over the channels of a value and nothing more, with as many results as asked for."""
    axis, rank, out = b.channel[value], b.rank(value), out or b.pick(*CHANNELS)
    if axis == rank - 1:
        size = b.shape(value)[-1]
        if b.chance(0.5):
            return b.call(_trained(b, nn.Linear(size, out, b.chance(0.7))), value, axis=axis)
        return b.call(torch.matmul, value, b.hold(b.tensor(size, out, spread=0.5)), axis=axis)
    if axis != 1:
        raise Unfit("no image")
    spatial, kernel = spatial_axes(b, value), b.pick(1, 1, 1, 2)
    weight = b.tensor(out, b.shape(value)[1], *[kernel] * spatial, spread=0.5)
    if b.chance(0.5):
        bias = b.hold(b.tensor(out)) if b.chance(0.6) else None
        return b.call((F.conv1d, F.conv2d, F.conv3d)[spatial - 1], value, b.hold(weight), bias, axis=1)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
    return b.call(_trained(b, kind(b.shape(value)[1], out, kernel, bias=b.chance(0.6))), value, axis=1)


def convolution(b: Builder, value: fx.Node) -> fx.Node:
    spatial, channels = _spatial(b, value)
    groups = b.pick(1, 1, 1, channels, *(g for g in (2, 3) if channels % g == 0))
    out = groups * b.pick(1, 2, 1, 3) if groups > 1 else b.pick(*CHANNELS)
    kernel = tuple(b.pick(1, 1, 2, 3) for _ in range(spatial))
    padding = b.pick(0, 0, 0, 1, "same", "valid", tuple(b.pick(0, 1) for _ in kernel))
    stride = 1 if padding == "same" else b.pick(1, 1, 1, 2)
    dilation, bias = b.pick(1, 1, 1, 2), b.chance(0.6)
    style, axis = b.random.random(), b.rank(value) - spatial - 1
    if style < 0.5:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
        mode = b.pick("zeros", "zeros", "zeros", "zeros", "reflect", "replicate", "circular")
        made = kind(channels, out, kernel, stride, padding, dilation, groups, bias, mode)
        return b.call(_trained(b, made), value, axis=axis)
    weight = b.hold(b.tensor(out, channels // groups, *kernel, spread=0.5))
    offset = b.hold(b.tensor(out)) if bias else None
    if style < 0.8 or not isinstance(padding, int):
        function = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        return b.call(function, value, weight, offset, stride, padding, dilation, groups=groups, axis=axis)
    ones = (1,) * spatial
    arguments = [[stride] * spatial, [padding] * spatial, [dilation] * spatial]
    if b.chance(0.5):
        return b.call(aten.convolution.default, value, weight, offset, *arguments, False, ones, groups, axis=axis)
    function = (aten.conv1d, aten.conv2d, aten.conv3d)[spatial - 1].default
    return b.call(function, value, weight, offset, *arguments, groups, axis=axis)


def transposed(b: Builder, value: fx.Node) -> fx.Node:
    spatial, channels = _spatial(b, value)
    groups = b.pick(1, 1, *(g for g in (2, 3) if channels % g == 0))
    each, kernel, stride = b.pick(1, 2, 3), b.pick(1, 1, 2, 3), b.pick(1, 1, 2)
    padding, extra = b.pick(0, 0, 1), b.pick(0, 0, 1) if stride == 2 else 0
    axis = b.rank(value) - spatial - 1
    if b.chance(0.5):
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[spatial - 1]
        made = kind(channels, each * groups, kernel, stride, padding, extra, groups, bias=b.chance(0.6))
        return b.call(_trained(b, made), value, axis=axis)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    weight = b.hold(b.tensor(channels, each, *[kernel] * spatial, spread=0.5))
    offset = b.hold(b.tensor(each * groups)) if b.chance(0.6) else None
    return b.call(function, value, weight, offset, stride, padding, extra, groups, axis=axis)


def linear(b: Builder, value: fx.Node) -> fx.Node:
    size, out, last = b.shape(value)[-1], b.pick(*CHANNELS), b.rank(value) - 1
    style = b.random.random()
    if style < 0.4:
        return b.call(_trained(b, nn.Linear(size, out, b.chance(0.7))), value, axis=last)
    offset = b.hold(b.tensor(out)) if b.chance(0.6) else None
    if style < 0.65:
        function = b.pick(F.linear, aten.linear.default)
        return b.call(function, value, b.hold(b.tensor(out, size, spread=0.5)), offset, axis=last)
    weight = b.hold(b.tensor(size, out, spread=0.5))
    if b.chance(0.3):
        weight = b.call(b.pick("t", torch.t, aten.t.default), b.hold(b.tensor(out, size, spread=0.5)))
    if b.rank(value) == 2 and style < 0.85:
        bias = b.hold(b.tensor(*b.pick((out,), (1, out), (1,), (1, 1), (2, out))))
        factors = b.pick({}, {}, {"alpha": 2.0}, {"beta": 0.5}, {"alpha": -1, "beta": 3})
        return b.call(b.pick(torch.addmm, aten.addmm.default), bias, value, weight, axis=last, **factors)
    return b.call(b.pick(torch.matmul, operator.matmul, "matmul", torch.mm, aten.mm.default), value, weight, axis=last)


def constant_first_product(b: Builder, value: fx.Node) -> fx.Node:
    """`W @ x`: the channels of the result are on the axis before the last."""
    if b.rank(value) < 2:
        raise Unfit("a vector")
    weight = b.hold(b.tensor(b.pick(*CHANNELS), b.shape(value)[-2], spread=0.5))
    return b.call(torch.matmul, weight, value, axis=b.rank(value) - 2)


def same_module_again(b: Builder, value: fx.Node) -> fx.Node:
    nodes = b.graph.find_nodes(op="call_module")
    module = b.pick(*nodes)
    made = b.again(module.target, value, axis=b.channel[module])
    b.norms += isinstance(b.root.get_submodule(module.target), nn.modules.batchnorm._BatchNorm)
    return made


# affines


def norm_module(b: Builder, value: fx.Node) -> fx.Node:
    rank, channels = b.rank(value), b.shape(value)[1]
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[min(max(rank, 2), 5)]
    module = kind(channels, eps=b.pick(1e-5, 1e-5, 1e-3, 0.1), affine=b.chance(0.9))
    mean, variance, gamma, beta = _statistics(b, channels)
    module.running_mean.copy_(mean)
    module.running_var.copy_(variance)
    if module.affine:
        module.weight.data.copy_(gamma)
        module.bias.data.copy_(beta)
    made = b.call(module, value, axis=1)
    b.norms += 1
    return made


def _statistics(b: Builder, channels: int) -> tuple[Tensor, ...]:
    """Mean, variance, gamma and beta; often without a shift, which crosses more."""
    mean, variance = b.tensor(channels), b.tensor(channels).square() + 0.5
    beta = b.tensor(channels)
    if b.chance(0.35):
        mean, beta = torch.zeros_like(mean), torch.zeros_like(beta)
    if b.chance(0.1):
        variance = torch.ones_like(variance)
    return mean, variance, b.scales(channels), beta


def norm_function(b: Builder, value: fx.Node) -> fx.Node:
    mean, variance, gamma, beta = (
        b.hold(each, trained=i > 1) for i, each in enumerate(_statistics(b, b.shape(value)[1]))
    )
    if b.chance(0.2):
        beta = None
    if b.chance(0.1):
        gamma = None
    eps = b.pick(1e-5, 1e-3, 0.0)
    if b.chance(0.5):
        made = b.call(F.batch_norm, value, mean, variance, gamma, beta, eps=eps, axis=1)
    elif b.chance(0.5):
        made = b.call(torch.batch_norm, value, gamma, beta, mean, variance, False, 0.1, eps, False, axis=1)
    else:
        made = b.call(aten.batch_norm.default, value, gamma, beta, mean, variance, False, 0.1, eps, False, axis=1)
    b.norms += 1
    return made


def _constant_shape(b: Builder, value: fx.Node) -> tuple[int, ...]:
    """One number per channel mostly; else any shape that broadcasts, onto larger ones and higher ranks too."""
    shape, rank = b.shape(value), b.rank(value)
    axis = b.channel[value]
    if axis is None or b.chance(0.1):
        axis = b.random.randrange(rank)
    if b.chance(0.8):
        lead = b.pick(0, 0, axis)
        return (1,) * lead + (shape[axis],) + (1,) * (rank - 1 - axis)
    exotic = [
        (1,) * rank,
        (1,),
        shape[-1:],
        shape,
        shape[axis:],
        (1,) * (rank + 1),
        (1, *shape[axis : axis + 1], *(1,) * rank),
        tuple(b.pick(size, 1) for size in shape),
        tuple(b.pick(*CHANNELS) if size == 1 else 1 for size in shape),
    ]
    return b.pick(*exotic)


def _constant(b: Builder, value: fx.Node, *, scale: bool) -> Any:
    """A number, or a node that reads or computes one tensor."""
    if b.chance(0.15):
        return b.pick(2.0, -1.0, 0.5, 3, 0.0 if not scale else 1.0)
    shape = () if b.chance(0.08) else _constant_shape(b, value)
    numbers = b.tensor(*shape)
    if scale:
        numbers = b.scales(max(1, numbers.numel())).reshape(shape)
    kind = b.random.random()
    if kind < 0.1:
        return b.call(b.pick("view", "reshape"), b.hold(numbers.reshape(-1)), numbers.shape)
    if kind < 0.15 and numbers.ndim:
        return b.call("unsqueeze", b.hold(numbers.squeeze(0) if shape[0] == 1 else numbers), 0)
    if kind < 0.2:
        return b.call(torch.exp, b.hold(numbers))
    if kind < 0.24:
        return b.hold(numbers.to(torch.float32))
    if kind < 0.26:
        return b.hold(torch.ones(numbers.shape, dtype=torch.int64) * 2)
    return b.hold(numbers)


def elementwise(b: Builder, value: fx.Node) -> fx.Node:
    """`x·c`, `c·x`, `x/c`, `x+c`, `c+x`, `x−c`, `c−x`, `−x`, and `c/x`, which is none."""
    axis, kind = b.channel[value], b.pick(*["mul", "mul", "mul", "add", "add", "sub", "div", "neg"])
    if kind == "neg":
        return b.call(b.pick("neg", torch.neg, operator.neg, aten.neg.default), value, axis=axis)
    constant = _constant(b, value, scale=kind in ("mul", "div"))
    functions = {"mul": operator.mul, "add": operator.add, "sub": operator.sub, "div": operator.truediv}
    style = b.random.random()
    if style < 0.35:
        pair = (value, constant) if b.chance(0.75) else (constant, value)
        return kept_channel(b, b.call(functions[kind], *pair, axis=axis), value)
    if style < 0.6:
        return kept_channel(b, b.call(kind, value, constant, axis=axis), value)
    keywords = {"alpha": b.pick(1, 2, 0.5)} if kind in ("add", "sub") and b.chance(0.3) else {}
    if style < 0.7 and kind == "sub":
        return kept_channel(b, b.call(torch.rsub, value, constant, axis=axis, **keywords), value)
    if style < 0.85 or not isinstance(constant, fx.Node):
        return kept_channel(b, b.call(getattr(torch, kind), value, constant, axis=axis, **keywords), value)
    pair = (value, constant) if b.chance(0.75) else (constant, value)
    return kept_channel(b, b.call(getattr(aten, kind).Tensor, *pair, axis=axis, **keywords), value)


def _per_channel(b: Builder, value: fx.Node) -> tuple[int, tuple[int, ...]]:
    axis = b.channel[value]
    if axis is None:
        axis = b.random.randrange(b.rank(value))
    return axis, (b.shape(value)[axis],) + (1,) * (b.rank(value) - 1 - axis)


def handwritten_norm(b: Builder, value: fx.Node) -> fx.Node:
    """`(x − mean) / sqrt(variance + eps) * gamma + beta`, spelt out."""
    axis, shape = _per_channel(b, value)
    mean, variance, gamma, beta = (b.hold(each.reshape(shape)) for each in _statistics(b, shape[0]))
    deviation = b.call(torch.sqrt, b.call(operator.add, variance, 1e-5))
    if b.chance(0.4):
        rate = b.call(torch.rsqrt, b.call(operator.add, variance, 1e-5))
        value = b.call(operator.mul, b.call(operator.sub, value, mean, axis=axis), rate, axis=axis)
    else:
        value = b.call(operator.truediv, b.call(operator.sub, value, mean, axis=axis), deviation, axis=axis)
    return b.call(operator.add, b.call(operator.mul, value, gamma, axis=axis), beta, axis=axis)


def frozen_norm(b: Builder, value: fx.Node) -> fx.Node:
    """`x * scale + shift`, both computed from statistics when it runs."""
    if b.rank(value) < 3 or b.channel[value] != 1:
        raise Unfit("no image")
    shape = (1, -1, *(1,) * (b.rank(value) - 2))
    mean, variance, gamma, beta = map(b.hold, _statistics(b, b.shape(value)[1]))
    scale = b.call(operator.mul, gamma, b.call("rsqrt", b.call(operator.add, variance, 1e-5)))
    shift = b.call(operator.sub, beta, b.call(operator.mul, mean, scale))
    scaled = b.call(operator.mul, value, b.call("reshape", scale, shape), axis=1)
    return b.call(operator.add, scaled, b.call("reshape", shift, shape), axis=1)


def layer_scale(b: Builder, value: fx.Node) -> fx.Node:
    axis, shape = _per_channel(b, value)
    made = b.call(operator.mul, value, b.hold(b.scales(shape[0]).reshape(shape)), axis=axis)
    return b.call(operator.add, made, b.hold(b.tensor(*shape)), axis=axis) if b.chance(0.4) else made


def shifted(b: Builder, value: fx.Node) -> fx.Node:
    axis, shape = _per_channel(b, value)
    return b.call(b.pick(operator.add, operator.sub), value, b.hold(b.tensor(*shape)), axis=axis)


# opaque and in place


def opaque(b: Builder, value: fx.Node) -> fx.Node:
    axis = b.channel[value]
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (torch.sigmoid, ()),
        ("tanh", ()),
        (nn.SiLU(), ()),
        (F.softmax, (b.random.randrange(b.rank(value)),)),
        ("clamp", (-0.5, 1.0)),
        (F.gelu, ()),
        (torch.cumsum, (b.random.randrange(b.rank(value)),)),
        (torch.abs, ()),
        (F.relu6, ()),
        (torch.roll, (1, b.random.randrange(b.rank(value)))),
        (torch.square, ()),
        (aten.pow.Tensor_Scalar, (2,)),
    ]
    target, args = b.pick(*calls)
    return b.call(target, value, *args, axis=axis)


def in_place(b: Builder, value: fx.Node) -> fx.Node:
    """The value itself is written; what is handed on is the result or the value, which are the same memory."""
    axis = b.channel[value]
    other = b.pick(*(node for node in b.pool if b.rank(node) == b.rank(value)))
    _, shape = _per_channel(b, value)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (nn.ReLU(inplace=True), ()),
        ("relu_", ()),
        (aten.relu_.default, ()),
        ("mul_", (b.hold(b.scales(shape[0]).reshape(shape)),)),
        ("add_", (b.hold(b.tensor(*shape)),)),
        ("mul_", (-1.0,)),
        (operator.iadd, (other,)),
        ("add_", (other,)),
        (operator.imul, (2.0,)),
        (aten.add_.Tensor, (other,)),
        (F.relu, (True,)),
        ("copy_", (other,)),
        (operator.setitem, ((slice(None), 0), 0.5)),
        ("zero_", ()),
    ]
    target, args = b.pick(*calls)
    made = b.call(target, value, *args, axis=axis)
    return made if target is not operator.setitem and b.chance(0.6) else value


def written_view(b: Builder, value: fx.Node) -> fx.Node:
    """`y[:, :1].mul_(-1)`: a view of the value is written, and the value is read on."""
    size = b.shape(value)[1]
    views: list[tuple[Any, tuple[Any, ...]]] = [
        (operator.getitem, ((slice(None), slice(0, 1)),)),
        ("narrow", (1, 0, max(1, size - 1))),
        ("select", (1, 0)),
        ("transpose", (0, 1)),
        ("detach", ()),
        ("view", (-1,)),
        ("expand", (-1,) * b.rank(value)),
        ("contiguous", ()),
        ("to", (b.dtype,)),
        ("reshape", (b.shape(value)[0], -1)),
        (nn.Flatten(0), ()),
        (nn.Identity(), ()),
        (F.dropout, (0.5, False)),
    ]
    target, args = b.pick(*views)
    view = b.call(target, value, *args)
    b.call(*b.pick(("mul_", view, -1.0), ("add_", view, 0.5), ("relu_", view), (operator.imul, view, 2.0)))
    return b.pick(value, value, view)


class Stepping(nn.Module):
    """A module of the caller's, which changes a tensor of its own whenever it is called."""

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.register_buffer("state", state)

    def forward(self, value: Tensor) -> Tensor:
        self.state.add_(0.125)
        return value * 2


def written_state(b: Builder, value: fx.Node) -> fx.Node:
    """A stored tensor, or another value, is written while the graph runs."""
    if b.chance(0.2):
        target = b.call(torch.zeros_like, value)
        b.call(torch.add, value, 1.0, out=target)
        return target
    axis, shape = _per_channel(b, value)
    numbers = b.tensor(*shape, spread=0.1)
    if b.chance(0.5):
        stepped = b.call(Stepping(numbers), b.pick(*b.graph.find_nodes(op="placeholder")))
        return b.call(operator.mul, value, b.read(f"{stepped.target}.state"), axis=axis)
    name = f"s{len(b.values)}"
    b.root.register_buffer(name, numbers)
    state = b.read(name)
    if b.chance(0.5):
        value = b.call(operator.mul, value, state, axis=axis)
    b.call(b.pick("add_", "sub_"), b.pick(state, b.read(name)), 0.125)
    return b.call(b.pick(operator.add, operator.mul), value, state, axis=axis)


LINEAR: tuple[Op, ...] = (
    *(plain, plain, convolution, convolution, linear, linear, transposed),
    *(same_module_again, constant_first_product),
)
AFFINE: tuple[Op, ...] = (
    *(norm_module, norm_module, norm_function, elementwise, elementwise),
    *(handwritten_norm, frozen_norm, layer_scale),
)
OPAQUE: tuple[Op, ...] = (opaque,)
IN_PLACE: tuple[Op, ...] = (in_place, in_place, written_view, written_state)
