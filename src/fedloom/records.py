"""The records that travel between the floors: plain frozen data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Correction:
    """What an algorithm adds to every local gradient: ``mask * (g + pull * (w - anchor) + drift)``.

    FedProx is a pull (mu); SCAFFOLD is a drift; FedDyn is both; personal layers are masks. None owns a training loop.

    Attributes:
        pull: The strength of the proximal term, >= 0.
        drift: A vector of shape (P_trainable,), or None for zero.
        anchor: Where the pull leads to, float32 (P_trainable,); None for the start of training.
        mask: bool (P,), True where training may change a number (momentum, weight decay and BatchNorm statistics
            included); None for everywhere.
    """

    pull: float = 0.0
    drift: torch.Tensor | None = None
    anchor: torch.Tensor | None = None
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Phase:
    """One stretch of a client's local training; most algorithms have one, Ditto and FedRep have two.

    Attributes:
        start: Where it starts, float32 (P,); None for where the phase before ended.
        correction: What is added to every gradient.
        epochs: Passes over the samples, instead of the configuration's.
        batch_size: Samples per step, instead of the configuration's; 0 means all of them in one step.
    """

    start: torch.Tensor | None = None
    correction: Correction = field(default_factory=Correction)
    epochs: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class ClientUpdate:
    """What one client sends after local training.

    Attributes:
        client: The client's name.
        delta: Local weights minus the start, float32 (P,).
        weight: Its weight in an average: the number of its samples, unless said otherwise; 1 where the run draws
            clients by that number.
        steps: The number of local optimiser steps taken.
        metrics: Numbers to log: ``loss`` (mean over the last epoch), ``accuracy`` (0-1, likewise).
        extra: Further vectors that an algorithm sends along.
        bytes_up: The size of what was really sent, in bytes.
        kept: What the client keeps for its next turn; None where nothing new. In a simulation it travels back with the
            update and is stored when the round is over; over a network it stays with the client.
        data: The bytes of a codec that stand for ``delta``, for a network; empty where there are none.
    """

    client: str
    delta: torch.Tensor
    weight: float
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    bytes_up: int = 0
    kept: Mapping[str, torch.Tensor] | None = None
    data: bytes = b""


@dataclass(frozen=True)
class ClientFailure:
    """A client that was asked and sent nothing: data, not an exception.

    Attributes:
        client: The client's name.
        reason: One line: what happened.
        kind: ``"diverged"``, ``"dropped"`` (went away in mid-round), ``"late"`` (behind the deadline), ``"surplus"``
            (over-selected and not needed), ``"offline"``, or ``"refused"`` (the server would not take its update).
    """

    client: str
    reason: str
    kind: str


@dataclass(frozen=True)
class Gathered:
    """What a server that does not see single updates has of a round.

    Attributes:
        updates: What stands for them, such as their sum; empty where nothing came.
        bytes_up: What clients sent besides their updates, in bytes.
        bytes_down: What they were sent besides the model, in bytes.
        lost: Clients whose update has passed, and is in none of those after all, by number.
        refused: Why there is nothing, where that is so because too few clients were left.
    """

    updates: tuple[ClientUpdate, ...]
    bytes_up: int = 0
    bytes_down: int = 0
    lost: Mapping[int, ClientFailure] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class RoundRecord:
    """One line of a federation's log.

    Attributes:
        round: The number of the round, from 1.
        accuracy: Accuracy of the new global model on the test set, 0-1.
        loss: Its mean cross-entropy in nats.
        client_loss: The clients' mean training loss, weighted as their updates are.
        clients: How many updates were merged.
        seconds: Wall-clock time of the round.
        training_seconds: The part of it in which the engine trained clients.
        evaluation_seconds: The part of it in which the model was evaluated.
        asked: How many clients the model was sent to.
        bytes_down: What was sent to clients, in bytes.
        bytes_up: What they sent, in bytes, whether it was used or not.
        clock: The simulated time at the end of the round, in seconds.
        failures: The clients that were asked and sent nothing that could be used.
        metrics: What the algorithm logs.
    """

    round: int
    accuracy: float
    loss: float
    client_loss: float
    clients: int
    seconds: float
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    asked: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    clock: float = 0.0
    failures: tuple[ClientFailure, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
