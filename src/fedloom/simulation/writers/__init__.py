"""Writers: a run's figures also go to other people's tools while it runs; see :data:`WRITERS`."""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

from fedloom import events
from fedloom.config import Config
from fedloom.errors import FedloomError

WRITERS: Final = {
    "mlflow": "fedloom.simulation.writers.mlflow",
    "tensorboard": "fedloom.simulation.writers.tensorboard",
}
"""What is more likely to refuse begins first, so that nothing is left of a run that does not begin."""

GRACE: Final = 60.0
"""Seconds that a run's end waits for what is still to be written."""

_NAMES: Final = {
    "accuracy": "test/accuracy",
    "loss": "test/loss",
    "client_loss": "training/loss",
    "clients": "round/clients",
    "asked": "round/asked",
    "seconds": "round/seconds",
    "training_seconds": "round/training_seconds",
    "bytes_up": "sent/up",
    "bytes_down": "sent/down",
}
_SPREAD: Final = ("mean", "worst_decile", "best_decile")

Figures = tuple[int, float, dict[str, float]]
"""A round's number, when it was (seconds since 1970), and its figures by name."""


class Writer(Protocol):
    """Takes a run's figures down elsewhere. A round that it has already is not written again.

    What goes wrong on the way is a ``FedloomError`` or an ``OSError``; the run goes on without the writer then.
    """

    def begin(self, path: Path, config: Config, before: Sequence[Figures]) -> None:
        """Begin, or go on.

        Args:
            path: The folder of the run.
            config: What is run.
            before: The figures of the rounds that are over.

        Raises:
            FedloomError: It cannot be written to.
        """

    def write(self, figures: Figures) -> None:
        """Take the figures of a round down."""

    def end(self, how: str) -> None:
        """End, after ``"finished"`` or ``"stopped"``."""


def of(log: str) -> Writer:
    """Return the writer of a name."""
    made: Writer = import_module(WRITERS[log]).make()
    return made


class Beside:
    """Writers at work, each in a thread of its own, so that no round waits for them.

    Args:
        names: Which, separated by commas; none for an empty text.
        path: The folder of the run.
        config: What is run.
        rows: The events of the rounds that are over.

    Raises:
        FedloomError: One cannot be written to.
    """

    def __init__(self, names: str, path: Path, config: Config, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._desks: list[_Desk] = []
        self._over = False
        before = list(_timed(rows))
        try:
            for name in sorted(parts(names), key=list(WRITERS).index):
                writer = of(name)
                writer.begin(path, config, before)
                self._desks.append(_Desk(name, writer))
        except BaseException:
            self.close()
            raise

    def hear(self, row: Mapping[str, Any]) -> None:
        """Take an event."""
        self._over = self._over or row["event"] == "end"
        for figures in _figures([row], time.time()):
            for desk in self._desks:
                desk.put(figures)

    def close(self) -> None:
        """Write the rest, and end. A second call does nothing."""
        for desk in self._desks:
            desk.close("finished" if self._over else "stopped")
        self._desks = []


class _Desk:
    """One writer's thread and what lies on its desk."""

    def __init__(self, name: str, writer: Writer) -> None:
        self._name, self._writer = name, writer
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._go, name=f"fedloom-{name}", daemon=True)
        self._thread.start()

    def put(self, figures: Figures) -> None:
        self._work.put(lambda: self._writer.write(figures))

    def close(self, how: str) -> None:
        self._work.put(lambda: self._writer.end(how))
        self._work.put(None)
        self._thread.join(GRACE)

    def _go(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except (FedloomError, OSError) as error:
                text = " ".join(str(error).split())[:300]
                print(f"warning: {self._name}: {text}; the run goes on without it", file=sys.stderr, flush=True)
                return


def parts(names: str) -> list[str]:
    """Split the names of writers.

    Example:
        >>> parts("tensorboard, mlflow"), parts("")
        (['tensorboard', 'mlflow'], [])
    """
    return list(dict.fromkeys(part.strip() for part in names.split(",") if part.strip()))


def _timed(rows: Iterable[Mapping[str, Any]]) -> Iterator[Figures]:
    """Yield the figures of rounds that are over, with the times that their lengths tell."""
    there = list(rows)
    seconds = {record.round: record.seconds for record in events.rounds(there)}
    now, left = time.time(), math.fsum(seconds.values())
    ends = {}
    for number, length in seconds.items():
        left -= length
        ends[number] = now - left
    for number, _, figures in _figures(there, now):
        yield number, ends.get(number, now), figures


def _figures(rows: Iterable[Mapping[str, Any]], when: float) -> Iterator[Figures]:
    """Yield what events say in figures; one that is not known is left out."""
    for row in rows:
        found: dict[str, float] = {}
        for record in events.rounds([row]):
            found = {name: float(getattr(record, key)) for key, name in _NAMES.items()}
            found["round/failed"] = float(sum(failure.kind != "surplus" for failure in record.failures))
            found |= {_metric(key): value for key, value in record.metrics.items()}
            found |= {"round/clock": record.clock} if record.clock else {}
        for _ in events.numbered([row], "clients"):
            whose = "own_models" if row.get("personal") is True else "clients"
            found = {f"{whose}/{key}": events.number(row.get(key)) for key in _SPREAD}
        known = {name: value for name, value in found.items() if math.isfinite(value)}
        if known:
            yield events.whole(row.get("round")), when, known


def _metric(key: str) -> str:
    return "privacy/epsilon" if key == "epsilon" else f"metrics/{key}"
