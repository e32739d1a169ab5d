"""Who shares memory with a value that is written in place.

In-place operators and views are data flow that a graph does not show: in `y = conv(x); y[:, :1].mul_(-1); bn(y)` the
batch norm reads the convolution, and yet not its result. `mutated(graph, modules)` gives every value whose contents may
change after it was made, or that shares memory with one; `written_state` gives the tensors of modules that a call of
the module changes.

An in-place operator on a fresh value that nobody else reads (`relu_(bn(x))`) is as good as the one that writes to new
memory: it is *clean*, and pins nothing. All else is taken at its worst. An operator that is not known to return new
memory may return its input; a module or function of unknown origin may write to whatever it is given.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from bnfold.frontends.torch.calls import Call, call_of, hooked, tensor_arguments, words
from bnfold.frontends.torch.lenses import is_norm, trains

FRESH = words(
    "conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d conv_transpose3d linear"
    " addmm mm bmm matmul baddbmm batch_norm layer_norm group_norm instance_norm rms_norm add sub mul div truediv"
    " neg pow relu relu6 hardtanh silu hardswish hardsigmoid leaky_relu elu celu selu mish sigmoid tanh gelu"
    " softplus softmax log_softmax prelu cat concat concatenate stack sum mean amax max_pool1d max_pool2d"
    " max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
    " adaptive_max_pool2d interpolate upsample_nearest2d upsample_bilinear2d embedding"
    " scaled_dot_product_attention clone exp sqrt rsqrt square clamp pad"
)
"""Operators that return new memory, by bare name. `pad` copies even where nothing is padded."""

SHAPE_READERS = words(
    "sym_size sym_numel sym_stride sym_storage_offset size dim numel ndimension stride"
    " _assert_tensor_metadata is_floating_point"
)

_IN_PLACE_OPERATORS = frozenset(
    getattr(operator, name)
    for name in words("iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift setitem")
)

_PURE_MODULES = ("torch", "_operator", "operator", "math", "builtins")


@dataclass(frozen=True)
class Effect:
    """What a node does to memory: the values that it writes, and those that its result may share memory with."""

    writes: tuple[fx.Node, ...] = ()
    aliases: tuple[fx.Node, ...] = ()


def mutated(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> frozenset[fx.Node]:
    """Every value of the graph that does not keep its contents, or may share memory with one that does not."""
    effects = {node: _effect(node, modules) for node in graph.nodes}
    fresh = _fresh_values(graph, effects)
    sets = _DisjointSets()
    written: list[fx.Node] = []
    for node, effect in effects.items():
        if _clean(node, effect, fresh):
            continue
        for other in effect.aliases:
            sets.join(node, other)
        written += effect.writes
    roots = {sets.root(node) for node in written}
    return frozenset(node for node in graph.nodes if sets.root(node) in roots)


@dataclass(frozen=True)
class Ownership:
    """The values that own their memory, and by in-place operator that is clean the value that it writes."""

    fresh: frozenset[fx.Node]
    written: dict[fx.Node, fx.Node]


def ownership(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> Ownership:
    """Who may write where without anybody noticing."""
    effects = {node: _effect(node, modules) for node in graph.nodes}
    fresh = _fresh_values(graph, effects)
    written = {node: effect.writes[0] for node, effect in effects.items() if _clean(node, effect, fresh)}
    return Ownership(frozenset(fresh), written)


def as_out_of_place(node: fx.Node) -> None:
    """Let a sum that is written to its first operand have memory of its own."""
    name = bare_name(node).removesuffix("_")
    if isinstance(node.target, torch._ops.OpOverload):
        node.target = getattr(getattr(torch.ops.aten, name), node.target._overloadname)
    elif node.op == "call_method":
        node.target = name
    else:
        node.target = getattr(torch, {"iadd": "add", "isub": "sub"}.get(name, name))


def as_reshapes(value: fx.Node, modules: Mapping[str, nn.Module]) -> None:
    """Let those who view a value, or a view of it, take it in any memory layout: it is another one than it was."""
    waiting, seen = [value], {value}
    for current in waiting:
        for reader in current.users:
            if reader in seen or current not in _effect(reader, modules).aliases:
                continue
            seen.add(reader)
            waiting.append(reader)
            if reader.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
                reader.target = torch.ops.aten.reshape.default
            elif reader.op == "call_method" and reader.target == "view" and not _views_dtype(reader):
                reader.target = "reshape"


def _views_dtype(node: fx.Node) -> bool:
    """Whether `view` gives the bits another type, not the numbers another shape."""
    return "dtype" in node.kwargs or any(isinstance(argument, torch.dtype) for argument in node.args)


def written_state(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """The names of the tensors that called modules may change: their buffers in train mode; all, if code is foreign."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    parts = (pair for name in called for pair in modules[name].named_modules(prefix=name, remove_duplicate=False))
    return frozenset(tensor for name, part in parts for tensor in _changed_by(part, name))


def _changed_by(part: nn.Module, name: str) -> Iterator[str]:
    if part.training or _foreign(part):
        yield from (f"{name}.{key}" for key in part._buffers)
    if _foreign(part):
        yield from (f"{name}.{key}" for key in part._parameters)


def _foreign(part: nn.Module) -> bool:
    return hooked(part) or not type(part).__module__.startswith("torch.")


def reads_shape_only(node: fx.Node) -> bool:
    """Whether a node reads the shape or type of its input, never its contents."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout")
    return node.op in ("call_function", "call_method") and bare_name(node) in SHAPE_READERS


def bare_name(node: fx.Node) -> str:
    """The operator's name without namespace and overload: `relu_` for `aten.relu_.default`."""
    if node.op == "call_method":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return str(getattr(node.target, "__name__", node.target))


def _fresh_values(graph: fx.Graph, effects: Mapping[fx.Node, Effect]) -> set[fx.Node]:
    """The values that own their memory: made by an operator that returns new memory, or by a clean in-place one."""
    fresh: set[fx.Node] = set()
    for node in graph.nodes:
        computed = node.op in ("call_function", "call_method", "call_module")
        if computed and (not effects[node].aliases or _clean(node, effects[node], fresh)):
            fresh.add(node)
    return fresh


def _clean(node: fx.Node, effect: Effect, fresh: set[fx.Node]) -> bool:
    if len(effect.writes) != 1 or set(effect.aliases) - set(effect.writes):
        return False
    target = effect.writes[0]
    readers = [user for user in target.users if not reads_shape_only(user)]
    return target in fresh and readers == [node] and tensor_arguments(node).count(target) == 1


def _effect(node: fx.Node, modules: Mapping[str, nn.Module]) -> Effect:
    if node.op in ("placeholder", "get_attr", "output") or reads_shape_only(node):
        return Effect()
    call = call_of(node, modules)
    if node.op == "call_module":
        return _module_effect(node, modules[str(node.target)], linear=call is not None)
    if call is not None and is_norm(call):
        return _norm_effect(call)
    overload = isinstance(node.target, torch._ops.OpOverload)
    effect = _overload_effect(node, node.target) if overload else _python_effect(node)
    if any(word in bare_name(node) for word in ("batch_norm", "instance_norm")):
        return replace(effect, writes=(*effect.writes, *tensor_arguments(node)[1:]))
    return effect


def _norm_effect(call: Call) -> Effect:
    """A norm over the statistics of the batch updates the running ones, which hardly any schema says."""
    statistics = (call.get("running_mean"), call.get("running_var")) if trains(call) else ()
    return Effect(writes=tuple(each for each in statistics if isinstance(each, fx.Node)))


def _module_effect(node: fx.Node, module: nn.Module, linear: bool) -> Effect:
    tensors = tuple(tensor_arguments(node))
    parts = list(module.modules())
    if any(_foreign(part) for part in parts) or any(getattr(part, "inplace", False) for part in parts):
        return Effect(tensors, tensors)
    return Effect() if linear else Effect(aliases=tensors)


def _overload_effect(node: fx.Node, overload: Any) -> Effect:
    """What the schema declares; an operator that is a composite of others may return its input without saying so."""
    writes: list[fx.Node] = []
    aliases: list[fx.Node] = []
    for position, argument in enumerate(overload._schema.arguments):
        given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None:
            tensors = _nodes(given)
            aliases += tensors
            writes += tensors if argument.alias_info.is_write else []
    if not aliases and bare_name(node) not in FRESH and _composite(overload):
        aliases = tensor_arguments(node)
    return Effect(tuple(writes), tuple(aliases))


def _composite(overload: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CompositeImplicitAutograd"))


def _python_effect(node: fx.Node) -> Effect:
    """Functions and methods of Python, which declare nothing: judged by where they come from and by their names."""
    tensors = tuple(tensor_arguments(node))
    name = bare_name(node)
    first = tuple(_nodes(node.args[0])) if node.args else tensors
    if node.op == "call_function" and not _pure(node.target):
        return Effect(tensors, tensors)
    if node.target in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__")) or _asks_in_place(node):
        return Effect(first, first)
    if out := node.kwargs.get("out"):
        return Effect(tuple(_nodes(out)), tuple(_nodes(out)))
    return Effect() if name in FRESH else Effect(aliases=tensors)


def _pure(target: Any) -> bool:
    module = getattr(target, "__module__", None) or ""
    higher_order = isinstance(target, torch._ops.HigherOrderOperator)
    return not higher_order and (module.partition(".")[0] in _PURE_MODULES or inspect.isbuiltin(target))


def _asks_in_place(node: fx.Node) -> bool:
    """Whether a function is called with `inplace=True`, by keyword or by position."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is not False
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return False
    names = list(inspect.signature(node.target).parameters)
    return "inplace" in names and len(node.args) > names.index("inplace") and bool(node.args[names.index("inplace")])


def _nodes(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(argument, lambda node: found.append(node))
    return found


class _DisjointSets:
    def __init__(self) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}

    def root(self, node: fx.Node) -> fx.Node:
        while (parent := self._parent.get(node, node)) is not node:
            self._parent[node] = self._parent.get(parent, parent)
            node = parent
        return node

    def join(self, one: fx.Node, other: fx.Node) -> None:
        self._parent[self.root(one)] = self.root(other)
