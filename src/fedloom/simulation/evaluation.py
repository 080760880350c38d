"""Evaluation of a run: the global model on the test set, and models on what clients keep apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fedloom import rng
from fedloom.algorithms import State
from fedloom.metrics import Counts
from fedloom.rounds import Store
from fedloom.simulation.setup import Setup
from fedloom.training.evaluate import evaluate, predict

OnClients: TypeAlias = Callable[[Setup, int, State, Store | None], list[dict[str, Any]]]
"""Evaluates on the samples that clients keep apart, as :func:`on_clients` does."""

MOST = 1000
"""Of more clients than this, so many are drawn once and evaluated every time."""


def on_test_set(setup: Setup) -> Callable[[int, State], Counts | None]:
    """Return what evaluates the global model: every so many rounds, and in the last one; never without a test set."""
    every, last = setup.config.evaluation.every, setup.config.run.rounds

    def counts(number: int, state: State) -> Counts | None:
        if not len(setup.test) or (number % every and number != last):
            return None
        return evaluate(setup.model.load(state["model"]), setup.test)

    return counts


def chosen(setup: Setup) -> list[int]:
    """Return the clients that are evaluated."""
    n = len(setup.population)
    if n <= MOST:
        return list(range(n))
    drawn = rng.stream(setup.config.run.seed, "evaluated clients").choice(n, MOST, replace=False)
    return [int(client) for client in np.sort(drawn)]


def on_clients(setup: Setup, number: int, state: State, store: Store | None) -> list[dict[str, Any]]:
    """Evaluate on every client's held-out samples.

    Args:
        setup: The run's parts.
        number: The round that is over.
        state: The algorithm's state after it.
        store: What the clients keep; None where they keep nothing. One state is in memory at a time.

    Returns:
        The row of the global model; and one of the clients' own models, where the algorithm gives them some.
    """
    clients = chosen(setup)
    rows = [row(number, _global(setup, state, clients), personal=False)]
    if setup.algorithm.personal is not None:
        rows.append(row(number, _personal(setup, state, clients, store), personal=True))
    return rows


def notes(setup: Setup) -> list[str]:
    """Return what people should know of a run that did not evaluate all of its models."""
    algorithm = setup.algorithm
    if algorithm.personal is None or setup.config.data.holdout:
        return []
    return [
        f"{algorithm.name} gives every client a model of its own, and only the global one was evaluated: "
        "set holdout (such as 0.2) to see how the clients' own models do"
    ]


def _global(setup: Setup, state: State, clients: list[int]) -> NDArray[np.float64]:
    population = setup.population
    sizes = np.array([len(population.held[client]) for client in clients])
    together = replace(population, held=[np.concatenate([population.held[client] for client in clients])])
    shard = together.held_shard(0)
    right = predict(setup.model.load(state["model"]), shard).argmax(1) == shard.y
    firsts = np.cumsum(sizes) - sizes
    return np.asarray(np.add.reduceat(right.cpu().numpy().astype(np.float64), firsts) / sizes)


def _personal(setup: Setup, state: State, clients: list[int], store: Store | None) -> NDArray[np.float64]:
    personal, sent = setup.algorithm.personal, setup.algorithm.broadcast(state)
    if personal is None:
        return np.full(len(clients), math.nan)
    kept = (store.read([client]).get(client) if store is not None else None for client in clients)
    models = (personal(sent, own) for own in kept)
    return np.array([_accuracy(setup, vector, client) for client, vector in zip(clients, models, strict=True)])


def _accuracy(setup: Setup, vector: torch.Tensor, client: int) -> float:
    return evaluate(setup.model.load(vector), setup.population.held_shard(client)).accuracy


def row(number: int, accuracies: NDArray[np.float64], *, personal: bool) -> dict[str, Any]:
    """Return what the log says of an evaluation.

    Args:
        number: The round that is over.
        accuracies: One per client, 0-1, float64 (n,); n is at least 1.
        personal: Whether each client's own model was evaluated, not the global one.
    """
    ordered = np.sort(accuracies)
    tail = max(1, math.ceil(len(ordered) / 10))
    return {
        "round": number,
        "clients": len(ordered),
        "mean": float(ordered.mean()),
        "std": float(ordered.std()),
        "worst_decile": float(ordered[:tail].mean()),
        "best_decile": float(ordered[-tail:].mean()),
        "personal": personal,
    }
