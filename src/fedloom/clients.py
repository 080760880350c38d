"""The client side: what every virtual client has, and its turn in a round.

All samples lie in one tensor per data set, in the dtype that they are stored in; a client is an array of indices into
them. A million clients cost their indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedloom import rng
from fedloom.algorithms.base import Algorithm, Broadcast, Kept, Visit
from fedloom.errors import MergeError
from fedloom.models.model import Model
from fedloom.records import ClientFailure, ClientUpdate
from fedloom.training import planner
from fedloom.training.cohort import Task, Trained
from fedloom.training.evaluate import evaluate
from fedloom.training.local import LocalConfig
from fedloom.training.private import ExamplePrivacy, train_private
from fedloom.training.shard import Shard

Parts = Sequence[np.ndarray]


@dataclass(frozen=True)
class Population:
    """All clients' samples.

    Attributes:
        pool: The samples of all clients together.
        parts: Per client, the positions of its training samples in the pool: integer arrays (n_i,).
        held: Per client, the positions of the samples that it keeps for evaluation; empty when it keeps none.
    """

    pool: Shard
    parts: Parts
    held: Parts = ()

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.parts)

    def samples(self, client: int) -> int:
        """Return how many samples a client trains on."""
        return len(self.parts[client])

    def shard(self, client: int) -> Shard:
        """Return a client's training samples: a copy, in the stored dtype."""
        return self._take(client, self.parts[client])

    def held_shard(self, client: int) -> Shard:
        """Return the samples that a client keeps for evaluation."""
        return self._take(client, self.held[client])

    def _take(self, client: int, positions: np.ndarray) -> Shard:
        index = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.int64)).to(self.pool.x.device)
        pool = self.pool
        return Shard(name(client), pool.x.index_select(0, index), pool.y.index_select(0, index), pool.divisor)


def registered(sizes: Sequence[int], like: Shard) -> Population:
    """Return a population whose samples are elsewhere: only how many there are is known here.

    Args:
        sizes: Per client, how many samples it trains on.
        like: Any samples, such as none, of the shape that the clients' have.
    """
    return Population(like, [np.broadcast_to(np.int64(0), (size,)) for size in sizes])


def name(client: int) -> str:
    """Return what messages and files call a client.

    Example:
        >>> name(7)
        'client_7'
    """
    return f"client_{client}"


@dataclass(frozen=True)
class Order:
    """What the server asks of clients in one round.

    Attributes:
        round: The number of the round, from 1.
        clients: Their numbers; results come in this order.
        broadcasts: What each of them was sent: one entry for all, or one per client (asynchronous methods).
        kept: What clients kept from their last turn; those that are missing keep nothing.
        lr: The local learning rate of this round.
        attempt: 0, or 1 and 2 for those that are asked in place of others: another attempt draws other batches.
        stale: For each client, how many rounds ago its broadcast was made; empty when all are fresh.
    """

    round: int
    clients: tuple[int, ...]
    broadcasts: tuple[Broadcast, ...]
    kept: Mapping[int, Kept] = field(default_factory=dict)
    lr: float = 0.1
    attempt: int = 0
    stale: tuple[int, ...] = ()

    def broadcast(self, position: int) -> Broadcast:
        """Return what the client at ``position`` of ``clients`` was sent."""
        return self.broadcasts[position if len(self.broadcasts) > 1 else 0]


Result = ClientUpdate | ClientFailure


@dataclass(frozen=True)
class ClientSide:
    """Everything that turns an order into updates; every worker has one.

    Attributes:
        model: Lends its module.
        population: The clients' samples.
        algorithm: Says what a client trains, sends and keeps.
        config: What clients do locally; already changed by ``algorithm.local``.
        seed: The run's.
        plan: The execution plan.
        equal_weights: Whether updates count alike where an algorithm weighs them by samples, because those with more
            samples are called more often (``sampling.Scheme.sized``).
        examples: How each sample is protected in training, which has a step of its own then; None where it is not.
    """

    model: Model
    population: Population
    algorithm: Algorithm
    config: LocalConfig
    seed: int = 0
    plan: str = "loop"
    equal_weights: bool = False
    examples: ExamplePrivacy | None = None

    def run(self, order: Order) -> Iterator[Result]:
        """Train the clients of an order; yields an update or a failure for each, in their order."""
        config = replace(self.config, lr=order.lr)
        visits = [self._visit(order, i, config) for i in range(len(order.clients))]
        tasks = [self._task(visit) for visit in visits]
        seed = rng.derive(self.seed, "round", order.round, *([order.attempt] if order.attempt else []))
        results = self._trained(tasks, config, seed)
        stale = order.stale or (0,) * len(visits)
        for visit, trained, age in zip(visits, results, stale, strict=True):
            yield self._result(visit, trained, age)

    def _trained(self, tasks: list[Task], config: LocalConfig, seed: int) -> Iterator[Trained]:
        if self.examples is None:
            return planner.train(self.model, tasks, config, seed, self.plan)
        return (trained for trained, _ in train_private(self.model, tasks, config, seed, self.examples))

    def tasks(self, order: Order) -> list[Task]:
        """Return what the clients of an order would train, for the planner."""
        config = replace(self.config, lr=order.lr)
        return [self._task(self._visit(order, i, config)) for i in range(len(order.clients))]

    def _task(self, visit: Visit) -> Task:
        return Task(self.population.shard(visit.client), self.algorithm.phases(visit))

    def _visit(self, order: Order, i: int, config: LocalConfig) -> Visit:
        client, sent = order.clients[i], order.broadcast(i)
        loss = float("nan")
        if self.algorithm.needs_loss:
            loss = evaluate(self.model.load(sent.vector), self.population.shard(client)).loss
        seed, number = rng.derive(self.seed, "turn", order.round, order.attempt, client), order.round
        return Visit(client, self.population.samples(client), sent, order.kept.get(client), config, loss, number, seed)

    def _result(self, visit: Visit, trained: Trained, age: int) -> Result:
        if trained.failure:
            return ClientFailure(trained.client, trained.failure, "diverged")
        try:
            settled = self.algorithm.settle(visit, trained)
        except MergeError as error:
            return ClientFailure(trained.client, f"{trained.client}: {error}", "diverged")
        usual = 1.0 if self.equal_weights else float(visit.samples)
        metrics = {
            "loss": trained.loss,
            "accuracy": trained.accuracy,
            "samples": float(visit.samples),
            "before": visit.loss,
            "staleness": float(age),
        }
        return ClientUpdate(
            trained.client,
            settled.delta,
            usual if settled.weight is None else settled.weight,
            sum(trained.steps[:1]),
            metrics,
            settled.extra,
            settled.bytes,
            settled.kept,
            settled.data,
        )
