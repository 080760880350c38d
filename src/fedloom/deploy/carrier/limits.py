"""How much one client, and one address, may ask of a server."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Self

from fedloom.errors import UsageError

READ = 1 << 16
"""What is read of a connection at once, in bytes."""


@dataclass(frozen=True)
class Limits:
    """What a server takes and gives.

    Attributes:
        message: The largest message of a client, in bytes, where the run does not say it; a larger one is refused before it
            is sent.
        small: The largest message that is sent in one piece (all but uploads), in bytes.
        chunk: The pieces that large messages travel in, in bytes, as long as there are few at once.
        wait: The longest a client may wait for a task in one call, in seconds.
        rate: Calls per second of one client, in the long run.
        burst: Calls of one client at once.
        opens: Sessions per second from one address; a class may share one.
        opens_burst: Sessions from one address at once.
        clients: Clients at the same time.
        calls: Calls of one client, or of one connection, at the same time.
        transfers: Large messages at the same time, of all clients together; the others wait for their turn.
        silent: Seconds in which a call has to say who it is.
        gap: Seconds in which the next piece of an upload has to come, and of an answer to go.
        stalled: A part of an upload is kept for so many seconds.
    """

    message: int = 1 << 30
    small: int = 1 << 20
    chunk: int = 1 << 19
    wait: float = 30.0
    rate: float = 50.0
    burst: float = 200.0
    opens: float = 20.0
    opens_burst: float = 400.0
    clients: int = 512
    calls: int = 32
    transfers: int = 32
    silent: float = 10.0
    gap: float = 120.0
    stalled: float = 3600.0

    def __post_init__(self) -> None:
        """Raise UsageError for a limit that is none."""
        for name in (
            "message",
            "small",
            "chunk",
            "wait",
            "rate",
            "burst",
            "opens",
            "opens_burst",
            "clients",
            "calls",
            "transfers",
            "silent",
            "gap",
            "stalled",
        ):
            if not getattr(self, name) > 0:
                raise UsageError(f"the limit {name} is {getattr(self, name)}; it must be above 0")

    @classmethod
    def of(cls, clients: int) -> Self:
        """Return the usual limits for a run with so many clients, all of whom may be behind one address."""
        usual = cls()
        return replace(usual, clients=max(64, clients), opens_burst=max(usual.opens_burst, 2.0 * clients))

    def options(self, overhead: int) -> list[tuple[str, int]]:
        """Return what gRPC is to know; ``overhead`` is what a piece may have around it, in bytes."""
        return [
            ("grpc.max_receive_message_length", max(self.small, self.chunk) + overhead),
            ("grpc.max_send_message_length", self.chunk + overhead),
            ("grpc.http2.bdp_probe", 0),  # it lets a connection hold many megabytes; this is how many it may:
            ("grpc.http2.lookahead_bytes", self.chunk),
            ("grpc.experimental.tcp_max_read_buffer_size", READ),  # kept while nothing comes, too
            ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a share of the calls
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_concurrent_streams", self.calls),
            ("grpc.server_handshake_timeout_ms", int(1000 * self.silent)),
        ]

    @property
    def threads(self) -> int:
        """How many calls the server takes at once: each client waits in one, and may make another one meanwhile."""
        return 2 * self.clients + 16


@dataclass
class Buckets:
    """Token buckets: whoever asks more than ``rate`` per second, after a first ``burst``, has to wait.

    Attributes:
        rate: Calls per second.
        burst: Calls at once.
        clock: Returns seconds.
        most: So many callers are remembered; the one that was quiet longest is forgotten first.
    """

    rate: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    most: int = 10_000
    _levels: OrderedDict[Hashable, tuple[float, float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, who: Hashable) -> bool:
        """Count one call of ``who``; False when it is one too many."""
        with self._lock:
            now = self.clock()
            level, since = self._levels.pop(who, (self.burst, now))
            level = min(self.burst, level + (now - since) * self.rate)
            allowed = level >= 1
            self._levels[who] = (level - 1 if allowed else level, now)
            while len(self._levels) > self.most:
                self._levels.popitem(last=False)
            return allowed
