"""What a run left in its folder, read back: whatever is there, of a finished run or of one that was cut off."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from fedloom import events
from fedloom.events import number, whole
from fedloom.records import RoundRecord

CONFIG: Final = "config.toml"


@dataclass(frozen=True)
class Spread:
    """How the clients fared in one round; accuracies are 0-1.

    Attributes:
        round: The number of the round.
        mean: The mean over clients.
        worst: The mean over the worst tenth of them.
        best: The mean over the best tenth.
        personal: Whether each client's own model was evaluated, not the global one.
    """

    round: int
    mean: float
    worst: float
    best: float
    personal: bool


@dataclass(frozen=True)
class RunLog:
    """What a run folder tells.

    Attributes:
        folder: Where it lies.
        config: The tables of ``config.toml``; empty when there is none.
        start: The event at the start: what is known of data, model and machine.
        plan: The event of the planner; empty when it did not speak.
        rounds: One record per round that is over, in order.
        spreads: How the clients fared, in order: with the global model, and where they have their own, with those.
        end: The event at the end; empty for a run that was cut off or still goes on.
        damaged: How many lines of the log could not be read.
        privacy: The event that says what is promised; empty where nothing is hidden.
    """

    folder: Path
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    rounds: tuple[RoundRecord, ...] = ()
    spreads: tuple[Spread, ...] = ()
    end: Mapping[str, Any] = field(default_factory=dict)
    damaged: int = 0
    privacy: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, table: str, key: str, default: Any = None) -> Any:
        """Return one value of the configuration."""
        return self.config.get(table, {}).get(key, default)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name or "run"

    @property
    def algorithm(self) -> str:
        """The name of the algorithm; "federated run" when it is not known."""
        return str(self.setting("algorithm", "name", "federated run"))

    @property
    def planned(self) -> int:
        """How many rounds were wanted; 0 when that is not known."""
        return whole(self.setting("run", "rounds"))

    @property
    def target(self) -> float:
        """The accuracy to reach, 0-1; NaN when there is none."""
        return number(self.setting("evaluation", "target"))

    @cached_property
    def evaluated(self) -> tuple[RoundRecord, ...]:
        """The rounds after which the global model was evaluated."""
        return tuple(r for r in self.rounds if math.isfinite(r.accuracy))

    @property
    def final(self) -> RoundRecord | None:
        """The last evaluated round."""
        return self.evaluated[-1] if self.evaluated else None

    @property
    def best(self) -> RoundRecord | None:
        """The first of the rounds with the highest accuracy."""
        return max(self.evaluated, key=lambda r: r.accuracy, default=None)

    @property
    def reached(self) -> RoundRecord | None:
        """The first round that reached the target."""
        return self.reaching(self.target)

    def reaching(self, target: float) -> RoundRecord | None:
        """Return the first round with that accuracy (0-1) or more."""
        return next((r for r in self.evaluated if r.accuracy >= target), None)

    @cached_property
    def traffic(self) -> tuple[int, ...]:
        """The bytes of models sent, down and up together, until the end of each round; central training sends none."""
        if self.algorithm == "central":
            return (0,) * len(self.rounds)
        return tuple(accumulate(r.bytes_down + r.bytes_up for r in self.rounds))

    @cached_property
    def uploads(self) -> tuple[int, ...]:
        """The bytes that clients sent until the end of each round; central training has none."""
        if self.algorithm == "central":
            return (0,) * len(self.rounds)
        return tuple(accumulate(r.bytes_up for r in self.rounds))

    @property
    def codec(self) -> str:
        """What makes bytes of updates; empty for plain float32."""
        return self._codec("up")

    @property
    def codec_down(self) -> str:
        """What makes bytes of models; empty for plain float32."""
        return self._codec("down")

    def _codec(self, way: str) -> str:
        codec = str(self.setting("compression", way) or "none")
        return "" if codec == "none" else codec

    @cached_property
    def spent(self) -> Mapping[int, float]:
        """Epsilon by round, where it is known."""
        found = {r.round: r.metrics.get("epsilon", math.nan) for r in self.rounds}
        return {n: epsilon for n, epsilon in found.items() if math.isfinite(epsilon)}

    @property
    def epsilon(self) -> float:
        """Epsilon after the last round; NaN where there is none."""
        return next(reversed(tuple(self.spent.values())), math.nan)

    @property
    def void(self) -> bool:
        """Whether the noise can be repeated, so that epsilon promises nothing."""
        return self.privacy.get("void") is True

    @cached_property
    def at_home(self) -> tuple[Spread, ...]:
        """How the global model does on the samples that the clients kept apart."""
        return tuple(s for s in self.spreads if not s.personal)

    @cached_property
    def own(self) -> tuple[Spread, ...]:
        """How the clients' own models do there; empty where there are none."""
        return tuple(s for s in self.spreads if s.personal)

    @property
    def alone(self) -> bool:
        """Whether nothing is shared, so that only the clients' own models mean anything."""
        return self.algorithm == "local-only"

    @property
    def clock(self) -> float:
        """The simulated time of the whole run in seconds; 0 without a simulated network."""
        return max((r.clock for r in self.rounds), default=0.0)

    @property
    def seconds(self) -> float:
        """The wall-clock time of all rounds; of the whole run where that is known and longer."""
        rounds = math.fsum(r.seconds for r in self.rounds)
        whole = number(self.end.get("seconds"))
        return max(rounds, whole) if math.isfinite(whole) else rounds

    def along(self, x: str) -> list[tuple[float, float]]:
        """Return the accuracy of the global model against something that grows.

        Args:
            x: "round", "clock" (simulated seconds), "bytes" (down and up), "up" (bytes of clients alone) or "epsilon".
        """
        if x in ("bytes", "up"):
            sums = self.traffic if x == "bytes" else self.uploads
            traffic = dict(zip((r.round for r in self.rounds), sums, strict=True))
            return [(float(traffic[r.round]), r.accuracy) for r in self.evaluated]
        if x == "epsilon":
            return [(self.spent[r.round], r.accuracy) for r in self.evaluated if r.round in self.spent]
        return [(r.clock if x == "clock" else float(r.round), r.accuracy) for r in self.evaluated]

    def curve(self, x: str) -> list[tuple[float, float]]:
        """Return the accuracy that the run is judged by, as :meth:`along`; nothing where nothing grows.

        Of clients that are alone that is the mean of their own models, round by round.
        """
        if self.alone:
            return [(float(s.round), s.mean) for s in self.own] if x == "round" else []
        sent, up = (bool(sums and sums[-1]) for sums in (self.traffic, self.uploads))
        grows = {"round": True, "clock": self.clock > 0, "bytes": sent, "up": up, "epsilon": bool(self.spent)}
        return self.along(x) if grows[x] else []

    def failed(self) -> dict[str, dict[str, list[int]]]:
        """Return the rounds in which clients failed: by kind, then by client."""
        found: dict[str, dict[str, list[int]]] = {}
        for record in self.rounds:
            for failure in record.failures:
                found.setdefault(failure.kind, {}).setdefault(failure.client, []).append(record.round)
        return found


def read_run(folder: str | Path) -> RunLog:
    """Read what a run has written so far; lines that are cut off or damaged are counted and left out.

    Raises:
        DataError: There is no log in the folder, or it cannot be read.
    """
    folder = Path(folder)
    log = events.read(folder)
    last = {str(row["event"]): row for row in log.rows}
    rounds = {r.round: r for r in events.rounds(log.rows)}
    spreads = {(s.round, s.personal): s for s in _spreads(log.rows)}
    over = bool(log.rows) and log.rows[-1]["event"] == "end"
    return RunLog(
        folder,
        _config(folder / CONFIG),
        last.get("start", {}),
        last.get("plan", {}),
        tuple(rounds[n] for n in sorted(rounds)),
        tuple(spreads[key] for key in sorted(spreads)),
        last["end"] if over else {},
        log.damaged,
        last.get("privacy", {}),
    )


def _config(path: Path) -> dict[str, Mapping[str, Any]]:
    """Read the configuration; a page can do without it."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: table for name, table in tables.items() if isinstance(table, dict)}


def _spreads(rows: Iterable[Mapping[str, Any]]) -> Iterator[Spread]:
    for n, event in events.numbered(rows, "clients"):
        mean, worst, best = (number(event.get(key)) for key in ("mean", "worst_decile", "best_decile"))
        if math.isfinite(mean):
            yield Spread(n, mean, worst, best, event.get("personal") is True)
