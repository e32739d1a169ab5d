"""Fold an exported program: the same program with fewer parameters, valid for all that torch does with programs.

The graph is copied, tensors are shared. Parameters are placeholders with an input spec and an entry in the state; all
three are kept in step, and torch's own verifier has the last word.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from bnfold.folding import FoldOptions, fold
from bnfold.frontends.torch.capture import quiet
from bnfold.frontends.torch.graph import TorchGraph
from bnfold.frontends.torch.places import is_inside
from bnfold.frontends.torch.shapes import proved_facts
from bnfold.frontends.torch.writeback import Ledger
from bnfold.outcome import FoldReport

STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def fold_program(program: ExportedProgram, options: FoldOptions = FoldOptions()) -> tuple[ExportedProgram, FoldReport]:
    """A program with its batch norms folded, and what became of each. The given program is not changed.

    Tensors that stay as they are are shared with the given program. A Dropout, which does nothing at inference, goes if
    anything changes at all.
    """
    shelf = ProgramShelf.of(program)
    graph, ledger = open_program(shelf)
    report = fold(graph, options)
    if report.merges or any(outcome.folded for outcome in report.outcomes):
        for node in graph.dropouts():
            graph.bypass(node)
    ledger.settle()
    return shelf.program(), report


def open_program(shelf: ProgramShelf) -> tuple[TorchGraph, Ledger]:
    """The graph of a program as rules see it, and the ledger of what is written to it."""
    ledgers: list[Ledger] = []

    def writer(graph: TorchGraph) -> Ledger:
        ledgers.append(Ledger(graph, shelf))
        return ledgers[0]

    module = shelf.module
    names = {node: spec.target for node, spec in shelf.stored() if spec.target is not None}
    modules, written = dict(module.named_modules()), written_names(shelf.original)
    graph = TorchGraph(module.graph, modules, names, shelf.tensors, proved_facts(module.graph), writer, written)
    return graph, ledgers[0]


def written_names(program: ExportedProgram) -> frozenset[str]:
    """The stored tensors that a functionalised program replaces: it returns their new values as outputs."""
    return frozenset(
        spec.target
        for spec in program.graph_signature.output_specs
        if spec.target is not None and spec.kind is not OutputKind.USER_INPUT_MUTATION
    )


def copied_graph(module: fx.GraphModule) -> fx.GraphModule:
    """The module with a graph of its own; copying alone would rename a placeholder that is called like a builtin."""
    copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    for node, original in zip(copied.graph.nodes, module.graph.nodes, strict=True):
        node.name = original.name
    copied.meta.update(module.meta)
    return copied


@dataclass
class ProgramShelf:
    """A program taken apart: what can be changed, and how it goes together again."""

    original: ExportedProgram
    module: fx.GraphModule
    specs: dict[fx.Node, InputSpec]
    tensors: dict[str, Tensor]
    mode: FakeTensorMode
    nodes: dict[str, fx.Node] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = {spec.target: node for node, spec in self.stored() if spec.target is not None}

    @classmethod
    def of(cls, program: ExportedProgram) -> ProgramShelf:
        module = copied_graph(program.graph_module)
        placeholders = module.graph.find_nodes(op="placeholder")
        specs = dict(zip(placeholders, program.graph_signature.input_specs, strict=True))
        tensors = {name: tensor for name, tensor in program.constants.items() if isinstance(tensor, Tensor)}
        mode = detect_fake_mode([node.meta.get("val") for node in module.graph.nodes]) or FakeTensorMode()
        return cls(program, module, specs, {**program.state_dict, **tensors}, mode)

    def stored(self) -> list[tuple[fx.Node, InputSpec]]:
        return [(node, spec) for node, spec in self.specs.items() if spec.kind in STORED]

    # the shelf

    def names(self) -> set[str]:
        return set(self.tensors)

    def is_free(self, name: str) -> bool:
        parts = name.split(".")
        return not any(".".join(parts[:length]) in self.tensors for length in range(1, len(parts) + 1))

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def readers(self, name: str) -> set[fx.Node]:
        return set(self.nodes[name].users) if name in self.nodes else set()

    def put(self, name: str, tensor: Tensor, like: str | None, trained: bool = True) -> fx.Node:
        new = InputKind.PARAMETER if trained else InputKind.BUFFER
        kind = self.specs[self.nodes[like]].kind if like in self.nodes else new
        template = self.tensors.get(like) if like is not None else None
        self.tensors[name] = _as_parameter(tensor, template) if kind is InputKind.PARAMETER else tensor
        node = self.nodes.get(name) or self._new_placeholder(name, kind)
        node.meta["val"] = self.mode.from_tensor(self.tensors[name], static_shapes=True)
        return node

    def drop(self, node: fx.Node) -> None:
        name = self.specs[node].target
        assert name is not None, "a stored tensor has a name"
        self._forget(node, name)
        counter = f"{name.removesuffix('running_mean')}num_batches_tracked"
        if name.endswith("running_mean") and counter in self.nodes and not self.nodes[counter].users:
            self._forget(self.nodes[counter], counter)

    def rename(self, value: str, successor: str) -> None:
        self.renamed = {old: successor if new == value else new for old, new in self.renamed.items()}
        self.renamed[value] = successor

    # back to a program

    def program(self) -> ExportedProgram:
        """A new program of what is on the shelf, verified by torch."""
        self.module.graph.lint()
        self.module.recompile()
        original, signature = self.original, self.original.graph_signature
        outputs = [self._output_spec(i, spec) for i, spec in enumerate(signature.output_specs)]
        inputs = [self.specs[node] for node in self.module.graph.find_nodes(op="placeholder")]
        with quiet():
            return ExportedProgram(
                root=self.module,
                graph=self.module.graph,
                graph_signature=ExportGraphSignature(input_specs=inputs, output_specs=outputs),
                state_dict=self._held(original.state_dict, constants=False),
                range_constraints=copy.copy(original.range_constraints),
                module_call_graph=self._module_call_graph(),
                example_inputs=original.example_inputs,
                constants=self._held(original.constants, constants=True),
                verifiers=original.verifiers,
            )

    def _held(self, original: dict[str, Any], constants: bool) -> dict[str, Any]:
        """The state or the constants as they are now, in their old order, new ones last."""
        known = {**self.original.state_dict, **self.original.constants}
        kept = {
            name: self.tensors.get(name, value)
            for name, value in original.items()
            if name in self.tensors or not isinstance(value, Tensor)
        }
        new = [name for name in self.tensors if name not in known and self._is_lifted(name) == constants]
        return kept | {name: self.tensors[name] for name in new}

    def _module_call_graph(self) -> list[ModuleCallEntry]:
        entries: list[ModuleCallEntry] = copy.deepcopy(self.original.module_call_graph)
        for entry in entries:
            signature = entry.signature
            if signature is not None and not self._still_makes(entry.fqn, signature.outputs):
                entry.signature = None
            for argument in (*signature.inputs, *signature.outputs) if signature else ():
                if isinstance(argument, TensorArgument):
                    argument.name = self.renamed.get(argument.name, argument.name)
        return entries

    def _still_makes(self, path: str, outputs: list[Any]) -> bool:
        """Whether a module whose call is on record still makes its outputs: a folded batch norm does not."""
        names = {self.renamed[each.name] for each in outputs if getattr(each, "name", None) in self.renamed}
        makers = [node for node in self.module.graph.nodes if node.name in names]
        return not path or all(is_inside(node, path) for node in makers)

    def _is_lifted(self, name: str) -> bool:
        return self.specs[self.nodes[name]].kind is InputKind.CONSTANT_TENSOR

    def _output_spec(self, position: int, spec: OutputSpec) -> OutputSpec:
        value = self.module.graph.output_node().args[0][position]  # type: ignore[index]
        if not isinstance(spec.arg, TensorArgument) or not isinstance(value, fx.Node):
            return spec
        return OutputSpec(spec.kind, TensorArgument(name=value.name), spec.target)

    def _new_placeholder(self, name: str, kind: InputKind) -> fx.Node:
        """A placeholder behind the last one of its kind, with its spec."""
        graph = self.module.graph
        same = [node for node, spec in self.stored() if spec.kind is kind]
        with graph.inserting_after(same[-1]) if same else graph.inserting_before(next(iter(graph.nodes))):
            node = graph.placeholder(f"{'b' if kind is InputKind.BUFFER else 'p'}_{name.replace('.', '_')}")
        node.target = node.name
        persistent = True if kind is InputKind.BUFFER else None
        self.specs[node] = InputSpec(kind, TensorArgument(name=node.name), name, persistent)
        self.nodes[name] = node
        return node

    def _forget(self, node: fx.Node, name: str) -> None:
        self.module.graph.erase_node(node)
        del self.specs[node], self.nodes[name], self.tensors[name]


def _as_parameter(tensor: Tensor, template: Tensor | None) -> nn.Parameter:
    """A parameter laid out and trained as `template` is; one that is a parameter already stays the same object."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    if template is None:
        return nn.Parameter(tensor)
    return nn.Parameter(laid_out_as(tensor, template), requires_grad=template.requires_grad)


def laid_out_as(tensor: Tensor, template: Tensor) -> Tensor:
    """A contiguous tensor in the memory format of one of the same shape (channels last, say)."""
    if template.is_contiguous() or template.shape != tensor.shape:
        return tensor
    return torch.empty_like(template, requires_grad=False).copy_(tensor)
