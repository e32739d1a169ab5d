"""An exported program in a few milliseconds: the operators that a run calls, as torch.export would write them down.

`torch.export` takes 0.4 s for a small graph, most of it on shapes that might be others. A `Recording` is a module that
runs another one and notes every operator as it reaches the dispatcher. Each size is the size of that run, and so a
fact of the program. The operators in place stay, as in torch's training dialect.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._export.verifier import TrainingIRVerifier
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

PREFIXES = {InputKind.PARAMETER: "p_", InputKind.BUFFER: "b_", InputKind.USER_INPUT: ""}
NUMBERED = {torch.ops.aten.fill_.Tensor: torch.ops.aten.fill_.Scalar}


class _Tape(ProxyTorchDispatchMode):
    """Notes operators before they are taken apart; torch lets nothing but proxy modes see them then."""

    __enter__ = TorchDispatchMode.__enter__
    __exit__ = TorchDispatchMode.__exit__

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.alive: list[Any] = []

    def __torch_dispatch__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = called(*args, **(kwargs or {}))
        if called is torch.ops.aten.lift_fresh.default:
            return made  # a number in the code
        called = NUMBERED.get(called, called)
        node = self.graph.call_function(called, *pytree.tree_map_only(Tensor, self.argument, (args, kwargs or {})))
        self.note(node, made)
        for index, item in enumerate(made if isinstance(made, (tuple, list)) else ()):
            self.note(self.graph.call_function(operator.getitem, (node, index)), item)
        return made

    def node(self, tensor: Tensor) -> fx.Node:
        """What made the tensor, or another handle of it."""
        if id(tensor) not in self.nodes:
            same = next(t for t in reversed(self.alive) if t.is_set_to(tensor))
            return self.nodes[id(same)]
        return self.nodes[id(tensor)]

    def argument(self, tensor: Tensor) -> fx.Node | float:
        """What made the tensor; a number that torch made a tensor of is a number again."""
        known = id(tensor) in self.nodes or any(each.is_set_to(tensor) for each in self.alive)
        return self.node(tensor) if tensor.ndim or known else tensor.item()

    def note(self, node: fx.Node, value: Any) -> fx.Node:
        """The node makes this value; a tensor lives on, so that no other one gets its id."""
        node.meta["val"] = pytree.tree_map_only(Tensor, _described, value)
        if isinstance(value, Tensor):
            self.nodes[id(value)] = node
            self.alive.append(value)
        return node


def _described(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class Recording(nn.Module):
    """Runs a module once; `program` is what it did."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.recorded = module
        self.program: ExportedProgram | None = None

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.recorded.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Any:
        return self.recorded.named_buffers(*args, **kwargs)

    def forward(self, *inputs: Tensor) -> Any:
        tape = _Tape()
        stored = {
            **{name: (InputKind.PARAMETER, tensor) for name, tensor in self.named_parameters()},
            **{name: (InputKind.BUFFER, tensor) for name, tensor in self.named_buffers()},
        }
        given = {f"x{index}": (InputKind.USER_INPUT, tensor) for index, tensor in enumerate(inputs)}
        specs = [_input(tape, name, *held) for name, held in (stored | given).items()]
        with torch.no_grad(), enable_python_dispatcher(), tape:
            made = self.recorded.forward(*inputs)
        results = tuple(tape.node(each) for each in pytree.tree_leaves(made))
        tape.graph.output(results)
        state = {name: tensor for name, (_, tensor) in stored.items()}
        self.program = _program(tape.graph, specs, results, state, (inputs, {}), pytree.tree_structure(made))
        return made


def _input(tape: _Tape, name: str, kind: InputKind, tensor: Tensor) -> InputSpec:
    node = tape.note(tape.graph.placeholder(PREFIXES[kind] + name.replace(".", "_")), tensor)
    persistent = True if kind is InputKind.BUFFER else None
    target = None if kind is InputKind.USER_INPUT else name
    return InputSpec(kind, TensorArgument(node.name), target, persistent)


def _program(
    graph: fx.Graph, specs: list[InputSpec], results: tuple[fx.Node, ...], state: dict[str, Any], given: Any, tree: Any
) -> ExportedProgram:
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]
    arguments = [spec.arg for spec in specs if spec.kind is InputKind.USER_INPUT]
    call = ModuleCallSignature(arguments, [spec.arg for spec in outputs], pytree.tree_structure(given), tree)
    return ExportedProgram(
        nn.Module(),
        graph,
        ExportGraphSignature(specs, outputs),
        state,
        {},
        [ModuleCallEntry("", call)],
        given,
        {},
        verifiers=[TrainingIRVerifier],
    )


class Called:
    """A program as a module that is called, without the checks of its inputs that `program.module()` writes."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.tensors = {**program.state_dict, **program.constants}

    def named_parameters(self, **_: Any) -> list[tuple[str, Tensor]]:
        return list(self.tensors.items())

    def named_buffers(self, **_: Any) -> list[tuple[str, Tensor]]:
        return []

    def forward(self, *inputs: Tensor) -> Any:
        specs = self.program.graph_signature.input_specs
        stored = [self.tensors[spec.target] for spec in specs if spec.target is not None]
        return self.program.graph_module(*stored, *inputs)
