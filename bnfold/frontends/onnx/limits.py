"""How large a model may be before somebody should say that it is meant to be.

No model in use comes near these limits, and one that does costs memory and time before anything of it is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from bnfold.errors import Rejected
from bnfold.frontends.onnx.protos import bodies, nbytes, nodes, tensors

MOST_NODES = 1_000_000
MOST_TENSORS = 1_000_000
MOST_BYTES = 1 << 38
DEEPEST = 16
LONGEST_NAME = 4096


def check_limits(proto: onnx.ModelProto, name: str) -> None:
    """Raise `Rejected` (`limit`) for a model beyond any of the limits."""
    for complaint in _complaints(proto):
        raise Rejected(f"{name} is refused: {complaint}", code="limit", hint="--no-limits lifts the limits")


def _complaints(proto: onnx.ModelProto) -> Iterator[str]:
    if len(proto.graph.node) > MOST_NODES:  # before anything walks over them
        yield f"it has {len(proto.graph.node):,} nodes, more than {MOST_NODES:,}"
    if _depth(proto.graph.node) > DEEPEST or any(_depth(function.node) > DEEPEST for function in proto.functions):
        yield f"its subgraphs are nested more than {DEEPEST} deep"
    every, stored = list(nodes(proto)), list(tensors(proto))
    if len(every) > MOST_NODES:
        yield f"it has {len(every):,} nodes with those of its subgraphs, more than {MOST_NODES:,}"
    if len(stored) > MOST_TENSORS:
        yield f"it stores {len(stored):,} tensors, more than {MOST_TENSORS:,}"
    if (total := sum(nbytes(tensor) or 0 for tensor in stored)) > MOST_BYTES:
        yield f"its tensors have {total:,} bytes, more than {MOST_BYTES:,}"
    names = (text for node in every for text in (node.name, *node.input, *node.output))
    if any(len(text) > LONGEST_NAME for text in (*names, *(tensor.name for tensor in stored))):
        yield f"a name has more than {LONGEST_NAME:,} characters"


def _depth(found: Iterable[onnx.NodeProto], level: int = 0) -> int:
    """How deep bodies of control flow stand in each other, looked at only so far as is allowed."""
    if level > DEEPEST:
        return level
    return max((_depth(body.node, level + 1) for node in found for body in bodies(node)), default=level)
