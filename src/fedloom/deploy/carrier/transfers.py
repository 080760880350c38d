"""Transfers: how many large messages travel at once. The others wait, first come first served, and hold no data meanwhile.

A transfer takes memory for some five of its pieces, however long its message is. So the server's memory depends on how many
there are at once, and not on how many clients there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedloom.deploy.seam import Unreachable

LARGE = 1 << 20
"""Longer messages wait for their turn, in bytes."""
FEW = 4
"""As long as so many travel at once, their pieces are large: that is faster."""
SHARE = 2
"""Those of the others are so many times smaller."""
SIGN = 5.0
"""Seconds between two signs of life of a client that waits, or takes a large message."""
PIECE = "fedloom-piece"
"""With this a server tells a client that its turn has come, and how large the pieces of its upload shall be."""


@dataclass(eq=False)
class _Transfer:
    """A call that brings or takes a large message.

    Attributes:
        client: Whose it is.
        context: The call.
        piece: The size of its pieces, in bytes, once its turn has come.
        woken: Set when it need not wait any longer.
    """

    client: str
    context: Any
    piece: int = 0
    woken: threading.Event = field(default_factory=threading.Event)


class Transfers:
    """The large messages on their way, and those that wait.

    Args:
        most: So many travel at once.
        piece: The size of large pieces, in bytes.
    """

    def __init__(self, most: int, piece: int) -> None:
        self._most, self._piece = most, piece
        self._under_way: dict[_Transfer, None] = {}
        self._waiting: dict[_Transfer, None] = {}
        self._lock = threading.Lock()

    @property
    def full(self) -> bool:
        """Whether one more would have to wait."""
        with self._lock:
            return len(self._under_way) >= self._most

    @contextmanager
    def turn(self, client: str, context: Any, told: Callable[[], None] = lambda: None) -> Iterator[int]:
        """Wait until a client's message may travel; its turn is over with the block, or with the call, however that ends.

        A client has one at a time: an older call of it is cut, since it has begun anew.

        Args:
            client: Its name.
            context: The call.
            told: Called every now and then while it waits.

        Returns:
            The size of its pieces, in bytes.

        Raises:
            Unreachable: The call has ended meanwhile; a server that stops ends all of them.
        """
        one = _Transfer(client, context)
        try:
            for older in self._enter(one):
                older.context.cancel()
            if context.add_callback(partial(self._leave, one)):
                while not one.woken.wait(SIGN):
                    told()
            with self._lock:
                if one not in self._under_way:
                    raise Unreachable("the call was over before its turn came")
            yield one.piece
        finally:
            self._leave(one)

    def _enter(self, one: _Transfer) -> list[_Transfer]:
        """Stand in line; returns what else the client has there."""
        with self._lock:
            older = [other for other in (*self._under_way, *self._waiting) if other.client == one.client]
            self._waiting[one] = None
            self._admit()
            return older

    def _leave(self, one: _Transfer) -> None:
        """Give a place back, once or more often."""
        with self._lock:
            self._under_way.pop(one, None)
            self._waiting.pop(one, None)
            one.woken.set()
            self._admit()

    def _admit(self) -> None:
        while self._waiting and len(self._under_way) < self._most:
            one = next(iter(self._waiting))
            del self._waiting[one]
            self._under_way[one] = None
            one.piece = self._piece if len(self._under_way) <= FEW else self._piece // SHARE
            one.woken.set()


def telling(pieces: Iterable[bytes], told: Callable[[], None]) -> Iterator[bytes]:
    """Yield pieces as they are taken; ``told`` is called every now and then meanwhile."""
    last = time.monotonic()
    for piece in pieces:
        yield piece
        if time.monotonic() - last > SIGN:
            told()
            last = time.monotonic()
