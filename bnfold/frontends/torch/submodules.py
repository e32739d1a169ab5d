"""New parameters for the submodules of a GraphModule.

A module that is called once gets its new parameters; one that is called with different results is called under a new
name, as a copy that shares what did not change; one that nobody calls any more is deleted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnfold.frontends.torch.program import laid_out_as
from bnfold.frontends.torch.writeback import Ledger
from bnfold.frontends.torch.writer import NewParameters
from bnfold.window import Window


class ModuleShelf:
    """The tensors of a GraphModule, by qualified name; a `get_attr` node stands for one."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        held = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        attributes = {str(node.target): _attribute(module, str(node.target)) for node in self._get_attrs()}
        self.tensors: dict[str, Tensor] = held | {k: v for k, v in attributes.items() if isinstance(v, Tensor)}

    def nodes(self) -> dict[fx.Node, str]:
        return {node: str(node.target) for node in self._get_attrs() if str(node.target) in self.tensors}

    def names(self) -> set[str]:
        return set(self.tensors)

    def is_free(self, name: str) -> bool:
        holder: Any = self.module
        for part in name.split("."):
            if not isinstance(holder, nn.Module):
                return False
            if not hasattr(holder, part):
                return True
            holder = getattr(holder, part)
        return False

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def readers(self, name: str) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and node.target == name:
                found |= set(node.users)
            elif node.op == "call_module" and name.startswith(f"{node.target}."):
                found.add(node)
        return found

    def put(self, name: str, tensor: Tensor, like: str | None, trained: bool = True) -> fx.Node:
        template = self.tensors.get(like) if like is not None else None
        trained = trained if template is None else isinstance(template, nn.Parameter)
        grad = template is not None and template.requires_grad
        fresh = trained and not isinstance(tensor, nn.Parameter)
        self.tensors[name] = nn.Parameter(tensor, requires_grad=grad) if fresh else tensor
        _store(self.module, name, self.tensors[name])
        return next((node for node in self._get_attrs() if node.target == name), None) or self._new_node(name)

    def drop(self, node: fx.Node) -> None:
        name = str(node.target)
        self.module.graph.erase_node(node)
        if not self.readers(name) and all(other.target != name for other in self._get_attrs()):
            delattr(*_holder(self.module, name))
            del self.tensors[name]
            self._drop_counter(name)

    def rename(self, value: str, successor: str) -> None:
        """A GraphModule knows no value by its name."""

    def _drop_counter(self, name: str) -> None:
        counter = f"{name.removesuffix('running_mean')}num_batches_tracked"
        if name.endswith("running_mean") and counter in self.tensors and not self.readers(counter):
            for idle in [node for node in self._get_attrs() if node.target == counter]:
                self.module.graph.erase_node(idle)
            delattr(*_holder(self.module, counter))
            del self.tensors[counter]

    def _get_attrs(self) -> list[fx.Node]:
        return list(self.module.graph.find_nodes(op="get_attr"))

    def _new_node(self, name: str) -> fx.Node:
        graph = self.module.graph
        with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
            return graph.get_attr(name)


@dataclass
class ModuleWriter:
    """Functions are the ledger's business; a called module gets new parameters, or a copy of itself has them."""

    module: fx.GraphModule
    ledger: Ledger
    calls: dict[fx.Node, NewParameters] = field(default_factory=dict)
    twins: dict[Any, list[nn.Parameter]] = field(default_factory=dict)

    def write(self, node: fx.Node, parameters: NewParameters) -> None:
        if node.op == "call_module":
            self.calls[node] = parameters
        else:
            self.ledger.write(node, parameters)

    def bypass(self, node: fx.Node, result: fx.Node, value: fx.Node) -> None:
        self.ledger.bypass(node, result, value)

    def lower(self, node: fx.Node, result: fx.Node, value: fx.Node, terms: Mapping[str, Tensor]) -> tuple[str, ...]:
        return self.ledger.lower(node, result, value, terms)

    def settle(self) -> None:
        """Write every called module, then every function, then remove the modules that nobody calls any more."""
        targets: dict[int, list[str]] = {}
        for name, part in self.module.named_modules(remove_duplicate=False):
            targets.setdefault(id(part), []).append(name)
        called: dict[int, list[fx.Node]] = {}
        for node in self.calls:
            called.setdefault(id(self.module.get_submodule(str(node.target))), []).append(node)
        readers = _readers(self.module.graph)
        for part_id, nodes in called.items():
            known = [node for target in targets[part_id] for node in readers.get(target, ())]
            self._settle_module(nodes, set(known))
        self.ledger.settle()
        readers = _readers(self.module.graph)
        for target in dict.fromkeys(self.ledger.erased):
            if target not in readers:
                self.module.delete_submodule(target)

    def _settle_module(self, nodes: Sequence[fx.Node], readers: set[fx.Node]) -> None:
        original = self.module.get_submodule(str(nodes[0].target))
        free = readers <= set(nodes)
        pristine = _twin(original)
        for version in self._versions(nodes):
            if free:
                part, free = original, False
            else:
                part = _twin(pristine)
                target = _unused_module(self.module, str(version[0].target))
                self.module.add_submodule(target, part)
                for node in version:
                    node.target = target
            self._fill(part, self.calls[version[0]])

    def _versions(self, nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
        versions: list[list[fx.Node]] = []
        for node in nodes:
            same = next((v for v in versions if _same(self.calls[v[0]], self.calls[node])), None)
            if same is None:
                versions.append([node])
            else:
                same.append(node)
        return versions

    def _fill(self, part: nn.Module, new: NewParameters) -> None:
        old = part._parameters["weight"]
        assert old is not None, "a linear module has a weight"
        part._parameters["weight"] = self._parameter(new.old_weight.key, old, new.weight)
        if new.window is not None:
            _set_window(part, new.window, new.groups)
        if new.weight.shape != old.shape:
            _set_channels(part, new.weight.shape)
        if new.bias is not None:
            key = ("bias", new.old_weight.key) if new.old_bias is None else new.old_bias.key
            part._parameters["bias"] = self._parameter(key, old, new.bias)

    def _parameter(self, key: Any, old: nn.Parameter, tensor: Tensor) -> nn.Parameter:
        """Equal new tensors of one formerly shared parameter become one again."""
        twins = self.twins.setdefault(key, [])
        for twin in twins:
            if twin.shape == tensor.shape and torch.equal(twin.detach().cpu(), tensor.cpu()):
                return twin
        twins.append(nn.Parameter(laid_out_as(tensor, old), requires_grad=old.requires_grad))
        return twins[-1]


def _set_channels(part: Any, shape: torch.Size) -> None:
    """The attributes of a linear module that say the shape of its weight."""
    if isinstance(part, nn.Linear):
        part.out_features, part.in_features = shape
        return
    channels = (shape[0], shape[1] * part.groups)
    part.in_channels, part.out_channels = channels if part.transposed else channels[::-1]


def _set_window(part: Any, window: Window, groups: int) -> None:
    """The attributes of a convolution that say where its taps sit; `same` keeps a border that is not alike."""
    part.kernel_size, part.stride, part.dilation, part.groups = window.kernel, window.stride, window.dilation, groups
    if window.before != window.after:
        return
    part.padding, part.padding_mode = window.before, "zeros"  # what padded nothing may have named another mode
    part._reversed_padding_repeated_twice = [size for size in reversed(window.before) for _ in range(2)]


def _same(one: NewParameters, other: NewParameters) -> bool:
    biases = (one.bias, other.bias)
    if (one.bias is None) != (other.bias is None) or not torch.equal(one.weight, other.weight):
        return False
    return biases[0] is None or biases[1] is None or torch.equal(biases[0], biases[1])


def _twin(module: nn.Module) -> nn.Module:
    """A copy that shares its tensors until it is given others."""
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    return twin


def _readers(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """The nodes that call or read a module or anything in it, by the module's path."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            parts = str(node.target).split(".")
            for length in range(1, len(parts) + 1):
                found.setdefault(".".join(parts[:length]), []).append(node)
    return found


def _unused_module(module: nn.Module, wanted: str) -> str:
    taken = {name for name, _ in module.named_modules(remove_duplicate=False)}
    return next(f"{wanted}_{i}" for i in range(1, len(taken) + 2) if f"{wanted}_{i}" not in taken)


def _attribute(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _holder(module: nn.Module, name: str) -> tuple[Any, str]:
    path, _, last = name.rpartition(".")
    return _attribute(module, path) if path else module, last


def _store(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a tensor under a qualified name; modules on the way that do not exist are made."""
    path, _, last = name.rpartition(".")
    holder: nn.Module = root
    for part in path.split(".") if path else ():
        if not hasattr(holder, part):
            holder.add_module(part, nn.Module())
        holder = getattr(holder, part)
    if not isinstance(tensor, nn.Parameter) and not hasattr(holder, last):
        holder.register_buffer(last, tensor)
        return
    if isinstance(tensor, nn.Parameter) and last not in holder._parameters and hasattr(holder, last):
        delattr(holder, last)
    setattr(holder, last, tensor)
