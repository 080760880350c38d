"""The seam without a network, for tests: every message becomes bytes and is read again, and calls can be made to fail."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from fedloom.deploy.protocol.messages import (
    Beat,
    Hello,
    Leave,
    Message,
    Poll,
    Receipt,
    Task,
    Upload,
    Welcome,
    decode,
    encode,
)
from fedloom.deploy.seam import Identity, Refused, Service, Unreachable
from fedloom.errors import FedloomError

M = TypeVar("M", bound=Message)
T = TypeVar("T")
SLICE = 0.2
"""A wait for a task is cut in pieces of so many seconds, so that a channel that is closed gives up soon."""

Fault = Callable[[str, str], str]
"""What happens to a call: ``(client, method) -> "ok"``, ``"lost"`` on its way, or ``"unanswered"`` (the answer is lost)."""


class FakeNetwork:
    """Connects clients with a server in this process.

    Args:
        service: The server; :attr:`service` may be exchanged for another one, as a restart would, or None while it is away.
        fault: What happens to calls.
    """

    def __init__(self, service: Service | None, fault: Fault = lambda _, __: "ok") -> None:
        self.service, self.fault = service, fault

    def channel(self, name: str, key: bytes | None = None) -> FakeChannel:
        """Return the channel of a client; its key follows from its name unless it is given."""
        return FakeChannel(self, Identity(name, key or hashlib.sha256(name.encode()).digest(), "fake"))


class FakeChannel:
    """A client's end of a :class:`FakeNetwork`; a :class:`~fedloom.deploy.seam.Channel`."""

    def __init__(self, network: FakeNetwork, who: Identity) -> None:
        self._network, self._who, self._closed = network, who, threading.Event()

    def register(self, hello: Hello) -> Welcome:
        """See :class:`~fedloom.deploy.seam.Channel`, and so for the methods that follow."""
        message = _again(hello)
        return self._call("register", lambda service: _again(service.register(self._who, message)))

    def next_task(self, wait: float) -> Task | None:
        """See there."""
        until = time.monotonic() + _again(Poll(wait)).wait
        while True:
            left = max(0.0, min(SLICE, until - time.monotonic()))
            task = self._call("next_task", partial(_next_task, who=self._who, wait=left))
            if task is not None or time.monotonic() >= until:
                return None if task is None else _again(task)

    def upload(self, update: Upload) -> Receipt:
        """See there."""
        message = _again(update)
        return self._call("upload", lambda service: _again(service.upload(self._who, message)))

    def heartbeat(self, doing: str) -> None:
        """See there."""
        beat = _again(Beat(doing))
        self._call("heartbeat", lambda service: service.heartbeat(self._who, beat.doing))

    def leave(self, reason: str) -> None:
        """See there."""
        leave = _again(Leave(reason))
        self._call("leave", lambda service: service.leave(self._who, leave.reason))

    def close(self) -> None:
        """See there."""
        self._closed.set()

    def _call(self, method: str, act: Callable[[Service], T]) -> T:
        what = self._network.fault(self._who.name, method)
        service = self._network.service
        if self._closed.is_set() or what == "lost" or service is None:
            raise Unreachable("the server cannot be reached")
        try:
            answer = act(service)
        except Unreachable:
            raise
        except FedloomError as error:
            raise Refused(str(error)) from error
        if what == "unanswered":
            raise Unreachable("the answer was lost")
        return answer


def _next_task(service: Service, who: Identity, wait: float) -> Task | None:
    return service.next_task(who, wait)


def _again(message: M) -> M:
    """Return a message as it arrives: a copy, from its bytes."""
    return decode(bytearray(encode(message)), type(message))
