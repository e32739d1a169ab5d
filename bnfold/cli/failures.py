"""Every way in which a command can end badly, as a `BnfoldError`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from types import FrameType

from bnfold.errors import BnfoldError, EnvironmentFailure, Exit, clean


class InternalError(BnfoldError):
    """A defect of bnfold."""

    exit_code = Exit.INTERNAL
    default_code = "internal"


class Interrupted(BnfoldError):
    """The user pressed Ctrl-C."""

    exit_code = Exit.INTERRUPTED
    default_code = "interrupted"


class TerminatedError(BnfoldError):
    """The process was asked to end."""

    exit_code = Exit.TERMINATED
    default_code = "terminated"


class Terminated(BaseException):
    """SIGTERM arrived; no `except Exception` may hold it up."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the work in order, so that temporary files go and the report is written."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def told(error: BaseException) -> BnfoldError:
    """The error as one sentence with an exit code; whatever was not foreseen is internal."""
    if isinstance(error, BnfoldError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    if isinstance(error, Terminated):
        return TerminatedError("terminated")
    if isinstance(error, MemoryError):
        return EnvironmentFailure("there is not enough memory", code="out-of-memory")
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename is not None else ""
        return EnvironmentFailure(f"{(error.strerror or str(error)).lower()}{where}", code="io")
    internal = InternalError(
        f"internal error in {_room(error)}: {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}",
        hint="this is a defect of bnfold: run again with --debug for the traceback, and report it",
    )
    internal.__cause__ = error
    return internal


def spoken(error: BnfoldError) -> str:
    """What the user reads on stderr: the sentence, and what to do next."""
    lines = [f"bnfold: {clean(str(error))}"]
    if error.hint:
        command = error.hint.startswith(("bnfold ", "pip ", "python "))
        lines += [f"  run: {clean(error.hint)}" if command else f"  {clean(line)}" for line in error.hint.splitlines()]
    return "\n".join(lines) + "\n"


def _room(error: BaseException) -> str:
    """The innermost module of bnfold that the error passed."""
    rooms = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return next((room for room in reversed(rooms) if room.startswith("bnfold.")), "bnfold")
