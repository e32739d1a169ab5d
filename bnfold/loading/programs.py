"""Exported programs: a `.pt2` archive is loaded after its audit, from the same open file, and never unsafely."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import Rejected
from bnfold.loading.archives import check_archive
from bnfold.loading.audit import complaints
from bnfold.loading.source import brief

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def load_program(path: Path, *, limits: bool) -> ExportedProgram:
    """Read a `.pt2` archive, whatever its suffix. Raises `Rejected` (`unsafe-archive`, `invalid-program`)."""
    import torch

    with path.open("rb") as file:
        with check_archive(path, file, limits=limits) as archive:
            complaint = next(complaints(archive), None)
        if complaint is not None:
            raise Rejected(f"{path} is refused: {complaint}", code="unsafe-archive", hint="export the model again")
        file.seek(0)
        try:
            with _only_data(), _quiet():
                return torch.export.load(file)
        except Exception as error:
            why = f"{type(error).__name__}: {brief(str(error))}"
            message = f"{path} cannot be read as an exported program ({why})"
            raise Rejected(message, code="invalid-program", hint="export it again with the installed torch") from error


@contextmanager
def _only_data() -> Iterator[None]:
    """torch retries a failed safe load unsafely; with this variable the retry is safe too, whatever the caller set."""
    names = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs a traceback of what is then raised anyway."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
