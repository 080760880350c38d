"""Locking: one process at a time works with a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedloom.errors import StorageError
from fedloom.files import storage_error

FILE = "lock"


@contextmanager
def alone(folder: Path, taken: str = "", file: str = FILE) -> Iterator[None]:
    """Keep a folder for this process while the block runs; the lock of a process that was killed is gone with it.

    Args:
        folder: It is made where there is none.
        taken: What to say where another process has it; without it, it is waited for.
        file: What is locked in it.

    Raises:
        StorageError: Another process has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error(folder / file, error) from error
    try:
        _lock(handle, taken)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, taken: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
    except BlockingIOError as error:
        raise StorageError(taken) from error
    except OSError:
        return  # a disk without locks
