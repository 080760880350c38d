"""What a client makes of a server's answers: room for them, and what they say."""

from __future__ import annotations

import mmap
from typing import Any, TypeVar

from fedloom.deploy.carrier.transfers import PIECE
from fedloom.deploy.protocol.messages import Message, decode
from fedloom.deploy.protocol.wire import Buffer
from fedloom.deploy.seam import Refused, Unreachable
from fedloom.deploy.trust.frames import PLACE
from fedloom.errors import DataError

M = TypeVar("M", bound=Message)

MOST = 1 << 34
"""The largest message that a client takes from its server, in bytes."""

LEAST = 1 << 12
"""The smallest piece that it sends an upload in, whatever the server says, in bytes."""


def room(length: int) -> memoryview:
    """Return room for a message; it takes no memory until it is written to, whatever length was announced.

    Raises:
        Refused: It is too long.
    """
    if length > MOST:
        raise Refused(f"the server sends {length} bytes; {MOST} are the most")
    try:
        return memoryview(mmap.mmap(-1, max(1, length)))[:length]
    except OSError as error:
        raise Refused(f"the server sends {length} bytes, and there is no room for them ({error.strerror})") from error


def read(data: Buffer, summed: bytes | None, expected: type[M]) -> M:
    """Read a message of an expected kind; ``summed`` is its checksum, where it was made as it came.

    Raises:
        Refused: It is none; to ask again would not help.
    """
    try:
        return decode(data, expected, summed)
    except DataError as error:
        raise Refused(f"the server's answer cannot be read: {error}") from error


def number(data: bytes) -> int:
    """Read a place, or a length.

    Raises:
        Unreachable: It did not come whole.
    """
    if len(data) != PLACE.size:
        raise Unreachable("the server's answer was cut; ask again")
    return int(PLACE.unpack(data)[0])


def piece(call: Any, most: int) -> int:
    """Wait until the server says that an upload may come; returns the size of its pieces, in bytes, ``most`` at the most."""
    said = dict(call.initial_metadata() or ()).get(PIECE, "")
    return min(most, max(LEAST, int(said))) if said.isdecimal() and len(said) < 10 else most
