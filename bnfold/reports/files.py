"""Reports as files: the suffix chooses the kind, and a file is there whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from bnfold.errors import BnfoldError, EnvironmentFailure, MissingDependency, UsageError
from bnfold.reports.report import Report
from bnfold.run import Run
from bnfold.saving import atomic

KINDS = {
    ".json": "bnfold.reports.json",
    ".html": "bnfold.reports.html",
    ".md": "bnfold.reports.markdown",
    ".xml": "bnfold.reports.junit",
}
NEEDS = {".html": ("jinja2", "matplotlib")}
"""The packages of the extra `html`, which is asked for by this suffix alone."""


def refuse_unusable(path: Path, models: tuple[Path, ...], baseline: Path | None = None) -> None:
    """Raise, before any work is done, where the report could not be written at its end, or would replace what it is
    compared with."""
    if path.suffix.lower() not in KINDS:
        raise UsageError(
            f"{path} has a suffix of no kind of report that this version writes: {', '.join(KINDS)}",
            code="unknown-report-kind",
            hint=f"write --report {path.with_suffix('.json')}",
        )
    missing = [name for name in NEEDS.get(path.suffix.lower(), ()) if find_spec(name) is None]
    if missing:
        message = f"an HTML report needs {' and '.join(missing)}, not installed here"
        raise MissingDependency(message, hint='pip install "bnfold[html]"')
    if any(_same(path, model) for model in models):
        raise UsageError(f"the report {path} would overwrite the model", code="report-is-model")
    if baseline is not None and _same(path, baseline):
        raise UsageError(f"the report {path} would overwrite the baseline", code="report-is-baseline")
    if path.is_dir():
        raise EnvironmentFailure(f"the report {path} is a directory", code="report-not-writable")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise EnvironmentFailure(f"there is no directory {folder} for the report", code="report-not-writable")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EnvironmentFailure(f"the directory {folder} may not be written to", code="report-not-writable")


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.absolute() == other.absolute()


def write(report: Report, path: Path) -> None:
    """Write the report in the kind of its suffix, atomically. Raises `UsageError` where it would replace numbers of a
    model, which are known only by now."""
    records = [record for record in (report.run.input, report.run.output) if record is not None]
    if any(_same(path, Path(data.path)) for record in records for data in record.external):
        raise UsageError(f"the report {path} would overwrite the data of the model", code="report-is-model")
    module = import_module(KINDS[path.suffix.lower()])
    text = cast(Callable[[Report], str], module.render)(report)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def reported(run: Run, paths: Sequence[Path], models: tuple[Path, ...]) -> Iterator[None]:
    """Write the reports of a run when it ends, well or not; those that could not be written are refused before."""
    for path in paths:
        refuse_unusable(path, models)
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()

    def tell(*failures: BnfoldError) -> None:
        for path in paths:
            write(Report(run, (), started, time.perf_counter() - clock, failures), path)

    try:
        yield
    except BnfoldError as error:
        tell(error)
        raise
    tell()
