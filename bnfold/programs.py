"""From whatever torch stores to one exported program.

A program remembers what its inputs look like; a module and a TorchScript archive have to be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnfold.errors import BnfoldError, UsageError
from bnfold.loading import Loaded, Source, to_program
from bnfold.loading.suggestions import command
from bnfold.run import RunOptions

if TYPE_CHECKING:
    from bnfold.verify.inputs import InputSpec

LENGTHS = (64, 224, 32, 128, 256, 28, 16, 8)
"""Sizes tried for a dynamic axis that is not the batch, until the network accepts one."""


def as_program(loaded: Loaded, source: Source, options: RunOptions) -> Any:
    """The `ExportedProgram` of a loaded torch model.

    Raises `UsageError` with the command to run where `--input` is missing, `Rejected` where torch cannot capture it.
    """
    if loaded.kind == "pt2":
        return loaded.model
    from bnfold.verify.inputs import parse_dim, parse_input

    specs = tuple(parse_input(text) for text in options.inputs)
    if not specs:
        message = f"{loaded.path} is a {loaded.kind.replace('_', ' ')}, which does not say what its inputs look like"
        hint = command(loaded.path, source, guess=loaded.input_guess or "batch,3,height,width")
        raise UsageError(message, code="input-needed", hint=hint)
    dims = dict(parse_dim(text) for text in options.dims)
    return _captured(loaded, specs, dims)


def _captured(loaded: Loaded, specs: tuple[InputSpec, ...], dims: Mapping[str, tuple[int, ...]]) -> Any:
    from bnfold.frontends import torch

    words = {axis for spec in specs for axis in spec.shape[1:] if isinstance(axis, str)} - dims.keys()
    failure: BnfoldError | None = None
    for length in LENGTHS if words else LENGTHS[:1]:
        shapes = tuple(_shape(spec, dims, length) for spec in specs)
        examples = torch.example_inputs(shapes, tuple(spec.dtype for spec in specs), like=loaded.model)
        try:
            with torch.quiet():
                module = to_program(loaded.model, examples).module() if loaded.kind == "torchscript" else loaded.model
            return torch.capture(module, examples, tuple(spec.shape for spec in specs))
        except BnfoldError as error:
            failure = failure or error
    assert failure is not None, "at least one length is tried"
    raise failure


def _shape(spec: InputSpec, dims: Mapping[str, tuple[int, ...]], length: int) -> tuple[int, ...]:
    """The shape of one example: at least 2 where an axis is dynamic, since torch takes 0 and 1 for constants."""

    def size(position: int, axis: int | str) -> int:
        if isinstance(axis, int):
            return axis
        if axis in dims:
            return max(2, *dims[axis])
        return 2 if position == 0 else length

    return tuple(size(position, axis) for position, axis in enumerate(spec.shape))
