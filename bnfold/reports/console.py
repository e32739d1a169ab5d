"""The report for people at a terminal: the outcome first, then what carries it, at most 80 columns when piped.

Names from models are never read as markup: everything is drawn as plain `rich.text.Text`.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bnfold.errors import clean
from bnfold.reports import tables
from bnfold.reports.report import Report
from bnfold.reports.text import WIDTH, plural
from bnfold.verify.result import Status

INDENT = (0, 0, 0, 2)
_STATUS_STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.WARN: "yellow", Status.SKIPPED: "dim"}


def render(report: Report, stream: TextIO) -> str:
    """The report as text for this stream: coloured only where the stream is a terminal."""
    terminal = stream.isatty()
    text = StringIO()
    console = Console(
        file=text,
        force_terminal=terminal,
        no_color=None if terminal else True,
        width=None if terminal else WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(_headline(report))
    for block in _blocks(report):
        console.print()
        console.print(Padding(block, INDENT, expand=False) if isinstance(block, Table) else block)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _headline(report: Report) -> Text:
    return Text(clean(report.headline), "bold green" if report.failure is None else "bold red")


def _blocks(report: Report) -> Iterator[RenderableType]:
    if report.run.fold and report.run.fold.outcomes:
        yield from _affines(report)
    if report.run.fold and report.run.fold.merges:
        yield _merges(report)
    if report.run.before:
        yield _changes(report)
    if report.run.check:
        yield from _check(report)
    yield from _bench(report)
    if notes := list(_notes(report)):
        yield Text("\n").join(notes)
    if ending := tables.written(report):
        yield Text(ending)


def _affines(report: Report) -> Iterator[RenderableType]:
    grid = _table("batch norm", "folded into" if report.run.command != "inspect" else "would fold into")
    visible, rest = tables.shown(tables.rows(report))
    for row in visible:
        grid.add_row(Text(row.name), Text(row.fate) if row.folded else Text(f"left: {row.fate}", "yellow"))
    if rest:
        grid.add_row(Text(rest), Text(""))
    if grid.row_count:
        yield grid
    if others := tables.others_left(report):
        yield Text(others)
    for group in tables.left(report):
        yield Group(*_reason(group))


def _merges(report: Report) -> Table:
    grid = _table("merged into", "what went", "multiply-adds saved")
    grid.columns[2].justify = "right"
    for cells in tables.merges(report):
        grid.add_row(*(Text(cell) for cell in cells))
    return grid


def _reason(group: tables.Left) -> Iterator[RenderableType]:
    yield Text.assemble((f"{group.reason.code} ({group.count})", "yellow"), f": {group.reason.message}.")
    if blockers := tables.blocked_by(group):
        yield Padding(Text(f"in the way: {blockers}"), INDENT)
    yield Padding(Text(f"what to do: {group.remedy}"), INDENT)


def _changes(report: Report) -> Table:
    grid = _table("", "before", "after" if report.run.after else "", numeric=True)
    for name, before, after in tables.changes(report.run):
        grid.add_row(Text(name), Text(before), Text(after))
    return grid


def _check(report: Report) -> Iterator[RenderableType]:
    check = report.run.check
    assert check is not None, "called for a run that checked"
    grid = _table("check", "", "", "measured")
    for name, layer in tables.layers(check):
        status = Text(layer.status, _STATUS_STYLES[layer.status])
        grid.add_row(Text(name), status, Text(tables.because(layer)), Text(layer.measured))
    if check.layers:
        yield grid
    grid = _table("error against float64", "original", _second(report), "ratio", numeric=True)
    for cells in tables.errors(report.run):
        grid.add_row(*(Text(cell) for cell in cells))
    if check.outputs:
        yield grid


def _second(report: Report) -> str:
    return "candidate" if report.run.command == "check" else "folded"


def _bench(report: Report) -> Iterator[RenderableType]:
    if report.run.bench is None:
        return
    bench = report.run.bench
    grid = _table("model", "median", "90 %", "session", "memory", "BNs run", "size", numeric=True)
    for cells in tables.contenders(report.run):
        grid.add_row(*(Text(cell) for cell in cells))
    yield grid
    sizes = [each.batch for each in bench.contenders[0].batches]
    grid = _table("samples a second", *(f"batch {size}" for size in sizes), numeric=True)
    for cells in (several := list(tables.throughputs(bench))):
        grid.add_row(*(Text(cell) for cell in cells))
    if several:
        yield grid
    scale, lines = tables.intervals(bench)
    grid = _table("times as fast", scale, "")
    for cells in lines:
        grid.add_row(*(Text(cell) for cell in cells))
    yield grid
    yield Group(*(Text(line) for line in (*tables.comparisons(report.run), *tables.census(bench))))
    if bench.notes:
        yield Group(*(Text(f"note: {clean(note)}") for note in bench.notes))


def _notes(report: Report) -> Iterator[Text]:
    yield from (Text(line) for line in tables.told(report.run.findings))
    for warning in report.run.warnings:
        yield Text(clean(f"note: {warning.message}"))
    others = [error for error in report.failures if error is not report.failure]
    if others:
        yield Text(f"also {plural(len(others), 'failure')}: " + "; ".join(clean(str(error)) for error in others))


def _table(*titles: str, numeric: bool = False) -> Table:
    """A table without lines: one header row, columns that fold rather than hide what tells names apart."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, title in enumerate(titles):
        grid.add_column(title, overflow="fold", justify="right" if numeric and index else "left")
    return grid
