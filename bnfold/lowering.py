"""A batch norm that stays, for runtimes that have none: a product and a sum, or a sum alone where the scale can fold.

`lowered(plan, node, affine)` decides what remains of it. The scale alone goes where scale and shift together could not:
into a producer, and the shift `t` remains; or into the consumers, and `t / s` remains, unless a scale is 0.
"""

from __future__ import annotations

import numpy as np

from bnfold.algebra import Array, ChannelAffine
from bnfold.graph import N, V, View
from bnfold.rules import RULES, Step

HEADROOM = 256.0
"""`t / s` may be far larger than any value of the model was: it, and what it is added to, must stay in range."""

Lowered = tuple[Step[N] | None, ChannelAffine]
"""The decision that folds the scale, if there is one, and the affine that remains."""


def lowered(graph: View[N, V], node: N, affine: ChannelAffine, *, partly: bool) -> Lowered[N] | None:
    """What a batch norm with this affine becomes; None where it must stay. `partly` says that its scale may fold."""
    found = _without_scale(graph, node, affine) if partly and affine.scales and affine.shifts else None
    return found or ((None, affine) if graph.lowers(node, affine) else None)


def _without_scale(graph: View[N, V], node: N, affine: ChannelAffine) -> Lowered[N] | None:
    scaling = affine.named(graph.site(node).name).scaling()
    with np.errstate(all="ignore"):  # what is not finite is not lowered
        above, below = (_shift(affine, divisor) for divisor in (np.ones_like(affine.scale), affine.scale))
        largest = (above, below.shifting(HEADROOM))
    for rule, rest, widest in zip(RULES, (above, below), largest, strict=True):
        step = rule(graph, node, scaling, None) if graph.lowers(node, widest) else None
        if isinstance(step, Step) and step.affines == (node,) and not any(graph.shared(to) for to, _ in step.writes):
            return step, rest
    return None


def _shift(affine: ChannelAffine, divisor: Array) -> ChannelAffine:
    return ChannelAffine(np.ones_like(affine.shift), affine.shift / divisor, affine.axis)
