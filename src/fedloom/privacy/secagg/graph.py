"""Who masks with whom: a sparse random graph, how dense it has to be, and how many shares give a secret back.

Masking with every other client costs n masks each (Bonawitz et al. 2017). Bell et al. 2020 let each client mask with k
neighbours only: the clients stand on a ring in random order, and each is joined to the k/2 next ones on either side
(a Harary graph, their algorithm 2). k grows with the logarithm of n, so it pays off for many clients only.

The order on the ring follows from the keys that the clients sent, so no one chooses it alone, and every client can
check it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.errors import UsageError

FAILURE = 2.0**-40
"""The probability of a failure that is accepted unless something else is said."""

FEW = 100
"""Up to so many clients the graph is complete: it costs little, and bears more drop-outs than were assumed."""


@dataclass(frozen=True)
class Plan:
    """A graph and its thresholds, see :func:`plan`.

    Attributes:
        neighbours: Of each client, k; one less than the clients for the complete graph.
        threshold: How many shares give a secret back, of the k + 1 that exist (a client keeps one of its own).
        minimum: How many clients must be left for the sum to be opened.
        failure: A bound for the probability that the graph betrays a client or cannot bear the assumed drop-outs.
    """

    neighbours: int
    threshold: int
    minimum: int
    failure: float


def plan(clients: int, dropped: float = 0.1, corrupt: float = 0.1, failure: float = FAILURE) -> Plan:
    r"""Choose few neighbours, and the thresholds, for what is assumed.

    With m = k + 1 holders of a secret of which X are corrupt, a server that tells half of the honest holders that a
    client is alive, and the other half that it is dead, gets both of its secrets unless :math:`2 t > m + X`; with
    Y dropped, it can be opened only if :math:`m - Y \ge t`. X and Y are hypergeometric, exact tails, summed over the
    clients. Besides, honest clients that stayed must not fall apart into two groups (each group's sum would be seen):
    on the ring this needs two gaps of k/2 clients, so at most
    :math:`\binom{n}{2} \prod_{i<k} \frac{r - i}{n - i}`, r being all that are corrupt or dropped.
    Up to :data:`FEW` clients, and where no k below n - 1 does, the graph is complete: nothing is left to chance.

    Args:
        clients: n, at least 2.
        dropped: The share of clients that may stop answering, 0-1.
        corrupt: The share of clients that may work together with the server, 0-1.
        failure: The probability that is accepted.

    Returns:
        The plan; its ``failure`` is 0 for the complete graph.

    Raises:
        UsageError: So many drop-outs and so many corrupt clients cannot be borne together.

    Source: Bell et al. 2020, section 3.2 (definition 3.1 and its bounds); the condition on 2t is that of Bonawitz
    et al. 2017, theorem 6.5, for each neighbourhood.

    Example:
        >>> plan(10)
        Plan(neighbours=9, threshold=6, minimum=6, failure=0.0)
        >>> plan(10_000).neighbours < 200
        True
    """
    if clients < 2:
        raise UsageError(f"secure aggregation needs at least 2 clients, found {clients}")
    if not (0 <= dropped < 1 and 0 <= corrupt < 1 and 0 < failure < 1):
        raise UsageError("secure aggregation: 'dropped' and 'corrupt' are shares from 0 to 1, 'failure' is above 0")
    lost, bad = math.floor(dropped * clients + 1e-9), math.floor(corrupt * clients + 1e-9)
    minimum = (clients + bad) // 2 + 1
    if minimum > clients - lost:
        raise UsageError(
            f"secure aggregation: with {bad} corrupt clients of {clients} at least {minimum} must stay, but {lost} may "
            f"drop out; assume fewer of either",
            clients=clients,
        )
    if clients <= FEW:
        return Plan(clients - 1, minimum, minimum, 0.0)
    tails = _Tails(clients)
    k = 2
    while k < clients - 1:
        found = _sparse(tails, k, lost, bad, failure)
        if found is not None:
            return Plan(k, found[0], minimum, found[1])
        k += 2 * max(1, k // 64)
    return Plan(clients - 1, minimum, minimum, 0.0)


def ring(clients: Collection[int], binding: bytes) -> list[int]:
    """Return clients in the random order that ``binding`` gives."""
    return sorted(clients, key=lambda i: hashlib.sha256(binding + b"ring" + i.to_bytes(4, "little")).digest())


def neighbours(order: Sequence[int], place: int, k: int) -> frozenset[int]:
    """Return the neighbours of the client at a place of the ring; everybody where k is not below their number less one.

    Example:
        >>> sorted(neighbours([5, 6, 7, 8, 9], 0, 2))
        [6, 9]
    """
    n = len(order)
    if k >= n - 1:
        return frozenset(order) - {order[place]}
    return frozenset(order[(place + d) % n] for d in range(-(k // 2), k // 2 + 1) if d)


def connected(order: Sequence[int], k: int, left: Collection[int]) -> bool:
    """Say whether the clients that are left hang together on the ring.

    They fall apart where at least two gaps of k/2 clients are missing; one gap leaves a chain.

    Example:
        >>> connected([0, 1, 2, 3, 4, 5], 2, {0, 1, 2, 3}), connected([0, 1, 2, 3, 4, 5], 2, {0, 1, 3, 4})
        (True, False)
    """
    n = len(order)
    places = [i for i, client in enumerate(order) if client in left]
    if k >= n - 1 or len(places) < 2:
        return True
    steps = [b - a for a, b in zip(places, [*places[1:], places[0] + n], strict=True)]
    return sum(step > k // 2 for step in steps) < 2


class _Tails:
    """Tails of the hypergeometric distribution among n - 1 others."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self._log = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, clients + 1, dtype=np.float64)))])

    def above(self, marked: int, k: int) -> np.ndarray:
        """Return P(at least x of k neighbours are marked) for x = 0 .. k + 1."""
        others = self.clients - 1
        marked = min(marked, others)
        x = np.arange(k + 1)
        possible = (x <= marked) & (k - x <= others - marked)
        y = x[possible]
        log = self._choose(marked, y) + self._choose(others - marked, k - y) - self._choose(others, np.array(k))
        chance = np.zeros(k + 2)
        chance[:-1][possible] = np.exp(log)
        return np.cumsum(chance[::-1])[::-1]

    def _choose(self, n: int, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._log[n] - self._log[x] - self._log[n - x])


def _sparse(tails: _Tails, k: int, lost: int, bad: int, failure: float) -> tuple[int, float] | None:
    """Return threshold and failure for k neighbours, or None where it cannot be had."""
    n, holders = tails.clients, k + 1
    corrupt, dropped = n * tails.above(bad, k), n * tails.above(lost, k)
    removed = lost + bad
    apart = math.comb(n, 2) * math.prod((removed - i) / (n - i) for i in range(k)) if k <= removed else 0.0
    for threshold in range(holders // 2 + 1, holders):
        # A dropped client's own share is lost with it: k - Y shares are left, too few from Y = k - t + 1 on.
        chance = float(corrupt[2 * threshold - holders] + dropped[k - threshold + 1] + apart)
        if chance <= failure:
            return threshold, chance
    return None
