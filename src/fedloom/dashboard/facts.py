"""Facts: what a page shows of a run, folded from its events one by one; JSON-able, and no sample or key among it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fedloom import events
from fedloom.records import ClientFailure, RoundRecord

Facts = dict[str, Any]
Round = dict[str, Any]

CLIENTS_KEPT: Final = 300
_TOLD: Final = 240
_STARTS: Final = (
    *("data", "samples", "test_samples", "clients", "per_round", "parameters", "device", "fedloom"),
    *("samples_least", "samples_median", "samples_most", "attackers"),
)
_PRIVACY: Final = ("mechanism", "unit", "delta", "epsilon", "void", "accountant", "trust", "secure_aggregation")


class Fold:
    """A run's events, taken in one by one.

    Attributes:
        rounds: What is shown of each round that is over, in order.
        generation: Counts up where a round that was there before is another one now.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything: the log begins anew."""
        self.rounds: list[Round] = []
        self.generation += 1
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._over = False
        self._failed: dict[str, dict[str, Any]] = {}
        self._spreads: list[dict[str, Any]] = []

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take events in."""
        for row in rows:
            kind = row["event"]
            self._over = kind == "end"
            if kind == "round":
                for record in events.rounds([row]):
                    self._round(record)
            elif kind == "clients":
                self._spread(row)
            else:
                self._rows[kind] = row

    def _round(self, record: RoundRecord) -> None:
        if self.rounds and record.round <= self.rounds[-1]["round"]:
            self.rounds = [one for one in self.rounds if one["round"] < record.round]
            self._spreads = [one for one in self._spreads if one["round"] < record.round]
            self.generation += 1
        self.rounds.append(_shown(record))
        for failure in record.failures:
            self._fail(record.round, failure)

    def _fail(self, number: int, failure: ClientFailure) -> None:
        if failure.kind == "surplus":  # nobody's fault
            return
        if failure.client in self._failed or len(self._failed) < CLIENTS_KEPT:
            found = self._failed.setdefault(failure.client, {"count": 0})
            found.update(count=found["count"] + 1, round=number, reason=failure.reason[:_TOLD], kind=failure.kind)

    def _spread(self, row: Mapping[str, Any]) -> None:
        for number, _ in events.numbered([row], "clients"):
            shares = {key: events.number(row.get(key)) for key in ("mean", "worst_decile", "best_decile")}
            self._spreads.append({"round": number, "personal": row.get("personal") is True, **shares})

    def facts(self) -> Facts:
        """Return all but the single rounds; nothing of it changes with later events."""
        start, privacy, end = (self._rows.get(kind, {}) for kind in ("start", "privacy", "end"))
        return {
            "start": {key: start[key] for key in _STARTS if key in start},
            "privacy": {key: privacy[key] for key in _PRIVACY if key in privacy},
            "plan": str(self._rows.get("plan", {}).get("chosen", "")),
            "over": self._over,
            "stopped": str(end.get("stopped") or "") if self._over else "",
            "rounds": len(self.rounds),
            "last": self.rounds[-1] if self.rounds else None,
            "tested": next((one for one in reversed(self.rounds) if one["accuracy"] is not None), None),
            "best": max(
                (one for one in self.rounds if one["accuracy"] is not None), key=lambda r: r["accuracy"], default=None
            ),
            "sums": self._sums(),
            "failed": {name: dict(found) for name, found in self._failed.items()},
            "spreads": list(self._spreads),
        }

    def _sums(self) -> Facts:
        keys = ("seconds", "bytes_up", "bytes_down", "asked", "clients", "failed")
        return {key: math.fsum(one[key] for one in self.rounds) for key in keys}


def _shown(record: RoundRecord) -> Round:
    return {
        "round": record.round,
        "accuracy": _finite(record.accuracy),
        "loss": _finite(record.loss),
        "client_loss": _finite(record.client_loss),
        "clients": record.clients,
        "asked": record.asked,
        "failed": sum(failure.kind != "surplus" for failure in record.failures),
        "seconds": record.seconds,
        "training": record.training_seconds,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "clock": record.clock,
        "epsilon": _finite(record.metrics.get("epsilon", math.nan)),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
