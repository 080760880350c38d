"""Ctrl-C: the first one ends a run after its round, the second one at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Catch Ctrl-C while the block runs.

    Yields:
        What says whether it was pressed. In a thread of its own, and in a process that ignores it, Ctrl-C stays what it is.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: False
        return
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed and callable(before):
            before(number, frame)  # whoever had it knows when to raise KeyboardInterrupt
        elif pressed:
            raise KeyboardInterrupt
        else:
            pressed = True
            print("\nstopping after this round; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
