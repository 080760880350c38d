"""Roster: who takes part, by number; on disk, so that a server that was started again knows everybody."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedloom import files
from fedloom.clients import name as number_name
from fedloom.deploy.seam import Identity, Refused
from fedloom.errors import DataError

FILE = "clients.json"


@dataclass
class Member:
    """One client.

    Attributes:
        number: Its number, from 0.
        key: Its public key, in hex.
        name: What it is called.
        samples: How many samples it says that it has.
        seen: When it was last heard of (``time.monotonic``); None where this server has not heard of it yet.
        doing: What it is at, in its words.
        left: Why it went for good; empty while it has not.
        agreed: Whether it has asked for a task: it has seen what will be done, and wants it.
        took: How many seconds its last update took, from the order to the whole answer; 0 before.
    """

    number: int
    key: str
    name: str
    samples: int
    seen: float | None = field(default=None, compare=False)
    doing: str = field(default="", compare=False)
    left: str = field(default="", compare=False)
    agreed: bool = field(default=False, compare=False)
    took: float = field(default=0.0, compare=False)

    @property
    def title(self) -> str:
        """What people read: its number and its name."""
        known = number_name(self.number)
        return known if self.name == known else f"{known} ({self.name})"


class Roster:
    """All clients of a run.

    Args:
        folder: Where the list is kept.
        count: How many clients the run has.
        least: The fewest samples that a client may have.

    Raises:
        DataError: The list on disk is damaged.
    """

    def __init__(self, folder: Path, count: int, least: int = 1) -> None:
        self._path, self.count, self._least = folder / FILE, count, least
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._members: dict[str, Member] = {}
        self._expelled: dict[str, str] = {}
        self._fixed = False
        if self._path.is_file():
            self._members = {member.key: member for member in _read(self._path)}
        self._numbers = {member.number: member for member in self._members.values()}

    def admit(self, who: Identity, samples: int, wish: int | None = None) -> Member:
        """Take a client in, or back.

        Args:
            who: The client; its key counts.
            samples: How many samples it has.
            wish: The number that it would like to have.

        Raises:
            Refused: No place is left, or it has too few samples, or other samples than before.
        """
        if samples < self._least:
            raise Refused(
                f"{who.name} has {'one sample, and none to keep apart' if samples else 'no samples to train on'}"
            )
        with self._lock:
            self._stays(who)
            known = self._members.get(who.key.hex())
            if known is None:
                known = self._new(who, samples, wish)
            elif known.samples != samples and not self._fixed:
                known.samples = samples
                self._write()
            elif known.samples != samples:
                raise Refused(f"{known.title} has {samples} samples now, and had {known.samples} when it joined")
            known.seen, known.left = time.monotonic(), ""
            return known

    def _new(self, who: Identity, samples: int, wish: int | None) -> Member:
        free = sorted(set(range(self.count)) - {member.number for member in self._members.values()})
        if not free:
            raise Refused(f"all {self.count} places of this run are taken")
        if wish is not None and wish not in free:
            raise Refused(f"number {wish} is taken, or there is no such number; free: {', '.join(map(str, free[:10]))}")
        made = Member(free[0] if wish is None else wish, who.key.hex(), who.name, samples)
        self._members[made.key] = made
        try:
            self._write()
        except BaseException:
            del self._members[made.key]
            raise
        return made

    def _write(self) -> None:
        rows = [_row(member) for member in sorted(self._members.values(), key=lambda m: m.number)]
        files.write_json(self._path, {"clients": rows})
        self._numbers = {member.number: member for member in self._members.values()}

    def leave(self, member: Member, reason: str) -> None:
        """Take note that a client is gone for good; before the list is fixed, its place is free again."""
        with self._lock:
            member.left = reason
            if not self._fixed and self._members.pop(member.key, None) is not None:
                self._write()

    def expel(self, member: Member, reason: str) -> None:
        """Take note that a client was sent away: it does not come back, and nothing that is on its way from it counts."""
        self._expelled[member.key] = reason
        self.leave(member, reason)

    def _stays(self, who: Identity) -> None:
        if reason := self._expelled.get(who.key.hex()):
            raise Refused(f"{who.name} is not in this run any more: {reason}")

    def drop(self, seconds: float) -> list[Member]:
        """Free the places of those that were not heard of for so many ``seconds``, before the list is fixed."""
        with self._lock:
            gone = [] if self._fixed else [one for one in self._members.values() if self.silent(one) > seconds]
            for one in gone:
                del self._members[one.key]
            if gone:
                self._write()
            return gone

    def fix(self, *, begun: bool = False) -> bool:
        """Let the list be what it is from now on, if all places are taken by clients that agreed; says whether it is.

        Args:
            begun: The run has begun already, and whoever is on the list has agreed before.
        """
        with self._lock:
            self._fixed = self._fixed or begun or len(self._there()) == self.count
            return self._fixed

    def there(self) -> int:
        """Return how many clients are there and have agreed."""
        with self._lock:
            return len(self._there())

    def _there(self) -> list[Member]:
        return [member for member in self._members.values() if member.agreed]

    def find(self, who: Identity) -> Member:
        """Return a client of the run, and take note that it was heard of.

        Raises:
            Refused: It is none.
        """
        with self._lock:
            self._stays(who)
            known = self._members.get(who.key.hex())
            if known is None:
                raise Refused(f"{who.name} is not registered in this run")
            known.seen = time.monotonic()
            return known

    def members(self) -> list[Member]:
        """Return all clients, by number."""
        with self._lock:
            return sorted(self._members.values(), key=lambda member: member.number)

    def member(self, number: int) -> Member:
        """Return the client of a number."""
        with self._lock:
            return self._numbers[number]

    def silent(self, member: Member) -> float:
        """Return for how many seconds a client was not heard of."""
        return time.monotonic() - (self._began if member.seen is None else member.seen)


def _row(member: Member) -> dict[str, Any]:
    row = asdict(member)
    return {key: row[key] for key in ("number", "key", "name", "samples")}


def _read(path: Path) -> list[Member]:
    rows = files.read_json(path).get("clients")
    try:
        return [Member(int(r["number"]), str(r["key"]), str(r["name"]), int(r["samples"])) for r in rows or ()]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error})", file=str(path)) from error
