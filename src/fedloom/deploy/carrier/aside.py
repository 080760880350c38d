"""Aside: the calls of a channel in threads of their own, while the main thread waits where Ctrl-C breaks nothing.

In the middle of gRPC's own code an interrupt leaves a lock taken: every later call would wait for it, the goodbye first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import NoReturn, TypeVar

from fedloom.deploy.interrupts import held
from fedloom.deploy.protocol.messages import Hello, Receipt, Task, Upload, Welcome
from fedloom.deploy.seam import Channel

T = TypeVar("T")

SLICE = 0.5
"""Seconds after which Windows notices Ctrl-C; other systems do at once."""


class Aside:
    """A :class:`~fedloom.deploy.seam.Channel` whose calls can be interrupted; a call that was goes on until it is closed."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def register(self, hello: Hello) -> Welcome:
        """See :class:`~fedloom.deploy.seam.Channel`, and so for the methods that follow."""
        return aside(partial(self._channel.register, hello))

    def next_task(self, wait: float) -> Task | None:
        """See there."""
        return aside(partial(self._channel.next_task, wait))

    def upload(self, update: Upload) -> Receipt:
        """See there."""
        return aside(partial(self._channel.upload, update))

    def heartbeat(self, doing: str) -> None:
        """See there."""
        aside(partial(self._channel.heartbeat, doing))

    def leave(self, reason: str) -> None:
        """See there."""
        aside(partial(self._channel.leave, reason))

    def close(self) -> None:
        """See there."""
        aside(self._channel.close)


def aside(call: Callable[[], T]) -> T:
    """Make a call in a thread of its own, if this is the main one; returns what it returns, and raises what it raises."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    ended: SimpleQueue[Callable[[], T]] = SimpleQueue()  # its lock is C's: an interrupt does not leave it taken

    def make() -> None:
        try:
            found = call()
        except BaseException as error:
            ended.put(partial(_raise, error))
        else:
            ended.put(lambda: found)

    with held():
        threading.Thread(target=make, name="fedloom-call", daemon=True).start()
    return _outcome(ended)()


def _outcome(ended: SimpleQueue[Callable[[], T]]) -> Callable[[], T]:
    while True:
        try:
            return ended.get(timeout=SLICE)
        except Empty:
            continue


def _raise(error: BaseException) -> NoReturn:
    raise error
