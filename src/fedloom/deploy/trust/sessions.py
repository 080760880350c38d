"""Sessions: a client proves once that it has its key, and signs every call from then on."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedloom.deploy.protocol.messages import Open, Opened, decode
from fedloom.deploy.protocol.wire import Buffer
from fedloom.deploy.seam import Identity, Refused
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.frames import SESSION, Head, Numbers
from fedloom.deploy.trust.identity import SIGNATURE, signed
from fedloom.errors import DataError, NetworkError

CHALLENGE = 32


class Unknown(NetworkError):  # noqa: N818 - said of a session
    """The session is not known, such as after a restart: open another one."""


@dataclass
class Session:
    """A client that has proven who it is."""

    who: Identity
    context: bytes
    numbers: Numbers = field(default_factory=Numbers)
    seen: float = 0.0


class Sessions:
    """Who is connected.

    Args:
        admission: Who may be.
        contexts: What signatures may be bound to, see :func:`fedloom.deploy.trust.identity.context_of`; one for each of the
            server's names.
        clock: Returns seconds.
        most: So many sessions and challenges are remembered; the one that was quiet longest is forgotten first.
        idle: A session is forgotten after so many seconds without a call.
        patience: A challenge is good for so many seconds.
    """

    def __init__(
        self,
        admission: Admission,
        contexts: Sequence[bytes],
        clock: Callable[[], float] = time.monotonic,
        most: int = 4096,
        idle: float = 3600.0,
        patience: float = 60.0,
    ) -> None:
        self._admission, self._contexts, self._clock = admission, tuple(contexts), clock
        self._most, self._idle, self._patience = most, idle, patience
        self._challenges: OrderedDict[bytes, float] = OrderedDict()
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        self._lock = threading.Lock()

    def challenge(self) -> bytes:
        """Return something to sign, 32 bytes that were never used before."""
        made = secrets.token_bytes(CHALLENGE)
        with self._lock:
            self._challenges[made] = self._clock()
            while len(self._challenges) > self._most:
                self._challenges.popitem(last=False)
        return made

    def open(self, data: bytes, address: str) -> Opened:
        """Open a session for the client that signed ``data``, an :class:`Open` with its signature after it.

        Raises:
            DataError: The bytes are no such message.
            Refused: The signature is wrong, its challenge was used or is too old, or the client is not admitted.
        """
        message = decode(data[:-SIGNATURE], Open)
        with self._lock:
            made = self._challenges.pop(message.challenge, None)
        if made is None or self._clock() - made > self._patience:
            raise Refused("the challenge is unknown, was used before or is too old: join again")
        bound = [one for one in self._contexts if signed(message.key, one, data[:-SIGNATURE], data[-SIGNATURE:])]
        if not bound:
            raise Refused("the signature is wrong: the caller has another key, or another name for this server")
        name = self._admission.admit(message.key, message.name, message.token)
        session = secrets.token_bytes(SESSION)
        with self._lock:
            self._sessions[session] = Session(Identity(name, message.key, address), bound[0], seen=self._clock())
            while len(self._sessions) > self._most:
                self._sessions.popitem(last=False)
        return Opened(session, name)

    def check(self, head: Head, signature: bytes, methods: tuple[int, ...]) -> Identity:
        """Return who signed a call.

        Raises:
            Unknown: There is no such session, or not any more.
            Refused: The signature is another's, the call is a copy of an earlier one, or the client was sent away.
        """
        with self._lock:
            session = self._sessions.get(head.session)
            if session is not None and self._clock() - session.seen > self._idle:
                del self._sessions[head.session]
                session = None
        if session is None:
            raise Unknown("the session is unknown: open another one")
        if head.method not in methods or not head.is_of(session.who.key, session.context, signature):
            raise Refused("the signature of a call is wrong")
        if not self._admission.is_member(session.who.key):
            if self._admission.was_expelled(session.who.key):
                raise Refused("this client was sent away by the server")
            raise Refused(f"{session.who.name} has no place in this run (any more): join again")
        with self._lock:
            if not session.numbers.use(head.number):
                raise Refused("a call came a second time: somebody may have recorded it")
            session.seen = self._clock()
            if head.session in self._sessions:
                self._sessions.move_to_end(head.session)
        return session.who


def damaged(head: Head, data: Buffer) -> DataError | None:
    """Say what is wrong with a message that is not the one that its head announced."""
    if len(data) == head.length and bytes(data[-len(head.digest) :]) == head.digest:
        return None
    return DataError("a message is not the one that was signed")
