"""Two models cut at the values that they have in common, and each piece run on the same numbers.

    both = Both.of(reference, candidate, feeds)
    stretch = both.stretch(both.matches, ("relu", "relu_out"))
    stretch.same or both.noises(stretch, seed=0)

A stretch starts from the same numbers on both sides, so its error is its own, whatever is wrong before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.errors import NoVerdict
from bnfold.model import Arrays
from bnfold.verify.anatomy import Anatomy, Part, Piece, Tissue
from bnfold.verify.inputs import numpy_dtype
from bnfold.verify.matching import align, match
from bnfold.verify.meters import EPSILONS
from bnfold.verify.noise import FEWEST, Noise

MOST_DRAWS = 32
MOVES = 4
MOST_NUMBERS = 1 << 24
"""How many values a stretch may compute over all its samples; a stretch always gets one sample."""

Pair = tuple[str, str]
"""A value of the reference and one of the candidate."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """The same piece of both models: `reads` are the inputs of both, by the names in reference and candidate; `uneven`
    those that only one of them reads."""

    before: Piece
    after: Piece
    reads: Mapping[str, str]
    uneven: frozenset[str]

    @property
    def end(self) -> Pair:
        return self.before.output, self.after.output

    @property
    def same(self) -> bool:
        """Whether both do the same with the same stored numbers, so that there is nothing to run."""
        return self.before.digest == self.after.digest

    def __str__(self) -> str:
        return str(self.before)


@dataclass(frozen=True, eq=False)
class Both:
    """A reference and a candidate on one input, and which value of the one is which of the other."""

    reference: Anatomy
    candidate: Anatomy
    matches: Mapping[str, str]
    ports: Mapping[str, str]

    @classmethod
    def of(cls, reference: Tissue, candidate: Tissue, ports: Mapping[str, str], feeds: tuple[Arrays, Arrays]) -> Both:
        """`ports` are the inputs by their names in both, `feeds` their numbers for both.

        Raises `NoVerdict` where a model cannot be executed in float64.
        """
        first = Anatomy.of(reference, feeds[0])
        second = Anatomy.of(candidate, feeds[1], keep=False)
        given = {mine: other for mine, other in ports.items() if mine in first.sketches}
        return cls(first, second, match(first.sketches, second.sketches, given), ports)

    @cached_property
    def placed(self) -> Mapping[str, str]:
        """The matches; where a value that is decided on, or one that leads nowhere, has none, with those that only
        stand at the same place. In topological order of the reference."""
        reference = self.reference
        read = {name for step in reference.steps for name in step.inputs}
        telling = [name for name in reference.sketches if name in reference.deciding or name not in read]
        if all(name in self.matches for name in telling):
            return self.matches
        found = {**self.matches, **align(reference, self.candidate, self.matches)}
        return {name: found[name] for name in (*self.ports, *reference.sketches) if name in found}

    def ends(self, results: Sequence[Pair]) -> list[Pair]:
        """Where stretches end: at paired values that are computed, and at the results of the models."""
        paired = [pair for pair in self.placed.items() if pair[0] in self.reference.makers]
        return list(dict.fromkeys([*paired, *results]))

    def stretch(self, cuts: Mapping[str, str], end: Pair) -> Stretch:
        """From the nearest cuts before `end`. Raises `NoVerdict` where a model reads what nothing makes.

        Where one model goes round a cut that the other goes through, it is none: the two would start from numbers that
        do not belong together. Unless one of them reads what the other has no use for at all: a branch is missing.
        """
        cuts = {**cuts, **self.ports}
        first = found = self._between(cuts, end)
        while uneven := found.uneven - self.ports.keys():
            cuts = {mine: other for mine, other in cuts.items() if mine not in uneven}
            found = self._between(cuts, end)
        return first if found.uneven else found

    def _between(self, cuts: Mapping[str, str], end: Pair) -> Stretch:
        names = {other: mine for mine, other in cuts.items()}
        before = self.reference.piece({mine: mine for mine in cuts}, end[0])
        after = self.candidate.piece(names, end[1])
        if unknown := {*before.inputs} - cuts.keys() | {*after.inputs} - names.keys():
            raise NoVerdict(f"nothing makes {min(unknown)}", code="cannot-run")
        theirs = {names[name] for name in after.inputs}
        reads = {name: cuts[name] for name in sorted({*before.inputs, *theirs})}
        return Stretch(before, after, reads, frozenset(theirs.symmetric_difference(before.inputs)))

    def parts(self, stretch: Stretch) -> tuple[Part, Part]:
        return self.reference.part(stretch.before), self.candidate.part(stretch.after)

    def natural(self, stretch: Stretch) -> Arrays | None:
        """What the stretch read when the reference was recorded; None where that was too much to keep."""
        found = {name: self._recorded(name) for name in stretch.reads}
        known = {name: value for name, value in found.items() if value is not None}
        return known if len(known) == len(found) else None

    def _recorded(self, name: str) -> Any:
        return self.reference.kept.get(
            name, None if name in self.reference.sketches else self.reference.feeds.get(name)
        )

    def drawn(self, stretch: Stretch, seed: int) -> Iterator[Arrays]:
        """Dense numbers of the size that the recorded ones had, as often as the result needs samples."""
        for turn in range(self._draws(stretch)):
            yield {name: self._draw(name, [seed, turn, zlib.crc32(name.encode())]) for name in sorted(stretch.reads)}

    def _draw(self, name: str, seed: list[int]) -> Any:
        if name not in self.reference.sketches:
            return self.reference.feeds[name]
        drawn = self.reference.sketches[name].draw(np.random.default_rng(seed))
        return drawn.astype(numpy_dtype(self.reference.tissue.floats[name]))

    def _draws(self, stretch: Stretch) -> int:
        if stretch.before.output not in self.reference.sketches:  # a decision, which is compared and not measured
            return 1
        shape = self.reference.shape(stretch.before.output)
        samples = min((prod(shape) // size for size in shape[1:] if size > 1), default=prod(shape))
        wanted = -(-FEWEST // max(samples, 1))
        made = [output for step in stretch.before.steps for output in step.outputs]
        numbers = sum(prod(self.reference.sketches[name].shape) for name in made if name in self.reference.sketches)
        return max(1, min(wanted, MOST_DRAWS, MOST_NUMBERS // max(numbers, 1)))

    def noises(self, stretch: Stretch, seed: int) -> list[Noise]:
        """The noise on natural and on dense numbers. Raises `NoVerdict` where one of both parts cannot run."""
        floats = self.reference.tissue.floats
        inside = [floats[name] for step in stretch.before.steps for name in step.outputs if name in floats]
        ends = floats[stretch.before.output], self.candidate.tissue.floats[stretch.after.output]
        # a runtime may skip a rounding inside and its cast back
        dtype = max((*inside, *ends), key=lambda name: EPSILONS[name])
        natural, dense = Noise(dtype), Noise(dtype)
        for is_natural, *results in self.results(stretch, seed):
            (natural if is_natural else dense).add(*results)
        return [natural, dense]

    def over_rounding(self, stretch: Stretch, seed: int) -> float | None:
        """How far the candidate is from float64, over how far the reference comes in float64 when everything that it
        reads moves by the square root of a rounding; None where that moves nothing, or the numbers do not compare.

        For stretches that round or decide inside: a decision that a rounding turned is one that many roundings turn.
        """
        recorded = self.natural(stretch)
        first, second = self.parts(stretch)
        exact, before, after = first.exact(), first.actual(), second.actual()
        mine, theirs = stretch.end
        off = moved = 0.0
        for feeds in (*([] if recorded is None else [recorded]), next(self.drawn(stretch, seed))):
            given = {name: feeds[name] for name in stretch.before.inputs}
            truth = exact(given)[mine]
            others = [exact(self._moved(given, [seed, turn]))[mine] for turn in range(MOVES)] + [before(given)[mine]]
            errors = [_squares(truth, other) for other in (after(self._translated(stretch, feeds))[theirs], *others)]
            if not all(map(isfinite, errors)):
                return None
            off, moved = off + errors[0], moved + max(errors[1:])
        return sqrt(off / moved) if moved else None

    def agree(self, stretch: Stretch, seed: int) -> bool:
        """Whether both make roughly the same of natural numbers: they differ by at most the square root of a rounding.

        Raises `NoVerdict` where one of both parts cannot run.
        """
        feeds = self.natural(stretch) or next(self.drawn(stretch, seed))
        first, second = self.parts(stretch)
        before = first.actual()({name: feeds[name] for name in stretch.before.inputs})[stretch.end[0]].astype(
            np.float64
        )
        after = second.actual()(self._translated(stretch, feeds))[stretch.end[1]]
        epsilon = EPSILONS[self.reference.tissue.floats[stretch.before.output]]
        return _squares(before, after) <= epsilon * float(np.square(before).sum())

    def _moved(self, feeds: Arrays, seed: list[int]) -> Arrays:
        """Every floating-point input, off by normal numbers of the square root of its epsilon times its size."""
        random, floats = np.random.default_rng(seed), self.reference.tissue.floats
        found = {**feeds}
        for name in sorted(feeds.keys() & floats.keys()):
            value = feeds[name].astype(np.float64)
            size = np.sqrt(np.mean(np.square(value)) * EPSILONS[floats[name]]) if value.size else 0.0
            found[name] = (value + size * random.standard_normal(value.shape)).astype(feeds[name].dtype)
        return found

    def results(self, stretch: Stretch, seed: int) -> Iterator[tuple[bool, Any, Any, Any]]:
        """What both make of natural and of dense numbers: whether they are natural, the reference in float64, the
        reference and the candidate in the runtime. Raises `NoVerdict` where one of both parts cannot run."""
        recorded = self.natural(stretch)
        first, second = self.parts(stretch)
        exact, before, after = first.exact(), first.actual(), second.actual()
        mine, theirs = stretch.end
        for feeds in (*([] if recorded is None else [recorded]), *self.drawn(stretch, seed)):
            given = {name: feeds[name] for name in stretch.before.inputs}
            yield (
                feeds is recorded,
                exact(given)[mine],
                before(given)[mine],
                after(self._translated(stretch, feeds))[theirs],
            )

    def _translated(self, stretch: Stretch, feeds: Mapping[str, Any]) -> Arrays:
        """The numbers by the names, and in the types, of the candidate."""
        floats = self.candidate.tissue.floats
        renamed = {other: feeds[mine] for mine, other in stretch.reads.items() if other in stretch.after.inputs}
        return {
            name: value.astype(numpy_dtype(floats[name])) if name in floats else value
            for name, value in renamed.items()
        }

    def save(self, stretch: Stretch, folder: Path) -> None:
        """Both parts, each in the format of its model, and what they read, by the names of the reference."""
        first, second = self.parts(stretch)
        first.store(folder / f"reference-part{self.reference.tissue.suffix}")
        second.store(folder / f"candidate-part{self.candidate.tissue.suffix}")
        numbers = self.natural(stretch)
        np.savez(folder / "part-inputs.npz", **(numbers or next(self.drawn(stretch, 0))))  # type: ignore[arg-type]


def _squares(truth: Any, found: Any) -> float:
    """The squared differences together; infinite where numbers have no place of their own."""
    return float(np.square(found.astype(np.float64) - truth).sum()) if found.shape == truth.shape else inf
