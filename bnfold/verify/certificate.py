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
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredAffine, StoredLinear, StoredNorm
from bnfold.origin import Leaf, names_of
from bnfold.outcome import FoldReport
from bnfold.verify.derivation import Taken, derived, distance, rows_of
from bnfold.verify.expression import EXACT, EXTENDED, ROUNDING, Contradiction, Expressions, Incomplete
from bnfold.verify.leftover import is_stored, terms_of, with_own_sums
from bnfold.verify.result import Layer, Status

Array = NDArray[Any]
Record = StoredLinear | StoredNorm | StoredAffine

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
    start = time.perf_counter()
    with np.errstate(all="ignore"):
        layer = _derive(original, folded, report, seed)
    return Layer(**{**layer.__dict__, "elapsed_s": time.perf_counter() - start})


def _derive(original: Evidence, folded: Evidence, report: FoldReport, seed: int) -> Layer:
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
    report: FoldReport, taken: Mapping[str, Taken], original: Evidence, folded: Evidence, seed: int
) -> Iterator[tuple[Finding, Taken]]:
    for node, affines in taken.items():
        if node not in original.unread & folded.unread:
            yield _worst_of(node, affines, original, folded, seed), affines
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


def _summary(original: Evidence, taken: Mapping[str, Taken], report: FoldReport) -> str:
    same = len(original.linears.keys() - taken.keys())
    untouched = f"{same} untouched {_operators(same)} identical"
    vanished, lowered = _vanished(report), sum(outcome.lowered for outcome in report.outcomes)
    again = [f"{vanished} derived again in {len(taken)} {_operators(len(taken))}"] * bool(vanished)
    again += [f"{_counted(lowered, 'batch norm')} as product and sum derived again"] * bool(lowered)
    if not again:
        return f"nothing was folded; {untouched}"
    return f"{', '.join(again)}, each number within half an ulp; {untouched}"


def _vanished(report: FoldReport) -> str:
    norms, others = report.folded, sum(o.folded and not o.is_norm for o in report.outcomes)
    counts = ((norms, "batch norm"), (others, "elementwise operator"))
    return " and ".join(_counted(count, what) for count, what in counts if count)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def _operators(count: int) -> str:
    return "operator" if count == 1 else "operators"


def _rejected(found: Finding, affines: Taken) -> Layer:
    return _layer(
        Status.FAIL,
        f"{found.tensor} of {found.node}, channel {found.channel}, is {found.ulps:.3g} ulp from what "
        f"{' and '.join(affines.names)} give",
        figure=found.ulps,
        limit=HALF_ULP,
        affine=affines.names[0],
        channel=found.channel,
    )


def _collect(report: FoldReport) -> dict[str, Taken]:
    """By operator: on each side the affine taken in first is next to it."""
    taken: dict[str, Taken] = {}
    for each in report.absorbed:
        if each.operator is None:
            continue
        so_far, origin = taken.get(each.operator, Taken()), (each.origin,)
        is_behind = each.side == "after"
        taken[each.operator] = Taken(so_far.after + origin * is_behind, so_far.before + origin * (not is_behind))
    return taken


def _reconcile(report: FoldReport, taken: Mapping[str, Taken], expressions: Expressions, unread: Set[str]) -> None:
    """Raise `Contradiction` unless the outcomes and what was taken in tell the same story."""
    moved = [outcome for outcome in report.outcomes if outcome.folded or outcome.partly]
    into = {outcome.site.name: {site.name for site in outcome.into} for outcome in moved}
    reported = {outcome.site.name for outcome in report.outcomes}
    entered = {(name, operator) for operator, affines in taken.items() for name in affines.names}
    for name, operator in sorted(entered):
        if name in reported and operator not in into.get(name, ()):
            raise Contradiction(f"{operator} took in {name}, which is not reported as folded into it", name)
    cancelled = [each.origin for each in report.absorbed if each.operator is None]
    for origin in cancelled:
        if not expressions.is_identity(origin):
            names = names_of(origin)
            raise Contradiction(f"{' and '.join(names)} do not cancel, yet they are reported to", names[0])
    accounted = unread | {name for name, _ in entered} | {name for origin in cancelled for name in names_of(origin)}
    for name, operators in into.items():
        if idle := sorted(operators - taken.keys()):
            raise Contradiction(f"{name} is reported as folded into {idle[0]}, which took nothing in", name)
        if name not in accounted and not expressions.is_identity(Leaf(name)):
            raise Contradiction(f"{name} is reported as folded, but no operator took it in", name)


def _untouched(original: Evidence, folded: Evidence, report: FoldReport, taken: Mapping[str, Taken]) -> Layer | None:
    """What is wrong with the operators that took nothing in and the affines that stay, if anything."""
    gone = {outcome.site.name for outcome in report.outcomes if outcome.folded}
    gone |= {name for affines in taken.values() for name in affines.names}
    gone |= {outcome.site.name for outcome in report.outcomes if outcome.lowered}
    biases = {original.linears[node].added for node in taken}
    if still := sorted(gone & (folded.norms.keys() | folded.affines.keys())):
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
    """The same numbers, bit for bit where both store them; no bias is a bias of zeros, however it was spelt."""
    if isinstance(first, StoredLinear) and isinstance(second, StoredLinear):
        facts = [(op.layout, op.groups, op.alpha, op.weight.shape) for op in (first, second)]
        return facts[0] == facts[1] and _same(first.weight, second.weight) and _same(_offset(first), _offset(second))
    return type(first) is type(second) and all(
        _same(np.asarray(value), np.asarray(getattr(second, name))) for name, value in first.__dict__.items()
    )


def _offset(op: StoredLinear) -> Array:
    return rows_of(op).bias * (1.0 if op.beta == 1 else np.float64(op.beta))


def _same(first: Array, second: Array) -> bool:
    return first.shape == second.shape and bool(np.all((first == second) | ((first != first) & (second != second))))


def _worst_of(node: str, affines: Taken, original: Evidence, folded: Evidence, seed: int) -> Finding:
    for where, found in (("original", original), ("folded", folded)):
        if node not in found.linears:
            raise Incomplete(f"the {where} model has no stored weights for {node}")
    before, after = original.linears[node], folded.linears[node]
    if before.added in affines.names:
        before = replace(before, bias=None)
    if (before.layout, before.groups, before.weight.shape) != (after.layout, after.groups, after.weight.shape):
        raise Incomplete(f"{node} is another operator in the folded model")
    if not np.isfinite(before.weight).all():
        raise Incomplete(f"the original weight of {node} is not finite")
    comparison = _Comparison(node, affines, before, after)
    extended, exact = (Expressions(original, number) for number in (EXTENDED, EXACT))
    findings = [finding for rows in _chunks(before) for finding in comparison.over(rows, extended)]
    worst = max(findings, key=_severity, default=Finding(node, "weight", 0, 0.0))
    if worst.ulps <= HALF_ULP:
        sample = _sample(node, affines, before, seed)
        findings += [finding for rows, inputs in sample for finding in comparison.over(rows, exact, inputs)]
        worst = max(findings, key=_severity, default=worst)
    return worst


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
        losses = ROUNDING * exact.steps
        for tensor, stored, value, terms in (
            ("weight", now.taps, taps, taps),
            ("bias", now.bias, bias, exact.bias_terms),
        ):
            ulps = distance(stored, value, losses * np.abs(terms.astype(np.float64)), number)
            if ulps.size:
                row = int(np.argmax(ulps)) * len(now.channels) // ulps.size
                yield Finding(self.node, tensor, int(now.channels[row]), float(ulps.max()))
