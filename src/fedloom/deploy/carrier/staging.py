"""Uploads on their way in: what came of them is kept, so that a cut connection costs only what was under way."""

from __future__ import annotations

import mmap
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fedloom.deploy.protocol.wire import Buffer, Summed
from fedloom.errors import DataError, StorageError

IN_MEMORY = 4 << 20
"""Larger messages are put together in a file without a name, in bytes."""


@dataclass
class Part:
    """What is there of one upload.

    Attributes:
        digest: Of the whole message.
        length: Of the whole message, in bytes.
        have: So many bytes came, without a gap.
        turn: Counts the calls that bring it; the last one holds it.
        answer: What the server answered; set when all is over.
        touched: When it last grew, in seconds.
        over: Is held while the whole is handed over.
        growing: Is held while it grows.
        summed: The checksum of what came.
    """

    digest: bytes
    length: int
    have: int = 0
    turn: int = 0
    answer: bytes = b""
    touched: float = field(default_factory=time.monotonic)
    over: threading.Lock = field(default_factory=threading.Lock)
    growing: threading.Lock = field(default_factory=threading.Lock)
    summed: Summed = field(default_factory=lambda: Summed(0))
    _data: bytearray = field(default_factory=bytearray)
    _file: IO[bytes] | None = None

    def add(self, data: memoryview, folder: Path | None) -> None:
        """Put more at the end.

        Raises:
            StorageError: The disk is full.
        """
        if self.length <= IN_MEMORY:
            self._data += data
        else:
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as this object
                self._file.write(data)
            except OSError as error:
                raise StorageError(f"the server cannot keep an upload: {error.strerror}") from error
        if not self.have:
            self.summed = Summed(self.length)
        self.summed.add(data)
        self.have += len(data)
        self.touched = time.monotonic()

    def whole(self) -> Buffer:
        """Return all of it; a large message as a private map of its file, which takes no memory until it is read."""
        if self._file is None:
            return self._data
        self._file.flush()
        return memoryview(mmap.mmap(self._file.fileno(), self.length, access=mmap.ACCESS_COPY))

    def drop(self) -> None:
        """Forget the bytes; maps of the file that are in use stay good."""
        self._data, self.have = bytearray(), self.length if self.answer else 0
        if self._file is not None:
            self._file.close()
            self._file = None


class Staging:
    """The uploads that are on their way, one per client.

    Args:
        folder: Where large ones lie; None for the system's place for temporary files.
        stalled: A part is kept for so many seconds.
        most: So many are kept; the one that grew longest ago goes first.
    """

    def __init__(self, folder: Path | None = None, stalled: float = 3600.0, most: int = 1024) -> None:
        self._folder, self._stalled, self._most = folder, stalled, most
        self._parts: dict[bytes, Part] = {}
        self._lock, self._one = threading.Lock(), threading.Lock()

    def have(self, key: bytes, digest: bytes) -> int:
        """Return how many bytes of a client's upload have come."""
        with self._lock:
            part = self._parts.get(key)
            return part.have if part is not None and part.digest == digest else 0

    def begin(self, key: bytes, digest: bytes, length: int, place: int) -> tuple[Part, int]:
        """Take up a client's upload at ``place``, in place of whoever was at it; another upload of it is forgotten.

        Returns:
            The upload, and the number of this turn.

        Raises:
            DataError: ``place`` is not where it goes on.
        """
        with self._lock:
            self._sweep()
            part = self._parts.get(key)
            if part is None or part.digest != digest or part.length != length:
                if part is not None:
                    part.drop()
                part = self._parts[key] = Part(digest, length)
                self._make_room()
        with part.growing:
            if place == 0 < part.have < length:
                part.drop()
            if place != part.have and not (part.answer and place == 0):
                raise DataError(f"the upload goes on at byte {part.have}, not at {place}")
            part.turn += 1
            return part, part.turn

    @contextmanager
    def turn(self, part: Part) -> Iterator[None]:
        """Wait until no other large upload is looked at: each takes memory then."""
        with self._one if part.length > IN_MEMORY else nullcontext():
            yield

    def add(self, part: Part, turn: int, place: int, data: memoryview) -> None:
        """Take the next chunk of an upload.

        Raises:
            DataError: It is not the next one, is more than was announced, or another call brings this upload now.
        """
        with part.growing:  # and nobody else's: a disk and a checksum take their time
            if part.turn != turn:
                raise DataError("this upload was taken up by another call")
            if place != part.have or part.have + len(data) > part.length:
                raise DataError(f"the upload goes on at byte {part.have}, not at {place}")
            part.add(data, self._folder)

    def end(self, key: bytes, part: Part, answer: bytes) -> None:
        """Forget an upload's bytes; its answer is kept for the case that it was lost. Without one all is forgotten."""
        with self._lock, part.growing:
            part.answer = answer
            part.drop()
            if not answer and self._parts.get(key) is part:
                del self._parts[key]

    def _make_room(self) -> None:
        while len(self._parts) > self._most:
            self._parts.pop(min(self._parts, key=lambda key: self._parts[key].touched)).drop()

    def _sweep(self) -> None:
        now = time.monotonic()
        for key, part in list(self._parts.items()):
            if now - part.touched > self._stalled:
                part.drop()
                del self._parts[key]
