"""A program taken apart: its steps by name, and parts of it as modules of their own.

A stored tensor belongs to the steps that read it; so does every number that the program computes of sizes, as it was
for the input at hand. Programs that write to values which somebody else still reads are not cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bnfold.errors import NoVerdict
from bnfold.frontends.torch.aliasing import bare_name, mutated
from bnfold.frontends.torch.calls import CONVOLUTIONS, TRANSPOSED
from bnfold.frontends.torch.capture import quiet
from bnfold.frontends.torch.casting import as_float64
from bnfold.frontends.torch.deciding import DECIDING
from bnfold.frontends.torch.places import module_path
from bnfold.frontends.torch.program import STORED
from bnfold.frontends.torch.running import refused, to_array, to_tensor, watched
from bnfold.model import Arrays, Runner, Step

JUDGES = DECIDING - {"where"}


@dataclass(frozen=True, eq=False)
class ProgramPart:
    """A part as it is and in float64: modules of the `inputs` in order, with example tensors for them."""

    plain: fx.GraphModule
    wide: fx.GraphModule
    inputs: tuple[str, ...]
    output: str
    examples: tuple[Tensor, ...]

    def actual(self) -> Runner:
        return partial(self._run, self.plain, lambda tensor: tensor)

    def exact(self) -> Runner:
        return partial(self._run, self.wide, _widened)

    def magnitudes(self) -> Runner:
        """As it is, but with the magnitude of every stored number."""
        positive = fx.GraphModule(self.plain, self.plain.graph)
        for name, tensor in self.plain.named_buffers():
            setattr(positive, name, tensor.abs() if tensor.is_floating_point() else tensor)
        return partial(self._run, positive, lambda tensor: tensor)

    def program(self) -> ExportedProgram:
        """The part as a program that can be saved."""
        with quiet():
            return torch.export.export(self.plain, self.examples)

    def _run(self, module: nn.Module, convert: Callable[[Tensor], Tensor], feeds: Mapping[str, Any]) -> Arrays:
        tensors = [convert(to_tensor(feeds[name])) for name in self.inputs]
        with refused(), torch.no_grad():
            return {self.output: to_array(module(*tensors))}


class Cutting:
    """One program, opened. Nothing here changes it; tensors are shared with its parts.

    Raises `NoVerdict` for a program that writes to values in place where that can be seen.
    """

    def __init__(self, program: ExportedProgram) -> None:
        module = program.graph_module
        if written := mutated(module.graph, dict(module.named_modules())):
            name = min(node.name for node in written)
            raise NoVerdict(f"the program writes to values in place: {name}", code="cannot-run")
        self.program = program
        self._specs = dict(
            zip(module.graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True)
        )
        self._nodes = {node.name: node for node in module.graph.nodes}
        self._hashes: dict[str, str] = {}

    @cached_property
    def _wide(self) -> ExportedProgram:
        return as_float64(self.program)

    @cached_property
    def outputs(self) -> list[str]:
        """The values that the program gives to its user, in order."""
        specs = self.program.graph_signature.output_specs
        return [spec.arg.name for spec in specs if spec.kind.name == "USER_OUTPUT" and spec.arg.name in self._nodes]

    @cached_property
    def floats(self) -> dict[str, str]:
        """Every floating-point value that is computed or given, and its dtype, in topological order."""
        values = {name: node.meta.get("val") for name, node in self._nodes.items() if not self._is_stored(node)}
        return {
            name: str(value.dtype).removeprefix("torch.")
            for name, value in values.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }

    @cached_property
    def sizes(self) -> frozenset[str]:
        """The numbers that the program computes of sizes."""
        kinds = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
        return frozenset(name for name, node in self._nodes.items() if isinstance(node.meta.get("val"), kinds))

    def record(self, feeds: Arrays, visit: Callable[[str, Any], None]) -> None:
        """Execute the program in float64 and show every value that is told of here."""
        watched(self._wide, feeds, self.floats.keys() | self.sizes, visit)

    def steps(self, sizes: Arrays) -> list[Step]:
        """The operators of the program in order, less those that give a size."""
        nodes = [node for node in self._nodes.values() if node.op == "call_function" and node.name not in self.sizes]
        return [self._step(node, sizes) for node in nodes]

    def _step(self, node: fx.Node, sizes: Arrays) -> Step:
        read = [each for each in node.all_input_nodes if self._is_value(each)]
        judges = _judges(node) and any(each.name in self.floats for each in read)
        inputs = tuple(each.name for each in read)
        terms = self._terms(node) if len(read) == 1 else 0
        key = partial(self._key, node, sizes)
        return Step(node.name, bare_name(node), inputs, (node.name,), key, judges, terms, module_path(node))

    def _is_stored(self, node: fx.Node) -> bool:
        return node in self._specs and self._specs[node].kind in STORED

    def _is_value(self, node: fx.Node) -> bool:
        return node.op != "get_attr" and not self._is_stored(node) and node.name not in self.sizes

    def _terms(self, node: fx.Node) -> int:
        """How many products one result of a linear operator with stored weights is the sum of."""
        name, stored = bare_name(node), [each for each in node.all_input_nodes if self._is_stored(each)]
        weights = [each.meta["val"] for each in stored if each.meta["val"].dim() > 1]
        if len(weights) != 1 or len(node.args) < 2:
            return 0
        shape = [int(size) for size in weights[0].shape]
        if name in CONVOLUTIONS:
            return prod(shape[1:]) if not (len(node.args) > 6 and node.args[6] is True) else 0
        if name in TRANSPOSED:
            return prod((shape[0], *shape[2:]))
        return {"linear": shape[-1], "matmul": shape[-2], "mm": shape[-2], "addmm": shape[-2]}.get(name, 0)

    def _key(self, node: fx.Node, sizes: Arrays) -> str:
        """All that an operator does, in a digest. One that calls a graph of its own is like no other."""
        inputs = [each for each in node.all_input_nodes if self._is_value(each)]

        def told(leaf: Any) -> str:
            if not isinstance(leaf, fx.Node):
                return repr(leaf)
            if leaf in inputs:
                return f"input {inputs.index(leaf)}"
            if leaf.name in sizes:
                return repr(sizes[leaf.name].item())
            return self._hash(leaf) if self._is_stored(leaf) else f"{id(self)} {leaf.name}"

        leaves, form = pytree.tree_flatten((node.args, node.kwargs), is_leaf=lambda leaf: isinstance(leaf, fx.Node))
        return hashlib.sha256("|".join([str(node.target), str(form), *map(told, leaves)]).encode()).hexdigest()

    def _hash(self, node: fx.Node) -> str:
        if node.name not in self._hashes:
            array = to_array(self._tensor(self.program, node))
            self._hashes[node.name] = f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
        return self._hashes[node.name]

    def _tensor(self, program: ExportedProgram, node: fx.Node) -> Tensor:
        target = self._specs[node].target
        assert target is not None, "a stored tensor has a name"
        tensor: Tensor = {**program.constants, **program.state_dict}[target]
        return tensor.detach()

    def cut(
        self, chosen: Sequence[Step], sizes: Arrays, inputs: Mapping[str, tuple[int, ...]], output: str
    ) -> ProgramPart:
        """These steps as modules of these inputs, with the stored tensors and the sizes that they read."""
        values = {name: self._nodes[name].meta["val"] for name in inputs}
        examples = tuple(torch.zeros(shape, dtype=values[name].dtype) for name, shape in inputs.items())
        plain, wide = (self._module(program, chosen, sizes, inputs, output) for program in (self.program, self._wide))
        return ProgramPart(plain, wide, tuple(inputs), output, examples)

    def _module(
        self, program: ExportedProgram, chosen: Sequence[Step], sizes: Arrays, inputs: Mapping[str, Any], output: str
    ) -> fx.GraphModule:
        theirs = {node.name: node for node in program.graph.nodes}
        graph, root = fx.Graph(), nn.Module()
        made: dict[str, Any] = {name: graph.placeholder(f"input_{index}") for index, name in enumerate(inputs)}

        def argument(node: fx.Node) -> Any:
            if node.name in sizes and node.name not in made:
                return sizes[node.name].item()
            if node.name not in made:
                made[node.name] = graph.get_attr(f"stored_{len(made)}")
                self._keep(root, made[node.name].target, program, node)
            return made[node.name]

        for step in chosen:
            made[step.name] = graph.node_copy(theirs[step.name], argument)
        graph.output(made[output])
        return fx.GraphModule(root, graph)

    def _keep(self, root: nn.Module, name: str, program: ExportedProgram, node: fx.Node) -> None:
        own = self._nodes[node.name]
        if self._is_stored(own):
            root.register_buffer(name, self._tensor(program, own))
        else:
            setattr(root, name, getattr(program.graph_module, str(node.target)))


def _judges(node: fx.Node) -> bool:
    name = bare_name(node)
    if name in ("to", "_to_copy"):
        value = node.meta.get("val")
        return isinstance(value, Tensor) and not value.is_floating_point()
    return name in JUDGES


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
