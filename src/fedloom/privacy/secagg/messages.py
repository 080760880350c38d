"""The messages of secure aggregation; their form is that of :mod:`fedloom.privacy.secagg.envelope`."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from fedloom.errors import DataError
from fedloom.privacy.secagg.envelope import NUMBER, Message, check_rising, rows_of
from fedloom.privacy.secagg.field import SHARE_SIZE
from fedloom.privacy.secagg.primitives import CIPHER_OVERHEAD, KEY_SIZE, SEAL_SIZE
from fedloom.privacy.secagg.settings import Step

CIPHER_SIZE = 2 * SHARE_SIZE + CIPHER_OVERHEAD


@dataclass(frozen=True, kw_only=True)
class Advertise(Message):
    """Client to server, step 1: two public X25519 keys.

    Attributes:
        mask_key: For the masks that two clients share.
        share_key: For the encryption of shares.
    """

    kind = int(Step.ADVERTISE)
    mask_key: bytes
    share_key: bytes

    def _body(self) -> bytes:
        return self.mask_key + self.share_key

    @classmethod
    def _fields_of(cls, body: bytes) -> dict[str, Any]:
        if len(body) != 2 * KEY_SIZE:
            raise DataError(f"Advertise holds {2 * KEY_SIZE} bytes of keys, found {len(body)}")
        return {"mask_key": body[:KEY_SIZE], "share_key": body[KEY_SIZE:]}


@dataclass(frozen=True, kw_only=True)
class Roster(Message):
    """Server to everybody, before step 2: who takes part.

    Attributes:
        entries: For each client in rising order: its number, its two keys and the seal of its Advertise.
    """

    kind = 16 + Step.SHARE
    entries: tuple[tuple[int, bytes, bytes, bytes], ...]

    def _body(self) -> bytes:
        return b"".join(NUMBER.pack(i) + mask + share + seal for i, mask, share, seal in self.entries)

    @classmethod
    def _fields_of(cls, body: bytes) -> dict[str, Any]:
        rows = rows_of("Roster", body, 2 * KEY_SIZE + SEAL_SIZE)
        return {"entries": tuple((i, r[:KEY_SIZE], r[KEY_SIZE : 2 * KEY_SIZE], r[2 * KEY_SIZE :]) for i, r in rows)}


@dataclass(frozen=True, kw_only=True)
class Shares(Message):
    """Client to server, step 2: for each neighbour its shares, encrypted.

    Attributes:
        commitment: A hash of the seed of the client's own mask, by which a wrong share is noticed.
        entries: (neighbour, encrypted shares), in rising order.
    """

    kind = int(Step.SHARE)
    commitment: bytes
    entries: tuple[tuple[int, bytes], ...]

    def _body(self) -> bytes:
        return self.commitment + b"".join(NUMBER.pack(i) + cipher for i, cipher in self.entries)

    @classmethod
    def _fields_of(cls, body: bytes) -> dict[str, Any]:
        if len(body) < KEY_SIZE:
            raise DataError(f"Shares hold {KEY_SIZE} bytes or more, found {len(body)}")
        return {"commitment": body[:KEY_SIZE], "entries": rows_of("Shares", body[KEY_SIZE:], CIPHER_SIZE)}


@dataclass(frozen=True, kw_only=True)
class Delivery(Message):
    """Server to one client, before step 3: the shares that its neighbours encrypted for it.

    Attributes:
        entries: (neighbour, encrypted shares), in rising order.
    """

    kind = 16 + Step.MASK
    entries: tuple[tuple[int, bytes], ...]

    def _body(self) -> bytes:
        return b"".join(NUMBER.pack(i) + cipher for i, cipher in self.entries)

    @classmethod
    def _fields_of(cls, body: bytes) -> dict[str, Any]:
        return {"entries": rows_of("Delivery", body, CIPHER_SIZE)}


@dataclass(frozen=True, kw_only=True)
class Masked(Message):
    """Client to server, step 3: the vector under its masks, packed.

    Attributes:
        payload: See :func:`fedloom.privacy.secagg.packing.pack`.
    """

    kind = int(Step.MASK)
    payload: bytes

    def _body(self) -> bytes:
        return self.payload

    @classmethod
    def _fields_of(cls, body: bytes) -> dict[str, Any]:
        return {"payload": body}


@dataclass(frozen=True, kw_only=True)
class _Sets(Message):
    """Who is in the sum and who is not.

    Attributes:
        alive: Whose masked vectors arrived, in rising order.
        dropped: Who sent shares and no vector, in rising order.
    """

    alive: tuple[int, ...]
    dropped: tuple[int, ...]

    def _body(self) -> bytes:
        return NUMBER.pack(len(self.alive)) + struct.pack(
            f"<{len(self.alive) + len(self.dropped)}I", *self.alive, *self.dropped
        )

    @classmethod
    def _fields_of(cls, body: bytes) -> dict[str, Any]:
        if len(body) < NUMBER.size or len(body) % NUMBER.size:
            raise DataError(f"{cls.__name__}: {len(body)} bytes are no list of clients")
        count, *numbers = struct.unpack(f"<{len(body) // NUMBER.size}I", body)
        if count > len(numbers):
            raise DataError(f"{cls.__name__}: {count} clients were announced, {len(numbers)} are there")
        alive, dropped = tuple(numbers[:count]), tuple(numbers[count:])
        check_rising(cls.__name__, alive)
        check_rising(cls.__name__, dropped)
        return {"alive": alive, "dropped": dropped}


@dataclass(frozen=True, kw_only=True)
class Survivors(_Sets):
    """Server to everybody, before step 4: who is in the sum and who is not."""

    kind = 16 + Step.AGREE


@dataclass(frozen=True, kw_only=True)
class Agreed(_Sets):
    """Client to server, step 4: the sets that it was told, under its seal."""

    kind = int(Step.AGREE)


@dataclass(frozen=True, kw_only=True)
class Agreement(Message):
    """Server to everybody, before step 5: the seals of all that agreed.

    Attributes:
        entries: (client, seal of its Agreed), in rising order.
    """

    kind = 16 + Step.REVEAL
    entries: tuple[tuple[int, bytes], ...]

    def _body(self) -> bytes:
        return b"".join(NUMBER.pack(i) + seal for i, seal in self.entries)

    @classmethod
    def _fields_of(cls, body: bytes) -> dict[str, Any]:
        return {"entries": rows_of("Agreement", body, SEAL_SIZE)}


@dataclass(frozen=True, kw_only=True)
class Reveal(Message):
    """Client to server, step 5: one share for each neighbour, and one of its own.

    Attributes:
        seeds: (client, share of the seed of its own mask) of those in the sum, in rising order.
        keys: (client, share of its private mask key) of those that dropped out, in rising order.
    """

    kind = int(Step.REVEAL)
    seeds: tuple[tuple[int, bytes], ...]
    keys: tuple[tuple[int, bytes], ...]

    def _body(self) -> bytes:
        rows = b"".join(NUMBER.pack(i) + share for i, share in (*self.seeds, *self.keys))
        return NUMBER.pack(len(self.seeds)) + rows

    @classmethod
    def _fields_of(cls, body: bytes) -> dict[str, Any]:
        if len(body) < NUMBER.size:
            raise DataError(f"Reveal holds {NUMBER.size} bytes or more, found {len(body)}")
        (count,), rest = NUMBER.unpack_from(body), body[NUMBER.size :]
        end = count * (NUMBER.size + SHARE_SIZE)
        if end > len(rest):
            raise DataError(f"Reveal: {count} shares were announced, {len(rest)} bytes are there")
        return {"seeds": rows_of("Reveal", rest[:end], SHARE_SIZE), "keys": rows_of("Reveal", rest[end:], SHARE_SIZE)}


FROM_CLIENT: dict[Step, type[Message]] = {
    Step.ADVERTISE: Advertise,
    Step.SHARE: Shares,
    Step.MASK: Masked,
    Step.AGREE: Agreed,
    Step.REVEAL: Reveal,
}
"""What a client sends in each step."""
