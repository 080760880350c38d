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

from fedloom.errors import StorageError

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
        sock: A socket that is bound and listens; it is closed at the end. :func:`fedloom.addresses.bound`
            makes one.
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
