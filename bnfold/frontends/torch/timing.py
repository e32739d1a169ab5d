"""Programs and modules as torch runs them for its users, to be timed: eager or compiled, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from bnfold.errors import EnvironmentFailure, UsageError
from bnfold.frontends.torch.capture import quiet
from bnfold.frontends.torch.running import refused, runner, signature, to_tensor
from bnfold.model import Runner, Signature


@dataclass(frozen=True, eq=False)
class Timed:
    """A module on its device. `names` are those of its inputs, in order."""

    module: Callable[..., Any]
    names: tuple[str, ...]
    device: str

    def prepared(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """One run on these arrays as a call without arguments. The inputs are copied to the device once; a call waits
        for the device. Raises `NoVerdict` (`cannot-run`), as each call may."""
        with refused():
            inputs = [to_tensor(feeds[name]).to(self.device) for name in self.names]
        return call_of_module(self.module, inputs)


def open_timed(path: Path, *, provider: str, threads: int | None, compiled: bool) -> Timed:
    """The program in a `.pt2` file that bnfold wrote, ready to be timed; with `compiled`, by `torch.compile`.

    On a GPU, products and convolutions are computed in full float32 (no TF32), with cuDNN's own choice of algorithm.
    Raises `EnvironmentFailure` (`provider-missing`) where torch has no such device, `UsageError` where it is none.
    """
    device = device_of(provider)
    if threads is not None:
        torch.set_num_threads(threads)
    program = _read(path)
    with quiet():
        module = program.module(check_guards=False).to(device)
    names = tuple(port.name for port in signature(program).inputs)
    return Timed(torch.compile(module) if compiled else module, names, device)


def device_of(provider: str) -> str:
    """The torch device of a provider, `cpu` or `cuda`, once full precision is set. Raises as `open_timed` does."""
    if provider not in ("cpu", "cuda"):
        raise UsageError(f"torch runs on cpu and cuda, not on {provider}", code="provider-unknown")
    if provider == "cuda":
        if not torch.cuda.is_available():
            hint = "install a build of torch for CUDA, or --provider cpu"
            raise EnvironmentFailure("this torch has no CUDA device", code="provider-missing", hint=hint)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
    return provider


def call_of_module(module: Callable[..., Any], inputs: list[Tensor]) -> Callable[[], object]:
    """One run of a module on tensors as a call without arguments that waits for the device."""
    waits = any(tensor.is_cuda for tensor in inputs)

    def run() -> None:
        with refused(), torch.inference_mode():
            module(*inputs)
            if waits:
                torch.cuda.synchronize()

    return run


def open_program(path: Path) -> tuple[Signature, Runner]:
    """The ports of the program in a `.pt2` file that bnfold wrote, and the program as a function of arrays."""
    program = _read(path)
    ports = signature(program)
    return ports, runner(program, ports)


def _read(path: Path) -> ExportedProgram:
    with quiet():
        return torch.export.load(path)


def cannot_compile() -> str | None:
    """Why `torch.compile` does not work here, in one sentence; None where it does."""
    try:
        with quiet():
            torch.compile(torch.nn.ReLU())(torch.ones(2))
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"torch.compile does not work here, so eager alone is measured: {line[:200]}"
    return None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for torch's operators, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compiled(module: nn.Module) -> Callable[..., Any]:
    """The module as `torch.compile` makes it; the given one stays as it is."""
    made: Callable[..., Any] = torch.compile(module)
    return made
