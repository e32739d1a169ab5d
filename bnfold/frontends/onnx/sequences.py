"""torch's exporter writes a split as SplitToSequence and one SequenceAt per piece; Split says the same in one node.

A sequence hides which piece goes where, so nothing crosses it. Where the sizes and every position are constant and
nobody else reads the sequence, one Split takes the place of all these nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.constants import Constants

SPLIT_BY_INPUT = 13


def as_splits(model: ir.Model, names: dict[ir.Node, str]) -> None:
    """Replace such sequences in the main graph, in place; a Split has the name of its SplitToSequence in `names`."""
    if walking.model_opset(model) < SPLIT_BY_INPUT:
        return
    constants, taken = Constants(model), walking.all_names(model)
    for node in list(model.graph):
        sizes = _sizes(node, constants)
        pieces = None if sizes is None else _pieces(node, len(sizes), constants)
        if sizes is not None and pieces is not None:
            given = _stored(node, sizes, taken)
            names[given], names[_replace(node, given, len(sizes), pieces)] = str(given.name), names[node]


def _sizes(node: ir.Node, constants: Constants) -> Sequence[int] | None:
    """The sizes of the pieces: given one by one, or one for all but the last."""
    if not walking.is_standard(node, "SplitToSequence") or len(node.inputs) != 2:
        return None
    data, given = node.inputs
    known = None if given is None else constants.of(given)
    numbers = None if known is None else known.integers()
    if known is None or numbers is None or data is None:
        return None
    if known.shape:
        return numbers
    shape, axis = constants.inferred.shape(data), _axis(node)
    size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    if not isinstance(size, int) or numbers[0] < 1:
        return None
    whole, rest = divmod(size, numbers[0])
    return [*numbers * whole, *[rest] * (rest > 0)]


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 0


def _stored(node: ir.Node, sizes: Sequence[int], taken: set[str]) -> ir.Node:
    """The sizes as a Constant in front of the node."""
    name = walking.unused(f"{node.outputs[0].name}_sizes", taken)
    tensor = ir.Tensor(np.array(sizes, dtype=np.int64), name=name)
    constant = ir.node("Constant", [], {"value": tensor}, name=walking.unused(f"{name}_node", taken))
    constant.outputs[0].name = name
    assert node.graph is not None, "a node of the model is in a graph"
    node.graph.insert_before(node, constant)
    return constant


def _pieces(node: ir.Node, count: int, constants: Constants) -> dict[ir.Node, int] | None:
    """The readers of the sequence and the positions that they take; None where that is not all there is to it."""
    sequence, found = node.outputs[0], dict[ir.Node, int]()
    if sequence.is_graph_output():
        return None
    for reader, index in walking.content_uses(sequence):
        position = reader.inputs[1] if walking.is_standard(reader, "SequenceAt") and index == 0 else None
        known = None if position is None or reader.graph is not node.graph else constants.of(position)
        numbers = None if known is None else known.integers()
        at = numbers[0] if numbers is not None and len(numbers) == 1 else count
        if not -count <= at < count or reader.outputs[0].is_graph_output():
            return None
        found[reader] = at % count
    return found


def _replace(node: ir.Node, sizes: ir.Node, count: int, pieces: dict[ir.Node, int]) -> ir.Node:
    graph = node.graph
    assert graph is not None, "a node of the model is in a graph"
    inputs = [node.inputs[0], sizes.outputs[0]]
    split = ir.node("Split", inputs, {"axis": _axis(node)}, num_outputs=count, name=node.name)
    split.metadata_props.update(node.metadata_props)
    graph.insert_before(node, split)
    for reader, position in pieces.items():
        piece, old = split.outputs[position], reader.outputs[0]
        piece.type, piece.shape = old.type, old.shape
        old.replace_all_uses_with(piece)
        graph.remove(reader, safe=True)
    graph.remove(node, safe=True)
    return split
