"""A graph of a few dictionaries: what the rules need to know of a graph, and a way to run it. No framework, no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.algebra import Array, ChannelAffine, LinearOp, Parameters
from bnfold.graph import Extent, Reading, Reason, SharedWeight, Site, Use
from bnfold.travel import Concat, Gate, Permute, Reshape, Same, Split, Sum

Operator = Callable[[Sequence[Array]], Sequence[Array]]

CHANNELS = 2
WEIGHT_BYTES = 100


@dataclass(frozen=True)
class Cell:
    """A node: it maps the value `data` to the value of its own name. `also` are values it reads, but not as data.

    A passage may map the values `beside` too, and make several: `name`, `name.1`, …; `run` is what it does to numbers.
    """

    op: str
    data: str
    reading: Reading
    weight: str | None = None
    also: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    makes: int = 1
    run: Operator | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.data, *self.beside)


@dataclass
class Dictionary:
    """A `Graph` whose values and nodes are names. A name without a cell is an input of the model."""

    cells: dict[str, Cell]
    ends: tuple[str, ...]
    held: Mapping[str, Reason] = field(default_factory=dict)  # values that something else must find unchanged
    full: frozenset[str] = frozenset()  # cells that can hold no other parameters
    bare: frozenset[str] = frozenset()  # cells whose bias would be a node of its own
    modules: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()  # of `affines`, if not that of the cells
    verbs: list[tuple[str, str]] = field(default_factory=list)
    _depths: dict[str, int] = field(default_factory=dict)
    _readers: dict[str, list[Use[str]]] = field(default_factory=dict)

    def affines(self) -> Sequence[str]:
        names = self.order or tuple(self.cells)
        return [name for name in names if name in self.cells and self.cells[name].op in ("bn", "affine")]

    def is_norm(self, node: str) -> bool:
        return self.cells[node].op == "bn"

    def position(self, node: str) -> int:
        if node not in self._depths:
            makers = (self.producer(value) for value in (*self.cells[node].inputs, *self.cells[node].also))
            self._depths[node] = max((self.position(maker) + 1 for maker in makers if maker), default=0)
        return self._depths[node]

    def inputs(self, node: str) -> Sequence[str]:
        return self.cells[node].inputs

    def outputs(self, node: str) -> Sequence[str]:
        return (node, *(f"{node}.{index}" for index in range(1, self.cells[node].makes)))

    def site(self, node: str) -> Site:
        return Site(node, self.cells[node].op, self.modules.get(node))

    def data(self, node: str) -> str:
        return self.cells[node].data

    def result(self, node: str) -> str:
        return node

    def producer(self, value: str) -> str | None:
        maker = value.split(".")[0]
        return maker if maker in self.cells and value in self.outputs(maker) else None

    def uses(self, value: str) -> Sequence[Use[str] | Reason]:
        if not self._readers:
            for name, cell in self.cells.items():
                for port, read in (*enumerate(cell.inputs), *((None, read) for read in cell.also)):
                    self._readers.setdefault(read, []).append((name, port))
        found: list[Use[str] | Reason] = [*self._readers.get(value, ())]
        found += [Reason.IS_GRAPH_OUTPUT] * self.ends.count(value)
        return found + ([self.held[value]] if value in self.held else [])

    def read(self, node: str) -> Reading:
        return self.cells[node].reading

    def fits(self, node: str, op: LinearOp) -> Reason | None:
        return Reason.OVERFLOW if node in self.full else None

    def inserts(self, node: str, op: LinearOp) -> bool:
        return node in self.bare and bool(np.any(op.evaluate().bias != 0))

    def shared(self, node: str) -> SharedWeight | None:
        weight = self.cells[node].weight
        readers = sum(cell.weight == weight for cell in self.cells.values())
        return SharedWeight(weight, WEIGHT_BYTES, readers) if weight and readers > 1 else None

    def parameter_bytes(self) -> int:
        return WEIGHT_BYTES * len({cell.weight for cell in self.cells.values() if cell.weight})

    def extent(self, value: str) -> Extent | None:
        return Extent(CHANNELS, 4 * CHANNELS)

    def joins(self) -> Sequence[str]:
        return [name for name, cell in self.cells.items() if isinstance(cell.reading, (Sum, LinearOp))]

    def movers(self) -> Sequence[str]:
        movers = [name for name, cell in self.cells.items() if isinstance(cell.reading, (Permute, Reshape))]
        return sorted(movers, key=self.position)

    def lowers(self, node: str, affine: ChannelAffine) -> bool:
        return node not in self.full and bool(np.isfinite(affine.shift).all())

    def write(self, node: str, op: LinearOp) -> None:
        self.verbs.append(("write", node))
        self.cells[node] = replace(self.cells[node], reading=op)

    def bypass(self, node: str) -> None:
        self.verbs.append(("bypass", node))
        self._vanish(node, self.cells[node].data)

    def _vanish(self, node: str, data: str) -> None:
        del self.cells[node]
        self._readers.clear()
        for name, cell in self.cells.items():
            beside = tuple(data if value == node else value for value in cell.beside)
            self.cells[name] = replace(cell, data=data if cell.data == node else cell.data, beside=beside)
        self.ends = tuple(data if output == node else output for output in self.ends)

    def undo(self, first: str, last: str) -> None:
        self.verbs.append(("undo", last))
        data = self.cells[first].data
        while last != data:
            last, gone = self.cells[last].data, last
            self._vanish(gone, data)

    def drop(self, node: str, ports: tuple[int, ...]) -> None:
        self.verbs.append(("drop", node))
        cell = self.cells[node]
        left = [value for port, value in enumerate(cell.inputs) if port not in ports]
        assert isinstance(cell.reading, Sum), "only a sum has terms"
        signs = [sign for port, sign in enumerate(cell.reading.signs) if port not in ports]
        total: Operator = lambda values: [sum(s * v for s, v in zip(signs, values, strict=True))]  # noqa: E731
        reading = cell.reading.only([port for port in range(len(cell.inputs)) if port not in ports])
        self.cells[node] = replace(cell, data=left[0], beside=tuple(left[1:]), reading=reading, run=total)
        self._readers.clear()
        if len(left) == 1:
            self.verbs.append(("bypass", node))
            self._vanish(node, left[0])

    def lower(self, node: str, affine: ChannelAffine) -> tuple[str, ...]:
        self.verbs.append(("lower", node))
        self.cells[node] = replace(self.cells[node], op="affine", reading=affine)
        return (node,)

    def run(self) -> list[Array]:
        """The outputs for inputs of the shape `(batch, channels)` that depend on nothing but their name."""
        known: dict[str, Array] = {}

        def value(name: str) -> Array:
            if name not in known:
                maker = self.producer(name)
                made = [numbers(name).normal(size=(5, CHANNELS))] if maker is None else applied(self.cells[maker])
                known.update(zip([name] if maker is None else self.outputs(maker), made, strict=True))
            return known[name]

        def applied(cell: Cell) -> Sequence[Array]:
            data = value(cell.data)
            for other in cell.also:
                data = data + value(other)
            if cell.run is not None:
                return cell.run([data, *(value(other) for other in cell.beside)])
            if isinstance(cell.reading, ChannelAffine):
                return [data * cell.reading.scale + cell.reading.shift]
            if isinstance(cell.reading, LinearOp):
                parameters = cell.reading.evaluate()
                return [data @ parameters.taps[0, :, :, 0].T + parameters.bias]
            return [np.maximum(data, -0.5)]

        return [value(output) for output in self.ends]


def numbers(name: str) -> np.random.Generator:
    """Random numbers that depend on nothing but a name."""
    return np.random.default_rng(list(name.encode()))


def bn(data: str, *, seed: str = "", axis: int = 1, channels: int = CHANNELS) -> Cell:
    rng = numbers(f"batch norm {data} {seed}")
    return Cell("bn", data, ChannelAffine(rng.normal(size=channels), rng.normal(size=channels), axis))


def scaling(data: str) -> Cell:
    """A batch norm that shifts nothing."""
    return Cell("bn", data, ChannelAffine(np.array([2.0, -0.5]), np.zeros(CHANNELS), 1))


def affine(data: str, scale: Sequence[float] | float = 1.0, shift: Sequence[float] | float = 0.0) -> Cell:
    """An elementwise operator with a constant: one number, or one per channel."""
    numbers_ = np.broadcast_arrays(np.atleast_1d(np.float64(scale)), np.atleast_1d(np.float64(shift)))
    return Cell(
        "affine", data, ChannelAffine(*(each.copy() for each in numbers_), axis=1 if numbers_[0].size > 1 else None)
    )


def same(data: str) -> Cell:
    """An operator through which everything passes."""
    return Cell("same", data, Same(), run=lambda values: values)


def rectifier(data: str) -> Cell:
    """A relu that lets a positive scale through."""
    return Cell("rectifier", data, Same(fixes=(0.0,), positive=True), run=lambda values: [np.maximum(values[0], 0)])


def add(data: str, *others: str, signs: tuple[int, ...] = (1, 1), width: int = CHANNELS) -> Cell:
    shapes = ((5, width),) * (1 + len(others))
    total: Operator = lambda values: [sum(sign * value for sign, value in zip(signs, values, strict=True))]  # noqa: E731
    return Cell("add", data, Sum(shapes, signs), beside=others, run=total)


def mul(data: str, other: str, width: int = CHANNELS) -> Cell:
    gate = Gate(((5, width),) * 2, (0, 1))
    return Cell("mul", data, gate, beside=(other,), run=lambda values: [values[0] * values[1]])


def concat(*values: str, sizes: tuple[int, ...]) -> Cell:
    joined: Operator = lambda values: [np.concatenate(values, axis=1)]  # noqa: E731
    return Cell("concat", values[0], Concat(1, sizes), beside=values[1:], run=joined)


def split(data: str, *picks: Sequence[int], size: int = CHANNELS) -> Cell:
    """Pieces of the channels: `name`, `name.1`, …"""
    index = tuple(np.array(picked, dtype=np.intp) for picked in picks)
    taken: Operator = lambda values: [values[0][:, picked] for picked in index]  # noqa: E731
    return Cell("split", data, Split(1, size, index, len(index)), makes=len(index), run=taken)


def broken(data: str, reason: Reason) -> Cell:
    """A batch norm that is no fixed affine map."""
    return Cell("bn", data, reason)


def conv(
    data: str, weight: str = "w", *also: str, padded: bool = False, ins: int = CHANNELS, outs: int = CHANNELS
) -> Cell:
    rng = numbers(weight)
    stored = Parameters(rng.normal(size=(1, outs, ins, 1)), rng.normal(size=outs))
    op = LinearOp(ins, outs, 1, 1, 1, padded, (weight,), lambda: stored)
    return Cell("conv", data, op, weight, also)


def relu(data: str, *also: str) -> Cell:
    return Cell("relu", data, Reason.NOT_LINEAR, also=also)


def strange(data: str, reason: Reason) -> Cell:
    """An operator that could be linear and is not, for a reason of its own."""
    return Cell("strange", data, reason)


def graph(*outputs: str, full: str = "", held: Mapping[str, Reason] | None = None, **cells: Cell) -> Dictionary:
    return Dictionary(cells, outputs, held or {}, frozenset(full.split()))
