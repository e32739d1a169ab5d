"""Which value of one model is which of another: told by what they hold on the same input, not by what they are called.

    match(reference.sketches, candidate.sketches)     {name in the reference: name in the candidate}

Whoever folds renames values, and reuses names: a convolution that took in a batch norm may make a value of its own old
name, of that of the batch norm, or of a third. A name whose contents differ is no match.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher

from bnfold.verify.anatomy import Anatomy
from bnfold.verify.sketch import Sketch

EQUAL = 1e-3
"""Above what rounding does to a value, and below what a mistake worth the name does to a whole tensor."""

NEARER, ROUNDING = 8.0, 1e-6
"""How many times nearer another value must be to be the one that is meant, and what rounding of float32 explains."""

SIMILAR = 0.7
"""Two values without anything in common differ by √2 of their size."""

_BENDING = """
relu relu6 leakyrelu prelu elu selu celu gelu silu swish mish sigmoid logsigmoid hardsigmoid hardswish hardtanh tanh
softplus softsign erf exp log sqrt clip clamp softmax logsoftmax dequantizelinear dequantizepertensor
dequantizeperchannel layernormalization layernorm nativelayernorm groupnormalization groupnorm instancenormalization
instancenorm rmsnormalization rmsnorm
"""
BENDING = frozenset(_BENDING.split())
"""Operators that are not linear, by the names of both dialects without capitals and marks."""

Sketches = Mapping[str, Sketch]


def match(reference: Sketches, candidate: Sketches, given: Mapping[str, str] = {}) -> dict[str, str]:
    """Pairs of equal values in topological order of the reference, each value in one pair. `given` are pairs already.

    Of several equal values those of one name are paired, then the last with the last: where one model has an operator
    more that did nothing to this input, both values are taken behind it. Values are equal only if none is much nearer:
    a batch norm that was hardly trained does almost nothing, yet what is before it is not what is behind it.
    """
    found = dict(given)
    found |= _named(reference, candidate, found)
    by_shape = defaultdict(list)
    for name, sketch in candidate.items():
        if sketch.tells and name not in set(found.values()):
            by_shape[sketch.shape].append(name)
    for name, sketch in reversed(list(reference.items())):
        if name in found or not sketch.tells:
            continue
        others = by_shape[sketch.shape]
        gaps = {other: sketch.difference(candidate[other]) for other in others}
        limit = _limit(gaps.values())
        equal = next((other for other in reversed(others) if gaps[other] <= limit), None)
        if equal is not None:
            found[name] = equal
            others.remove(equal)
    return {name: found[name] for name in reference if name in found}


def _named(reference: Sketches, candidate: Sketches, found: Mapping[str, str]) -> dict[str, str]:
    taken = set(found.values())
    by_shape = defaultdict(list)
    for sketch in reference.values():
        if sketch.tells:
            by_shape[sketch.shape].append(sketch)
    return {
        name: name
        for name, sketch in reference.items()
        if name not in found and name in candidate and name not in taken
        if sketch.tells and candidate[name].tells and sketch.shape == candidate[name].shape
        if sketch.difference(candidate[name])
        <= _limit(each.difference(candidate[name]) for each in by_shape[sketch.shape])
    }


def _limit(gaps: Iterable[float]) -> float:
    """Up to where a value is equal to another, given how near the values are that it could be."""
    return min(EQUAL, max(NEARER * min(gaps, default=0.0), ROUNDING))


def similar(reference: Sketches, candidate: Sketches, mine: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Values that may be meant to be equal, nearest first served, in order of the reference.

    To find where two models part, once it is known that they do.
    """
    free = list(others)
    gaps = [(reference[name].difference(candidate[other]), name, other) for name in mine for other in free]
    found: dict[str, str] = {}
    for gap, name, other in sorted(gaps):
        if gap <= SIMILAR and name not in found and other in free:
            found[name] = other
            free.remove(other)
    return {name: found[name] for name in reference if name in found}


def align(reference: Anatomy, candidate: Anatomy, found: Mapping[str, str]) -> dict[str, str]:
    """Pairs beside those of `found` that stand at the same place, whatever they hold: behind a mistake nothing else is
    left to tell by. Those of one name first, then by the order of the graphs.

    Only what bends or enters a decision has a place: an affine is moved across all else.
    """
    mine, theirs = _places(reference, found.keys()), _places(candidate, {*found.values()})
    pairs = {name: name for name, place in mine.items() if theirs.get(name) == place}
    left = [[name for name in places if name not in pairs] for places in (mine, theirs)]
    order = SequenceMatcher(None, [mine[name] for name in left[0]], [theirs[name] for name in left[1]], autojunk=False)
    for first, second, size in order.get_matching_blocks():
        pairs |= dict(zip(left[0][first : first + size], left[1][second : second + size], strict=True))
    return {name: pairs[name] for name in mine if name in pairs}


def _places(anatomy: Anatomy, taken: Iterable[str]) -> dict[str, str]:
    """Of every value that may be paired: which decision it enters, or else which bending operator makes it, and its
    shape."""
    enters = {name: step.op for step in reversed(anatomy.steps) if step.decides for name in step.inputs}
    names = [name for name in anatomy.sketches.keys() - set(taken) if name in anatomy.makers]
    found = {}
    for name in sorted(names, key=anatomy.makers.__getitem__):
        step = anatomy.steps[anatomy.makers[name]]
        if name in enters or _plain(step.op) in BENDING:
            role = f"into {enters[name]}" if name in enters else f"of {_plain(step.op)}"
            found[name] = f"{role} {anatomy.shape(name)}"
    return found


def _plain(op: str) -> str:
    return op.lower().replace("_", "")
