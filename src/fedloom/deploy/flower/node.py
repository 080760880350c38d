"""Node: a client whose process lives for one message; what it has to know from one to the next lies in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedloom import __version__, files
from fedloom.deploy.experiment import Samples
from fedloom.deploy.flower import consent
from fedloom.deploy.flower.consent import Node
from fedloom.deploy.flower.letters import HELLO, QUESTIONS, TERMS, Letter
from fedloom.deploy.joining.agreement import Agreement
from fedloom.deploy.joining.client import Client, Manners
from fedloom.deploy.joining.join import KEY
from fedloom.deploy.protocol.facts import NUMBER, SAMPLES
from fedloom.deploy.protocol.messages import STOP, Hello, Receipt, Task, Upload, Welcome, decode, encode
from fedloom.deploy.seam import Refused
from fedloom.deploy.trust.identity import Keys
from fedloom.deploy.trust.locking import alone
from fedloom.errors import DataError, FedloomError, UsageError

TASK_PART, WELCOME, DIGEST, UPLOAD, WANTS = "task", "welcome", "digest", "upload", "wants"
DONE = "answered"
WELCOMES = 2
"""So many runs' descriptions are kept."""


def answer(folder: Path, question: Letter, say: Callable[[str], None] = print) -> Letter:
    """Answer one question of a server; a refusal is an answer, too.

    Args:
        folder: The node's folder, see :mod:`fedloom.deploy.flower.consent`.
        question: What is asked.
        say: Told what the node's owner should know.
    """
    with alone(folder, file=".lock"):  # Flower may start a second process before the first is done
        keys = Keys.at(folder / KEY)
        try:
            node = Node.at(folder)
            if question.kind not in QUESTIONS:
                raise DataError(f"the server asks '{question.kind[:40]}': update fedloom on this node")
            if question.kind == HELLO:
                return question.answered(keys, {"hello": encode(hello(node))})
            if question.kind == TERMS:
                return _terms(folder, node, keys, question, say)
            return _task(folder, node, keys, question, say)
        except FedloomError as error:
            say(str(error))
            return question.answered(keys, {}, str(error))


def hello(node: Node) -> Hello:
    """Return what a node says of itself: how many samples it has, and what they look like."""
    data = node.samples()
    facts = {SAMPLES: Samples.of(data).to_json(), NUMBER: node.number}
    return Hello(node.name, __version__, samples=len(data), facts=facts)


def _terms(folder: Path, node: Node, keys: Keys, question: Letter, say: Callable[[str], None]) -> Letter:
    welcome = decode(question.part(WELCOME), Welcome)
    found = Agreement.of(welcome, len(node.samples()))
    if consent.ask(folder, found):
        return question.answered(keys, {})
    for line in consent.lines(found):
        say(line)
    raise UsageError(
        f"{node.name} has not agreed to {found.run} yet: its owner is asked by 'fedloom join' on that machine"
    )


def _task(folder: Path, node: Node, keys: Keys, question: Letter, say: Callable[[str], None]) -> Letter:
    said = bytes(question.part(DIGEST))
    if WELCOME in question.parts:
        _keep(folder, said, question.parts[WELCOME])
    path = _path(folder, said)
    if not path.is_file():
        return question.answered(keys, {WANTS: WELCOME.encode()})
    welcome = decode(bytearray(path.read_bytes()), Welcome)
    if welcome.run != question.run:
        raise DataError("the server mixes up two runs")
    once = Once(welcome, decode(question.part(TASK_PART), Task))
    client = Client(
        *(once, node.name, node.samples(), folder, lambda found: consent.ask(folder, found)),
        code=node.model,
        number=node.number,
        where=node.device,
        manners=Manners(patience=0.0),
        keys=keys,
        say=say,
    )
    try:
        client.run()
    except (UsageError, DataError) as error:
        once.left = once.left or str(error)
    parts: Mapping[str, bytes] = {} if once.upload_ is None else {UPLOAD: encode(once.upload_)}
    return question.answered(keys, parts, once.left, final=bool(once.left))


@dataclass
class Once:
    """A :class:`~fedloom.deploy.seam.Channel` to a server that has spoken already: one task, then the end.

    Attributes:
        welcome: What the server says of the run.
        task: What it asks.
        upload_: What the client answers.
        left: Why it does not want to go on; empty where it does.
    """

    welcome: Welcome
    task: Task
    upload_: Upload | None = field(default=None)
    left: str = ""

    def register(self, hello: Hello) -> Welcome:  # noqa: ARG002 - the server has heard it
        """See :class:`~fedloom.deploy.seam.Channel`, and so for the methods that follow."""
        return self.welcome

    def next_task(self, wait: float) -> Task | None:  # noqa: ARG002 - it is there already
        """See there."""
        return self.task if self.upload_ is None else Task(STOP, reason=DONE)

    def upload(self, update: Upload) -> Receipt:
        """See there."""
        if self.upload_ is not None:
            raise Refused("a task has one answer")
        self.upload_ = update
        return Receipt(True)

    def heartbeat(self, doing: str) -> None:
        """See there: Flower tells the server that the node is alive."""

    def leave(self, reason: str) -> None:
        """See there."""
        self.left = reason

    def close(self) -> None:
        """See there."""


def digest(welcome: bytes) -> bytes:
    """Return the name of a description of a run."""
    return hashlib.sha256(welcome).hexdigest().encode()


def _path(folder: Path, name: bytes) -> Path:
    if len(name) != 64 or not set(name) <= set(b"0123456789abcdef"):
        raise DataError("the server names no description of the run")
    return folder / f"welcome-{name.decode()}.bin"


def _keep(folder: Path, name: bytes, welcome: bytes) -> None:
    """Write a description of a run down, and forget old ones."""
    if digest(welcome) != name:
        raise DataError("the description of the run was damaged on its way")
    files.write_bytes(_path(folder, name), welcome)
    known = sorted(folder.glob("welcome-*.bin"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in known[WELCOMES:]:
        path.unlink(missing_ok=True)
