"""Keeping: the models of a run as files, each with a sidecar that says how it came about and what was promised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedloom.models import io, sidecar
from fedloom.models.sidecar import Sidecar
from fedloom.records import RoundRecord
from fedloom.simulation.setup import Setup


@dataclass(frozen=True)
class Keeper:
    """Writes the models of a run.

    Attributes:
        setup: The run's parts.
        records: One per round that is over.
        start: Digest of the weights that the run began with.
        promised: What :func:`fedloom.simulation.guarantee.promise` returned.
    """

    setup: Setup
    records: Sequence[RoundRecord]
    start: str
    promised: Mapping[str, Any] | None

    def write(self, vector: torch.Tensor, number: int, path: Path) -> None:
        """Write the model that ``vector`` (P,) is, of round ``number``, with its sidecar.

        Raises:
            StorageError: The files cannot be written.
        """
        setup = self.setup
        model = setup.model.to(torch.device("cpu")).load(vector.cpu())
        io.save(model, path)
        of_round = next((record for record in self.records if record.round == number), None)
        record = Sidecar(
            model=model.describe(),
            samples=0 if self.promised else int(setup.sizes.sum()),  # how many there are is no secret but with privacy
            seed=setup.config.run.seed,
            start=self.start,
            round=number,
            metrics=_metrics(of_round),
            class_names=setup.data.class_names,
            merge=self._merge(number),
            privacy=kept_promise(self.promised, self.records),
        )
        sidecar.write(path, record)

    def _merge(self, number: int) -> dict[str, Any]:
        config, setup = self.setup.config, self.setup
        packed, secure = config.compression, config.privacy.secure_aggregation
        made = {
            "method": config.algorithm.name,
            "options": dict(config.algorithm.options),
            "rounds": number,
            "clients": len(setup.population),
            "per_round": setup.sampler().expected,
        }
        made |= {key: text for key, text in zip(("up", "down"), packed.codecs, strict=True) if text}
        return made if secure == "off" else made | {"secure_aggregation": secure}


def _metrics(record: RoundRecord | None) -> dict[str, float]:
    if record is None:
        return {}
    found = {"test_loss": record.loss, "test_accuracy": record.accuracy}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def kept_promise(promised: Mapping[str, Any] | None, records: Sequence[RoundRecord]) -> dict[str, Any]:
    """Return a promise with what it came to: ``planned`` and ``epsilon``, after so many ``rounds``.

    That is the epsilon of all rounds, for the best model, too: which round was best is known only after the last one.

    Args:
        promised: What :func:`fedloom.simulation.guarantee.promise` returned.
        records: Of all rounds.

    Returns:
        An empty mapping where nothing was promised; ``epsilon`` is None where there is no guarantee.
    """
    if promised is None:
        return {}
    spent = records[-1].metrics.get("epsilon", math.inf) if records else math.inf
    came_to = spent if math.isfinite(spent) else None
    return {**promised, "planned": promised["epsilon"], "epsilon": came_to, "rounds": len(records)}
