"""What is known of the values of a graph: sizes and dtypes that hold in every run.

A size is a number, or a symbol where it may differ from run to run: equal symbols are equal sizes. `rank`, `shape` and
`dtype` answer None where nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from bnfold.travel import Shape


@dataclass(frozen=True)
class Facts:
    """Shapes and dtypes of values; `ranks` are those of values whose sizes are not known. `proved` tells sizes that
    hold by proof from those that were seen in a few runs."""

    shapes: Mapping[fx.Node, Shape] = field(default_factory=dict)
    dtypes: Mapping[fx.Node, torch.dtype] = field(default_factory=dict)
    ranks: Mapping[fx.Node, int] = field(default_factory=dict)
    proved: bool = False

    def shape(self, value: Any) -> Shape | None:
        if value in self.shapes:
            return self.shapes[value]
        return (None,) * self.ranks[value] if value in self.ranks else None

    def rank(self, value: Any) -> int | None:
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def dtype(self, value: Any) -> torch.dtype | None:
        return self.dtypes.get(value)


def proved_facts(graph: fx.Graph) -> Facts:
    """What torch.export has proved: the sizes that it specialised, and its symbols."""
    values = {node: node.meta.get("val") for node in graph.nodes}
    tensors = {node: value for node, value in values.items() if isinstance(value, Tensor)}
    shapes = {node: tuple(_size(size) for size in value.shape) for node, value in tensors.items()}
    return Facts(shapes, {node: value.dtype for node, value in tensors.items()}, proved=True)


def _size(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)
