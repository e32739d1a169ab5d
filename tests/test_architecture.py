"""Arrows point down: no room imports one above it, and each framework is the affair of one room.

The checks read source as text, so an import in a function or for types alone counts like any other. What is loaded in
fact is seen from a fresh process.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

# From the bottom up: a room may import those of the earlier lines, and none of its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("children", "errors", "origin", "window"),
    ("display",),
    ("algebra", "evidence", "model", "moments"),
    ("graph",),
    ("travel", "rules", "combining"),
    ("lowering", "undoing"),
    ("merging",),
    ("outcome", "plan"),
    ("folding",),
    ("frontends", "frontends.onnx", "frontends.torch", "runtime", "verify"),
    ("benchmark", "loading"),
    ("saving",),
    ("run",),
    ("dialects", "reports"),
    ("programs", "verification", "simplifying"),
    ("measurement", "stages"),
    ("checking",),
    ("pipeline",),
    ("api",),
    ("testing", "cli"),
    ("pytest_plugin", "precommit"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# Who may import what ships with an extra, or is slow to import, or has a neighbour room of its own.
OWNERS = {
    "torch": {"frontends.torch", "loading"},
    "safetensors": {"loading"},
    "onnx_ir": {"frontends.onnx"},
    "onnxruntime": {"runtime"},
    "onnxsim": {"simplifying"},
    "typer": {"cli"},
    "jinja2": {"reports"},
    "markupsafe": {"reports"},
    "matplotlib": {"reports"},
}
NUMPY_ONLY = {room for rooms in LAYERS[: LEVEL["folding"] + 1] for room in rooms}


def room_of(module: str) -> str:
    """`bnfold.frontends.onnx.lenses` is in the room `frontends.onnx`, `bnfold` itself in `api`."""
    parts = [part for part in module.split(".")[1:] if part != "__init__"]
    if not parts:
        return "api"
    if parts[0] == "frontends":
        return ".".join(parts[:2])
    return "cli" if parts[0] == "__main__" else parts[0]


def imports(module: str, source: str) -> Iterator[str]:
    """The full name of everything that the source imports; `from bnfold import saving` imports `bnfold.saving`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (package, node.module) if part)
            submodules = base in {"bnfold", "bnfold.frontends"}
            yield from (f"{base}.{alias.name}" for alias in node.names) if submodules else (base,)


def offences(module: str, source: str) -> list[str]:
    """What the module imports and may not, one sentence each."""
    room = room_of(module)
    if room not in LEVEL:
        return [f"{module}: the room {room!r} has no place in LAYERS"]
    found = []
    for name in imports(module, source):
        top = name.split(".")[0]
        if top in OWNERS and room not in OWNERS[top]:
            found.append(f"{module} imports {name}, which only {sorted(OWNERS[top])} may")
        if room in NUMPY_ONLY and top not in sys.stdlib_module_names | {"numpy", "bnfold"}:
            found.append(f"{module} imports {name}, and needs nothing but numpy")
        if top == "bnfold" and not _below(_existing(name), room):
            found.append(f"{module} imports {name}, which is not below it")
    return found


def _below(other: str, room: str) -> bool:
    return other == room or LEVEL.get(other, len(LAYERS)) < LEVEL[room]


def _existing(name: str) -> str:
    """The room of what was imported: `bnfold.__version__` and `bnfold.fold` are names in the API, not rooms."""
    room = room_of(name)
    return room if room in LEVEL else "api"


def sources(root: Path) -> list[Path]:
    return sorted((root / "bnfold").rglob("*.py"))


def test_no_room_imports_one_above_it(root: Path) -> None:
    found = []
    for path in sources(root):
        found += offences(".".join(path.relative_to(root).with_suffix("").parts), path.read_text())
    assert len(sources(root)) > 10
    assert not found, "\n".join(found)


OFFENDERS = [
    ("bnfold.algebra", "from bnfold.graph import Reason", "not below it"),
    ("bnfold.rules", "from bnfold import folding", "not below it"),
    ("bnfold.rules", "import bnfold.folding", "not below it"),
    ("bnfold.rules", "def f():\n    from bnfold.folding import Plan", "not below it"),
    ("bnfold.graph", "if TYPE_CHECKING:\n    from bnfold.folding import Plan", "not below it"),
    ("bnfold.graph", "from .folding import Plan", "not below it"),
    ("bnfold.graph", "from . import folding", "not below it"),
    ("bnfold.frontends.onnx.graph", "from ..torch import capture", "not below it"),
    ("bnfold.frontends.onnx", "from bnfold.frontends import torch", "not below it"),
    ("bnfold.verify.check", "from bnfold.frontends.onnx import read", "not below it"),
    ("bnfold.verify.check", "from bnfold.runtime import session", "not below it"),
    ("bnfold.benchmark.child", "from bnfold.cli import main", "not below it"),
    ("bnfold.benchmark.child", "from bnfold.frontends import onnx\nfrom bnfold.pipeline import bench", "not below it"),
    ("bnfold.pipeline", "from bnfold import fold", "not below it"),
    ("bnfold.rules", "from bnfold import fold", "not below it"),
    ("bnfold.frontends.onnx.graph", "import torch", "which only"),
    ("bnfold.cli", "from torch import nn", "which only"),
    ("bnfold.verify.check", "def f():\n    import onnxruntime as ort", "which only"),
    ("bnfold.saving", "import onnx_ir as ir", "which only"),
    ("bnfold.cli", "from matplotlib.figure import Figure", "which only"),
    ("bnfold.algebra", "import onnx", "nothing but numpy"),
    ("bnfold.attic", "import json", "no place in LAYERS"),
]


@pytest.mark.parametrize(("module", "source", "sentence"), OFFENDERS)
def test_an_offender_is_seen(module: str, source: str, sentence: str) -> None:
    found = offences(module, source)
    assert len(found) == 1
    assert sentence in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bnfold.folding", "import numpy as np\nfrom bnfold.rules import Step\nfrom bnfold.errors import Exit"),
        ("bnfold.frontends.onnx.graph", "import onnx_ir\nfrom bnfold.frontends.onnx.lenses import read"),
        ("bnfold.frontends.torch.__init__", "import torch\nfrom .graph import TorchGraph"),
        ("bnfold.cli", "import typer\nfrom bnfold import __version__, pipeline"),
        ("bnfold.__main__", "from bnfold.cli import main"),
        ("bnfold.reports.json", "import torchmetrics_is_not_torch"),
    ],
)
def test_a_decent_module_passes(module: str, source: str) -> None:
    assert offences(module, source) == []


# what is loaded in fact


def loaded_modules(*arguments: str, cwd: Path) -> set[str]:
    """Every module that a fresh interpreter imports while it runs these arguments, which must succeed."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return imported(done.stderr)


def imported(report: str) -> set[str]:
    """The module names of an `-X importtime` report."""
    return set(re.findall(r"^import time: .*\| +([\w.]+)$", report, flags=re.MULTILINE))


def frameworks(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules} & set(OWNERS)


def test_the_import_report_is_read_rightly(tmp_path: Path) -> None:
    report = (
        "import time: self [us] | cumulative | imported package\nimport time:       220 |        220 |   torch.nn\n"
    )
    assert imported(report) == {"torch.nn"}
    assert frameworks(imported(report)) == {"torch"}
    assert "fractions" in loaded_modules("-c", "import fractions", cwd=tmp_path)
    assert "fractions" not in loaded_modules("-c", "pass", cwd=tmp_path)


def test_importing_bnfold_loads_no_framework(tmp_path: Path) -> None:
    modules = loaded_modules("-c", "import bnfold", cwd=tmp_path)
    assert "bnfold" in modules
    assert not frameworks(modules)


def test_help_loads_no_framework(tmp_path: Path) -> None:
    modules = loaded_modules("-m", "bnfold", "--help", cwd=tmp_path)
    assert "bnfold.cli" in modules
    assert frameworks(modules) <= {"typer"}


def test_work_on_onnx_never_loads_torch(tmp_path: Path, root: Path) -> None:
    demo = tmp_path / "demo.onnx"
    demo.write_bytes((root / "bnfold" / "data" / "demo.onnx").read_bytes())
    work = "from bnfold.cli import main; main(['fold', 'demo.onnx', '-o', 'out.onnx'])"  # in this process
    modules = loaded_modules("-c", work, cwd=tmp_path)
    assert "onnx_ir" in frameworks(modules)
    assert "torch" not in frameworks(modules)
    assert (tmp_path / "out.onnx").exists()


# what is shipped

PRIVATE_PATH = re.compile(rb"(?<![\w.~-])/(?:home|root|work|Users)/[\w.]|\b[A-Z]:\\\\?Users\b")


def shipped(root: Path) -> Iterator[Path]:
    """Every file of the repository that is not made by running it."""
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name for name in folders if name in {".ci", ".github"} or not name.startswith((".", "__", "build", "dist"))
        ]
        yield from (Path(folder, name) for name in files if name != ".git")  # where another copy has the history


def test_no_file_names_a_path_of_the_machine_that_made_it(root: Path) -> None:
    found = [str(path.relative_to(root)) for path in shipped(root) if PRIVATE_PATH.search(path.read_bytes())]
    assert not found


def test_a_private_path_is_seen() -> None:
    user = b"us" + b"er"
    for path in (b"/home/" + user, b'open("/root/' + user + b'")', b"C:" + b"\\Users\\" + user, b"/Users/" + user):
        assert PRIVATE_PATH.search(path), path
    for path in (b"models/work/" + user, b"https://example.org/home/", b"/usr/bin/env", b"~/work/" + user):
        assert not PRIVATE_PATH.search(path), path


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, object]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


def test_every_dependency_has_one_tested_version(root: Path, project: dict[str, object]) -> None:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = {_plain(Requirement(line)): Requirement(line) for line in lines}
    assert len(pins) == len(lines)
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins.values())
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    wanted = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]  # type: ignore[misc]
    for requirement in map(Requirement, wanted):
        if requirement.name == "bnfold":
            continue
        pin = str(pins[_plain(requirement)].specifier).removeprefix("==")
        assert requirement.specifier.contains(pin), f"{requirement} excludes the tested version {pin}"


def _plain(requirement: Requirement) -> str:
    return requirement.name.lower().replace("_", "-")


def test_the_version_is_said_alike_everywhere(root: Path, project: dict[str, object]) -> None:
    assert version("bnfold") == project["version"]
    assert f"## [{project['version']}] - " in (root / "CHANGELOG.md").read_text()
