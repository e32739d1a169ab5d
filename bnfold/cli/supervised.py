"""A command that reads models does so in a process of its own.

A runtime, or a library that only reads, that crashes on a model or takes all memory, takes that process with it. What
is left says so in one sentence, writes the reports that were asked for, and returns an exit code of the table. Nothing
heavy is imported here: the first process only waits.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from mmap import PAGESIZE
from types import FrameType
from typing import TYPE_CHECKING

from bnfold import children
from bnfold.errors import BnfoldError, EnvironmentFailure, NoVerdict, Rejected

if TYPE_CHECKING:
    from subprocess import Popen

READING = ("export", "fold", "check", "bench", "inspect")
LIFELINE = "BNFOLD_LIFELINE"
"""In the environment of the second process: the descriptor that ends with the first one."""

MOST_SECONDS = 4 * 3600.0
MOST_OF_MEMORY = 0.9
"""Of the memory of the machine."""
PAUSE = 0.2


def is_wanted(words: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a command line is one to be supervised, and is not yet."""
    asked = _command(words) in READING and "--help" not in words
    return os.name == "posix" and asked and LIFELINE not in environment


def executes(words: Sequence[str]) -> bool:
    """Whether a command line executes models; folding and looking do not."""
    command = _command(words)
    return command != "inspect" and not (command == "fold" and "--no-check" in words)


def _command(words: Sequence[str]) -> str:
    return next((word for word in words if not word.startswith("-")), "")


def supervise(words: Sequence[str]) -> int | BnfoldError:
    """Run the command in a process of its own; its exit code, or what it died of."""
    from subprocess import Popen

    reading, writing = os.pipe()
    command, environment = children.command("bnfold", *words), children.environment(**{LIFELINE: str(reading)})
    # in a group of its own, or Ctrl-C would reach it twice
    with Popen(command, env=environment, pass_fds=[reading], process_group=0) as process, _forwarded(process):
        os.close(reading)
        try:
            exceeded = None if "--no-limits" in words else _watched(process)
            code = process.wait()
        finally:
            os.close(writing)
    return exceeded or (code if code >= 0 else _death(-code, ran=executes(words)))


def _watched(process: Popen[bytes]) -> BnfoldError | None:
    """Wait for the process, and end it where it exceeds a limit."""
    from subprocess import TimeoutExpired

    end, most = time.monotonic() + MOST_SECONDS, MOST_OF_MEMORY * _installed()
    while process.poll() is None:
        if time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
            return NoVerdict(f"the model ran for more than {MOST_SECONDS:g} s", code="limit", hint=_LIFTED)
        if sum(map(_resident, family(process.pid))) > most:
            os.killpg(process.pid, signal.SIGKILL)
            return NoVerdict(f"the model took more than {most / 2**30:.3g} GB", code="limit", hint=_LIFTED)
        with suppress(TimeoutExpired):
            process.wait(PAUSE)
    return None


_LIFTED = "--no-limits lifts the limits of memory and time"


def _installed() -> float:
    """The bytes of memory of the machine, without end where the system does not say."""
    return float(PAGESIZE * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else inf


def family(pid: int) -> Iterator[int]:
    """A process and those that any of its threads started, and so on, where the system tells them in /proc; those that
    are gone meanwhile are left out."""
    yield pid
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                for each in file.read().split():
                    yield from family(int(each))


def _resident(pid: int) -> int:
    """The bytes of memory that a process holds, 0 where the system does not say in /proc."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * PAGESIZE
    except (OSError, ValueError, IndexError):
        return 0


def _death(number: int, *, ran: bool) -> BnfoldError:
    name, process = signal.Signals(number).name, f"the process that {'ran' if ran else 'read'} the model"
    if name == "SIGKILL":
        message = f"{process} was killed, as a system does that runs out of memory"
        return EnvironmentFailure(message, code="out-of-memory")
    return (NoVerdict if ran else Rejected)(f"{process} died of {name}", code="crashed")


@contextmanager
def _forwarded(process: Popen[bytes]) -> Iterator[None]:
    """What is to end this process ends the other, whose answer is then awaited."""

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_the_first() -> None:
    """In the second process: end as if terminated when the first one is gone."""
    lifeline = os.environ.get(LIFELINE)
    if lifeline is None:
        return

    def wait() -> None:
        try:
            os.read(int(lifeline), 1)
        except (OSError, ValueError):
            return
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
