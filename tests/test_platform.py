"""What only Unix has is not needed: where it is hidden, the commands do what they do elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_line import python
from onnx_build import Net

from bnfold.cli import main
from bnfold.errors import Exit

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
OF_SIGNAL = ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGXCPU", "SIGXFSZ")
OF_OS = (
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "chroot", "fchmod", "fchown", "fork", "forkpty"),
    *("getgid", "getloadavg", "getpgid", "getuid", "killpg", "mkfifo", "nice", "openpty", "pread", "register_at_fork"),
    *("sched_getaffinity", "setsid", "sysconf", "wait"),
)
HIDING = f"""
import errno, fcntl, os, select, signal, stat, sys
flush, flags = os.fsync, fcntl.fcntl
def fsync(descriptor):
    read_only = flags(descriptor, 3) & 3 == os.O_RDONLY
    if read_only and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EBADF, "Windows flushes only what may be written")
    flush(descriptor)
os.fsync = fsync
for module, names in ((os, {OF_OS}), (signal, {OF_SIGNAL}), (select, ("poll", "epoll"))):
    for name in names:
        vars(module).pop(name, None)
sys.modules.update(dict.fromkeys({MODULES}))
"""
COMMANDS = (
    ["inspect", "net.onnx"],
    ["fold", "net.onnx", "-o", "folded.onnx"],
    ["check", "net.onnx", "folded.onnx"],
    ["export", "net.onnx", "-o", "exported.onnx"],
)


def commands(folder: Path) -> list[list[str]]:
    """The command lines, of which each leaves a report, and the model that they read."""
    folder.mkdir()
    net = Net()
    net.batch_norm(net.conv("x", 2, 3), 3)
    onnx.save(net.model({"x": (2, 2, 5, 5)}), folder / "net.onnx")
    return [[*words, "-q", "--report", f"{words[0]}.json"] for words in COMMANDS]


def timeless(document: Any) -> Any:
    """A report without what a second run of the same machine tells otherwise."""
    if isinstance(document, dict):
        changing = ("environment", "started", "elapsed_s")
        return {key: timeless(value) for key, value in document.items() if key not in changing}
    return [timeless(value) for value in document] if isinstance(document, list) else document


def results(folder: Path) -> dict[str, Any]:
    """What the commands have left: the models as bytes, the reports without times."""
    models = {path.name: path.read_bytes() for path in folder.glob("*.onnx")}
    return models | {path.name: timeless(json.loads(path.read_text())) for path in folder.glob("*.json")}


@pytest.mark.skipif("sys.platform == 'win32'", reason="there is nothing to hide")
def test_what_only_unix_has_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, hidden = tmp_path / "plain", tmp_path / "hidden"
    every = commands(plain)
    monkeypatch.chdir(plain)
    assert [main(words) for words in every] == [Exit.OK] * 4
    ran = python(f"""{HIDING}
os.chdir({str(hidden)!r})
from bnfold.cli import main
print([main(words) for words in {commands(hidden)!r}])
assert all(sys.modules[name] is None for name in {MODULES})""")
    assert ran.stdout.strip() == str([0] * 4), ran.stderr
    assert results(hidden) == results(plain)
    assert results(hidden)["fold.json"]["check"]["verdict"] == "proved"


@pytest.mark.skipif("sys.platform == 'win32'", reason="there is nothing to hide")
@pytest.mark.parametrize(
    "use",
    ["import resource", "os.sysconf", "signal.SIGKILL", "os.fsync(os.open(__import__('json').__file__, os.O_RDONLY))"],
)
def test_what_is_hidden_is_missing(use: str) -> None:
    assert python(use if use.startswith("import") else f"import os, signal; {use}").returncode == 0
    assert python(f"{HIDING}\n{use}").returncode != 0
