"""Courier: carries a server's tasks to the nodes of Flower's grid, and their answers back, in a thread of its own.

It knows nothing of what a task is: whatever :meth:`~fedloom.deploy.seam.Service.next_task` gives is sent, and whatever comes
is handed to :meth:`~fedloom.deploy.seam.Service.upload`. A node has one task at a time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fedloom.deploy.flower.letters import HELLO, TASK, TERMS, TYPES, Letter, group, question, words
from fedloom.deploy.flower.loader import load
from fedloom.deploy.flower.node import DIGEST, TASK_PART, UPLOAD, WELCOME, digest
from fedloom.deploy.flower.peers import Asked, Peer
from fedloom.deploy.protocol.facts import OVER
from fedloom.deploy.protocol.messages import STOP, Hello, Task, Upload, Welcome, decode, encode
from fedloom.deploy.seam import Identity, Refused, Service, Unreachable
from fedloom.deploy.trust.admission import Admission
from fedloom.errors import DataError, FedloomError

PACE = 0.25
"""Seconds between two looks at what has come."""
FLEET = 1.0
"""Seconds between two looks at who is there."""
SOON = 600.0
"""Seconds that a question without a task may take."""
GRACE = 60.0
"""Seconds after a task's deadline in which its answer may still come; then the node may be asked again."""

DEAF = 10.0
"""Seconds after which a server that Flower does not listen to ends itself, so that another can take its folder."""

Audit = Callable[[Mapping[str, Any]], None]


def ended() -> None:
    """End this process as Flower would."""
    os.kill(os.getpid(), signal.SIGTERM)


class Courier:
    """Carries tasks and answers.

    Args:
        grid: Flower's ``Grid``.
        service: The server.
        admission: Who may take part: a name belongs to the key that used it first.
        say: Told what people should know.
        audit: Takes note of every message.
        pace: Seconds between two looks at what has come.
        end: Called where Flower has carried nothing for :data:`DEAF` seconds: it has stopped the run, and says it so.
    """

    def __init__(
        self,
        grid: Any,
        service: Service,
        admission: Admission,
        say: Callable[[str], None],
        audit: Audit = lambda _: None,
        pace: float = PACE,
        end: Callable[[], None] = ended,
    ) -> None:
        self._grid, self._service, self._admission, self._say = grid, service, admission, say
        self._audit, self._pace, self._end = audit, pace, end
        self._app = load().app
        self._peers: dict[int, Peer] = {}
        self._early: list[tuple[Peer, Upload]] = []
        self._looked = -FLEET
        self._stopped = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Carry while the block runs."""
        thread = threading.Thread(target=self._run, name="fedloom-courier", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join(10.0)

    def _run(self) -> None:
        trouble, fine = "", time.monotonic()
        while not self._stopped.wait(self._pace):
            try:
                self.step()
                trouble, fine = "", time.monotonic()
            except Exception as error:  # what a grid raises is Flower's secret
                text = f"no message can be carried now ({type(error).__name__}: {error}); trying again"
                if text != trouble:
                    self._say(text)
                trouble = text
                if time.monotonic() - fine > DEAF:
                    self._say(f"Flower has carried nothing for {DEAF:g} s: this server ends, and can be started again")
                    self._end()
                    return
                self._stopped.wait(1.0)

    def step(self) -> None:
        """Look who is there, ask those who are free, and take what has come."""
        if time.monotonic() - self._looked >= FLEET:
            self._look()
        self._take_early()
        self._push([(peer, *found) for peer in self._peers.values() if peer.free and (found := self._next(peer))])
        self._pull()

    def _look(self) -> None:
        there = set(self._grid.get_node_ids())
        self._looked = time.monotonic()
        for node in there - set(self._peers):
            self._peers[node] = Peer(node)
        for peer in self._peers.values():
            peer.here = peer.node in there
            if peer.here and peer.who is not None and peer.agreed and peer.again < float("inf"):
                self._tried(
                    peer,
                    lambda who=peer.who, busy=peer.asked is not None: self._service.heartbeat(  # type: ignore[misc]
                        who, "at work" if busy else ""
                    ),
                )

    def _next(self, peer: Peer) -> tuple[Letter, Task | None] | None:
        """Return what a node is asked now; None where there is nothing."""
        if peer.who is None or peer.hello is None:
            return question(HELLO, ""), None
        who, said = peer.who, peer.hello
        if not peer.agreed:
            welcome = self._tried(peer, lambda: self._service.register(who, said))
            if welcome is None:
                return None
            terms = replace(welcome, model={}, vectors={}, blobs={})
            return question(TERMS, welcome.run, {WELCOME: encode(terms)}), None
        task = self._tried(peer, lambda: self._service.next_task(who, 0.0))
        if task is None:
            return None
        if task.kind == STOP:
            self._tried(peer, lambda: self._service.heartbeat(who, OVER))  # for the node, which has nothing to end
            peer.leave()
            return None
        welcome = self._tried(peer, lambda: self._service.register(who, said))
        return None if welcome is None else self._letter(peer, task, welcome)

    def _letter(self, peer: Peer, task: Task, welcome: Welcome) -> tuple[Letter, Task]:
        parts = {TASK_PART: encode(task), WELCOME: encode(welcome)}
        parts[DIGEST] = digest(parts[WELCOME])
        if peer.knows == parts[DIGEST]:
            del parts[WELCOME]
        peer.knows = parts[DIGEST]
        return question(TASK, welcome.run, parts), task

    def _push(self, asked: list[tuple[Peer, Letter, Task | None]]) -> None:
        if not asked:
            return
        lives = [SOON if task is None else task.deadline + GRACE if task.deadline else None for *_, task in asked]
        messages = [
            self._app.Message(letter.records(), peer.node, TYPES[letter.kind], ttl=life, group_id=group(task))
            for (peer, letter, task), life in zip(asked, lives, strict=True)
        ]
        names = list(self._grid.push_messages(messages))
        names += [None] * (len(asked) - len(names))
        for name, (peer, letter, task), life in zip(names, asked, lives, strict=True):
            if name is None:
                self._fail(peer, task, "Flower did not take the message: is it too large?")
                continue
            ends = float("inf") if life is None else time.monotonic() + life
            peer.asked = Asked(name, replace(letter, parts={}), task, ends)
            self._note(peer, "asked", letter, task)

    def _pull(self) -> None:
        waiting = {peer.asked.message: peer for peer in self._peers.values() if peer.asked is not None}
        if not waiting:
            return
        for message in self._grid.pull_messages(list(waiting)):
            peer = waiting.get(message.metadata.reply_to_message_id)
            if peer is not None and peer.asked is not None:
                asked, peer.asked = peer.asked, None
                self._take(peer, asked, message)
        for peer in waiting.values():
            if peer.asked is not None and time.monotonic() > peer.asked.ends:
                asked, peer.asked = peer.asked, None
                self._fail(peer, asked.task, "there was no answer")

    def _take(self, peer: Peer, asked: Asked, message: Any) -> None:
        if message.has_error():
            self._fail(peer, asked.task, words(message.error))
            return
        try:
            letter = Letter.read(message.content)
            if not letter.answers(asked.question) or (peer.who is not None and letter.key != peer.who.key):
                raise DataError("its answer is not signed with its key")
            self._note(peer, "answered", letter, asked.task)
            self._taken(peer, asked, letter)
        except FedloomError as error:
            self._fail(peer, asked.task, str(error))

    def _taken(self, peer: Peer, asked: Asked, letter: Letter) -> None:
        if asked.question.kind == TASK and asked.task is not None:
            self._answer(peer, asked.task, letter)
        elif letter.reason:
            if asked.question.kind == TERMS:
                self._make_room(peer, letter.reason)
            self._fail(peer, None, letter.reason)
        elif asked.question.kind == TERMS:
            peer.agreed = True
            peer.fine()
        else:
            self._meet(peer, letter)

    def _meet(self, peer: Peer, letter: Letter) -> None:
        """Take down who a node is."""
        said = decode(letter.part(HELLO), Hello)
        for other in self._peers.values():
            if other is not peer and other.who is not None and other.who.key == letter.key:
                if other.here:
                    raise DataError(
                        f"it has the key of {other.title}, which is there, too: each needs a folder of its own"
                    )
                other.who = None
        token = b"" if self._admission.is_member(letter.key) else self._admission.invite()
        name = self._admission.admit(letter.key, said.name, token)
        peer.who, peer.hello = Identity(name, letter.key, f"node {peer.node}"), said
        peer.fine()

    def _make_room(self, peer: Peer, reason: str) -> None:
        """Let others have the place of a node that has not agreed, where there are more nodes than places."""
        who, nodes = peer.who, sum(other.here for other in self._peers.values())
        welcome = None if who is None or peer.hello is None else self._service.register(who, peer.hello)
        if who is not None and welcome is not None and nodes > welcome.clients:
            self._service.leave(who, reason)

    def _answer(self, peer: Peer, task: Task, letter: Letter) -> None:
        if peer.who is None:
            return
        if UPLOAD in letter.parts:
            self._hand_in(peer, decode(letter.part(UPLOAD), Upload))
        elif letter.reason:
            self._fail(peer, task, letter.reason)
        else:
            peer.knows = b""  # it has lost the description of the run, and asks for it
        if letter.final:
            self._service.leave(peer.who, letter.reason)
            peer.leave()

    def _hand_in(self, peer: Peer, upload: Upload) -> None:
        assert peer.who is not None
        try:
            self._service.upload(peer.who, upload)
            peer.fine()
        except Unreachable:
            self._early.append((peer, upload))

    def _take_early(self) -> None:
        early, self._early = self._early, []
        for peer, upload in early:
            self._tried(peer, lambda peer=peer, upload=upload: self._hand_in(peer, upload))  # type: ignore[misc]

    def _fail(self, peer: Peer, task: Task | None, reason: str) -> None:
        """A node did not do what it was asked."""
        peer.rest()
        if task is not None and peer.who is not None:
            who, lost = peer.who, Upload(task.round, task.attempt, task.kind, failure="dropped", reason=reason[:2000])
            self._tried(peer, lambda: self._service.upload(who, lost))
        elif reason != peer.said:
            self._say(f"{peer.title}: {reason}")
        peer.said = reason

    def _tried(self, peer: Peer, call: Callable[[], Any]) -> Any:
        """Make a call to the server; None where it refuses."""
        try:
            return call()
        except Unreachable:
            return None
        except (Refused, FedloomError) as error:
            peer.rest()
            if str(error) != peer.said:
                self._say(f"{peer.title}: {error}")
            peer.said = str(error)
            return None

    def _note(self, peer: Peer, what: str, letter: Letter, task: Task | None) -> None:
        row = {"what": f"{what} {letter.kind if task is None else task.kind}", "node": str(peer.node)}
        if peer.who is not None:
            row["client"] = peer.who.name
        rounds = {} if task is None else {"round": task.round, "attempt": task.attempt}
        self._audit({**row, **rounds, "bytes": sum(map(len, letter.parts.values()))})
