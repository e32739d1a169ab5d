"""What an export should know of a program: whether it decides, and which batch norms are still training."""

from __future__ import annotations

from torch.export import ExportedProgram

from bnfold.frontends.torch.aliasing import bare_name
from bnfold.frontends.torch.calls import call_of, words
from bnfold.frontends.torch.lenses import has_running
from bnfold.frontends.torch.program import ProgramShelf, open_program
from bnfold.graph import Reason

DECIDING = words(
    "round floor ceil sign argmax argmin topk sort argsort nonzero bucketize nms gt ge lt le eq ne where"
    " quantize_per_tensor quantize_per_channel fake_quantize_per_tensor_affine fake_quantize_per_channel_affine"
)


def batch_statistics(program: ExportedProgram) -> list[tuple[str, bool]]:
    """The batch norms that normalise by the statistics of the batch, by module path where known, and whether each has
    running statistics too."""
    graph, _ = open_program(ProgramShelf.of(program))
    nodes = [node for node in graph.affines() if graph.read(node) is Reason.BATCH_STATISTICS]
    sites = [(graph.site(node), call_of(node, {})) for node in nodes]
    return [(site.module or site.name, call is not None and has_running(call)) for site, call in sites]


def decides(program: ExportedProgram) -> bool:
    """Whether the program rounds, compares or selects, so that the smallest difference may become a large one."""
    return any(bare_name(node) in DECIDING for node in program.graph.nodes if node.op == "call_function")
