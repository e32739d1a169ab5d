"""Charts of the HTML report: numbers of the JSON report drawn by matplotlib, as SVG that stands in the page.

A chart is made of rows with a label and a position on one logarithmic axis. Its colours are the page's own, so that it
is dark where the page is; whatever a colour tells, a shape or a word tells too. The same numbers give the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import StringIO
from itertools import islice
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bnfold.errors import clean
from bnfold.reports.text import figure, layer_names

COLOURS = {"--text": "#010101", "--muted": "#020202", "--line": "#030303", "--accent": "#040404", "--bad": "#050505"}
"""What each colour of the page is called while matplotlib draws; the page gives the names their values."""

SETTINGS: dict[Any, Any] = {
    "font.size": 10.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "bnfold",
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "ytick.color", "axes.labelcolor"), COLOURS["--text"]),
    **dict.fromkeys(("xtick.color", "axes.edgecolor"), COLOURS["--muted"]),
}
MAX_ROWS = 20
WIDTH, ROW = 4.8, 0.27  # inches
NARROW_LABEL = 14
NEAR = 100.0
"""A border is drawn where a number comes within this factor of it."""
INTERVAL = ("ratio", "low", "high")
FARTHEST = (1e-6, 1e6)
"""No share of a limit is drawn further out than this."""
MARKERS = {"pass": "o", "warn": "^", "fail": "X"}
MEANINGS = {"pass": "within its limit", "warn": "a warning", "fail": "beyond its limit"}

Facts = Mapping[str, Any]


class Measured(NamedTuple):
    """What was measured under this name, what is allowed, and `pass`, `warn` or `fail`."""

    name: str
    value: float
    limit: float
    status: str


def limits(check: Facts) -> str | None:
    """What each layer of the check measured, and the ratio ρ of errors of each output, as a share of its limit."""
    rows = list(islice(_measured(check), MAX_ROWS))
    if not rows:
        return None
    drawing, axes = _axes([row.name for row in rows], "measured / limit")
    _border(axes, 1, "limit")
    for place, row in enumerate(rows):
        within = min(max(row.value / row.limit, FARTHEST[0]), FARTHEST[1])
        colour = COLOURS["--accent" if row.status == "pass" else "--bad"]
        axes.plot([within], [place], marker=MARKERS[row.status], color=colour, markersize=6)
        _aside(axes, place, f"{figure(row.value)} of {figure(row.limit)}")
    _scaled(axes, [1, *(row.value / row.limit for row in rows)], FARTHEST)
    told = (f"{name}: {figure(value)} of {figure(limit)}, {MEANINGS[status]}" for name, value, limit, status in rows)
    return _svg(drawing, "limits", "What was measured, as a share of its limit", "; ".join(told))


def _measured(check: Facts) -> Iterator[Measured]:
    """What has a number and a limit; an output is held to the limit of L4."""
    names = layer_names(layer["layer"] for layer in check["layers"])
    for name, layer in zip(names, check["layers"], strict=True):
        if _has(layer["figure"]) and _positive(layer["limit"]):
            yield Measured(name, float(layer["figure"]), float(layer["limit"]), layer["status"])
    ends = [layer for layer in check["layers"] if layer["layer"] == "L4" and _positive(layer["limit"])]
    for output in check["outputs"] if ends else ():
        if _has(ratio := output["ratio"]):
            limit = float(ends[0]["limit"])
            status = "pass" if float(ratio) <= limit else ends[0]["status"]
            yield Measured(f"ρ {_label(output['name'])}", float(ratio), limit, status)


def _has(value: Any) -> bool:
    """Whether it is there, and a number that has a place on an axis."""
    return value is not None and not math.isnan(float(value))


def changed(affines: Sequence[Facts], key: str) -> list[Facts]:
    """The affines whose operators have this number (`range`, `spread`) before and after, of those that went into the
    same operators the first; the largest after first."""
    sized = [each for each in affines if _positive(each[key]["before"]) and _positive(each[key]["after"])]
    each_once = {tuple(taker["node"] for taker in each["into"]): each for each in reversed(sized)}
    return sorted(each_once.values(), key=lambda each: (-float(each[key]["after"]), each["id"]))


def change(affines: Sequence[Facts], key: str, title: str, border: float | None = None) -> str | None:
    """This number before and after, where it is largest after; `border` is drawn if a number comes near it."""
    rows = changed(affines, key)[:MAX_ROWS]
    if not rows:
        return None
    pairs = [(float(each[key]["before"]), float(each[key]["after"])) for each in rows]
    drawing, axes = _axes([each["id"] for each in rows], f"{key}, before ○ and after ●")
    for place, pair in enumerate(pairs):
        axes.plot(pair, [place, place], color=COLOURS["--line"], linewidth=2, zorder=1)
        axes.plot(pair[:1], [place], "o", markeredgecolor=COLOURS["--muted"], markerfacecolor="none", markersize=6)
        axes.plot(pair[1:], [place], "o", color=COLOURS["--accent"], markersize=6)
        _aside(axes, place, f"{figure(pair[0])} → {figure(pair[1])}")
    edges = [edge for pair in pairs for edge in pair]
    if border is not None and max(edges) > border / NEAR:
        _border(axes, border, "float16")
        edges.append(border)
    _scaled(axes, edges, (min(edges), max(edges)))
    told = (f"{each['id']}: {figure(pair[0])}, then {figure(pair[1])}" for each, pair in zip(rows, pairs, strict=True))
    return _svg(drawing, key, title, "; ".join(told))


def intervals(bench: Facts) -> str | None:
    """How many times as fast, each with its interval, below the first model measured against itself."""
    same = [("control", bench["control"])] if bench["control"] else []
    found = [*same, *((_pair(bench, pair), pair) for pair in bench["comparisons"])]
    rows = [(name, [float(pair[key]) for key in INTERVAL]) for name, pair in found if _drawable(pair)][:MAX_ROWS]
    if not rows:
        return None
    drawing, axes = _axes([name for name, _ in rows], "times as fast, with its interval")
    axes.axvline(1, color=COLOURS["--muted"], linestyle="--", linewidth=1)
    told = []
    for place, (name, (ratio, low, high)) in enumerate(rows):
        colour, marker = ("--muted", "s") if name == "control" else ("--accent", "o")
        axes.plot([low, high], [place, place], marker="|", color=COLOURS[colour], linewidth=1.5, markersize=8)
        axes.plot([ratio], [place], marker=marker, color=COLOURS[colour], markersize=6)
        _aside(axes, place, f"{ratio:.2f} [{low:.2f}, {high:.2f}]")
        told.append(f"{name}: {ratio:.2f} [{low:.2f}, {high:.2f}]")
    _scaled(axes, [0.95, 1.05, *(edge for _, edges in rows for edge in edges)], (1e-3, 1e3))
    return _svg(drawing, "intervals", "How many times as fast, with intervals", "; ".join(told))


def _drawable(pair: Facts) -> bool:
    return all(_positive(pair[key]) for key in INTERVAL)


def _pair(bench: Facts, pair: Facts) -> str:
    several = len({each["b"] for each in bench["comparisons"]}) > 1
    batch = f" b{pair['batch']}" if len({each["batch"] for each in bench["comparisons"]}) > 1 else ""
    return f"{_label(pair['b']) + ' ' if several else ''}{pair['options']}{batch}"


def _positive(value: Any) -> bool:
    return value is not None and 0 < float(value) < math.inf


def _label(name: str) -> str:
    """A name that is short, and that matplotlib's own font can measure."""
    text = clean(name).encode("latin-1", "backslashreplace").decode("latin-1")
    return text if len(text) <= NARROW_LABEL else f"{text[: NARROW_LABEL - 1]}…"


def _axes(labels: Sequence[str], title: str) -> tuple[Figure, Axes]:
    """An empty chart with a row for each label, from the top."""
    with rc_context(SETTINGS):
        drawing = Figure(figsize=(WIDTH, 0.75 + ROW * len(labels)), layout="constrained")
        axes = drawing.add_subplot(xscale="log", xlabel=title)
        axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.grid(axis="y", color=COLOURS["--line"], linewidth=0.5)
    axes.set_axisbelow(True)
    return drawing, axes


def _border(axes: Axes, at: float, name: str) -> None:
    """A line that is not to be crossed, and its name above it."""
    bad = COLOURS["--bad"]
    axes.axvline(at, color=bad, linestyle="--", linewidth=1)
    axes.annotate(name, (at, 1), (0, 3), ("data", "axes fraction"), "offset points", ha="center", color=bad)


def _aside(axes: Axes, place: int, text: str) -> None:
    """The numbers of a row, to the right of it."""
    axes.annotate(
        text, (1, place), (6, 0), ("axes fraction", "data"), "offset points", va="center", color=COLOURS["--text"]
    )


def _scaled(axes: Axes, values: Sequence[float], within: tuple[float, float]) -> None:
    """The axis from the least to the greatest value, with a margin, and no more than six labels."""
    drawn = [min(max(value, within[0]), within[1]) for value in values]
    low, high = min(drawn) / 1.3, max(drawn) * 1.3
    axes.set_xlim(low, high)
    decades = math.log10(high / low)
    spaced = LogLocator(subs=(1.0, 3.0) if decades < 2.5 else (1.0,), numticks=6)
    axes.xaxis.set_major_locator(MaxNLocator(4) if decades < 1.2 else spaced)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _svg(drawing: Figure, name: str, title: str, description: str) -> str:
    """The chart as an `svg` element of a page: named for those who do not see it, with ids and colours of its own."""
    stream = StringIO()
    with rc_context(SETTINGS):
        drawing.savefig(stream, format="svg", transparent=True)
    head, body = re.sub(r".*?(?=<svg)", "", stream.getvalue(), count=1, flags=re.DOTALL).split(">", 1)
    (box,) = re.findall(r'viewBox="[^"]*"', head)
    body = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", body)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    for variable, colour in COLOURS.items():
        body = body.replace(colour, f"var({variable})")
    labelled = f'role="img" aria-labelledby="{name}-title {name}-description"'
    told = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-description">{escape(description)}</desc>'
    return f"<svg {box} {labelled}>{told}{body.strip()}"
