"""The stored tensors of a graph, by name, and what is computed from nothing but them.

A weight may be a placeholder of an exported program, a `get_attr`, an attribute of a module, the transpose of one of
these, or the result of a parametrisation (weight norm, a pruning mask). `Constants.find` answers for all of them; what
is computed is evaluated in float64.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from bnfold.algebra import Array
from bnfold.frontends.torch.aliasing import bare_name
from bnfold.frontends.torch.calls import Stored, tensor_arguments, words
from bnfold.graph import Reason

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_COMPUTABLE = words(
    "add sub mul div truediv neg pow reciprocal sqrt rsqrt exp square abs norm linalg_vector_norm _weight_norm"
    " _weight_norm_interface sum mean var std var_mean std_mean amax mv dot vdot mm matmul batch_norm layer_norm"
    " reshape reshape_as view view_as t transpose permute numpy_T flatten unsqueeze squeeze expand contiguous clone"
    " detach detach_ to _to_copy float double half getitem cat stack tanh sigmoid softplus lift_fresh_copy alias"
)
"""Deterministic operators that may stand between a stored tensor and a weight."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that is the same in every run. `name` is None where it is computed; a `transposed` one is the transpose
    of the stored one. `tensor` is the value: as it is stored, or in float64 where it is computed."""

    name: str | None
    tensor: Tensor
    dtype: torch.dtype
    transposed: bool = False

    @property
    def key(self) -> Hashable:
        """Equal for the same memory, under whatever name."""
        return memory(self.tensor)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def array(self) -> Array:
        return as_array(self.tensor)


def memory(tensor: Tensor) -> Hashable:
    """Where a tensor lies: equal for tied parameters. A sparse one lies nowhere in particular."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    return (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.numel())


def as_array(tensor: Tensor) -> Array:
    """A float tensor as a float64 numpy array."""
    return np.asarray(tensor.detach().to("cpu", torch.float64).numpy(), dtype=np.float64)


class Constants:
    """What is constant in a graph.

    `names` are the nodes that stand for a stored tensor. One in `changing` is no constant, nor is one of the names in
    `written`, nor whatever shares memory with these.
    """

    def __init__(
        self,
        graph: fx.Graph,
        names: Mapping[fx.Node, str],
        tensors: Mapping[str, Tensor],
        changing: frozenset[fx.Node],
        written: frozenset[str] = frozenset(),
    ) -> None:
        self.names = dict(names)
        self.tensors = tensors
        self._changing_names = _sharing(tensors, written | {name for node, name in names.items() if node in changing})
        self._constant: set[fx.Node] = set()
        self._found: dict[fx.Node, Constant | Reason] = {}
        for node in graph.nodes:
            stored = node in self.names and self.names[node] not in self._changing_names
            if node not in changing and (stored or self._computable(node)):
                self._constant.add(node)

    def find(self, argument: Any) -> Constant | Reason:
        """The constant that an argument stands for, or why it is none that folds."""
        if isinstance(argument, Stored):
            return self._stored(argument.name, transposed=False)
        if not isinstance(argument, fx.Node):
            return Reason.PARAMETER_NOT_CONSTANT
        if argument not in self._found:
            self._found[argument] = self._look(argument)
        return self._found[argument]

    def integers(self, argument: Any) -> list[int] | None:
        """A stored list of integers (indices); None where the argument is none."""
        if not isinstance(argument, fx.Node) or not self.is_constant(argument):
            return None
        found = self._evaluate(argument, {}, double=False)
        listed = isinstance(found, Tensor) and found.dim() == 1 and found.dtype in (torch.int32, torch.int64)
        return [int(each) for each in found] if listed else None

    def is_constant(self, node: fx.Node) -> bool:
        """Whether the node's value is stored, or computed from nothing but stored tensors."""
        return node in self._constant

    def _computable(self, node: fx.Node) -> bool:
        inputs = tensor_arguments(node)
        known = node.op in ("call_function", "call_method") and bare_name(node) in _COMPUTABLE
        return known and not _is_bitcast(node) and bool(inputs) and all(each in self._constant for each in inputs)

    def _look(self, node: fx.Node) -> Constant | Reason:
        if not self.is_constant(node):
            return Reason.QUANTISED if is_quantised(node) else Reason.PARAMETER_NOT_CONSTANT
        if node in self.names:
            return self._stored(self.names[node], transposed=False)
        source = _transpose_of(node)
        if source in self.names and self.tensors[self.names[source]].dim() == 2:
            return self._stored(self.names[source], transposed=True)
        native, exact = self._evaluate(node, {}, double=False), self._evaluate(node, {}, double=True)
        if not isinstance(exact, Tensor) or native.dtype not in FLOATS or not _agree(native, exact):
            return Reason.PARAMETER_NOT_CONSTANT
        return Constant(None, exact, native.dtype)

    def _stored(self, name: str, transposed: bool) -> Constant | Reason:
        tensor = self.tensors.get(name)
        if tensor is None or name in self._changing_names or tensor.device.type == "meta":
            return Reason.PARAMETER_NOT_CONSTANT
        if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
            return Reason.QUANTISED
        plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided
        if not plain or tensor.dtype not in FLOATS:
            return Reason.UNSUPPORTED_ATTRIBUTE
        shown = tensor.detach().t() if transposed else tensor.detach()
        return Constant(name, shown, tensor.dtype, transposed)

    def _evaluate(self, node: fx.Node, known: dict[fx.Node, Any], double: bool) -> Any:
        if node in known:
            return known[node]
        if node in self.names:
            stored = self.tensors[self.names[node]].detach()
            return stored.double() if double and stored.is_floating_point() else stored
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: self._evaluate(each, known, double))
        with torch.no_grad():
            known[node] = _run(node, args, kwargs, double)
        return known[node]


def _sharing(tensors: Mapping[str, Tensor], names: frozenset[str]) -> frozenset[str]:
    """These names and all others of the same memory."""
    stores = {storage_of(tensors[name]) for name in names if name in tensors} - {None}
    return names | {name for name, tensor in tensors.items() if stores and storage_of(tensor) in stores}


def storage_of(tensor: Tensor) -> Hashable:
    """The memory of a tensor, equal for all that have a part of it; None where it has none of its own."""
    plain = tensor.layout is torch.strided and tensor.device.type != "meta" and tensor.numel() > 0
    return (tensor.device, tensor.untyped_storage().data_ptr()) if plain else None


def _is_bitcast(node: fx.Node) -> bool:
    """Whether a view reads the same bits as numbers of another type."""
    given = _flat((*node.args, *node.kwargs.values()))
    return bare_name(node) == "view" and any(isinstance(each, torch.dtype) for each in given)


def _agree(native: Tensor, exact: Tensor) -> bool:
    """Whether a value is what float64 makes of it, up to rounding; not where a cast on the way has lost digits."""
    limit = 256 * torch.finfo(native.dtype).eps * exact.abs().amax() if exact.numel() else 0
    return native.shape == exact.shape and bool(((native.double() - exact).abs() <= limit).all())


def _run(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], double: bool) -> Any:
    if double:
        args, kwargs = with_dtype((args, kwargs), torch.float64)
    if callable(node.target):
        return node.target(*args, **kwargs)
    name = str(node.target)
    return getattr(args[0], "double" if double and name in ("float", "half") else name)(*args[1:], **kwargs)


def with_dtype(arguments: Any, dtype: torch.dtype) -> Any:
    """The arguments with every float dtype among them replaced."""
    if isinstance(arguments, torch.dtype):
        return dtype if arguments.is_floating_point else arguments
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(with_dtype(argument, dtype) for argument in arguments)
    if isinstance(arguments, dict):
        return {key: with_dtype(value, dtype) for key, value in arguments.items()}
    return arguments


def is_quantised(node: fx.Node) -> bool:
    """Whether a node converts from or to integers that stand for floats, or computes with them."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace.startswith("quantized")


def _transpose_of(node: fx.Node) -> fx.Node | None:
    """The matrix that this node is the transpose of."""
    name, arguments = bare_name(node), node.args[1:]
    swaps = name in ("t", "numpy_T") or (
        (name == "permute" and list(_flat(arguments)) in ([1, 0], [-1, 0]))
        or (name == "transpose" and sorted(axis % 2 for axis in _flat(arguments)) == [0, 1])
    )
    source = node.args[0] if node.args else None
    return source if swaps and isinstance(source, fx.Node) else None


def _flat(arguments: Any) -> list[Any]:
    return [
        item for argument in arguments for item in (argument if isinstance(argument, (tuple, list)) else [argument])
    ]
