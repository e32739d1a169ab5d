"""A model that can be looked into: its values in float64, and parts of it that run on their own.

    anatomy = Anatomy.of(tissue, feeds)
    piece = anatomy.piece({"relu": "1"}, "bn")        from those values to that one, as far back as needed
    part = anatomy.part(piece)
    part.actual()({"relu": x})["bn"]

A dialect gives `Tissue`: the steps of the graph, and callables that run, cut and store. Everything here is only names.
Sizes that a graph asks for are constants of a part, those of the input on which the model was recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bnfold.errors import NoVerdict
from bnfold.model import Arrays, Runner, Step
from bnfold.verify.inputs import numpy_dtype
from bnfold.verify.sketch import Sketch

KEPT_BYTES = 1 << 28
"""How much of the recorded values is kept; of the others there is a sketch."""

Visit = Callable[[str, Any], None]


@dataclass(frozen=True, eq=False)
class Part:
    """A model cut out of a larger one. `magnitudes` runs it as it is, but with the magnitude of every stored number."""

    exact: Callable[[], Runner]
    actual: Callable[[], Runner]
    magnitudes: Callable[[], Runner]
    store: Callable[[Path], None]


@dataclass(frozen=True, eq=False)
class Tissue:
    """What a dialect tells of one model.

    `inputs` are those of its signature, `outputs` the values behind the outputs of its signature, `floats` the dtype of
    every floating-point value in topological order, `sizes` the values that hold nothing but sizes.
    `record(feeds, visit)` executes the model in float64 and shows every value. `steps(sizes)` and `cut(steps, sizes,
    inputs, output)` take the sizes that were seen; `inputs` is the shape of each input of the part. `suffix` is that of
    a stored part.
    """

    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    floats: Mapping[str, str]
    sizes: frozenset[str]
    record: Callable[[Arrays, Visit], None]
    steps: Callable[[Arrays], Sequence[Step]]
    cut: Callable[[Sequence[Step], Arrays, Mapping[str, tuple[int, ...]], str], Part]
    suffix: str


@dataclass(frozen=True, eq=False)
class Piece:
    """The steps between some values and one other, in order: `inputs` are the values read, `digest` what is done."""

    output: str
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    digest: str

    @property
    def decides_inside(self) -> bool:
        """Whether it rounds or decides on a value that it computed itself, with the error of its arithmetic."""
        return any(step.decides and not set(step.inputs) <= set(self.inputs) for step in self.steps)

    def __str__(self) -> str:
        first, last = next((step for step in self.steps if step.inputs), self.steps[0]), self.steps[-1]
        return str(first) + ("" if first is last else f" … {last}")


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A model as it was on one input: a sketch of every float value, some of the values, and the sizes."""

    tissue: Tissue
    feeds: Arrays
    sketches: Mapping[str, Sketch]
    kept: Arrays
    sizes: Arrays
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, tissue: Tissue, feeds: Arrays, keep: bool = True) -> Anatomy:
        """Execute the model once, in float64, as far as it goes: what lies behind an operator that nobody knows has no
        sketch. Raises `NoVerdict` where nothing runs."""
        sketches: dict[str, Sketch] = {}
        kept: Arrays = {}
        sizes: Arrays = {}
        left = KEPT_BYTES if keep else 0

        def visit(name: str, value: Any) -> None:
            nonlocal left
            if name in tissue.sizes:
                sizes[name] = value
            elif name in tissue.floats:
                sketches[name] = Sketch.of(value)
                narrow = value.astype(numpy_dtype(tissue.floats[name]))
                if narrow.nbytes <= left:
                    left -= narrow.nbytes
                    kept[name] = narrow

        try:
            tissue.record(feeds, visit)
        except NoVerdict:
            if sketches.keys() <= set(tissue.inputs):
                raise
        steps = tuple(tissue.steps(sizes))
        depends = set(tissue.inputs)
        for step in steps:
            if not depends.isdisjoint(step.inputs):
                depends.update(step.outputs)
        ordered = {name: sketches[name] for name in tissue.floats if name in sketches and name in depends}
        return cls(tissue, feeds, ordered, kept, sizes, steps)

    @cached_property
    def makers(self) -> Mapping[str, int]:
        """The position of the step that makes a value."""
        return {output: index for index, step in enumerate(self.steps) for output in step.outputs}

    @cached_property
    def deciding(self) -> frozenset[str]:
        """The floating-point values that enter steps which round or decide."""
        floats = self.tissue.floats
        return frozenset(name for step in self.steps if step.decides for name in step.inputs if name in floats)

    def piece(self, cuts: Mapping[str, str], output: str) -> Piece:
        """What makes `output` of the nearest `cuts` before it, and of inputs of the model. A cut has a label, which is
        the same for the same value of another model."""
        found: set[int] = set()
        inputs: dict[str, None] = {}
        waiting = [output]
        while waiting:
            name = waiting.pop()
            index = self.makers.get(name)
            if index is None or (name in cuts and name != output):
                inputs[name] = None
            elif index not in found:
                found.add(index)
                waiting += self.steps[index].inputs
        steps = tuple(self.steps[index] for index in sorted(found))
        return Piece(output, tuple(inputs), steps, _digest(steps, cuts, output))

    def part(self, piece: Piece) -> Part:
        """The piece as a model of its own."""
        shapes = {name: self.shape(name) for name in piece.inputs}
        return self.tissue.cut(piece.steps, self.sizes, shapes, piece.output)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.sketches[name].shape if name in self.sketches else self.feeds[name].shape


def _digest(steps: Sequence[Step], cuts: Mapping[str, str], output: str) -> str:
    """Equal for pieces that do the same with the same values. A step is told by its key and what it reads."""
    known: dict[str, str] = {}
    for step in steps:
        reads = "|".join(known.get(name, f"cut {cuts.get(name, name)}") for name in step.inputs)
        made = hashlib.sha256(f"{step.key()}|{reads}".encode()).hexdigest()
        known |= {name: f"{made}.{index}" for index, name in enumerate(step.outputs)}
    return known.get(output, "")
