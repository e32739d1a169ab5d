"""One spelling per operator without weights: its bare name and its arguments by name.

A pool may be `aten.max_pool2d.default`, `functional.max_pool2d`, a method, or a call of an `nn.MaxPool2d`. `spell`
gives one `Call` for all of them. An in-place operator is spelt like the one that is not: who may read it so is said by
`aliasing`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from bnfold.frontends.torch.aliasing import bare_name
from bnfold.frontends.torch.calls import Call

_POOL = "input kernel_size stride padding dilation ceil_mode return_indices"
_AVERAGE = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
_CAST = "input dtype layout device pin_memory non_blocking copy memory_format"
_UPSAMPLED = (
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d")),
    *("upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
)

_SIGNATURES: dict[str, str] = {
    **dict.fromkeys(("relu", "neg", "negative", "detach", "alias", "t", "mT", "numpy_T", "identity"), "input"),
    **dict.fromkeys(("float", "half", "double", "bfloat16", "contiguous", "clone"), "input memory_format"),
    "relu": "input inplace",
    "leaky_relu": "input negative_slope inplace",
    "prelu": "input weight",
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
        "input p training inplace",
    ),
    **dict.fromkeys(("to", "_to_copy"), _CAST),
    **dict.fromkeys(("add", "sub", "subtract", "rsub"), "input other alpha"),
    **dict.fromkeys(("mul", "multiply", "div", "true_divide", "truediv", "matmul"), "input other"),
    **dict.fromkeys(("bmm", "mm"), "input mat2"),
    "permute": "input *dims",
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), "input dim0 dim1"),
    **dict.fromkeys(("view", "_unsafe_view"), "input *size"),
    "reshape": "input *shape",
    "expand": "input *size implicit",
    **dict.fromkeys(("view_as", "reshape_as", "expand_as"), "input other"),
    "flatten": "input start_dim end_dim",
    "unflatten": "input dim sizes",
    **dict.fromkeys(("squeeze", "unsqueeze"), "input dim"),
    **dict.fromkeys(("cat", "concat", "concatenate"), "tensors dim"),
    **dict.fromkeys(("split", "split_with_sizes"), "input sizes dim"),
    "chunk": "input chunks dim",
    "unbind": "input dim",
    "slice": "input dim start end step",
    "narrow": "input dim start length",
    **dict.fromkeys(("select", "index_select"), "input dim index"),
    "index": "input indices",
    "getitem": "input index",
    **dict.fromkeys(("mean", "sum"), "input dim keepdim dtype"),
    **dict.fromkeys(("amax", "max"), "input dim keepdim"),
    **{f"max_pool{n}d": _POOL for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": _POOL for n in (2, 3)},
    "avg_pool1d": "input kernel_size stride padding ceil_mode count_include_pad",
    "avg_pool2d": _AVERAGE,
    "avg_pool3d": _AVERAGE,
    **{f"{prefix}adaptive_avg_pool{n}d": "input output_size" for prefix in ("", "_") for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": "input output_size return_indices" for n in (1, 2, 3)},
    **dict.fromkeys(_UPSAMPLED, "input output_size align_corners scale_factors scales scales_h scales_w scales_d"),
    "interpolate": "input size scale_factor mode align_corners recompute_scale_factor antialias",
    "pad": "input pad mode value",
    "constant_pad_nd": "input pad value",
    **{f"{kind}_pad{n}d": "input pad" for kind in ("reflection", "replication") for n in (1, 2, 3)},
}
PARAMETERS = {name: tuple(text.split()) for name, text in _SIGNATURES.items()}
"""The parameters of an operator in the order of Python's functions; a `*` takes all the rest."""

_ALIASES = {
    "self": "input",
    "tensor": "input",
    "axis": "dim",
    "keepdims": "keepdim",
    "train": "training",
    "split_size": "sizes",
    "split_sizes": "sizes",
    "split_size_or_sections": "sizes",
    "padding": "pad",
    "axis0": "dim0",
    "axis1": "dim1",
}
_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}
_ROOMS = (torch, functional, operator)


def _module_table() -> dict[type[nn.Module], tuple[str, str, dict[str, Any]]]:
    """For each class of modules the operator, the attributes that are arguments of the same names, and further ones."""
    found: dict[type[nn.Module], tuple[str, str, dict[str, Any]]] = {
        nn.Identity: ("identity", "", {}),
        nn.ReLU: ("relu", "", {}),
        nn.LeakyReLU: ("leaky_relu", "negative_slope", {}),
        nn.PReLU: ("prelu", "", {}),
        nn.AlphaDropout: ("alpha_dropout", "p training", {}),
        nn.Flatten: ("flatten", "start_dim end_dim", {}),
        nn.Unflatten: ("unflatten", "dim", {}),
    }
    found |= dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), ("dropout", "p training", {}))
    found |= dict.fromkeys(
        (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
        ("interpolate", "size scale_factor mode align_corners recompute_scale_factor", {}),
    )
    for n in (1, 2, 3):
        for kind, name in (("MaxPool", f"max_pool{n}d"), ("AvgPool", f"avg_pool{n}d")):
            found[getattr(nn, f"{kind}{n}d")] = (name, _SIGNATURES[name].removeprefix("input "), {})
        found[getattr(nn, f"AdaptiveAvgPool{n}d")] = (f"adaptive_avg_pool{n}d", "output_size", {})
        found[getattr(nn, f"AdaptiveMaxPool{n}d")] = (f"adaptive_max_pool{n}d", "output_size return_indices", {})
        for kind, mode in _PAD_MODES.items():
            found[getattr(nn, f"{kind}Pad{n}d")] = ("pad", "padding", {"mode": mode})
        found[getattr(nn, f"ConstantPad{n}d")] = ("pad", "padding value", {})
        found[getattr(nn, f"ZeroPad{n}d")] = ("pad", "padding", {})
    return found


_PAD_MODES = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
_MODULES = _module_table()


def spell(node: fx.Node, modules: Mapping[str, nn.Module]) -> Call | None:
    """The call of an operator without weights that a node makes, None where it is no such operator.

    Arguments that are not given are absent; one that the operator is not known to have keeps its name.
    """
    if node.op == "call_module":
        return _module_call(node, modules[str(node.target)])
    if node.op not in ("call_function", "call_method") or not _is_standard(node):
        return None
    name = _plain_name(node)
    if name not in PARAMETERS:
        return None
    given = {_canonical(key, name): value for key, value in node.kwargs.items()}
    return Call(name, _positional(node, name) | given)


def _plain_name(node: fx.Node) -> str:
    """The name without the mark of an in-place operator."""
    name = bare_name(node)
    return _IN_PLACE.get(name, name.removesuffix("_"))


def _is_standard(node: fx.Node) -> bool:
    """Whether a node is torch's own operator, not a function of the same name."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target.namespace == "aten"
    name = bare_name(node)
    return node.op == "call_method" or any(getattr(room, name, None) is node.target for room in _ROOMS)


def _positional(node: fx.Node, name: str) -> dict[str, Any]:
    if isinstance(node.target, torch._ops.OpOverload):
        names = (_canonical(argument.name, name) for argument in node.target._schema.arguments)
        return dict(zip(names, node.args, strict=False))
    found: dict[str, Any] = {}
    for index, (parameter, value) in enumerate(zip(PARAMETERS[name], node.args, strict=False)):
        if parameter.startswith("*"):
            return found | {parameter[1:]: value if isinstance(value, (tuple, list)) else node.args[index:]}
        found[parameter] = value
    return found


def _canonical(argument: str, name: str) -> str:
    known = [parameter.removeprefix("*") for parameter in PARAMETERS[name]]
    return argument if argument in known else _ALIASES.get(argument, argument)


def _module_call(node: fx.Node, module: nn.Module) -> Call | None:
    if type(module) not in _MODULES or len(node.args) != 1 or node.kwargs:
        return None
    name, attributes, further = _MODULES[type(module)]
    held = {_canonical(key, name): getattr(module, key) for key in attributes.split()}
    return Call(name, {"input": node.args[0]} | held | further)
