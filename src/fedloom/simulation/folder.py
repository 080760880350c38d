"""The folder of a run: ``config.toml``, ``events.jsonl``, ``checkpoints/``, the best model and the last one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fedloom import events, files
from fedloom.config import Config
from fedloom.errors import DataError, StorageError, UsageError
from fedloom.events import EVENTS

CONFIG, CHECKPOINTS = "config.toml", "checkpoints"
MAY_DIFFER = (
    *("run.rounds", "run.engine", "run.workers", "run.address", "run.checkpoint_every", "run.format"),
    *("run.policy", "run.log", "evaluation.target", "evaluation.stop_at_target"),
)
"""Keys that another value may be given on the way: they change no number of the rounds to come, or say so themselves."""


@dataclass
class Folder:
    """A run's folder, open for one run.

    Attributes:
        path: Where it is.
        hear: Told every event once it is written.
    """

    path: Path
    hear: Callable[[Mapping[str, Any]], None] = lambda _: None
    _events: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / CHECKPOINTS

    def begin(self, config: Config) -> None:
        """Write ``config.toml`` and begin ``events.jsonl``, or go on with it; what a kill left half-written goes."""
        files.tidy(self.path)
        files.write_text(self.path / CONFIG, config.to_toml())
        try:
            self._events = (self.path / EVENTS).open("a", encoding="utf-8")
        except OSError as error:
            raise files.storage_error(self.path / EVENTS, error) from error

    def event(self, kind: str, **row: Any) -> None:
        """Append one line to ``events.jsonl``.

        Raises:
            StorageError: The disk is full; what was written before is whole.
        """
        if self._events is None:
            raise StorageError(f"{self.path / EVENTS}: not open", file=str(self.path / EVENTS))
        try:
            self._events.write(events.line({"event": kind, **row}))
            self._events.flush()
        except OSError as error:
            raise files.storage_error(self.path / EVENTS, error) from error
        self.hear({"event": kind, **row})

    def sync(self) -> None:
        """Make sure that the events are on the disk: a checkpoint must never be ahead of them."""
        if self._events is not None:
            try:
                os.fsync(self._events.fileno())
            except OSError as error:
                raise files.storage_error(self.path / EVENTS, error) from error

    def close(self) -> None:
        """Close ``events.jsonl``."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def cut_back(self, number: int) -> list[dict[str, Any]]:
        """Drop the events after round ``number``, atomically; returns the others.

        Raises:
            DataError: A round up to ``number`` is missing.
        """
        rows = events.read(self.path).rows if (self.path / EVENTS).is_file() else ()
        kept = [row for row in rows if row["event"] != "end" and events.whole(row.get("round")) <= number]
        missing = set(range(1, number + 1)) - {n for n, _ in events.numbered(kept, "round")}
        if missing:
            raise DataError(
                f"{self.path / EVENTS}: round {min(missing)} is missing, but the checkpoint is of round {number}: delete "
                f"{self.checkpoints} and pass --resume to run all rounds again",
                file=str(self.path / EVENTS),
            )
        if rows:
            files.write_text(self.path / EVENTS, "".join(events.line(row) for row in kept))
        return kept


def open_new(path: Path) -> Folder:
    """Take a folder for a new run.

    Raises:
        StorageError: There is something in it already.
    """
    if (path / CONFIG).is_file():
        raise StorageError(
            f"{path} holds a run already: pass --resume to go on with it, or choose another --out", file=str(path)
        )
    if path.exists() and (not path.is_dir() or any(not files.is_temporary(inside) for inside in path.iterdir())):
        raise StorageError(f"{path} exists and is not the folder of a run: choose another --out", file=str(path))
    return Folder(path)


def open_again(path: Path, config: Config) -> Folder:
    """Take the folder of a run to go on with it.

    Raises:
        UsageError: The run there was another one; the first difference is named.
    """
    if not (path / CONFIG).is_file():
        return open_new(path)
    different = config.differences(Config.read(path / CONFIG), but=MAY_DIFFER)
    if different:
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise UsageError(
            f"{path} holds another run: {different[0]}{more}; leave that as it was, or choose another --out",
            file=str(path),
        )
    return Folder(path)


def free(parent: Path, stem: str) -> Path:
    """Return the first path ``parent/stem-N`` that does not exist."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"
