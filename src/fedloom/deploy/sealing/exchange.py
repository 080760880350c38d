"""Exchange: gives the steps of a secure sum out to its clients, and waits for those that answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fedloom.clients import name as number_name
from fedloom.deploy.interrupts import Condition, held
from fedloom.deploy.protocol.messages import Receipt, Task, Upload
from fedloom.deploy.sealing.begun import Gone
from fedloom.deploy.sealing.legs import Leg
from fedloom.deploy.sealing.transcript import Transcript
from fedloom.deploy.seam import Unreachable
from fedloom.deploy.serving.patience import Patience
from fedloom.deploy.serving.roster import Member, Roster
from fedloom.errors import DataError, StorageError
from fedloom.privacy.secagg import Step
from fedloom.privacy.secagg.packing import Integers
from fedloom.records import ClientFailure


class Exchange:
    """One secure sum on its way.

    Args:
        transcript: Its server.
        roster: Who takes part in the run.
        patience: How long a step waits.
        changed: Is told when a client has something to do; the methods that say so want it to be held.
        say: Told what people should know.
    """

    def __init__(
        self,
        transcript: Transcript,
        roster: Roster,
        patience: Patience,
        changed: Condition,
        say: Callable[[str], None],
    ) -> None:
        begun = transcript.begun
        self.round, self._cohort, self._session = begun.config.round, begun.cohort, begun.config.session
        self._transcript, self._roster, self._patience, self._say = transcript, roster, patience, say
        self._changed, self._busy = changed, threading.Lock()
        self._news = threading.Event()
        """Something came: apart from ``changed``, so that an answer does not wake every client that waits for a task."""
        self._places = {number: place for place, number in enumerate(begun.cohort)}
        self._tasks: dict[int, Task] = {}
        self._waiting: set[int] = set()
        self._gone: dict[int, Gone] = {}
        self._broken: StorageError | None = None
        self._left = False
        self._ends = 0.0

    def task(self, number: int) -> Task | None:
        """Return what a client is to do now, if anything; ``changed`` is held."""
        return self._tasks.get(number)

    def take(self, member: Member, upload: Upload) -> Receipt:
        """Take a client's answer; ``changed`` is not held.

        Raises:
            DataError: It is none.
            Unreachable: The server ends in the middle of this: the next one will take it.
        """
        leg = Leg.read(upload)
        place = self._places.get(member.number)
        if leg.session != self._session or place is None:
            return Receipt(False, "that secure sum is over, or another")
        with self._busy:  # the protocol's own work: clients that ask for tasks need not wait for it
            if self._left:
                raise Unreachable("the server is going away")
            if leg.step is not self._transcript.step or place not in self._waiting:
                again = self._transcript.answered(place, leg.step)
                return Receipt(again, "" if again else f"step '{leg.step.label}' of the secure sum is over", again)
            gone = self._received(member, place, upload)
            with self._changed:
                self._waiting.discard(place)
                self._tasks.pop(member.number, None)
                if gone is not None:
                    self._gone[place] = gone
                self._news.set()
        if gone is not None:
            self._say(f"round {self.round}: {gone.reason}")
        return Receipt(gone is None or bool(upload.failure), "" if gone is None else gone.reason)

    def run(self) -> Integers | None:
        """Go on until the sum is there; None where too few clients were left, or their shares were wrong.

        Raises:
            StorageError: The disk is full.
        """
        try:
            while (step := self._transcript.step) is not None:
                self._give_out(step)
                self._wait(step)
                with self._busy:
                    self._transcript.close(step, dict(self._gone))
            return self._transcript.finish()
        finally:
            with self._busy:
                self._left = self._transcript.step is not None
                self._transcript.end()
            with self._changed:
                self._tasks = {}

    def lost(self) -> dict[int, ClientFailure]:
        """Return why clients that were ready are not in the sum, by number."""
        found = {}
        for place, number in enumerate(self._cohort):
            gone = self._transcript.gone.get(place)
            if place not in self._transcript.summed and gone is not None:
                found[number] = ClientFailure(number_name(number), gone.reason, gone.kind)
        return found

    def _received(self, member: Member, place: int, upload: Upload) -> Gone | None:
        if upload.failure:
            return Gone("dropped", f"{member.title}: {upload.reason or 'it could not go on'}")
        try:
            self._transcript.receive(place, upload.encoded)
        except DataError as error:
            return Gone("refused", f"{member.title}'s part in the secure sum was refused: {error}")
        except StorageError as error:
            self._broken = error
            self._news.set()
            raise
        return None

    def _give_out(self, step: Step) -> None:
        begun, inbox = self._transcript.begun, self._transcript.inbox
        with self._changed:
            self._ends = time.monotonic() + self._patience.deadline
            self._waiting = set(self._transcript.expected) - set(self._gone)
            self._tasks = {}
            for place in self._waiting:
                leg = Leg(step, self._session, inbox[place], self._cohort, begun.nonce)
                self._tasks[self._cohort[place]] = leg.task(self.round, 0)
            self._changed.notify_all()

    def _wait(self, step: Step) -> None:
        told = time.monotonic()
        while self._broken is None:
            with self._changed:
                self._news.clear()
                self._give_up(step)
                if not self._waiting:
                    return
                missing = len(self._waiting)
            if time.monotonic() - told > self._patience.away:
                told = time.monotonic()
                self._say(f"round {self.round}, secure sum, step '{step.label}': waiting for {missing} clients")
            with held():
                self._news.wait(max(0.01, min(1.0, self._patience.away / 4, self._ends - time.monotonic())))
        raise self._broken

    def _give_up(self, step: Step) -> None:
        members = {member.number: member for member in self._roster.members()}
        for place in sorted(self._waiting):
            number = self._cohort[place]
            gone = self._lost(members[number], step)
            if gone is not None:
                self._gone[place] = gone
                self._waiting.discard(place)
                self._tasks.pop(number, None)

    def _lost(self, member: Member, step: Step) -> Gone | None:
        """Say why a client's message of this step will not come, once the sum can do without it."""
        where = f"(secure sum, step '{step.label}')"
        if member.left:
            return Gone("dropped", f"{member.title} has left: {member.left} {where}")
        least = min(self._patience.quorum, len(self._cohort))
        if len(self._cohort) - len(self._waiting) - len(self._gone) < least:
            return None
        silent = self._roster.silent(member)
        if silent > self._patience.away:
            return Gone("dropped", f"{member.title} was not heard of for {silent:.0f} s {where}")
        if time.monotonic() > self._ends:
            return Gone("late", f"{member.title} was not back within {self._patience.deadline:g} s {where}")
        return None
