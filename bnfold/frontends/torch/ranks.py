"""How many axes a value has, where the graph does not say.

A GraphModule stores no types. `enforced_ranks` knows what the graph itself demands: `BatchNorm2d` takes four axes and
nothing else, `flatten(1)` gives two, a convolution keeps their number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from bnfold.frontends.torch.aliasing import bare_name
from bnfold.frontends.torch.calls import call_of, tensor_arguments, words
from bnfold.frontends.torch.lenses import is_norm

# What makes no float of a whole number: its input has the type of its result.
_TYPE_KEEPING = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Identity, nn.Dropout, nn.MaxPool2d)
_TYPE_KEEPING_NAMES = words("relu relu_ relu6 hardtanh dropout contiguous clone detach max_pool2d pad")
_KEEPING = (
    *_TYPE_KEEPING,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardswish,
    nn.ELU,
    nn.Mish,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
_KEEPING_NAMES = _TYPE_KEEPING_NAMES | words(
    "silu gelu sigmoid tanh leaky_relu hardswish avg_pool2d adaptive_avg_pool2d interpolate"
)
_ARITHMETIC = words("add sub rsub mul div truediv")
_ELEMENTWISE = _ARITHMETIC | words("neg sqrt rsqrt reciprocal")
_DEMANDED = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}


def enforced_ranks(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[fx.Node, int]:
    """The ranks without which the graph would not run."""
    ranks: dict[fx.Node, int] = {}
    constants = _constants(graph, modules)
    sources: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and (_keeps_rank(node, modules) or _is_product(node, modules, constants)):
            sources[node] = source
        kind = type(modules[str(node.target)]) if node.op == "call_module" else None
        if kind in _DEMANDED:
            ranks[node] = _DEMANDED[kind]
        elif _flattens(node, modules):
            ranks[node] = 2
        elif (call := call_of(node, modules)) and call.operator in ("addmm", "mm"):
            ranks |= dict.fromkeys((node, *tensor_arguments(node)[-2:-1]), 2)
    for node in reversed(graph.nodes):
        if node in sources and node in ranks:
            ranks.setdefault(sources[node], ranks[node])
    for node in graph.nodes:
        operands = [sources[node]] if node in sources else _operands(node)
        known = [constants[each].dim() if each in constants else ranks.get(each) for each in operands]
        if known and None not in known:
            ranks.setdefault(node, max(rank for rank in known if rank is not None))
    return ranks


def enforced_channels(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[fx.Node, int]:
    """The sizes along axis 1 without which the graph would not run."""
    found: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            continue
        module = modules[str(node.target)] if node.op == "call_module" else None
        demanded = getattr(module, "in_channels", getattr(module, "num_features", getattr(module, "in_features", None)))
        if isinstance(demanded, int) and call_of(node, modules):
            found[source] = demanded
        elif node in found and _keeps_rank(node, modules):
            found.setdefault(source, found[node])
    return found


def enforced_dtypes(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[fx.Node, torch.dtype]:
    """The dtypes of what a called linear operator reads and makes, those of its weight, and what follows from them."""
    found: dict[fx.Node, torch.dtype] = {}
    for node in graph.nodes:
        call = call_of(node, modules)
        weight = getattr(modules[str(node.target)], "weight", None) if node.op == "call_module" else None
        if call is not None and not is_norm(call) and isinstance(weight, Tensor):
            found |= dict.fromkeys((node, *tensor_arguments(node)[:1]), weight.dtype)
    for node in reversed(graph.nodes):
        source = node.args[0] if node.args else None
        if node in found and isinstance(source, fx.Node) and _keeps_type(node, modules):
            found.setdefault(source, found[node])
    constants = _constants(graph, modules)
    for node in graph.nodes:
        call = call_of(node, modules)
        if call is not None and not is_norm(call):
            read = tensor_arguments(node)
        else:
            read = tensor_arguments(node)[:1] if _keeps_rank(node, modules) else _operands(node)
        types = {constants[each].dtype if each in constants else found.get(each) for each in read}
        if len(types) == 1 and None not in types:
            found.setdefault(node, next(dtype for dtype in types if dtype is not None))
    return found


def _constants(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[fx.Node, Tensor]:
    """What is stored, or computed from that element by element, on the meta device: shape and dtype."""
    known: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            holder, _, last = str(node.target).rpartition(".")
            stored = getattr(modules.get(holder), last, None)
            if isinstance(stored, Tensor):
                known[node] = torch.empty(stored.shape, dtype=stored.dtype, device="meta")
        elif node.op == "call_function" and bare_name(node) in _ELEMENTWISE and not node.kwargs:
            given = [known.get(each) if isinstance(each, fx.Node) else each for each in node.args]
            if any(isinstance(each, Tensor) for each in given) and None not in given:
                known[node] = node.target(*given)
    return known


def _operands(node: fx.Node) -> list[fx.Node]:
    """The operands of an elementwise operator; a number counts as the other one."""
    named = node.op in ("call_function", "call_method") and bare_name(node) in _ARITHMETIC
    if not named or node.kwargs.keys() - {"alpha"} or len(node.args) != 2:
        return []
    left, right = (each if isinstance(each, fx.Node) else None for each in node.args)
    numbers = all(isinstance(each, (fx.Node, int, float)) for each in node.args)
    first, second = left or right, right or left
    return [first, second] if numbers and first is not None and second is not None else []


def _keeps_rank(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if call := call_of(node, modules):
        return call.operator not in ("addmm", "mm", "matmul")
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _KEEPING)
    return node.op in ("call_function", "call_method") and bare_name(node) in _KEEPING_NAMES


def _keeps_type(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _TYPE_KEEPING)
    return node.op in ("call_function", "call_method") and bare_name(node) in _TYPE_KEEPING_NAMES


def _is_product(node: fx.Node, modules: Mapping[str, nn.Module], constants: Mapping[fx.Node, Tensor]) -> bool:
    """Whether a node multiplies by a stored matrix, which takes the last axis to another one."""
    call = call_of(node, modules)
    weight = constants.get(call.get("other")) if call is not None and call.operator == "matmul" else None
    return weight is not None and weight.dim() == 2


def _flattens(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node flattens all axes but the first."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, nn.Flatten) and bool(module.start_dim == 1 and module.end_dim == -1)
    if node.op not in ("call_function", "call_method") or bare_name(node) != "flatten":
        return False
    dimensions = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
    return bool(dimensions.get("start_dim", 0) == 1 and dimensions.get("end_dim", -1) == -1)
