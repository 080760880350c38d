"""What lies on the straight line between two members, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedloom.errors import DataError


@dataclass(frozen=True)
class Interpolation:
    """Models on the straight line between two members, and how good each of them is.

    Attributes:
        name: How the two were mixed: "as they are", "aligned", ...
        first: The member at 0.
        second: The member at 1.
        samples: How many test samples they were measured on.
        alphas: The second member's share in each mixture, from 0 to 1.
        losses: Mean cross-entropies in nats.
        accuracies: 0-1.
        barrier: The largest rise of the loss over the straight line between its two ends, in nats.
        accuracy_barrier: The largest fall of the accuracy below the straight line between its two ends, 0-1.
    """

    name: str
    first: str
    second: str
    samples: int
    alphas: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    barrier: float
    accuracy_barrier: float

    def __post_init__(self) -> None:
        if not len(self.alphas) == len(self.losses) == len(self.accuracies):
            lengths = (len(self.alphas), len(self.losses), len(self.accuracies))
            raise DataError(f"the line '{self.name}' has lists of different lengths {lengths}", found=lengths)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types; a number that is not finite becomes None."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Interpolation:
        """Build what :meth:`to_json` returned."""
        return cls(
            name=value["name"],
            first=value["first"],
            second=value["second"],
            samples=int(value["samples"]),
            alphas=_floats(value["alphas"]),
            losses=_floats(value["losses"]),
            accuracies=_floats(value["accuracies"]),
            barrier=_float(value["barrier"]),
            accuracy_barrier=_float(value["accuracy_barrier"]),
        )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _floats(values: list[float | None]) -> tuple[float, ...]:
    return tuple(_float(value) for value in values)


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)
