"""Protecting a run: from ``[privacy]`` and ``[compression]`` to what is done with updates, and to what that costs.

Epsilon is planned before the first round, and computed after every round from what really happened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.algorithms.protection import CENTRAL, EXAMPLES, LOCAL, TREE, Protection
from fedloom.config import Config
from fedloom.privacy import Event, Ledger, Local, Release, Sampling, TreeNoise, noise_for, plan
from fedloom.records import Phase
from fedloom.sampling import SAMPLERS, Sampler
from fedloom.training.local import LocalConfig

SURE = 0.01
"""The chance that some client takes part more often than a plan says."""

SIZES = 64
"""A plan looks at clients with so many different numbers of batches at most: those with the fewest pay most."""


@dataclass(frozen=True)
class Terms:
    """What the cost of a run depends on.

    Attributes:
        config: The run's.
        sampler: Who takes part.
        sizes: How many samples each client trains on, int64 (n,).
        head: The length of the trainable head.
        local: What clients do, as the algorithm has it.
        phases: What clients train in a turn, one after the other.
    """

    config: Config
    sampler: Sampler
    sizes: NDArray[np.int64]
    head: int
    local: LocalConfig
    phases: tuple[Phase, ...]

    def protection(self) -> Protection:
        """Return what is done with updates; where an epsilon is wanted, without the noise for it."""
        said, packed, run, sampler = self.config.privacy, self.config.compression, self.config.run, self.sampler
        most = sampler.count if sampler.scheme.counted else sampler.clients
        return Protection(
            local_statistics=run.batchnorm == "local",
            up=packed.codecs[0],
            down=packed.codecs[1],
            feedback={"on": True, "off": False}.get(packed.feedback),
            mechanism=said.mechanism,
            clip=said.clip,
            multiplier=said.noise or 0.0,
            quantile=said.clip_quantile,
            restart=said.restart,
            cohort=sampler.count if sampler.scheme.counted else sampler.rate * sampler.clients,
            most=math.ceil(most * (1 + self.config.sampling.over_selection)),
            heaviest=1.0 if sampler.scheme.sized else float(self.sizes.max()),
            equal=sampler.scheme.sized,
            noise_seed=said.noise_seed,
            secure=said.secure_aggregation,
            bits=said.secure_bits,
            range=said.secure_range,
            dropouts=said.secure_dropouts,
            seed=run.seed,
        )

    def noised(self, protection: Protection) -> Protection:
        """Return the protection with the noise for the epsilon that is wanted, where one is.

        Raises:
            UsageError: No noise gives it.
            MissingDependency: dp-accounting is needed and not installed.
        """
        wanted = self.config.privacy.target_epsilon
        if protection.mechanism == "none" or wanted is None:
            return protection
        return replace(protection, multiplier=self._noise(protection, wanted))

    def check(self, protection: Protection) -> None:
        """Check that the accountant knows what happens.

        Raises:
            UsageError: It does not.
            MissingDependency: dp-accounting is needed and not installed.
        """
        (event, _), *_ = self._costs(replace(protection, multiplier=protection.multiplier or 1.0))
        Ledger(self.config.privacy.accountant).record(event, [0], times=0)

    def planned(self, protection: Protection) -> float:
        """Return the epsilon of the whole run, before it begins; infinite without noise."""
        if not protection.multiplier:
            return math.inf
        said = self.config.privacy
        costs = self._costs(protection)
        return max(plan(event, times, said.delta, said.accountant) for event, times in costs)

    def _noise(self, protection: Protection, epsilon: float) -> float:
        said = self.config.privacy
        probe = [
            plan(e, times, said.delta, said.accountant) for e, times in self._costs(replace(protection, multiplier=1.0))
        ]
        worst = int(np.argmax(probe))

        def costly(multiplier: float) -> Event:
            return self._costs(replace(protection, multiplier=multiplier))[worst][0]

        times = self._costs(replace(protection, multiplier=1.0))[worst][1]
        return noise_for(epsilon, said.delta, costly, times, said.accountant)

    def _costs(self, protection: Protection) -> list[tuple[Event, int]]:
        """Return what happens how often to those who may pay most."""
        rounds, kind = self.config.run.rounds, protection.mechanism
        if kind == EXAMPLES:
            return self._examples(protection)
        if kind == LOCAL:
            return [(Local(protection.multiplier), self._turns())]
        if kind == TREE:
            length = min(protection.restart or rounds, rounds)
            times, gap = (length, 1) if self._passes is None else (math.ceil(length / self._passes), self._passes)
            return [(_tree(protection).run(rounds, times, gap), 1)]
        return [(event_of(protection, self.sampler, self.head, 1, self._shares(protection)), rounds)]

    def _shares(self, protection: Protection) -> int:
        """Return from how many clients a round has noise at least, by chance: a standard deviation less than expected."""
        mean = protection.cohort
        spread = 0.0 if self.sampler.scheme.counted else math.sqrt(mean * (1 - self.sampler.rate))
        return max(1, math.floor(mean - spread))

    def _examples(self, protection: Protection) -> list[tuple[Event, int]]:
        sizes = np.unique(self.sizes[self.sizes > 0])
        # Of sizes with as many batches the smallest pays most, and the more batches there are the less.
        _, first = np.unique(np.ceil(sizes / (self.batches[0] or sizes.max())), return_index=True)
        turns = self._turns()
        return [
            (spent, turns * steps) for spent, steps in (self.turn(protection, int(n)) for n in sizes[first[:SIZES]])
        ]

    def turn(self, protection: Protection, samples: int) -> tuple[Release, int]:
        """Return what a turn costs each sample of a client: the event, and how often it happens."""
        batch = min(self.batches[0] or samples, samples)
        rate = Sampling("poisson", rate=batch / samples)
        epochs = sum(self.local.epochs if phase.epochs is None else phase.epochs for phase in self.phases)
        return Release(protection.multiplier, rate), epochs * math.ceil(samples / batch)

    @property
    def batches(self) -> tuple[int, ...]:
        """The different sizes of batches in a turn; 0 is all samples."""
        usual = self.local.batch_size
        found = [usual if phase.batch_size is None else phase.batch_size for phase in self.phases]
        return tuple(dict.fromkeys(found))

    @property
    def _passes(self) -> int | None:
        """How many rounds a pass over all clients takes, where they come in turn."""
        return self.sampler.clients // self.sampler.count if self.config.sampling.scheme == "cyclic" else None

    def _turns(self) -> int:
        """Return how often a client takes part; where that is left to chance, how often none exceeds but by chance."""
        rounds, scheme = self.config.run.rounds, self.config.sampling.scheme
        if self._passes is not None:
            return math.ceil(rounds / self._passes)
        if scheme in ("all", "fixed", "size"):
            return rounds
        from scipy.stats import binom

        return int(min(rounds, binom.isf(SURE / self.sampler.clients, rounds, self.sampler.rate)))


def event_of(protection: Protection, sampler: Sampler, head: int, number: int, contributed: int) -> Event:
    """Return what round ``number`` released, to which so many clients contributed."""
    if protection.mechanism == CENTRAL:
        return Release(protection.multiplier, sampling_of(sampler))
    if protection.mechanism == LOCAL:
        return Local(protection.multiplier)
    if protection.mechanism == TREE:
        return _tree(protection).event(number)
    return protection.shares(head).event(contributed)


def sampling_of(sampler: Sampler) -> Sampling:
    """Return how a round's clients were chosen, for the accountant; what it does not know gains nothing."""
    if sampler.scheme is SAMPLERS["poisson"]:
        return Sampling("poisson", rate=sampler.rate)
    if sampler.scheme is SAMPLERS["uniform"]:
        return Sampling("uniform", count=sampler.count, population=sampler.clients)
    return Sampling("all")


def _tree(protection: Protection) -> TreeNoise:
    return TreeNoise(protection.clip, protection.multiplier, protection.restart or None)


class ClientAccounts:
    """What rounds cost clients; ``Federation.accounts``.

    Args:
        terms: The run's.
        protection: What is done with updates.
    """

    def __init__(self, terms: Terms, protection: Protection) -> None:
        self._terms, self._protection = terms, protection
        self._ledger = Ledger(terms.config.privacy.accountant)

    def spend(self, number: int, clients: Sequence[int]) -> Mapping[str, float]:
        """Take note of a round; returns epsilon."""
        shares = self._protection.mechanism not in (CENTRAL, LOCAL, TREE)
        if clients or not shares:
            event = event_of(self._protection, self._terms.sampler, self._terms.head, number, len(clients))
            named = self._protection.mechanism in (LOCAL, TREE)
            self._ledger.record(event, clients if named else None)
        return {"epsilon": self._ledger.epsilon(self._terms.config.privacy.delta)}

    def state(self) -> dict[str, Any]:
        """Return the ledger as JSON-able data."""
        return self._ledger.state()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        self._ledger = Ledger.restore(state)


class ExampleAccounts:
    """What clients' turns cost their samples; the epsilon is that of the client whose samples paid most.

    Args:
        terms: The run's.
        protection: What is done in training.
    """

    def __init__(self, terms: Terms, protection: Protection) -> None:
        self._terms, self._protection = terms, protection
        self._turns: dict[int, int] = {}
        self._known: dict[tuple[Event, int], float] = {}

    def spend(self, number: int, clients: Sequence[int]) -> Mapping[str, float]:  # noqa: ARG002 - turns count alike
        """Take note of these clients' turns; returns epsilon."""
        for client in clients:
            self._turns[client] = self._turns.get(client, 0) + 1
        return {"epsilon": max((self._paid(*payer) for payer in self._payers()), default=0.0)}

    def _payers(self) -> list[tuple[int, int]]:
        """Return numbers of samples and turns, of clients that may have paid most.

        Of those with as many batches in a pass, who has more samples must have had more turns to have paid more.
        """
        least, found = dict[int, int](), list[tuple[int, int]]()
        clients = [(int(self._terms.sizes[client]), turns) for client, turns in self._turns.items()]
        for size, turns in sorted(set(clients), key=lambda had: (had[0], -had[1])):
            batches = self._terms.turn(self._protection, size)[1]
            if turns > least.get(batches, 0):
                least[batches] = turns
                found.append((size, turns))
        return found

    def _paid(self, samples: int, turns: int) -> float:
        said, (event, steps) = self._terms.config.privacy, self._terms.turn(self._protection, samples)
        known = event, steps * turns
        if known not in self._known:
            self._known[known] = plan(*known, said.delta, said.accountant)
        return self._known[known]

    def state(self) -> dict[str, Any]:
        """Return the clients' turns as JSON-able data."""
        return {"turns": [[client, turns] for client, turns in self._turns.items()]}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        self._turns = {int(client): int(turns) for client, turns in state["turns"]}
