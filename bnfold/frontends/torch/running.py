"""Programs and modules as functions of numpy arrays, and what goes in and out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from bnfold.errors import NoVerdict
from bnfold.frontends.torch.aliasing import mutated
from bnfold.frontends.torch.program import STORED
from bnfold.model import Arrays, Port, Runner, Signature


def signature(program: ExportedProgram) -> Signature:
    """The tensors among the program's flat inputs and outputs, in order. A dynamic axis is named by its symbol.

    Outputs are numbered: the names that a program has for them are those of its nodes, which a fold may remove.
    """
    specs = program.graph_signature
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = [s.arg for s in specs.input_specs if s.kind is InputKind.USER_INPUT]
    outputs = [s.arg for s in specs.output_specs if s.kind is OutputKind.USER_OUTPUT]
    named = (replace(port, name=f"output_{index}") for index, port in enumerate(_ports(outputs, values)))
    return Signature(_ports(inputs, values), tuple(named))


def runner(model: ExportedProgram | nn.Module, signature: Signature) -> Runner:
    """The model as a function from arrays to arrays, by the names of `signature`.

    Inputs and outputs are taken in order, so that a folded model runs under the original's names. Float inputs are cast
    to the model's own type. A buffer that the model writes starts from its stored value in every run.
    Raises `NoVerdict` (`cannot-run`) with the first line of what the model raises.
    """
    execute = _program_call(model) if isinstance(model, ExportedProgram) else _module_call(model)

    def run(arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        tensors = [to_tensor(arrays[port.name]) for port in signature.inputs]
        with refused(), torch.no_grad():
            results = execute(tensors)
        outputs = [result for result in results if isinstance(result, Tensor)]
        names = [port.name for port in signature.outputs]
        return {name: to_array(output) for name, output in zip(names, outputs, strict=True)}

    return run


def watched(
    program: ExportedProgram, arrays: Mapping[str, NDArray[Any]], names: Set[str], visit: Callable[[str, Any], None]
) -> None:
    """Run a program and show the values of these names as arrays, as each is made. Raises as `runner` does."""

    class Watching(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if node.name in names:
                visit(node.name, to_array(result) if isinstance(result, Tensor) else np.asarray(result))
            return result

    tensors = [to_tensor(arrays[port.name]) for port in signature(program).inputs]
    with refused(), torch.no_grad():
        _program_call(program, Watching)(tensors)


@contextmanager
def refused() -> Iterator[None]:
    """What a model raises is of any class, and only tells that it does not run."""
    try:
        yield
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoVerdict(f"torch cannot run the model: {line[:200]}", code="cannot-run") from error


def to_array(tensor: Tensor) -> NDArray[Any]:
    """The tensor as a numpy array of its own type, bfloat16 included."""
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype is torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(plain.numpy())


def to_tensor(array: NDArray[Any]) -> Tensor:
    """A copy of the array as a tensor of its own type, bfloat16 included."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _ports(arguments: list[Any], values: Mapping[str, Any]) -> tuple[Port, ...]:
    tensors = [argument.name for argument in arguments if isinstance(argument, TensorArgument)]
    return tuple(_port(name, values[name]) for name in tensors if isinstance(values[name], Tensor))


def _port(name: str, value: Tensor) -> Port:
    return Port(name, str(value.dtype).removeprefix("torch."), tuple(map(_size, value.shape)))


def _size(size: int | torch.SymInt) -> int | str:
    """The size of an axis, or the symbol of one of any size; a symbol that was found to be a number is that number."""
    text = str(size)
    return int(text) if text.isdigit() else text


def _program_call(program: ExportedProgram, interpreter: type[fx.Interpreter] = fx.Interpreter) -> Any:
    """The flat graph of a program as a function of its tensor inputs, without the guards of its Python signature."""
    module = program.graph_module
    placeholders = module.graph.find_nodes(op="placeholder")
    specs = dict(zip(placeholders, program.graph_signature.input_specs, strict=True))
    written = mutated(module.graph, dict(module.named_modules()))
    stored = {**program.constants, **program.state_dict}

    def execute(tensors: list[Tensor]) -> list[Any]:
        given = iter(tensors)
        results = interpreter(module).run(*(_argument(node, specs[node], given, written, stored) for node in specs))
        kinds = [spec.kind for spec in program.graph_signature.output_specs]
        return [value for value, kind in zip(results, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]

    return execute


def _argument(node: fx.Node, spec: Any, given: Any, written: frozenset[fx.Node], stored: Mapping[str, Any]) -> Any:
    if spec.kind in STORED or spec.kind is InputKind.CUSTOM_OBJ:
        value = stored[spec.target]
        return value.detach().clone() if node in written else value
    value = node.meta.get("val")
    return _like(next(given), value.dtype) if isinstance(value, Tensor) else getattr(spec.arg, "value", None)


def _module_call(module: nn.Module) -> Any:
    floats = (tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point())
    template = next(floats, torch.zeros(()))

    def execute(tensors: list[Tensor]) -> list[Any]:
        inputs = [_like(tensor, template.dtype).to(template.device) for tensor in tensors]
        return list(pytree.tree_leaves(module(*inputs)))

    return execute


def _like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
