"""README runs: every command and every piece of Python in it, in order, in a folder that has only `models/`.

Output that README shows is output that the command prints; only measured numbers may differ: those with a decimal
point, an exponent or a unit of time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# What a test cannot run, because it installs or is itself the tests. Any other line is run.
NOT_RUN = {
    'pip install ".[all]"',
    "make demo",
    "make test",
    "make test-all",
    "make docs",
    "make check",
}
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/design.md")  # tests/test_ci.py has docs/ci.md


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and the line of the document on which it begins."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Session:
    """A command and the output that the document shows for it, without the lines that are only an ellipsis."""

    command: str
    shown: tuple[str, ...]


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", document, flags=re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], document.count("\n", 0, match.start()) + 1) for match in found]


def sessions(block: Block) -> list[Session]:
    """The commands of a console block, each with what it shows."""
    found: list[Session] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Session(line[2:], ()))
        elif line.strip() not in {"", "…"}:
            found[-1] = Session(found[-1].command, (*found[-1].shown, line))
    return found


MEASURED = re.compile(r"\d+\.\d+(e[-+]?\d+)?|\d+e[-+]?\d+|\d+(?= (?:s|ms|µs)\b)")


def shape(line: str) -> str:
    """The line without measured numbers and spacing, which depend on the machine and the width of the terminal."""
    return " ".join(MEASURED.sub("#", line).split())


def run(command: list[str], cwd: Path) -> str:
    """Everything that the command prints; it must succeed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)} exits with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text()


@pytest.mark.timeout(600)
def test_every_command_of_readme_succeeds_and_prints_what_it_shows(readme: str, workspace: Path) -> None:
    commands = [session for block in blocks(readme) if block.language == "console" for session in sessions(block)]
    assert len(commands) > 5
    for session in commands:
        printed = [shape(line) for line in run(["sh", "-c", session.command], workspace).splitlines()]
        for line in session.shown:
            assert shape(line) in printed, f"$ {session.command}\ndoes not print: {line}"


def test_every_python_block_of_readme_runs(readme: str, workspace: Path) -> None:
    programs = [block for block in blocks(readme) if block.language == "python"]
    assert programs
    for program in programs:
        run([sys.executable, "-W", "error", "-c", program.text], workspace)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_block_is_left_out(name: str, root: Path) -> None:
    """A shell line is a `$` command that is run, or one of those that cannot be; Python outside README would rot."""
    for block in blocks((root / name).read_text()):
        place = f"{name}:{block.line}"
        assert block.language in {"sh", "console", "python", "text"}, place
        assert name == "README.md" or block.language in {"sh", "text"}, place
        if block.language == "console":
            assert block.text.startswith("$ "), place
        if block.language == "sh":
            lines = {line.split("  ")[0].rstrip() for line in block.text.splitlines()}
            assert lines <= NOT_RUN, f"{place}: {lines - NOT_RUN}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str, root: Path) -> None:
    document = (root / name).read_text()
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", document, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", document):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (root / name).parent.joinpath(target).exists(), target


def test_the_first_screen_says_what_is_not_gained(readme: str) -> None:
    screen = readme[: readme.index("## The commands")]
    assert len(screen.splitlines()) <= 40
    for words in ("no latency", "nothing left to fold", "TensorRT", "CI:", "Python:"):
        assert words in screen


def test_blocks_and_sessions_are_read_rightly() -> None:
    document = "a\n```console\n$ one -x\nout 1\n…\n\n$ two\n```\n```python\nx = 1\n```\n"
    console, python = blocks(document)
    assert (console.language, console.line, python.text) == ("console", 2, "x = 1\n")
    assert sessions(console) == [Session("one -x", ("out 1",)), Session("two", ())]
    assert shape("took  1.25 s, 3e-12,  5 of 8") == shape("took 12 s, 1.5e-09, 5 of 8") == "took # s, #, 5 of 8"
    assert shape("5 of 8") != shape("6 of 8")


def test_a_command_that_fails_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="exits with 3"):
        run(["sh", "-c", "exit 3"], tmp_path)
