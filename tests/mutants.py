"""Wrong folds, on purpose: `python tests/mutants.py` breaks the fold code in one place at a time and runs the tests.

A mutant is one line of the fold code replaced by a plausible mistake. Each must turn the suite red; the table says
which test saw it first. The tree is copied first: nothing here changes the working copy.
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
    Mutant("statistics not looked at", "graph.py", "if not (variance + epsilon > 0).all():", "if False:"),
    Mutant(
        "NaN statistics accepted",
        "graph.py",
        "if not all(np.isfinite(array).all() for array in statistics):",
        "if False:",
    ),
    Mutant("equal copies kept apart", "folding.py", "len(set(versions))", "len(versions)"),
    Mutant(
        "ONNX: training_mode ignored", "frontends/onnx/lenses.py", 'if integer(node, "training_mode", 0):', "if False:"
    ),
    Mutant("ONNX: alpha ignored", "frontends/onnx/lenses.py", "if self.weight_slot.factor != 1:", "if False:"),
    Mutant(
        "ONNX: beta ignored",
        "frontends/onnx/lenses.py",
        "self.bias.array().reshape(-1) * self.bias_slot.factor",
        "self.bias.array().reshape(-1)",
    ),
    Mutant(
        "ONNX: transA ignored",
        "frontends/onnx/lenses.py",
        'in_axis = 0 if integer(node, "transA", 0) else 1',
        "in_axis = 1",
    ),
    Mutant(
        "ONNX: auto_pad ignored",
        "frontends/onnx/lenses.py",
        "return any(pads) or (same and prod(kernel) > 1)",
        "return any(pads)",
    ),
    Mutant(
        "ONNX: ConvTranspose never bordered",
        "frontends/onnx/lenses.py",
        "(transposed and _spreads(node, kernel))",
        "False",
    ),
    Mutant(
        "ONNX: unknown attributes accepted",
        "frontends/onnx/lenses.py",
        "return any(name not in named or attribute.is_ref()",
        "return any(attribute.is_ref()",
    ),
    Mutant(
        "ONNX: any constant is a bias",
        "frontends/onnx/lenses.py",
        "return prod(shape) == 1 or (axis >= 0 and shape[axis] == prod(shape) == channels)",
        "return prod(shape) in (1, channels)",
    ),
    Mutant("ONNX: shared tensor written in place", "frontends/onnx/storing.py", "and len(value.uses()) == 1", ""),
    Mutant(
        "ONNX: graph outputs are no readers", "frontends/onnx/graph.py", "Reason.IS_GRAPH_OUTPUT", "Reason.NOT_READ"
    ),
    Mutant(
        "ONNX: rounded twice to bfloat16",
        "frontends/onnx/rounding.py",
        "return _odd_float32(array).astype(ml_dtypes.bfloat16)",
        "return array.astype(ml_dtypes.bfloat16)",
    ),
    Mutant("torch: batch statistics accepted", "frontends/torch/lenses.py", "if trains(call) or call", "if call"),
    Mutant(
        "torch: padding='same' pads nothing",
        "frontends/torch/lenses.py",
        'return prod(shape[2:]) > 1 if padding == "same" else',
        'return False if padding == "same" else',
    ),
    Mutant(
        "torch: transposed weight not swapped",
        "frontends/torch/lenses.py",
        "return grouped.transpose(0, 2, 1, 3)",
        "return grouped",
    ),
    Mutant(
        "torch: views and writes not looked at",
        "frontends/torch/graph.py",
        "if self.data(node) in self.pinned:",
        "if False:",
    ),
    Mutant("torch: hooks not looked at", "frontends/torch/graph.py", "return Reason.HOOKED", "pass"),
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


def caught_by(mutant: Mutant, tree: Path, suite: tuple[str, ...] = SUITE) -> str | None:
    """Break one place, run the suite until the first failure, mend it again: the name of the test that failed."""
    file = tree / "bnfold" / mutant.file
    sound = file.read_text()
    if mutant.before not in sound:
        raise SystemExit(f"{mutant.name}: {mutant.file} no longer holds {mutant.before!r}")
    file.write_text(sound.replace(mutant.before, mutant.after, 1))
    try:
        return first_failure(tree, suite)
    finally:
        file.write_text(sound)


def first_failure(tree: Path, suite: tuple[str, ...]) -> str | None:
    """The first test of the suite that fails in this tree; None if all pass."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *suite]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return found[1] if found else f"pytest exit {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
