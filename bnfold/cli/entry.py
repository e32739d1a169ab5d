"""The process: arguments in, exit code out; no traceback unless asked for, and no exit code by accident."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from bnfold.cli import supervised
from bnfold.cli.conduct import conduct, say
from bnfold.cli.failures import terminable, told
from bnfold.cli.flags import ReportFlags
from bnfold.cli.job import Job
from bnfold.cli.streams import emit, make_tolerant
from bnfold.cli.usage import is_usage, usage_error
from bnfold.errors import BnfoldError, Exit
from bnfold.run import Run

SELDOM = 50_000
"""New objects after which Python looks for cycles; its default is 700 in Python 3.11."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return the exit code.

    The process's own is supervised where it reads models; one that a program passes runs in that program.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and supervised.is_wanted(words, os.environ):
        found = supervised.supervise(words)
        return found if isinstance(found, int) else int(conduct(_refused(words, found), words))
    supervised.end_with_the_first()
    with terminable(), collected_seldom():
        try:
            make_tolerant()
            return int(_run(words))
        except BaseException as error:
            failure = told(error)
            say(failure, debug="--debug" in words)
            return int(failure.exit_code)


@contextmanager
def collected_seldom() -> Iterator[None]:
    """A model is many objects that live until the end; to look through them again and again is a fifth of the time
    that a fold of 10,000 nodes takes."""
    before = gc.get_threshold()
    gc.set_threshold(SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _run(words: list[str]) -> int:
    job = _understood(words)
    code = job if isinstance(job, int) else conduct(job, words)
    emit("", sys.stdout)
    return code


def _understood(words: list[str]) -> Job | int:
    """The job that the words ask for; one that fails where they cannot be understood."""
    from bnfold.cli.commands import parse

    try:
        return parse(words)
    except BnfoldError as error:
        return _refused(words, error)
    except Exception as error:
        if not is_usage(error):
            raise
        return _refused(words, usage_error(error, words))
    except SystemExit:
        # typer ends so when the reader of the help text went away
        return Exit.OK


def _refused(words: list[str], error: BnfoldError) -> Job:
    def work(run: Run) -> None:
        raise error

    command = next((word for word in words if not word.startswith("-")), "")
    return Job(command, _report_flags(words), work)


def _report_flags(words: list[str]) -> ReportFlags:
    """Where a report is wanted, read from words that typer could not understand."""
    files = [Path(after) for word, after in pairwise(words) if word == "--report"]
    files += [Path(word.partition("=")[2]) for word in words if word.startswith("--report=")]
    return ReportFlags(files, "--json" in words, "-q" in words or "--quiet" in words, "--debug" in words)
