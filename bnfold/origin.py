"""Where the numbers of a travelled affine come from.

An affine that crosses operators is picked apart, repeated and put together. `Origin` notes how, as a small expression
over the names of the affines of the model, so that the certificate can compute the same numbers again by itself. No
numbers are kept here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Index = NDArray[Any]


@dataclass(frozen=True)
class Leaf:
    """The affine of the node of this name."""

    name: str


@dataclass(frozen=True, eq=False)
class Chain:
    """`second` applied to the result of `first`; one of them may have a single channel."""

    first: Origin
    second: Origin


@dataclass(frozen=True, eq=False)
class Part:
    """Channel `i` is channel `index[i]` of another (−1: the identity), without its scale unless `scaled`, and with
    `shifted` times its shift. An `index` of None takes every channel."""

    of: Origin
    index: Index | None = None
    scaled: bool = True
    shifted: float = 1.0


@dataclass(frozen=True, eq=False)
class Stack:
    """Affines side by side, each with its number of channels; None is the identity."""

    parts: tuple[tuple[Origin | None, int], ...]


@dataclass(frozen=True, eq=False)
class Joined:
    """The scale of `first`, which is that of `second` too, and the sum of both shifts."""

    first: Origin
    second: Origin


Origin = Leaf | Chain | Part | Stack | Joined


def names_of(origin: Origin) -> tuple[str, ...]:
    """The affines of the model that an expression uses, each once, in order. What is used twice is looked at once."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    waiting = [origin]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        match current:
            case Leaf(name):
                found[name] = None
            case Part(of):
                waiting.append(of)
            case Stack(parts):
                waiting += [part for part, _ in reversed(parts) if part is not None]
            case Chain(first, second) | Joined(first, second):
                waiting += [second, first]
    return tuple(found)
