"""Server: an ASGI application served in a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import uvicorn
from starlette.types import ASGIApp

from fedloom.errors import StorageError, UsageError

_START: Final = 20.0
_END: Final = 0


class _Quiet(uvicorn.Server):
    """Leaves signals to the program that it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Background:
    """Serves an application from now on, until :meth:`stop` or the end of the block.

    Args:
        app: What is served.
        sock: A socket that is bound and listens; it is closed at the end. :func:`bound` makes one.
        certificate: A certificate chain (PEM) for TLS.
        key: Its private key.

    Attributes:
        host: The address.
        port: The port.

    Raises:
        StorageError: It does not start.
    """

    def __init__(
        self, app: ASGIApp, sock: socket.socket, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        self.host, self.port = sock.getsockname()[:2]
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # pages that are open at the end are no error
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_END,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        self._sock, self._server = sock, _Quiet(config)
        self._thread = threading.Thread(target=self._run, name="fedloom-dashboard", daemon=True)
        self._thread.start()
        ends = time.monotonic() + _START
        while not self._server.started and self._thread.is_alive() and time.monotonic() < ends:
            time.sleep(0.01)
        if not self._server.started:
            self.stop()
            raise StorageError(f"the dashboard did not start on {self.host}:{self.port}")

    def _run(self) -> None:
        self._server.run(sockets=[self._sock])

    def stop(self) -> None:
        """End; pages that are open are cut off. A second call does nothing."""
        self._server.should_exit = True
        self._thread.join(_START)
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def bound(address: str) -> socket.socket:
    """Listen on ``host:port``; port 0 for any that is free.

    Raises:
        UsageError: The address is none, is not of this machine, or is in use.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--listen {address}: an address and a port are expected, such as 127.0.0.1:8080")
    try:
        family, _, _, _, place = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--listen {address}: no such address ({error})") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise UsageError(f"--listen {address}: cannot listen there ({error.strerror}); port 0 takes any") from error
    return sock
