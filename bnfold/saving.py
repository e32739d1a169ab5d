"""A file appears whole or not at all, and never in the place of what was read.

    out = output_path(source, None, suffix=".onnx", folded=False, force=False, inputs=[source])
    write_onnx(out, model)

`output_path` decides; `atomic` and the writers do. Nothing is left behind by an error, an interrupt or a full disk.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from bnfold.errors import BnfoldError, EnvironmentFailure, Exit, UsageError
from bnfold.loading import sha256, sniff

OTHER_KINDS = {
    ".onnx": (".pt", ".pt2", ".pth", ".ckpt", ".safetensors"),
    ".pt2": (".onnx", ".pth", ".ckpt", ".safetensors"),
}
"""For a result of each kind, the suffixes that would say it is something else."""

DIGITS = 16
"""Of a SHA-256, in the name of a data file."""

NOT_GIVEN_BACK = "is not written: the disk does not give back what it was given"


def output_path(
    source: Path,
    out: Path | None,
    *,
    suffix: str,
    folded: bool,
    force: bool = False,
    inputs: Sequence[Path] = (),
) -> Path:
    """Where to write, decided before any work is done.

    Without `out` the name is derived: the model's with `suffix`, or `STEM.folded` + `suffix` where `folded` or where
    the former is the model itself. `inputs` are all files that were read; none of them is ever a target, even with
    `force`. A derived name that exists, or an existing file that is no model, needs `force`.

    Raises `UsageError` (`output-kind`, `output-is-input`, `output-exists`, `output-is-directory`,
    `output-not-a-file`) or `EnvironmentFailure` (`no-folder`, `not-writable`).
    """
    path = out if out is not None else _derived(source, suffix, folded)
    if path.suffix.lower() in OTHER_KINDS[suffix]:
        message = f"{path} is named like another kind of model: the result is a {suffix} file"
        raise UsageError(message, code="output-kind", hint=f"-o {path.with_suffix(suffix)}")
    if path.is_dir():
        hint = f"-o {path / _derived(source, suffix, folded).name}"
        raise UsageError(f"the output {path} is a directory", code="output-is-directory", hint=hint)
    for read in (source, *inputs):
        if _same_file(path, read):
            message = f"the output {path} is the input {read} itself, which is never overwritten"
            raise UsageError(message, code="output-is-input", hint="name another file with -o")
    if os.path.lexists(path):
        _may_replace(path, derived=out is None, force=force)
    _folder_takes_files(path)
    return path


def certificate_path(path: Path, models: Sequence[Path]) -> Path:
    """Where to write a certificate, decided before any work is done: `path`, which is none of the model files.

    Raises `UsageError` (`output-is-input`, `output-is-directory`, `output-exists` for a file of another kind) or
    `EnvironmentFailure` (`no-folder`, `not-writable`).
    """
    for model in models:
        if _same_file(path, model):
            message = f"the certificate {path} would overwrite the model {model}"
            raise UsageError(message, code="output-is-input", hint="name another file with --certificate")
    if path.is_dir():
        raise UsageError(f"the certificate {path} is a directory", code="output-is-directory")
    if os.path.lexists(path) and not _is_text(path):
        message = f"{path} exists and is no certificate"
        raise UsageError(message, code="output-exists", hint="name another file with --certificate")
    _folder_takes_files(path)
    return path


def _is_text(path: Path) -> bool:
    """Whether a file is a JSON object, as certificates are."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"{")


def _derived(source: Path, suffix: str, folded: bool) -> Path:
    plain = source.with_suffix(suffix)
    return source.with_name(f"{source.stem}.folded{suffix}") if folded or _same_file(plain, source) else plain


def _same_file(one: Path, other: Path) -> bool:
    """By inode where both exist (a hard link, a symbolic link, another spelling), else by name."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.abspath(one) == os.path.abspath(other)


def _may_replace(path: Path, *, derived: bool, force: bool) -> None:
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        message = f"the output {path} is not a regular file"
        raise UsageError(message, code="output-not-a-file", hint="--dry-run writes nothing")
    if force:
        return
    if derived:
        message = f"{path} exists already"
        raise UsageError(message, code="output-exists", hint="--force replaces it, -o names another file")
    if not _is_model(path):
        message = f"{path} exists and is no model file"
        raise UsageError(message, code="output-exists", hint="--force replaces it, -o names another file")


def _is_model(path: Path) -> bool:
    try:
        sniff(path)
    except BnfoldError:
        return False
    return True


def _folder_takes_files(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        message = f"{path} cannot be written: there is no folder {folder}"
        raise EnvironmentFailure(message, code="no-folder", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EnvironmentFailure(f"{path} cannot be written: permission denied", code="not-writable")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A new empty file beside `path` to write to; on success it becomes `path` in one step, else it is removed.

    Raises `EnvironmentFailure` (`not-writable`) for what the operating system refuses.
    """
    temporary = path.with_name(f".bnfold-{secrets.token_hex(8)}.tmp")
    with _explained(path), _terminated_by_exception():
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            _put(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _put(source: Path, target: Path) -> None:
    """Make a finished file of the same disk appear as `target`, with the permissions that `target` has already."""
    _flush(source)
    if target.is_file():
        os.chmod(source, stat.S_IMODE(target.stat().st_mode))
    os.replace(source, target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and needs no flush of it
        return
    # Windows flushes only what may be written; a folder can only be read
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the operating system refuses, in one sentence."""
    try:
        yield
    except OSError as error:
        message = f"{path} cannot be written: {(error.strerror or str(error)).lower()}"
        raise EnvironmentFailure(message, code="not-writable") from error


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """Let SIGTERM unwind the stack like Ctrl-C does, unless the program has its own handler."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(int(Exit.TERMINATED))


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder on the disk of `path` that is gone afterwards."""
    with _explained(path), _terminated_by_exception():
        folder = Path(tempfile.mkdtemp(prefix=".bnfold-", dir=path.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_onnx(path: Path, model: Any) -> tuple[Path, ...]:
    """Write an `onnx_ir.Model`, the same bytes for the same model; return its files, the model first.

    Where its tensors do not fit in one file or came in another, they go to `STEM.HASH.data` beside it. A name made of
    the content is one that no older model at `path` reads, so the data is put there first and the model last.
    """
    from bnfold.frontends import onnx as frontend

    token = secrets.token_hex(DIGITS // 2)
    _enough_space(path, frontend.size(model).nbytes)
    with _scratch(path) as folder:
        file, *data = frontend.save(model, folder / f"{path.stem}.{token}")
        if data:
            digest = sha256(data[0])
            digits = digest[:DIGITS]
            file.write_bytes(file.read_bytes().replace(token.encode(), digits.encode()))
            data = [data[0].rename(folder / f"{path.stem}.{digits}.data")]
        if not frontend.is_written(model, file):
            raise EnvironmentFailure(f"{path} {NOT_GIVEN_BACK}", code="io")
        if not data:
            _put(file, path)
            return (path,)
        return (path, _put_both(file, path, data[0], digest))


def _enough_space(path: Path, needed: int) -> None:
    """Raise where the disk cannot hold so many bytes more, before anything is written."""
    with _explained(path):
        free = shutil.disk_usage(path.parent).free
    if needed > free:
        message = f"{path} cannot be written: it takes {needed:,} bytes and the disk has {free:,} left"
        raise EnvironmentFailure(message, code="no-space")


def _put_both(model: Path, path: Path, data: Path, digest: str) -> Path:
    """Put the data where the model will look for it, which is returned, then the model. If that is not put there, new
    data goes again."""
    target = path.with_name(data.name)
    is_there = target.exists() and sha256(target) == digest
    if target.exists() and not is_there:  # an input, perhaps, that was named to be in the way
        message = f"{target} is in the way: it has the name of the data of {path}, and is not that"
        raise UsageError(message, code="output-exists", hint="remove it, or name another file with -o")
    try:
        if not is_there:
            _put(data, target)
        _put(model, path)
    except BaseException:
        if model.exists() and not data.exists():
            target.unlink(missing_ok=True)
        raise
    return target


def write_program(path: Path, program: Any) -> tuple[Path, ...]:
    """Write an `ExportedProgram` as a `.pt2` archive, the same bytes for the same program."""
    export = sys.modules["torch"].export  # the program came from there, so it is loaded
    tensors = (*program.state_dict.values(), *program.tensor_constants.values())
    _enough_space(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    with atomic(path) as temporary:
        with temporary.open("wb") as file:
            export.save(program, file)
        with zipfile.ZipFile(temporary) as archive:
            if archive.testzip() is not None:
                raise EnvironmentFailure(f"{path} {NOT_GIVEN_BACK}", code="io")
    return (path,)
