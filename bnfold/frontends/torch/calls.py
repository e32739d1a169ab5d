"""One spelling per operator: the arguments of a node by name, whatever the dialect wrote.

A convolution may be `aten.conv2d.default`, `F.conv2d`, or a call of an `nn.Conv2d`; its arguments may be positional, by
keyword, or attributes of the module. `call_of(node, modules)` gives one `Call` for all of them, and `set_argument`
writes an argument back where the node keeps it.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from bnfold.window import Window

aten = torch.ops.aten


def words(text: str) -> frozenset[str]:
    """The names in a line of text."""
    return frozenset(text.split())


Parameters = tuple[tuple[str, Any], ...]
"""The parameters of a function in order, each with its default (`REQUIRED` where it has none)."""

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Stored:
    """A tensor that a module holds, by its qualified name."""

    name: str


@dataclass(frozen=True)
class Call:
    """An operator and its arguments by name. A tensor is a `fx.Node`, or `Stored` where a module holds it."""

    operator: str
    arguments: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)


def _overloads(*names: str) -> dict[Any, str]:
    """Every functional overload of these aten operators, and the operator's name."""
    found: dict[Any, str] = {}
    for name in names:
        packet = getattr(aten, name)
        found |= {getattr(packet, overload): name for overload in packet.overloads() if "out" not in overload}
    return found


CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
PRODUCTS = ("linear", "addmm", "mm", "matmul")
NORMS = (
    "batch_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
)

_OVERLOADS = _overloads(*CONVOLUTIONS, *TRANSPOSED, *PRODUCTS, *NORMS)

_FUNCTIONS: dict[Any, tuple[str, Any]] = {
    functional.conv1d: ("conv1d", aten.conv1d.default),
    functional.conv2d: ("conv2d", aten.conv2d.default),
    functional.conv3d: ("conv3d", aten.conv3d.default),
    functional.conv_transpose1d: ("conv_transpose1d", aten.conv_transpose1d.default),
    functional.conv_transpose2d: ("conv_transpose2d", aten.conv_transpose2d.input),
    functional.conv_transpose3d: ("conv_transpose3d", aten.conv_transpose3d.input),
    functional.linear: ("linear", aten.linear.default),
    torch.addmm: ("addmm", aten.addmm.default),
    torch.mm: ("mm", aten.mm.default),
    torch.matmul: ("matmul", aten.matmul.default),
    operator.matmul: ("matmul", aten.matmul.default),
    torch.batch_norm: ("batch_norm", aten.batch_norm.default),
}

_METHODS = {"matmul": aten.matmul.default, "mm": aten.mm.default, "addmm": aten.addmm.default}

_CONV_MODULES: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}

NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_FROZEN_NORMS = ("torchvision.ops.misc.FrozenBatchNorm2d", "detectron2.layers.batch_norm.FrozenBatchNorm2d")


def call_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Call | None:
    """The call that a node makes, None where no lens reads such an operator."""
    if node.op == "call_module":
        return _module_call(node, modules[str(node.target)])
    name = _function_name(node)
    if name is None:
        return None
    parameters = parameters_of(node)
    bound = {key: default for key, default in parameters if default is not REQUIRED}
    bound.update(zip((key for key, _ in parameters), node.args, strict=False))
    bound.update({_canonical(key): value for key, value in node.kwargs.items()})
    return Call(name, bound)


def _function_name(node: fx.Node) -> str | None:
    if node.op == "call_method":
        return str(node.target) if node.target in _METHODS else None
    if node.op != "call_function":
        return None
    if node.target is functional.batch_norm:
        return "batch_norm"
    if node.target in _FUNCTIONS:
        return _FUNCTIONS[node.target][0]
    return _OVERLOADS.get(node.target)


def parameters_of(node: fx.Node) -> Parameters:
    """The parameters of a function that `call_of` reads, or of one of two operands, in the order of its arguments."""
    if node.target is functional.batch_norm:
        signature = inspect.signature(functional.batch_norm)
        return tuple((name, parameter.default) for name, parameter in signature.parameters.items())
    overload = (
        _METHODS.get(str(node.target))
        if node.op == "call_method"
        else _FUNCTIONS.get(node.target, ("", node.target))[1]
    )
    if not isinstance(overload, torch._ops.OpOverload):
        return (("input", REQUIRED), ("other", REQUIRED))
    return tuple(
        (_canonical(argument.name), argument.default_value if argument.has_default_value() else REQUIRED)
        for argument in overload._schema.arguments
    )


def _canonical(name: str) -> str:
    """aten says `self` where the Python functions say `input`."""
    return "input" if name == "self" else name


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Give a function node another value for one argument, by keyword or in place, as it was given before."""
    keyword = next((key for key in node.kwargs if _canonical(key) == name), None)
    if keyword is not None:
        node.update_kwarg(keyword, value)
        return
    parameters = parameters_of(node)
    position = [key for key, _ in parameters].index(name)
    filled = [default for _, default in parameters[len(node.args) : position]]
    if any(default is REQUIRED for default in filled):
        node.update_kwarg(name, value)
        return
    args = [*node.args, *filled, None][: max(len(node.args), position + 1)]
    args[position] = value
    node.args = tuple(args)


def set_window(node: fx.Node, window: Window, groups: int) -> None:
    """Give a convolution another window; one that is not alike on both sides is its own, which `same` spells."""
    if not window.kernel:
        return
    set_argument(node, "groups", groups)
    if window.before != window.after:
        return
    if isinstance(node.target, torch._ops.OpOverload) and node.target._overloadname == "padding":
        node.target = getattr(aten, node.target._schema.name.split("::")[1]).default  # the one that takes numbers
    sizes = {"stride": window.stride, "padding": window.before, "dilation": window.dilation}
    for name, values in sizes.items():
        set_argument(node, name, list(values))


def _module_call(node: fx.Node, module: nn.Module) -> Call | None:
    kind = type(module)
    if kind in _CONV_MODULES:
        return Call(_CONV_MODULES[kind], _bound(node, "input", "output_size") | _convolution(node, module))
    if kind is nn.Linear:
        return Call("linear", _bound(node, "input") | _tensors(node, module, "weight", "bias"))
    if kind in NORM_MODULES or f"{kind.__module__}.{kind.__name__}" in _FROZEN_NORMS:
        return Call("batch_norm", _bound(node, *inspect.signature(kind.forward).parameters) | _norm(node, module))
    return None


def _bound(node: fx.Node, *names: str) -> dict[str, Any]:
    names = tuple(name for name in names if name != "self")
    data = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {"input" if name == names[0] else name: value for name, value in data.items()}


def _tensors(node: fx.Node, module: nn.Module, *names: str) -> dict[str, Any]:
    return {name: None if getattr(module, name) is None else Stored(f"{node.target}.{name}") for name in names}


def _convolution(node: fx.Node, module: Any) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return _tensors(node, module, "weight", "bias") | {name: getattr(module, name) for name in names}


def _norm(node: fx.Node, module: Any) -> dict[str, Any]:
    tensors = _tensors(node, module, "weight", "bias", "running_mean", "running_var")
    trains = module.training and type(module) in NORM_MODULES
    return tensors | {"training": trains, "eps": module.eps}


def hooked(module: nn.Module) -> bool:
    """Whether code other than the module's class runs when it is called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    replaced = "forward" in vars(module) and type(module).__module__ != "torch.export._unlift"  # torch's input guards
    return any(hooks) or replaced


def tensor_arguments(node: fx.Node, keep: Callable[[fx.Node], bool] = lambda _: True) -> list[fx.Node]:
    """The nodes that a node reads, each as often as it appears."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda argument: found.append(argument))
    return [argument for argument in found if keep(argument)]
