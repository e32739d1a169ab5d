"""The suite is itself tested: a wrong fold turns it red. Here a short form; `python tests/mutants.py` is the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import MUTANTS, ROOT, caught_by, copy_tree, rows

NUMPY_ONLY = ("tests/test_algebra.py", "tests/test_folding.py")
SHORT = ("sqrt(var) + eps", "pending operator forgotten")
WITH_TORCH = [mutant for mutant in MUTANTS if mutant.name not in SHORT]


@pytest.mark.parametrize("name", SHORT)
def test_a_wrong_fold_is_caught(name: str, tmp_path: Path) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    assert caught_by(mutant, copy_tree(tmp_path), NUMPY_ONLY)


def test_a_test_that_is_tried_first_must_fail_itself(tmp_path: Path) -> None:
    mutant, tree = MUTANTS[0], copy_tree(tmp_path)
    unknown = "tests/test_algebra.py::test_that_is_not_there"
    assert caught_by(mutant, tree, ("tests/test_algebra.py",), first=unknown) is None
    found = caught_by(mutant, tree, ("tests/test_folding.py",))
    assert found
    assert caught_by(mutant, tree, ("tests/test_algebra.py",), first=found) == found
    assert rows(f"| mutant | caught by |\n| --- | --- |\n| {mutant.name} | {found} |\n") == [(mutant.name, found)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", WITH_TORCH, ids=lambda mutant: mutant.name)
def test_every_wrong_fold_is_caught(mutant: object, tmp_path: Path) -> None:
    assert caught_by(mutant, copy_tree(tmp_path))  # type: ignore[arg-type]


def test_every_mutant_still_finds_its_line() -> None:
    for mutant in MUTANTS:
        assert mutant.spoilt((ROOT / "bnfold" / mutant.file).read_text()), mutant.name
