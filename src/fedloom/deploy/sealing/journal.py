"""Journal: a file that only grows, and of which a kill costs at most the entry that was being written.

An entry, all numbers little-endian:

    4 bytes  "FLSJ"
    u8       version (1)
    u8       kind
    u16      0
    u64      the entry's place in the file, from 0
    u64      the length of the data
    ...      data
    32 bytes SHA-256 of all that
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedloom import files

HEAD = struct.Struct("<4sBBHQQ")
DIGEST = 32
_MAGIC, _VERSION = b"FLSJ", 1


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        kind: From 0 to 255.
        data: Its bytes.
        end: Where it ends in the file.
    """

    kind: int
    data: bytes
    end: int


def read(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file, one at a time; the first that is not whole, and all behind it, are none."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        place = end = 0
        while (found := _entry(file, size, place, end)) is not None:
            yield found
            place, end = place + 1, found.end


def _entry(file: IO[bytes], size: int, place: int, begin: int) -> Entry | None:
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    magic, version, kind, zero, number, length = HEAD.unpack(head)
    end = begin + HEAD.size + length + DIGEST
    if (magic, version, zero, number) != (_MAGIC, _VERSION, 0, place) or end > size:
        return None
    data = file.read(length)
    made = hashlib.sha256(head)
    made.update(data)
    return Entry(kind, data, end) if made.digest() == file.read(DIGEST) else None


class Journal:
    """A journal that is written to.

    Args:
        path: The file; what is behind the last whole entry is cut off.
        entries: How many entries are there.
        end: Where the last of them ends.

    Raises:
        StorageError: It cannot be written.
    """

    def __init__(self, path: Path, entries: int = 0, end: int = 0) -> None:
        self._path, self._place = path, entries
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if end else "w+b")
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise files.storage_error(path, error) from error

    def add(self, kind: int, data: bytes, *, sync: bool = False) -> None:
        """Write an entry: it outlives this process, and with ``sync`` a power cut.

        Raises:
            StorageError: The disk is full; whatever is written from then on is lost.
        """
        head = HEAD.pack(_MAGIC, _VERSION, kind, 0, self._place, len(data))
        made = hashlib.sha256(head)
        made.update(data)
        try:
            for part in (head, data, made.digest()):
                self._file.write(part)
            self._file.flush()
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise files.storage_error(self._path, error) from error
        self._place += 1

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()
