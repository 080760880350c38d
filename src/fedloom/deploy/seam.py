"""The seam between a run and the network: what a client has of its server, and a server of its clients.

Whatever implements :class:`Channel` and calls a :class:`Service` can carry a run: gRPC, or the fake of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fedloom.deploy.protocol.messages import Hello, Receipt, Task, Upload, Welcome
from fedloom.errors import NetworkError


class Unreachable(NetworkError):  # noqa: N818 - said of the server
    """The server cannot be reached now, or is too busy: try the same call again, after a while."""


class Refused(NetworkError):  # noqa: N818 - said of the client
    """The server answered, and its answer is no: the same call will be refused again."""


@dataclass(frozen=True)
class Identity:
    """Who is speaking, as the transport has proven it.

    Attributes:
        name: The client's name; it belongs to this key alone.
        key: The public Ed25519 key, 32 bytes.
        address: Where the call comes from, for the log; it proves nothing.
    """

    name: str
    key: bytes
    address: str = ""


class Channel(Protocol):
    """What a client has of its server. All methods may be called from several threads.

    Every method raises :class:`Unreachable` (try again) or :class:`Refused` (do not).
    """

    def register(self, hello: Hello) -> Welcome:
        """Join the run, or come back to it: the same client gets the same number again."""
        ...

    def next_task(self, wait: float) -> Task | None:
        """Return the next task; None when nothing came in ``wait`` seconds.

        A task that was given out and not yet answered is given out again, so that no task is lost with a connection.
        """
        ...

    def upload(self, update: Upload) -> Receipt:
        """Send the answer to a task. It is safe to send it again: it counts once by round, attempt and client."""
        ...

    def heartbeat(self, doing: str) -> None:
        """Say that this client is alive, and what it is at."""
        ...

    def leave(self, reason: str) -> None:
        """Go for good."""
        ...

    def close(self) -> None:
        """Give back what the channel holds, and end calls that wait; a second call does nothing."""
        ...


class Service(Protocol):
    """What a server does for its clients; the transport has proven who they are. Methods run in several threads at once.

    A method refuses by raising :class:`Refused` (or another error of fedloom): its one line is shown to the client.
    """

    def register(self, who: Identity, hello: Hello) -> Welcome:
        """Take a client in; ``who.name`` counts, whatever ``hello.name`` is."""
        ...

    def next_task(self, who: Identity, wait: float) -> Task | None:
        """Return the client's task, waiting for one for at most ``wait`` seconds; None where there is none."""
        ...

    def upload(self, who: Identity, update: Upload) -> Receipt:
        """Take the answer to a task."""
        ...

    def heartbeat(self, who: Identity, doing: str) -> None:
        """Take note that a client is alive."""
        ...

    def leave(self, who: Identity, reason: str) -> None:
        """Take note that a client is gone for good."""
        ...
