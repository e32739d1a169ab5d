"""The HTML report: whole without a network or a script, whatever a model is called, and the same bytes each time."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import demo_in
from lxml import html as lxml_html
from test_reports import (
    NASTY,
    benchmark,
    elementwise,
    folded,
    full_run,
    left,
    report_of,
    verification,
)

from bnfold.benchmark import Comparison
from bnfold.cli import main
from bnfold.errors import NotEquivalent, NoVerdict, Rejected, UsageError, clean
from bnfold.graph import Reason, Site
from bnfold.outcome import FoldReport, Merged, Outcome
from bnfold.reports import charts, files, html
from bnfold.reports.json import document
from bnfold.run import Finding, Range, Run, Uneven
from bnfold.verify.result import Cause, Layer, Status, Verdict

HOSTILE = f"<script>alert(1)</script>\"'><img src=http://evil.test/x onerror=alert(1)>$\\frac{{{NASTY}</style>"
VOID = {"meta", "input", "br"}


def rich_run(**names: Any) -> Run:
    """Every section has something to show."""
    run = full_run(folded(**names), left("bn2", blocker=names.get("into", "conv2")), elementwise())
    merge = Merged("merge-branches", Site("conv3", "Conv"), (Site("conv4", "Conv"),), 100, 10, None, 1.5)
    run.fold = replace(run.fold, merges=(merge,))  # type: ignore[type-var]
    uneven = Uneven(2.0, 32.0, (6, 4), (9,)), Uneven(3.0, 12.0, (5,))
    run.ranges = lambda: {names.get("name", "bn1"): Range(0.5, 70000.0, ("float16-overflow",), *uneven)}
    run.bench = benchmark(Comparison.FASTER)
    run.warn("pickle-trusted", "this file was allowed to run code")
    return run


@pytest.fixture(scope="module")
def rich_page() -> str:
    return rendered(rich_run())


def rendered(run: Run, *failures: Any) -> str:
    """The page, which is well-formed and loads nothing."""
    page = html.render(report_of(run, *failures))
    assert not faults(page)
    return page


def faults(page: str) -> list[str]:
    """What is wrong with a page: tags that do not match, ids that are there twice, anything loaded, names that lead
    nowhere."""
    tree = lxml_html.document_fromstring(page)
    found = _unbalanced(page)
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    found += [f"twice: {name}" for name, count in Counter(ids).items() if count > 1]
    targets = [word for element in tree.iter() for word in _targets(element)]
    found += [f"nowhere: {target}" for target in targets if target not in ids]
    found += [f"loaded: {element.tag}" for element in tree.iter("img", "link", "iframe", "object", "image", "base")]
    found += [f"from {element.get('src')}" for element in tree.iter() if element.get("src")]
    found += [f"handler {key}" for element in tree.iter() for key in element.attrib if key.startswith("on")]
    found += [f"a character: {char!r}" for char in set(page) if char != "\n" and clean(char) != char]
    found += [f"table without {part}" for table in tree.iter("table") for part in _lacking(table)]
    found += ["a url of another place" for _ in re.findall(r"url\((?!#)|@import", page)]
    return found


def _targets(element: Any) -> list[str]:
    links = [value[1:] for key, value in element.items() if key.endswith("href")]
    return links + (element.get("aria-labelledby") or "").split()


def _lacking(table: Any) -> list[str]:
    heads = [*table.iter("th")]
    return ["caption"] * (table.find("caption") is None) + ["scope"] * any(not th.get("scope") for th in heads)


def _unbalanced(page: str) -> list[str]:
    """Tags that are closed in another order than they were opened."""
    stack: list[str] = []
    text = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
    for closing, name, alone in re.findall(r"<(/?)([a-z][\w:]*)[^<>]*?(/?)>", text):
        if alone or name in VOID:
            continue
        if not closing:
            stack.append(name)
        elif not stack or stack.pop() != name:
            return [f"unexpected </{name}>"]
    return [f"open: {name}" for name in stack]


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("</h1>", "", "unexpected </header>"),
        ("<main>", '<main><img src="https://example.org/a.png">', "loaded: img"),
        ("<main>", '<main onclick="x()">', "handler onclick"),
        ('<h2 id="check">', '<h2 id="model">', "twice: model"),
        ('<h2 id="check">', "<h2>", "nowhere: check"),
        ("<caption>", "<caption>‮", "a character: '\\u202e'"),
        ("<caption>The layers of the check</caption>", "", "table without caption"),
        ('<th scope="col">layer', "<th>layer", "table without scope"),
        ("max-width: 76rem", "background: url(x.png)", "a url of another place"),
    ],
)
def test_a_fault_is_seen(rich_page: str, right: str, wrong: str, fault: str) -> None:
    page = rich_page
    assert right in page
    assert fault in faults(page.replace(right, wrong))


def test_it_says_everything(rich_page: str) -> None:
    text = " ".join(lxml_html.document_fromstring(rich_page).text_content().split())
    for words in (
        *(
            "Folded 1 of 2 batch norms and 1 other affine and merged linear operators into 1 operator; proved",
            "exit code 0",
        ),
        *(
            "A001",
            "net.bn1",
            "net.py:12",
            "Conv conv1 → BatchNormalization",
            "A002",
            "padded-border",
            "in the way: conv2",
        ),
        *(Reason.PADDED_BORDER.remedy, "Mul → Flatten flatten1 → Gemm fc", "conv3 + conv4"),
        *("Every number was derived again", "onnxruntime is not installed", "logits", "nan", "float16-overflow", "5.0"),
        *("1.5[1.4, inf], 95 %", "The control is the first model measured against itself: 1 [0.99, 1.01]", "load 0.5"),
        *("dead-channels", "channels 1, 2, 3", "3 channels are zero", "pickle-trusted", "bnfold fold in.onnx"),
        *("in.onnx", "2.5 MB", "sha256 0123456789abcdef", "−50 %"),
    ):
        assert words in text, words


def test_every_chart_is_named_and_tells_its_numbers(rich_page: str) -> None:
    tree = lxml_html.document_fromstring(rich_page)
    charts = {svg.get("aria-labelledby").split("-")[0]: svg for svg in tree.iter("svg")}
    assert set(charts) == {"limits", "range", "spread", "crest", "intervals"}
    assert all(svg.get("role") == "img" for svg in charts.values())
    told = {name: svg.find("desc").text for name, svg in charts.items()}
    assert told["limits"] == "L0: 0.5 of 0.5, within its limit"
    assert told["range"] == "A001: 0.5, then 7e+04"
    assert told["spread"] == "A001: 2, then 32"
    assert told["crest"] == "A001: 3, then 12"
    assert told["intervals"] == "control: 1.00 [0.99, 1.01]"


@pytest.mark.parametrize(
    ("value", "status", "told"),
    [
        (0.0, Status.PASS, "0 of 4, within"),
        (9.0, Status.FAIL, "9 of 4, beyond"),
        (1e300, Status.FAIL, "1e+300 of 4"),
        (math.inf, Status.WARN, "inf of 4, a warning"),
    ],
)
def test_a_measurement_has_a_place_however_far_it_is(value: float, status: Status, told: str) -> None:
    check = replace(verification(), layers=(Layer("L4", status, "measured", value, 4.0),), outputs=())
    assert f"L4: {told}" in rendered(Run("check", check=check))


@pytest.mark.parametrize(("value", "limit"), [(None, 4.0), (math.nan, 4.0), (2.0, None), (2.0, 0.0), (2.0, math.inf)])
def test_what_has_no_place_is_not_drawn(value: float | None, limit: float | None) -> None:
    check = replace(verification(), layers=(Layer("L4", Status.WARN, "measured", value, limit),))
    assert "<svg" not in rendered(Run("check", check=check))


@pytest.mark.parametrize("name", ["$\\frac{$", "模型", "a_{b}^c", "", "\ud800", "<b>&amp;"])
def test_an_output_may_have_any_name(name: str) -> None:
    check = verification()
    layers = (Layer("L4", Status.PASS, "measured", 1.0, 4.0),)
    outputs = tuple(replace(each, name=name, ratio=1.0) for each in check.outputs)
    tree = lxml_html.document_fromstring(rendered(Run("check", check=replace(check, layers=layers, outputs=outputs))))
    (chart,) = tree.iter("svg")
    assert "ρ" in chart.text_content()
    assert "ρ" in chart.find("desc").text


def test_an_operator_is_drawn_once_and_the_largest_first() -> None:
    run = full_run(folded("a", "x"), folded("b", "x"), folded("c", "y"))
    run.ranges = lambda: {"a": Range(1.0, 2.0), "b": Range(1.0, 2.0), "c": Range(1.0, 3.0), "d": Range(0.0, 1.0)}
    facts = document(report_of(run))["affines"]
    assert [each["id"] for each in charts.changed(facts, "range")] == ["A003", "A001"]


@pytest.mark.parametrize(
    ("outcome", "before", "after"),
    [
        (folded(), ["Conv conv1", "BatchNormalization"], ["Conv conv1"]),
        (
            replace(folded(), via=(Site("r", "Reshape"), Site("t", "Transpose"))),
            ["Conv conv1", "Transpose t, Reshape r", "BatchNormalization"],
            ["Conv conv1"],
        ),
        (elementwise(), ["Mul", "Flatten flatten1", "Gemm fc"], ["Gemm fc"]),
        (replace(folded(), rule="merge-branches"), ["BatchNormalization + Conv conv1"], ["Conv conv1"]),
        (replace(folded(), into=()), ["BatchNormalization"], ["nothing: it has no effect"]),
        (left(), ["BatchNormalization"], ["as it was"]),
        (
            replace(left(), rule="into-producer", into=(Site("conv1", "Conv"),)),
            ["Conv conv1", "BatchNormalization"],
            ["Conv conv1", "its shift"],
        ),
    ],
)
def test_what_stood_there_before_and_what_does_now(outcome: Outcome, before: list[str], after: list[str]) -> None:
    (facts,) = document(report_of(full_run(outcome)))["affines"]
    assert html.chain(facts) == (before, after)


def _in(module: str | None, outcome: Outcome) -> Outcome:
    return replace(outcome, site=replace(outcome.site, module=module))


@pytest.mark.parametrize(
    ("modules", "parts"),
    [
        (("stem", "layer1.0.bn1", "layer1.1.bn1", "layer2.bn"), ["stem", "layer1", "layer2"]),
        (("f.a.bn", "f.a.bn2", "f.b.bn", "f.c"), ["f.a", "f.b", "f.c"]),
        (("a", "b.0", "c", None), ["a", "b", "c", "in no module"]),
        (("a.x", "a.y"), []),
        ((None, None, None), []),
    ],
)
def test_the_parts_of_a_network(modules: tuple[str | None, ...], parts: list[str]) -> None:
    run = full_run(*(_in(module, folded(str(index))) for index, module in enumerate(modules)))
    tree = lxml_html.document_fromstring(rendered(run))
    tables = [table for table in tree.iter("table") if "Part by part" in table.findtext("caption", "")]
    assert [row.findtext("th") for table in tables for row in table.iter("tr")][len(tables) :] == parts


def test_the_counts_of_a_part() -> None:
    run = full_run(
        _in("a.1", folded("1")),
        _in("a.2", left("2")),
        _in("b", folded("3")),
        _in("b", elementwise("4", Reason.NOT_LINEAR)),
        _in("c", folded("5")),
    )
    merge = Merged("merge-branches", Site("conv3", "Conv", "b.x"), (Site("conv4", "Conv"),) * 2, 100, 10, None, 1.5)
    run.fold = replace(run.fold, merges=(merge,))  # type: ignore[type-var]
    rows = [" ".join(row.itertext()) for row in lxml_html.document_fromstring(rendered(run)).iter("tr")]
    assert [" ".join(row.split()) for row in rows if row.split()[0] in ("a", "b", "c")] == [
        "a 2 → 1 0 → 0 0",
        "b 1 → 0 1 → 1 2",
        "c 1 → 0 0 → 0 0",
    ]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Comparison.FASTER, "1.5 times as fast [1.4, inf]"),
        (Comparison.NO_MEASURABLE_DIFFERENCE, "as fast as before, as far as can be measured"),
        (Comparison.NO_VERDICT, "no verdict on speed"),
    ],
)
def test_the_first_lines_tell_the_speed(verdict: Comparison, said: str) -> None:
    run = rich_run()
    run.bench = benchmark(verdict)
    badges = lxml_html.document_fromstring(rendered(run)).find_class("badges")[0]
    assert badges[-1].text_content() == said


def test_the_second_layer_of_a_name_compares_the_export() -> None:
    layers = (Layer("L2", Status.PASS, "equal", 1e-16, 1e-11), Layer("L2", Status.PASS, "export", 1e-16, 1e-11))
    text = rendered(Run("export", check=replace(verification(), layers=layers)))
    assert "L2 export" in text
    assert text.count(html.EXPORT) == text.count(html.LAYERS["L2"]) == 1


def test_without_records_only_the_interfaces_were_compared() -> None:
    layers = (Layer("L0", Status.PASS, "the same"), Layer("L1", Status.PASS, "derived again"))
    assert html.LAYERS["L0"] in rendered(Run("check", check=replace(verification(), layers=layers)))
    alone = rendered(Run("check", check=replace(verification(), layers=layers[:1])))
    assert html.LAYERS["L0"] not in alone
    assert html.INTERFACES in alone


def test_a_failed_check_says_each_thing_once() -> None:
    cause = Cause("bn1", "BatchNormalization", "net.norm", "epsilon is <b>0.001</b>")
    check = replace(
        verification(Verdict.FAILED),
        sentence="not equivalent, by L3: far off",
        layers=(Layer("L3", Status.FAIL, "far off", 9.0, 8.0, causes=(cause, replace(cause, module=None))),),
    )
    page = rendered(Run("check", check=check), NotEquivalent(check.sentence))
    text = " ".join(lxml_html.document_fromstring(page).find("body").text_content().split())
    assert text.casefold().count("✗ not equivalent") == 1
    assert text.casefold().count("not equivalent, by l3") == 1
    assert "net.norm (BatchNormalization bn1): epsilon is <b>0.001</b>" in text
    assert "BatchNormalization bn1: epsilon" in text
    assert "folded" not in text
    assert "candidate over original" in text


@pytest.mark.parametrize(("command", "second"), [("check", "candidate"), ("fold", "folded"), ("export", "folded")])
def test_the_second_model_is_called_what_it_is(command: str, second: str) -> None:
    tree = lxml_html.document_fromstring(rendered(Run(command, check=verification())))
    (title,) = [cell for cell in tree.iter("th") if cell.text == second]
    assert title.get("scope") == "col"


def test_the_same_report_gives_the_same_bytes(rich_page: str) -> None:
    facts = document(report_of(rich_run()))
    assert html.page(facts) == rich_page
    assert html.page({**facts, "check": None, "bench": None}) != rich_page


def test_hostile_names_are_text() -> None:
    run = rich_run(name=HOSTILE, into=HOSTILE)
    run.findings.append(Finding(HOSTILE, "note", HOSTILE, HOSTILE, HOSTILE))
    run.warn(HOSTILE, HOSTILE)
    run.check = replace(verification(), outputs=tuple(replace(each, name=HOSTILE) for each in verification().outputs))
    page = rendered(run, UsageError(HOSTILE, hint=HOSTILE), NotEquivalent(HOSTILE))
    tree = lxml_html.document_fromstring(page)
    (script,) = tree.iter("script")
    assert script.text == html.source("script.js")
    assert "<script>alert(1)</script>" in tree.text_content()


@pytest.mark.parametrize(
    ("run", "failures", "words"),
    [
        (Run("fold"), [Rejected("the file is empty")], ["Failed: the file is empty", "✗ rejected", "not checked"]),
        (Run(""), [UsageError("no model", hint="bnfold --help")], ["What to do: bnfold --help.", "✗ usage"]),
        (Run("fold", fold=FoldReport(())), [], ["The model has no batch norm, and no other affine.", "✓ ok"]),
        (
            Run("check", check=verification(Verdict.FAILED)),
            [NotEquivalent("they differ")],
            ["✗ not equivalent", "✗ fail", "! warn"],
        ),
        (
            Run("check", check=verification(Verdict.NO_VERDICT)),
            [NoVerdict("nothing ran")],
            ["! no verdict", "– skipped"],
        ),
        (full_run(folded(), command="inspect"), [], ["1 of 1 batch norm would fold", "what stands there then"]),
        (full_run(replace(folded(), into=())), [], ["nothing: it has no effect"]),
    ],
)
def test_however_a_command_ends(run: Run, failures: list[Any], words: list[str]) -> None:
    text = " ".join(lxml_html.document_fromstring(rendered(run, *failures)).text_content().split())
    for word in words:
        assert word in text


@pytest.mark.parametrize("name", ["a.module.with.a.rather.long.path.that.goes.on/node", HOSTILE + "<" * 100])
def test_a_huge_model_is_cut_short_and_says_so(name: str) -> None:
    run = full_run(folded(name, name), left(name, Reason.JOINED, name))
    run.findings = [Finding("unusual-epsilon", "note", f"the epsilon of {name}")] * 10_000
    facts = document(report_of(run))
    one, other = facts["affines"]
    many = [{**one, "id": f"A{index:03d}"} for index in range(10_000)]
    page = html.page({**facts, "affines": [*many, *({**other, "id": f"A{index}"} for index in range(10_000, 10_010))]})
    assert len(page.encode()) < 3_000_000
    text = lxml_html.document_fromstring(page).text_content()
    (shown,) = re.findall(r"([\d,]+) of 10,010 affines are shown", text)
    assert 300 < int(shown.replace(",", "")) < 5000
    assert page.count('<tr class="left">') == 10
    assert "and 9,800 more" in text


def contrast(one: str, other: str) -> float:
    """The contrast of two colours (WCAG 2.2, relative luminance)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_and_dark_and_print() -> None:
    assert (round(contrast("#000000", "#ffffff")), round(contrast("#777777", "#ffffff"), 2)) == (21, 4.48)
    themes = [
        dict(re.findall(r"(--\w+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", html.source("style.css"), re.DOTALL)
    ]
    assert len(themes) == 3
    for theme in themes:
        for name in ("--text", "--muted", "--accent", "--good", "--bad", "--odd"):
            for ground in ("--page", "--panel"):
                assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground)


def test_without_the_extra_it_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = demo_in(tmp_path)
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    assert main(["inspect", str(demo), "--report", str(tmp_path / "r.html"), f"--report={tmp_path / 'r.json'}"]) == 5
    told = capsys.readouterr()
    assert "an HTML report needs jinja2 and matplotlib" in told.err
    assert 'pip install "bnfold[html]"' in told.err
    assert "would fold" not in told.out
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["demo.onnx", "r.json"]


def test_the_command_line_writes_one(tmp_path: Path) -> None:
    demo, page = demo_in(tmp_path), tmp_path / "r.html"
    assert main(["inspect", str(demo), "--report", str(page), "-q"]) == 0
    assert not faults(page.read_text(encoding="utf-8"))


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_it_and_its_script_runs(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    files.write(report_of(rich_run(name=HOSTILE)), page)
    assert CHROMIUM is not None
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    command = [CHROMIUM, *options, f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in shown.stderr
    assert "3 of 3 rows" in shown.stdout
    assert (tmp_path / "page.png").stat().st_size > 20_000
