"""Part: a client's part in secure sums, and what it insists on before anything of its update leaves it.

It trusts the server with nothing: it does what it has agreed to, once per round, and otherwise says no. What it has done
is on its disk before it is done, so that a kill makes it forget nothing but its keys; these are never on a disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom import files
from fedloom.algorithms.sealed import SEALED, numbers
from fedloom.deploy.joining.memory import Memory
from fedloom.deploy.protocol.messages import Task, Upload
from fedloom.deploy.sealing.legs import Leg, broadcast_of, session_of
from fedloom.errors import DataError, FedloomError, UsageError
from fedloom.privacy.secagg import Client, Config, Step, answer, plan
from fedloom.privacy.secagg.packing import Integers
from fedloom.privacy.secagg.primitives import KEY_SIZE, check_installed

NOTES = "secure.json"
GROUP, TURN, SENT, MASKED, REVEALED = "group", "turn", "broadcast", "masked", "revealed"


@dataclass(frozen=True)
class Terms:
    """What a client has agreed to.

    Attributes:
        run: The run's name.
        number: The client's.
        clients: Everybody's public key, by number.
        bits: Of a number in a sum.
        dropouts: The share of drop-outs that a sum survives.
        least: The fewest clients in a sum that is opened.
    """

    run: str
    number: int
    clients: tuple[bytes, ...]
    bits: int
    dropouts: float
    least: int

    @property
    def group(self) -> str:
        """What all clients of the run can compare: SHA-256 of their keys, in hex."""
        return hashlib.sha256(b"fedloom group" + b"".join(self.clients)).hexdigest()


class Part:
    """A client's part in the secure sums of a run.

    Args:
        terms: What it has agreed to.
        private: Its private key, 32 bytes.
        public: Its public key, 32 bytes.
        memory: What it has on its disk.
        say: Told what people should know.

    Raises:
        UsageError: The server says who takes part, and this client is not among them, or it has said something else before.
        MissingDependency: The ``cryptography`` package is not installed.
    """

    def __init__(self, terms: Terms, private: bytes, public: bytes, memory: Memory, say: Callable[[str], None]) -> None:
        check_installed()
        self.terms, self._private, self._memory, self._say = terms, private, memory, say
        self._core: Client | None = None
        self._session, self._last = b"", (0, b"")
        """The sum that it is in, and what it has sent last: the step, the message."""
        known = terms.clients
        if not 0 <= terms.number < len(known) or known[terms.number] != public or len(set(known)) < len(known):
            raise UsageError(
                "the server's list of clients, for secure aggregation, does not have this one: nothing is sent"
            )
        notes = self._notes()
        if notes.setdefault(GROUP, terms.group) != terms.group:
            raise UsageError("the server has changed who takes part in the secure sums: nothing is sent")
        self._note(notes)
        say(f"{len(known)} clients take part in secure sums; fingerprint {terms.group[:16]}: the others see the same")

    def ready(self, task: Task) -> None:
        """Take note of what the update was made from, before the server hears that it is there.

        Raises:
            StorageError: The disk is full.
        """
        self._note(self._notes() | {TURN: [task.round, task.attempt], SENT: broadcast_of(task).hex()})

    def answer(self, task: Task) -> Upload:
        """Return this client's message of a step; or why there is none."""
        try:
            leg = Leg.read(task)
        except DataError as error:
            return Upload(task.round, task.attempt, task.kind, failure="dropped", reason=str(error))
        try:
            if (leg.session, leg.step) == (self._session, self._last[0]):  # the server has not got it
                return Leg(leg.step, leg.session, self._last[1]).upload(task.round, task.attempt)
            if leg.step is Step.ADVERTISE:
                self._begin(task, leg)
            data = self._taken(task, leg)
        except FedloomError as error:
            self._core = None
            return Leg(leg.step, leg.session).upload(task.round, task.attempt, str(error))
        self._last = leg.step, data
        return Leg(leg.step, leg.session, data).upload(task.round, task.attempt)

    def _taken(self, task: Task, leg: Leg) -> bytes:
        core = self._core
        if core is None or leg.session != self._session:
            raise DataError("it is in no such secure sum any more: its keys were in memory, and are gone")
        if leg.step is Step.MASK:
            vector = self._numbers()
            self._once(MASKED, task.round)
            return answer(core, leg.step, leg.data, vector)
        if leg.step is Step.REVEAL:
            self._once(REVEALED, task.round)
        return answer(core, leg.step, leg.data if leg.step is not Step.ADVERTISE else b"")

    def _begin(self, task: Task, leg: Leg) -> None:
        notes, terms = self._notes(), self.terms
        self._core, self._session, self._last = None, b"", (0, b"")
        config = Config.from_bytes(leg.data)
        if notes.get(TURN) != [task.round, task.attempt]:
            raise DataError(f"it has no update of round {task.round}")
        _check_new(notes, task.round)
        broadcast = bytes.fromhex(str(notes.get(SENT)))
        if config.round != task.round or leg.session != config.session:
            raise DataError("the secure sum is of another round than it says")
        if leg.session != session_of(terms.run, task.round, leg.nonce, broadcast):
            raise DataError("the secure sum is not of the model that this client was sent: others had another one")
        place = self._place(leg, config)
        self._check(config)
        self._core, self._session = Client(config, place, self._private), leg.session

    def _place(self, leg: Leg, config: Config) -> int:
        known = self.terms.clients
        if len(leg.cohort) != config.clients or self.terms.number not in leg.cohort:
            raise DataError("this client is not in the secure sum that it is asked for")
        if max(leg.cohort) >= len(known) or tuple(known[n] for n in leg.cohort) != config.identities:
            raise DataError("the keys in the secure sum are not those of the clients that take part")
        return leg.cohort.index(self.terms.number)

    def _check(self, config: Config) -> None:
        """Refuse a sum that hides less than was agreed to."""
        terms = self.terms
        need = plan(config.clients, terms.dropouts)
        least = max(need.minimum, terms.least)
        if config.minimum < least:
            raise DataError(f"the secure sum of {config.minimum} clients would be opened, and {least} were agreed to")
        if (config.neighbours, config.threshold) != (need.neighbours, need.threshold):
            raise DataError("the secure sum divides secrets in another way than was agreed to")
        if config.bits != terms.bits or config.size != len(self._numbers()):
            raise DataError("the secure sum is of other numbers than this client has")

    def _numbers(self) -> Integers:
        number, attempt = self._notes()[TURN]
        found = self._memory.beside((number, attempt)).get(SEALED)
        if found is None:
            raise DataError(f"the update of round {number} is gone")
        return numbers(found)

    def _once(self, what: str, number: int) -> None:
        """Write down that something is done in a round, which is never done twice.

        Two sums of a round over different clients would show, by their difference, what one client has sent.
        """
        notes = self._notes()
        if notes.get(what, 0) >= number:
            raise DataError(f"it has taken part in a secure sum of round {number} before: two would show its update")
        self._note(notes | {what: number})

    def _notes(self) -> dict[str, Any]:
        path = self._path
        found = files.read_json(path) if path.is_file() else {}
        turn, done = found.get(TURN, [0, 0]), (found.get(MASKED, 0), found.get(REVEALED, 0))
        fine = isinstance(turn, list) and len(turn) == 2 and all(type(n) is int and n >= 0 for n in (*turn, *done))
        if not fine or len(str(found.get(SENT, "0" * 64))) != 64:
            raise DataError(f"{path}: damaged; without it this client cannot tell what it has sent", file=str(path))
        return found

    def _note(self, notes: dict[str, Any]) -> None:
        files.write_json(self._path, notes)

    @property
    def _path(self) -> Path:
        return self._memory.folder / NOTES


def _check_new(notes: dict[str, Any], number: int) -> None:
    if max(notes.get(MASKED, 0), notes.get(REVEALED, 0)) >= number:
        raise DataError(f"it has taken part in a secure sum of round {number} before: two would show its update")


def keys_of(data: bytes) -> tuple[bytes, ...]:
    """Read everybody's public keys.

    Raises:
        DataError: The bytes are none.
    """
    if not data or len(data) % KEY_SIZE:
        raise DataError("the server does not say who takes part in secure sums")
    return tuple(data[i : i + KEY_SIZE] for i in range(0, len(data), KEY_SIZE))
