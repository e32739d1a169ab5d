"""The command line, run several times in one process that notes what it reaches for.

    python tests/attacks/watched.py JOBS.json

JOBS is a list of `{name, folder, words}`: `folder` is all that a run may open, besides Python itself, its packages and
what describes the machine. The first job shows what a clean run imports. Printed is a list with, for each job, the exit
code, stdout, stderr, `opened`, `started` and `imported`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

STARTS = ("subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "pty.spawn")
CONNECTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.", "http.", "ftplib.")
ALLOWED = tuple(
    os.path.realpath(folder)
    for folder in (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), "/proc", "/sys", "/usr/share/zoneinfo")
)


class Watch:
    """What was reached for since `begin`."""

    def __init__(self) -> None:
        self.folder = ""
        self.active = False
        self.opened: list[str] = []
        self.started: list[str] = []
        sys.addaudithook(self._heard)

    def begin(self, folder: Path) -> None:
        self.folder, self.active, self.opened, self.started = os.path.realpath(folder), True, [], []

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event.startswith(STARTS + CONNECTS):
            self.started.append(event)
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((self.folder, *ALLOWED, *filter(None, sys.path[1:]))) and path != os.devnull:
                self.opened.append(path)


def run(watch: Watch, job: dict[str, Any]) -> dict[str, Any]:
    from bnfold.cli import main

    out, err, before = io.StringIO(), io.StringIO(), set(sys.modules)
    watch.begin(Path(job["folder"]))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(job["words"])
    watch.active = False
    return {
        "name": job["name"],
        "exit_code": code,
        "stdout": out.getvalue(),
        "stderr": err.getvalue(),
        "opened": watch.opened,
        "started": watch.started,
        "imported": sorted(set(sys.modules) - before),
    }


if __name__ == "__main__":
    watch = Watch()
    print(json.dumps([run(watch, job) for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]))
