"""The client's end of the gRPC transport: it dials out, proves who it is, signs what it sends, and takes up what was cut."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from fedloom.addresses import is_loopback
from fedloom.deploy.carrier import grpc_loader
from fedloom.deploy.carrier.answers import number, piece, read, room
from fedloom.deploy.carrier.transfers import LARGE
from fedloom.deploy.protocol import messages
from fedloom.deploy.protocol.forms import shown
from fedloom.deploy.protocol.messages import (
    Beat,
    Hello,
    Leave,
    Message,
    Open,
    Opened,
    Poll,
    Receipt,
    Task,
    Upload,
    Welcome,
    is_nothing,
)
from fedloom.deploy.protocol.wire import Buffer, Summed, chunks
from fedloom.deploy.seam import Refused, Unreachable
from fedloom.deploy.trust import frames, given
from fedloom.deploy.trust.frames import PLACE, Head
from fedloom.deploy.trust.identity import Keys
from fedloom.deploy.trust.invitation import INSECURE, PUBLIC, Invitation
from fedloom.deploy.trust.tls import SERVER_NAME, fetch_authority
from fedloom.errors import DataError

T = TypeVar("T")

CHUNK = 1 << 20
RESUMES = 5
"""So many times in a row an upload is taken up without having got on."""
_TRANSFER = 1800.0
_AGAIN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED", "UNKNOWN", "INTERNAL"}


class _NoSession(Exception):  # noqa: N818 - it never leaves this file
    """The server does not know the session any more."""


def connect(
    invitation: Invitation, keys: Keys, name: str = "", timeout: float = 30.0, authority: bytes | None = None
) -> GrpcChannel:
    """Dial a server and prove who is calling; the server's certificate is checked first.

    Args:
        invitation: Where it is and how to know it.
        keys: The client's.
        name: What the client wants to be called; empty when the server knows it.
        timeout: For small calls, in seconds.
        authority: Whose certificates to trust, PEM, where the server has an organisation's; the usual ones when left out.

    Returns:
        A :class:`~fedloom.deploy.seam.Channel`. It reconnects by itself, to a server that was started again, too.

    Raises:
        MissingDependency: ``grpcio`` or ``cryptography`` is not installed.
        Unreachable: Nobody answers there now.
        Refused: It is another server, or it does not admit this client.
    """
    grpc = grpc_loader.load()
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.max_send_message_length", CHUNK + frames.OVERHEAD),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.use_local_subchannel_pool", 1),  # a connection of one's own, whoever else calls from this process
        ("grpc.enable_http_proxy", int(not is_loopback(invitation.host))),
    ]
    if invitation.pin == INSECURE:
        channel = grpc.insecure_channel(invitation.address, options)
    elif invitation.pin == PUBLIC:
        channel = grpc.secure_channel(invitation.address, grpc.ssl_channel_credentials(authority), options)
    else:
        authority = fetch_authority(invitation.host, invitation.port, invitation.pin, timeout)
        options.append(("grpc.ssl_target_name_override", SERVER_NAME))
        channel = grpc.secure_channel(invitation.address, grpc.ssl_channel_credentials(authority), options)
    made = GrpcChannel(channel, invitation, keys, name, timeout)
    try:
        made.open()
    except BaseException:
        made.close()
        raise
    return made


class GrpcChannel:
    """A :class:`~fedloom.deploy.seam.Channel` over gRPC; :func:`connect` makes it."""

    def __init__(self, channel: Any, invitation: Invitation, keys: Keys, name: str, timeout: float) -> None:
        self._error: type[Exception] = grpc_loader.load().RpcError
        self._channel, self._invitation, self._keys, self._name = channel, invitation, keys, name
        self._context, self._timeout = invitation.context, timeout
        self._session, self._numbers = b"", itertools.count(1)
        self._lock, self._closed = threading.Lock(), threading.Event()
        path = f"/{frames.SERVICE}/"
        self._challenge = channel.unary_unary(path + "Challenge")
        self._open = channel.unary_unary(path + "Open")
        self._asking = channel.unary_stream(path + "Ask")
        self._offering = channel.unary_unary(path + "Offer")
        self._pushing = channel.stream_unary(path + "Push")

    def register(self, hello: Hello) -> Welcome:
        """See :class:`~fedloom.deploy.seam.Channel`, and so for the methods that follow."""
        return read(*self._ask(frames.REGISTER, hello, _TRANSFER), Welcome)

    def next_task(self, wait: float) -> Task | None:
        """See there."""
        data, summed = self._ask(frames.POLL, Poll(wait), wait + _TRANSFER)
        return None if is_nothing(data) else read(data, summed, Task)

    def upload(self, update: Upload) -> Receipt:
        """See there. What a cut connection lost is sent again, and nothing else."""
        parts = messages.pieces(update)
        length, digest = sum(len(part) for part in parts), bytes(parts[-1])
        place = None if length > CHUNK else 0  # a small one is sent without asking how much is there
        best, tries = 0, 0
        while True:
            try:
                at = self._have(length, digest) if place is None else place
                best, tries = (at, 0) if at > best else (best, tries)
                return read(self._with_session(partial(self._push, parts, length, digest, at)), None, Receipt)
            except Unreachable:
                if tries == RESUMES or self._closed.wait(0.1 * 2**tries):
                    raise
                place, tries = None, tries + 1

    def heartbeat(self, doing: str) -> None:
        """See there."""
        self._ask(frames.BEAT, Beat(doing), self._timeout)

    def leave(self, reason: str) -> None:
        """See there."""
        self._ask(frames.LEAVE, Leave(reason), self._timeout)

    def close(self) -> None:
        """See there."""
        self._closed.set()
        self._channel.close()

    def open(self) -> bytes:
        """Open a session where there is none, and return it.

        Raises:
            Unreachable: Nobody answers.
            Refused: The server does not admit this client.
        """
        with self._lock:
            if self._session:
                return self._session
            try:
                challenge = self._call(self._challenge, b"", self._timeout)
                invitation = self._invitation
                data = messages.encode(Open(challenge, self._keys.public, self._name, invitation.token))
                data += self._keys.sign(self._context, data)
                opened = read(self._call(self._open, data, self._timeout), None, Opened)
            except _NoSession as error:
                raise Refused(str(error)) from error
            self._session, self._name = opened.session, opened.name
            return self._session

    @property
    def name(self) -> str:
        """What the server calls this client."""
        return self._name

    def _ask(self, method: int, message: Message, timeout: float) -> tuple[memoryview, bytes]:
        data = messages.encode(message)

        def once() -> tuple[memoryview, bytes]:
            request = self._head(method, len(data), data[-32:]) + data
            return self._gathered(self._asking, request, timeout)

        return self._with_session(once)

    def _gathered(self, method: Any, request: bytes, timeout: float) -> tuple[memoryview, bytes]:
        """Put the chunks of an answer together; returns them and their checksum."""
        have = 0
        try:
            stream = iter(method(request, timeout=timeout))
            length = number(next(stream, b""))
            answer, summed = room(length), Summed(length)
            for data in stream:
                place, content = frames.unchunk(data)
                if place != have or place + len(content) > length:
                    raise Unreachable("the server's answer has a gap; ask again")
                have += len(content)
                answer[place:have] = content
                summed.add(content)
        except self._error as error:
            raise self._wrong(error) from error
        except DataError as error:
            raise Unreachable(f"the server's answer was damaged; ask again ({error})") from error
        except ValueError as error:  # the channel is closed
            raise Unreachable("the connection is closed") from error
        if have != length:
            raise Unreachable("the server's answer was cut; ask again")
        return answer, summed.digest()

    def _have(self, length: int, digest: bytes) -> int:
        def once() -> int:
            head = self._head(frames.OFFER, length, digest)
            return number(self._call(self._offering, head, self._timeout))

        return self._with_session(once)

    def _push(self, parts: list[Buffer], length: int, digest: bytes, place: int) -> bytes:
        head, calls = self._head(frames.UPLOAD, length, digest), SimpleQueue[Any]()

        def requests() -> Iterator[bytes]:
            yield head + PLACE.pack(place)
            at, size = place, CHUNK if length <= LARGE else piece(calls.get(), CHUNK)
            for data in chunks(parts, size, place):
                yield frames.chunk(at, data)
                at += len(data)

        def push(request: Iterator[bytes], timeout: float) -> Any:
            call = self._pushing.future(request, timeout=timeout)
            calls.put(call)
            return call.result()

        return self._call(push, requests(), _TRANSFER)

    def _head(self, method: int, length: int, digest: bytes) -> bytes:
        session = self.open()
        return Head(method, session, next(self._numbers), length, digest).signed_by(self._keys, self._context)

    def _with_session(self, act: Callable[[], T]) -> T:
        """Do something; once more with a new session when the server has forgotten the old one."""
        for _ in range(2):
            session = self.open()
            try:
                return act()
            except _NoSession:
                with self._lock:
                    if self._session == session:
                        self._session = b""
        raise Refused("the server forgets this client's session again and again")

    def _call(self, method: Any, request: Any, timeout: float) -> bytes:
        try:
            return bytes(method(request, timeout=timeout))
        except self._error as error:
            raise self._wrong(error) from error
        except ValueError as error:  # the channel is closed
            raise Unreachable("the connection is closed") from error

    def _wrong(self, error: Any) -> Exception:
        code, said = error.code().name, shown(error.details() or "")[:1000]
        if code == "UNAUTHENTICATED":
            return _NoSession(said)
        if code == "ABORTED":  # an upload that was cut
            return Unreachable(said)
        if "handshake" in said and "certificate" in said.lower():
            return Refused(given.untrusted(self._invitation, said))
        if code == "UNKNOWN" and said.startswith("Exception "):  # gRPC's words for an error nobody expected
            return Refused(f"the server failed, its log says where ({said})")
        if code in _AGAIN and "larger than max" not in said:
            last = said.rpartition("last error: ")[2].removeprefix("UNKNOWN: ").rpartition("remote host: ")[2]
            return Unreachable(f"{self._invitation.address} cannot be reached now ({last or code.lower()})")
        return Refused(said or f"the server refuses ({code.lower()})")
