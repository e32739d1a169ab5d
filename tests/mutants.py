"""Wrong folds, on purpose: `python tests/mutants.py` breaks the fold code in one place at a time and runs the tests.

A mutant is one line of the fold code replaced by a plausible mistake. Each must turn the suite red; the table says which
test saw it first. The tree is copied first: nothing here changes the working copy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITE = (
    "tests/test_algebra.py",
    "tests/test_folding.py",
    "tests/test_onnx_frontend.py",
    "tests/test_torch_frontend.py",
)


@dataclass(frozen=True)
class Mutant:
    """One plausible mistake: in `file`, the first `before` becomes `after`."""

    name: str
    file: str
    before: str
    after: str


MUTANTS = (
    Mutant("epsilon forgotten", "algebra.py", "np.sqrt(variance + epsilon)", "np.sqrt(variance)"),
    Mutant("sqrt(var) + eps", "algebra.py", "np.sqrt(variance + epsilon)", "(np.sqrt(variance) + epsilon)"),
    Mutant("mean not scaled", "algebra.py", "beta - mean * scale", "beta - mean"),
    Mutant("bias not scaled", "algebra.py", "affine.scale * before.bias + affine.shift", "before.bias + affine.shift"),
    Mutant("beta ignored", "algebra.py", "affine.scale * before.bias + affine.shift", "affine.scale * before.bias"),
    Mutant("forward shift ignored", "algebra.py", "before.bias + moved", "before.bias"),
    Mutant(
        "output scale on the input axis",
        "algebra.py",
        "scale = affine.scale.reshape(self.groups, -1, 1, 1)",
        "scale = affine.scale.reshape(self.groups, 1, -1, 1)",
    ),
    Mutant("other readers not asked", "rules.py", "if reader := _other_reader(graph, value, node):", "if False:"),
    Mutant(
        "producer's axis not compared",
        "rules.py",
        "if op.out_axis != affine.axis or op.out_channels != affine.channels:",
        "if op.out_channels != affine.channels:",
    ),
    Mutant(
        "reader's axis not compared",
        "rules.py",
        "if op.in_axis != affine.axis or op.in_channels != affine.channels:",
        "if op.in_channels != affine.channels:",
    ),
    Mutant("shift crosses the padding", "rules.py", "if op.bordered and affine.shifts:", "if False:"),
    Mutant("fits not asked", "rules.py", "if reason := graph.fits(producer, folded):", "if False:"),
    Mutant(
        "readers behind a vanished affine forgotten",
        "folding.py",
        "values.append(self.graph.result(use[0]))",
        "pass",
    ),
    Mutant("pending operator forgotten", "folding.py", "if node in self.pending:", "if False:"),
)


def main() -> int:
    """Run the mutants named by number on the command line, or all; print a table; 1 if one survived."""
    chosen = [MUTANTS[int(word)] for word in sys.argv[1:]] or list(MUTANTS)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder))
        print("| mutant | caught by |\n| --- | --- |", flush=True)
        verdicts = []
        for mutant in chosen:
            verdicts.append(caught_by(mutant, tree))
            print(f"| {mutant.name} | {verdicts[-1] or 'NOBODY'} |", flush=True)
    print(f"\n{sum(map(bool, verdicts))} of {len(verdicts)} mutants caught")
    return 0 if all(verdicts) else 1


def copy_tree(folder: Path) -> Path:
    """The package, its tests and models, where they may be broken."""
    for name in ("bnfold", "tests", "models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def caught_by(mutant: Mutant, tree: Path) -> str | None:
    """Break one place, run the suite until the first failure, mend it again: the name of the test that failed."""
    file = tree / "bnfold" / mutant.file
    sound = file.read_text()
    if mutant.before not in sound:
        raise SystemExit(f"{mutant.name}: {mutant.file} no longer holds {mutant.before!r}")
    file.write_text(sound.replace(mutant.before, mutant.after, 1))
    try:
        return first_failure(tree)
    finally:
        file.write_text(sound)


def first_failure(tree: Path) -> str | None:
    """The first test of the suite that fails in this tree; None if all pass."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *SUITE]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else f"pytest exit {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
