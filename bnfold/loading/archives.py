"""A zip archive is checked as a whole before any library opens a member of it.

torch reads archives with its own zip reader. What two readers could understand differently (duplicate names, bytes
before, in or after the archive, a second directory, members that inflate) is refused here, so that what was checked is
what is loaded.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO

from bnfold.errors import Rejected

MAX_INFLATED = 64 << 20
"""Compressed members may not grow beyond this: torch stores weights as they are and compresses only code."""
END_RECORD, LOCATOR, ZIP64_RECORD = 22, 20, 56
END = b"PK\x05\x06"
LOCAL_HEADER, DESCRIPTOR = 30, b"PK\x07\x08"
NOT_HERE = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
"""What stands for a count, a length and an offset that are in the record for large archives."""
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
    for complaint in contradictions(archive, file):
        raise Rejected(f"{path} is refused: {complaint}", code="unsafe-archive")
    inflated = sum(member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED)
    if limits and inflated > MAX_INFLATED:
        message = f"{path} is refused: its members inflate to {inflated:,} bytes"
        raise Rejected(message, code="limit", hint="--no-limits lifts the size limits")
    return archive


def contradictions(archive: zipfile.ZipFile, file: IO[bytes]) -> Iterator[str]:
    """What two readers of an archive, which `file` holds, could understand differently."""
    members = archive.infolist()
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
    if file.read(4) != END:
        yield "there are bytes behind the archive"
    elif _directory(file) != (len(members), archive.start_dir) or not _end_to_end(members, archive.start_dir, file):
        yield "it can be read in two ways"


def _directory(file: IO[bytes]) -> tuple[int, int] | None:
    """How many members the records at the very end tell of and where their directory begins; None where it does not
    reach up to these records, or they are not what every reader finds
    (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3)."""
    size = file.seek(0, 2)
    file.seek(max(0, size - END_RECORD - LOCATOR - ZIP64_RECORD))
    tail = file.read().rjust(END_RECORD + LOCATOR + ZIP64_RECORD, b"\0")
    record, locator, end = tail[:ZIP64_RECORD], tail[ZIP64_RECORD:-END_RECORD], tail[-END_RECORD:]
    *short, comment = struct.unpack("<HIIH", end[10:])
    if not end.startswith(END + bytes(4)) or comment:
        return None
    end_of_directory, found = size - END_RECORD, tuple(short)
    if locator.startswith(b"PK\x06\x07"):
        end_of_directory -= LOCATOR + ZIP64_RECORD
        found = struct.unpack("<QQQ", record[32:])
        plain = record.startswith(b"PK\x06\x06" + struct.pack("<Q", ZIP64_RECORD - 12))
        same = all(one in (other, most) for one, other, most in zip(short, found, NOT_HERE, strict=True))
        if not (plain and same and struct.unpack("<Q", locator[8:16]) == (end_of_directory,)):
            return None
    count, length, start = found
    return (count, start) if start + length == end_of_directory else None


def _end_to_end(members: list[zipfile.ZipInfo], directory: int, file: IO[bytes]) -> bool:
    """Whether each member begins where the one before it ends, and the directory behind the last."""
    ordered = sorted(members, key=lambda member: member.header_offset)
    begins = [*(member.header_offset for member in ordered[1:]), directory]
    for member, following in zip(ordered, begins, strict=True):
        file.seek(member.header_offset)
        header = file.read(LOCAL_HEADER).ljust(LOCAL_HEADER, b"\0")
        flags, name, extra = struct.unpack("<6xH18xHH", header)
        end = member.header_offset + LOCAL_HEADER + name + extra + member.compress_size
        file.seek(end)
        described = flags & 8 and file.read(4) == DESCRIPTOR and following - end in (16, 24)
        if following != end and not described:
            return False
    return True


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
