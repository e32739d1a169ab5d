"""A zip archive is checked as a whole before any library opens a member of it.

torch reads archives with its own zip reader. What two readers could understand differently (duplicate names, bytes
before or after the archive, members that inflate) is refused here, so that what was checked is what is loaded.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO

from bnfold.errors import Rejected

MAX_INFLATED = 64 << 20
"""Compressed members may not grow beyond this: torch stores weights as they are and compresses only code."""
END_RECORD = 22
COMPUTED_IMPORTS = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")


def check_archive(path: Path, file: BufferedReader, *, limits: bool) -> zipfile.ZipFile:
    """An archive in which every reader sees the same members; `file` stays open and is what the loader gets later.

    Raises `Rejected` (`unsafe-archive`) for anything else.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        raise Rejected(f"{path} is a damaged or truncated archive", code="truncated") from None
    members = archive.infolist()
    for complaint in _complaints(archive, members, file):
        raise Rejected(f"{path} is refused: {complaint}", code="unsafe-archive")
    inflated = sum(member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED)
    if limits and inflated > MAX_INFLATED:
        message = f"{path} is refused: its members inflate to {inflated:,} bytes"
        raise Rejected(message, code="limit", hint="--no-limits lifts the size limits")
    return archive


def _complaints(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], file: IO[bytes]) -> Iterator[str]:
    names = [member.filename for member in members]
    if len({name.casefold() for name in names}) != len(names):
        yield "two members of the archive have the same name"
    if len({name.partition("/")[0] for name in names}) != 1 or not all("/" in name for name in names):
        yield "the members of the archive are not in one folder"
    for name in names:
        if not name.isprintable() or "\\" in name or ":" in name or set(name.split("/")) & {"", ".", ".."}:
            yield f"a member of the archive has the odd name {name!r}"
    for member in members:
        if member.flag_bits & 1:
            yield f"the member {member.filename!r} is encrypted"
        if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
            yield f"the sizes of the member {member.filename!r} contradict each other"
    if archive.comment or min((member.header_offset for member in members), default=0) != 0:
        yield "there are bytes around the archive that do not belong to it"
    file.seek(-END_RECORD, 2)
    if file.read(4) != b"PK\x05\x06":
        yield "there are bytes behind the archive"


def pickle_globals(data: bytes) -> set[str]:
    """Every `module.name` that a pickle would import, found without loading it.

    Raises `ValueError` for what is no pickle, and for an import whose name is computed rather than written down:
    torch writes protocol 2, where every name is written down.
    """
    found: set[str] = set()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            found.add(str(argument).replace(" ", ".", 1))
        elif opcode.name in COMPUTED_IMPORTS:
            raise ValueError(f"the operation {opcode.name}")
    return found
