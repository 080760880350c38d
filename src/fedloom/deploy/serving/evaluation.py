"""Evaluation: clients evaluate models on the samples that they keep apart; an evaluation is an order like a round's.

It comes after all attempts of its round. A server that was killed meanwhile trains the round again and asks anew, so that
nothing of it is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from fedloom.algorithms import Algorithm, Broadcast, State
from fedloom.clients import Order, Result
from fedloom.deploy.protocol.facts import MODEL, OWN, RIGHT, SAMPLES
from fedloom.deploy.protocol.messages import EVALUATE, Upload
from fedloom.deploy.serving.desk import Desk, opened
from fedloom.records import ClientFailure, ClientUpdate
from fedloom.rounds import RETRIES, Store
from fedloom.simulation.evaluation import chosen, row
from fedloom.simulation.population import held_count
from fedloom.simulation.setup import Setup

ATTEMPT = RETRIES + 1
"""In place of an attempt's number: later than every attempt of the round, and earlier than the next round."""


@dataclass(frozen=True)
class Scores:
    """What answers to an evaluation look like: counts, and nothing else.

    Attributes:
        holdout: The share of its samples that a client keeps apart.
        names: Which models are evaluated: :data:`RIGHT`, and :data:`OWN` where clients have models of their own.
    """

    kind: ClassVar[str] = EVALUATE
    answer: ClassVar[str] = "evaluation"
    holdout: float
    names: tuple[str, ...]

    def opened(self, update: Upload) -> Upload:
        """See :class:`~fedloom.deploy.serving.checks.Form`, and so for the methods that follow."""
        return update

    def wrong(self, update: Upload, samples: int) -> str:
        """See there."""
        held = held_count(samples, self.holdout)
        if update != Upload(update.round, update.attempt, EVALUATE, facts=update.facts):
            return "it holds more than counts"
        if set(update.facts) != {SAMPLES, *self.names} or not all(type(n) is int for n in update.facts.values()):
            return "it does not say how many samples there are, and how many were right"
        if update.facts[SAMPLES] != held:
            return f"it is of {update.facts[SAMPLES]} samples, where {held} are kept apart"
        wrong = [count for name in self.names if not 0 <= (count := update.facts[name]) <= held]
        return f"{wrong[0]} of {held} samples cannot be right" if wrong else ""

    def update(self, client: str, upload: Upload) -> ClientUpdate:
        """See there; the counts are its metrics."""
        counts = {key: float(value) for key, value in upload.facts.items()}
        return ClientUpdate(client, torch.zeros(0), counts[SAMPLES], 0, counts)


class Evaluation:
    """Asks clients to evaluate; :data:`fedloom.simulation.evaluation.OnClients`.

    Args:
        desk: Where tasks go out, and answers come in.
        say: Told what people should know.
    """

    def __init__(self, desk: Desk, say: Callable[[str], None]) -> None:
        self._desk, self._say = desk, say

    def __call__(self, setup: Setup, number: int, state: State, store: Store | None) -> list[dict[str, Any]]:
        """Return the rows of a round: of the clients that answer; nothing where none does."""
        clients, own = chosen(setup), setup.algorithm.personal is not None
        kept = store.read(clients) if own and store is not None else {}
        order = Order(number, tuple(clients), (_sent(setup.algorithm, state),), kept, attempt=ATTEMPT)
        names = (RIGHT, OWN) if own else (RIGHT,)
        with opened(self._desk, order, Scores(setup.config.data.holdout, names)):
            found = [self._desk.result(client) for client in clients]
        self._tell(number, found)
        counts = [one.metrics for one in found if isinstance(one, ClientUpdate)]
        shares = {name: np.array([one[name] / one[SAMPLES] for one in counts]) for name in names if counts}
        return [row(number, share, personal=name == OWN) for name, share in shares.items()]

    def _tell(self, number: int, found: Sequence[Result]) -> None:
        lost = [one.reason for one in found if isinstance(one, ClientFailure)]
        if lost:
            there = len(found) - len(lost)
            self._say(f"round {number}: evaluated on {there} of {len(found)} clients ({lost[0]})")


def _sent(algorithm: Algorithm, state: State) -> Broadcast:
    """Return what clients need: the global model, and what they make their own models from, where that is another."""
    model = state["model"]
    if algorithm.personal is None:
        return Broadcast(model)
    sent = algorithm.broadcast(state)
    return sent if torch.equal(sent.vector, model) else replace(sent, extra={**sent.extra, MODEL: model})
