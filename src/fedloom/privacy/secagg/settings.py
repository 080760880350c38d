"""What all parties of one round of secure aggregation agree on, before the first message."""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fedloom.errors import DataError, UsageError
from fedloom.privacy.secagg import graph
from fedloom.privacy.secagg.primitives import KEY_SIZE

SESSION_SIZE = 16
MOST_CLIENTS = 1 << 16
LARGEST = 1 << 34
_HEAD = struct.Struct("<4sHH16sIIQIII")
_MAGIC, _VERSION = b"FLSC", 1


class Step(enum.IntEnum):
    """The steps of a round, in order; a client sends one message in each."""

    ADVERTISE = 1
    SHARE = 2
    MASK = 3
    AGREE = 4
    REVEAL = 5

    @property
    def label(self) -> str:
        """The step in lower case."""
        return self.name.lower()


@dataclass(frozen=True)
class Config:
    """One round of secure aggregation; its digest is bound into every key and signature.

    Attributes:
        session: 16 random bytes of this run.
        round: The round's number. Session and round together are used once.
        clients: How many take part, n; they are numbered from 0.
        size: The length of every vector.
        bits: Sums are modulo 2^bits, 2-64; up to 32 the vectors are uint32, else uint64.
        neighbours: With how many others each client masks, k; even, or at least n - 1: the complete graph.
        threshold: How many shares give a secret back, of the k + 1 (at most n) that exist; more than half of them.
        minimum: How many clients must be left in every step; more than half.
        identities: Each client's public Ed25519 key. Empty: messages are not signed, and one has to trust the server
            to pass them on as they are.

    Raises:
        UsageError: A value is out of its range.
    """

    session: bytes
    round: int
    clients: int
    size: int
    bits: int
    neighbours: int
    threshold: int
    minimum: int
    identities: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        n, holders = self.clients, min(self.neighbours + 1, self.clients)
        keys = self.identities
        rules: dict[str, tuple[bool, object]] = {
            f"a session of {SESSION_SIZE} bytes": (len(self.session) == SESSION_SIZE, len(self.session)),
            "a round from 0 to 2^32 - 1": (0 <= self.round < 1 << 32, self.round),
            f"from 2 to {MOST_CLIENTS} clients": (2 <= n <= MOST_CLIENTS, n),
            f"a size from 1 to {LARGEST}": (1 <= self.size <= LARGEST, self.size),
            "from 2 to 64 bits": (2 <= self.bits <= 64, self.bits),
            f"{n - 1} neighbours, or an even number from 2": (_degree(self.neighbours, n), self.neighbours),
            f"a threshold above half of {holders} holders": (
                holders < 2 * self.threshold <= 2 * holders,
                self.threshold,
            ),
            f"a minimum above half of {n} clients, and not below the threshold": (
                n < 2 * self.minimum <= 2 * n and self.threshold <= self.minimum,
                self.minimum,
            ),
            f"no identities, or {n} different ones of {KEY_SIZE} bytes": (
                not keys or (len(set(keys)) == len(keys) == n and all(len(key) == KEY_SIZE for key in keys)),
                len(keys),
            ),
        }
        for text, (right, found) in rules.items():
            if not right:
                raise UsageError(f"secure aggregation needs {text}; found {found}", found=found)

    @classmethod
    def of(
        cls,
        session: bytes,
        number: int,
        clients: int,
        size: int,
        *,
        bits: int = 32,
        dropped: float = 0.1,
        corrupt: float = 0.1,
        failure: float = graph.FAILURE,
        identities: Sequence[bytes] = (),
    ) -> Config:
        """Make the configuration with the graph and thresholds of :func:`fedloom.privacy.secagg.graph.plan`.

        Example:
            >>> Config.of(bytes(16), 1, 10, 1000).threshold
            6
        """
        plan = graph.plan(clients, dropped, corrupt, failure)
        given = (plan.neighbours, plan.threshold, plan.minimum, tuple(identities))
        return cls(session, number, clients, size, bits, *given)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it: whoever was told something else gets other keys and other signatures."""
        return hashlib.sha256(b"fedloom secagg config" + self.to_bytes()).digest()

    def identity(self, client: int) -> bytes | None:
        """Return a client's public Ed25519 key, if there are any."""
        return self.identities[client] if self.identities else None

    def to_bytes(self) -> bytes:
        """Return it as bytes, little-endian."""
        head = (_MAGIC, _VERSION, self.bits, self.session, self.round, self.clients, self.size, self.neighbours)
        return _HEAD.pack(*head, self.threshold, self.minimum) + b"".join(self.identities)

    @classmethod
    def from_bytes(cls, data: bytes) -> Config:
        """Undo :meth:`to_bytes`.

        Raises:
            DataError: The bytes are no configuration.
        """
        if len(data) < _HEAD.size:
            raise DataError(f"a configuration of secure aggregation has {_HEAD.size} bytes or more, found {len(data)}")
        magic, version, bits, session, number, clients, size, k, threshold, minimum = _HEAD.unpack_from(data)
        if (magic, version) != (_MAGIC, _VERSION):
            raise DataError("these bytes are no configuration of secure aggregation, or one of another version")
        rest = data[_HEAD.size :]
        if len(rest) not in {0, KEY_SIZE * clients}:
            raise DataError(f"{clients} clients need {KEY_SIZE * clients} bytes of identities, found {len(rest)}")
        identities = tuple(rest[i : i + KEY_SIZE] for i in range(0, len(rest), KEY_SIZE))
        try:
            return cls(session, number, clients, size, bits, k, threshold, minimum, identities)
        except UsageError as error:
            raise DataError(f"{error}; the configuration that was received is damaged") from None


def _degree(neighbours: int, clients: int) -> bool:
    return neighbours == clients - 1 or (2 <= neighbours < clients and neighbours % 2 == 0)
