"""Population: which samples each client has. Indices only; a million clients cost a few bytes per sample drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fedloom import partition, rng
from fedloom.clients import Population
from fedloom.config.tables import Data
from fedloom.data.dataset import Dataset
from fedloom.errors import DataError

CHUNK = 20_000
"""Clients whose labels are drawn at once."""


class Rows(Sequence[np.ndarray]):
    """Arrays of any length, end to end in one: no object per client.

    Args:
        flat: All values, (N,).
        bounds: Where each row begins, and where the last one ends, int64 (n + 1,).
    """

    def __init__(self, flat: NDArray[np.integer], bounds: NDArray[np.int64]) -> None:
        self.flat, self.bounds = flat, bounds

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.integer]], kind: np.dtype) -> Rows:
        """Put rows end to end, as integers of a ``kind``."""
        bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        return cls(np.concatenate([*rows, np.zeros(0, kind)]).astype(kind), bounds)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, place: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, place: slice) -> list[np.ndarray]: ...
    def __getitem__(self, place: int | slice) -> np.ndarray | list[np.ndarray]:
        """Return a row: a view."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.flat[self.bounds[place] : self.bounds[place + 1]]

    def sizes(self) -> NDArray[np.int64]:
        """Return the length of every row, int64 (n,)."""
        return np.diff(self.bounds)


@dataclass(frozen=True)
class Division:
    """Who has what.

    Attributes:
        parts: Per client, the positions of its training samples.
        held: Per client, the positions of those that it keeps for evaluation; empty when it keeps none.
    """

    parts: Sequence[np.ndarray]
    held: Sequence[np.ndarray] = ()


def divide(train: Dataset, data: Data, seed: int) -> Division:
    """Divide a data set among clients.

    Args:
        train: The samples.
        data: How to divide them.
        seed: The run's.

    Raises:
        UsageError: An unknown scheme or option.
        DataError: The scheme cannot be satisfied by these data; the numbers are named.
    """
    parts = _drawn(train, data, seed) if data.samples_per_client else _partitioned(train, data, seed)
    return _held_out(parts, data.holdout, seed) if data.holdout else Division(parts)


def pooled(population: Population) -> Population:
    """Return the samples of all clients as one client's, for central training."""
    return replace(
        population,
        parts=[np.concatenate(list(population.parts))],
        held=[np.concatenate(list(population.held))] if population.held else (),
    )


def held_count(samples: int, share: float) -> int:
    """Return how many of a client's samples are kept apart where a ``share`` of them is; 0 where that is 0."""
    return min(max(1, round(share * samples)), samples - 1) if share and samples else 0


def apart(part: NDArray[np.integer], share: float, seed: int, client: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep a share of a client's samples apart.

    Args:
        part: The positions of its samples.
        share: How much of them, 0-1; nothing where it is 0.
        seed: The run's.
        client: The client's number.

    Returns:
        The positions of those that it trains on, and of those that it keeps apart, each in their order.

    Raises:
        DataError: It has too few for one of either kind.
    """
    if not share:
        return part, part[:0]
    if len(part) < 2:
        raise DataError(
            f"client_{client} has {len(part)} sample, and holdout needs one to train on and one to keep apart: "
            "use fewer clients, or holdout = 0",
            client=client,
        )
    count = held_count(len(part), share)
    order = rng.stream(seed, "holdout", client).permutation(len(part))
    return np.sort(part[order[count:]]), np.sort(part[order[:count]])


def sizes(population: Population) -> NDArray[np.int64]:
    """Return how many samples each client trains on, int64 (n,)."""
    if isinstance(population.parts, Rows):
        return population.parts.sizes()
    return np.array([len(part) for part in population.parts], dtype=np.int64)


def _partitioned(train: Dataset, data: Data, seed: int) -> Rows:
    count = None if data.scheme == "by-column" else data.clients
    parts = partition.partition(data.scheme, train.y, count, seed, column=train.column, options=data.options)
    return Rows.of(parts, np.min_scalar_type(len(train)))


def _drawn(train: Dataset, data: Data, seed: int) -> Rows:
    """Draw every client's samples with replacement, evenly or after its own shares of the classes.

    The shares are Dirichlet(alpha) times the classes' frequencies, as T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the
    Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019, section 3, has it.
    """
    n, k = data.clients, data.samples_per_client
    kind = np.min_scalar_type(len(train))
    flat = np.empty((n, k), dtype=kind)
    alpha = float(partition.scheme_options(data.scheme, data.options).get("alpha", 0.0))
    by_class = np.argsort(train.y, kind="stable")
    counts = train.counts()
    firsts = np.cumsum(counts) - counts
    for number, first in enumerate(range(0, n, CHUNK)):
        some = min(CHUNK, n - first)
        random = rng.stream(seed, "draw", number)
        if not alpha:
            flat[first : first + some] = random.integers(0, len(train), size=(some, k))
            continue
        weights = random.standard_gamma(alpha * counts * len(counts) / len(train), size=(some, len(counts)))
        weights += np.finfo(np.float64).tiny * (counts > 0)
        edges = np.cumsum(weights, axis=1)
        draws = random.random((some, k)) * edges[:, -1:]
        classes = (draws[:, :, None] >= edges[:, None, :-1]).sum(axis=2)
        places = firsts[classes] + (random.random((some, k)) * counts[classes]).astype(np.int64)
        flat[first : first + some] = by_class[places]
    return Rows(flat.reshape(-1), np.arange(n + 1, dtype=np.int64) * k)


def _held_out(parts: Rows, share: float, seed: int) -> Division:
    """Keep a share of every client's samples apart; each must have one of either kind."""
    kind = parts.flat.dtype
    both = [apart(part, share, seed, client) for client, part in enumerate(parts)]
    return Division(Rows.of([kept for kept, _ in both], kind), Rows.of([held for _, held in both], kind))
