"""Front: one public port for clients and browsers. It looks at the first bytes, and hands all on to one of two servers.

It does not decrypt: both servers behind it have the same certificate, and listen on this machine alone.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedloom.deploy.carrier.flows import Flow, Spare
from fedloom.deploy.carrier.greeting import MOST, route

PATIENCE = 10.0
"""Seconds in which a connection has to say what it is."""
CONNECTIONS = 1024
"""At the same time; more wait."""
_LOOK = 0.5
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


@dataclass(eq=False)
class _Connection:
    """A connection.

    Attributes:
        near: To whoever called.
        address: Where the call comes from.
        ends: When it has to have said what it is.
        seen: How many bytes were there when it was last looked at.
        far: To the server that it is for.
        flows: Both directions, once it is handed on.
    """

    near: socket.socket
    address: str
    ends: float
    seen: int = 0
    far: socket.socket | None = None
    flows: tuple[Flow, ...] = field(default=())


class Front:
    """Listens from now on, in a thread of its own, until :meth:`stop`.

    Args:
        listening: A socket that is bound and listens; it is closed at the end.
        ports: Where to hand connections on to, on 127.0.0.1, for :data:`~fedloom.deploy.carrier.greeting.WEB` and
            :data:`~fedloom.deploy.carrier.greeting.CLIENTS`.
        patience: Seconds in which a connection has to say what it is.
        connections: So many at the same time.
        splice: False where bytes are to go through memory.
    """

    def __init__(
        self,
        listening: socket.socket,
        ports: Mapping[str, int],
        patience: float = PATIENCE,
        connections: int = CONNECTIONS,
        splice: bool = True,
    ) -> None:
        self.port: int = listening.getsockname()[1]
        self._listening, self._ports, self._patience, self._most = listening, dict(ports), patience, connections
        self._spare = Spare(splice)
        self._open: set[_Connection] = set()
        self._from: dict[int, str] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        listening.setblocking(False)
        self._selector.register(listening, _READ, self._listening)
        self._selector.register(self._woken, _READ, None)
        self._accepting, self._stopping, self._full_until = True, False, 0.0
        self._thread = threading.Thread(target=self._run, name="fedloom-front", daemon=True)
        self._thread.start()

    def address(self, port: int) -> str:
        """Return where the connection comes from that reached a server behind the front from this ``port``; else nothing."""
        return self._from.get(port, "")

    def stop(self) -> None:
        """Stop listening and cut all connections. A second call does nothing."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, _ in self._selector.select(_LOOK):
                    self._turn(key.fileobj, key.data)
                self._tidy()
        finally:
            for one in list(self._open):
                self._close(one)
            self._spare.close()
            self._selector.close()
            for sock in (self._listening, self._wake, self._woken):
                sock.close()

    def _turn(self, sock: object, data: object) -> None:
        if data is self._listening:
            self._accept()
        elif isinstance(data, _Connection) and data in self._open:
            try:
                self._go_on(data, sock)
            except OSError:
                self._close(data)

    def _tidy(self) -> None:
        """Close what never said what it is, and let others in where there is room again."""
        now = time.monotonic()
        for one in [one for one in self._open if not one.flows and now > one.ends]:
            self._close(one)
        if self._accepting != (len(self._open) < self._most and now >= self._full_until):
            self._accepting = not self._accepting
            if self._accepting:
                self._selector.register(self._listening, _READ, self._listening)
            else:
                self._selector.unregister(self._listening)

    def _accept(self) -> None:
        while len(self._open) < self._most:
            try:
                near, address = self._listening.accept()
            except OSError as error:  # nobody waits, or who waited is gone: the others go on
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._full_until = time.monotonic() + _LOOK  # no more files: it would be said again at once
                return
            one = _Connection(near, _shown(near, address), time.monotonic() + self._patience)
            _prepare(near)
            self._open.add(one)
            self._selector.register(near, _READ, one)

    def _go_on(self, one: _Connection, sock: object) -> None:
        if one.flows:
            for flow in one.flows:
                flow.move()
            self._watch(one)
        elif one.far is None:
            self._look_at(one)
        elif sock is one.far:
            self._connected(one)

    def _look_at(self, one: _Connection) -> None:
        data = one.near.recv(MOST, socket.MSG_PEEK)
        if len(data) <= one.seen:  # it woke up, and nothing has come: it is over
            raise ConnectionError
        one.seen = len(data)
        kind = route(data)
        one.near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, one.seen + 1 if kind is None else 1)
        if kind is None:
            return
        self._selector.unregister(one.near)
        far = one.far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        _prepare(far)
        far.connect_ex(("127.0.0.1", self._ports[kind]))
        self._selector.register(far, _WRITE, one)

    def _connected(self, one: _Connection) -> None:
        far = one.far
        assert far is not None
        if far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise ConnectionError
        self._from[far.getsockname()[1]] = one.address
        one.flows = Flow(one.near, far, self._spare), Flow(far, one.near, self._spare)
        self._selector.register(one.near, _READ, one)
        self._go_on(one, far)

    def _watch(self, one: _Connection) -> None:
        """Wait for what can go on: a source that may send, a target that may take."""
        there, back = one.flows
        if there.over and back.over:
            self._close(one)
            return
        for own, other, sock in ((there, back, one.near), (back, there, one.far)):
            assert sock is not None
            wanted = (0 if own.waits or own.ended else _READ) | (_WRITE if other.waits else 0)
            known = self._selector.get_map().get(sock)
            if known is None:
                if wanted:
                    self._selector.register(sock, wanted, one)
            elif not wanted:
                self._selector.unregister(sock)
            elif known.events != wanted:
                self._selector.modify(sock, wanted, one)

    def _close(self, one: _Connection) -> None:
        self._open.discard(one)
        for flow in one.flows:
            flow.close()
        for sock in (one.near, one.far):
            if sock is None or sock.fileno() < 0:
                continue
            if sock is one.far:
                with contextlib.suppress(OSError):
                    self._from.pop(sock.getsockname()[1], None)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(sock)
            sock.close()


def caller(peer: str, address: Callable[[int], str] | None) -> str:
    """Return where a call comes from, without the port; ``address`` is that of the front, if there is one.

    Example:
        >>> caller("ipv4:127.0.0.1:5000", {5000: "ipv4:10.0.0.7"}.get), caller("ipv4:10.0.0.9:5000", None)
        ('ipv4:10.0.0.7', 'ipv4:10.0.0.9')
    """
    found, _, port = peer.rpartition(":")
    return (address(int(port)) if address is not None and port.isdecimal() else "") or found


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _shown(sock: socket.socket, address: tuple[str, int]) -> str:
    """Return an address as gRPC writes one, without the port."""
    return f"ipv6:[{address[0]}]" if sock.family == socket.AF_INET6 else f"ipv4:{address[0]}"
