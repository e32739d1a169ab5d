"""A graph of a few dictionaries: what the rules need to know of a graph, and a way to run it. No framework, no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.algebra import Array, ChannelAffine, LinearOp, Parameters
from bnfold.graph import Reading, Reason, SharedWeight, Site, Use

CHANNELS = 2
WEIGHT_BYTES = 100


@dataclass(frozen=True)
class Cell:
    """A node: it maps the value `data` to the value of its own name. `also` are values it reads, but not as data."""

    op: str
    data: str
    reading: Reading
    weight: str | None = None
    also: tuple[str, ...] = ()


@dataclass
class Dictionary:
    """A `Graph` whose values and nodes are names. A name without a cell is an input of the model."""

    cells: dict[str, Cell]
    outputs: tuple[str, ...]
    held: Mapping[str, Reason] = field(default_factory=dict)  # values that something else must find unchanged
    full: frozenset[str] = frozenset()  # cells that can hold no other parameters
    modules: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()  # of `affines`, if not that of the cells
    verbs: list[tuple[str, str]] = field(default_factory=list)

    def affines(self) -> Sequence[str]:
        names = self.order or tuple(self.cells)
        return [name for name in names if name in self.cells and self.cells[name].op == "bn"]

    def site(self, node: str) -> Site:
        return Site(node, self.cells[node].op, self.modules.get(node))

    def data(self, node: str) -> str:
        return self.cells[node].data

    def result(self, node: str) -> str:
        return node

    def producer(self, value: str) -> str | None:
        return value if value in self.cells else None

    def uses(self, value: str) -> Sequence[Use[str] | Reason]:
        found: list[Use[str] | Reason] = [(name, 0) for name, cell in self.cells.items() if cell.data == value]
        found += [(name, None) for name, cell in self.cells.items() if value in cell.also]
        found += [Reason.IS_GRAPH_OUTPUT] * self.outputs.count(value)
        return found + ([self.held[value]] if value in self.held else [])

    def read(self, node: str) -> Reading:
        return self.cells[node].reading

    def fits(self, node: str, op: LinearOp) -> Reason | None:
        return Reason.OVERFLOW if node in self.full else None

    def shared(self, node: str) -> SharedWeight | None:
        weight = self.cells[node].weight
        readers = sum(cell.weight == weight for cell in self.cells.values())
        return SharedWeight(weight, WEIGHT_BYTES, readers) if weight and readers > 1 else None

    def parameter_bytes(self) -> int:
        return WEIGHT_BYTES * len({cell.weight for cell in self.cells.values() if cell.weight})

    def write(self, node: str, op: LinearOp) -> None:
        self.verbs.append(("write", node))
        self.cells[node] = replace(self.cells[node], reading=op)

    def bypass(self, node: str) -> None:
        self.verbs.append(("bypass", node))
        gone = self.cells.pop(node)
        for name, cell in self.cells.items():
            self.cells[name] = replace(cell, data=gone.data) if cell.data == node else cell
        self.outputs = tuple(gone.data if output == node else output for output in self.outputs)

    def run(self) -> list[Array]:
        """The outputs for inputs of the shape `(batch, channels)` that depend on nothing but their name."""
        known: dict[str, Array] = {}

        def value(name: str) -> Array:
            if name not in known:
                cell = self.cells.get(name)
                known[name] = numbers(name).normal(size=(5, CHANNELS)) if cell is None else applied(cell)
            return known[name]

        def applied(cell: Cell) -> Array:
            data = value(cell.data)
            for other in cell.also:
                data = data + value(other)
            if isinstance(cell.reading, ChannelAffine):
                return data * cell.reading.scale + cell.reading.shift
            if isinstance(cell.reading, LinearOp):
                parameters = cell.reading.evaluate()
                return data @ parameters.taps[0, :, :, 0].T + parameters.bias
            return np.maximum(data, -0.5)

        return [value(output) for output in self.outputs]


def numbers(name: str) -> np.random.Generator:
    """Random numbers that depend on nothing but a name."""
    return np.random.default_rng(list(name.encode()))


def bn(data: str, *, seed: str = "", axis: int = 1, channels: int = CHANNELS) -> Cell:
    rng = numbers(f"batch norm {data} {seed}")
    return Cell("bn", data, ChannelAffine(rng.normal(size=channels), rng.normal(size=channels), axis))


def scaling(data: str) -> Cell:
    """A batch norm that shifts nothing."""
    return Cell("bn", data, ChannelAffine(np.array([2.0, -0.5]), np.zeros(CHANNELS), 1))


def broken(data: str, reason: Reason) -> Cell:
    """A batch norm that is no fixed affine map."""
    return Cell("bn", data, reason)


def conv(data: str, weight: str = "w", *also: str, padded: bool = False) -> Cell:
    rng = numbers(weight)
    stored = Parameters(rng.normal(size=(1, CHANNELS, CHANNELS, 1)), rng.normal(size=CHANNELS))
    op = LinearOp(CHANNELS, CHANNELS, 1, 1, 1, padded, (weight,), lambda: stored)
    return Cell("conv", data, op, weight, also)


def relu(data: str, *also: str) -> Cell:
    return Cell("relu", data, Reason.NOT_LINEAR, also=also)


def strange(data: str, reason: Reason) -> Cell:
    """An operator that could be linear and is not, for a reason of its own."""
    return Cell("strange", data, reason)


def graph(*outputs: str, full: str = "", held: Mapping[str, Reason] | None = None, **cells: Cell) -> Dictionary:
    return Dictionary(cells, outputs, held or {}, frozenset(full.split()))
