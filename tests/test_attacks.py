"""Every attack gets its code, its exit code and one sentence, and reaches for nothing; a watch that sees nothing would
be no evidence, so it is shown what it must see."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from attacks import archives, onnx_files
from attacks.attack import INSIDE, OUTSIDE, SECRET, Attack
from attacks.running import GROUPS, Result, job, opens, results, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the watch over what C++ opens is the kernel's")


@pytest.mark.parametrize("kind", GROUPS)
def test_every_attack_gets_its_sentence_and_nothing_else(kind: str, tmp_path: Path) -> None:
    found = results(kind, tmp_path)
    complaints = {attack.name: what_is_wrong(attack, found[attack.name]) for attack in GROUPS[kind]}
    assert [f"{name}: {complaint}" for name, complaint in complaints.items() if complaint] == []


def what_is_wrong(attack: Attack, result: Result) -> str | None:
    """The first thing that is not as it must be."""
    sentence = result.stderr.strip().splitlines()[0] if result.stderr.strip() else ""
    code = None if result.report is None or result.report["error"] is None else result.report["error"]["code"]
    expected = 0 if attack.code is None else attack.exit_code
    checks = {
        f"exit code {result.exit_code}: {result.stderr[-300:]}": result.exit_code == expected,
        f"code {code}: {sentence}": code == attack.code,
        f"says {sentence}": attack.says in sentence,
        "a traceback": "Traceback" not in result.stderr,
        f"control characters: {sentence!r}": all(line.isprintable() for line in result.stderr.splitlines()),
        f"opened {result.opened}": not result.opened,
        f"started {result.started}": not result.started,
        f"imported {result.imported}": not result.imported,
        f"left {result.left}": result.left == (["out.onnx"] if attack.code is None else []),
    }
    return next((complaint for complaint, passed in checks.items() if not passed), None)


def test_a_linked_cache_is_read_where_it_is_allowed(tmp_path: Path) -> None:
    for folder in (INSIDE, OUTSIDE):
        (tmp_path / folder).mkdir()
    (tmp_path / OUTSIDE / SECRET).write_bytes(onnx_files.NUMBERS.tobytes())
    path = onnx_files.linked(tmp_path, onnx_files.symbolic)
    words = ["inspect", path, "--allow-linked-data"]
    jobs = [job(folder, tmp_path, *words, tmp_path / folder) for folder in (INSIDE, OUTSIDE)]
    refused, read = run(jobs, tmp_path)
    assert refused["exit_code"] == 4
    assert f"--allow-linked-data {tmp_path / OUTSIDE}" in refused["stderr"]
    assert read["exit_code"] == 0


def test_names_are_cleaned_before_they_reach_anybody(tmp_path: Path) -> None:
    (tmp_path / INSIDE).mkdir()
    reports = [tmp_path / f"report.{suffix}" for suffix in ("md", "xml")]
    words = [word for report in reports for word in ("--report", report)]
    (found,) = run([job("speaking", tmp_path, "inspect", onnx_files.speaking(tmp_path), *words)], tmp_path)
    texts = [found["stdout"], *(report.read_text(encoding="utf-8") for report in reports)]
    assert all("owned" in text for text in texts), "the names are shown"
    assert all(line.isprintable() for text in texts for line in text.splitlines())


def test_the_watch_sees_what_it_must(tmp_path: Path) -> None:
    (tmp_path / INSIDE).mkdir()
    (tmp_path / SECRET).write_bytes(b"secret")
    (tmp_path / INSIDE / "code.py").write_text(
        "import colorsys, os, socket\n"
        f"open({str(tmp_path / SECRET)!r})\n"
        "os.system('true')\n"
        "def net():\n    raise ValueError('no such net')\n",
        encoding="utf-8",
    )
    archive = archives.weights(tmp_path)
    words = ["inspect", archive, "--arch", "code:net", "--app-dir", tmp_path / INSIDE, "-i", "1,3,8,8"]
    with opens(tmp_path) as seen:
        (found,) = run([job("code", tmp_path / INSIDE, *words)], tmp_path)
    assert found["opened"] == [str(tmp_path / SECRET)]
    assert SECRET in seen
    assert found["started"] == ["os.system"]
    assert "colorsys" in found["imported"]
