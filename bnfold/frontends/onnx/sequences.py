"""torch's exporter writes a split as SplitToSequence and one SequenceAt per piece; Split says the same in one node.

A sequence hides which piece goes where, so nothing crosses it. Where the sizes and every position are constant and
nobody else reads the sequence, one Split takes the place of all these nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.constants import Constants

SPLIT_BY_INPUT = 13


def as_splits(model: ir.Model, names: dict[ir.Node, str]) -> None:
    """Replace such sequences in the main graph, in place; a Split has the name of its SplitToSequence in `names`."""
    if walking.model_opset(model) < SPLIT_BY_INPUT:
        return
    constants = Constants(model)
    for node in list(model.graph):
        sizes = _sizes(node, constants)
        pieces = None if sizes is None else _pieces(node, len(sizes), constants)
        if sizes is not None and pieces is not None:
            names[_replace(node, len(sizes), pieces)] = names[node]


def _sizes(node: ir.Node, constants: Constants) -> Sequence[int] | None:
    given = node.inputs[1] if walking.is_standard(node, "SplitToSequence") and len(node.inputs) == 2 else None
    known = None if given is None else constants.of(given)
    return known.load().tolist() if known is not None and len(known.shape) == 1 else None


def _pieces(node: ir.Node, count: int, constants: Constants) -> dict[ir.Node, int] | None:
    """The readers of the sequence and the positions that they take; None where that is not all there is to it."""
    sequence, found = node.outputs[0], dict[ir.Node, int]()
    if sequence.is_graph_output():
        return None
    for reader, index in walking.content_uses(sequence):
        position = reader.inputs[1] if walking.is_standard(reader, "SequenceAt") and index == 0 else None
        known = None if position is None or reader.graph is not node.graph else constants.of(position)
        at = int(known.load().reshape(-1)[0]) if known is not None and known.size == 1 else count
        if not -count <= at < count or reader.outputs[0].is_graph_output():
            return None
        found[reader] = at % count
    return found


def _replace(node: ir.Node, count: int, pieces: dict[ir.Node, int]) -> ir.Node:
    graph, axis = node.graph, node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    assert graph is not None, "a node of the model is in a graph"
    split = ir.node("Split", node.inputs, {"axis": axis}, num_outputs=count, name=node.name)
    split.metadata_props.update(node.metadata_props)
    graph.insert_before(node, split)
    for reader, position in pieces.items():
        piece, old = split.outputs[position], reader.outputs[0]
        piece.type, piece.shape = old.type, old.shape
        old.replace_all_uses_with(piece)
        graph.remove(reader, safe=True)
    graph.remove(node, safe=True)
    return split
