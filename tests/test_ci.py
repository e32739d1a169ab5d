"""bnfold where other programs call it: the pre-commit hook, the GitHub Action, and what `docs/ci.md` says of both.

The steps of the Action run in bash as the runner runs them: inputs become environment variables, nothing is pasted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from command_line import demo_in
from lxml import etree
from onnx import numpy_helper
from test_readme import Block, blocks, run, sessions, shape

from bnfold import precommit

ACCEPTED = ["--accept", "read-by-nonlinearity"]
EXPRESSION = re.compile(r"\$\{\{ *([\w.-]+) *\}\}")

Action = dict[str, Any]


# ── the hook ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hook(root: Path) -> dict[str, Any]:
    (only,) = yaml.safe_load((root / ".pre-commit-hooks.yaml").read_text())
    return only  # type: ignore[no-any-return]


def hooked(hook: dict[str, Any], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The hook's entry with flags and files behind it, as pre-commit calls it."""
    python, *entry = hook["entry"].split()
    assert python == "python"
    command = [sys.executable, *entry, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_hook_has_what_pre_commit_needs(hook: dict[str, Any]) -> None:
    assert {"id", "name", "entry", "language", "files"} <= set(hook)
    assert (hook["id"], hook["language"]) == ("bnfold-inspect", "python")
    assert re.search(hook["files"], "models/net.onnx")
    assert not re.search(hook["files"], "models/net.onnx.json")


def test_the_hook_judges_every_file(hook: dict[str, Any], tmp_path: Path) -> None:
    demo_in(tmp_path).rename(tmp_path / "a model.onnx")
    demo_in(tmp_path).rename(tmp_path / "-b.onnx")
    ran = hooked(hook, tmp_path, "a model.onnx", "-b.onnx")
    assert ran.returncode == 3
    assert ran.stderr.count("bnfold: 2 of 8 batch norms are left: 2 read-by-nonlinearity") == 2
    assert [line for line in ran.stdout.splitlines() if line.endswith(".onnx:")] == ["a model.onnx:", "-b.onnx:"]
    assert hooked(hook, tmp_path, *ACCEPTED, "-q", "a model.onnx", "-b.onnx").returncode == 0


def test_one_bad_file_among_good_ones_fails_the_hook(hook: dict[str, Any], tmp_path: Path) -> None:
    demo_in(tmp_path)
    (tmp_path / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    ran = hooked(hook, tmp_path, *ACCEPTED, "pointer.onnx", "demo.onnx")
    assert ran.returncode == 4
    assert "git lfs pull" in ran.stderr
    assert "6 of 8 batch norms would fold" in ran.stdout


def test_a_hook_without_files_has_nothing_to_do() -> None:
    assert precommit.main(ACCEPTED) == 0


# ── the Action ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def action(root: Path) -> Action:
    return yaml.safe_load((root / "action.yml").read_text())  # type: ignore[no-any-return]


def scripts(action: Action) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in action["runs"]["steps"] if "run" in step}


def bash(action: Action, step: str, folder: Path, python: Path | str, **given: str) -> subprocess.CompletedProcess[str]:
    """One `run:` of the Action, with these inputs, as a runner executes `shell: bash`."""
    known = {f"inputs.{name}": str(told.get("default", "")) for name, told in action["inputs"].items()}
    known |= {f"inputs.{name}": value for name, value in given.items()}
    known |= {
        "steps.python.outputs.python-path": str(python),
        "runner.temp": str(folder),
        "github.action_path": "/here",
    }
    environment = {
        name: EXPRESSION.sub(lambda match: known[match[1]], value)
        for name, value in scripts(action)[step]["env"].items()
    }
    paths = (environment.get("PYTHONPATH"), os.environ.get("PYTHONPATH"))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    script = folder / "step.sh"
    script.write_text(scripts(action)[step]["run"])
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
        cwd=folder,
        env={**os.environ, **environment, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "summary.md")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_no_input_is_pasted_into_a_script(action: Action) -> None:
    assert action["runs"]["using"] == "composite"
    assert len(scripts(action)) == 2
    for step in scripts(action).values():
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]


def test_the_installation_is_pinned_and_without_torch(action: Action, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    words = bash(action, "Install bnfold", tmp_path, python).stdout.splitlines()
    assert words[:3] == ["-m", "pip", "install"]
    assert words[-4:] == [str(tmp_path / "bnfold"), "--constraint", "/here/constraints.txt", "/here[cpu]"]


def test_the_action_inspects(action: Action, tmp_path: Path) -> None:
    demo_in(tmp_path)
    given = {"model": "demo.onnx", "args": "--fail-on-unfolded\n  --accept   not-read"}
    ran = bash(action, "Run bnfold", tmp_path, sys.executable, **given)
    assert ran.returncode == 3
    assert "::error file=demo.onnx,title=bnfold%3A policy::" in ran.stderr
    assert etree.parse(tmp_path / "bnfold.xml").getroot().get("failures") == "3"
    assert "## Batch norms" in (tmp_path / "summary.md").read_text()
    given["args"] = " ".join(["--fail-on-unfolded", *ACCEPTED])
    assert bash(action, "Run bnfold", tmp_path, sys.executable, **given).returncode == 0


def test_the_action_checks_against_a_reference(action: Action, tmp_path: Path) -> None:
    demo = demo_in(tmp_path)
    model = onnx.load(demo)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "stem.0.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    for name, code in (("demo.onnx", 0), ("wrong.onnx", 1)):
        given = {"model": name, "reference": "demo.onnx", "junit": f"{code}.xml"}
        assert bash(action, "Run bnfold", tmp_path, sys.executable, **given).returncode == code
        cases = etree.parse(tmp_path / f"{code}.xml").xpath("//testcase/@name")
        assert {"check", "L0", "L4"} <= set(cases)


@pytest.mark.parametrize("text", ["$(touch owned)", "`touch owned`", "; touch owned", '" && touch owned #', "*"])
@pytest.mark.parametrize("name", ["model", "reference", "args", "junit"])
def test_an_input_is_never_executed(name: str, text: str, action: Action, tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    ran = bash(action, "Run bnfold", tmp_path, tmp_path / "python", **{"model": "m.onnx", name: text})
    assert not (tmp_path / "owned").exists()
    words = text.split() if name == "args" else [text]
    assert set(words) <= set(ran.stdout.splitlines())


# ── the document ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def document(root: Path) -> list[Block]:
    return blocks((root / "docs" / "ci.md").read_text())


def test_what_the_document_shows_succeeds_in_order(document: list[Block], tmp_path: Path) -> None:
    """The commands print what is shown, and the test passes on the files that they leave."""
    commands = [session for block in document if block.language == "console" for session in sessions(block)]
    assert len(commands) > 4
    for session in commands:
        printed = [shape(line) for line in run(["sh", "-c", session.command], tmp_path).splitlines()]
        for line in session.shown:
            assert shape(line) in printed, f"$ {session.command}\ndoes not print: {line}"
    (program,) = (block for block in document if block.language == "python")
    (tmp_path / "test_example.py").write_text(program.text)
    assert "1 passed" in run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], tmp_path)


def test_the_configurations_are_of_this_repository(document: list[Block], action: Action, hook: dict[str, Any]) -> None:
    workflow, gitlab, hooks = (yaml.safe_load(block.text) for block in document if block.language == "yaml")
    steps = [step for step in workflow["jobs"]["models"]["steps"] if "/bnfold@" in step["uses"]]
    assert len(steps) == 2
    for step in steps:
        assert set(step["with"]) <= set(action["inputs"])
    assert gitlab["models"]["script"][-1].startswith("bnfold inspect models/net.onnx --fail-on-unfolded --report")
    assert gitlab["models"]["artifacts"]["reports"]["junit"] in gitlab["models"]["script"][-1]
    ((used,),) = (repository["hooks"] for repository in hooks["repos"])
    assert (used["id"], used["args"]) == (hook["id"], ACCEPTED)


def test_every_block_of_the_document_is_tested(document: list[Block]) -> None:
    assert {block.language for block in document} == {"console", "python", "yaml"}
