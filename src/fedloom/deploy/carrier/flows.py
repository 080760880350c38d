"""Flows: bytes go on from one socket to another, through a pipe of the kernel where there is splice, else through memory."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import Protocol

AT_ONCE = 1 << 18
"""So many bytes are under way in one direction of a connection; whoever sends more has to wait."""

_SPLICE = sys.platform == "linux" and hasattr(os, "splice")
_SET_SIZE = 1031  # F_SETPIPE_SZ of Linux
_SPARE = 16


class _Store(Protocol):
    """Where bytes wait. Nothing blocks: a socket that cannot go on raises BlockingIOError."""

    held: int

    def fill(self, source: socket.socket) -> int:
        """Take what has come; 0 at the end."""
        ...

    def drain(self, target: socket.socket) -> None:
        """Hand on what can go."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class _Memory:
    """Bytes wait in memory."""

    def __init__(self) -> None:
        self._data = memoryview(bytearray(AT_ONCE))
        self._first = self.held = 0

    def fill(self, source: socket.socket) -> int:
        """See there."""
        self._first, self.held = 0, source.recv_into(self._data)
        return self.held

    def drain(self, target: socket.socket) -> None:
        """See there."""
        sent = target.send(self._data[self._first : self._first + self.held])
        self._first, self.held = self._first + sent, self.held - sent

    def close(self) -> None:
        """See there."""
        self._data.release()


class _Pipe:
    """Bytes wait in the kernel, and are not copied."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        import fcntl

        with contextlib.suppress(OSError):  # a user may have only so many large pipes; a small one works as well
            fcntl.fcntl(self._in, _SET_SIZE, AT_ONCE)

    def fill(self, source: socket.socket) -> int:
        """See there."""
        self.held = os.splice(source.fileno(), self._in, AT_ONCE, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
        return self.held

    def drain(self, target: socket.socket) -> None:
        """See there."""
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        self.held -= os.splice(self._out, target.fileno(), self.held, flags=flags)

    def close(self) -> None:
        """See there."""
        os.close(self._in)
        os.close(self._out)


class Spare:
    """Stores that nobody uses now: a connection has one only while bytes wait in it. For one thread.

    Args:
        splice: Whether bytes stay in the kernel, where that is possible.
    """

    def __init__(self, splice: bool = True) -> None:
        self._splice = splice and _SPLICE
        self._free: list[_Store] = []

    def take(self) -> _Store:
        """Return a store with nothing in it."""
        if self._free:
            return self._free.pop()
        return _Pipe() if self._splice else _Memory()

    def give(self, store: _Store) -> None:
        """Take a store back; one that still holds something is thrown away."""
        if store.held or len(self._free) >= _SPARE:
            store.close()
        else:
            self._free.append(store)

    def close(self) -> None:
        """Throw all away."""
        while self._free:
            self._free.pop().close()


class Flow:
    """One direction of a connection.

    Args:
        source: Where bytes come from.
        target: Where they go.
        spare: Where to get a store.
    """

    def __init__(self, source: socket.socket, target: socket.socket, spare: Spare) -> None:
        self.source, self.target, self._spare = source, target, spare
        self._store: _Store | None = None
        self.over = self.ended = False

    @property
    def waits(self) -> bool:
        """Whether there is something that the target has not taken yet."""
        return self._store is not None

    def move(self) -> None:
        """Hand on what is there, and what the target takes; what it does not take now waits.

        Raises:
            OSError: One of the two is gone.
        """
        for _ in range(4):  # others want their turn
            if self._store is None and not self._take():
                break
            if not self._hand_on():
                break
        if self.ended and self._store is None and not self.over:
            self.over = True
            self.target.shutdown(socket.SHUT_WR)

    def _take(self) -> bool:
        if self.ended:
            return False
        store = self._spare.take()
        try:
            self.ended = store.fill(self.source) == 0
        except (BlockingIOError, InterruptedError):
            self._spare.give(store)
            return False
        except BaseException:
            store.close()
            raise
        if self.ended:
            self._spare.give(store)
            return False
        self._store = store
        return True

    def _hand_on(self) -> bool:
        assert self._store is not None
        try:
            while self._store.held:
                self._store.drain(self.target)
        except (BlockingIOError, InterruptedError):
            return False
        self._spare.give(self._store)
        self._store = None
        return True

    def close(self) -> None:
        """Give back what it holds."""
        if self._store is not None:
            self._store.close()
            self._store = None
