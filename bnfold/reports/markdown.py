"""The report for a pull request: headings and tables, nothing that needs colour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bnfold.errors import clean
from bnfold.reports import tables
from bnfold.reports.report import Report

_SPECIAL = str.maketrans({char: f"\\{char}" for char in "\\`*_[]<>|#~"})


def render(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    return "\n\n".join(_blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[str]:
    run = report.run
    yield f"# {_plain(report.headline)}"
    models = [record.path for record in (run.input, run.output if run.command == "check" else None) if record]
    yield f"`bnfold {run.command}`, {_plain(' against '.join(models) or 'no model')}, exit code {report.exit_code}"
    if (failure := report.failure) is not None:
        said = "" if report.begins_with(str(failure)) else f"{_plain(str(failure))}."
        told = " ".join(text for text in (said, _plain(failure.hint or "")) if text)
        yield f"**{_plain(failure.code)}**" + (f": {told}" if told else "")
    if rows := tables.rows(report):
        yield "## Batch norms"
        yield _table(
            ("id", "batch norm", "outcome", "into, or the reason"),
            ((row.identity, row.name, "folded" if row.folded else "left", row.fate) for row in rows),
        )
    if others := tables.others_left(report):
        yield _plain(others)
    if groups := tables.left(report):
        yield "\n".join(map(_left, groups))
    if changes := list(tables.changes(run)):
        yield "## The model"
        yield _table(("", "before", "after"), changes)
    yield from _check(report)
    yield from _bench(report)
    if notes := [*tables.told(run.findings), *(warning.message for warning in run.warnings)]:
        yield "## Notes"
        yield "\n".join(f"- {_plain(note)}" for note in notes)
    if ending := tables.written(report):
        yield _plain(ending)


def _left(group: tables.Left) -> str:
    blockers = tables.blocked_by(group)
    way = f"; in the way: {_plain(blockers)}" if blockers else ""
    return f"- **{group.reason.code}** ({group.count}): {group.reason.message}{way}; {group.remedy}"


def _check(report: Report) -> Iterator[str]:
    check = report.run.check
    if check is None:
        return
    yield "## Check"
    is_said = report.begins_with(check.sentence) or check.sentence == str(report.failure)
    how = f"level {check.level}, seed {check.seed}"
    yield how.capitalize() if is_said else f"{_plain(check.sentence)} ({how})"
    if check.layers:
        yield _table(
            ("layer", "status", "because", "measured"),
            ((name, layer.status.value, tables.because(layer), layer.measured) for name, layer in tables.layers(check)),
        )
    if check.outputs:
        yield _table(("error against float64", "original", "candidate", "ratio"), tables.errors(report.run))


def _bench(report: Report) -> Iterator[str]:
    bench = report.run.bench
    if bench is None:
        return
    yield "## Bench"
    yield f"batch {bench.batch}, {bench.processes} processes, {bench.threads} threads, {_plain(bench.provider)}"
    titles = ("model", "median", "90 %", "session", "memory", "batch norms that run", "size")
    yield _table(titles, tables.contenders(report.run))
    if rows := list(tables.throughputs(bench)):
        sizes = (f"batch {each.batch}" for each in bench.contenders[0].batches)
        yield _table(("samples a second", *sizes), rows)
    lines = (*tables.comparisons(report.run), *tables.census(bench), *bench.notes)
    yield "\n".join(f"- {_plain(line)}" for line in lines)


def _table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    head = list(header)
    lines = [head, ["---"] * len(head), *([cell.translate(_SPECIAL) for cell in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    return clean(text).translate(_SPECIAL)
