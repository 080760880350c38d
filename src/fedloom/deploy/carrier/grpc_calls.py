"""The calls of the gRPC transport: who calls is proven, uploads are put together, and both are handed to the service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from fedloom.deploy.carrier.front import caller
from fedloom.deploy.carrier.grpc_gate import Cut, Gate, TooBusy
from fedloom.deploy.carrier.limits import Buckets, Limits
from fedloom.deploy.carrier.staging import Part, Staging
from fedloom.deploy.carrier.transfers import LARGE, PIECE, Transfers, telling
from fedloom.deploy.protocol import messages
from fedloom.deploy.protocol.messages import Beat, Hello, Leave, Message, Nothing, Poll, Task, Upload, decode
from fedloom.deploy.protocol.wire import DIGEST, Buffer, Summed, plain, sealed
from fedloom.deploy.seam import Identity, Refused, Service, Unreachable
from fedloom.deploy.trust import frames
from fedloom.deploy.trust.frames import PLACE, Head
from fedloom.deploy.trust.sessions import Sessions, Unknown, damaged
from fedloom.errors import DataError, FedloomError, StorageError

T = TypeVar("T")
Audit = Callable[[Mapping[str, Any]], None]
"""Takes note of a call: ``what``, ``client``, ``address``, and what there is of ``bytes``, ``sha256``, ``round``, ``why``."""

SLICE = 1.0
"""A wait for a task is cut in pieces of so many seconds, so that a client that is gone is noticed."""
_DETAILS = 1000
REFUSALS = 1.0, 200.0
"""So many refusals of one address are noted per second, and at once."""


class Calls:
    """What the methods of the transport do.

    Attributes:
        whence: Says where a call comes from, by its port, where something stands in front.
        largest: Says how long the longest upload is that the run has a use for, in bytes.
        stopping: Whether nobody is to wait any longer.
    """

    whence: Callable[[int], str] | None = None
    largest: Callable[[], int] | None = None

    def __init__(
        self, service: Service, sessions: Sessions, limits: Limits, staging: Staging, audit: Audit | None
    ) -> None:
        self._service, self._sessions, self._limits, self._staging = service, sessions, limits, staging
        self._audit = audit or (lambda _: None)
        self._rates = Buckets(limits.rate, limits.burst)
        self._opens, self._refusals = Buckets(limits.opens, limits.opens_burst), Buckets(*REFUSALS)
        self._gate = Gate(limits.threads // 2, limits.silent, limits.calls)
        self._gate.watch()
        self._transfers = Transfers(limits.transfers, limits.chunk)
        self.stopping = False

    def stop(self) -> None:
        """Let nobody wait any longer."""
        self.stopping = True
        self._gate.close()

    def handlers(self, grpc: Any) -> Any:
        """Return the methods as gRPC wants them."""
        codes = grpc.StatusCode
        self._codes = (
            (Unknown, codes.UNAUTHENTICATED),
            (TooBusy, codes.RESOURCE_EXHAUSTED),
            (Cut, codes.ABORTED),
            (Unreachable, codes.UNAVAILABLE),
            (StorageError, codes.UNAVAILABLE),
            (Refused, codes.PERMISSION_DENIED),
            (DataError, codes.INVALID_ARGUMENT),
            (FedloomError, codes.FAILED_PRECONDITION),
        )
        methods = {
            "Challenge": grpc.stream_unary_rpc_method_handler(self._opened(self.challenge)),
            "Open": grpc.stream_unary_rpc_method_handler(self._opened(self.open)),
            "Ask": grpc.stream_stream_rpc_method_handler(self._opened(self.ask)),
            "Offer": grpc.stream_unary_rpc_method_handler(self._opened(self.offer)),
            "Push": grpc.stream_unary_rpc_method_handler(self.push),
        }
        return grpc.method_handlers_generic_handler(frames.SERVICE, methods)

    def _opened(self, method: Callable[[bytes, Any], T]) -> Callable[[Iterator[bytes], Any], T]:
        """Read a call's message, which gRPC itself would wait for without an end."""
        return lambda requests, context: method(self._gate.first(requests, context, self._address(context)), context)

    def challenge(self, _: bytes, context: Any) -> bytes:
        """Give a client something to sign."""
        with self._answering("challenge", context):
            if not self._opens.take(self._address(context)):
                raise TooBusy("too many clients join from this address at once; wait a little")
            return self._sessions.challenge()

    def open(self, request: bytes, context: Any) -> bytes:
        """Open a session."""
        with self._answering("open", context):
            opened = self._sessions.open(request, self._address(context))
            self._audit({"what": "open", "client": opened.name, "address": self._address(context)})
            return messages.encode(opened)

    def ask(self, request: bytes, context: Any) -> Iterator[bytes]:
        """Answer one of the calls whose message is small; the answer may be large."""
        with self._answering("ask", context) as row:
            head, signature, data = Head.read(request)
            who = self._who(head, signature, (frames.REGISTER, frames.POLL, frames.BEAT, frames.LEAVE), row)
            if wrong := damaged(head, data):
                raise wrong
            answer = self._do(head.method, who, data, context)
            parts = plain(messages.raw(answer))
            if _length(parts) <= LARGE:
                yield from self._sent(answer, parts, self._limits.chunk, row, context)
                return
            # A task that has to wait may be out of date when its turn comes, and would hold its model so long.
            kept = None if isinstance(answer, Task) and self._transfers.full else answer
            del answer, parts

            def told() -> None:
                self._service.heartbeat(who, "getting the model")  # it gives no sign of life itself

            with self._transfers.turn(who.name, context, told) as piece:
                answer = kept or self._service.next_task(who, 0.0) or Nothing()
                yield from telling(self._sent(answer, plain(messages.raw(answer)), piece, row, context), told)

    def _sent(
        self, answer: Message, parts: list[Buffer], size: int, row: Mapping[str, Any], context: Any
    ) -> Iterator[bytes]:
        """Send an answer in pieces; it counts as the client's call until it has been read."""
        length, place = _length(parts), 0
        summed = Summed(length)
        try:
            yield PLACE.pack(length)
            for piece in self._gate.paced(sealed(parts, size, summed), context, self._limits.gap):
                yield frames.chunk(place, piece)
                place += len(piece)
        finally:
            if row["what"] != frames.METHODS[frames.BEAT] and not isinstance(answer, Nothing):
                cut = {} if place == length else {"why": f"{place} of {length} bytes were sent"}
                sums = {"sha256": summed.digest().hex(), "round": getattr(answer, "round", 0)}
                self._audit({**row, "bytes": place, **sums, **cut})

    def offer(self, request: bytes, context: Any) -> bytes:
        """Say how much of an upload is there already."""
        with self._answering("offer", context) as row:
            head, signature, _ = Head.read(request)
            who = self._who(head, signature, (frames.OFFER,), row)
            return PLACE.pack(self._staging.have(who.key, head.digest))

    def push(self, requests: Iterator[bytes], context: Any) -> bytes:
        """Take an upload, or the rest of it."""
        with self._answering("upload", context) as row:
            head, signature, rest = Head.read(self._gate.first(requests, context, self._address(context)))
            who = self._who(head, signature, (frames.UPLOAD,), row)
            self._fits(head.length)
            if len(rest) != PLACE.size:
                raise DataError("an upload begins with the place where it goes on")
            part = self._received(requests, who, head, PLACE.unpack(rest)[0], context)
            return part.answer or self._taken(who, head, part, row)

    def _fits(self, length: int) -> None:
        largest = self._limits.message if self.largest is None else self.largest()
        most = max(self._limits.small, largest)
        if length > most and not largest:  # a server that has just begun does not know what updates are like
            raise Unreachable("no round is open yet")
        if length > most:
            raise Refused(f"an update of {length} bytes; this server takes {most} at most")

    def _received(self, requests: Iterator[bytes], who: Identity, head: Head, place: int, context: Any) -> Part:
        """Put an upload together; that of a large one comes when the client is told that it may."""
        with ExitStack() as stack:
            if head.length > LARGE:
                piece = stack.enter_context(self._transfers.turn(who.name, context))
                context.send_initial_metadata(((PIECE, str(piece)),))
            try:
                part, turn = self._staging.begin(who.key, head.digest, head.length, place)
                if not part.answer:
                    for request in self._gate.rest(requests, context, self._limits.gap):
                        self._staging.add(part, turn, *frames.unchunk(request))
                        del request  # or it would be there until the next one is
            except DataError as error:
                raise Cut(str(error)) from error
            return part

    def _taken(self, who: Identity, head: Head, part: Part, row: Mapping[str, Any]) -> bytes:
        """Hand a whole upload over; a second call that brings the same one waits for the first one's answer."""
        with part.over:
            if part.answer:
                return part.answer
            if part.have < part.length:
                raise Cut(f"{part.have} of {part.length} bytes of the upload came")
            kept = b""
            try:
                with self._staging.turn(part):
                    data = part.whole()
                    if wrong := damaged(head, data):
                        raise wrong
                    update = decode(data, Upload, part.summed.digest())
                    receipt = self._service.upload(who, update)
                answer = messages.encode(receipt)
                kept = answer if receipt.accepted else b""
            finally:
                self._staging.end(who.key, part, kept)
        why = {} if receipt.accepted else {"why": receipt.reason}
        self._audit({**row, "bytes": head.length, "sha256": head.digest.hex(), "round": update.round, **why})
        return answer

    def _who(self, head: Head, signature: bytes, methods: tuple[int, ...], row: dict[str, Any]) -> Identity:
        who = self._sessions.check(head, signature, methods)
        row.update(what=frames.METHODS[head.method], client=who.name)
        if not self._gate.enter(who.name):
            raise TooBusy(f"{who.name} has too many calls open; wait a little")
        if not self._rates.take(who.key):
            raise TooBusy(f"{who.name} calls too often; wait a little")
        return who

    def _do(self, method: int, who: Identity, data: bytes, context: Any) -> Message:
        if method == frames.REGISTER:
            return self._service.register(who, decode(data, Hello))
        if method == frames.POLL:
            return self._next_task(who, decode(data, Poll).wait, context) or Nothing()
        if method == frames.BEAT:
            self._service.heartbeat(who, decode(data, Beat).doing)
        else:
            self._service.leave(who, decode(data, Leave).reason)
        return Nothing()

    def _next_task(self, who: Identity, wait: float, context: Any) -> Task | None:
        if not wait >= 0:
            raise DataError("a wait of less than nothing")
        until = time.monotonic() + min(wait, self._limits.wait)
        while True:
            left = until - time.monotonic()
            task = self._service.next_task(who, max(0.0, min(left, SLICE)))
            if task is not None or left <= SLICE or self.stopping or not context.is_active():
                return task

    @contextmanager
    def _answering(self, what: str, context: Any) -> Iterator[dict[str, Any]]:
        """Turn an error of fedloom into a status; the audit log has it, too, in the row that is given."""
        row: dict[str, Any] = {"what": what, "address": self._address(context)}
        try:
            yield row
        except FedloomError as error:
            if self._refusals.take(row["address"]):  # or anybody could fill the disk
                self._audit({**row, "why": str(error), "refused": True})
            code = next(code for kind, code in self._codes if isinstance(error, kind))
            context.abort(code, str(error)[:_DETAILS])
        finally:
            if "client" in row:
                self._gate.leave(row["client"])

    def _address(self, context: Any) -> str:
        return caller(str(context.peer()), self.whence)


def _length(parts: list[Buffer]) -> int:
    """Return how long a message is, with its checksum, in bytes."""
    return sum(len(part) for part in parts) + DIGEST
