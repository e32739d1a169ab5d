"""What every test runs under: one thread, no terminal colours, the same random examples each time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test imports a framework: workers share the cores, and captured output holds no escape codes and
# no annotations.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "120"
for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)

settings.register_profile("bnfold", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("bnfold")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def models(root: Path) -> Path:
    """The folder of shipped, trained models."""
    return root / "models"


@pytest.fixture
def workspace(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory in which `models/` is the shipped one: what a user has after a clone."""
    (tmp_path / "models").symlink_to(models, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
