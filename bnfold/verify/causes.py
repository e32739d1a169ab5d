"""Why? What the two models hold where they part, of nodes that both have under one name.

    layers = with_causes(layers, (reference, candidate), place)

Beside a layer that fails stands what differs in the nodes that both have there: attributes, what they read, stored
numbers. It decides nothing. A fold rewrites floating-point numbers, and the factors of a Gemm; so these are told only
where no node is in one of the models alone, and a node whose tensors have other shapes is taken for another one there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite

import numpy as np

from bnfold.evidence import Contents, Held, Operation, Read, Wire
from bnfold.model import Step
from bnfold.verify.machines import Subject
from bnfold.verify.meters import EPSILONS
from bnfold.verify.result import Cause, Layer, Status
from bnfold.verify.stretches import Stretch
from bnfold.verify.structure import CHUNK, FACTORS, Array, same_numbers, words

LONGEST = 40
"""Characters of an attribute that is shown; a longer one is a list, or the hash of a tensor."""

IDLE = frozenset(("momentum",))
"""Attributes that do nothing at inference."""

UNSAID = {"strides": "1", "dilations": "1", "pads": "0"}
"""What an attribute holds, once for each axis, that is not given and for which the format names no default."""

SCALED = frozenset(("Gemm", "addmm"))
COMMUTES = frozenset(("add", "mul", "sum", "max", "min", "mean", "and", "or", "xor", "equal"))


def with_causes(layers: Sequence[Layer], models: tuple[Subject, Subject], place: Stretch | None) -> list[Layer]:
    """The layers; the one that says best where the models differ also tells what differs there.

    `place` is where L3 fails. Where L3 was skipped, all nodes of the models are compared for L2 or L4.
    """
    told, reads = _asked(layers, place is not None), [model.contents for model in models]
    if told is None or reads[0] is None or reads[1] is None:
        return list(layers)
    before, after = reads[0](), reads[1]()
    found = _everywhere(before, after) if place is None else _within(before, after, place)
    return [replace(layer, causes=tuple(found)) if layer is told else layer for layer in layers]


def _asked(layers: Sequence[Layer], found: bool) -> Layer | None:
    """The layer that the causes belong to; none where all is well, or where L3 has found every place to be right."""
    by_name = {layer.layer: layer for layer in layers}
    if found:
        return by_name.get("L3")
    if "L3" in by_name and by_name["L3"].status is not Status.SKIPPED:
        return None
    sides = [by_name[name] for name in ("L2", "L4") if name in by_name]
    ordered = [*(each for each in sides if each.status is Status.FAIL), *sides[:1]]
    return next((each for each in ordered if each.status in (Status.FAIL, Status.WARN)), None)


def _within(before: Contents, after: Contents, place: Stretch) -> list[Cause]:
    """Of the nodes inside a stretch, in its order."""
    steps = {step.name: step for step in place.before.steps if step.name in before.operations}
    names = {step.name for step in place.after.steps if step.name in after.operations}
    return list(_Comparison(before, after, steps, names).causes())


def _everywhere(before: Contents, after: Contents) -> list[Cause]:
    """Of all nodes; nothing where most of them differ, since then equal names do not mean equal nodes."""
    comparison = _Comparison(before, after, dict.fromkeys(before.operations), after.operations.keys())
    found = list(comparison.causes())
    return found if 2 * len({cause.node for cause in found}) <= len(comparison.kept) else []


@dataclass(frozen=True)
class _Comparison:
    """Two models, and the names of the nodes that are looked at; a step knows the module of its node."""

    before: Contents
    after: Contents
    mine: Mapping[str, Step | None]
    others: Collection[str]

    @cached_property
    def kept(self) -> list[str]:
        """The nodes that both have."""
        return [name for name in self.mine if name in self.others and self._is_same(name)]

    def _is_same(self, name: str) -> bool:
        first, second = (each.operations.get(name) for each in (self.before, self.after))
        return first is not None and second is not None and first.op == second.op

    def causes(self) -> Iterator[Cause]:
        """Each difference that no fold explains."""
        folded = not len(self.kept) == len(self.mine) == len(self.others)
        for name in self.kept:
            was, now, step = self.before.operations[name], self.after.operations[name], self.mine[name]
            if folded and not _fits(was, now):
                continue
            op, module = (step.op, step.module) if step else (_plain(was), None)
            found = [*_attributes(was, now, folded), *self._reads(was, now), *_constants(was, now, folded)]
            yield from (Cause(name, op, module, each) for each in found)

    def _reads(self, was: Operation, now: Operation) -> Iterator[str]:
        """Values that both models have, of which another one is read. A sum may have lost terms."""
        if was.reads.keys() != now.reads.keys() or (_plain(was).lower() in COMMUTES and _same_set(was, now)):
            return
        for port, first in was.reads.items():
            second = now.reads[port]
            if not (isinstance(first, Wire) and isinstance(second, Wire)) or first == second:
                continue
            inside = all(each.given or self._is_same(each.node) for each in (first, second))
            if inside and not (first.given and second.given):
                yield f"it reads {words(second)} instead of {words(first)}"


def _same_set(was: Operation, now: Operation) -> bool:
    return {each for each in was.reads.values() if isinstance(each, Wire)} == {
        each for each in now.reads.values() if isinstance(each, Wire)
    }


def _plain(operation: Operation) -> str:
    return operation.op.rpartition(":")[2]


def _pairs(was: Operation, now: Operation) -> Iterator[tuple[str, Held, Held]]:
    """The stored tensors that a node reads at the same place in both models."""
    for port, first in was.reads.items():
        second: Read = now.reads.get(port)
        if isinstance(first, Held) and isinstance(second, Held):
            yield first.name or second.name or f"input {port}", first, second


def _fits(was: Operation, now: Operation) -> bool:
    return all(first.numbers.shape == second.numbers.shape for _, first, second in _pairs(was, now))


def _attributes(was: Operation, now: Operation, folded: bool) -> Iterator[str]:
    free = IDLE | (FACTORS if folded and _plain(was) in SCALED else frozenset())
    for key in sorted((was.attributes.keys() | now.attributes.keys()) - free):
        first, second = (_shown(each.attributes.get(key, each.implied.get(key))) for each in (was, now))
        if first == second or (None in (first, second) and _is_unsaid(key, first or second or "")):
            continue
        if max(len(first or ""), len(second or "")) > LONGEST:
            yield f"{key} is another"
        else:
            yield f"{key} is {second or 'not given'} instead of {first or 'not given'}"


def _is_unsaid(key: str, text: str) -> bool:
    """Whether an attribute that only one model gives may say what the other one means."""
    return key == "kernel_shape" or {*text.strip("[]").split(", ")} == {UNSAID.get(key)}


def _shown(text: str | None) -> str | None:
    """An attribute as people write it: a float with the digits of float32, one that is whole as an integer."""
    try:
        with np.errstate(all="ignore"):
            return text if text is None or text.lstrip("-").isdigit() else str(np.float32(text)).removesuffix(".0")
    except ValueError:
        return text


def _constants(was: Operation, now: Operation, folded: bool) -> Iterator[str]:
    for name, first, second in _pairs(was, now):
        one, other = first.numbers, second.numbers
        is_float = {one.dtype.name, other.dtype.name} <= EPSILONS.keys()
        if not (folded and is_float) and not same_numbers(one, other) and (told := _apart(one, other, is_float)):
            yield f"{name} {told}"


def _apart(first: Array, second: Array, is_float: bool) -> str | None:
    """How two tensors differ; None where floating-point numbers do so by a rounding of the coarser type."""
    if first.shape != second.shape:
        return f"has shape {list(second.shape)} instead of {list(first.shape)}"
    if first.dtype != second.dtype and not is_float:
        return f"is {second.dtype.name} instead of {first.dtype.name}"
    if not (is_float or first.dtype.kind in "biu"):
        return "holds other values"
    rounding = max(EPSILONS.get(each.dtype.name, 0.0) for each in (first, second))
    count, start, furthest, largest = 0, 0, 0.0, 0.0
    flat = [np.ascontiguousarray(each).reshape(-1) for each in (first, second)]
    for at in range(0, first.size, CHUNK):
        one, other = (each[at : at + CHUNK].astype(np.float64) for each in flat)
        with np.errstate(invalid="ignore"):
            gaps = np.abs(other - one)
            far = (one != other) & ~((one != one) & (other != other)) & ~(gaps <= rounding * np.abs(one))
        if far.any():
            start = start if count else at + int(np.argmax(far))
            count += int(far.sum())
            furthest = max(furthest, float(np.nan_to_num(gaps[far], nan=np.inf).max()))
        largest = max(largest, float(np.abs(one[np.isfinite(one)]).max(initial=0.0)))
    if not count:
        return None
    index = [int(each) for each in np.unravel_index(start, first.shape)]
    size = f" by up to {furthest / largest:.3g} of its largest" if is_float and largest and isfinite(furthest) else ""
    return f"differs in {count} of {first.size} numbers{size}" + (f", first at {index}" if index else "")
