"""Server: what a run does for its clients, whatever carries the calls; a :class:`~fedloom.deploy.seam.Service`.

A run goes through three stages: it waits until all places are taken, every client makes its side of the run and says so,
and then rounds go through the desk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fedloom import __version__
from fedloom.deploy.experiment import Experiment, Samples
from fedloom.deploy.interrupts import Condition
from fedloom.deploy.protocol.facts import NUMBER, OVER, READY, SAMPLES, TABLES, TITLE, TRY
from fedloom.deploy.protocol.messages import CHECK, Hello, Receipt, Task, Upload, Welcome
from fedloom.deploy.sealing.legs import IDENTITIES
from fedloom.deploy.seam import Identity, Refused
from fedloom.deploy.serving.desk import Desk
from fedloom.deploy.serving.roster import Member, Roster
from fedloom.errors import DataError

MOST_SAMPLES = 1 << 31
"""Of one client."""

UNTOLD = -1
"""In place of how many clients were said to be there."""


class Server:
    """A run as its clients see it.

    Args:
        run: Its name.
        tables: What clients are told of the configuration before they agree.
        title: What is trained, in words.
        roster: Who takes part.
        desk: The round that is open.
        samples: What clients' samples must look like; None where the first client says it.
        say: Told what people should know.
    """

    def __init__(
        self,
        run: str,
        tables: Mapping[str, Any],
        title: str,
        roster: Roster,
        desk: Desk,
        samples: Samples | None,
        say: Callable[[str], None],
    ) -> None:
        self._run, self._tables, self._title = run, tables, title
        self._roster, self._desk, self.samples, self._say = roster, desk, samples, say
        self._changed = Condition()
        self._experiment: Experiment | None = None
        self._trial = False
        self._unchecked: set[int] = set()
        self._failed: dict[int, str] = {}
        self._over = False
        self._told: set[int] = set()
        self._count = UNTOLD
        self.parted: Callable[[bytes], None] = lambda _: None

    def members(self) -> list[Member]:
        """Return who takes part, by number."""
        return self._roster.members()

    def begin(self, experiment: Experiment, *, check: bool, trial: bool = False) -> None:
        """Tell clients all that they need.

        Args:
            experiment: What they need.
            check: Whether each has to say that it can take part, before :meth:`wait_checked` is over.
            trial: Whether it trains on its data for that, and throws the result away.
        """
        with self._changed:
            self._experiment, self._trial = experiment, trial
            self._unchecked = {member.number for member in self._roster.members()} if check else set()
            self._changed.notify_all()

    def largest(self) -> int:
        """Return how long the longest upload is that this run has a use for, in bytes; 0 while it has none."""
        return self._desk.largest()

    def stop(self, reason: str) -> None:
        """Tell clients that the run is over."""
        with self._changed:
            self._over = True
            self._desk.stop(reason)
            self._changed.notify_all()

    def wait_told(self, seconds: float) -> None:
        """Wait until every client says that it has heard that the run is over, for so many ``seconds`` at most.

        That it was sent means nothing: the connection may have been cut.
        """
        ends = time.monotonic() + seconds
        with self._changed:
            while time.monotonic() < ends:
                if all(member.left or member.number in self._told for member in self._roster.members()):
                    return
                self._changed.wait(0.05)

    def wait_full(self, told: Callable[[int], None], away: float = float("inf")) -> None:
        """Wait until all places are taken by clients that agreed; ``told`` hears how many are, whenever that changes.

        The place of a client that says nothing for ``away`` seconds is free again.
        """
        with self._changed:
            while True:
                for gone in self._roster.drop(away):
                    self.parted(bytes.fromhex(gone.key))
                    self._say(f"{gone.title} was not heard of for {away:g} s; its place is free again")
                fixed, count = self._roster.fix(), self._roster.there()
                if count != self._count:
                    told(self._roster.count if fixed else count)
                    self._count = count
                if fixed:
                    return
                self._changed.wait(1.0)

    def wait_checked(self, away: float, deadline: float = float("inf")) -> dict[int, str]:
        """Wait until every client has said whether it can take part; returns why not, by number.

        A client that says nothing for ``away`` seconds, or is not ready after ``deadline`` seconds, is one that cannot.
        """
        ends = time.monotonic() + deadline
        with self._changed:
            while self._unchecked:
                for member in self._roster.members():
                    lost = member.left or self._not_ready(member, away, deadline, ends)
                    if lost and member.number in self._unchecked:
                        self._failed[member.number] = lost
                        self._unchecked.discard(member.number)
                self._changed.wait(0.2)
            return dict(self._failed)

    def _not_ready(self, member: Member, away: float, deadline: float, ends: float) -> str:
        if self._roster.silent(member) > away:
            return f"it was not heard of for {away:g} s"
        return f"it was not ready within {deadline:g} s" if time.monotonic() > ends else ""

    def register(self, who: Identity, hello: Hello) -> Welcome:
        """Take a client in; see :class:`~fedloom.deploy.seam.Service`, and so for the methods that follow."""
        with self._changed:
            new = len(self._roster.members())
            if self._over and not self._knows(who):
                raise Refused("the run is over")
            member = self._admitted(who, hello)
            if len(self._roster.members()) > new:
                other = "" if hello.version == __version__ else f" (with fedloom {hello.version})"
                self._say(f"{member.title} joined with {member.samples} samples{other}")
            self._changed.notify_all()
            return self._welcome(member)

    def _admitted(self, who: Identity, hello: Hello) -> Member:
        """Take a client in; the invitation of one that is refused can be used again."""
        wish = hello.facts.get(NUMBER)
        try:
            found = self._check_samples(who, hello)
            member = self._roster.admit(who, hello.samples, wish if type(wish) is int else None)
        except Refused:
            if not self._knows(who):
                self.parted(who.key)
            raise
        self.samples = self.samples or found  # of one that has a place
        return member

    def _knows(self, who: Identity) -> bool:
        return any(member.key == who.key.hex() for member in self._roster.members())

    def _check_samples(self, who: Identity, hello: Hello) -> Samples:
        try:
            found = Samples.from_json(hello.facts.get(SAMPLES))
        except DataError as error:
            raise Refused(f"{who.name}: {error}") from error
        if hello.samples > MOST_SAMPLES:
            raise Refused(f"{who.name}: {hello.samples} samples; {MOST_SAMPLES} are the most")
        wanted = self.samples or found
        if found.shape != wanted.shape:
            raise Refused(f"{who.name}: samples of shape {found.shape}, those of this run have {wanted.shape}")
        if strange := sorted(set(found.class_names) - set(wanted.class_names)):
            known = ", ".join(wanted.class_names[:10])
            raise Refused(f"{who.name}: class '{strange[0][:80]}' is none of those in this run ({known})")
        return found

    def _welcome(self, member: Member) -> Welcome:
        made, count = self._experiment, self._roster.count
        samples = {} if self.samples is None else self.samples.to_json()
        facts = {READY: made is not None, TABLES: dict(self._tables), SAMPLES: samples, TITLE: self._title}
        if made is None:
            return Welcome(member.number, count, self._run, facts)
        secure = made.recipe.protection.secure != "off"
        keys = {IDENTITIES: b"".join(bytes.fromhex(one.key) for one in self._roster.members())} if secure else {}
        return Welcome(member.number, count, self._run, {**facts, **made.facts()}, made.model(), made.tensors(), keys)

    def next_task(self, who: Identity, wait: float) -> Task | None:
        """See there."""
        member, ends = self._roster.find(who), time.monotonic() + wait
        with self._changed:
            if not member.agreed:
                member.agreed = True
                self._changed.notify_all()
            while not self._over and (self._experiment is None or member.number in self._unchecked):
                if self._experiment is not None:
                    return Task(CHECK, facts={TRY: self._trial})
                left = ends - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
        return self._desk.task(member, max(0.0, ends - time.monotonic()))

    def upload(self, who: Identity, update: Upload) -> Receipt:
        """See there."""
        member = self._roster.find(who)
        if update.task != CHECK:
            return self._desk.take(member, update)
        with self._changed:
            if member.number in self._unchecked:
                self._unchecked.discard(member.number)
                if update.failure:
                    self._failed[member.number] = update.reason or "it cannot take part"
                elif self._trial:
                    self._say(f"{member.title} {_tried(update.facts)}")
                self._changed.notify_all()
        return Receipt(True)

    def heartbeat(self, who: Identity, doing: str) -> None:
        """See there."""
        member = self._roster.find(who)
        member.doing = doing
        with self._changed:
            if self._over and doing == OVER:
                self._told.add(member.number)
                self._changed.notify_all()

    def leave(self, who: Identity, reason: str) -> None:
        """See there."""
        member = self._roster.find(who)
        self._roster.leave(member, reason or "it gave no reason")
        if member not in self._roster.members():
            self.parted(who.key)
        self._say(f"{member.title} has left: {member.left}")

    def expel(self, name: str, reason: str) -> None:
        """Take note that a client was sent away; the transport lets it in no more."""
        with self._changed:
            for member in self._roster.members():
                if member.name == name:
                    self._roster.expel(member, reason)
                    self._say(f"{member.title} has left: {reason}")
            self._count = UNTOLD  # invitations are new
            self._changed.notify_all()


def _tried(facts: Mapping[str, Any]) -> str:
    """Say how a client's first batch went."""
    seconds, batch, loss = (facts.get(key) for key in ("seconds", "batch", "loss"))
    if not isinstance(seconds, float) or not isinstance(batch, int):
        return "is ready"
    told = f", loss {loss:.3g}" if isinstance(loss, float) else ""
    return f"is ready: trained one batch of {batch} samples in {seconds:.2g} s{told}"
