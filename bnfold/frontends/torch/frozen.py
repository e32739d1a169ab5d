"""Frozen batch norms: `x * scale + shift` written out, as torchvision, detectron2 and DETR do.

Such a pair of operators counts as one batch norm where the module it came from is called one; what it computes is read
from the operators alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from bnfold.frontends.torch.aliasing import bare_name
from bnfold.frontends.torch.elementwise import Elementwise
from bnfold.frontends.torch.places import module_type


def frozen_norms(affines: Mapping[fx.Node, Elementwise]) -> dict[fx.Node, fx.Node]:
    """The additions that end a frozen batch norm, each with its product, which nothing else reads."""
    additions = (node for node in affines if bare_name(node) == "add" and "BatchNorm" in module_type(node))
    pairs = {node: affines[node].data for node in additions}
    return {
        node: product
        for node, product in pairs.items()
        if product in affines and bare_name(product) == "mul" and len(product.users) == 1
    }
