"""Whether a program decides: rounds, compares or selects, so that the smallest difference may become a large one."""

from __future__ import annotations

from torch.export import ExportedProgram

from bnfold.frontends.torch.aliasing import bare_name
from bnfold.frontends.torch.calls import words

DECIDING = words(
    "round floor ceil sign argmax argmin topk sort argsort nonzero bucketize nms gt ge lt le eq ne where"
    " quantize_per_tensor quantize_per_channel fake_quantize_per_tensor_affine fake_quantize_per_channel_affine"
)


def decides(program: ExportedProgram) -> bool:
    """Whether the program rounds, compares or selects somewhere inside."""
    return any(bare_name(node) in DECIDING for node in program.graph.nodes if node.op == "call_function")
