"""Where a fold can be spoilt: an original, its fold by bnfold, and the places at which the two correspond.

    pair = Pair.of(onnx.load("resnet50.onnx"))
    for mutation in MUTATIONS:                          # of mutations.py
        mutant = pair.mutated(mutation, seed=0)         # None: the network has no place for it

The place is drawn from the seed among those that a mutation can spoil. The original and the fold stay what they were.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import bnfold

Array = NDArray[Any]


class Unfit(Exception):
    """This place is nothing that the mutation could spoil."""


@dataclass(frozen=True)
class Site:
    """A batch norm of the original and the one operator that took it in, by the names of their nodes."""

    norm: str
    linear: str


@dataclass(frozen=True)
class Mutant:
    """A model with one thing wrong, and where."""

    model: onnx.ModelProto
    place: str


class Graph:
    """A model that is to be spoilt: a copy, whose tensors can be read and replaced by the node that reads them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copy.deepcopy(model)
        self.nodes: dict[str, onnx.NodeProto] = {node.name: node for node in self.model.graph.node}
        self._tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def read(self, node: str, port: int) -> Array:
        """A copy of a stored input; `Unfit` where it is computed or absent."""
        inputs = self.nodes[node].input
        if port >= len(inputs) or inputs[port] not in self._tensors:
            raise Unfit
        return numpy_helper.to_array(self._tensors[inputs[port]]).copy()

    def write(self, node: str, port: int, array: Array) -> None:
        """Give the node a tensor of its own."""
        name = f"spoilt.{node}.{port}"
        dtype = self.read(node, port).dtype
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype), name))
        self.nodes[node].input[port] = name

    def attribute(self, node: str, name: str, default: Any = None) -> Any:
        found = [each for each in self.nodes[node].attribute if each.name == name]
        return helper.get_attribute_value(found[0]) if found else default

    def set_attribute(self, node: str, name: str, value: Any) -> None:
        kept = [each for each in self.nodes[node].attribute if each.name != name]
        del self.nodes[node].attribute[:]
        self.nodes[node].attribute.extend([*kept, helper.make_attribute(name, value)])


@dataclass(frozen=True)
class Pair:
    """An original and its fold, and the places at which the two correspond one to one."""

    original: onnx.ModelProto
    folded: onnx.ModelProto
    sites: tuple[Site, ...]

    @classmethod
    def of(cls, original: onnx.ModelProto) -> Pair:
        """Fold without merging, so that an operator that took a batch norm in is still the one that it was."""
        result = bnfold.fold(original, merge="never")
        taken = [
            (row.site.name, row.into[0].name) for row in result.report.outcomes if row.is_norm and len(row.into) == 1
        ]
        takers = [taker for row in result.report.outcomes for taker in (site.name for site in row.into)]
        present = {node.name for node in result.model.graph.node} & {node.name for node in original.graph.node}
        sites = tuple(Site(norm, op) for norm, op in taken if takers.count(op) == 1 and op in present)
        return cls(original, result.model, sites)

    def mutated(self, mutation: Mutation, seed: int) -> Mutant | None:
        """The first of the places, in an order that is drawn, that this mutation can spoil."""
        for site in random.Random(f"{seed} {mutation.name}").sample(self.sites, len(self.sites)):
            try:
                return Mutant(mutation.spoil(self, site), site.linear)
            except Unfit:
                continue
        return None


@dataclass(frozen=True)
class Mutation:
    """A mistake, in the words of the table."""

    name: str
    spoil: Callable[[Pair, Site], onnx.ModelProto]
