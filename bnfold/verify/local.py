"""L3: every place where two models differ, on its own.

Both are cut at the values that they have in common; where they part, also at values that only stand at the same place,
of which one that fails is believed where all is well behind it. A stretch that does the same in both, with the same
numbers, is not run. Every other gets the same inputs on both sides, natural and dense, in the runtime; the reference
also in float64.
No index along any axis but the batch may be more than `LIMIT` times as far from float64 as the reference is, and no
linear operator that changed further from its own float64 result than its arithmetic can be

    |fl(Wx + b) − (Wx + b)| ≤ γₙ (|W||x| + |b|),   γₙ = n u / (1 − n u)

(N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002, section 3.1). What rounds or decides
inside has no error to measure: it may only be told to be further off than many roundings make it. The first stretch
that fails is named, and searched for the smallest piece of it that does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import ml_dtypes
import numpy as np

from bnfold.errors import MissingDependency, NoVerdict
from bnfold.model import Arrays, Step
from bnfold.outcome import FoldReport
from bnfold.verify.execution import Execution
from bnfold.verify.inputs import numpy_dtype
from bnfold.verify.licence import paired
from bnfold.verify.machines import Subject
from bnfold.verify.matching import ROUNDING, similar
from bnfold.verify.meters import EPSILONS
from bnfold.verify.noise import Ratio
from bnfold.verify.result import Layer, Status
from bnfold.verify.stretches import Both, Pair, Stretch

LIMIT = 8.0

MOST_GUESSES = 24
"""How many pairs are tried to find where a stretch begins to go wrong."""


@dataclass(frozen=True, eq=False)
class Failing:
    """The smallest stretch that was found to fail, and by what."""

    stretch: Stretch
    figure: float
    limit: float
    because: str
    channel: int | None = None


@dataclass(frozen=True, eq=False)
class Examined:
    """The layer, and what was found inside the models; nothing where they could not be opened."""

    layer: Layer
    local: Local | None

    @property
    def complete(self) -> bool:
        """Whether every place that changed was compared, and agreed."""
        return self.local is not None and not self.local.refusals and self.layer.status is Status.PASS

    @property
    def place(self) -> Stretch | None:
        """The smallest part that fails."""
        return self.local.failing.stretch if self.local is not None and self.local.failing is not None else None

    def save(self, folder: Path) -> None:
        """Keep the smallest part that fails, of both models."""
        if self.local is not None and self.place is not None:
            folder.mkdir(exist_ok=True)
            self.local.both.save(self.place, folder)


@dataclass
class Local:
    """Goes through the stretches in order and stops at the first that fails."""

    both: Both
    results: Sequence[Pair]
    seed: int = 0
    changed: int = 0
    compared: int = 0
    worst: Ratio | None = None
    refusals: list[str] = field(default_factory=list)
    failing: Failing | None = None

    def run(self) -> None:
        ends, cuts = self.both.ends(self.results), dict(self.both.placed)
        for number, end in enumerate(ends):
            former = self.changed, self.compared, self.worst, len(self.refusals)
            try:
                stretch = self.both.stretch(cuts, end)
                if stretch.same:
                    continue
                failing = self._judged(stretch)
            except NoVerdict as error:
                self._refuse(str(error))
                continue
            sure = end in self.results or not (end[0] in self._guessed or (failing is not None and self._is_loose(end)))
            if failing is not None and (sure or self._is_well(cuts, end, ends[number + 1 :])):
                self.failing = self._smallest(failing, cuts)
                return
            if not sure and (failing is not None or len(self.refusals) > former[-1]):
                del cuts[end[0]]
            if not sure and failing is not None:
                self._forget(former)

    def _forget(self, former: tuple[int, int, Ratio | None, int]) -> None:
        """Take back what was counted of a stretch that was none."""
        self.changed, self.compared, self.worst, refused = former
        del self.refusals[refused:]

    def _is_loose(self, pair: Pair) -> bool:
        """Whether two values hold nearly the same and more than rounding apart: one may be the other times a batch norm
        that does almost nothing."""
        reference, candidate = self.both.reference.sketches, self.both.candidate.sketches
        return reference[pair[0]].difference(candidate[pair[1]]) > ROUNDING

    def _is_well(self, cuts: Mapping[str, str], pair: Pair, ends: Sequence[Pair]) -> bool:
        """Whether two values that only stand at the same place, or are only nearly the same, are meant to be equal:
        somebody reads them, and all agrees that starts from such values. Channels in another order are undone further
        on."""
        is_read, told = False, self._guessed | {pair[0]}
        agrees = self._agrees if pair[0] in self._guessed else self._is_near
        for end in ends:
            try:
                stretch = self.both.stretch(cuts, end)
                if told.isdisjoint(stretch.reads):
                    continue
                is_read |= pair[0] in stretch.reads
                if not stretch.same and (self._incomparable(stretch) or not agrees(stretch)):
                    return False
            except (NoVerdict, MissingDependency):
                return False
        return is_read

    def _agrees(self, stretch: Stretch) -> bool:
        return self.both.agree(stretch, self.seed)

    def _is_near(self, stretch: Stretch) -> bool:
        """Whether the candidate is as near to float64 as it may be."""
        return self._over(stretch, self._ratio(stretch)) is None

    @cached_property
    def _guessed(self) -> frozenset[str]:
        """The values that are paired by nothing but their place."""
        return frozenset(self.both.placed.keys() - self.both.matches.keys())

    def _refuse(self, reason: str) -> None:
        self.changed += 1
        self.refusals.append(reason)

    def _judged(self, stretch: Stretch) -> Failing | None:
        """Judge a stretch that differs, and count it."""
        if reason := self._incomparable(stretch):
            self._refuse(reason)
            return self._beyond_rounding(stretch)
        try:
            ratio = self._ratio(stretch)
            failing = self._over(stretch, ratio) or self._beyond_arithmetic(stretch)
        except (NoVerdict, MissingDependency) as error:
            self._refuse(str(error))
            return None
        self.changed += 1
        if ratio is None:
            self.refusals.append(f"{stretch} has too few finite results")
        else:
            self.compared += 1
            self.worst = ratio if self.worst is None or ratio.figure > self.worst.figure else self.worst
        return failing

    def _incomparable(self, stretch: Stretch) -> str | None:
        pair = stretch.before, stretch.after
        if not all(piece.steps for piece in pair):
            return f"{stretch.before.output} is an input or a constant in one of the models"
        anatomies = self.both.reference, self.both.candidate
        if not all(piece.output in each.tissue.floats for piece, each in zip(pair, anatomies, strict=True)):
            return f"{stretch} does not give floating-point numbers"
        if any(piece.decides_inside for piece in pair):
            return f"{stretch} rounds or decides inside"
        return None

    def _ratio(self, stretch: Stretch) -> Ratio | None:
        """The largest; of all numbers together where values are paired by nothing but their place, since an end behind
        an operator that lets little of the error through has ratios that scatter from channel to channel."""
        guessed = not self._guessed.isdisjoint((*stretch.reads, stretch.end[0]))
        noises = self.both.noises(stretch, self.seed)
        found = [ratio for noise in noises if (ratio := noise.pooled() if guessed else noise.worst()) is not None]
        return max(found, key=lambda ratio: ratio.figure, default=None)

    def _beyond_rounding(self, stretch: Stretch) -> Failing | None:
        """What is too far off for decisions that rounding turned, where no error can be measured."""
        if not (stretch.before.steps and stretch.after.steps):
            return None
        try:
            ratio = self.both.over_rounding(stretch, self.seed)
        except (NoVerdict, MissingDependency):
            return None
        if ratio is None or ratio <= LIMIT:
            return None
        because = f"{stretch.before.output} of {stretch}: it is {ratio:.3g} times as far off as many roundings make it"
        return Failing(stretch, ratio, LIMIT, because)

    def _over(self, stretch: Stretch, ratio: Ratio | None) -> Failing | None:
        if ratio is None or ratio.figure <= LIMIT:
            return None
        because = f"{stretch.before.output} of {stretch}: {ratio}"
        return Failing(stretch, ratio.figure, LIMIT, because, ratio.index if ratio.axis == 1 else None)

    def _beyond_arithmetic(self, stretch: Stretch) -> Failing | None:
        for step in stretch.after.steps:
            if step.terms and step.inputs[0] in self.both.candidate.sketches:
                excess = self._excess(step)
                if excess > 1:
                    because = f"{step} is {excess:.3g} times as far from float64 as arithmetic can be"
                    return Failing(stretch, excess, 1.0, because)
        return None

    def _excess(self, step: Step) -> float:
        """The error of an operator over its bound, at worst; 0 where the type has no bound for so many terms."""
        candidate = self.both.candidate
        dtype = candidate.tissue.floats.get(step.outputs[0], "")
        terms = step.terms + 3  # the bias, the factors of a Gemm, and the rounding of the result
        used = terms * 0.5 * EPSILONS.get(dtype, 1.0)
        if used >= 1:
            return 0.0
        (data,) = step.inputs
        part = candidate.part(candidate.piece({data: data}, step.outputs[0]))
        drawn = candidate.sketches[data].draw(np.random.default_rng([self.seed, step.terms]))
        feeds = {data: drawn.astype(numpy_dtype(candidate.tissue.floats[data]))}
        exact, found = (run(feeds)[step.outputs[0]].astype(np.float64) for run in (part.exact(), part.actual()))
        sizes = part.magnitudes()({data: np.abs(feeds[data])})[step.outputs[0]].astype(np.float64)
        bound = used / (1 - used) * sizes + float(ml_dtypes.finfo(numpy_dtype(dtype)).smallest_subnormal)  # type: ignore[no-untyped-call]
        finite = np.isfinite(exact) & np.isfinite(found)
        return float((np.abs(found[finite] - exact[finite]) / bound[finite]).max(initial=0.0))

    def _smallest(self, failing: Failing, cuts: Mapping[str, str]) -> Failing:
        """The first piece inside a failing stretch that fails too.

        Behind a mistake nothing matches any more, so the values inside are paired by likeness. Where nothing is alike,
        any pair of one shape will do if all is well from there on: then the mistake is before it.
        """
        both, stretch = self.both, failing.stretch
        mine, others = (
            [output for step in piece.steps for output in step.outputs if output in anatomy.sketches]
            for piece, anatomy in ((stretch.before, both.reference), (stretch.after, both.candidate))
        )
        alike = similar(both.reference.sketches, both.candidate.sketches, mine, others)
        cuts = dict(cuts)
        guesses = islice(self._guesses(stretch, mine, others, alike), MOST_GUESSES)
        good = next((pair for pair in guesses if not self._fails({**cuts, pair[0]: pair[1]}, stretch.end)), None)
        pairs = {**alike, **dict([good] if good else [])}
        for name in (name for name in mine if name in pairs):
            if found := self._fails(cuts, (name, pairs[name])):
                return found
            cuts[name] = pairs[name]
        return failing

    def _guesses(
        self, stretch: Stretch, mine: Sequence[str], others: Sequence[str], alike: Mapping[str, str]
    ) -> Iterator[Pair]:
        """Values of one shape that have no likeness, those of one name first."""
        free = [other for other in others if other not in alike.values() and other != stretch.after.output]
        for name in mine:
            if name in alike or name == stretch.before.output:
                continue
            shape = self.both.reference.shape(name)
            same = [other for other in free if self.both.candidate.shape(other) == shape]
            yield from ((name, other) for other in sorted(same, key=lambda other: other != name))

    def _fails(self, cuts: Mapping[str, str], end: Pair) -> Failing | None:
        """Whether the stretch to `end` fails; what cannot be compared does not."""
        try:
            stretch = self.both.stretch(cuts, end)
            if stretch.same or self._incomparable(stretch):
                return None
            return self._over(stretch, self._ratio(stretch))
        except (NoVerdict, MissingDependency):
            return None

    def layer(self, report: FoldReport | None) -> Layer:
        """The layer, without its time."""
        if self.failing is not None:
            found = self.failing
            affine = None if report is None else _affine(found.stretch, report)
            return Layer("L3", Status.FAIL, found.because, found.figure, found.limit, affine, found.channel)
        if not self.changed:
            return Layer("L3", Status.PASS, "every operator is the same, with the same numbers")
        if self.worst is None:
            return Layer(
                "L3", Status.SKIPPED, f"none of {self.changed} changed places was compared: {self.refusals[0]}"
            )
        some = (
            f"{self.compared} of {self.changed} changed places" if self.refusals else f"{self.changed} changed places"
        )
        because = (
            f"{some} on their own: the error against float64 is at most {self.worst.figure:.2f} times the original's"
        )
        if self.refusals:
            because += f" (not compared: {self.refusals[0]})"
        return Layer("L3", Status.PASS, because, self.worst.figure, LIMIT)


def opened(reference: Subject, candidate: Subject, execution: Execution, feeds: Arrays) -> tuple[Both, list[Pair]]:
    """Both models on one input of the reference, and the pairs of results. Raises `NoVerdict` if that cannot be run."""
    if reference.tissue is None or candidate.tissue is None:
        raise NoVerdict("the models cannot be looked into", code="cannot-run")
    first, second = reference.tissue(), candidate.tissue()
    ports = {mine.name: own.name for mine, own in paired(reference.signature.inputs, candidate.signature.inputs)}
    pairs = paired(reference.signature.outputs, candidate.signature.outputs)
    results = [(first.outputs[mine.name], second.outputs[own.name]) for mine, own in pairs]
    return Both.of(first, second, ports, (feeds, execution.candidate.renamed(feeds))), results


def examine(reference: Subject, candidate: Subject, execution: Execution, report: FoldReport | None) -> Examined:
    """L3, on the first of the inputs that were chosen. `report` is that of a fold: then the affine is named.

    Who gives a tolerance is only told what L3 found.
    """
    start = time.perf_counter()
    try:
        local = Local(*opened(reference, candidate, execution, execution.first_feeds()), execution.plan.probes.seed)
        local.run()
        layer = local.layer(report)
        if layer.status is Status.FAIL and execution.plan.tolerance:
            layer = replace(layer, status=Status.WARN)
    except (NoVerdict, MissingDependency) as error:
        local, layer = None, Layer("L3", Status.SKIPPED, str(error))
    return Examined(replace(layer, elapsed_s=time.perf_counter() - start), local)


def _affine(stretch: Stretch, report: FoldReport) -> str | None:
    """The affine whose place this is: it is in the stretch, or the operator that took it is."""
    before, after = ({step.name for step in piece.steps} for piece in (stretch.before, stretch.after))
    folded = [outcome for outcome in report.outcomes if outcome.rule is not None]
    inside = [outcome for outcome in folded if outcome.site.name in before]
    taken = [outcome for outcome in folded if any(site.name in after for site in outcome.into)]
    return next((outcome.site.name for outcome in (*inside, *taken)), None)
