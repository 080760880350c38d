"""Files that hold keys: nobody but their owner may read them, from the first byte."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from fedloom.files import storage_error


def write(path: Path, data: bytes) -> None:
    """Write a file that its owner alone may read, atomically.

    Raises:
        StorageError: That is not possible.
    """
    temporary = path.with_name(f".fedloom-{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path: Path) -> bytes | None:
    """Return what a file holds; None where there is none.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(path, error) from error
