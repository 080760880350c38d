"""Expulsion: whoever runs a server sends a client away for good, while the server runs or before it starts again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedloom import files
from fedloom.deploy.settling import repeated
from fedloom.deploy.trust.admission import Admission
from fedloom.errors import DataError, StorageError, UsageError

ASKED = "expel"
"""The folder of what was asked for and not yet done, beside the list of clients; a file for each."""

EVERY = 0.5
"""Seconds between two looks at it."""

NAME = "name"
REASON = "it was sent away by the server"


def ask(folder: Path, admission: Path, name: str) -> None:
    """Ask the server of a run to send a client away; it does so at once, or as soon as it starts again.

    Args:
        folder: Where the server has what only it is to read.
        admission: Its list of clients.
        name: The client's name.

    Raises:
        DataError: There is no list, or it is damaged.
        UsageError: There is no such client.
    """
    if not admission.is_file():
        raise DataError(f"{admission}: no such file: give the folder of a run that 'fedloom serve' has begun here")
    Admission(admission).check(name)
    files.write_json(folder / ASKED / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json", {NAME: name})


@contextmanager
def heard(folder: Path, admission: Admission, leave: Callable[[str, str], None]) -> Iterator[None]:
    """Do what was asked for, now and while the block runs; who was sent away before is gone from the beginning.

    Args:
        folder: As for :func:`ask`.
        admission: Who may take part.
        leave: Told the client's name, and why it is gone.
    """

    def look() -> None:
        for path in (folder / ASKED).glob("*.json"):
            if files.is_temporary(path):
                continue
            with suppress(StorageError, DataError, OSError):  # it is asked for until it is done
                name = str(files.read_json(path).get(NAME))
                with suppress(UsageError):  # it has left by itself
                    admission.expel(name)
                leave(name, REASON)
                path.unlink(missing_ok=True)

    for name in admission.expelled:
        leave(name, REASON)
    look()
    with repeated(look, EVERY, "fedloom-expulsion"):
        yield
