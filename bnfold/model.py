"""What every room may know of a model, whatever its dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Mapping[str, NDArray[Any]]], Arrays]


@dataclass(frozen=True)
class Port:
    """An input or output of a model. `dtype` is numpy's name ("bfloat16" too); a dynamic axis is its name or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class StoredSize:
    """How many floats a model stores, the bytes of all that it stores, how many floats are held in float64 at once
    while every value of it is recorded, and the type of fewest digits that any of its lists of floats has."""

    floats: int = 0
    nbytes: int = 0
    held: int = 0
    coarsest: str = ""

    @staticmethod
    def coarsest_of(types: Iterable[str]) -> str:
        """Of numpy's names of types, that of fewest digits; nothing if none is a float type."""
        return next((name for name in ("bfloat16", "float16", "float32", "float64") if name in {*types}), "")


@dataclass(frozen=True)
class Signature:
    """What goes in and what comes out, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, eq=False)
class Step:
    """One operator of a graph, as whoever cuts it needs to know it.

    `inputs` and `outputs` are values by name, less those that are stored or are sizes. `key` is a digest of all
    else: operator, attributes, stored numbers, and which input stands where. `decides` says that it rounds or decides
    on a floating-point input. `terms` counts the products behind one result where the operator is linear with stored
    weights, and is 0 elsewhere. `module` is the path of the module that it came from, where the graph says so.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    key: Callable[[], str]
    decides: bool = False
    terms: int = 0
    module: str | None = None

    def __str__(self) -> str:
        return f"{self.op} {self.name}" + (f" (module {self.module})" if self.module else "")


@dataclass(frozen=True)
class Cost:
    """`macs` are multiply-adds of linear operators, and `activation_bytes` the bytes of all that operators compute from
    inputs, both at batch 1; None where a size is not known."""

    macs: int | None = None
    activation_bytes: int | None = None


@dataclass(frozen=True)
class ModelFacts:
    """Counts of one model. `compute_nodes` leaves out constants and shape bookkeeping; `bytes` are of its tensors.

    `cost` needs the size of every value and is asked for at most once, where somebody wants to know.
    """

    batch_norms: int
    nodes: int
    compute_nodes: int
    parameters: int
    bytes: int
    cost: Callable[[], Cost] = field(default=Cost, repr=False, compare=False)

    @cached_property
    def _cost(self) -> Cost:
        return self.cost()

    @property
    def macs(self) -> int | None:
        return self._cost.macs

    @property
    def activation_bytes(self) -> int | None:
        return self._cost.activation_bytes
