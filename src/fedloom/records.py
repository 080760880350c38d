"""The records that travel between the floors: plain frozen data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Correction:
    """What an algorithm adds to every local gradient: ``g + pull * (w - w_start) + drift``.

    FedProx is a pull (mu); SCAFFOLD is a drift. None of them owns a training loop.

    Attributes:
        pull: The strength of the proximal term, >= 0.
        drift: A vector of shape (P_trainable,), or None for zero.
    """

    pull: float = 0.0
    drift: torch.Tensor | None = None


@dataclass(frozen=True)
class ClientUpdate:
    """What one client sends after local training.

    Attributes:
        client: The client's name.
        delta: Local weights minus the start, float32 (P,).
        weight: Its weight in an average: the number of its samples, unless said otherwise.
        steps: The number of local optimiser steps taken.
        metrics: Numbers to log: ``loss`` (mean over the last epoch), ``accuracy`` (0-1, likewise).
        extra: Further vectors that an algorithm sends along.
        bytes_up: The size of what was really sent, in bytes.
    """

    client: str
    delta: torch.Tensor
    weight: float
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    bytes_up: int = 0


@dataclass(frozen=True)
class RoundRecord:
    """One line of a federation's log.

    Attributes:
        round: The number of the round, from 1.
        accuracy: Accuracy of the new global model on the test set, 0-1.
        loss: Its mean cross-entropy in nats.
        client_loss: The clients' mean training loss, weighted by their samples.
        clients: How many updates were merged.
        seconds: Wall-clock time of the round.
    """

    round: int
    accuracy: float
    loss: float
    client_loss: float
    clients: int
    seconds: float
