"""The torch dialect: exported programs, GraphModules and modules.

program = capture(module, (example,))            # any nn.Module, in silence, dynamic batch
folded, report = fold_program(program)           # a valid program: save, run, decompose, export to ONNX
folded, report = fold_module(module, (example,)) # the caller's module stays as it is
model = to_onnx(program)                         # unfolded ONNX, as an onnx_ir model
"""

from bnfold.frontends.torch.capture import capture, dynamic_axes, example_inputs, quiet
from bnfold.frontends.torch.casting import as_exported, as_float16, as_float32, as_float64, is_half, rounded_constants
from bnfold.frontends.torch.contents import contents
from bnfold.frontends.torch.cutting import Cutting
from bnfold.frontends.torch.deciding import batch_statistics, decides
from bnfold.frontends.torch.evidence import evidence
from bnfold.frontends.torch.export import to_onnx
from bnfold.frontends.torch.facts import facts, size
from bnfold.frontends.torch.hooks import foreign_hooks
from bnfold.frontends.torch.module import fold_graph_module, fold_module
from bnfold.frontends.torch.program import fold_program
from bnfold.frontends.torch.recalibrating import recalibrate_module
from bnfold.frontends.torch.running import runner, signature
from bnfold.frontends.torch.timing import (
    Timed,
    call_of_module,
    cannot_compile,
    compiled,
    device_of,
    open_program,
    open_timed,
    threads,
)

__all__ = [
    "Cutting",
    "Timed",
    "as_exported",
    "as_float16",
    "as_float32",
    "as_float64",
    "batch_statistics",
    "call_of_module",
    "cannot_compile",
    "capture",
    "compiled",
    "contents",
    "decides",
    "device_of",
    "dynamic_axes",
    "evidence",
    "example_inputs",
    "facts",
    "fold_graph_module",
    "fold_module",
    "fold_program",
    "foreign_hooks",
    "is_half",
    "open_program",
    "open_timed",
    "quiet",
    "recalibrate_module",
    "rounded_constants",
    "runner",
    "signature",
    "size",
    "threads",
    "to_onnx",
]
