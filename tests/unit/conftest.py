"""A disk that is full; and Ctrl-C, which works in the tests wherever they were started."""

from __future__ import annotations

import signal
from contextlib import contextmanager

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell lets what it starts in the background ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def full_disk():
    """Limits the size of files, in bytes, within a block: the call of the system that a full disk lets fail fails."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(size: int):
        before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limited
