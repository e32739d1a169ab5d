"""L0: what nobody may notice has not changed.

licence(reference, candidate, facts, exactly=True)     names, types and shapes of inputs and outputs, further facts
unchanged(layer, structure, complaints)                and, for a fold with records, every node that they do not name
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from bnfold.model import Port, Signature
from bnfold.verify.result import Layer, Status
from bnfold.verify.structure import Structure


def licence(
    reference: Signature, candidate: Signature, facts: tuple[Sequence[str], Sequence[str]], *, exactly: bool
) -> Layer:
    """L0: the interfaces. `exactly` also demands equal names and types; without it these are a warning."""
    start = time.perf_counter()
    worst, because = Status.PASS, "inputs, outputs and types are the same"
    for kind in ("inputs", "outputs"):
        first, second = getattr(reference, kind), getattr(candidate, kind)
        if len(first) != len(second):
            worst, because = Status.FAIL, f"{len(second)} {kind} instead of {len(first)}"
            break
        for before, after in paired(first, second):
            status, text = _port_difference(before, after)
            status = Status.FAIL if exactly and status is Status.WARN else status
            if status is Status.FAIL or (status is Status.WARN and worst is Status.PASS):
                worst, because = status, text
    if worst is not Status.FAIL and (differs := _first_difference(*facts)):
        worst, because = Status.FAIL, differs
    return Layer("L0", worst, because, elapsed_s=time.perf_counter() - start)


def unchanged(layer: Layer, structure: Structure, complaints: tuple[str | None, str | None]) -> Layer:
    """The same layer, once the graphs are compared too. `complaints` are what the checker of the format says of the
    original and of the fold: what it said before is no fault of the fold."""
    if layer.status is Status.FAIL:
        return layer
    start = time.perf_counter()
    found = sorted(structure.complaints(), key=lambda each: each.status is not Status.FAIL)
    if complaints[1] is not None and complaints[0] is None and not (found and found[0].status is Status.FAIL):
        status, because, affine = Status.FAIL, f"the folded model is not valid: {complaints[1]}", None
    elif found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        status, because, affine = found[0].status, found[0].because + more, found[0].affine
    else:
        kept = len(structure.before.operations.keys() & structure.after.operations.keys())
        status, affine = layer.status, None
        nodes = "node that stays" if kept == 1 else f"{kept} nodes that stay"
        because = f"inputs, outputs and types are the same, and the {nodes}"
    elapsed = layer.elapsed_s + time.perf_counter() - start
    return replace(layer, status=status, because=because, affine=affine, elapsed_s=elapsed)


def paired(first: Sequence[Port], second: Sequence[Port]) -> list[tuple[Port, Port]]:
    """Ports by name where all names are the same, else by position."""
    by_name = {port.name: port for port in second}
    if by_name.keys() == {port.name for port in first}:
        return [(port, by_name[port.name]) for port in first]
    return list(zip(first, second, strict=True))


def _port_difference(before: Port, after: Port) -> tuple[Status, str]:
    if before.shape is not None and after.shape is not None:
        clash = len(before.shape) != len(after.shape) or any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(before.shape, after.shape, strict=True)
        )
        if clash:
            return Status.FAIL, f"{after.name} has shape {list(after.shape)} instead of {list(before.shape)}"
    if before.name != after.name:
        return Status.WARN, f"{before.name} is called {after.name}, so they are matched by position"
    if before.dtype != after.dtype:
        return Status.WARN, f"{after.name} is {after.dtype} instead of {before.dtype}"
    return Status.PASS, ""


def _first_difference(before: Sequence[str], after: Sequence[str]) -> str | None:
    for first, second in zip_longest(before, after):
        if first != second:
            return f"{second or 'nothing'} instead of {first or 'nothing'}"
    return None
