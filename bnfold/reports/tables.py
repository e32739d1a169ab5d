"""The rows that reports for people show, whatever they are drawn with.

Names come from models, so every text here is cleaned already.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold.display import brief, some
from bnfold.errors import clean
from bnfold.graph import Reason, Refusal, Site
from bnfold.outcome import Outcome, titled
from bnfold.reports.report import Report, identified, interval
from bnfold.reports.text import duration, figure, layer_names, number, plural, size
from bnfold.run import FileRecord, Finding, Run
from bnfold.verify.result import Layer, Verification

if TYPE_CHECKING:
    from bnfold.benchmark import Benchmark

MAX_ROWS = 24
MAX_BLOCKERS = 3
MAX_MERGES = 8
LONGEST_FATE = 400
WIDEST = 16
"""No interval is drawn further out than this many times as fast or slow."""


@dataclass(frozen=True)
class Row:
    """One affine: its id, its name, whether it folded, and into what or why not."""

    identity: str
    name: str
    folded: bool
    fate: str


@dataclass(frozen=True)
class Left:
    """The affines that stay for one reason, and the nodes that stand in the way."""

    reason: Reason
    remedy: str
    count: int
    blockers: tuple[str, ...]


def title(site: Site) -> str:
    """A node in the user's words: its module if that is known; cut where it would fill a screen."""
    return brief(titled(site))


def listed(report: Report) -> list[tuple[str, Outcome]]:
    """What a reader is shown: every batch norm, of the other affines those that folded; `inspect` shows all."""
    everything = report.run.command == "inspect"
    return [pair for pair in identified(report.run.fold) if everything or pair[1].is_norm or pair[1].folded]


def rows(report: Report) -> list[Row]:
    """One row per affine that is shown, in topological order."""
    pairs = listed(report)
    times = Counter(title(outcome.site) for _, outcome in pairs)
    return [
        Row(identity, _name(outcome, times), outcome.folded, brief(outcome.fate, LONGEST_FATE))
        for identity, outcome in pairs
    ]


def _name(outcome: Outcome, times: Mapping[str, int]) -> str:
    """The module of a batch norm, with its node where the module is called twice; the node of any other affine."""
    site = outcome.site
    if not outcome.is_norm:
        return brief(f"{site.name} ({site.op})")
    return title(site) if times[title(site)] == 1 else brief(f"{title(site)} ({site.name})")


def others_left(report: Report) -> str | None:
    """One line for the affines that stay and have no row."""
    shown_here = {identity for identity, _ in listed(report)}
    reasons = Counter(
        o.refusal.reason.code for i, o in identified(report.run.fold) if i not in shown_here and o.refusal
    )
    if not reasons:
        return None
    told = ", ".join(f"{number} {code}" for code, number in reasons.most_common())
    stay = "affine stays" if reasons.total() == 1 else "affines stay"
    return f"{reasons.total()} other {stay}: {told} (bnfold inspect lists them)"


def shown(all_rows: list[Row], limit: int = MAX_ROWS) -> tuple[list[Row], str | None]:
    """The rows that fit, those that stay before those that folded, and a line about the others."""
    if len(all_rows) <= limit:
        return all_rows, None
    chosen = sorted(all_rows, key=lambda row: row.folded)[:limit]
    rest = [row for row in all_rows if row not in chosen]
    folded = sum(row.folded for row in rest)
    counts = [f"{count} {word}" for count, word in ((folded, "folded"), (len(rest) - folded, "left")) if count]
    return chosen, f"… and {len(rest)} more: {', '.join(counts)} (see --report)"


def left(report: Report) -> list[Left]:
    """Why the affines that are shown stay, the most frequent reason first."""
    found: dict[Reason, list[Refusal]] = {}
    for _, outcome in listed(report):
        if outcome.refusal:
            found.setdefault(outcome.refusal.reason, []).append(outcome.refusal)
    groups = [
        Left(reason, refusals[0].remedy, len(refusals), tuple(dict.fromkeys(filter(None, map(_blocked, refusals)))))
        for reason, refusals in found.items()
    ]
    return sorted(groups, key=lambda group: -group.count)


def _blocked(refusal: Refusal) -> str | None:
    blocker = in_the_way(refusal)
    return brief(blocker) if blocker else None


def in_the_way(refusal: Refusal) -> str | None:
    """`conv1`, or `add1 and relu1` where both would have to go."""
    nodes = refusal.obstacles
    if not nodes:
        return None
    more = len(nodes) - MAX_BLOCKERS
    return " and ".join((*nodes[:MAX_BLOCKERS], *([f"{more} more"] if more > 0 else [])))


def blocked_by(group: Left) -> str | None:
    """`conv1, conv2, conv3 and 4 more`."""
    if not group.blockers:
        return None
    return some(group.blockers)


def merges(report: Report) -> Iterator[tuple[str, str, str]]:
    """Per merge: the operator that stays, what went into it, and the multiply-adds that this saved; then a line about
    those that are not shown."""
    everything = report.run.fold.merges if report.run.fold else ()
    for merged in everything[:MAX_MERGES]:
        went = Counter(clean(site.op) for site in merged.nodes)
        told = ", ".join(op if count == 1 else f"{count} {op}" for op, count in went.items())
        yield title(merged.into), told, number(merged.macs_saved)
    if len(everything) > MAX_MERGES:
        rest = everything[MAX_MERGES:]
        saved = [merged.macs_saved for merged in rest if merged.macs_saved is not None]
        yield f"… and {len(rest)} more (see --report)", "", number(sum(saved) if len(saved) == len(rest) else None)


def changes(run: Run) -> Iterator[tuple[str, str, str]]:
    """What the model holds, before and after."""
    if run.before is None:
        return
    same = run.command == "fold" and run.fold is not None and not run.fold.merges
    for name, show, field in (
        ("batch norms", number, "batch_norms"),
        ("nodes", number, "nodes"),
        ("computing nodes", number, "compute_nodes"),
        ("parameters", number, "parameters"),
        ("multiply-adds at batch 1", number, "macs"),
        ("tensor bytes", size, "bytes"),
    ):
        if field == "macs" and same:  # to count them takes longer than to fold
            continue
        after = show(getattr(run.after, field)) if run.after else ""
        yield name, show(getattr(run.before, field)), after


def because(layer: Layer) -> str:
    """What a layer of the check says, with the place that it means unless it names that itself, and the causes."""
    said, affine = clean(layer.because), clean(layer.affine or "")
    channel = f", channel {layer.channel}" if layer.channel is not None else ""
    where = f"{affine}{channel}" if affine else channel.removeprefix(", ")
    named = affine in said and (layer.channel is None or f"channel {layer.channel}" in said)
    placed = f"{said} (at {where})" if where and not named else said
    return f"{placed}; {clean(layer.why)}" if layer.causes else placed


def layers(check: Verification) -> Iterable[tuple[str, Layer]]:
    """The layers, each by its name."""
    return zip(layer_names(layer.layer for layer in check.layers), check.layers, strict=True)


def errors(run: Run) -> Iterator[tuple[str, str, str, str]]:
    """Per output: the error against float64 of the original and of the folded model, and their ratio."""
    for output in run.check.outputs if run.check else ():
        yield (
            clean(output.name),
            figure(output.rmse_reference),
            figure(output.rmse_candidate),
            figure(output.ratio),
        )


def contenders(run: Run) -> Iterator[tuple[str, ...]]:
    """Per model that was measured: its name, median and 90th percentile, time and memory that loading it takes, batch
    norms that run, and size."""
    for measured in run.bench.contenders if run.bench else ():
        yield (
            clean(measured.name),
            duration(measured.p50_s),
            duration(measured.p90_s),
            duration(measured.session_s),
            size(measured.peak_bytes),
            number(measured.bn_after_runtime),
            size(measured.bytes),
        )


def comparisons(run: Run) -> Iterator[str]:
    """Per pair of models one sentence, never a ratio without its uncertainty."""
    several = len({pair.batch for pair in run.bench.comparisons}) > 1 if run.bench else False
    for pair in run.bench.comparisons if run.bench else ():
        ratio = "" if pair.ratio is None else f"{interval(pair.ratio, pair.low, pair.high)}, "
        verdict = pair.verdict.replace("_", " ")
        mode = f"runtime optimisation {pair.options}" if pair.options in ("default", "off") else pair.options
        how = f"{mode}, batch {pair.batch}" if several else mode
        yield clean(f"{pair.b} against {pair.a}, {how}: {ratio}{verdict}")
    if run.bench and run.bench.control:
        control = run.bench.control
        yield f"control, the same model twice: {interval(control.ratio, control.low, control.high)}"


def intervals(bench: Benchmark, width: int = 24) -> tuple[str, list[tuple[str, str, str]]]:
    """The intervals as a plot of text: its title, which is its logarithmic scale, and per row a label, the line, and
    what may be said. The first row is the control; `┊` is where both are equally fast."""
    control = bench.control
    same = (control.ratio, control.low, control.high) if control else None
    rows = [("the first model twice", same, "control")]
    several = len({pair.b for pair in bench.comparisons}) > 1
    for pair in bench.comparisons:
        found = (
            None if pair.ratio is None or pair.low is None or pair.high is None else (pair.ratio, pair.low, pair.high)
        )
        batch = "" if pair.batch == bench.batch else f", batch {pair.batch}"
        rows.append((f"{f'{pair.b}, ' if several else ''}{pair.options}{batch}", found, pair.verdict.replace("_", " ")))
    edges = [edge for _, found, _ in rows if found for edge in found if 0 < edge < math.inf]
    low, high = max(min([0.98, *edges]), 1 / WIDEST), min(max([1.02, *edges]), WIDEST)
    lines = [(clean(label), _plotted(found, low, high, width), verdict) for label, found, verdict in rows]
    return f"{low:.2f}{f'{high:.2f}'.rjust(width - 4)}", lines


def _plotted(found: tuple[float, float, float] | None, low: float, high: float, width: int) -> str:
    def position(ratio: float) -> int:
        within = min(max(ratio, low), high)
        return round((width - 1) * math.log(within / low) / math.log(high / low))

    line = [" "] * width
    line[position(1.0)] = "┊"
    if found is not None:
        first, last = position(found[1]), position(found[2])
        line[first : last + 1] = "─" * (last + 1 - first)
        line[first], line[last] = "├", "┤"
        line[position(found[0])] = "●"
    return "".join(line)


def throughputs(bench: Benchmark) -> Iterator[tuple[str, ...]]:
    """Per model its samples per second at each batch size, where there are several."""
    for measured in bench.contenders if len(bench.contenders[0].batches) > 1 else ():
        yield clean(measured.name), *(_rate(each.throughput) for each in measured.batches)


def _rate(value: float | None) -> str:
    return figure(value) if value is None or value < 100 else number(round(value))


def census(bench: Benchmark) -> Iterator[str]:
    """Per model after the first, a sentence: what the runtime's own optimisation makes of it that differs."""
    first, *others = bench.contenders
    for other in others:
        if first.operators_after_runtime is None or other.operators_after_runtime is None:
            continue
        before, after = Counter(first.operators_after_runtime), Counter(other.operators_after_runtime)
        changed = [f"{op} {before[op]} → {after[op]}" for op in sorted(before | after) if before[op] != after[op]]
        told = ", ".join(changed) or "the same operators"
        yield clean(f"after the runtime's optimisation, {first.name} → {other.name}: {told}")


def written(report: Report) -> str | None:
    """What became of the output file."""
    run = report.run
    if run.command not in ("export", "fold"):
        return None
    if run.output is None:
        return "Nothing was written." if report.failure or run.fold else None
    before = f"; the input has {size(run.input.bytes)}" if run.input else ""
    return f"Wrote {_weighed(run.output)}{before}."


def _weighed(record: FileRecord) -> str:
    data = sum(file.bytes for file in record.external)
    beside = f", and {size(data)} in {plural(len(record.external), 'data file')}" if record.external else ""
    return f"{clean(record.path)} ({size(record.bytes)}{beside})"


def told(findings: Iterable[Finding]) -> list[str]:
    """A line per finding, the first few of each kind; what to do is said once."""
    lines, seen, remedies = [], Counter[str](), set[str | None]([None])
    for finding in findings:
        seen[finding.code] += 1
        if seen[finding.code] <= MAX_BLOCKERS:
            remedy = "" if finding.remedy in remedies else f"; {finding.remedy}"
            remedies.add(finding.remedy)
            lines.append(clean(f"{finding.severity}: {finding.message}{remedy}"))
    more = [f"{count - MAX_BLOCKERS} {code}" for code, count in seen.items() if count > MAX_BLOCKERS]
    return [*lines, *([f"… and {', '.join(more)} (see --report)"] if more else [])]
