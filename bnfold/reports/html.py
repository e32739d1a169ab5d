"""The report as one page: the JSON report, laid out for people, with charts and a table that can be searched.

The page loads nothing. It is complete without its script, which only searches; a policy in the page itself lets no
other script run. What a model is called is text wherever it stands: cleaned, cut where it is long, escaped by Jinja.
"""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, takewhile

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bnfold.display import placed
from bnfold.errors import clean
from bnfold.reports import charts, text
from bnfold.reports.charts import Facts
from bnfold.reports.json import document
from bnfold.reports.limits import FLOAT16_LARGEST
from bnfold.reports.report import VERDICT_WORDS, Report

MAX_CHARACTERS = 2_000_000
"""Of the table of affines, whose rows end there."""
ROW = 500
"""About what a row takes without its names."""
MAX_OTHERS = 200
"""Rows of any other table."""
FEWEST_PARTS = 3
MAX_NAME, MAX_NAMES, MAX_SENTENCE = 100, 3, 400

COUNTS = (
    ("nodes", "nodes", text.number),
    ("computing nodes", "compute_nodes", text.number),
    ("parameters", "parameters", text.number),
    ("multiply-adds at batch 1", "macs", text.number),
    ("tensor bytes", "bytes", text.size),
)
LAYERS = {
    "L0": "the graphs, node by node",
    "L1": "every new number, derived again",
    "L2": "both models in float64",
    "L3": "every place that differs, on its own",
    "L4": "both models in the runtime",
    "L5": "both with the runtime's own optimisations",
}
INTERFACES = "the interfaces"
"""What L0 compares of two models without records."""
EXPORT = "the ONNX model and the torch program, in float64"
"""What a layer compares that is there a second time."""
# A colour of the page, and the sign that says the same without it.
SIGNS = {
    **dict.fromkeys(("ok", "pass", "proved", "verified", "folded"), ("good", "✓")),
    **dict.fromkeys(("failed", "fail", "not_equivalent", "error"), ("bad", "✗")),
    **dict.fromkeys(("no_verdict", "warn", "warning", "policy", "gate", "partly"), ("odd", "!")),
    **dict.fromkeys(("skipped", "left", "note"), ("dull", "–")),
}


def render(report: Report) -> str:
    """The report as an HTML page. Needs Jinja and matplotlib, which `bnfold[html]` installs."""
    return page(document(report))


def page(facts: Facts) -> str:
    """The page that shows these facts, which are a JSON report. The same facts give the same page."""
    shown = _shown(facts["affines"])
    script = source("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return ENVIRONMENT.get_template("page.html").render(
        facts,
        style=Markup(source("style.css")),
        script=Markup(script),
        script_digest=f"sha256-{digest}",
        failures=list(_failures(facts)),
        counts=list(_counts(facts["summary"])),
        parts=list(_parts(facts["affines"], facts["merges"])),
        speed=_speed(facts["bench"]),
        reasons=list(_reasons(facts["affines"])),
        shown=shown,
        spread=charts.changed(facts["affines"], "spread"),
        crest=charts.changed(facts["affines"], "crest"),
        flagged=[each for each in facts["affines"] if each["flags"]],
        limits=_chart(facts["check"] and charts.limits(facts["check"])),
        ranges=_chart(charts.change(facts["affines"], "range", "The largest weight", FLOAT16_LARGEST)),
        spreads=_chart(charts.change(facts["affines"], "spread", "How far apart the channels of an operator are")),
        crests=_chart(charts.change(facts["affines"], "crest", "How far apart the weights of a channel are")),
        intervals=_chart(facts["bench"] and charts.intervals(facts["bench"])),
        repeat=shlex.join(["bnfold", *facts["argv"]]),
    )


def source(name: str) -> str:
    """The text of a file that the page is made of."""
    loader = ENVIRONMENT.loader
    assert loader is not None, "made with one"
    return loader.get_source(ENVIRONMENT, name)[0]


def _chart(svg: str | None) -> Markup | None:
    return Markup(svg) if svg else None


def _failures(facts: Facts) -> Iterator[Facts]:
    """Every failure, the gravest first, but for what the check says of itself."""
    error, check = facts["error"], facts["check"]
    for each in [error, *((error["details"] or {}).get("also", []))] if error else []:
        if check is None or each["message"] != check["sentence"]:
            yield each


def _counts(summary: Facts) -> Iterator[tuple[str, str, str, str]]:
    """What the model holds: its name, before, after, and the change in percent."""
    norms = summary["batch_norms"], summary["batch_norms_after"]
    found = [("batch norms", text.number, *norms)]
    found += [(title, show, summary[key]["before"], summary[key]["after"]) for title, key, show in COUNTS]
    for title, show, before, after in found:
        if before is not None:
            yield title, show(before), "" if after is None else show(after), _change(before, after)


def _change(before: int, after: int | None) -> str:
    if after is None or before == 0:
        return ""
    return "the same" if before == after else f"{100 * (after / before - 1):+.3g} %".replace("-", "−")


def _parts(affines: Sequence[Facts], merges: Sequence[Facts]) -> Iterator[tuple[str, Facts]]:
    """Each part of the network, by the first names of its modules, and what stood and stands there.

    As many names as it takes to tell `FEWEST_PARTS` apart. Nothing where the model does not say which modules it has.
    """
    paths = [tuple(each["module"].split(".")) for each in (*affines, *merges) if each["module"]]
    depths = range(1, 1 + max(map(len, paths), default=0))
    told = (depth for depth in depths if len({path[:depth] for path in paths}) >= FEWEST_PARTS)
    depth = next(told, None)
    if depth is None:
        return
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for each in affines:
        kind = "norms" if each["batch_norm"] else "others"
        part = found[_part(each, depth)]
        part[kind] += 1
        part[f"{kind} after"] += each["outcome"] != "folded"
    for each in merges:
        found[_part(each, depth)]["merged"] += len(each["nodes"])
    yield from found.items()


def _part(one: Facts, depth: int) -> str:
    """The part of the network that an affine or a merge belongs to."""
    return short(".".join(one["module"].split(".")[:depth])) if one["module"] else "in no module"


def _speed(bench: Facts | None) -> str | None:
    """What was measured first, in a few words: the last model against the first, as the runtime runs it by default."""
    if not bench or not bench["comparisons"]:
        return None
    first = bench["comparisons"][0]
    if first["verdict"] in ("faster", "slower"):
        return f"{figure(first['ratio'])} times as fast [{figure(first['low'])}, {figure(first['high'])}]"
    return {"no_measurable_difference": "as fast as before, as far as can be measured"}.get(
        first["verdict"], "no verdict on speed"
    )


def _shown(affines: Sequence[Facts]) -> list[Facts]:
    """The affines that the page has room for, in their order: those that stay before those that folded."""
    chosen = sorted(affines, key=lambda each: each["outcome"] == "folded")
    sizes = accumulate(map(_size, chosen))
    kept = {
        each["id"] for each, _ in takewhile(lambda pair: pair[1] <= MAX_CHARACTERS, zip(chosen, sizes, strict=True))
    }
    return [each for each in affines if each["id"] in kept]


def _size(affine: Facts) -> int:
    before, after = chain(affine)
    return ROW + len(escape("".join((where(affine), short(affine["name"]), *before, *after, obstacles(affine)))))


def _reasons(affines: Sequence[Facts]) -> Iterator[tuple[Facts, int]]:
    """Each reason for which affines stay, and how many do, the most frequent first."""
    told = {each["reason"]["code"]: each["reason"] for each in affines if each["reason"]}
    times = Counter(each["reason"]["code"] for each in affines if each["reason"])
    return ((told[code], count) for code, count in times.most_common())


def chain(affine: Facts) -> tuple[list[str], list[str]]:
    """What an affine looked like before and after: the nodes one behind the other, and what stands there now."""
    this, takers = [short(affine["op"])], [some(_nodes(affine["into"]))]
    if affine["outcome"] == "left":
        return this, ["as it was"]
    if not affine["into"]:
        return this, ["nothing: it has no effect"]
    after = [*takers, *["its shift"] * (affine["outcome"] == "partly")]
    if affine["rule"].startswith("merge"):
        return [f"{this[0]} + {takers[0]}"], after
    behind = affine["rule"] == "into-producer"
    way = _nodes(affine["via"][::-1] if behind else affine["via"])
    passed = [some(way)] * bool(way)
    return ([*takers, *passed, *this] if behind else [*this, *passed, *takers]), after


def _nodes(nodes: Sequence[Facts]) -> list[str]:
    return [f"{node['op']} {node['node']}" for node in nodes]


def some(names: Iterable[object]) -> str:
    """`a, b, c and 4 more`."""
    texts = [short(str(name)) for name in names]
    more = len(texts) - MAX_NAMES
    return ", ".join(texts[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def obstacles(affine: Facts) -> str:
    """The nodes in the way of an affine that stays, if that is what keeps it."""
    reason = affine["reason"]
    if not reason or not reason["blocker"]:
        return ""
    names, modules = [reason["blocker"], *reason["also"]], reason["modules"]
    return some(placed(name, modules.get(name)) for name in names)


def short(text: str, most: int = MAX_NAME) -> str:
    """A text without its middle, if it is long."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def where(affine: Facts) -> str:
    """An affine in the user's words: its module, or its node."""
    return short(affine["module"] or affine["name"])


def compares(layer: Facts, layers: Sequence[Facts]) -> str:
    """What a layer compares. Without records there is no L1, and L0 is about interfaces alone."""
    without_records = layer["layer"] == "L0" and all(each["layer"] != "L1" for each in layers)
    return INTERFACES if without_records else LAYERS[layer["layer"]]


def place(cause: Facts) -> str:
    """A node that differs in two models."""
    return placed(f"{short(cause['op'])} {short(cause['node'])}", cause["module"] and short(cause["module"]))


def takers(affine: Facts) -> str:
    """The operators that took an affine in, in the user's words."""
    return some(node["module"] or node["node"] for node in affine["into"])


def bits(factor: float | str) -> str:
    """How many bits a step loses that is made for weights so many times larger."""
    return f"{math.log2(float(factor)):z.1f}"


def figure(value: float | str | None) -> str:
    """A measured figure; what JSON spells as a word is a number here."""
    return text.figure(None if value is None else float(value))


def duration(value: float | str | None) -> str:
    """Seconds; what JSON spells as a word is a number here."""
    return text.duration(None if value is None else float(value))


def _said(value: object) -> object:
    """What an expression of the template becomes before it is escaped: no character of it steers the reader."""
    return "\n".join(map(clean, value.split("\n"))) if type(value) is str else value


ENVIRONMENT = Environment(
    loader=PackageLoader("bnfold.reports", "page"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_said,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {
    "number": text.number,
    "plural": text.plural,
    "size": text.size,
    **{made.__name__: made for made in (figure, duration, bits, chain, some, short)},
    **{made.__name__: made for made in (where, obstacles, takers, place, compares)},
}
ENVIRONMENT.globals |= {
    "EXPORT": EXPORT,
    "SIGNS": SIGNS,
    "VERDICTS": {verdict.value: words for verdict, words in VERDICT_WORDS.items()},
    "MOST": MAX_OTHERS,
    "SENTENCE": MAX_SENTENCE,
    "DRAWN": charts.MAX_ROWS,
    "FLOAT16_LARGEST": FLOAT16_LARGEST,
}
