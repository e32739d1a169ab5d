"""What stays of a batch norm as a product and a sum, worked out again from the stored statistics.

    terms_of(outcome, with_own_sums(original, folded, report), expressions)

A whole batch norm is `s` and `t`. Where an operator in front took in the scale, `t` remains; where those behind it did,
`t / s`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredAffine
from bnfold.origin import Leaf
from bnfold.outcome import FoldReport, Outcome
from bnfold.verify.expression import ROUNDING, Expressions

Array = NDArray[Any]


@dataclass(frozen=True)
class Term:
    """One constant: as it is stored, as it must be, and what float64 may lose on the way."""

    role: str
    stored: Array
    exact: Array
    loss: Array


def with_own_sums(original: Evidence, folded: Evidence, report: FoldReport) -> Evidence:
    """The folded model, where a sum is no bias of the product it reads now if it is what a batch norm became, or an
    affine that stays."""
    folded_names = {outcome.site.name for outcome in report.outcomes if outcome.folded}
    biases = {op.added for op in original.linears.values()}
    ours = {name for outcome in report.outcomes for name in outcome.lowered_to}
    ours |= original.affines.keys() - folded_names - biases
    sums = {
        op.added: StoredAffine("add", _as_stored(op.bias, original.affines.get(op.added)))
        for op in folded.linears.values()
        if op.added in ours and op.added and op.bias is not None
    }
    linears = {
        name: replace(op, bias=None, added=None) if op.added in sums else op for name, op in folded.linears.items()
    }
    return replace(folded, linears=linears, affines=sums | folded.affines)


def _as_stored(term: Array, before: StoredAffine | None) -> Array:
    """The flat numbers of a bias in the shape that they had as an operand."""
    known = before is not None and before.constant is not None and before.constant.size == term.size
    return term.reshape(before.constant.shape) if known else term  # type: ignore[union-attr]


def is_stored(folded: Evidence, outcome: Outcome) -> bool:
    """Whether the model holds what a batch norm became."""
    return outcome.lowered and all(name in folded.affines for name in outcome.lowered_to)


def terms_of(outcome: Outcome, folded: Evidence, expressions: Expressions) -> Iterator[Term]:
    """The constants of what a batch norm became; one that is not there does nothing."""
    leaf, number = Leaf(outcome.site.name), expressions.number
    norm = expressions.at(leaf, np.arange(expressions.width(leaf)))
    one = number.full(norm.scale, 1.0)
    scale = one if outcome.partly else norm.scale
    divisor = norm.scale if outcome.rule == "into-consumer" else one
    shift, magnitude = norm.shift / divisor, abs(norm.terms / divisor)
    yield Term("scale", _stored(outcome, folded, "mul", np.ones(1), len(one)), scale, _loss(scale))
    yield Term("shift", _stored(outcome, folded, "add", np.zeros(1), len(one)), shift, 2 * _loss(magnitude))


def _loss(numbers: Array) -> Array:
    return ROUNDING * np.abs(numbers.astype(np.float64))


def _stored(outcome: Outcome, folded: Evidence, op: str, nothing: Array, width: int) -> Array:
    """The only constant of an operator, as one number per channel; NaN where it has another size."""
    records = [folded.affines[name] for name in outcome.lowered_to]
    constants = [each.constant.reshape(-1) for each in records if each.op == op and each.constant is not None]
    first = constants[0] if len(constants) == 1 else nothing
    return np.broadcast_to(first, width) if first.size in (1, width) else np.full(width, np.nan)
