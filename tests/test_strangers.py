"""Files that others wrote: each exports or folds as it is, or with the command that bnfold prints for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from strangers import STRANGERS, build, try_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All strangers' files."""
    path = tmp_path_factory.mktemp("strangers")
    build(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda stranger: stranger.name)
def test_a_file_from_elsewhere_becomes_a_folded_file(stranger: object, folder: Path) -> None:
    assert try_out(stranger, folder) == 0  # type: ignore[arg-type]
