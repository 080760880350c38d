"""The log of a run, ``events.jsonl``: one JSON object a line, and the one place that knows how to read it.

Whatever is there is read, of a finished run or of one that was cut off: a line that is damaged is left out and counted,
and a number that is missing is NaN or 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fedloom import files
from fedloom.errors import DataError
from fedloom.records import ClientFailure, RoundRecord

EVENTS: Final = "events.jsonl"


@dataclass(frozen=True)
class Log:
    """What stands in a log.

    Attributes:
        rows: The events in their order; each has a text ``event``, its kind.
        damaged: How many lines could not be read.
    """

    rows: tuple[dict[str, Any], ...]
    damaged: int = 0


def read(folder: str | Path) -> Log:
    """Read the log in a run's folder.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    path = Path(folder) / EVENTS
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); give the folder of a run"
        raise DataError(f"{path}: {reason}", file=str(path)) from error
    return parsed(lines)


def parsed(lines: Iterable[str]) -> Log:
    """Read lines of a log; empty ones are passed over."""
    rows = [_row(text) for text in lines if text.strip()]
    return Log(tuple(row for row in rows if row), sum(row is None for row in rows))


def line(row: Mapping[str, Any]) -> str:
    """Return an event as its line; NaN and infinity become null."""
    return json.dumps(files.finite(row), ensure_ascii=False) + "\n"


def round_row(record: RoundRecord) -> dict[str, Any]:
    """Return a record as what the event of its round tells."""
    return asdict(record)


def rounds(rows: Iterable[Mapping[str, Any]]) -> Iterator[RoundRecord]:
    """Yield the records of the rounds among some events."""
    for n, row in numbered(rows, "round"):
        failures = row.get("failures")
        yield RoundRecord(
            round=n,
            accuracy=number(row.get("accuracy")),
            loss=number(row.get("loss")),
            client_loss=number(row.get("client_loss")),
            clients=whole(row.get("clients")),
            seconds=_time(row.get("seconds")),
            training_seconds=_time(row.get("training_seconds")),
            evaluation_seconds=_time(row.get("evaluation_seconds")),
            asked=whole(row.get("asked")),
            bytes_down=whole(row.get("bytes_down")),
            bytes_up=whole(row.get("bytes_up")),
            clock=_time(row.get("clock")),
            failures=tuple(_failures(failures if isinstance(failures, list) else [])),
            metrics={key: number(value) for key, value in mapping(row.get("metrics")).items()},
        )


def numbered(rows: Iterable[Mapping[str, Any]], kind: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the events of a kind with the number of their round; those without one are left out."""
    for row in rows:
        if row["event"] == kind and (n := whole(row.get("round"))):
            yield n, row


def number(value: Any) -> float:
    """Return a number as a float, and NaN for everything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def whole(value: Any) -> int:
    """Return a whole number of at least 0; 0 for everything else."""
    found = number(value)
    return max(0, int(found)) if math.isfinite(found) else 0


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping as it is, and an empty one for everything else."""
    return value if isinstance(value, Mapping) else {}


def _time(value: Any) -> float:
    found = number(value)
    return max(0.0, found) if math.isfinite(found) else 0.0


def _row(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None


def _failures(values: Sequence[Any]) -> Iterator[ClientFailure]:
    for value in values:
        if isinstance(value, Mapping):
            yield ClientFailure(*(str(value.get(key, "?")) for key in ("client", "reason", "kind")))
