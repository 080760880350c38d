"""Memory: what a client has on its own disk.

What it keeps between its turns never leaves it, and an answer is there until it is known that it has arrived.

A turn is one file, written at once: the answer and the state after it. Which turn's state counts is for the server to say:
one that was not used (late, lost) did not happen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedloom import files
from fedloom.algorithms.base import Kept
from fedloom.deploy.protocol.messages import Task
from fedloom.errors import DataError, UsageError
from fedloom.records import ClientUpdate

DELTA, DATA, EXTRA, KEPT, ABOUT = "delta", "data", "extra.", "kept.", "fedloom"
BEGUN, EVALUATED = "begun.json", "evaluated.json"
LAST = 2
"""So many turns are kept, and the one whose state counts."""

Turn = tuple[int, int]
_NAME = re.compile(r"turn-(\d{8,})-(\d+)\.safetensors")


@dataclass(frozen=True)
class Memory:
    """The turns of one client in one run.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    @classmethod
    def of(cls, folder: Path, run: str, number: int) -> Memory:
        """Return what a client remembers of a run.

        Raises:
            UsageError: It has answered as another number: what it promises to do once, it would do again.
        """
        place = folder / plain(run)
        found = [one.parent.name for one in place.glob("*/*")]
        if other := next((name for name in found if name != str(number)), ""):
            raise UsageError(
                f"the server calls this client number {number}, and it was number {other} in this run: nothing more is sent"
            )
        return cls(place / str(number))

    def answer(self, task: Task) -> ClientUpdate | None:
        """Return what was made of the very same task before; None where nothing is known of it."""
        path = self._path((task.round, task.attempt))
        if not path.is_file():
            return None
        try:
            tensors, facts = _read(path)
        except DataError:
            return None
        if facts.get("task") != digest(task):
            return None
        return ClientUpdate(
            facts["client"],
            tensors[DELTA],
            facts["weight"],
            facts["steps"],
            facts["metrics"],
            _named(tensors, EXTRA),
            facts["bytes"],
            _named(tensors, KEPT) or None,
            bytes(tensors[DATA].numpy()) if DATA in tensors else b"",
        )

    def save(self, task: Task, update: ClientUpdate, digested: str | None = None) -> None:
        """Write a turn down, before its answer is sent.

        Args:
            task: What was to be done.
            update: What was made of it, with what is kept.
            digested: The task's :func:`digest`, where it is known.

        Raises:
            StorageError: The disk is full.
        """
        kept = update.kept or {}
        packed = {DATA: torch.frombuffer(bytearray(update.data), dtype=torch.uint8)} if update.data else {}
        tensors = {
            **packed,
            DELTA: update.delta,
            **{EXTRA + key: value for key, value in update.extra.items()},
            **{KEPT + key: value for key, value in kept.items()},
        }
        facts = {
            "task": digested or digest(task),
            "client": update.client,
            "weight": update.weight,
            "steps": update.steps,
            "metrics": dict(update.metrics),
            "bytes": update.bytes_up,
        }
        files.write_tensors(self._path((task.round, task.attempt)), tensors, {ABOUT: json.dumps(facts)})

    def begin(self, task: Task) -> bool:
        """Write down that a round is trained for; False where it was, for another task, or a later one was.

        Raises:
            DataError: The note is damaged.
            StorageError: The disk is full.
        """
        return self._first(BEGUN, task, max((turn[0] for turn in self.turns()), default=0))

    def begin_evaluation(self, task: Task) -> bool:
        """Write down that models are evaluated after a round; False where it was, for another task, or a later one was.

        Raises:
            DataError: The note is damaged.
            StorageError: The disk is full.
        """
        return self._first(EVALUATED, task, 0)

    def _first(self, name: str, task: Task, last: int) -> bool:
        path, now = self.folder / name, [task.round, digest(task)]
        before = files.read_json(path).get("task") if path.is_file() else [0, ""]
        if before == now:
            return True
        if not isinstance(before, list) or not before or type(before[0]) is not int:
            raise DataError(f"{path}: damaged; without it this client cannot tell what it has answered", file=str(path))
        if task.round <= max(before[0], last):
            return False
        files.write_json(path, {"task": now})
        return True

    def beside(self, turn: Turn) -> dict[str, Tensor]:
        """Return what is beside the update of a turn, by name; nothing where the turn is not there.

        Raises:
            DataError: The file is damaged.
        """
        path = self._path(turn)
        return _named(_read(path)[0], EXTRA) if path.is_file() else {}

    def kept(self, turn: Turn) -> Kept | None:
        """Return what the client kept after a turn; None where that is not there any more.

        Raises:
            DataError: The file is damaged.
        """
        path = self._path(turn)
        return _named(_read(path)[0], KEPT) or None if path.is_file() else None

    def forget(self, counts: Turn | None) -> None:
        """Delete old turns, but for the one whose state counts."""
        found = self.turns()
        for turn in found[:-LAST]:
            if turn != counts:
                self._path(turn).unlink(missing_ok=True)

    def turns(self) -> list[Turn]:
        """Return the turns that are there, the oldest first."""
        matches = (_NAME.fullmatch(path.name) for path in self.folder.glob("turn-*"))
        return sorted((int(m[1]), int(m[2])) for m in matches if m)

    def _path(self, turn: Turn) -> Path:
        return self.folder / f"turn-{turn[0]:08d}-{turn[1]}.safetensors"


def plain(run: str) -> str:
    """Return a run's name as the name of a folder.

    Raises:
        DataError: It is none.
    """
    if not run or not all(c.isalnum() or c in "-_" for c in run):
        raise DataError("the server gives this run a name that is none")
    return run


def digest(task: Task) -> str:
    """Return what tells one task from another: all that its answer depends on."""
    facts = [task.round, task.attempt, task.lr, task.stale, dict(task.facts)]
    made = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    made.update(task.encoded)
    for key, tensor in (("", task.vector), *sorted(task.extra.items())):
        made.update(key.encode())
        if tensor is not None:
            made.update(tensor.detach().cpu().contiguous().numpy().data)
    return made.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, about = files.read_tensors(path)
    try:
        return tensors, json.loads(about[ABOUT])
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error})", file=str(path)) from error


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
