"""Transcript: the server of one secure sum, of which every message is on disk before it counts.

What a server sends follows from what it was sent, so that a new one that reads the transcript is where the old one was.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fedloom.deploy.sealing import journal
from fedloom.deploy.sealing.begun import Begun, Gone, closed_from_bytes, closed_to_bytes
from fedloom.deploy.sealing.journal import Journal
from fedloom.errors import DataError, TrainingError
from fedloom.privacy.secagg import Server, Step
from fedloom.privacy.secagg.envelope import HEAD
from fedloom.privacy.secagg.packing import Integers

BEGUN, MESSAGE, CLOSED = 1, 2, 3


class Transcript:
    """The server of one secure sum.

    Attributes:
        begun: What it starts from.
        inbox: What each client is sent now, by place.
        gone: Why clients stopped answering, by place.
        refused: Why there will be no sum; empty where there may be one.
        up: What clients sent, in bytes.
        down: What they were sent, in bytes; each message once.
    """

    def __init__(self, begun: Begun) -> None:
        self.begun = begun
        self._file: Journal | None = None
        self._core = Server(begun.config)
        self.gone: dict[int, Gone] = {}
        self.refused, self.up, self.down = "", 0, 0
        self._answered: Counter[int] = Counter()
        """By place: how many steps it has answered."""
        self._send(dict.fromkeys(range(begun.config.clients), begun.config.to_bytes()))

    @classmethod
    def begin(cls, path: Path, begun: Begun) -> Transcript:
        """Begin a file.

        Raises:
            StorageError: It cannot be written.
            MissingDependency: The ``cryptography`` package is not installed.
        """
        made = cls(begun)
        made._file = Journal(path)
        made._file.add(BEGUN, begun.to_bytes(), sync=True)
        return made

    @classmethod
    def resume(cls, path: Path, size: int) -> Transcript | None:
        """Read a file, and go on with it; None where it does not say what the sum starts from.

        Args:
            path: The file.
            size: The length of the model, P.

        Raises:
            DataError: It is damaged.
            StorageError: It cannot be written.
        """
        if not path.is_file():
            return None
        made: Transcript | None = None
        count = end = 0
        for entry in journal.read(path):
            if made is None:
                if entry.kind != BEGUN:
                    raise DataError(f"{path}: the journal of a secure sum is damaged", file=str(path))
                made = cls(Begun.from_bytes(entry.data, size))
            elif entry.kind == MESSAGE:
                made._counted(entry.data)
            elif entry.kind == CLOSED:
                step, gone = closed_from_bytes(entry.data)
                made._advanced(step, gone)
            count, end = count + 1, entry.end
        if made is not None:
            made._file = Journal(path, count, end)
        return made

    @property
    def step(self) -> Step | None:
        """The step whose messages are taken now; None where the sum is over."""
        return None if self.refused else self._core.step

    @property
    def expected(self) -> frozenset[int]:
        """The places whose message of this step is missing."""
        return self._core.expected

    @property
    def summed(self) -> frozenset[int]:
        """The places that are in the sum; none where there is no sum."""
        return frozenset() if self.refused else frozenset(self._core.survivors)

    def receive(self, place: int, data: bytes) -> None:
        """Take a client's message.

        Raises:
            DataError: It is not this client's, or not what the protocol asks for; it changes nothing.
            StorageError: The disk is full; this transcript cannot go on.
        """
        if len(data) < HEAD.size or HEAD.unpack_from(data)[-1] != place:
            raise DataError("it sent the message of another client")
        self._counted(data)
        self._write(MESSAGE, data)

    def answered(self, place: int, step: Step) -> bool:
        """Say whether a client's message of a step has counted."""
        return self._answered[place] >= step

    def close(self, step: Step, gone: dict[int, Gone]) -> None:
        """End a step: who has not answered is out.

        Raises:
            StorageError: The disk is full.
        """
        self._write(CLOSED, closed_to_bytes(step, gone), sync=True)
        self._advanced(step, gone)

    def finish(self) -> Integers | None:
        """Return the sum, and close the file; None where it was :attr:`refused`."""
        self.end()
        if self.refused:
            return None
        try:
            return self._core.finish()
        except (DataError, TrainingError) as error:
            self.refused = str(error)
            return None

    def end(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, kind: int, data: bytes, *, sync: bool = False) -> None:
        assert self._file is not None
        self._file.add(kind, data, sync=sync)

    def _counted(self, data: bytes) -> None:
        place = self._core.receive(data)
        self._answered[place] += 1
        self.up += len(data)

    def _advanced(self, step: Step, gone: dict[int, Gone]) -> None:
        if self.step is not step:
            raise DataError("the journal of a secure sum is damaged: its steps are not in order")
        self.gone |= {place: why for place, why in gone.items() if place not in self.gone}
        try:
            self._send(self._core.advance())
        except TrainingError as error:
            self.refused = str(error)
            self._send({})

    def _send(self, inbox: dict[int, bytes]) -> None:
        self.inbox = inbox
        self.down += sum(len(data) for data in inbox.values())
