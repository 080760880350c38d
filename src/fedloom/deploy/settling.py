"""Settling: what a block began in the background has ended when it is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedloom.deploy.interrupts import held

GRACE = 3.0
"""Seconds that all threads together are waited for."""


@contextmanager
def settled() -> Iterator[None]:
    """Wait for the threads that began in the block.

    gRPC's own run on for a moment after a channel is closed; Python would end under them, which aborts the process.
    """
    before = set(threading.enumerate())
    try:
        yield
    finally:
        ends = time.monotonic() + GRACE
        for thread in set(threading.enumerate()) - before - {threading.current_thread()}:
            thread.join(max(0.0, ends - time.monotonic()))


@contextmanager
def repeated(act: Callable[[], None], seconds: float, name: str) -> Iterator[None]:
    """Do something every so many seconds while the block runs, in a thread of that name."""
    over = threading.Event()

    def go() -> None:
        while not over.wait(seconds):
            act()

    thread = threading.Thread(target=go, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with held():
            over.set()
        thread.join()
