"""New parameters find their names.

Writing an operator only takes note; `Ledger.settle` then gives every new tensor a name. An operator keeps the name of
the parameter it had, as long as nobody else still reads the old one. Equal new tensors of one formerly shared parameter
become one again; different ones part. What is stored where (placeholders of a program, attributes of a module) is the
`Shelf`'s business.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from bnfold.frontends.torch.aliasing import as_reshapes, reads_shape_only
from bnfold.frontends.torch.calls import set_argument, set_window, tensor_arguments
from bnfold.frontends.torch.constants import Constant, Constants, memory
from bnfold.frontends.torch.graph import TorchGraph
from bnfold.frontends.torch.places import module_path, module_type
from bnfold.frontends.torch.writer import NewParameters

_OPERATORS = {"scale": torch.ops.aten.mul.Tensor, "shift": torch.ops.aten.add.Tensor}


class Shelf(Protocol):
    """Where a dialect keeps its tensors, by name."""

    def names(self) -> set[str]:
        """Every name that is taken."""

    def is_free(self, name: str) -> bool:
        """Whether a new tensor may have this name: nothing else is found under it, not even an empty slot."""

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""

    def readers(self, name: str) -> set[fx.Node]:
        """The nodes that read the tensor of that name."""

    def put(self, name: str, tensor: Tensor, like: str | None, trained: bool = True) -> fx.Node:
        """Store a tensor under a name, new or not, of the same kind as `like`; the node that stands for it. Without
        `like` it is a parameter, or a buffer if not `trained`."""

    def drop(self, node: fx.Node) -> None:
        """Forget the tensor that this node stands for: nobody reads it any more."""

    def rename(self, value: str, successor: str) -> None:
        """Whoever knows a value by its name finds it under another one."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """One argument of one node gets a new tensor, in the layout of that argument."""

    node: fx.Node
    argument: str
    old: Constant | None
    wanted: str
    like: str | None
    tensor: Tensor

    @property
    def group(self) -> Hashable:
        """Equal where the old tensors were one: those of one memory, else those that want one name."""
        return self.wanted if self.old is None or self.old.name is None else self.old.key


@dataclass
class Ledger:
    """What is to be written to the arguments of function nodes; the `Writer` of both dialects. `erased` are the modules
    whose call is gone."""

    graph: TorchGraph
    shelf: Shelf
    assignments: list[Assignment] = field(default_factory=list)
    erased: list[str] = field(default_factory=list)
    _tied: dict[Hashable, list[str]] = field(default_factory=dict)
    _gone: set[fx.Node] = field(default_factory=set)
    _moved: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _fresh: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._fresh = set(self.graph.ownership.fresh)
        for name in self.shelf.names():
            self._tied.setdefault(memory(self.shelf.tensor(name)), []).append(name)

    @property
    def constants(self) -> Constants:
        return self.graph.constants

    def write(self, node: fx.Node, parameters: NewParameters) -> None:
        """Take note of the new parameters of a function node."""
        form, weight, bias, added = parameters.form, parameters.old_weight, parameters.old_bias, parameters.added
        home = self._home(node, weight)
        self._note(node, form.weight, weight, f"{home}.weight", weight.name, parameters.weight)
        if parameters.bias is not None and form.bias is not None:
            self._note(node, form.bias, bias, f"{home}.bias", weight.name, parameters.bias)
        elif parameters.bias is not None and added is not None:
            self._note(added.node, added.argument, bias, f"{home}.bias", weight.name, parameters.bias)
        elif parameters.bias is not None:
            self._add_bias(node, f"{home}.bias", weight.name, parameters.bias)
        if parameters.window is not None:
            set_window(node, parameters.window, parameters.groups)
        for scale, value in (("alpha", form.alpha), ("beta", form.beta)):
            if value != 1:
                set_argument(node, scale, 1)

    def bypass(self, node: fx.Node, result: fx.Node, value: fx.Node) -> None:
        """Let the readers of `result` read `value`; remove the node, and the constants that only it has read."""
        self._moved |= {user: value for user in result.users if self._written_by(user) is result}
        result.replace_all_uses_with(value)
        as_reshapes(value, self.graph.modules)
        self.shelf.rename(result.name, value.name)
        self._erase(node)

    def _written_by(self, node: fx.Node) -> fx.Node | None:
        """The value that a clean in-place operator writes, now that affines are gone."""
        return self._moved.get(node, self.graph.ownership.written.get(node))

    def lower(self, node: fx.Node, result: fx.Node, value: fx.Node, terms: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Put a product by `scale`, a sum with `shift`, or both in the place of a batch norm."""
        home, names = module_path(node) or node.name, []
        for role, tensor in terms.items():
            place = self.shelf.put(self._unused(f"{home}_{role}"), tensor, like=None, trained=False)
            with node.graph.inserting_before(node):
                arguments, name = (value, place), f"{node.name}_{role}"
                value = node.graph.create_node("call_function", _OPERATORS[role], arguments, name=name)
            value.meta = _notes(result)
            names.append(value.name)
        result.replace_all_uses_with(value)
        self.shelf.rename(result.name, value.name)
        self._erase(node)
        return tuple(names)

    def _protect(self, value: fx.Node, writer: fx.Node) -> None:
        """An in-place operator wrote what the affine had made; a value that is not its own it gets as a copy."""
        readers = {user for user in value.users if not reads_shape_only(user)}
        if value in self._fresh and readers == {writer}:
            return
        with value.graph.inserting_before(writer):
            clone = value.graph.call_function(torch.ops.aten.clone.default, (value,))
        clone.meta = writer.meta | {key: value.meta[key] for key in ("val", "tensor_meta") if key in value.meta}
        writer.replace_input_with(value, clone)

    def _erase(self, node: fx.Node) -> None:
        for item in [user for user in node.users if not user.users]:
            node.graph.erase_node(item)
        inputs = node.all_input_nodes
        node.graph.erase_node(node)
        self.erased += [str(node.target)] * (node.op == "call_module")
        for each in inputs:
            if self.constants.is_constant(each):
                self._release(each)
            elif not each._erased and self.graph.may_go(each) and all(map(_is_check, each.users)):
                self._erase(each)

    def settle(self) -> None:
        """Store every new tensor and let its readers read it."""
        for writer, value in self._moved.items():
            if not writer._erased:
                self._protect(value, writer)
        groups: dict[Hashable, list[Assignment]] = {}
        for assignment in self.assignments:
            groups.setdefault(assignment.group, []).append(assignment)
        for group in groups.values():
            self._settle_group(group)

    def _note(
        self, node: fx.Node, argument: str, old: Constant | None, home: str, like: str | None, tensor: Tensor
    ) -> None:
        wanted = home if old is None or old.name is None else self._own_name(old, home)
        self.assignments.append(Assignment(node, argument, old, wanted, like, tensor))

    def _home(self, node: fx.Node, weight: Constant) -> str:
        """The path of the module that the parameters of a node belong to."""
        path = module_path(node)
        if path and weight.name is not None and f"{path}.weight" in self._tied.get(weight.key, ()):
            return path
        stem, _, last = (weight.name or "").rpartition(".")
        return stem if stem and last == "weight" else path or node.name

    def _own_name(self, old: Constant, home: str) -> str:
        """Of several names of one tensor, that of the operator's own module."""
        assert old.name is not None, "a stored constant has a name"
        return home if home in self._tied[old.key] else old.name

    def _add_bias(self, node: fx.Node, wanted: str, like: str | None, bias: Tensor) -> None:
        """A product that has no bias gets an addition behind it."""
        graph = node.graph
        with graph.inserting_after(node):
            addition = graph.call_function(torch.ops.aten.add.Tensor, (node, node))
        addition.meta = dict(node.meta)
        self._fresh.add(addition)
        node.replace_all_uses_with(addition, delete_user_cb=lambda user: user is not addition)
        self.assignments.append(Assignment(addition, "other", None, wanted, like, bias))

    def _settle_group(self, group: list[Assignment]) -> None:
        old = group[0].old
        tied = set(self._tied[old.key]) if old is not None and old.name is not None else set()
        readers = {name: self._final_readers(self.shelf.readers(name)) for name in tied}
        own = {assignment.node for assignment in group}
        free = {name for name in tied if readers[name] <= own}
        versions = list(_versions(group))
        stored = [self._store(version, free) for version in versions]
        if len(stored) == 1 and set().union(*readers.values()) <= own:
            for name in free:
                self.shelf.put(name, self.shelf.tensor(stored[0]), like=name)

    def _store(self, version: list[Assignment], free: set[str]) -> str:
        """Store one new tensor for its readers; the name it is stored under."""
        first = version[0]
        wishes = (name for a in version for name in (a.wanted, a.old and a.old.name))
        name = next((name for name in wishes if name in free), None)
        if first.old is not None and first.old.transposed:
            if name is not None and all(a.old is not None and a.old.name == name for a in version):
                free.discard(name)
                self.shelf.put(name, first.tensor.t().contiguous(), like=name)
                return name
            name = None
        kept = name or self._unused(first.wanted)
        free.discard(kept)
        place = self.shelf.put(kept, first.tensor, like=name or first.like)
        for assignment in version:
            self._point(assignment, place)
        return kept

    def _unused(self, wanted: str) -> str:
        """A free name like the wanted one; a flat one where a part of the path is no module."""
        stems = (wanted, wanted.replace(".", "_"))
        count = len(self.shelf.names()) + 2
        names = (name for stem in stems for name in (stem, *(f"{stem}_{i}" for i in range(1, count))))
        return next(name for name in names if self.shelf.is_free(name))

    def _point(self, assignment: Assignment, place: fx.Node) -> None:
        """Let the argument read `place`, and forget what it has read if nobody else does."""
        before = tensor_arguments(assignment.node)
        set_argument(assignment.node, assignment.argument, place)
        for each in before:
            if self.constants.is_constant(each) and each is not place:
                self._release(each)

    def _final_readers(self, readers: set[fx.Node]) -> set[fx.Node]:
        """Who reads a stored tensor, looking behind the constants that are made from it."""
        found: set[fx.Node] = set()
        for reader in readers:
            if self.constants.is_constant(reader):
                found |= self._final_readers(set(reader.users))
            elif not reads_shape_only(reader):
                found.add(reader)
        return found

    def _release(self, node: fx.Node) -> None:
        for check in [user for user in node.users if _is_check(user)]:
            node.graph.erase_node(check)
        if node.users or node in self._gone:
            return
        self._gone.add(node)
        inputs = node.all_input_nodes
        if node in self.constants.names:
            self.shelf.drop(node)
        else:
            node.graph.erase_node(node)
        for each in inputs:
            self._release(each)


def _is_check(node: fx.Node) -> bool:
    """Whether a node only asserts something of a value's shape or type, so that it goes with the value."""
    return reads_shape_only(node) and not node.users


def _notes(result: fx.Node) -> dict[str, Any]:
    """What a node says of its value and its source; what is no batch norm any more is in the module around it."""
    kept: dict[str, Any] = {
        key: result.meta[key] for key in ("val", "tensor_meta", "stack_trace", "nn_module_stack") if key in result.meta
    }
    if "BatchNorm" in module_type(result):
        kept["nn_module_stack"] = dict(list(kept["nn_module_stack"].items())[:-1])
    return kept


def _versions(group: list[Assignment]) -> Iterator[list[Assignment]]:
    """The assignments of a group by equal new tensors."""
    versions: list[list[Assignment]] = []
    for assignment in group:
        same = next((version for version in versions if _equal(version[0], assignment)), None)
        if same is None:
            versions.append([assignment])
        else:
            same.append(assignment)
    yield from versions


def _equal(one: Assignment, other: Assignment) -> bool:
    layout = (one.old is not None and one.old.transposed) == (other.old is not None and other.old.transposed)
    return layout and one.tensor.dtype == other.tensor.dtype and torch.equal(one.tensor, other.tensor)
