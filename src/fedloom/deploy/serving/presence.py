"""Presence: who takes part in a run just now, for people who look on; written beside the run, without keys or addresses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedloom import files
from fedloom.deploy.serving.desk import Desk
from fedloom.deploy.serving.roster import Roster
from fedloom.deploy.settling import repeated
from fedloom.errors import StorageError

FILE = "presence.json"
EVERY = 1.0
"""Seconds between two writings."""


def presence(roster: Roster, desk: Desk, away: float) -> dict[str, Any]:
    """Return who takes part and who is waited for, JSON-able; times are seconds since 1970.

    Args:
        roster: Who takes part.
        desk: The round that is open.
        away: Seconds of silence after which a client counts as lost.
    """
    number, waiting = desk.waits()
    lag = time.time() - time.monotonic()
    clients = [
        {
            "number": member.number,
            "name": member.name,
            "samples": member.samples,
            "seen": None if member.seen is None else member.seen + lag,
            "doing": member.doing,
            "left": member.left,
            "agreed": member.agreed,
            "took": member.took,
        }
        for member in roster.members()
    ]
    facts = {"time": time.time(), "count": roster.count, "round": number, "waiting": waiting}
    return {**facts, "away": away, "clients": clients}


@contextmanager
def told(folder: Path, roster: Roster, desk: Desk, away: float) -> Iterator[None]:
    """Write the presence into a run's folder while the block runs, and once more at its end."""

    def write() -> None:
        with suppress(StorageError):  # nobody's run ends because onlookers see less
            files.write_json(folder / FILE, presence(roster, desk, away))

    write()
    try:
        with repeated(write, EVERY, "fedloom-presence"):
            yield
    finally:
        write()
