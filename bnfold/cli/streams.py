"""Standard streams that survive what shells do to them: closed ends, odd encodings, libraries that print."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

from bnfold.errors import EnvironmentFailure


def make_tolerant() -> None:
    """A closed stream becomes the null device; a character that the encoding lacks becomes a question mark."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def emit(text: str, stream: TextIO) -> None:
    """Write and flush. A reader who went away (`| head`) has read enough; a full disk is an error."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _silence(stream)
    except OSError as error:
        _silence(stream)
        raise EnvironmentFailure(
            f"the output could not be written: {error.strerror or error}", code="output-not-writable"
        ) from error


def _silence(stream: TextIO) -> None:
    """Send the rest to the null device, so that the flush at exit does not fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


@contextmanager
def python_warnings(*, shown: bool) -> Iterator[None]:
    """What libraries warn their programmers of is not for users, unless they ask (here, or with `python -W`)."""
    with warnings.catch_warnings():
        if not shown and not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Whatever is printed meanwhile, by Python or by native code, goes to stderr: stdout belongs to the report."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:
        kept = None
    with redirect_stdout(sys.stderr):
        if kept is not None:
            os.dup2(2, 1)
        try:
            yield
        finally:
            if kept is not None:
                os.dup2(kept, 1)
                os.close(kept)
