"""What a person sees while a simulation runs: a bar in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedloom.offline.progress import bar
from fedloom.records import RoundRecord

LINES = 10
"""How many plain lines a run prints at least, where there is no terminal."""

PATIENCE = 30.0
"""Seconds after which a plain line is due."""

Show = Callable[[RoundRecord], None]


@contextmanager
def live(name: str, done: int, rounds: int, show: bool) -> Iterator[Show]:
    """Show how a run gets on.

    Args:
        name: What is run.
        done: Rounds that are over already.
        rounds: The number of the last round.
        show: False for silence.

    Yields:
        What is called with each record.
    """
    if show and not sys.stderr.isatty() and not _notebook():
        yield _plain(rounds)
        return
    speed = _Speed()
    with bar(name, rounds, show) as advance:
        advance(done)

        def tell(record: RoundRecord) -> None:
            advance(1, f"round {record.round}/{rounds}{speed.words(record)}")

        yield tell


def _plain(rounds: int) -> Show:
    speed, every, said = _Speed(), max(1, rounds // LINES), time.monotonic()

    def tell(record: RoundRecord) -> None:
        nonlocal said
        words = speed.words(record)
        if record.round % every and record.round != rounds and time.monotonic() - said < PATIENCE:
            return
        said = time.monotonic()
        left = speed.seconds * (rounds - record.round)
        print(f"round {record.round}/{rounds}{words}, {time_left(left)} left", file=sys.stderr, flush=True)

    return tell


class _Speed:
    """Remembers the last evaluation, and a running mean of how fast rounds go."""

    def __init__(self) -> None:
        self._clients = 0.0
        self.seconds = 0.0
        self._tested = ""

    def words(self, record: RoundRecord) -> str:
        """Return what is said of a round, behind its number."""
        if not math.isnan(record.accuracy):
            self._tested = f", accuracy {record.accuracy:.2%}"
        share = 0.2 if self.seconds else 1.0
        self.seconds += share * (record.seconds - self.seconds)
        self._clients += share * (record.clients / max(record.seconds, 1e-9) - self._clients)
        failed = f", {len(record.failures)} failed" if record.failures else ""
        loss = "" if math.isnan(record.client_loss) else f", loss {record.client_loss:.4f}"
        spent = record.metrics.get("epsilon")
        epsilon = "" if spent is None else f", epsilon {spent:.3g}"
        return f"{loss}{self._tested}{epsilon}, {self._clients:.3g} clients/s{failed}"


def time_left(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> time_left(4.2), time_left(130), time_left(7500)
        ('4 s', '2 min 10 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and shell.get_ipython() is not None
