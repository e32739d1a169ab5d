"""A graph that grows node by node, each executed as it is added: what torch refuses is never in the graph."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

LARGEST_VALUE = 1e4


class Unfit(Exception):
    """An operator that this value cannot have."""


# What torch's constructors and an empty choice raise comes to the same.
UNLUCKY = (Unfit, IndexError, ValueError, RuntimeError)


@dataclass
class Builder:
    """A graph that grows; `values` are its nodes' tensors, `channel` the axis that each has its channels on.

    `computed` are the values that depend on an input, `pool` those of them that an operator may read.
    """

    random: random.Random
    dtype: torch.dtype
    graph: fx.Graph = field(default_factory=fx.Graph)
    root: nn.Module = field(default_factory=nn.Module)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    channel: dict[fx.Node, int | None] = field(default_factory=dict)
    pool: list[fx.Node] = field(default_factory=list)
    computed: set[fx.Node] = field(default_factory=set)
    norms: int = 0
    magnitude: float = 1.0
    lowest: torch.dtype = torch.float64

    # drawing

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def pick(self, *options: Any) -> Any:
        return self.random.choice(options)

    def tensor(self, *shape: int, around: float = 0.0, spread: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(self.random.getrandbits(31))
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul(spread).add(around).to(self.dtype)

    def scales(self, channels: int) -> Tensor:
        """Scales as training leaves them: of one sign or of both, some zero, all equal, or all one."""
        scale = self.tensor(channels, spread=0.5).abs() + 0.5
        kind = self.random.random()
        if kind < 0.4:
            scale *= torch.tensor([self.pick(-1.0, 1.0) for _ in range(channels)], dtype=self.dtype)
        elif kind < 0.5:
            scale[self.random.randrange(channels)] = 0.0
        elif kind < 0.6:
            scale = torch.full_like(scale, self.pick(1.0, 0.5, -2.0))
        return scale

    # growing

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.values[node].shape)

    def rank(self, node: fx.Node) -> int:
        return len(self.shape(node))

    def hold(self, tensor: Tensor, *, trained: bool = True) -> fx.Node:
        """A node that reads a stored tensor; now and then one that is stored already."""
        twins = [n for n in self.graph.find_nodes(op="get_attr") if self.values[n].shape == tensor.shape]
        if twins and trained and self.chance(0.08):
            return self.read(self.pick(*twins).target)
        name = f"t{len(self.values)}"
        if twins and trained and self.chance(0.05):
            tensor = self.values[self.pick(*twins)]
        if isinstance(tensor, nn.Parameter) or (trained and tensor.is_floating_point() and self.chance(0.6)):
            self.root.register_parameter(name, nn.Parameter(tensor) if type(tensor) is Tensor else tensor)
        else:
            self.root.register_buffer(name, tensor)
        return self.read(name)

    def read(self, name: str) -> fx.Node:
        """A node that reads a tensor in its place."""
        return self._new("get_attr", name)

    def install(self, module: nn.Module) -> str:
        """A place for a module: at the root or in a wrapper, and now and then under a second name as well."""
        name = f"m{len(self.values)}"
        module.eval().to(self.dtype)
        if self.chance(0.25):
            holder = nn.Sequential(module)
            self.root.add_module(name, holder)
            name = f"{name}.0"
        else:
            self.root.add_module(name, module)
        if self.chance(0.05):
            self.root.add_module(f"{name.replace('.', '_')}_again", module)
        return name

    def call(self, target: Any, *args: Any, axis: int | None = None, **kwargs: Any) -> fx.Node:
        """A call of a module, a function, or (a string) a method."""
        if isinstance(target, nn.Module):
            return self._new("call_module", self.install(target), args, kwargs, axis)
        return self._new("call_method" if isinstance(target, str) else "call_function", target, args, kwargs, axis)

    def again(self, name: str, *args: Any, axis: int | None = None) -> fx.Node:
        """Another call of a module that is in its place."""
        return self._new("call_module", name, args, {}, axis)

    def _new(self, op: str, target: Any, args: Any = (), kwargs: Any = None, axis: int | None = None) -> fx.Node:
        node = self.graph.create_node(op, target, args, kwargs or {})
        try:
            with torch.no_grad():
                value = self._executed(node)
        except Exception as error:  # torch refuses in every class of exception, and only that it does matters
            self.graph.erase_node(node)
            raise Unfit(str(error)) from error
        self.values[node], self.channel[node] = value, axis
        if not self.computed.isdisjoint(node.all_input_nodes):
            self.computed.add(node)
        if isinstance(value, Tensor) and op != "get_attr":
            self._weigh(node, value)
        return node

    def _executed(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "call_function":
            return node.target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        if node.op == "call_module":
            return self.root.get_submodule(node.target)(*args, **kwargs)
        return operator.attrgetter(node.target)(self.root)

    def _weigh(self, node: fx.Node, value: Tensor) -> None:
        largest = value.double().abs().max().item() if value.numel() else 0.0
        if not largest < LARGEST_VALUE or not 0 < value.numel() < 20_000:
            raise Unfit("too large")
        self.magnitude = max(self.magnitude, largest)
        if value.is_floating_point() and torch.finfo(value.dtype).eps > torch.finfo(self.lowest).eps:
            self.lowest = value.dtype
        if node in self.computed:
            self.pool.append(node)


Op = Callable[[Builder, fx.Node], fx.Node]
