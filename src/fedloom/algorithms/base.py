"""What a federated algorithm is: a handful of pure functions with explicit state, so that a checkpoint is the state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from fedloom.data.dataset import Dataset
from fedloom.models.model import Model
from fedloom.records import ClientUpdate, Phase
from fedloom.training.cohort import Trained
from fedloom.training.local import LocalConfig

State: TypeAlias = Mapping[str, Tensor]
"""The server's state: named tensors. ``"model"`` is always the global model, float32 (P,)."""

Kept: TypeAlias = Mapping[str, Tensor]
"""What one client keeps between its turns: named tensors of the same shapes for all clients."""


@dataclass(frozen=True)
class Setting:
    """What an algorithm may know of the run when it is made.

    Attributes:
        model: The model; its layout, and what FedDF trains on the server. It lends its module.
        config: What clients do locally.
        n_clients: The size of the population.
        seed: The run's.
        unlabelled: Inputs that the server has, for methods that need some.
    """

    model: Model
    config: LocalConfig
    n_clients: int
    seed: int = 0
    unlabelled: Dataset | None = None


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to every client of a round.

    Attributes:
        vector: The global model, float32 (P,).
        extra: Further vectors, such as SCAFFOLD's control variate.
        unsent: How many of the vector's numbers need not be sent, because clients never read them.
        encoded: The bytes that the vector was sent as; None where its numbers are sent as they are.
        data: Those bytes themselves, for a network; empty where there are none.
    """

    vector: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    unsent: int = 0
    encoded: int | None = None
    data: bytes = b""

    @property
    def bytes(self) -> int:
        """How much is sent to each client, in bytes."""
        return _bytes(self.vector, self.extra, self.unsent, self.encoded)


@dataclass(frozen=True)
class Visit:
    """What a client has at hand when its turn comes.

    Attributes:
        client: Its number, from 0.
        samples: How many samples it trains on.
        broadcast: What the server sent.
        kept: What it kept from its last turn; None on the first.
        config: Its local configuration in this round (the learning rate may decay over rounds).
        loss: The broadcast model's mean loss on its samples, where the algorithm asks for it; NaN otherwise.
        round: The number of the round.
        seed: Of what is left to chance in this turn besides training, such as the rounding of what is sent.
    """

    client: int
    samples: int
    broadcast: Broadcast
    kept: Kept | None
    config: LocalConfig
    loss: float = float("nan")
    round: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Settled:
    """What a client makes of its training.

    Attributes:
        delta: What it sends: local weights minus the broadcast model, float32 (P,).
        extra: Further vectors that it sends along.
        kept: What it keeps for its next turn.
        weight: Its weight in an average; None for the number of its samples, or 1 where the run draws clients by it.
        unsent: How many of delta's numbers are always zero, and need not be sent.
        encoded: The bytes that delta was sent as; None where its numbers are sent as they are.
        data: Those bytes themselves, for a network; empty where there are none.
    """

    delta: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Kept | None = None
    weight: float | None = None
    unsent: int = 0
    encoded: int | None = None
    data: bytes = b""

    @property
    def bytes(self) -> int:
        """How much the client sends, in bytes."""
        return _bytes(self.delta, self.extra, self.unsent, self.encoded)


def _bytes(vector: Tensor, extra: Mapping[str, Tensor], unsent: int, encoded: int | None) -> int:
    plain = (vector.numel() - unsent) * vector.element_size()
    beside = sum(v.numel() * v.element_size() for v in extra.values())
    return beside + (plain if encoded is None else encoded)


Reduce: TypeAlias = Callable[[State, Iterable[ClientUpdate]], tuple[State, Mapping[str, float]]]


def only_model(w0: Tensor) -> State:
    """Begin with nothing but the model."""
    return {"model": w0}


def send_model(state: State) -> Broadcast:
    """Send nothing but the model."""
    return Broadcast(state["model"])


def one_phase(visit: Visit) -> tuple[Phase, ...]:
    """Train once, from the global model, without any correction."""
    return (Phase(visit.broadcast.vector),)


def send_delta(visit: Visit, trained: Trained) -> Settled:
    """Send the difference that training made, and keep nothing."""
    return Settled(trained.ends[0] - visit.broadcast.vector)


@dataclass(frozen=True)
class Algorithm:
    """One federated algorithm. ``reduce`` is all that is needed; the rest defaults to FedAvg's.

    On the server ``init`` makes the state and ``broadcast`` says what is sent. On a client ``phases`` says how it
    trains and ``settle`` what it sends and keeps. On the server ``reduce`` makes the next state of the updates, which
    stream past once, in the order of the cohort (so that a mean needs memory for one of them).

    Attributes:
        name: What messages call it.
        reduce: ``(state, updates) -> (state, numbers to log)``.
        init: ``(w0) -> state``.
        broadcast: ``(state) -> what every client gets``.
        phases: ``(visit) -> what the client trains``.
        settle: ``(visit, trained) -> what it sends and keeps``.
        upload: ``(broadcast) -> the bytes of an update``, for the simulated clock, before there is one; as many as were
            sent unless said.
        personal: ``(broadcast, kept) -> the client's own model (P,)``, where clients have one; kept is None for a client
            that never had a turn.
        local: Changes the local configuration, such as one step over all samples for FedSGD.
        needs_loss: Whether the broadcast model is evaluated on each client's samples before training (q-FedAvg).
        keeps: Whether clients keep something between their turns.
        pooled: Whether all samples are trained on as one client's (central training).
        everyone: Whether all clients train in every round (local-only).
        buffered: Updates per step of the server when clients come and go asynchronously (FedBuff); 0 for rounds.
        stays: bool (P,), True where a number stays with the clients: nobody reads it in an update; None for nowhere.
        beside: Names and lengths of the vectors that clients send beside the update, where ``linear``.
        linear: Whether ``reduce`` needs no more of the updates than the mean of their deltas and extras, weighted by
            their weights, and the sum of these: what secure aggregation and noise on the sum leave over.
        always: Whether ``reduce`` is called for a round without one update, too (noise that must not fail to appear).
    """

    name: str
    reduce: Reduce
    init: Callable[[Tensor], State] = only_model
    broadcast: Callable[[State], Broadcast] = send_model
    phases: Callable[[Visit], tuple[Phase, ...]] = one_phase
    settle: Callable[[Visit, Trained], Settled] = send_delta
    upload: Callable[[Broadcast], int] = lambda sent: sent.bytes
    personal: Callable[[Broadcast, Kept | None], Tensor] | None = None
    local: Callable[[LocalConfig], LocalConfig] = lambda config: config
    needs_loss: bool = False
    keeps: bool = False
    pooled: bool = False
    everyone: bool = False
    buffered: int = 0
    stays: Tensor | None = None
    beside: Mapping[str, int] = field(default_factory=dict)
    linear: bool = False
    always: bool = False


@dataclass(frozen=True)
class Option:
    """A number (or name) that an algorithm can be given.

    Attributes:
        default: Its value when nothing is said; None where the algorithm derives it.
        help: What it is, its range and unit.
    """

    default: float | str | None
    help: str


Options: TypeAlias = Mapping[str, float | str | None]


@dataclass(frozen=True)
class Method:
    """One row of the table of algorithms.

    Attributes:
        title: What it does, in one line.
        paper: Author, title, venue, year.
        make: ``(setting, complete options) -> Algorithm``.
        options: Its options by name.
    """

    title: str
    paper: str
    make: Callable[[Setting, Options], Algorithm]
    options: Mapping[str, Option] = field(default_factory=dict)
