"""TorchScript: its loader unpickles, so the caller must trust the file; then it becomes an exported program.

torch.export refuses a ScriptModule; torch's own converter walks the TorchScript graph instead, given example inputs.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import Rejected
from bnfold.loading.archives import check_archive
from bnfold.loading.source import Source, brief
from bnfold.loading.suggestions import command, input_guess, peek

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def load_script(path: Path, source: Source) -> Any:
    """A `ScriptModule` in eval mode. Raises `Rejected` (`needs-trust`, `invalid-torchscript`)."""
    if not source.trust_pickle:
        message = f"{path} is a TorchScript archive, whose loader can run code that the file brings along"
        hint = command(path, source, "--trust-pickle", guess=input_guess(peek(path)))
        raise Rejected(message, code="needs-trust", hint=hint)
    import torch

    with path.open("rb") as file:
        check_archive(path, file, limits=not source.no_limits).close()
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch 2.13 announces the end of TorchScript at every call
                script = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            message = f"{path} cannot be read as TorchScript ({brief(str(error))})"
            raise Rejected(message, code="invalid-torchscript") from error
    return script.eval() if hasattr(script, "training") else script


def to_program(script: Any, example_inputs: tuple[Any, ...]) -> ExportedProgram:
    """Convert a traced, scripted or frozen module, given tensors that it accepts. Raises `Rejected` (`conversion`)."""
    from torch._export.converter import TS2EPConverter

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return TS2EPConverter(script, example_inputs).convert()
    except Exception as error:
        why = f"{type(error).__name__}: {brief(str(error))}"
        message = f"this TorchScript module cannot be converted to an exported program ({why})"
        hint = "export the original network instead of its TorchScript"
        raise Rejected(message, code="conversion", hint=hint) from error
