"""The bias of a matrix product: a constant per channel that the only reader of its result adds.

A product has no place for a bias of its own, so the addition is a part of it and no affine. An addition that nobody
reads is no bias: it would be one only once nothing is between them, and then others could be added to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from bnfold.frontends.torch.aliasing import reads_shape_only
from bnfold.frontends.torch.calls import Call
from bnfold.frontends.torch.constants import Constant, Constants
from bnfold.frontends.torch.elementwise import Elementwise
from bnfold.frontends.torch.lenses import channels_of
from bnfold.frontends.torch.parameters import Held, held_by
from bnfold.frontends.torch.shapes import Facts


@dataclass(frozen=True, eq=False)
class Added:
    """The addition, which of its arguments is the bias, and the numbers."""

    node: fx.Node
    argument: str
    constant: Constant


def added_biases(
    affines: Mapping[fx.Node, Elementwise],
    spelt: Mapping[fx.Node, Call | None],
    products: Mapping[fx.Node, Call],
    constants: Constants,
    facts: Facts,
) -> dict[fx.Node, Added]:
    """The addition that is a product's bias, by product; `products` are the calls that have no argument for it."""
    found: dict[fx.Node, Added] = {}
    for node, affine in affines.items():
        product, sums = affine.data, spelt[node]
        readers = [user for user in product.users if not reads_shape_only(user)]
        is_sum = sums is not None and sums.operator == "add" and affine.plain and bool(node.users)
        if product not in products or readers != [node] or not is_sum:
            continue
        held = held_by(products[product], constants)
        bias = _bias(node, affine, held, constants, facts.rank(product)) if isinstance(held, Held) else None
        if bias is not None:
            found[product] = Added(node, "other" if affine.operand == "input" else "input", bias)
    return found


def _bias(node: fx.Node, affine: Elementwise, held: Held, constants: Constants, rank: int | None) -> Constant | None:
    """The constant operand as one number per channel, or one for all; None where it is more or of another type."""
    constant = _constant(node, affine.constant, held.weight.dtype, constants)
    _, channels = channels_of(held.form, held.weight.shape)
    if constant is None or constant.dtype is not held.weight.dtype or len(constant.shape) > (rank or 1):
        return None
    size = constant.tensor.numel()
    fits = size in (1, channels) and constant.shape[-1:] in ((), (size,))
    return replace(constant, tensor=constant.tensor.reshape(-1)) if fits else None


def _constant(node: fx.Node, operand: Any, dtype: torch.dtype, constants: Constants) -> Constant | None:
    """A stored or computed operand, or a number in the code, unless the operator takes numbers alone."""
    if isinstance(operand, fx.Node):
        found = constants.find(operand)
        return found if isinstance(found, Constant) else None
    if getattr(node.target, "_overloadname", "") == "Scalar":
        return None
    return Constant(None, torch.tensor(operand, dtype=torch.float64), dtype)
