"""THE round loop: nothing else in the package loops over rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import torch

from fedloom.metrics import Counts
from fedloom.records import ClientUpdate, RoundRecord

Engine = Callable[[int, torch.Tensor], Iterable[ClientUpdate]]
Reduce = Callable[[int, torch.Tensor, Iterable[ClientUpdate]], torch.Tensor]


def run(
    start: torch.Tensor,
    engine: Engine,
    reduce: Reduce,
    evaluate: Callable[[torch.Tensor], Counts],
    rounds: int,
    first: int = 1,
) -> Iterator[tuple[RoundRecord, torch.Tensor]]:
    """Run federated rounds: train the cohort, merge, evaluate.

    Args:
        start: The global model before round ``first``, float32 (P,).
        engine: ``(round, global model) -> updates`` of the cohort; the engine decides where they are trained.
        reduce: ``(round, global model, updates) -> new global model``.
        evaluate: The new global model's counts on the test set.
        rounds: The number of the last round.
        first: The number of the first one, above 1 when a run is resumed.

    Yields:
        The record of each round and the new global model (P,).
    """
    vector = start
    for number in range(first, rounds + 1):
        began = time.perf_counter()
        tally = _Tally()
        vector = reduce(number, vector, tally.watch(engine(number, vector)))
        counts = evaluate(vector)
        seconds = time.perf_counter() - began
        yield RoundRecord(number, counts.accuracy, counts.loss, tally.loss, tally.clients, seconds), vector


class _Tally:
    """Counts the updates that stream past on their way into the merge."""

    def __init__(self) -> None:
        self.clients, self._weight, self._loss = 0, 0.0, 0.0

    def watch(self, updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
        for update in updates:
            self.clients += 1
            self._weight += update.weight
            self._loss += update.weight * update.metrics.get("loss", float("nan"))
            yield update

    @property
    def loss(self) -> float:
        return self._loss / self._weight if self._weight else float("nan")
