"""Sources: runs, as a page shows them; and the board, which is all of them."""

from __future__ import annotations

import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from fedloom import files
from fedloom.dashboard.facts import Facts, Fold, Round
from fedloom.dashboard.following import Follower
from fedloom.errors import DataError
from fedloom.events import EVENTS

CONFIG, SERVED, CLIENTS, PRESENCE = "config.toml", "served.json", "clients.json", "presence.json"
REPORT: Final = "report.html"

FRESH: Final = 10.0
"""Seconds for which a presence that was written down counts as of now."""
_PATIENCE: Final = 30.0
_DEPTH: Final = 3
_MOST: Final = 1000
_LOOK: Final = 2.0
_MEMBER: Final = ("number", "name", "samples", "seen", "doing", "left", "agreed", "took")


@dataclass(frozen=True)
class Look:
    """A run at one moment.

    Attributes:
        generation: Another number means that the rounds of before count no more.
        facts: All but the rounds, JSON-able.
        rounds: The rounds that are over, in order.
        presence: Who takes part and what they do, where clients are real; else empty.
    """

    generation: int
    facts: Facts
    rounds: Sequence[Round]
    presence: Facts


class Source(Protocol):
    """A run that a page shows."""

    @property
    def name(self) -> str:
        """What it is called; no two of a board are called the same."""

    def look(self) -> Look:
        """Return how it is now, the same object while nothing changes. Only one thread at a time asks."""

    def report(self) -> Path | None:
        """Return where its report is, if it has one yet."""


class FolderSource:
    """The run in a folder, whether it goes on or is over.

    Args:
        path: The folder.
        name: What it is called; the folder's name when left out.
    """

    def __init__(self, path: str | Path, name: str = "") -> None:
        self._path = Path(path)
        self._name = name or self._path.resolve().name
        self._log = Follower(self._path / EVENTS)
        self._fold = Fold()
        self._facts: Facts = {}
        self._rounds: tuple[Round, ...] = ()
        self._config: tuple[int, dict[str, dict[str, Any]]] = (0, {})
        self._last: Look | None = None

    @property
    def name(self) -> str:
        """What it is called."""
        return self._name

    def report(self) -> Path | None:
        """Return where its report is, if it has one yet."""
        path = self._path / REPORT
        return path if path.is_file() else None

    def look(self) -> Look:
        """Read what is new in the folder, and return how the run is now."""
        anew, rows = self._log.news()
        if anew:
            self._fold.clear()
        if anew or rows or not self._facts:
            self._fold.take(rows)
            self._facts, self._rounds = self._fold.facts(), tuple(self._fold.rounds)
        served = (self._path / SERVED).is_file()
        facts, config = self._facts, self._tables()
        presence = shown_presence(_json(self._path / PRESENCE) or _json(self._path / CLIENTS)) if served else {}
        shown = {
            "name": self._name,
            "config": config,
            "planned": config.get("run", {}).get("rounds", 0),
            "algorithm": str(config.get("algorithm", {}).get("name", "")),
            "served": served,
            "report": self.report() is not None,
            "damaged": self._log.damaged,
            "state": self._state(facts, presence, served),
            "changed": _changed(self._path / EVENTS) or _changed(self._path / CONFIG),
        }
        look = Look(self._fold.generation, {**facts, **shown}, self._rounds, presence)
        if look != self._last:
            self._last = look
        return self._last

    def _state(self, facts: Facts, presence: Facts, served: bool) -> str:
        if facts["over"]:
            return "over"
        now = time.time()
        if served:
            return ("running" if facts["start"] else "waiting") if now - presence.get("time", 0.0) < FRESH else "quiet"
        usual = facts["sums"]["seconds"] / max(1, facts["rounds"])
        silent = now - _changed(self._path / EVENTS)
        return "running" if silent < max(_PATIENCE, 5 * usual) else "quiet"

    def _tables(self) -> dict[str, dict[str, Any]]:
        """Return the configuration; read again where the file is another."""
        path = self._path / CONFIG
        try:
            stamp = path.stat().st_mtime_ns
            if stamp != self._config[0]:
                found = tomllib.loads(path.read_text(encoding="utf-8"))
                self._config = stamp, {name: table for name, table in found.items() if isinstance(table, dict)}
        except (OSError, ValueError):
            return {}
        return self._config[1]


class Board:
    """All runs of a page; those that appear in its folders are found.

    Args:
        places: Folders of runs, and folders with such folders in them.
        more: Runs beside them, which come first.
    """

    def __init__(self, places: Iterable[str | Path] = (), more: Iterable[Source] = ()) -> None:
        self._places = tuple(Path(place) for place in places)
        self._sources: dict[str, Source] = {source.name: source for source in more}
        self._paths: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._looked = self._found = -_LOOK
        self._looks: dict[str, Look] = {}

    def look(self, least: float = 0.25) -> dict[str, Look]:
        """Return all runs by name; what was found out less than ``least`` seconds ago is not asked again."""
        with self._lock:
            now = time.monotonic()
            if now - self._found >= _LOOK:
                self._find()
                self._found = now
            if now - self._looked >= least:
                self._looks = {name: source.look() for name, source in self._sources.items()}
                self._looked = time.monotonic()
            return dict(self._looks)

    def source(self, name: str) -> Source | None:
        """Return a run by its name."""
        return self._sources.get(name)

    def _find(self) -> None:
        for path, name in _runs(self._places):
            if path not in self._paths and len(self._sources) < _MOST:
                free = _free(name, self._sources)
                self._paths[path] = free
                self._sources[free] = FolderSource(path, free)
                self._looked = -_LOOK
        for path in [path for path in self._paths if not path.is_dir()]:
            self._sources.pop(self._paths.pop(path), None)
            self._looked = -_LOOK


def places(texts: Iterable[str | Path]) -> list[Path]:
    """Check folders that were named.

    Raises:
        DataError: One is not there, or is no folder.
    """
    found = [Path(text) for text in texts]
    for path in found:
        if not path.is_dir():
            what = "is a file; give the folder that it lies in" if path.exists() else "no such folder"
            raise DataError(f"{path}: {what} (a run's folder is expected, or one with runs in it)", file=str(path))
    return found


def shown_presence(found: Mapping[str, Any]) -> Facts:
    """Return what a page may know of who takes part: no keys, no addresses."""
    clients = found.get("clients")
    rows = [row for row in clients if isinstance(row, Mapping)] if isinstance(clients, Sequence) else []
    if not rows and "time" not in found:
        return {}
    return {
        **{key: found[key] for key in ("time", "count", "round", "waiting", "away") if key in found},
        "clients": [{key: row[key] for key in _MEMBER if key in row} for row in rows],
    }


def _runs(places: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for place in places:
        if _is_run(place):
            yield place.resolve(), place.resolve().name
            continue
        for path in _inside(place, _DEPTH):
            yield path.resolve(), path.relative_to(place).as_posix()


def _inside(place: Path, depth: int) -> Iterator[Path]:
    try:
        folders = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    for path in folders:
        if _is_run(path):
            yield path
        elif depth > 1:
            yield from _inside(path, depth - 1)


def _is_run(path: Path) -> bool:
    return (path / EVENTS).is_file() or (path / SERVED).is_file()


def _free(name: str, taken: Mapping[str, Source]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _json(path: Path) -> Facts:
    try:
        return files.read_json(path)
    except DataError:
        return {}
