"""Frozen batch norms: `x * scale + shift` written out, as torchvision, detectron2 and DETR do.

Such a pair of operators counts as one batch norm where the module it came from is called one; what it computes is read
from the operators alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import fx

from bnfold.algebra import Array, ChannelAffine
from bnfold.frontends.torch.aliasing import bare_name
from bnfold.frontends.torch.constants import Constants
from bnfold.frontends.torch.places import module_type
from bnfold.graph import Reason


@dataclass(frozen=True)
class FrozenNorm:
    """`data * scale + shift`; `scaling` is the multiplication, which only the addition reads."""

    data: fx.Node
    scaling: fx.Node
    scale: fx.Node
    shift: fx.Node


def frozen_norms(graph: fx.Graph, constants: Constants) -> dict[fx.Node, FrozenNorm]:
    """The frozen batch norms of a graph by their additions."""
    named = (node for node in graph.nodes if "BatchNorm" in module_type(node))
    found = {node: frozen_norm(node, constants) for node in named}
    return {node: norm for node, norm in found.items() if norm is not None}


def frozen_norm(node: fx.Node, constants: Constants) -> FrozenNorm | None:
    """The frozen batch norm that ends in this addition."""
    outer = _with_constant(node, "add", constants)
    inner = outer and _with_constant(outer[0], "mul", constants)
    if outer is None or inner is None or len(outer[0].users) != 1:
        return None
    return FrozenNorm(inner[0], outer[0], inner[1], outer[1])


def frozen_affine(scale: Array, shift: Array, rank: int | None) -> ChannelAffine | Reason:
    """The affine map of two constants that broadcast to data of this rank, or why they are not one per channel."""
    if rank is None:
        return Reason.AXIS_UNKNOWN
    ones = (1,) * (rank - 2)
    aligned = ((1, scale.size, *ones), (scale.size, *ones))
    if rank < 3 or scale.shape not in aligned or shift.shape not in aligned:
        return Reason.NOT_PER_CHANNEL
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return Reason.NON_FINITE
    return ChannelAffine(scale.reshape(-1), shift.reshape(-1), axis=1)


def _with_constant(node: fx.Node, name: str, constants: Constants) -> tuple[fx.Node, fx.Node] | None:
    """The operands of a binary operator of which exactly one is constant: the other one, then it."""
    if bare_name(node) != name or len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    if constants.is_constant(left) == constants.is_constant(right):
        return None
    return (right, left) if constants.is_constant(left) else (left, right)
