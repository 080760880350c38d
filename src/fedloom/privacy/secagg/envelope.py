"""What all messages of secure aggregation have in common, as frozen data and as bytes.

Every message is a head of 32 bytes, a body and a seal of 64 bytes, all numbers little-endian:

    4 bytes   "FLSA"
    u8        version (1)
    u8        kind of message
    u16       0
    16 bytes  session
    u32       round
    u32       the client that sends it or for whom it is; 2^32 - 1 for everybody
    ...       body
    64 bytes  seal: the client's signature; a checksum where there are no identities, and from the server

A decoder looks at no more than it was given, and makes nothing that is larger than that.
"""

from __future__ import annotations

import itertools
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from fedloom.errors import DataError
from fedloom.privacy.secagg import primitives
from fedloom.privacy.secagg.primitives import SEAL_SIZE
from fedloom.privacy.secagg.settings import MOST_CLIENTS, Config

EVERYBODY = 2**32 - 1
HEAD = struct.Struct("<4sBBH16sII")
NUMBER = struct.Struct("<I")
_MAGIC, _VERSION = b"FLSA", 1


@dataclass(frozen=True, kw_only=True)
class Message(ABC):
    """What all messages have.

    Attributes:
        session: Of the configuration, 16 bytes.
        round: Of the configuration.
        client: The client that sends it or for whom it is; :data:`EVERYBODY`.
        seal: 64 bytes, see :meth:`sealed_by`.
    """

    kind: ClassVar[int]

    session: bytes
    round: int
    client: int
    seal: bytes = bytes(SEAL_SIZE)

    @abstractmethod
    def _body(self) -> bytes:
        """Return what is between head and seal."""

    @classmethod
    @abstractmethod
    def _fields_of(cls, body: bytes) -> dict[str, Any]:
        """Undo :meth:`_body`."""

    def content(self) -> bytes:
        """Return what the seal is for: head and body."""
        return HEAD.pack(_MAGIC, _VERSION, self.kind, 0, self.session, self.round, self.client) + self._body()

    def to_bytes(self) -> bytes:
        """Return the whole message."""
        return self.content() + self.seal

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a message of this kind; the seal is not looked at.

        Raises:
            DataError: The bytes are none.
        """
        if len(data) < HEAD.size + SEAL_SIZE:
            raise DataError(f"a message of secure aggregation has {HEAD.size + SEAL_SIZE} bytes or more: {len(data)}")
        magic, version, kind, zero, session, number, client = HEAD.unpack_from(data)
        if (magic, version, zero) != (_MAGIC, _VERSION, 0):
            raise DataError("these bytes are no message of secure aggregation, or one of another version")
        if kind != cls.kind:
            raise DataError(f"expected the message {cls.__name__} (kind {cls.kind}), found kind {kind}")
        if client != EVERYBODY and client >= MOST_CLIENTS:
            raise DataError(f"{cls.__name__}: there is no client {client}")
        fields = cls._fields_of(data[HEAD.size : -SEAL_SIZE])
        return cls(session=session, round=number, client=client, seal=data[-SEAL_SIZE:], **fields)

    def sealed_by(self, private: bytes | None, context: bytes) -> Self:
        """Return the message with its seal by an Ed25519 key; with a checksum where there is no key."""
        return replace(self, seal=primitives.seal(private, context, self.content()))

    def check(self, config: Config, client: int, public: bytes | None, context: bytes) -> None:
        """Check that it belongs to this round, is from (or for) this client and has its seal.

        Raises:
            DataError: It does not, or has not.
        """
        what = type(self).__name__
        if self.session != config.session or self.round != config.round:
            raise DataError(
                f"{what} of client {client} is of round {self.round}, expected round {config.round} of this session",
                client=client,
                round=self.round,
            )
        if self.client != client:
            raise DataError(f"{what}: expected client {client}, found {self.client}", client=client)
        if not primitives.sealed(public, context, self.content(), self.seal):
            raise DataError(
                f"{what} of client {client}: the seal is wrong; the message was changed on the way, or is not theirs",
                client=client,
            )


def rows_of(what: str, body: bytes, size: int) -> tuple[tuple[int, bytes], ...]:
    """Read a list of entries, each a client's number and ``size`` bytes.

    Raises:
        DataError: The bytes are no such list.
    """
    step = NUMBER.size + size
    if len(body) % step:
        raise DataError(f"{what}: {len(body)} bytes are no list of entries of {step} bytes")
    rows = tuple(
        (NUMBER.unpack_from(body, start)[0], body[start + NUMBER.size : start + step])
        for start in range(0, len(body), step)
    )
    check_rising(what, [i for i, _ in rows])
    return rows


def check_rising(what: str, numbers: Sequence[int]) -> None:
    """Check that clients are named once each and in order, so that a message has one form only.

    Raises:
        DataError: They are not.
    """
    if any(b <= a for a, b in itertools.pairwise(numbers)) or any(i >= MOST_CLIENTS for i in numbers):
        raise DataError(f"{what}: clients have to be named once each, in rising order, below {MOST_CLIENTS}")
