"""The server's end of the gRPC transport: it listens, and hands calls on to :mod:`fedloom.deploy.carrier.grpc_calls`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fedloom.addresses import is_loopback, split
from fedloom.deploy.carrier import grpc_loader
from fedloom.deploy.carrier.grpc_calls import Audit, Calls
from fedloom.deploy.carrier.limits import Limits
from fedloom.deploy.carrier.staging import Staging
from fedloom.deploy.seam import Service
from fedloom.deploy.trust import frames
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.identity import context_of
from fedloom.deploy.trust.invitation import INSECURE, Invitation
from fedloom.deploy.trust.sessions import Sessions
from fedloom.deploy.trust.tls import Certificates
from fedloom.errors import UsageError


class Listener:
    """A server that listens; :func:`listen` makes it.

    Attributes:
        port: Where it listens.
        pin: The fingerprint for invitations.
    """

    def __init__(self, server: Any, threads: Executor, calls: Calls, admission: Admission, port: int, pin: str) -> None:
        self._server, self._threads, self._calls, self._admission = server, threads, calls, admission
        self.port, self.pin = port, pin

    def invite(self, host: str, uses: int = 1, port: int | None = None) -> Invitation:
        """Make an invitation for so many clients, who reach this machine as ``host``.

        Raises:
            UsageError: The host is no name or address, or is not loopback where there is no TLS.
        """
        Invitation(host, port or self.port, self.pin)  # before a token is made
        return Invitation(host, port or self.port, self.pin, self._admission.invite(uses))

    def stop(self, grace: float = 1.0) -> None:
        """Stop listening; calls have ``grace`` seconds to end. A second call does nothing."""
        self._calls.stop()
        self._server.stop(grace).wait(grace + 5.0)
        self._threads.shutdown(wait=False)


def listen(
    service: Service,
    admission: Admission,
    address: str = "127.0.0.1:0",
    certificates: Certificates | None = None,
    limits: Limits | None = None,
    folder: Path | None = None,
    audit: Audit | None = None,
    whence: Callable[[int], str] | None = None,
    largest: Callable[[], int] | None = None,
) -> Listener:
    """Serve clients over gRPC, from now on, in threads of its own.

    Args:
        service: What is served.
        admission: Who may take part.
        address: ``host:port``; port 0 for any that is free.
        certificates: What the server shows; None for no TLS, on the machine itself only.
        limits: What clients may ask; None for the usual.
        folder: Where large uploads are put together; None for the system's place for temporary files.
        audit: Takes note of every call but heartbeats and waiting.
        whence: Where a call comes from, by the port that it reaches this server from, where something stands in front.
        largest: Says how long the longest upload is that the run has a use for, in bytes; ``limits.message`` is it when left
            out.

    Raises:
        MissingDependency: ``grpcio`` is not installed.
        UsageError: The address is none, is in use, or is not loopback where there is no TLS.
    """
    grpc = grpc_loader.load()
    limits = limits or Limits()
    if certificates is None and not is_loopback(split(address)[0]):
        raise UsageError(f"{address}: without TLS a server may listen on 127.0.0.1 only")
    pin = INSECURE if certificates is None else certificates.pin
    calls = Calls(
        service,
        Sessions(admission, [context_of(INSECURE)] if certificates is None else certificates.contexts),
        limits,
        Staging(folder, limits.stalled, 2 * limits.clients),
        audit,
    )
    calls.whence, calls.largest = whence, largest
    threads = ThreadPoolExecutor(limits.threads, "fedloom-serve")  # a client that waits for a task holds one
    server = grpc.server(threads, options=limits.options(frames.OVERHEAD), maximum_concurrent_rpcs=limits.threads)
    server.add_generic_rpc_handlers((calls.handlers(grpc),))
    try:
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            shown = grpc.ssl_server_credentials([(certificates.key, certificates.chain)])
            port = server.add_secure_port(address, shown)
    except RuntimeError:
        port = 0
    if not port:
        raise UsageError(f"cannot listen on {address}: no such address on this machine, or another server has it")
    server.start()
    return Listener(server, threads, calls, admission, port, pin)
