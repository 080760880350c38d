"""Evaluation: a client evaluates models on the samples that it keeps apart; counts are all that leaves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedloom.algorithms.base import Broadcast, Kept
from fedloom.clients import ClientSide
from fedloom.deploy.protocol.facts import MODEL, OWN, RIGHT, SAMPLES
from fedloom.errors import DataError
from fedloom.training.evaluate import evaluate


def evaluated(side: ClientSide, number: int, sent: Broadcast, kept: Kept | None) -> dict[str, int]:
    """Evaluate the global model, and the client's own one where it has one.

    Args:
        side: The client's side.
        number: The client's number.
        sent: What the server sent.
        kept: What the client kept after its last turn that counts.

    Returns:
        How many samples are kept apart, and how many of them each model gets right.

    Raises:
        DataError: The model is of another size than the run's.
    """
    shard, personal = side.population.held_shard(number), side.algorithm.personal
    extra = {key: value for key, value in sent.extra.items() if key != MODEL}
    models = {RIGHT: sent.extra.get(MODEL, sent.vector)}
    if personal is not None:
        models[OWN] = personal(replace(sent, extra=extra), kept)
    if any(vector.shape != (side.model.layout.size,) for vector in models.values()):
        raise DataError("the model that the server sent is of another size than this run's")
    found = {name: evaluate(side.model.load(vector), shard).confusion for name, vector in models.items()}
    return {SAMPLES: len(shard), **{name: int(np.trace(confusion)) for name, confusion in found.items()}}
