"""What travels inside a call of the gRPC transport besides messages: signed heads, and chunks with a checksum.

    a signed head    u8 method, 16 bytes session, u64 number of the call, u64 length of the message, 32 bytes its SHA-256,
                     64 bytes signature
    a chunk          u64 its place in the message, u32 CRC-32, data

A call's number is used once in a session, so a call that somebody recorded cannot be played back. The transport is TLS;
checksums are for the machines' own mistakes, and for taking up an upload where it was cut.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Self

from fedloom.deploy.protocol.wire import Buffer
from fedloom.deploy.trust.identity import SIGNATURE, Keys, signed
from fedloom.errors import DataError

SERVICE = "fedloom.Federation"
REGISTER, POLL, BEAT, LEAVE, UPLOAD, OFFER = range(1, 7)
METHODS = {REGISTER: "register", POLL: "next task", BEAT: "heartbeat", LEAVE: "leave", UPLOAD: "upload", OFFER: "offer"}
SESSION = 16
PLACE = struct.Struct("<Q")

_HEAD = struct.Struct("<B16sQQ32s")
_CHUNK = struct.Struct("<QI")
HEAD_SIZE = _HEAD.size + SIGNATURE
OVERHEAD = 4096
"""What a chunk may have around it, in bytes."""


@dataclass(frozen=True)
class Head:
    """What a client signs of a call.

    Attributes:
        method: One of :data:`METHODS`.
        session: Of :class:`~fedloom.deploy.protocol.messages.Opened`.
        number: Of the call, never used before in this session.
        length: Of the message, in bytes.
        digest: The message's last 32 bytes: SHA-256 of all others.
    """

    method: int
    session: bytes
    number: int
    length: int
    digest: bytes

    def signed_by(self, keys: Keys, context: bytes) -> bytes:
        """Return the head and its signature."""
        data = self._bytes()
        return data + keys.sign(context, data)

    def is_of(self, key: bytes, context: bytes, signature: bytes) -> bool:
        """Say whether the owner of a key signed it."""
        return signed(key, context, self._bytes(), signature)

    def _bytes(self) -> bytes:
        return _HEAD.pack(self.method, self.session, self.number, self.length, self.digest)

    @classmethod
    def read(cls, data: bytes) -> tuple[Self, bytes, bytes]:
        """Read what :meth:`signed_by` made.

        Returns:
            The head, the signature, and what follows.

        Raises:
            DataError: The bytes are too few, or there is no such method.
        """
        if len(data) < HEAD_SIZE:
            raise DataError(f"a call begins with {HEAD_SIZE} bytes, found {len(data)}")
        head = cls(*_HEAD.unpack_from(data))
        if head.method not in METHODS:
            raise DataError(f"there is no method {head.method}")
        return head, data[_HEAD.size : HEAD_SIZE], data[HEAD_SIZE:]


def chunk(place: int, data: Buffer) -> bytes:
    """Return a chunk."""
    return b"".join((_CHUNK.pack(place, zlib.crc32(data)), data))


def unchunk(data: bytes) -> tuple[int, memoryview]:
    """Read a chunk: its place and what it holds.

    Raises:
        DataError: It was damaged.
    """
    if len(data) <= _CHUNK.size:
        raise DataError("a chunk without anything in it")
    place, check = _CHUNK.unpack_from(data)
    content = memoryview(data)[_CHUNK.size :]
    if zlib.crc32(content) != check:
        raise DataError(f"a chunk was damaged on the way, at byte {place}")
    return place, content


@dataclass
class Numbers:
    """The numbers of calls that were used in a session; calls overtake each other by a few at most."""

    most: int = 1024
    _highest: int = 0
    _used: set[int] = field(default_factory=set)

    def use(self, number: int) -> bool:
        """Use a number; False when it was used before, or is too old to know."""
        if number in self._used or number <= self._highest - self.most:
            return False
        self._used.add(number)
        if number > self._highest:
            self._highest = number
            self._used = (
                {n for n in self._used if n > number - self.most} if len(self._used) > self.most else self._used
            )
        return True
