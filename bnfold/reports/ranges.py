"""The range of the weights that took an affine in, before and after, and what a change of it may cost.

Flags: `float16-overflow`, a number that float16 does not hold where the original had none; `subnormal`, numbers too
small for the full precision of their type where the original had fewer.
How far apart the channels of one operator are says what integer weights lose that share one scale, and how far apart
the weights of one channel are what they lose with a scale for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredLinear
from bnfold.outcome import FoldReport
from bnfold.reports.channels import Magnitudes, crests, is_subnormal, magnitudes, usable
from bnfold.reports.limits import FLOAT16_LARGEST
from bnfold.run import Range, Uneven

CHUNK = 1 << 20

MOST_CHANNELS = 8
FAR = 2.0
"""A channel is named whose largest weight is so many times the median channel's: it costs the others a bit."""
STARVED = 16.0
"""A channel is starved whose largest weight is so many times below the tensor's: int8 leaves it less than 8 of 127
steps."""
PEAKED = 4.0
"""A channel is named whose crest factor is more: normally distributed weights seldom reach it."""


def ranges(original: Evidence, folded: Evidence, report: FoldReport) -> dict[str, Range]:
    """By the name of each affine that went into operators that both models hold: the largest magnitude of their
    weights and biases before and after. Bounded parts of a tensor are looked at, each tensor once."""
    names = dict.fromkeys(site.name for outcome in report.outcomes for site in outcome.into)
    both = [name for name in names if name in original.linears and name in folded.linears]
    known = {name: (_extremes(original.linears[name]), _extremes(folded.linears[name])) for name in both}
    spreads = {name: _spread(original.linears[name], folded.linears[name]) for name in both}
    peaks = {name: _crest(original.linears[name], folded.linears[name]) for name in both}
    found = {}
    for outcome in report.outcomes:
        takers = [site.name for site in outcome.into if site.name in known]
        if takers:
            pairs = [known[name] for name in takers]
            before, after = (max(pair[side][0] for pair in pairs) for side in (0, 1))
            overflows = before <= FLOAT16_LARGEST < after
            fresh = any(now > then for (_, then), (_, now) in pairs)
            flags = ("float16-overflow",) * overflows + ("subnormal",) * fresh
            spread, crest = (_most(of[name] for name in takers) for of in (spreads, peaks))
            found[outcome.site.name] = Range(before, after, flags, spread, crest)
    return found


def _most(each: Iterable[Uneven]) -> Uneven:
    return max(each, key=lambda at: at.after or 0)


def _extremes(linear: StoredLinear) -> tuple[float, int]:
    """The largest finite magnitude of an operator, and how many numbers are subnormal."""
    largest, small = 0.0, 0
    for part in _parts(linear):
        numbers = np.abs(part)
        finite = numbers if np.isfinite(numbers).all() else numbers[np.isfinite(numbers)]
        largest = max(largest, float(finite.max(initial=0)))
        small += int(np.count_nonzero(is_subnormal(numbers)))
    return largest, small


def _spread(before: StoredLinear, after: StoredLinear) -> Uneven:
    """How many times larger the largest weight of the largest output channel is than that of the median one, of those
    that have one: half of the channels lose log2 of it, in bits, where one integer scale serves the whole tensor."""
    (then, _), (now, _) = magnitudes(before), magnitudes(after)
    with np.errstate(divide="ignore", invalid="ignore"):
        starved = _worst((_largest(now) or 0.0) / now, STARVED)
    return Uneven(_over_median(then), _over_median(now), _worst(now, FAR * _median(now)), starved)


def _crest(before: StoredLinear, after: StoredLinear) -> Uneven:
    """The largest crest factor of an output channel: what integer weights lose that have a scale for each channel."""
    then, now = crests(before), crests(after)
    return Uneven(_largest(then), _largest(now), _worst(now, PEAKED))


def _over_median(values: Magnitudes) -> float | None:
    largest = _largest(values)
    return None if largest is None else largest / _median(values)


def _median(values: Magnitudes) -> float:
    used = usable(values)
    return float(np.median(used)) if used.size else 0.0


def _largest(values: Magnitudes) -> float | None:
    used = usable(values)
    return float(used.max()) if used.size else None


def _worst(values: Magnitudes, limit: float) -> tuple[int, ...]:
    """The first few channels beyond a limit, the worst of all first."""
    order = np.argsort(-values, kind="stable")
    return tuple(int(channel) for channel in order if limit < values[channel] < np.inf)[:MOST_CHANNELS]


def _parts(linear: StoredLinear) -> Iterator[NDArray[Any]]:
    for tensor in (linear.weight, linear.bias):
        flat = np.zeros(0) if tensor is None else tensor.reshape(-1)
        yield from (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
