"""The documentation runs: every command and every piece of Python in `docs/`, page by page, in one process.

A page is a session: its blocks share a folder and the names of the Python before them. What a command or a program is
shown to print, it prints; measured numbers may differ. `README.md` and `docs/ci.md` have tests of their own.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import finding_page
import flag_page
import pytest
import typer
import yaml
from reason_pages import index, page
from test_readme import Session, shape

from bnfold.cli import main
from bnfold.graph import Reason
from bnfold.reports.conditions import FOUND_REASONS, Condition
from bnfold.reports.json import schema

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Pages that a program writes, and two that other tests read: test_ci.py and test_readme.py.
ELSEWHERE = {
    "alarms.md",
    "attacks.md",
    "benchmarks.md",
    "blind.md",
    "branches.md",
    "power.md",
    "layers.md",
    "wrong_folds.md",
    "zoo.md",
    "ci.md",
    "design.md",
}
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.name not in ELSEWHERE)
# Pages whose examples import torch, or start processes.
SLOW = {
    "tutorial.md",
    "cli.md",
    "comparison.md",
    "statistics.md",
    "how-to/half.md",
    "how-to/pre-commit.md",
    "how-to/python.md",
    "how-to/recalibrate.md",
    "how-to/timm.md",
    "how-to/yolo.md",
    "reasons/hooked.md",
    "reasons/mutated-in-place.md",
}
# What no test can do, as the page itself says in the title of the block.
NOT_RUN = re.compile(r"not run in the tests: (needs timm|needs 5 GB|installs a git hook)")
FENCE = re.compile(r'^```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title (a file that the page uses, or why it is not run), and its text."""

    language: str
    title: str
    text: str

    @property
    def runs(self) -> bool:
        return not NOT_RUN.fullmatch(self.title)


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(match[1], match[2] or "", match[3]) for match in FENCE.finditer(document)]


def sessions(text: str) -> Iterator[Session]:
    """The commands of a console block, each with what it shows."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield Session(command, tuple(line for line in shown if line.strip() not in {"", "…"}))


def told(command: str) -> str:
    """Everything that a command line prints, which must be one of bnfold or of Python, and succeed."""
    program, *words = shlex.split(command, comments=True)
    if program == "python":
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"$ {command}\n{done.stderr}"
        return done.stdout
    assert program == "bnfold", f"$ {command}"
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = main(words)
    assert code == 0, f"$ {command} exits with {code}:\n{printed.getvalue()}"
    return printed.getvalue()


def must_print(printed: str, shown: tuple[str, ...], source: str) -> None:
    """Each shown line is a printed one, but for measured numbers."""
    lines = {shape(line) for line in printed.splitlines()}
    for line in shown:
        assert shape(line) in lines, f"{source}\ndoes not print: {line}\nbut:\n{printed}"


def play(document: str, folder: Path) -> int:
    """Run a page; the number of its commands and programs."""
    names: dict[str, Any] = {"__name__": "docs"}
    printed, count = "", 0
    for block in blocks(document):
        if block.language == "console" and block.runs:
            for session in sessions(block.text):
                must_print(told(session.command), session.shown, session.command)
                count += 1
        elif block.language == "python":
            program = compile(block.text, block.title or "<docs>", "exec")
            if block.title and block.runs:
                (folder / block.title).write_text(block.text)
            elif block.runs:
                output = StringIO()
                with redirect_stdout(output):
                    exec(program, names)
                printed, count = output.getvalue(), count + 1
        elif block.language == "text":
            must_print(printed, tuple(filter(str.strip, block.text.splitlines())), document[:40])
    return count


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PAGES]
)
def test_a_page_does_what_it_says(name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    document = (DOCS / name).read_text()
    written = [block for block in blocks(document) if block.language == "yaml" or not block.runs]
    assert play(document, workspace) or written, "a page without an example"


def test_every_block_is_of_a_kind_that_is_run_or_read() -> None:
    assert set(PAGES) >= SLOW
    for name in PAGES:
        document = (DOCS / name).read_text()
        assert {block.language for block in blocks(document)} <= {"console", "python", "text", "yaml"}, name
        assert len(re.findall(r"^\s*```", document, re.MULTILINE)) == 2 * len(blocks(document)), name
        for block in blocks(document):
            assert "not run" not in block.title or not block.runs, f"{name}: {block.title}"


def nameless(document: str) -> list[str]:
    """The heads of tables in which a column has no name: a reader who hears the page is told none."""
    rule = re.compile(r"\|(\s*:?-+:?\s*\|)+")
    heads = [head for head, below in pairwise(document.splitlines()) if rule.fullmatch(below)]
    return [head for head in heads if not all(map(str.strip, head.strip()[1:-1].split("|")))]


def test_every_column_of_a_table_has_a_name() -> None:
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    assert {page.name: found for page in pages if (found := nameless(page.read_text()))} == {}
    assert nameless("| | a |\n|---|--:|\n| x | 1 |") == ["| | a |"]
    assert nameless("| b | a |\n|---|--:|\n| | 1 |") == []


def test_few_blocks_are_not_run() -> None:
    left = [name for name in PAGES for block in blocks((DOCS / name).read_text()) if not block.runs]
    assert len(left) <= 5, left


def test_configurations_are_of_this_repository() -> None:
    """Every step that uses the Action gives inputs that it has, and every hook is one that pre-commit finds here."""
    root, found = DOCS.parent, set()
    inputs = yaml.safe_load((root / "action.yml").read_text())["inputs"]
    hooks = {hook["id"] for hook in yaml.safe_load((root / ".pre-commit-hooks.yaml").read_text())}
    for name in PAGES:
        for block in blocks((DOCS / name).read_text()):
            if block.language == "yaml":
                kind, given, known = configured(yaml.safe_load(block.text), set(inputs), hooks)
                assert given, f"{name}: nothing of bnfold"
                assert given <= known, f"{name}: {given - known}"
                found.add(kind)
    assert found == {"github", "gitlab", "pre-commit"}


def configured(document: dict[str, Any], inputs: set[str], hooks: set[str]) -> tuple[str, set[str], set[str]]:
    """The service of a configuration, the names that it uses of this repository, and those that there are."""
    if "repos" in document:
        return "pre-commit", {hook["id"] for each in document["repos"] for hook in each["hooks"]}, hooks
    if "jobs" in document:
        steps = [step for job in document["jobs"].values() for step in job["steps"]]
        used = [set(step["with"]) for step in steps if "/bnfold@" in step.get("uses", "")]
        return "github", set().union(*used), inputs
    lines = [shlex.split(line) for job in document.values() for line in job.get("script", [])]
    return "gitlab", {words[1] for words in lines if words[0] == "bnfold"}, {"inspect", "check"}


# ── the pages of the reasons ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_index_of_the_reasons_is_up_to_date() -> None:
    assert (DOCS / "reasons" / "index.md").read_text() == index(), "python tests/reason_pages.py"


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_a_reason_has_its_page_and_an_example_that_gets_it(reason: Reason) -> None:
    """The head is that of `Reason`; what the example prints, which the test above holds it to, has the code in it."""
    written = (DOCS / "reasons" / f"{reason.code}.md").read_text()
    assert page(reason, written) == written, "python tests/reason_pages.py"
    program, shown = blocks(written)
    assert (program.language, shown.language) == ("python", "text")
    assert reason.code in shown.text.split()


def test_no_page_is_of_a_reason_that_is_gone() -> None:
    pages = {path.stem for path in (DOCS / "reasons").glob("*.md")}
    assert pages == {"index", *(reason.code for reason in Reason)}


# ── the pages that say everything of something ───────────────────────────────────────────────────────────────────────


def test_the_page_of_the_flags_is_up_to_date() -> None:
    written = (DOCS / "flags.md").read_text()
    assert flag_page.page(written, flag_page.commands()) == written, "python tests/flag_page.py"


def test_the_page_of_the_findings_is_up_to_date() -> None:
    assert set(finding_page.SEVERITIES) == {*Condition, *FOUND_REASONS}
    written = (DOCS / "findings.md").read_text()
    assert finding_page.page(written) == written, "python tests/finding_page.py"


def test_a_finding_is_as_grave_as_its_page_says() -> None:
    told = {each: severity for each, severity in finding_page.SEVERITIES.items() if isinstance(each, Condition)}
    assert severities(sources()) == told


def sources() -> str:
    """Where findings are made."""
    folder = DOCS.parent / "bnfold" / "reports"
    return "".join((folder / f"{name}.py").read_text() for name in ("findings", "statistics", "baseline"))


def severities(source: str) -> dict[Condition, str]:
    """How grave a piece of the package makes each finding; in words, where that depends on the channels."""
    named = {f"Condition.{each.name}": each for each in Condition}
    named |= {"REGRESSED": Condition.BASELINE_REGRESSED, "NEW": Condition.BASELINE_NEW, "GONE": Condition.BASELINE_GONE}
    words = {"_by_share": finding_page.BY_SHARE, "_by_part": finding_page.BY_PART}
    found = re.findall(r'(?:Remark|[fF]inding)\(([\w.]+), "?(\w+)', source)
    return {named[name]: words.get(severity, severity) for name, severity in found if name in named}


def test_the_page_of_the_report_names_every_key() -> None:
    assert list(unnamed(schema(), (DOCS / "report.md").read_text())) == []


def unnamed(whole: dict[str, Any], document: str) -> Iterator[str]:
    """The keys that a schema describes and a page has no row for, each in the section of its top-level key."""
    sections = re.split(r"^## ", document, flags=re.MULTILINE)
    (run,) = (text for text in sections if text.startswith("The run"))
    for key, part in whole["properties"].items():
        own = [text for text in sections if f"`{key}`" in text.partition("\n")[0]]
        inside = list(keys(part, whole["$defs"]))
        paths = inside if own else [key, *(f"{key}.{path}" for path in inside)]
        rows = list(table_rows(own[0] if own else run))
        missing = [path for path in paths if not any(has_row(path, *row) for row in rows)]
        yield from (f"{key}.{path}" if own else path for path in missing)


def table_rows(text: str) -> Iterator[tuple[set[str], set[str]]]:
    """Per row of the tables, the names in its first cell, and those in all of them."""
    for first, others in re.findall(r"^\|([^|]+)\|(.+)$", text, re.MULTILINE):
        here, anywhere = (set(re.findall(r"`([\w.]+)`", cells)) for cells in (first, first + others))
        yield here, anywhere


def has_row(path: str, first: set[str], names: set[str]) -> bool:
    """Whether a row is about this key: itself, a key of it, or what holds it with its name in the text."""
    parent, _, last = path.rpartition(".")
    return path in first or any(name.startswith(f"{path}.") for name in first) or (parent in first and last in names)


def keys(part: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    """The keys of an object, or of those in a list, and the keys in these, with dots between them."""
    for reference in [part, *part.get("oneOf", []), *part.get("allOf", [])]:
        if "$ref" in reference:
            yield from keys(definitions[reference["$ref"].rpartition("/")[2]], definitions)
        elif reference is not part:
            yield from keys(reference, definitions)
    yield from keys(part["items"], definitions) if "items" in part else ()
    for key, inner in part.get("properties", {}).items():
        yield key
        yield from (f"{key}.{more}" for more in keys(inner, definitions))


# ── what the checks reject ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("```python\nprint('one')\n```\n```text\ntwo\n```\n", "does not print: two"),
        ("```console\n$ bnfold explain joined\nnothing of the kind\n```\n", "does not print: nothing"),
        ("```console\n$ bnfold explain no-such-code\n```\n", "exits with 2"),
        ("```console\n$ rm -r models\n```\n", "rm -r models"),
        ('```python title="a.py"\nraise SystemExit(3)\n```\n```console\n$ python a.py\n```\n', "python a.py"),
    ],
)
def test_a_page_that_does_not_do_what_it_says_is_seen(document: str, message: str, workspace: Path) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        play(document, workspace)


def test_python_that_fails_is_seen_even_where_it_is_not_run(workspace: Path) -> None:
    with pytest.raises(NameError):
        play("```python\nmissing\n```\n", workspace)
    with pytest.raises(SyntaxError):
        play('```python title="not run in the tests: needs timm"\nimport\n```\n', workspace)


def test_a_title_that_is_no_excuse_is_none() -> None:
    (block,) = blocks('```python title="not run in the tests: too lazy"\n1\n```\n')
    assert block.runs


def test_a_configuration_with_an_unknown_input_is_seen() -> None:
    text = "jobs: {a: {steps: [{uses: OWNER/bnfold@v1, with: {modell: x}}]}}"
    assert configured(yaml.safe_load(text), {"model"}, set()) == ("github", {"modell"}, {"model"})


def test_a_head_that_was_edited_is_seen() -> None:
    written = (DOCS / "reasons" / "joined.md").read_text()
    assert page(Reason.JOINED, written.replace(Reason.JOINED.remedy, "give up")) == written


def test_a_flag_or_command_that_is_new_or_told_otherwise_is_seen() -> None:
    def changed(
        seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Another text.")] = 0,
    ) -> None:
        """Another command."""

    written, real = (DOCS / "flags.md").read_text(), flag_page.commands()
    for others in (real | {"more": changed}, real | {"demo": changed}, {**real, "demo": real["explain"]}):
        assert flag_page.page(written, others) != written
    assert flag_page.page(written.replace("The seed of the inputs.", "A number."), real) == written


def test_a_finding_that_is_told_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    written = (DOCS / "findings.md").read_text()
    assert finding_page.page(written.replace(Condition.SCALE_SPREAD.remedy, "give up")) == written
    monkeypatch.setattr(Condition.SCALE_SPREAD, "remedy", "give up")
    assert finding_page.page(written) != written


def test_a_finding_that_is_graver_than_its_page_says_is_seen() -> None:
    source = sources().replace('Condition.SCALE_SPREAD, "note"', 'Condition.SCALE_SPREAD, "error"')
    assert severities(source)[Condition.SCALE_SPREAD] != finding_page.SEVERITIES[Condition.SCALE_SPREAD]


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ("| `reason.blocker` |", "affines.reason.blocker"),
        ("| `headline` |", "headline"),
        ("| `macs_saved` |", "merges.macs_saved"),
        ("| `contenders.batches` |", "bench.contenders.batches"),
    ],
)
def test_a_key_that_the_page_of_the_report_lacks_is_seen(row: str, key: str) -> None:
    document = (DOCS / "report.md").read_text()
    lines = [line for line in document.splitlines() if not line.startswith(row)]
    assert len(lines) < len(document.splitlines())
    assert key in list(unnamed(schema(), "\n".join(lines)))
