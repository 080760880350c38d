"""Legs: one message of one step of a secure sum, as a task and as the upload that answers it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedloom.deploy.protocol.messages import Task, Upload
from fedloom.errors import DataError
from fedloom.privacy.secagg import Step
from fedloom.privacy.secagg.settings import MOST_CLIENTS, SESSION_SIZE

SECURE = "secure"
"""The kind of such tasks and uploads."""

READY = "ready"
"""Said in an upload that carries no update: it is sealed, and stays with the client until its sum is made."""

IDENTITIES = "identities"
"""The name of all clients' public keys, one after the other by number, in what a client is told of a run."""

NONCE_SIZE = 32
STEP, SESSION, COHORT, NONCE = "step", "session", "cohort", "nonce"


@dataclass(frozen=True)
class Leg:
    """One message of one step.

    Attributes:
        step: Of the protocol.
        session: Names the sum, 16 bytes.
        data: The message; in the first task it is the configuration.
        cohort: In the first task: the numbers of the clients that are in this sum, by place.
        nonce: In the first task: 32 random bytes that the session is made of, see :func:`session_of`.
    """

    step: Step
    session: bytes
    data: bytes = b""
    cohort: tuple[int, ...] = ()
    nonce: bytes = b""

    def task(self, number: int, attempt: int) -> Task:
        """Return it as the server asks for it, in a round."""
        facts: dict[str, Any] = {STEP: int(self.step), SESSION: self.session.hex()}
        if self.step is Step.ADVERTISE:
            facts |= {COHORT: list(self.cohort), NONCE: self.nonce.hex()}
        return Task(SECURE, number, attempt, encoded=self.data, facts=facts)

    def upload(self, number: int, attempt: int, failure: str = "") -> Upload:
        """Return it as a client sends it, in a round; with a ``failure`` it says why there is no message."""
        facts = {STEP: int(self.step), SESSION: self.session.hex()}
        kind = "dropped" if failure else ""
        return Upload(number, attempt, SECURE, encoded=self.data, failure=kind, reason=failure, facts=facts)

    @classmethod
    def read(cls, said: Task | Upload) -> Leg:
        """Undo :meth:`task` or :meth:`upload`.

        Raises:
            DataError: It says something else.
        """
        facts = said.facts
        step, session = facts.get(STEP), _hex(facts, SESSION, SESSION_SIZE)
        if type(step) is not int or not Step.ADVERTISE <= step <= Step.REVEAL:
            raise DataError("a message of a secure sum does not say which step it belongs to")
        if not isinstance(said, Task) or step != Step.ADVERTISE:
            return cls(Step(step), session, said.encoded)
        cohort = facts.get(COHORT)
        fine = isinstance(cohort, list) and len(cohort) <= MOST_CLIENTS
        if not fine or not all(type(n) is int and n >= 0 for n in cohort or ()):
            raise DataError("a secure sum begins with the numbers of those that are in it, and these are none")
        return cls(Step(step), session, said.encoded, tuple(cohort or ()), _hex(facts, NONCE, NONCE_SIZE))


def broadcast_of(task: Task) -> bytes:
    """Return the SHA-256 of what a round sends to all clients alike: the model, what comes with it, the learning rate."""
    made = hashlib.sha256(b"fedloom broadcast" + struct.pack("<QdQQ", task.round, task.lr, task.stale, task.unsent))
    made.update(struct.pack("<Q", len(task.encoded)) + task.encoded)
    tensors = {"model": task.vector, **{f"extra.{key}": value for key, value in task.extra.items()}}
    for key, tensor in sorted(tensors.items()):
        if tensor is not None:
            about = f"{key}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode()
            made.update(struct.pack("<Q", len(about)) + about)
            made.update(tensor.detach().cpu().contiguous().reshape(-1).numpy().data)
    return made.digest()


def session_of(run: str, number: int, nonce: bytes, broadcast: bytes) -> bytes:
    """Return the session of a sum, 16 bytes.

    It is new for every sum, and binds it to what the round sent out: clients that were given different models, so that
    one of them stands out of the sum, find themselves in different sums, and nothing is opened (Pasquini et al. 2022,
    "Eluding secure aggregation in federated learning via model inconsistency").
    """
    text = run.encode()
    data = b"fedloom secure sum" + struct.pack("<QQ", number, len(text)) + text + nonce + broadcast
    return hashlib.sha256(data).digest()[:SESSION_SIZE]


def _hex(facts: Mapping[str, Any], name: str, size: int) -> bytes:
    text = facts.get(name)
    if not isinstance(text, str) or len(text) != 2 * size or not set(text) <= set("0123456789abcdef"):
        raise DataError(f"a message of a secure sum has no {name}")
    return bytes.fromhex(text)
