"""Following: the log of a run as it grows, and as it is cut back where a run goes on from a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedloom import events

_SEAM = 256
"""So many bytes before the place that was read to are looked at again: other ones there, and it is another file."""
_MOST = 8 << 20
"""So many bytes are read at once."""


class Follower:
    """Reads what a log has gained since the last time.

    Args:
        path: The file; it may come later, or be replaced by another.

    Attributes:
        beginnings: How often it was read from the start.
        damaged: How many lines could not be read, since then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place, self._file = 0, 0
        self._stamp: tuple[int, ...] = ()
        self._seam = b""
        self._rest = b""
        self.beginnings = 0
        self.damaged = 0

    def news(self) -> tuple[bool, list[dict[str, Any]]]:
        """Return the events that have come, and whether they begin anew: what was told before counts no more."""
        anew = self.beginnings == 0
        try:
            now = self._path.stat()
            stamp = now.st_ino, now.st_size, now.st_mtime_ns
            if stamp == self._stamp and self._place == now.st_size:
                return False, []
            with self._path.open("rb") as log:
                file = os.fstat(log.fileno())
                if anew or file.st_ino != self._file or file.st_size < self._place or not self._fits(log):
                    anew = True
                    self._begin(file.st_ino)
                log.seek(self._place)
                found = log.read(_MOST)
            self._stamp = stamp
        except OSError:
            gone, self._stamp = self._place > 0, ()
            if gone:
                self._begin(0)
            return gone, []
        self._place += len(found)
        self._seam = (self._seam + found)[-_SEAM:]
        *lines, self._rest = (self._rest + found).split(b"\n")
        log_read = events.parsed(text.decode("utf-8", "replace") for text in lines)
        self.damaged += log_read.damaged
        return anew, list(log_read.rows)

    def _begin(self, file: int) -> None:
        self._place, self._seam, self._rest, self.damaged = 0, b"", b"", 0
        self._file = file
        self.beginnings += 1

    def _fits(self, log: Any) -> bool:
        """Say whether what was read last still stands where it stood."""
        log.seek(self._place - len(self._seam))
        return bool(log.read(len(self._seam)) == self._seam)
