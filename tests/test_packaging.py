"""What people install: the metadata of the package, the files in it, and the forms of the repository.

The list of files is asked of the build backend itself, which is fast; a slow test builds the wheel and opens it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

# Every file of the package that is no Python. A new one is added here as well as there.
DATA = {
    "bnfold/py.typed",
    "bnfold/data/demo.onnx",
    "bnfold/reports/certificate.schema.json",
    "bnfold/reports/report.schema.json",
    *(f"bnfold/reports/page/{name}" for name in ("page.html", "script.js", "style.css")),
}
MINORS = range(11, 15)
HINT = re.compile(r"(?:bnfold|pip install ['\"]\.|REPOSITORY)\[([\w,]+)\]")


@pytest.fixture(scope="module")
def settings(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


# ── metadata ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def lacks(project: dict[str, Any], root: Path) -> list[str]:
    """What the `project` table does not say, or says wrongly, one sentence each."""
    classifiers = project.get("classifiers", [])
    needed = {
        "no description": 20 < len(project.get("description", "")) < 200,
        "no readme": (root / project.get("readme", "missing")).is_file(),
        "no licence as SPDX": project.get("license") == "Apache-2.0",
        "a licence twice": not any(each.startswith("License ::") for each in classifiers),
        "no licence file": [(root / name).is_file() for name in project.get("license-files", [])] == [True],
        "other Pythons than 3.11 to 3.14": [each for each in classifiers if re.search(r":: 3\.\d", each)]
        == [f"Programming Language :: Python :: 3.{minor}" for minor in MINORS],
        "another first Python": project.get("requires-python") == f">=3.{MINORS[0]}",
        "py.typed and no classifier": "Typing :: Typed" in classifiers,
        "another version installed": project.get("version") == version("bnfold"),
    }
    return [sentence for sentence, holds in needed.items() if not holds]


def test_the_metadata_are_complete(settings: dict[str, Any], root: Path) -> None:
    assert lacks(settings["project"], root) == []


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("description", "", "no description"),
        ("readme", "READ.md", "no readme"),
        ("license", "Apache", "no licence as SPDX"),
        ("license-files", [], "no licence file"),
        ("requires-python", ">=3.10", "another first Python"),
        ("version", "0.0.1", "another version installed"),
    ],
)
def test_a_wrong_entry_is_seen(name: str, value: Any, sentence: str, settings: dict[str, Any], root: Path) -> None:
    assert lacks({**settings["project"], name: value}, root) == [sentence]


@pytest.mark.parametrize(
    ("without", "added", "sentence"),
    [
        ("Typing :: Typed", [], "py.typed and no classifier"),
        ("Programming Language :: Python :: 3.12", [], "other Pythons than 3.11 to 3.14"),
        ("", ["License :: OSI Approved :: Apache Software License"], "a licence twice"),
    ],
)
def test_a_wrong_classifier_is_seen(
    without: str, added: list[str], sentence: str, settings: dict[str, Any], root: Path
) -> None:
    kept = [each for each in settings["project"]["classifiers"] if each != without]
    assert lacks({**settings["project"], "classifiers": kept + added}, root) == [sentence]


def unknown_extras(text: str, settings: dict[str, Any]) -> set[str]:
    """The extras that a text tells people to install and that there are not."""
    named = {name for match in HINT.finditer(text) for name in match[1].split(",")}
    return named - set(settings["project"]["optional-dependencies"])


def test_every_extra_that_is_named_exists(settings: dict[str, Any], root: Path) -> None:
    files = [*root.glob("bnfold/**/*.py"), *root.glob("docs/**/*.md"), *root.glob("*.md"), *root.glob("*.[yt]*ml")]
    named = [path for path in files if HINT.search(path.read_text())]
    assert {path.name for path in named} >= {"runtime.py", "files.py", "simplifying.py", "README.md", "action.yml"}
    assert not {path: unknown for path in named if (unknown := unknown_extras(path.read_text(), settings))}


@pytest.mark.parametrize("text", ["pip install 'bnfold[cuda]'", 'pip install ".[cuda]"', '"$REPOSITORY[cpu,cuda]"'])
def test_an_extra_that_there_is_not_is_seen(text: str, settings: dict[str, Any]) -> None:
    assert unknown_extras(text, settings) == {"cuda"}


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def packed(root: Path, settings: dict[str, Any]) -> set[str]:
    """The names of the files that a wheel made with these settings holds, without its metadata."""
    return {file.distribution_path for file in WheelBuilder(str(root), config=settings).recurse_included_files()}


def package(root: Path) -> set[str]:
    """The names of the files that a wheel must hold."""
    return DATA | {path.relative_to(root).as_posix() for path in (root / "bnfold").rglob("*.py")}


def test_the_wheel_is_the_package_and_its_data(settings: dict[str, Any], root: Path) -> None:
    assert packed(root, settings) == package(root)
    there = {path.relative_to(root).as_posix() for path in (root / "bnfold").rglob("*") if path.is_file()}
    assert {name for name in there if not name.endswith((".py", ".pyc"))} == DATA


@pytest.mark.parametrize(
    ("options", "lost", "found"),
    [
        ({"packages": ["bnfold"], "exclude": ["*.html"]}, {"bnfold/reports/page/page.html"}, None),
        ({"packages": ["bnfold", "tests"]}, set(), "tests/test_packaging.py"),
    ],
)
def test_a_file_too_few_or_too_many_is_seen(
    options: dict[str, Any], lost: set[str], found: str | None, settings: dict[str, Any], root: Path
) -> None:
    changed = {**settings, "tool": {"hatch": {"build": {"targets": {"wheel": options}}}}}
    names = packed(root, changed)
    assert package(root) - names == lost
    assert (names > package(root) and found in names) if found else names < package(root)


def test_the_sdist_holds_what_its_tests_need(root: Path) -> None:
    names = {file.distribution_path for file in SdistBuilder(str(root)).recurse_included_files()}
    needed = {"README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", "mkdocs.yml", "models/digits_resnet.pt"}
    assert package(root) | needed | {"tests/conftest.py", "docs/design.md"} <= names
    assert not [name for name in names if name.startswith((".venv", "build/", "dist/")) or "__pycache__" in name]


@pytest.mark.slow
def test_the_wheel_that_is_built_says_what_it_is(settings: dict[str, Any], root: Path, tmp_path: Path) -> None:
    """Built by the installed backend, so nothing is downloaded."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    project, files = settings["project"], zipfile.ZipFile(wheel)
    about = f"bnfold-{project['version']}.dist-info"
    written = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert set(files.namelist()) == package(root) | written
    assert wheel.stat().st_size < 1_000_000
    metadata = message_from_bytes(files.read(f"{about}/METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("bnfold", project["version"])
    assert (metadata["Summary"], metadata["License-Expression"]) == (project["description"], "Apache-2.0")
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata.get_all("Classifier") == project["classifiers"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert metadata.get_payload(decode=True) == (root / "README.md").read_bytes()
    assert metadata["Description-Content-Type"] == "text/markdown"


# ── the repository ───────────────────────────────────────────────────────────────────────────────────────────────────

SPEC = {
    "cff-version": str,
    "message": str,
    "type": str,
    "title": str,
    "abstract": str,
    "authors": list,
    "version": str,
    "date-released": str,
    "license": str,
    "keywords": list,
}


def uncitable(citation: dict[str, Any], settings: dict[str, Any], changelog: str) -> list[str]:
    """What is wrong with a citation: a key of another type or not of the format, or other facts than the package's."""
    project = settings["project"]
    found = [key for key in SPEC.keys() | citation.keys() if type(citation.get(key)) is not SPEC.get(key)]
    facts = {"title": "bnfold", "cff-version": "1.2.0", "type": "software", "abstract": project["description"]}
    facts |= {name: project[name] for name in ("version", "license", "keywords")}
    found += [key for key, fact in facts.items() if citation.get(key) not in (fact, None)]
    if f"## [{citation.get('version')}] - {citation.get('date-released')}\n" not in changelog:
        found.append("not a release of the changelog")
    return sorted(set(found))


@pytest.fixture(scope="module")
def citation(root: Path) -> dict[str, Any]:
    return yaml.safe_load((root / "CITATION.cff").read_text())  # type: ignore[no-any-return]


def test_the_citation_is_one_of_this_version(citation: dict[str, Any], settings: dict[str, Any], root: Path) -> None:
    assert uncitable(citation, settings, (root / "CHANGELOG.md").read_text()) == []
    assert all(set(author) == {"name"} for author in citation["authors"])


@pytest.mark.parametrize(
    ("changed", "sentences"),
    [
        ({"authors": "everyone"}, ["authors"]),
        ({"licence": "Apache-2.0"}, ["licence"]),
        ({"license": "MIT"}, ["license"]),
        ({"date-released": "2020-01-01"}, ["not a release of the changelog"]),
        ({"version": 0.1}, ["not a release of the changelog", "version"]),
    ],
)
def test_a_wrong_citation_is_seen(
    changed: dict[str, Any], sentences: list[str], citation: dict[str, Any], settings: dict[str, Any], root: Path
) -> None:
    assert uncitable({**citation, **changed}, settings, (root / "CHANGELOG.md").read_text()) == sentences


def faults(form: dict[str, Any]) -> list[str]:
    """What GitHub would not take in an issue form, by its documentation ("Syntax for issue forms")."""
    found = [key for key in ("name", "description", "body") if not form.get(key)]
    fields = [each for each in form.get("body", []) if each.get("type") != "markdown"]
    names = [each.get("id") for each in fields]
    kinds = {"input", "textarea", "dropdown", "checkboxes"}
    found += [f"no kind of field: {each.get('type')}" for each in fields if each.get("type") not in kinds]
    found += ["no label" for each in fields if not each.get("attributes", {}).get("label")]
    return found + (["a name twice or none"] if len({*names, None}) != len(names) + 1 else [])


def test_the_forms_are_ones_that_github_takes(root: Path) -> None:
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in root.glob(".github/ISSUE_TEMPLATE/*.yml")}
    assert set(forms) == {"bug", "feature"}
    assert not [fault for form in forms.values() for fault in faults(form)]
    asked = {each["id"]: each for each in forms["bug"]["body"] if "id" in each}
    assert {"version", "command", "report"} <= {name for name in asked if asked[name]["validations"]["required"]}
    assert "bnfold --version" in asked["version"]["attributes"]["description"]
    assert "--report" in asked["report"]["attributes"]["description"]


@pytest.mark.parametrize(
    ("form", "sentences"),
    [
        ({"name": "a", "description": "b"}, ["body"]),
        (
            {"name": "a", "description": "b", "body": [{"type": "text", "id": "x"}]},
            ["no kind of field: text", "no label"],
        ),
        (
            {"name": "a", "description": "b", "body": [{"type": "input", "attributes": {"label": "L"}}]},
            ["a name twice or none"],
        ),
    ],
)
def test_a_wrong_form_is_seen(form: dict[str, Any], sentences: list[str]) -> None:
    assert faults(form) == sentences
