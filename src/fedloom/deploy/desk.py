"""Desk: the round that is open. Orders go out as tasks, and answers come back, each counted once, whenever they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from fedloom.clients import Order, Result
from fedloom.clients import name as number_name
from fedloom.deploy.checks import Pattern
from fedloom.deploy.messages import STOP, TRAIN, Receipt, Task, Upload
from fedloom.deploy.roster import Member, Roster
from fedloom.deploy.seam import Unreachable
from fedloom.errors import DataError
from fedloom.records import ClientFailure

TURN = "turn"
"""The name under which a client's turn, whose state counts, is kept by the server: the state itself stays with the client."""

FAILURES = ("diverged", "dropped")
"""What a client may say of itself."""


@dataclass(frozen=True)
class Patience:
    """How long a round waits.

    Attributes:
        deadline: Seconds after which a round goes on with what it has; infinite for as long as it takes.
        away: Seconds without a word after which a client counts as lost.
        quorum: The fewest updates of a round: it waits for them, whatever the deadline; all that were asked, where these
            are fewer.
    """

    deadline: float = float("inf")
    away: float = 60.0
    quorum: int = 1


@dataclass
class _Open:
    """An order on its way.

    Attributes:
        key: Its round and attempt.
        tasks: What each client is to do, by number.
        ends: When it is late, on the monotonic clock.
        results: What came, by number.
        had: The numbers whose results have been taken.
    """

    key: tuple[int, int]
    tasks: Mapping[int, Task]
    ends: float
    results: dict[int, Result] = field(default_factory=dict)
    had: dict[int, bool] = field(default_factory=dict)

    def answers(self) -> int:
        """Return how many updates have come."""
        return sum(self.had.values()) + sum(not isinstance(r, ClientFailure) for r in self.results.values())

    def waits_for(self, number: int) -> bool:
        """Say whether a client has still to answer."""
        return number in self.tasks and number not in self.results and number not in self.had


class Desk:
    """What clients are to do now, and what they sent.

    Args:
        roster: Who takes part.
        patience: How long a round waits.
        say: Told what people should know.
    """

    def __init__(self, roster: Roster, patience: Patience, say: Callable[[str], None]) -> None:
        self._roster, self._patience, self._say = roster, patience, say
        self._changed = threading.Condition()
        self._open: _Open | None = None
        self._pattern: Pattern | None = None
        self._counted: dict[int, tuple[int, int]] = {}
        self._over = ""
        self._keeps = False
        self._done = 0

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

    def post(self, order: Order) -> None:
        """Give an order out; one that was open is given up."""
        tasks = {client: self._task(order, i) for i, client in enumerate(order.clients)}
        with self._changed:
            key = (order.round, order.attempt)
            self._open = _Open(key, tasks, time.monotonic() + self._patience.deadline)
            self._done = order.round - 1
            self._changed.notify_all()

    def close(self, order: Order) -> None:
        """Give up an order; what comes of it from now on is late."""
        with self._changed:
            if self._open is not None and self._open.key == (order.round, order.attempt):
                self._open = None

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
                self._changed.wait(self._pause(now))

    def task(self, member: Member, wait: float) -> Task | None:
        """Return what a client is to do; None where nothing came in ``wait`` seconds."""
        ends = time.monotonic() + wait
        with self._changed:
            while True:
                if self._over:
                    return Task(STOP, reason=self._over)
                if self._open is not None and self._open.waits_for(member.number):
                    return self._timed(self._open, member.number)
                left = ends - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)

    def take(self, member: Member, upload: Upload) -> Receipt:
        """Take a client's answer.

        Raises:
            Unreachable: The round is not open yet: the server was started again, and the client is faster.
        """
        key = (upload.round, upload.attempt)
        with self._changed:
            if self._counted.get(member.number) == key:
                return Receipt(True, again=True)
            now, pattern = self._open, self._pattern
            if now is None or pattern is None or key > now.key:
                if not self._over and upload.round > self._done:
                    raise Unreachable(f"round {upload.round} is not open yet")
                return Receipt(False, self._over or f"round {upload.round} is over")
            if now.key != key:
                return Receipt(False, f"round {upload.round} is over")
            if not now.waits_for(member.number):
                return Receipt(False, f"{member.title} was not asked in this round, or its answer came too late")
        found, reason = self._judged(pattern, member, upload)  # takes a while: others need not wait
        with self._changed:
            if self._open is not now or not now.waits_for(member.number):
                again = self._counted.get(member.number) == key
                return Receipt(again, "" if again else f"round {upload.round} is over", again)
            now.results[member.number] = found
            self._counted[member.number] = key
            self._changed.notify_all()
        if reason:
            self._say(f"round {upload.round}: {reason}")
        return Receipt(not reason or bool(upload.failure), reason)

    def _judged(self, pattern: Pattern, member: Member, upload: Upload) -> tuple[Result, str]:
        name = number_name(member.number)
        if upload.failure:
            kind = upload.failure if upload.failure in FAILURES else "dropped"
            reason = f"{member.title}: {upload.reason or 'it could not train'}"
            return ClientFailure(name, reason, kind), reason
        try:
            upload = pattern.opened(upload)
            wrong = pattern.wrong(upload, member.samples)
        except DataError as error:
            wrong = str(error)
        if wrong:
            reason = f"{member.title}'s update was refused: {wrong}"
            return ClientFailure(name, reason, "refused"), reason
        made = pattern.update(name, upload)
        if not self._keeps:
            return made, ""
        return _keeping(made, upload.round, upload.attempt), ""

    def _task(self, order: Order, i: int) -> Task:
        client, sent = order.clients[i], order.broadcast(i)
        kept = order.kept.get(client)
        return Task(
            TRAIN,
            order.round,
            order.attempt,
            None if sent.data else sent.vector,
            sent.data,
            extra=dict(sent.extra),
            lr=order.lr,
            stale=order.stale[i] if order.stale else 0,
            unsent=sent.unsent,
            facts={} if kept is None else {TURN: [int(n) for n in kept[TURN]]},
        )

    def _timed(self, now: _Open, number: int) -> Task:
        left = now.ends - time.monotonic()
        return replace(now.tasks[number], deadline=max(left, 1e-3)) if left < float("inf") else now.tasks[number]

    def _lost(self, now: _Open, number: int) -> ClientFailure | None:
        """Say that a client will not answer, once the round can do without it."""
        member = self._roster.member(number)
        least = min(self._patience.quorum, len(now.tasks))
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

    def _pause(self, now: _Open) -> float:
        """Return for how long nothing changes by itself."""
        return max(0.01, min(1.0, self._patience.away / 4, now.ends - time.monotonic()))

    def _waiting(self, now: _Open) -> str:
        names = [self._roster.member(n).title for n in now.tasks if now.waits_for(n)]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"round {now.key[0]}: waiting for {', '.join(names[:5])}{more}"


def _keeping(update: Result, number: int, attempt: int) -> Result:
    """Let the server note which turn's state counts from now on."""
    assert not isinstance(update, ClientFailure)
    return replace(update, kept={TURN: torch.tensor([number, attempt])})


@contextmanager
def opened(desk: Desk, order: Order) -> Iterator[None]:
    """Keep an order open while the block runs."""
    desk.post(order)
    try:
        yield
    finally:
        desk.close(order)
