"""From a module to an exported program, in silence and with a dynamic batch.

`capture` works on a copy that shares the module's tensors: tracing rebinds attributes (weight norm does), the caller's
module stays as it is.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from bnfold.errors import Rejected, UsageError

Axes = tuple[int | str, ...]
M = TypeVar("M", bound=nn.Module)

_UNSCRIPTED = "fold the nn.Module first and script the folded one"


def capture(
    module: nn.Module, example_inputs: tuple[Any, ...], axes: tuple[Axes, ...] | None = None
) -> ExportedProgram:
    """The exported program of the module, each part in the mode that it is in.

    `example_inputs` are the positional arguments: tensors, or tuples, lists and dicts of them; axis 0 of each tensor is
    dynamic. With `axes`, one per argument, exactly the axes given as a word are. The module is not changed.
    Raises `Rejected` where torch.export cannot trace it, `UsageError` where the inputs do not fit.
    """
    if isinstance(example_inputs, Tensor):
        raise UsageError("example_inputs is a tuple of tensors, not a tensor", hint="write (tensor,)")
    if axes is None:
        return capture_as_is(module, example_inputs, batch_only=True)
    named = tuple({i: Dim.AUTO for i, size in enumerate(shape) if isinstance(size, str)} or None for shape in axes)
    return _exported(_shallow(module), example_inputs, named, fixed=example_inputs)


def example_inputs(
    shapes: tuple[tuple[int, ...], ...], dtypes: tuple[str | None, ...], like: nn.Module
) -> tuple[Tensor, ...]:
    """A tensor for each shape, of numpy's dtype name, or of the parameters' type where that is None.

    Normal numbers where it is a float type, zeros otherwise.
    """
    random = torch.Generator().manual_seed(0)
    usual = next((p.dtype for p in like.parameters() if p.is_floating_point()), torch.float32)
    types = [usual if name is None else getattr(torch, name) for name in dtypes]
    return tuple(
        torch.randn(shape, generator=random).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        for shape, dtype in zip(shapes, types, strict=True)
    )


def capture_as_is(module: nn.Module, example_inputs: tuple[Any, ...], *, batch_only: bool) -> ExportedProgram:
    """As `capture`, with every axis dynamic that can be unless `batch_only`."""
    inputs = pytree.tree_map_only(Tensor, _at_least_two, example_inputs)
    axes = pytree.tree_map(lambda leaf: _axes(leaf, batch_only), inputs)
    return _exported(_shallow(module), inputs, axes, fixed=example_inputs)


def dynamic_axes(program: ExportedProgram) -> bool:
    """Whether any axis of the program's inputs is dynamic; if not, it is fixed to the example's sizes."""
    return bool(program.range_constraints)


def _exported(module: nn.Module, inputs: tuple[Any, ...], axes: Any, fixed: tuple[Any, ...]) -> ExportedProgram:
    """The program with these dynamic axes; where there is none, that for exactly the sizes of `fixed`."""
    shapes = _by_parameter(module, axes)
    leaves = zip(pytree.tree_leaves(inputs), pytree.tree_leaves(fixed), strict=True)
    expanded = any(one is not other for one, other in leaves)
    with quiet(), torch.no_grad():
        for examples in (inputs, fixed)[: 1 + expanded]:
            with contextlib.suppress(Exception):
                return torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)
        return _static(module, fixed)


def _by_parameter(module: nn.Module, axes: Any) -> Any:
    """The axes of each argument, those of `*arguments` together: torch.export wants one entry per parameter."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    first = next((i for i, each in enumerate(parameters) if each.kind is inspect.Parameter.VAR_POSITIONAL), None)
    return axes if first is None else (*axes[:first], tuple(axes[first:]))


def _static(module: nn.Module, example_inputs: tuple[Any, ...]) -> ExportedProgram:
    """The program for exactly these sizes; only where none exists is the export given up."""
    try:
        module(*example_inputs)
    except Exception as error:
        raise UsageError(f"the example inputs do not fit the module: {first_line(error)}") from error
    try:
        return torch.export.export(module, example_inputs, strict=False)
    except Exception as error:
        raise Rejected(
            f"torch.export cannot trace the module: {first_line(error)}",
            code="untraceable",
            hint="make the control flow independent of the data, or fold the part of the network that is",
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that torch prints, logs or warns about reaches the user; errors do."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _shallow(module: nn.Module) -> nn.Module:
    """A copy of the structure that shares every tensor."""
    memo: dict[int, object] = {}
    for part in module.modules():
        for value in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            if isinstance(value, Tensor):
                memo[id(value)] = value
    return deep_copy(module, memo)


def deep_copy(module: M, memo: dict[int, object]) -> M:
    """A deep copy in which the values of `memo` stand for the objects of these ids.

    Raises `UsageError` for a module that was never run, `Rejected` for one that cannot be copied.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise Rejected("a scripted module has no Python code to trace", code="scripted", hint=_UNSCRIPTED)
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise UsageError("the module has lazy parameters without a value", hint="run the module once on its inputs")
    try:
        with quiet(), torch.no_grad():
            return copy.deepcopy(module, memo)
    except Exception as error:
        raise Rejected(
            f"an attribute of the module cannot be copied: {first_line(error)}",
            code="uncopyable",
            hint="set the attribute after folding, or give its class a __deepcopy__",
        ) from error


def _at_least_two(tensor: Tensor) -> Tensor:
    """A batch of one is no example of a batch: torch.export takes the size 1 for a constant."""
    return tensor.expand(2, *tensor.shape[1:]).contiguous() if tensor.dim() and tensor.shape[0] == 1 else tensor


def _axes(leaf: Any, batch_only: bool) -> dict[int, Any] | None:
    if not isinstance(leaf, Tensor):
        return None
    return dict.fromkeys(range(min(leaf.dim(), 1) if batch_only else leaf.dim()), Dim.AUTO)


def first_line(error: BaseException) -> str:
    """What an error says first, or what it is called where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
