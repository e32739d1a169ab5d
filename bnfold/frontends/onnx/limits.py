"""How large a model may be before somebody should say that it is meant to be.

No model in use comes near these limits, and one that does costs memory and time before anything of it is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from bnfold.errors import Rejected
from bnfold.frontends.onnx.protos import bodies, in_attributes, nbytes, nodes, tensors, within

MOST_NODES = 1_000_000
MOST_TENSORS = 1_000_000
MOST_BYTES = 1 << 38
DEEPEST, DEEPEST_CALL = 16, 100
LONGEST_NAME = 4096


def check_limits(proto: onnx.ModelProto, name: str) -> None:
    """Raise `Rejected` (`limit`) for a model beyond any of the limits."""
    for complaint in _complaints(proto):
        raise Rejected(f"{name} is refused: {complaint}", code="limit", hint="--no-limits lifts the limits")


def _complaints(proto: onnx.ModelProto) -> Iterator[str]:
    if len(proto.graph.node) > MOST_NODES:  # before anything walks over them
        yield f"it has {len(proto.graph.node):,} nodes, more than {MOST_NODES:,}"
    defaults = [graph for function in proto.functions for graph in in_attributes(function.attribute_proto)]
    parts = (proto.graph.node, *(each.node for each in (*proto.functions, *defaults)))
    if any(_depth(found) > DEEPEST for found in parts):
        yield f"its subgraphs are nested more than {DEEPEST} deep"
    every, stored = list(nodes(proto)), list(tensors(proto))
    if len(every) > MOST_NODES:
        yield f"it has {len(every):,} nodes with those of its subgraphs, more than {MOST_NODES:,}"
    if (expanded := _expanded(proto)) is None:
        yield f"its functions call each other more than {DEEPEST_CALL} deep"
    elif expanded > MOST_NODES:
        yield f"its functions call each other so often that it has {expanded:,} nodes, more than {MOST_NODES:,}"
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


def _expanded(proto: onnx.ModelProto) -> int | None:
    """The nodes of the model once every call of a function of its own is expanded, as inference of types does; None
    where calls go too deep. A cycle, which the checker refuses, counts once."""
    functions = {(each.domain, each.name, each.overload): each.node for each in proto.functions}
    known: dict[tuple[str, str, str], int] = {}

    def count(found: Iterable[onnx.NodeProto], depth: int) -> int:
        if depth > DEEPEST_CALL:
            raise OverflowError
        return sum(1 + called((node.domain, node.op_type, node.overload), depth) for node in within(found))

    def called(key: tuple[str, str, str], depth: int) -> int:
        if key in functions and key not in known:
            known[key] = 0
            known[key] = count(functions[key], depth + 1)
        return known.get(key, 0)

    try:
        return count(proto.graph.node, 0) if functions else len(proto.graph.node)
    except OverflowError:
        return None
