"""Gate: how many threads of the server calls may hold, and for how long.

Every call holds a thread from its first byte on. One that has not said who it is may be anybody's, so there are only so
many of them, for only so long; those of clients are counted, so that none takes the threads of all others.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fedloom.errors import NetworkError

T = TypeVar("T")


class TooBusy(NetworkError):  # noqa: N818 - said of the server
    """The client, or its address, asks too much: later."""


class Cut(NetworkError):  # noqa: N818 - said of an upload
    """A part of an upload did not fit: ask where it goes on."""


@dataclass(eq=False)
class _Silent:
    """A call that is waited for."""

    context: Any
    address: str
    ends: float
    counts: bool


class Gate:
    """The calls that are waited for.

    Args:
        most: So many calls may be silent about who they are at once; one more, and the one that has been silent longest, of
            the address that has most of them, is cut.
        seconds: A call may be silent for so long.
        calls: So many calls of one client may go on at once.
        clock: Returns seconds.
    """

    def __init__(self, most: int, seconds: float, calls: int = 32, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._calls, self._clock = most, seconds, calls, clock
        self._silent: dict[_Silent, None] = {}
        self._busy: Counter[str] = Counter()
        self._lock, self._closed = threading.Lock(), threading.Event()

    def first(self, requests: Iterator[bytes], context: Any, address: str) -> bytes:
        """Return the first message of a call of somebody unknown; empty where it ends without one."""
        with self._waited(context, address, self._seconds, counts=True):
            return next(requests, b"")

    def rest(self, requests: Iterator[bytes], context: Any, seconds: float) -> Iterator[bytes]:
        """Yield the further messages of a known client's call; none may be longer in coming than so many ``seconds``."""
        while True:
            with self._waited(context, "", seconds, counts=False):
                request = next(requests, None)
            if request is None:
                return
            yield request
            del request  # it need not be there until the next one is

    def paced(self, pieces: Iterable[T], context: Any, seconds: float) -> Iterator[T]:
        """Yield what is sent to a known client; none may be longer in going than so many ``seconds``."""
        for piece in pieces:
            with self._waited(context, "", seconds, counts=False):
                yield piece

    def enter(self, client: str) -> bool:
        """Count a call of a client; False when it is one too many. :meth:`leave` has to follow in any case."""
        with self._lock:
            self._busy[client] += 1
            return self._busy[client] <= self._calls

    def leave(self, client: str) -> None:
        """Count a call that is over."""
        with self._lock:
            self._busy[client] -= 1
            if not self._busy[client]:
                del self._busy[client]

    def sweep(self) -> None:
        """Cut calls that have been silent for too long."""
        with self._lock:
            now = self._clock()
            out = [one for one in self._silent if one.ends <= now]
            for one in out:
                del self._silent[one]
        for one in out:
            one.context.cancel()

    def watch(self) -> None:
        """Sweep from now on, in a thread of its own, until it is closed."""
        threading.Thread(target=self._watched, name="fedloom-gate", daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _watched(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            self.sweep()

    @contextmanager
    def _waited(self, context: Any, address: str, seconds: float, *, counts: bool) -> Iterator[None]:
        one = _Silent(context, address, self._clock() + seconds, counts)
        with self._lock:
            self._silent[one] = None
            out = self._one_too_many() if counts else None
        if out is not None:
            out.context.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._silent.pop(one, None)

    def _one_too_many(self) -> _Silent | None:
        """Take out the call that is cut for the sake of a new one, if there are too many."""
        counted = [one for one in self._silent if one.counts]
        if len(counted) <= self._most:
            return None
        worst = Counter(one.address for one in counted).most_common(1)[0][0]
        out = next(one for one in counted if one.address == worst)
        del self._silent[out]
        return out
