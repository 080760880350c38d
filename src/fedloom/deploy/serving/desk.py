"""Desk: the round that is open. Orders go out as tasks, and answers come back, each counted once, whenever they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from fedloom.clients import Order, Result
from fedloom.clients import name as number_name
from fedloom.deploy.interrupts import Condition
from fedloom.deploy.protocol.messages import EVALUATE, STOP, TRAIN, Receipt, Task, Upload
from fedloom.deploy.sealing.legs import SECURE
from fedloom.deploy.seam import Unreachable
from fedloom.deploy.serving.checks import Form, Pattern
from fedloom.deploy.serving.orders import aged, keeping, result_of, task_of
from fedloom.deploy.serving.patience import BUFFER, AtWork, Open, Patience
from fedloom.deploy.serving.roster import Member, Roster
from fedloom.records import ClientFailure

if TYPE_CHECKING:
    from fedloom.deploy.sealing.exchange import Exchange


class Desk:
    """What clients are to do now, and what they sent.

    Args:
        roster: Who takes part.
        patience: How long a round waits.
        say: Told what people should know.
    """

    def __init__(self, roster: Roster, patience: Patience, say: Callable[[str], None]) -> None:
        self._roster, self._patience, self._say = roster, patience, say
        lock = threading.RLock()
        self._changed = Condition(lock)
        self._answered = Condition(lock)  # apart: an answer need not wake every client that waits for a task
        self._open: Open | None = None
        self._pattern: Pattern | None = None
        self._counted: dict[int, tuple[int, int]] = {}
        self._over = ""
        self._keeps = False
        self._done = 0
        self._at_work = AtWork(patience)
        self._sum: Exchange | None = None

    def begin(self, pattern: Pattern, *, keeps: bool, done: int) -> None:
        """Take tasks from now on.

        Args:
            pattern: What updates look like.
            keeps: Whether clients keep something between their turns.
            done: The last round that is over.
        """
        with self._changed:
            self._pattern, self._keeps, self._done = pattern, keeps, done

    def stop(self, reason: str) -> None:
        """Tell every client that the run is over."""
        with self._changed:
            self._over, self._open = reason, None
            self._changed.notify_all()
            self._answered.notify_all()

    def post(self, order: Order, form: Form | None = None) -> None:
        """Give an order out; one that was open is given up.

        Args:
            order: What is asked, of whom.
            form: What answers look like; None for updates.
        """
        form = form or self._pattern
        assert form is not None
        tasks = {client: task_of(order, i, form.kind) for i, client in enumerate(order.clients)}
        with self._changed:
            key = (order.round, order.attempt)
            if self._open is not None:
                self._at_work.over(self._open, self._counted)
            ends, trains = time.monotonic() + self._patience.deadline, form.kind == TRAIN
            enough, busy = (self._patience.enough, {}) if trains else (0, self._at_work.busy(order.clients))
            self._open = Open(key, tasks, form, ends, enough, results=busy)
            self._done = order.round - 1
            self._changed.notify_all()

    @property
    def changed(self) -> Condition:
        """Is told when a client has something to do."""
        return self._changed

    def largest(self) -> int:
        """Return how long the longest upload is that a round has a use for, in bytes; 0 before the first one."""
        return 0 if self._pattern is None else self._pattern.largest

    @property
    def patience(self) -> Patience:
        """How long a round waits."""
        return self._patience

    def asked(self, order: Order) -> Task:
        """Return what the first client of an order is to do."""
        return task_of(order, 0)

    def begin_sum(self, made: Exchange) -> None:
        """Let clients take part in a secure sum from now on."""
        with self._changed:
            self._sum = made
            self._changed.notify_all()

    def close(self, order: Order) -> None:
        """Give up an order; what comes of it from now on is late."""
        with self._changed:
            if self._open is not None and self._open.key == (order.round, order.attempt):
                self._at_work.over(self._open, self._counted)
                self._open = None

    def waits(self) -> tuple[int, list[int]]:
        """Return the round that is open, and the numbers of the clients that have still to answer; 0 where none is."""
        with self._changed:
            now = self._open
            return (0, []) if now is None else (now.key[0], [number for number in now.tasks if now.waits_for(number)])

    def result(self, number: int) -> Result:
        """Wait for a client's result of the order that is open, and take it."""
        told = time.monotonic()
        with self._changed:
            while True:
                now = self._open
                assert now is not None
                if number in now.results:
                    found = now.results.pop(number)
                    now.had[number] = not isinstance(found, ClientFailure)
                    return found
                lost = self._lost(now, number)
                if lost is not None:
                    now.results[number] = lost
                    continue
                if time.monotonic() - told > self._patience.away:
                    told = time.monotonic()
                    self._say(self._waiting(now))
                self._answered.wait(self._pause(now))

    def task(self, member: Member, wait: float) -> Task | None:
        """Return what a client is to do; None where nothing came in ``wait`` seconds."""
        ends = time.monotonic() + wait
        with self._changed:
            while True:
                if self._over:
                    return Task(STOP, reason=self._over)
                if self._open is not None and self._open.waits_for(member.number):
                    return self._at_work.task(member.number, self._open) or self._timed(self._open, member.number)
                if self._sum is not None and (leg := self._sum.task(member.number)) is not None:
                    return leg
                left = ends - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)

    def take(self, member: Member, upload: Upload) -> Receipt:
        """Take a client's answer.

        Raises:
            Unreachable: The round is not open yet: the server was started again, and the client is faster.
        """
        if upload.task == SECURE:
            return self._summed(member, upload)
        key = (upload.round, upload.attempt)
        with self._changed:
            now = self._open
            if now is None or not self._counts(now, member.number, key):
                return self._unwanted(member, key, upload.task)
        found, reason = result_of(now.form, member, upload)  # takes a while: others need not wait
        with self._changed:
            if self._open is not now or not now.waits_for(member.number):
                return self._unwanted(member, key, upload.task)
            if now.trains and self._keeps and not reason:
                found = keeping(found, *key)
            age = now.key[0] - key[0]
            now.results[member.number] = aged(found, age) if age else found
            self._counted[member.number] = key
            self._at_work.tasks.pop(member.number, None)
            if now.trains:
                member.took = time.monotonic() - now.began
            self._answered.notify_all()
        if reason:
            self._say(f"round {upload.round}: {reason}")
        return Receipt(not reason or bool(upload.failure), reason)

    def _counts(self, now: Open, number: int, key: tuple[int, int]) -> bool:
        """Say whether an answer counts in the round that is open."""
        if self._counted.get(number) == key or not now.waits_for(number):
            return False
        at_work = self._at_work.task(number, now)
        return self._at_work.age(number, key, now) is not None if at_work is not None else now.key == key

    def _unwanted(self, member: Member, key: tuple[int, int], kind: str) -> Receipt:
        """Answer what does not count now.

        Raises:
            Unreachable: It may count soon: its round, or the one after it, is not open yet.
        """
        now, number = self._open, member.number
        if self._counted.get(number) == key:
            return Receipt(True, again=True)
        if self._over:
            return Receipt(False, self._over)
        if kind == EVALUATE:  # a server that was started again trains the round anew, and asks again
            return Receipt(False, f"nobody waits for the evaluation of round {key[0]} now")
        if key[0] > self._done if now is None else key > now.key:
            raise Unreachable(f"round {key[0]} is not open yet")
        if self._buffers(now, number, key):
            raise Unreachable(f"round {key[0]} is over, and the next one is not open yet")
        if now is not None and now.key == key and number not in now.tasks:
            return Receipt(False, f"{member.title} was not asked in this round")
        if now is not None and now.key == key:
            return Receipt(False, f"{member.title}'s answer came too late: round {key[0]} is over without it")
        return Receipt(False, f"round {key[0]} is over")

    def _buffers(self, now: Open | None, number: int, key: tuple[int, int]) -> bool:
        """Say whether an answer that came between two rounds, or when a round had enough, waits for the next one."""
        if self._patience.late != BUFFER:
            return False
        task = self._at_work.tasks.get(number)
        known = task is not None and (task.round, task.attempt) == key
        if now is None or not now.trains:
            return known
        if now.key == key:
            return number in now.given
        return known and number in now.tasks and now.full()

    def _summed(self, member: Member, upload: Upload) -> Receipt:
        with self._changed:
            now, over = self._sum, self._over
            if now is None or now.round < upload.round:
                if not over and upload.round > self._done:
                    raise Unreachable(f"the secure sum of round {upload.round} is not open yet")
                return Receipt(False, over or f"round {upload.round} is over")
        return now.take(member, upload)

    def _timed(self, now: Open, number: int) -> Task:
        now.given.add(number)
        left = now.ends - time.monotonic()
        return replace(now.tasks[number], deadline=max(left, 1e-3)) if left < float("inf") else now.tasks[number]

    def _lost(self, now: Open, number: int) -> ClientFailure | None:
        """Say that a client will not answer, once the round can do without it."""
        member = self._roster.member(number)
        if now.full():
            return ClientFailure(
                number_name(number), f"{member.title} was not needed: enough others were faster", "surplus"
            )
        least = min(self._patience.quorum, len(now.tasks)) if now.trains else 0
        if member.left:
            return ClientFailure(number_name(number), f"{member.title} has left: {member.left}", "dropped")
        if now.answers() < least and any(now.waits_for(n) and not self._roster.member(n).left for n in now.tasks):
            return None
        silent = self._roster.silent(member)
        if silent > self._patience.away:
            return ClientFailure(number_name(number), f"{member.title} was not heard of for {silent:.0f} s", "dropped")
        if time.monotonic() > now.ends:
            reason = f"{member.title} was not back within {self._patience.deadline:g} s"
            return ClientFailure(number_name(number), reason, "late")
        return None

    def _pause(self, now: Open) -> float:
        """Return for how long nothing changes by itself."""
        return max(0.01, min(1.0, self._patience.away / 4, now.ends - time.monotonic()))

    def _waiting(self, now: Open) -> str:
        names = [self._roster.member(n).title for n in now.tasks if now.waits_for(n)]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        after = "" if now.trains else ", evaluation"
        return f"round {now.key[0]}{after}: waiting for {', '.join(names[:5])}{more}"


@contextmanager
def opened(desk: Desk, order: Order, form: Form | None = None) -> Iterator[None]:
    """Keep an order open while the block runs; see :meth:`Desk.post`."""
    desk.post(order, form)
    try:
        yield
    finally:
        desk.close(order)
