"""Interrupts: Ctrl-C and SIGTERM end a server or a client where no lock stays behind.

Python raises ``KeyboardInterrupt`` between any two steps of the main thread, also just after ``threading`` has taken a lock
and before anybody knows that it has to be given back. Whoever says goodbye then waits for that lock for good.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SLICE = 0.2
"""The main thread waits for so many seconds at once, and notices signals in between."""


class _Main:
    """The main thread; the only one in which signals are handled.

    Attributes:
        held: How many blocks it is in that must not be interrupted.
        asked: Whether a signal has come meanwhile.
    """

    def __init__(self) -> None:
        self.held, self.asked = 0, False

    def hold(self) -> None:
        if _here():
            self.held += 1

    def let_go(self) -> None:
        if _here():
            self.held -= 1
            if not self.held:
                self.give_way()

    def give_way(self) -> None:
        if self.asked and _here():
            self.asked = False
            raise KeyboardInterrupt


_MAIN = _Main()


@contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block by a ``KeyboardInterrupt``, and never within :func:`held` or a held lock."""
    if not _here():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal wants it
        if not _MAIN.held:
            raise KeyboardInterrupt
        _MAIN.asked = True

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a process in the background may ignore it
        before[signal.SIGINT] = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Let a signal wait until the block is over; it is to be short."""
    _MAIN.hold()
    try:
        yield
    finally:
        _MAIN.let_go()


class Condition(threading.Condition):
    """A condition that no signal leaves taken: one that comes while the main thread holds it waits for a moment."""

    def __enter__(self) -> bool:
        _MAIN.hold()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        _MAIN.let_go()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until notified, for so many seconds at most; in the main thread for :data:`SLICE` of them.

        Whoever waits looks again at what it waits for, and waits again: what was notified between two slices is not lost so.

        Raises:
            KeyboardInterrupt: A signal came meanwhile.
        """
        if not _here():
            return super().wait(timeout)
        found = super().wait(SLICE if timeout is None else min(SLICE, timeout))
        _MAIN.give_way()
        return found


def _here() -> bool:
    return threading.get_ident() == threading.main_thread().ident
