"""Every new number is derived again from the original, by other code and in another order, and compared bit for bit.

    derive(original, folded, report) -> Layer L1

The report says which affines each operator took in, as an expression over the names of affines of the model. For each
operator `W' = W γ / √(σ² + ε)` and so on are computed from the stored tensors in extended precision (and in exact
fractions on a seeded sample), whatever way the affines travelled. A stored number must be within half a unit in the
last place of the exact value. On top of the half unit a number may be off by what one float64 computation can lose:
`8 · n · 2⁻⁵³ · Σ|terms|` for n affines, which matters only where terms cancel, and for float64 receivers.

The report is not believed: every affine that vanished must be in what its operators took in, or do nothing, or have
no reader, and every affine taken in must have vanished. Operators that took nothing in must be byte-identical. Whether
an affine may travel the way that the report says is seen by executing both models, not here.

Nothing is executed here, and nothing of the algebra is imported.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import AROUND, Evidence, StoredAffine, StoredLinear, StoredNorm
from bnfold.origin import Leaf, names_of
from bnfold.outcome import Absorbed, FoldReport
from bnfold.verify.derivation import Rows, Taken, derived, distance, rows_of
from bnfold.verify.expression import EXACT, EXTENDED, ROUNDING, Arithmetic, Contradiction, Expressions, Incomplete
from bnfold.verify.leftover import is_stored, terms_of, with_own_sums
from bnfold.verify.merged import Affined, Grid, Made, Merger, affines, is_merged, operators, reach, replay
from bnfold.verify.result import Layer, Status
from bnfold.verify.structure import same_numbers

Array = NDArray[Any]
Record = StoredLinear | StoredNorm | StoredAffine


@dataclass(frozen=True)
class Whole:
    """How an operator came to be that others were merged into."""

    made: Made

    @property
    def names(self) -> tuple[str, ...]:
        return affines(self.made)


HALF_ULP = 0.5 + 2.0**-20
_CHUNK = 1 << 18
_LARGEST_SAMPLE = 512
_FEW_INPUTS = 4


@dataclass(frozen=True)
class Finding:
    """The worst number of one operator; `ulps` is its distance beyond the rounding allowance."""

    node: str
    tensor: str
    channel: int
    ulps: float


def derive(original: Evidence, folded: Evidence, report: FoldReport, *, seed: int = 0) -> Layer:
    """L1 over a whole model. `original` and `folded` are what the two models store; `report` says what went where.

    Fails naming the affine, the channel and the distance in ulp; skipped, never passed, where the records do not
    suffice; a warning where an untouched operator is not in the folded model any more.
    """
    return measure(original, folded, report, seed=seed)[0]


def measure(
    original: Evidence, folded: Evidence, report: FoldReport, *, seed: int = 0
) -> tuple[Layer, dict[tuple[str, str], float]]:
    """L1, and the distance in ulp of every tensor that was derived again, by node and role (`weight`, `bias`; of a
    batch norm that was lowered `scale`, `shift`)."""
    start, ulps = time.perf_counter(), dict[tuple[str, str], float]()
    with np.errstate(all="ignore"):
        layer = _derive(original, folded, report, seed, ulps)
    return replace(layer, elapsed_s=time.perf_counter() - start), ulps


def _derive(
    original: Evidence, folded: Evidence, report: FoldReport, seed: int, ulps: dict[tuple[str, str], float]
) -> Layer:
    try:
        taken = _collect(report)
        if not (original.linears or original.norms or _vanished(report)):
            return _layer(Status.SKIPPED, "the model has no operator with stored weights to derive again")
        _reconcile(report, taken, Expressions(original, EXTENDED), original.unread)
        worst = Finding("", "", 0, 0.0)
        folded = with_own_sums(original, folded, report)
        for found, affines in _findings(report, taken, original, folded, seed):
            if not found.ulps <= HALF_ULP:
                return _rejected(found, affines)
            ulps[found.node, found.tensor] = found.ulps
            worst = max(worst, found, key=_severity)
    except Contradiction as contradiction:
        return _layer(Status.FAIL, str(contradiction), affine=contradiction.affine)
    except Incomplete as incomplete:
        return _layer(Status.SKIPPED, str(incomplete))
    except RecursionError:
        return _layer(Status.SKIPPED, "an affine came a way too long to be followed again")
    return _untouched(original, folded, report, taken) or _layer(
        Status.PASS, _summary(original, taken, report), figure=worst.ulps, limit=HALF_ULP
    )


def _findings(
    report: FoldReport, taken: Mapping[str, Taken | Whole], original: Evidence, folded: Evidence, seed: int
) -> Iterator[tuple[Finding, Taken | Whole]]:
    for node, what in taken.items():
        if node not in original.unread or (node in folded.linears and node not in folded.unread):
            worst = (
                _worst_of(node, what, original, folded, seed)
                if isinstance(what, Taken)
                else _worst_of_merged(node, what, original, folded, seed)
            )
            for found in worst:
                yield found, what
    for outcome in report.outcomes:
        if is_stored(folded, outcome):
            name = outcome.site.name
            for term in terms_of(outcome, folded, Expressions(original, EXTENDED)):
                ulps = distance(term.stored, term.exact, term.loss, EXTENDED)
                if ulps.size:
                    channel = int(np.argmax(ulps))
                    yield Finding(name, term.role, channel, float(ulps[channel])), Taken((Leaf(name),))


def _layer(status: Status, because: str, **more: Any) -> Layer:
    return Layer("L1", status, because, **more)


def _summary(original: Evidence, taken: Mapping[str, Taken | Whole], report: FoldReport) -> str:
    merged = _merged(taken)
    same = len(original.linears.keys() - taken.keys() - merged)
    untouched = f"{same} untouched {_operators(same)} identical"
    vanished, lowered = _vanished(report), sum(outcome.lowered for outcome in report.outcomes)
    again = [f"{vanished} derived again in {len(taken)} {_operators(len(taken))}"] * bool(vanished)
    again += [f"{len(merged)} operators merged into {len(merged & taken.keys())} derived again"] * bool(merged)
    again += [f"{_counted(lowered, 'batch norm')} as product and sum derived again"] * bool(lowered)
    if not again:
        return f"nothing was folded; {untouched}"
    return f"{', '.join(again)}, each number within half an ulp; {untouched}"


def _merged(taken: Mapping[str, Taken | Whole]) -> set[str]:
    """The operators of the original that became others, and those that they became."""
    return {name for what in taken.values() if isinstance(what, Whole) for name in operators(what.made)}


def _vanished(report: FoldReport) -> str:
    norms, others = report.folded, sum(o.folded and not o.is_norm for o in report.outcomes)
    counts = ((norms, "batch norm"), (others, "elementwise operator"))
    return " and ".join(_counted(count, what) for count, what in counts if count)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def _operators(count: int) -> str:
    return "operator" if count == 1 else "operators"


def _rejected(found: Finding, what: Taken | Whole) -> Layer:
    parts = what.names if isinstance(what, Taken) else (*operators(what.made), *what.names)
    return _layer(
        Status.FAIL,
        f"{found.tensor} of {found.node}, channel {found.channel}, is {found.ulps:.3g} ulp from what "
        f"{' and '.join(parts)} give",
        figure=found.ulps,
        limit=HALF_ULP,
        affine=what.names[0] if what.names else None,
        channel=found.channel,
    )


def _collect(report: FoldReport) -> dict[str, Taken | Whole]:
    """By operator what went into it: affines on both sides, the one taken in first next to it, or other operators."""
    return {name: Whole(made) if is_merged(made) else _sides(made) for name, made in replay(report.absorbed).items()}


def _sides(made: Made) -> Taken:
    taken = Taken()
    while isinstance(made, Affined):
        after, before = (made.origin,) * made.behind, (made.origin,) * (not made.behind)
        taken, made = Taken(after + taken.after, before + taken.before), made.of
    return taken


def _reconcile(
    report: FoldReport, taken: Mapping[str, Taken | Whole], expressions: Expressions, unread: Set[str]
) -> None:
    """Raise `Contradiction` unless the outcomes and what was taken in tell the same story."""
    moved = [outcome for outcome in report.outcomes if outcome.folded or outcome.partly]
    into = {outcome.site.name: {site.name for site in outcome.into} for outcome in moved}
    reported = {outcome.site.name for outcome in report.outcomes}
    entered = {(name, operator) for operator, affines in taken.items() for name in affines.names}
    for name, operator in sorted(entered):
        if name in reported and operator not in into.get(name, ()):
            raise Contradiction(f"{operator} took in {name}, which is not reported as folded into it", name)
    cancelled = [each.origin for each in report.absorbed if isinstance(each, Absorbed) and each.operator is None]
    for origin in cancelled:
        if not expressions.is_identity(origin):
            names = names_of(origin)
            raise Contradiction(f"{' and '.join(names)} do not cancel, yet they are reported to", names[0])
    accounted = unread | {name for name, _ in entered} | {name for origin in cancelled for name in names_of(origin)}
    for name, takers in into.items():
        if idle := sorted(takers - taken.keys()):
            raise Contradiction(f"{name} is reported as folded into {idle[0]}, which took nothing in", name)
        if name not in accounted and not expressions.is_identity(Leaf(name)):
            raise Contradiction(f"{name} is reported as folded, but no operator took it in", name)


def _untouched(
    original: Evidence, folded: Evidence, report: FoldReport, taken: Mapping[str, Taken | Whole]
) -> Layer | None:
    """What is wrong with the operators that took nothing in and the affines that stay, if anything."""
    gone = {outcome.site.name for outcome in report.outcomes if outcome.folded}
    gone |= {name for what in taken.values() for name in what.names}
    merged = _merged(taken)
    gone |= merged - taken.keys()
    gone |= {outcome.site.name for outcome in report.outcomes if outcome.lowered}
    biases = {original.linears[node].added for node in taken.keys() | merged}
    if still := sorted(gone & (folded.norms.keys() | folded.affines.keys() | folded.linears.keys())):
        return _layer(Status.FAIL, f"{still[0]} is reported as folded but still in the model", affine=still[0])
    before: dict[str, Any] = {**original.linears, **original.norms, **original.affines}
    after: dict[str, Any] = {**folded.linears, **folded.norms, **folded.affines}
    missing = [o.site.name for o in report.outcomes if o.lowered and not is_stored(folded, o)]
    for name, record in before.items():
        if name in taken or name in gone or name in biases:
            continue
        if name not in after:
            missing += [name] * (name not in original.unread)
        elif not _identical(record, after[name]):
            is_affine = name not in original.linears
            return _layer(Status.FAIL, f"{name} took nothing in, yet it changed", affine=name if is_affine else None)
    if (other := _changed(original, folded)) is not None:
        return _layer(Status.FAIL, f"a constant that {other} reads changed")
    if missing:
        return _layer(
            Status.WARN, f"{len(missing)} untouched operators are not in the folded model, first {missing[0]}"
        )
    return None


def _changed(original: Evidence, folded: Evidence) -> str | None:
    """An operator that no affine enters and that reads another constant than before; one that is gone changes nothing
    here."""
    for name, before in original.others.items():
        after = folded.others.get(name)
        if after is None or after.op != before.op:
            continue
        if any(
            not _same(before.operands[port], after.operands[port])
            for port in before.operands.keys() & after.operands.keys()
        ):
            return name
    return None


def _identical(first: Record, second: Record) -> bool:
    """The same numbers, bit for bit where both store them; no bias is a bias of zeros, however it was spelt. What is
    around a batch norm is not part of it."""
    if isinstance(first, StoredLinear) and isinstance(second, StoredLinear):
        facts = [(op.layout, op.groups, op.alpha, op.weight.shape, op.window) for op in (first, second)]
        return facts[0] == facts[1] and _same(first.weight, second.weight) and _same(_offset(first), _offset(second))
    if isinstance(first, StoredNorm) and isinstance(second, StoredNorm):
        second = replace(second, **{name: getattr(first, name) for name in AROUND})
    return type(first) is type(second) and all(
        _same(np.asarray(value), np.asarray(getattr(second, name))) for name, value in first.__dict__.items()
    )


def _offset(op: StoredLinear) -> Array:
    return rows_of(op).bias * (1.0 if op.beta == 1 else np.float64(op.beta))


def _same(first: Array, second: Array) -> bool:
    """Equal, NaN for NaN; what has the same bytes is not looked at further."""
    if first.shape != second.shape or same_numbers(first, second):
        return first.shape == second.shape
    return bool(np.all((first == second) | ((first != first) & (second != second))))


def _worst_of(node: str, affines: Taken, original: Evidence, folded: Evidence, seed: int) -> list[Finding]:
    for where, found in (("original", original), ("folded", folded)):
        if node not in found.linears:
            raise Incomplete(f"the {where} model has no stored weights for {node}")
    before, after = original.linears[node], folded.linears[node]
    if before.added in affines.names:
        before = replace(before, bias=None)
    facts = [(op.layout, op.groups, op.weight.shape, op.window) for op in (before, after)]
    if facts[0] != facts[1]:
        raise Incomplete(f"{node} is another operator in the folded model")
    if not np.isfinite(before.weight).all():
        raise Incomplete(f"the original weight of {node} is not finite")
    comparison = _Comparison(node, affines, before, after)
    extended, exact = (Expressions(original, number) for number in (EXTENDED, EXACT))
    findings = [finding for rows in _chunks(before) for finding in comparison.over(rows, extended)]
    worst = _worst_of_each(findings)
    if all(found.ulps <= HALF_ULP for found in worst):
        sample = _sample(node, affines, before, seed)
        worst = _worst_of_each(
            [*worst, *(finding for rows, inputs in sample for finding in comparison.over(rows, exact, inputs))]
        )
    return worst


def _worst_of_merged(node: str, whole: Whole, original: Evidence, folded: Evidence, seed: int) -> list[Finding]:
    """As `_worst_of`, for an operator that other operators went into."""
    if node not in folded.linears:
        raise Incomplete(f"the folded model has no stored weights for {node}")
    after = folded.linears[node]
    names = [op.added for name in operators(whole.made) if (op := original.linears.get(name)) and op.added]
    linears = {name: replace(op, bias=None) if op.added in whole.names else op for name, op in original.linears.items()}
    stored = replace(original, linears=linears) if names else original
    mergers = [Merger(stored, Expressions(original, number)) for number in (EXTENDED, EXACT)]
    if mergers[0].reach(whole.made) != reach(after):
        raise Contradiction(f"{node} does not move as the operators do that were merged into it")
    findings = [
        finding for rows in _chunks(after) for finding in _compared(node, whole, mergers[0], after, rows, slice(None))
    ]
    worst = _worst_of_each(findings)
    if all(found.ulps <= HALF_ULP for found in worst) and len(rows_of(after).channels):
        channel = random.Random(f"{seed}/{node}").randrange(len(rows_of(after).channels))
        rows, inputs = slice(channel, channel + 1), slice(_FEW_INPUTS)
        worst = _worst_of_each([*worst, *_compared(node, whole, mergers[1], after, rows, inputs, bias=False)])
    return worst


def _compared(
    node: str, whole: Whole, merger: Merger, after: StoredLinear, rows: slice, inputs: slice, *, bias: bool = True
) -> list[Finding]:
    """The worst weight and the worst bias among some rows of a merged operator."""
    number, now = merger.expressions.number, rows_of(after).select(rows, inputs)
    exact = merger.numbers(whole.made, Grid.of(after, rows, inputs))
    losses = ROUNDING * max(exact.steps, 1)
    compared = [("weight", now.taps, exact.taps / number.scalar(after.alpha or 1.0), exact.taps_terms)]
    if bias:
        compared.append(("bias", now.bias, exact.bias / number.scalar(after.beta or 1.0), exact.bias_terms))
    return list(_gaps(node, now, compared, losses, number))


def _gaps(
    node: str, now: Rows, compared: Iterable[tuple[str, Array, Array, Array]], losses: float, number: Arithmetic
) -> Iterator[Finding]:
    """The worst number of each tensor: its name, as it is stored, as it must be, and the terms that made it."""
    for tensor, stored, value, terms in compared:
        ulps = distance(stored, value, losses * np.abs(terms.astype(np.float64)), number)
        if ulps.size:
            row = int(np.argmax(ulps)) * len(now.channels) // ulps.size
            yield Finding(node, tensor, int(now.channels[row]), float(ulps.max()))


def _worst_of_each(findings: Iterable[Finding]) -> list[Finding]:
    """The worst number of each tensor, the very worst first."""
    found: dict[str, Finding] = {}
    for finding in findings:
        found[finding.tensor] = max(found.get(finding.tensor, finding), finding, key=_severity)
    return sorted(found.values(), key=_severity, reverse=True)


def _severity(finding: Finding) -> float:
    return float("inf") if np.isnan(finding.ulps) else finding.ulps


def _chunks(op: StoredLinear) -> Iterator[slice]:
    """All output channels, at most `_CHUNK` numbers at a time."""
    outs, inputs, taps = rows_of(op).taps.shape
    step = max(1, _CHUNK // max(inputs * taps, 1))
    return (slice(first, first + step) for first in range(0, outs, step))


def _sample(node: str, affines: Taken, op: StoredLinear, seed: int) -> Iterator[tuple[slice, slice]]:
    """One output channel for exact fractions, where its bias needs few enough of them; a few inputs will do if not."""
    outs, inputs, taps = rows_of(op).taps.shape
    if outs and (not affines.before or inputs * taps <= _LARGEST_SAMPLE):
        channel = random.Random(f"{seed}/{node}").randrange(outs)
        yield slice(channel, channel + 1), slice(None if affines.before else _FEW_INPUTS)


@dataclass(frozen=True)
class _Comparison:
    """One operator as it was and as it is stored now."""

    node: str
    affines: Taken
    before: StoredLinear
    after: StoredLinear

    def over(self, rows: slice, expressions: Expressions, inputs: slice = slice(None)) -> Iterator[Finding]:
        """The worst weight and the worst bias among some rows."""
        was, now = (rows_of(op).select(rows, inputs) for op in (self.before, self.after))
        number = expressions.number
        exact = derived(was, self.before.alpha, self.before.beta, self.affines, expressions)
        taps = exact.taps / number.scalar(self.after.alpha or 1.0)
        bias = exact.bias / number.scalar(self.after.beta or 1.0)
        compared = (("weight", now.taps, taps, taps), ("bias", now.bias, bias, exact.bias_terms))
        return _gaps(self.node, now, compared, ROUNDING * exact.steps, number)
