"""Sampling: who is asked in a round, as a pure function of the seed and the number of the round.

A scheme is an order in which clients are asked. A round takes the first of it that can be reached; those that are asked
in place of others come next in the same order. The order is made piece by piece: a hundred clients of a million cost
what a hundred cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedloom.errors import UsageError, unknown
from fedloom.rng import stream

Clients = NDArray[np.int64]
_FIRST = 256
_SMALL = 1024


@dataclass(frozen=True)
class Sampler:
    """A scheme, ready to say who is asked.

    Attributes:
        scheme: Its row in :data:`SAMPLERS`.
        clients: The size of the population.
        count: How many clients a round wants; all for ``"all"``, and at most all for ``"poisson"``.
        rate: The share of the population that this is; for ``"poisson"`` the chance of each client.
        seed: The run's.
        shares: Running sum of the clients' samples divided by their total, float64 (clients,); None where it does not
            matter who has how many.
    """

    scheme: Scheme
    clients: int
    count: int
    rate: float
    seed: int
    shares: NDArray[np.float64] | None = None

    @property
    def expected(self) -> int:
        """How many clients a round has on average; ``count`` but for ``"poisson"``, which may choose any number."""
        return self.count if self.scheme.counted or self.rate == 1 else max(1, round(self.rate * self.clients))

    def order(self, number: int) -> Iterator[Clients]:
        """Yield clients in the order in which round ``number`` asks them, piece by piece, none twice."""
        return self.scheme.order(self, number)

    def take(
        self,
        number: int,
        count: int,
        accept: Callable[[Clients], NDArray[np.bool_]] | None = None,
        skip: ArrayLike = (),
    ) -> Clients:
        """Return the first ``count`` clients of a round's order that are accepted, or fewer where it ends.

        Args:
            number: The round, from 1.
            count: How many at most.
            accept: ``clients (k,) -> bool (k,)``: who can be asked; None for everybody.
            skip: Clients that are passed over.

        Returns:
            int64 (at most count,), in the order of asking.
        """
        found, missing = [np.empty(0, np.int64)], count
        skipped = np.asarray(skip, np.int64)
        pieces = self.order(number) if count else iter(())
        for piece in pieces:
            if len(skipped):
                piece = piece[~np.isin(piece, skipped)]
            if accept is not None:
                piece = piece[accept(piece)]
            found.append(piece[:missing])
            missing -= len(found[-1])
            if not missing:
                break
        return np.concatenate(found)

    def cohort(self, number: int) -> Clients:
        """Return the clients of round ``number`` where everybody can be reached, sorted, int64 (k,)."""
        return np.sort(self.take(number, self.count))


@dataclass(frozen=True)
class Scheme:
    """A row of :data:`SAMPLERS`.

    Attributes:
        title: What it does, in one line.
        order: ``(sampler, round) -> clients in the order in which they are asked``.
        insists: Whether the choice is made without looking who can be reached: a client that is not there fails, and
            nobody is asked in its place.
        counted: Whether it chooses so many clients as ``per_round`` says.
        sized: Whether clients come in proportion to their samples. Their updates count alike then, in whatever weighs
            updates by samples: otherwise a client with n of them would count n squared (T. Li et al., "Federated
            Optimization in Heterogeneous Networks", MLSys 2020, section 2, sample and average so).
    """

    title: str
    order: Callable[[Sampler, int], Iterator[Clients]]
    insists: bool = False
    counted: bool = True
    sized: bool = False


def make(
    scheme: str, per_round: int | float | str, clients: int, seed: int = 0, sizes: ArrayLike | None = None
) -> Sampler:
    """Make the sampler of that name.

    Args:
        scheme: A name of :data:`SAMPLERS`.
        per_round: How many clients a round wants: a whole number, or a share as ``0.1`` or ``"10%"`` (at least one
            client, as in McMahan et al. 2017). ``"all"`` does not look at it.
        clients: The size of the population.
        seed: The run's.
        sizes: The number of each client's samples, (clients,); needed for ``"size"``.

    Raises:
        UsageError: An unknown scheme, no clients, more per round than there are (or than have samples), or no sizes.

    Example:
        >>> make("uniform", "20%", 10, seed=0).cohort(1).shape
        (2,)
    """
    if scheme not in SAMPLERS:
        raise unknown("sampling scheme", scheme, SAMPLERS)
    if clients < 1:
        raise UsageError("sampling: there are no clients to sample from", found=clients)
    if scheme == "all":
        return Sampler(SAMPLERS[scheme], clients, clients, 1.0, seed)
    count, rate = how_many(per_round, clients)
    if scheme == "poisson":
        return Sampler(SAMPLERS[scheme], clients, clients, rate, seed)
    shares = _shares(sizes, clients, count) if SAMPLERS[scheme].sized else None
    return Sampler(SAMPLERS[scheme], clients, count, rate, seed, shares)


def how_many(per_round: int | float | str, clients: int) -> tuple[int, float]:
    """Return how many of ``clients`` a round wants, and the share of them that was meant.

    Raises:
        UsageError: No number, less than one client, or more than there are.

    Example:
        >>> how_many("10%", 50), how_many(5, 50), how_many("0.1", 50)
        ((5, 0.1), (5, 0.1), (5, 0.1))
    """
    text = str(per_round).strip()
    whole = text.isdecimal()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = math.nan
    if whole and share > clients:
        raise UsageError(
            f"per_round is {text}, but there are only {clients} clients: ask for at most {clients}",
            expected=clients,
            found=int(share),
        )
    if whole and share >= 1:
        return int(share), share / clients
    if not 0 < share <= 1 or isinstance(per_round, bool):
        raise UsageError(
            f"per_round is '{text}': a whole number of clients from 1 (10) or a share of them up to 1.0 (0.1, 10%) is "
            "expected",
            found=per_round,
        )
    return max(1, round(share * clients)), share


def _shares(sizes: ArrayLike | None, clients: int, count: int) -> NDArray[np.float64]:
    if sizes is None:
        raise UsageError("sampling by size: the sizes of the clients are needed")
    numbers = np.asarray(sizes, np.float64)
    if numbers.shape != (clients,) or not np.isfinite(numbers).all() or (numbers < 0).any():
        raise UsageError(f"sampling by size: {clients} sizes, none below 0, are expected; found {numbers.shape}")
    filled = int(np.count_nonzero(numbers))
    if filled < count:
        raise UsageError(
            f"per_round is {count}, but only {filled} of the {clients} clients have samples: ask for at most {filled}",
            expected=filled,
            found=count,
        )
    total = np.cumsum(numbers)
    return np.asarray(total / total[-1])


def _uniform(sampler: Sampler, number: int) -> Iterator[Clients]:
    chance = stream(sampler.seed, "sampling", number)
    return _shuffled(sampler.clients, chance)


def _fixed(sampler: Sampler, number: int) -> Iterator[Clients]:  # noqa: ARG001 - the same in every round
    return _shuffled(sampler.clients, stream(sampler.seed, "sampling", "fixed"))


def _cyclic(sampler: Sampler, number: int) -> Iterator[Clients]:
    """One slice after the other of an order that stays; what is left over of it sits out."""
    order = stream(sampler.seed, "sampling", "cyclic").permutation(sampler.clients)
    slot = (number - 1) % (sampler.clients // sampler.count)
    yield order[slot * sampler.count : (slot + 1) * sampler.count]


def _poisson(sampler: Sampler, number: int) -> Iterator[Clients]:
    """Each client by its own coin is: a binomial number of clients, uniformly chosen."""
    chance = stream(sampler.seed, "sampling", number)
    count = int(chance.binomial(sampler.clients, sampler.rate))
    for piece in _shuffled(sampler.clients, chance):
        yield piece[:count]
        count -= len(piece[:count])
        if not count:
            return


def _all(sampler: Sampler, number: int) -> Iterator[Clients]:  # noqa: ARG001 - the same in every round
    yield np.arange(sampler.clients, dtype=np.int64)


def _shuffled(clients: int, chance: np.random.Generator) -> Iterator[Clients]:
    return _order(clients, lambda k: chance.integers(clients, size=k), chance.permutation)


def _by_size(sampler: Sampler, number: int) -> Iterator[Clients]:
    """One after the other, each with a chance in proportion to its samples among those that are left."""
    chance = stream(sampler.seed, "sampling", number)
    shares = sampler.shares
    if shares is None:
        raise UsageError("sampling by size: the sizes of the clients are needed")

    def last(rest: Clients) -> Clients:
        # Exponential waiting times with these rates end in the order of successive draws (Efraimidis, Spirakis 2006).
        weights = np.diff(shares, prepend=0.0)[rest]
        rest, weights = rest[weights > 0], weights[weights > 0]
        return np.asarray(rest[np.argsort(chance.exponential(size=len(rest)) / weights)], np.int64)

    return _order(sampler.clients, lambda k: np.searchsorted(shares, chance.random(k), side="right"), last)


def _order(clients: int, draw: Callable[[int], Clients], last: Callable[[Clients], Clients]) -> Iterator[Clients]:
    """Draw with replacement and leave out those that came before; order the rest at once when that no longer pays.

    What is new in a sequence of independent draws has the law of successive draws without replacement.
    """
    seen = np.empty(0, np.int64)
    size = _FIRST
    drawn = 0
    while clients > _SMALL and drawn + size <= clients // 2:
        drawn += size
        new, first = np.unique(draw(size), return_index=True)
        new = new[np.argsort(first)]
        new = new[~np.isin(new, seen)]
        seen = np.concatenate([seen, new])
        yield new
        size *= 2
    left = np.ones(clients, bool)
    left[seen] = False
    yield last(np.flatnonzero(left))


SAMPLERS: dict[str, Scheme] = {
    "uniform": Scheme("so many clients, each as likely as any other", _uniform),
    "size": Scheme(
        "so many clients, those with more samples more often; their updates count alike", _by_size, sized=True
    ),
    "fixed": Scheme("the same clients in every round", _fixed, insists=True),
    "poisson": Scheme(
        "each client by its own coin, as privacy accounting wants it; a round may be empty",
        _poisson,
        insists=True,
        counted=False,
    ),
    "cyclic": Scheme(
        "each client once in every pass over all of them, always in the same order: for the noise tree of DP-FTRL",
        _cyclic,
        insists=True,
    ),
    "all": Scheme("every client in every round", _all, insists=True, counted=False),
}
