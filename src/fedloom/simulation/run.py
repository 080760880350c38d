"""Run: what a simulation leaves, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fedloom.config import Config
from fedloom.records import RoundRecord
from fedloom.simulation.live import time_left

ALONE = "local-only"
"""The algorithm without a global model: its figures are those of the clients' own models."""


@dataclass(frozen=True)
class Run:
    """A run that is over, or was stopped.

    Attributes:
        folder: Where everything of it lies.
        config: What was asked for, with all defaults.
        records: One per round.
        model: The file of the last global model.
        best_model: The file of the one that was best on the test set.
        best_round: Its round; 0 when nothing was evaluated.
        best_accuracy: Its accuracy, 0-1.
        final_accuracy: The accuracy of the last evaluation, 0-1.
        rounds_to_target: The first round that reached the target accuracy; None when there is no target, or it was not
            reached.
        seconds: Wall-clock time of all rounds.
        stopped: ``"target"``, ``"interrupted"`` (Ctrl-C), or nothing: all rounds were run.
        clients: What the evaluations on clients gave, a row each.
        notes: What else is worth knowing.
    """

    folder: Path
    config: Config
    records: tuple[RoundRecord, ...]
    model: Path
    best_model: Path
    best_round: int
    best_accuracy: float
    final_accuracy: float
    rounds_to_target: int | None
    seconds: float
    stopped: str = ""
    clients: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return the figures of the ``end`` event, JSON-able but for NaN."""
        return {
            "rounds": len(self.records),
            "best_round": self.best_round,
            "best_accuracy": self.best_accuracy,
            "final_accuracy": self.final_accuracy,
            "rounds_to_target": self.rounds_to_target,
            "seconds": self.seconds,
            "stopped": self.stopped,
        }

    def lines(self) -> list[str]:
        """Say in a few lines what came of it."""
        said, target = list[str](), self.config.evaluation.target
        alone = self.config.algorithm.name == ALONE
        if self.best_round and not alone:
            best = f"best {self.best_accuracy:.2%} in round {self.best_round}"
            said.append(f"final accuracy {self.final_accuracy:.2%}, {best}")
        if target is not None and not alone:
            found = self.rounds_to_target
            said.append(f"{target:.2%} was {f'reached in round {found}' if found else 'not reached'}")
        up, down = (sum(getattr(r, k) for r in self.records) for k in ("bytes_up", "bytes_down"))
        count = "1 round" if len(self.records) == 1 else f"{len(self.records)} rounds"
        said.append(f"{count} in {time_left(self.seconds)}; {size(down)} down, {size(up)} up")
        clock = self.records[-1].clock if self.records else 0.0
        if clock:
            said[-1] += f"; on the simulated network {time_left(clock)}"
        said += [*self._private(), *self._failed()]
        last = [row for row in self.clients if row["round"] == self.clients[-1]["round"]]
        for row in (row for row in last if row["personal"] or not alone):
            whose = "clients' own models" if row["personal"] else "global model on clients"
            said.append(f"{whose}: mean {row['mean']:.2%}, worst 10 % {row['worst_decile']:.2%}")
        said += [f"note: {note}" for note in self.notes]
        said.append(f"folder: {self.folder}, with report.html")
        return said

    def _private(self) -> list[str]:
        spent = self.records[-1].metrics.get("epsilon") if self.records else None
        if spent is None:
            return []
        said = self.config.privacy
        unit = "example" if said.mechanism == "examples" else "client"
        void = "" if said.noise_seed is None else "; void: the noise can be repeated (noise_seed)"
        return [f"privacy {said.mechanism}: epsilon {spent:.3g} per {unit} at delta {said.delta:g}{void}"]

    def _failed(self) -> list[str]:
        found = [(record.round, failure) for record in self.records for failure in record.failures]
        if not found:
            return []
        number, first = found[0]
        what = "update that was asked for" if len(found) == 1 else "updates that were asked for"
        return [f"{len(found)} {what} did not come; the first: round {number}: {first.reason}"]

    def _repr_html_(self) -> str:
        return "<br>".join(escape(line) for line in self.lines())


def size(count: float) -> str:
    """Return a number of bytes in words.

    Example:
        >>> size(999), size(15_800_000)
        ('999 bytes', '15.8 MB')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"
