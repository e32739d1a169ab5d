"""What a GraphModule makes of sizes, seen by running shapes through it, not numbers.

A size seen once is no fact. Every run is made at two sizes that differ in as many axes as the graph lets differ: a size
that stays is one that the graph itself fixes, one that changes becomes a symbol, equal symbols are sizes equal in both
runs. Without example inputs, a run needs input ranks and channel counts that the graph enforces. What runs is a copy:
a module of the caller's may change whatever it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from bnfold.errors import UsageError
from bnfold.frontends.torch.capture import deep_copy, quiet
from bnfold.frontends.torch.ranks import enforced_channels, enforced_dtypes, enforced_ranks
from bnfold.frontends.torch.shapes import Facts

Seen = Mapping[fx.Node, Tensor]
_SIDE = 224
_SMALL = (-1, -2, -3)
"""Sizes at which something may shrink to 1, and so broadcast, before it vanishes."""


def facts_of(module: fx.GraphModule, example_inputs: tuple[Any, ...] | None) -> Facts:
    """What holds for every value of the graph. Raises `UsageError` where the inputs do not fit."""
    modules = dict(module.named_modules())
    ranks = enforced_ranks(module.graph, modules)
    if example_inputs is not None:
        return _observed(module, example_inputs) or Facts(ranks=ranks)
    dtypes = enforced_dtypes(module.graph, modules)
    inputs = _invented(module.graph, ranks, enforced_channels(module.graph, modules), dtypes)
    first = None if inputs is None else _attempt(module, inputs)
    second = None if inputs is None else _attempt(module, _varied(inputs, {0: 2, 2: 4, 3: 5, 4: 6}))
    if not first or not second:
        return Facts(ranks=ranks, dtypes=dtypes)
    facts = _agreed(first, second)
    return Facts(facts.shapes, _reachable(module.graph, dtypes, facts.dtypes), ranks)


def graph_facts(module: fx.GraphModule) -> Facts:
    """What the graph itself enforces; nothing is run."""
    modules = dict(module.named_modules())
    return Facts(ranks=enforced_ranks(module.graph, modules), dtypes=enforced_dtypes(module.graph, modules))


def _observed(module: fx.GraphModule, inputs: tuple[Any, ...]) -> Facts | None:
    """The facts for inputs of which the numbers do not matter; None where they do, or where torch itself takes sizes
    that its fake tensors do not (a transposed convolution with an empty result)."""
    try:
        first = _run(module, inputs)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    except Exception as error:
        if _is_accepted(module, inputs):
            return None
        raise UsageError(f"the example inputs do not fit the module: {error}") from error
    return _agreed(first, _freest(module, inputs) or {})


def _is_accepted(module: fx.GraphModule, inputs: tuple[Any, ...]) -> bool:
    copied = [each.clone() if isinstance(each, Tensor) else each for each in inputs]
    try:
        with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            deep_copy(module, {}).forward(*copied)
    except Exception:  # whatever a module raises for these inputs, it does not take them
        return False
    return True


def _freest(module: fx.GraphModule, inputs: tuple[Any, ...]) -> Seen | None:
    """A run in which as many axes differ as can: larger, or so small that broadcasting may take them as well."""
    axes = range(max((each.dim() for each in inputs if isinstance(each, Tensor)), default=0))
    free: dict[int, int] = {}
    best: Seen | None = None
    most = {axis: axis + 2 for axis in axes if axis != 1}
    for tried in (most, *({axis: factor} for axis in axes for factor in (axis + 2, *_SMALL))):
        if not tried.keys() <= free.keys() and _shapes(_varied(inputs, tried)) != _shapes(inputs):
            seen = _attempt(module, _varied(inputs, free | tried))
            free, best = (free | tried, seen) if seen else (free, best)
    return best


def _varied(inputs: tuple[Any, ...], factors: Mapping[int, int]) -> tuple[Any, ...]:
    """Inputs whose sizes along these axes are multiplied; a factor below 0 is a size itself."""

    def other(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        by_axis = [(size, factors.get(axis, 1)) for axis, size in enumerate(tensor.shape)]
        sizes = [size * factor if factor > 0 else -factor for size, factor in by_axis]
        return torch.empty(sizes, dtype=tensor.dtype, device="meta")

    return tuple(other(each) for each in inputs)


def _shapes(inputs: tuple[Any, ...]) -> list[Any]:
    return [each.shape if isinstance(each, Tensor) else None for each in inputs]


def _attempt(module: fx.GraphModule, inputs: tuple[Any, ...]) -> Seen | None:
    try:
        return _run(module, inputs)
    except Exception:  # whatever a module raises for these sizes, it does not take them
        return None


def _run(module: fx.GraphModule, inputs: tuple[Any, ...]) -> Seen:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = _Recorder(deep_copy(module, {}), mode, module.graph)
    with quiet(), mode, torch.no_grad(), torch.random.fork_rng(devices=[]):
        recorder.run(*[_fake(mode, each) if isinstance(each, Tensor) else each for each in inputs])
    return recorder.seen


def _fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype) if tensor.device.type == "meta" else mode.from_tensor(tensor)


class _Recorder(fx.Interpreter):
    """Stored tensors are fake copies: what the graph writes to them is not kept."""

    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self._mode = mode
        self.seen: dict[fx.Node, Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        stored = super().get_attr(target, args, kwargs)
        return self._mode.from_tensor(stored, static_shapes=True) if isinstance(stored, Tensor) else stored

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n] = value.detach()
        return value


def _agreed(first: Seen, second: Seen) -> Facts:
    """The sizes of both runs; a value that only one of them knows has a rank."""
    shapes = {
        node: tuple(
            one if one == other else f"{one}|{other}"
            for one, other in zip(value.shape, second[node].shape, strict=True)
        )
        for node, value in first.items()
        if node in second and second[node].dim() == value.dim()
    }
    ranks = {node: value.dim() for node, value in first.items()}
    return Facts(shapes, {node: value.dtype for node, value in first.items()}, ranks)


def _invented(
    graph: fx.Graph,
    ranks: Mapping[fx.Node, int],
    channels: Mapping[fx.Node, int],
    dtypes: Mapping[fx.Node, torch.dtype],
) -> tuple[Tensor, ...] | None:
    """Inputs of the ranks and channels that the graph enforces."""
    placeholders = graph.find_nodes(op="placeholder")
    if not placeholders or any(node not in ranks or node not in channels for node in placeholders):
        return None
    shapes = [(2, channels[node], *[_SIDE] * (ranks[node] - 2)) for node in placeholders]
    types = [dtypes.get(node, next(iter(dtypes.values()), torch.float32)) for node in placeholders]
    return tuple(torch.empty(shape, dtype=t, device="meta") for shape, t in zip(shapes, types, strict=True))


def _reachable(
    graph: fx.Graph, enforced: Mapping[fx.Node, torch.dtype], seen: Mapping[fx.Node, torch.dtype]
) -> dict[fx.Node, torch.dtype]:
    """The dtypes that do not hang on an input whose dtype was invented."""
    known = dict(enforced)
    for node in graph.nodes:
        settled = node.op == "get_attr" or (
            node.op != "placeholder" and all(each in known for each in node.all_input_nodes)
        )
        if node in seen and settled:
            known.setdefault(node, seen[node])
    return known
