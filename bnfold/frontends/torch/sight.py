"""What a passage is made of: one call, the values that it maps, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from bnfold.frontends.torch.calls import Call
from bnfold.frontends.torch.shapes import Facts
from bnfold.graph import Passage, Reason
from bnfold.travel import Shape

TERMS = frozenset({"add", "sub", "subtract", "rsub"})
QUOTIENTS = frozenset({"div", "true_divide", "truediv"})
FACTORS = QUOTIENTS | {"mul", "multiply"}
PRODUCTS = frozenset({"matmul", "bmm", "mm"})

Integers = Callable[[Any], list[int] | None]


@dataclass(frozen=True)
class Sight:
    """One call with all that is known: `items` are the indices that are taken from its result, where it is a tuple."""

    call: Call
    node: fx.Node
    facts: Facts
    items: tuple[int, ...] | None
    integers: Integers

    @property
    def before(self) -> Shape | None:
        return self.facts.shape(self.call.get("input"))

    @property
    def after(self) -> Shape | None:
        return self.facts.shape(self.node)

    @property
    def rank(self) -> int | None:
        return None if self.before is None else len(self.before)

    def size(self, axis: int) -> int | None:
        found = None if self.before is None else self.before[axis]
        return found if isinstance(found, int) else None

    def axis(self, name: str = "dim", default: int | None = None) -> int | None:
        """An axis argument counted from the front, if that is known."""
        return from_front(self.call.get(name, default), self.rank)

    def axes(self, given: Any) -> tuple[int, ...] | None:
        """Axes counted from the front; all where none is given."""
        if self.rank is None:
            return None
        if given is None or given in ((), []):
            return tuple(range(self.rank))
        found = [from_front(axis, self.rank) for axis in (given if isinstance(given, (tuple, list)) else [given])]
        return None if None in found else tuple(axis for axis in found if axis is not None)


Lens = Callable[[Sight], Passage | Reason]


def from_front(axis: Any, rank: int | None) -> int | None:
    if not isinstance(axis, int) or isinstance(axis, bool) or (rank is None and axis < 0):
        return None
    if rank is None:
        return axis
    return axis % rank if -rank <= axis < rank else None


def inputs_of(call: Call) -> list[fx.Node]:
    """The values that an operator maps, by port."""
    given: tuple[Any, ...]
    if call.operator in TERMS | FACTORS | PRODUCTS:
        given = (call.get("input"), call.get("mat2" if call.operator in ("bmm", "mm") else "other"))
    elif "tensors" in call.arguments:
        given = tuple(call.get("tensors")) if isinstance(call.get("tensors"), (tuple, list)) else ()
    else:
        given = (call.get("input"),)
    return [value for value in given if isinstance(value, fx.Node)]
