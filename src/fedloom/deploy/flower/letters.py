"""Letters: what travels in a message of Flower. Bytes go as arrays, which Flower cuts in pieces; nothing is unpickled."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from fedloom.deploy.flower.loader import load
from fedloom.deploy.protocol.messages import Task
from fedloom.deploy.trust.identity import Keys, signed
from fedloom.errors import DataError

HELLO, TERMS, TASK = QUESTIONS = ("hello", "terms", "task")
TYPES = {HELLO: "query", TERMS: "query", TASK: "train"}
"""What Flower calls the messages."""

ABOUT, BODY, BYTES = "fedloom", "body", "uint8"
MOST = 2000


@dataclass(frozen=True)
class Letter:
    """A question to a node, or its answer.

    Attributes:
        kind: One of :data:`QUESTIONS`; an answer has that of its question.
        run: The run's name.
        challenge: Of the question, 32 random bytes; an answer repeats it, so that an old one is no answer.
        parts: Bytes by name: messages of :mod:`fedloom.deploy.protocol.messages`, digests.
        reason: Why there is no answer; empty where there is one.
        final: Whether the node does not want to be asked again in this run.
        key: Who answers: its public key.
        signature: Of all the above, by that key.
    """

    kind: str
    run: str
    challenge: bytes
    parts: Mapping[str, bytes] = field(default_factory=dict)
    reason: str = ""
    final: bool = False
    key: bytes = b""
    signature: bytes = b""

    def records(self) -> Any:
        """Return it as Flower's ``RecordDict``."""
        app = load().app
        arrays = {name: app.Array(BYTES, (len(data),), BYTES, bytes(data)) for name, data in self.parts.items()}
        about = {
            "kind": self.kind,
            "run": self.run,
            "challenge": self.challenge,
            "reason": self.reason[:MOST],
            "final": self.final,
            "key": self.key,
            "signature": self.signature,
        }
        return app.RecordDict({ABOUT: app.ConfigRecord(about), BODY: app.ArrayRecord(arrays)})

    @classmethod
    def read(cls, records: Any) -> Self:
        """Read what :meth:`records` made.

        Raises:
            DataError: It is something else.
        """
        try:
            about, body = records[ABOUT], records[BODY]
            parts = {str(name): bytes(array.data) for name, array in body.items()}
            made = cls(parts=parts, **{key: about[key] for key in about})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"this message is none of fedloom's ({type(error).__name__})") from error
        texts = all(isinstance(text, str) for text in (made.kind, made.run, made.reason))
        if not texts or not all(isinstance(data, bytes) for data in (made.challenge, made.key, made.signature)):
            raise DataError("this message is none of fedloom's")
        return replace(made, reason=made.reason[:MOST], final=made.final is True)

    def part(self, name: str) -> bytearray:
        """Return a part, in memory of its own.

        Raises:
            DataError: It is missing.
        """
        if name not in self.parts:
            raise DataError(f"the message '{self.kind}' has no '{name}': update fedloom on both sides")
        return bytearray(self.parts[name])

    def answered(self, keys: Keys, parts: Mapping[str, bytes], reason: str = "", *, final: bool = False) -> Letter:
        """Return the answer to this question, signed."""
        made = Letter(self.kind, self.run, self.challenge, parts, " ".join(reason.split())[:MOST], final, keys.public)
        return replace(made, signature=keys.sign(_context(self.run), made._digest()))

    def answers(self, question: Letter) -> bool:
        """Say whether this is the answer to a question, by the owner of its key."""
        same = (self.kind, self.run, self.challenge) == (question.kind, question.run, question.challenge)
        return same and signed(self.key, _context(self.run), self._digest(), self.signature)

    def _digest(self) -> bytes:
        made = hashlib.sha256()
        texts = [self.kind.encode(), self.challenge, self.reason.encode(), bytes([self.final]), self.key]
        for data in (*texts, *(piece for name in sorted(self.parts) for piece in (name.encode(), self.parts[name]))):
            made.update(len(data).to_bytes(8, "big"))
            made.update(data)
        return made.digest()


def _context(run: str) -> bytes:
    """Return what signatures are bound to: they cannot stand for others of the same key."""
    return hashlib.sha256(b"fedloom flower 1\n" + run.encode()).digest()


def question(kind: str, run: str, parts: Mapping[str, bytes] | None = None) -> Letter:
    """Return a new question."""
    return Letter(kind, run, secrets.token_bytes(32), parts or {})


def group(task: Task | None) -> str:
    """Return what Flower shows as a message's round."""
    return str(task.round) if task is not None and task.round else ""


def words(error: Any) -> str:
    """Return Flower's words for what went wrong on a node, in one line."""
    return f"Flower reports error {error.code}: {' '.join(str(error.reason or 'without a reason').split())[:500]}"
