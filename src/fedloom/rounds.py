"""THE round loop: nothing else in the package loops over rounds.

    call clients -> send -> train -> reduce -> evaluate -> one record and one snapshot

What a round needs of the past is in the snapshot: a run that goes on from it gives the same bits as one that was never
stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from fedloom.algorithms.base import Algorithm, Broadcast, Kept, State
from fedloom.clients import Order, Result
from fedloom.errors import MergeError, QuorumError, TrainingError, UsageError
from fedloom.metrics import Counts
from fedloom.records import ClientFailure, ClientUpdate, Gathered, RoundRecord
from fedloom.schedule import Call, Load, Schedule

POLICIES = ("skip", "retry", "stop")
RETRIED = ("diverged", "dropped", "refused")
RETRIES = 2
Tamper: TypeAlias = Callable[[int, list[ClientUpdate]], list[ClientUpdate]]
Gather: TypeAlias = Callable[[int, Iterator[ClientUpdate], Sequence[ClientFailure]], Gathered]
EMPTY_ROUNDS = 100
"""So many rounds in a row without one update end a run."""


class Store(Protocol):
    """Where clients' states lie between their turns."""

    def read(self, clients: Iterable[int]) -> Mapping[int, Kept]:
        """Return the states of those of ``clients`` that have one."""
        ...

    def commit(self, kept: Mapping[int, Kept]) -> None:
        """Take the new states of a round that is over."""
        ...


class Accounts(Protocol):
    """Keeps account of what was released."""

    def spend(self, number: int, clients: Sequence[int]) -> Mapping[str, float]:
        """Take note of a round that these clients contributed to; returns numbers to log, such as epsilon."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what resuming needs, JSON-able."""
        ...

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        ...


@dataclass(frozen=True)
class Federation:
    """The parts of a run.

    Attributes:
        algorithm: What is trained, sent and reduced.
        engine: Where clients are trained.
        schedule: Who takes part, and what the network does.
        evaluate: ``(round, state) -> counts on the test set``; None in rounds that are not evaluated.
        store: Clients' states; None where the algorithm keeps none.
        lr: ``round -> local learning rate``.
        policy: What happens when a client fails: ``"skip"`` goes on without it, ``"retry"`` asks another (twice at
            most), ``"stop"`` ends the run with an error.
        tamper: ``(round, updates) -> updates``: what attackers among the clients make of them; None where there are none.
            Where clients are asked in place of others it sees those of the round that came before, too.
        refresh: ``(round, model) -> model``: new BatchNorm statistics for the merged model; None to leave them.
        gather: ``(round, updates, failures) -> what the server sees of them``, such as their sum alone; the failures are
            all known when the updates have passed. None where it sees every one.
        accounts: What a round costs in privacy; None where nothing is protected.
    """

    algorithm: Algorithm
    engine: Callable[[Order], Iterable[Result]]
    schedule: Schedule
    evaluate: Callable[[int, State], Counts | None]
    store: Store | None = None
    lr: Callable[[int], float] = lambda _: 0.1
    policy: str = "skip"
    tamper: Tamper | None = None
    refresh: Callable[[int, Tensor], Tensor] | None = None
    gather: Gather | None = None
    accounts: Accounts | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown policy."""
        if self.policy not in POLICIES:
            raise UsageError(f"policy is '{self.policy}'; it must be one of {', '.join(POLICIES)}")


@dataclass(frozen=True)
class Snapshot:
    """All that the next round needs.

    Attributes:
        round: The last round that is over; 0 before the first.
        state: The algorithm's state.
        versions: By number of the round, what was sent then, where clients are still training from it.
        schedule: The schedule's state, JSON-able.
        empty: How many rounds in a row had no update.
        accounts: The accounts' state, JSON-able.
    """

    round: int
    state: State
    versions: Mapping[int, Broadcast] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    empty: int = 0
    accounts: Mapping[str, Any] = field(default_factory=dict)


def begin(algorithm: Algorithm, w0: Tensor) -> Snapshot:
    """Return the snapshot before round 1 of a run that starts from the vector ``w0``, float32 (P,)."""
    return Snapshot(0, algorithm.init(w0))


def run(federation: Federation, snapshot: Snapshot, rounds: int) -> Iterator[tuple[RoundRecord, Snapshot]]:
    """Run federated rounds.

    Args:
        federation: The parts of the run.
        snapshot: Where to go on; :func:`begin` makes the first.
        rounds: The number of the last round.

    Yields:
        After each round its record, and the snapshot that the next one begins with.

    Raises:
        TrainingError: A client failed and the policy is ``"stop"``, or 100 rounds in a row had no update.
        MergeError: The updates of a round cannot be merged, such as too few for a robust rule.
    """
    if snapshot.schedule:
        federation.schedule.resume(snapshot.schedule)
    if federation.accounts is not None and snapshot.accounts:
        federation.accounts.resume(snapshot.accounts)
    while snapshot.round < rounds:
        record, snapshot = _round(federation, snapshot)
        yield record, snapshot


def _round(federation: Federation, before: Snapshot) -> tuple[RoundRecord, Snapshot]:
    began, number = time.perf_counter(), before.round + 1
    algorithm, schedule = federation.algorithm, federation.schedule
    sent = algorithm.broadcast(before.state)
    versions = {**before.versions, number: sent}
    turn = _Turn(federation, number, versions, Load(sent.bytes, algorithm.upload(sent)))
    updates = turn.updates() if federation.gather is None else turn.gathered(federation.gather)
    first = next(updates, None)
    state, metrics = before.state, dict[str, float]()
    if first is not None or algorithm.always:
        state, logged = turn.reduced(state, updates if first is None else chain([first], updates))
        metrics.update(logged)
        if federation.refresh is not None:
            state = {**state, "model": federation.refresh(number, state["model"])}
        if federation.store is not None:
            federation.store.commit(turn.kept)
    accounts = federation.accounts
    metrics.update({} if accounts is None else accounts.spend(number, turn.merged))
    empty = 0 if first is not None else before.empty + 1
    stopped = federation.policy == "stop" and turn.failures  # a round that Poisson drew empty is no failure
    if empty and (stopped or empty >= EMPTY_ROUNDS):
        why = turn.failures[0].reason if turn.failures else "nobody was chosen"
        raise TrainingError(f"round {number}: not one client is left ({why})", round=number)
    evaluating = time.perf_counter()
    counts = federation.evaluate(number, state)
    over = time.perf_counter()
    oldest = schedule.oldest()
    kept = {} if oldest is None else {v: b for v, b in versions.items() if v >= oldest}
    record = replace(
        turn.record(metrics),
        accuracy=counts.accuracy if counts else math.nan,
        loss=counts.loss if counts else math.nan,
        seconds=over - began,
        evaluation_seconds=over - evaluating,
    )
    spent = {} if accounts is None else accounts.state()
    return record, Snapshot(number, state, kept, schedule.state(), empty, spent)


def _taken(result: Result, size: int) -> Result:
    """Return what a client sent where it can be merged with others, and a failure where it cannot."""
    if isinstance(result, ClientFailure):
        return result
    if result.delta.shape != (size,):
        why = f"it has the shape {tuple(result.delta.shape)} where ({size},) is expected"
    elif not all(_finite(vector) for vector in (result.delta, *result.extra.values())):
        why = "it holds numbers that are not finite"
    elif not (math.isfinite(result.weight) and result.weight >= 0):
        why = f"its weight is {result.weight:g}"
    else:
        return result
    return ClientFailure(result.client, f"{result.client}'s update was refused: {why}", "refused")


def _finite(vector: Tensor) -> bool:
    """Say whether all numbers are finite; the norm shows it in one fast pass, unless it overflows."""
    fast = vector.is_floating_point() and math.isfinite(float(vector.norm()))
    return fast or bool(torch.isfinite(vector).all())


class _Turn:
    """One round's calls, and a tally of the updates that stream past on their way into the merge."""

    def __init__(self, federation: Federation, number: int, versions: Mapping[int, Broadcast], load: Load) -> None:
        self._federation, self._number, self._versions, self._load = federation, number, versions, load
        self.kept: dict[int, Kept] = {}
        self.failures: list[ClientFailure] = []
        self.merged: list[int] = []
        self._losses: list[tuple[int, float, float]] = []
        self._asked, self._up, self._down, self._clock, self._training = 0, 0, 0, 0.0, 0.0
        self._honest: list[ClientUpdate] = []

    def updates(self) -> Iterator[ClientUpdate]:
        """Call the cohort and yield its updates; then ask others in place of those that failed, where that is wanted."""
        call = self._federation.schedule.call(self._number, self._load)
        for attempt in range(RETRIES + 1):
            failed = [f for f in call.failures if f.kind in RETRIED]
            self._check(call.failures)
            failed += yield from self._train(call, attempt)
            if not failed or self._federation.policy != "retry" or attempt == RETRIES:
                return
            call = self._federation.schedule.replace(self._number, attempt + 1, len(failed), self._load)
            if not call.asked:
                return

    def gathered(self, gather: Gather) -> Iterator[ClientUpdate]:
        """Yield what the server sees where it does not see single updates; nothing where too few clients are left."""
        try:
            found = gather(self._number, self.updates(), self.failures)
        except QuorumError as error:
            found = Gathered((), refused=str(error))
        self._up += found.bytes_up
        self._down += found.bytes_down
        self._forget(found.lost)
        if found.refused:
            if self._federation.policy == "stop":
                raise QuorumError(found.refused, round=self._number)
            self.failures.append(ClientFailure("the cohort", found.refused, "refused"))
            self.merged.clear()
            self.kept.clear()
        yield from found.updates

    def _forget(self, lost: Mapping[int, ClientFailure]) -> None:
        """Take clients back out of the tally: their updates have passed, and are in nothing that is merged."""
        self.merged = [client for client in self.merged if client not in lost]
        self._losses = [row for row in self._losses if row[0] not in lost]
        for client in lost:
            self.kept.pop(client, None)
        self._check(lost.values())

    def _train(self, call: Call, attempt: int) -> Generator[ClientUpdate, None, list[ClientFailure]]:
        self._asked += call.asked
        self._clock = max(self._clock, call.clock)
        self._up += call.wasted * self._load.bytes_up
        if not call.clients:
            return []
        failed: list[ClientFailure] = []
        results = self._results(self._order(call, attempt))
        if self._federation.tamper is not None:
            results = self._tampered(list(results), self._federation.tamper)
        for client, result in zip(call.clients, results, strict=True):
            if isinstance(result, ClientFailure):
                failed.append(result)
                self._check([result])
                continue
            self._count(client, result)
            yield result
        return failed

    def _results(self, order: Order) -> Iterator[Result]:
        results = iter(self._federation.engine(order))
        for _ in order.clients:
            began = time.perf_counter()
            result = next(results)
            self._training += time.perf_counter() - began
            yield self._received(result)

    def _received(self, result: Result) -> Result:
        taken = _taken(result, self._versions[self._number].vector.numel())
        if taken is not result and isinstance(result, ClientUpdate):
            self._up += result.bytes_up
        return taken

    def _tampered(self, results: list[Result], tamper: Tamper) -> Iterator[Result]:
        """Let attackers change what they send, knowing all that was sent in the round so far."""
        before = len(self._honest)
        self._honest += [result for result in results if isinstance(result, ClientUpdate)]
        sent = iter(tamper(self._number, list(self._honest))[before:])
        for result in results:
            yield result if isinstance(result, ClientFailure) else self._received(next(sent))

    def _order(self, call: Call, attempt: int) -> Order:
        store, now = self._federation.store, self._number
        kept = store.read(call.clients) if store is not None else {}
        same = all(version == now for version in call.versions)
        sent = (self._versions[now],) if same else tuple(self._versions[v] for v in call.versions)
        stale = () if same else tuple(now - v for v in call.versions)
        return Order(now, call.clients, sent, kept, self._federation.lr(now), attempt, stale)

    def _count(self, client: int, update: ClientUpdate) -> None:
        self.merged.append(client)
        self._losses.append((client, update.weight, update.weight * update.metrics.get("loss", math.nan)))
        self._up += update.bytes_up
        if update.kept is not None:
            self.kept[client] = update.kept

    def _check(self, failures: Iterable[ClientFailure]) -> None:
        for failure in failures:
            self.failures.append(failure)
            if self._federation.policy == "stop" and failure.kind in RETRIED:
                raise TrainingError(
                    f"round {self._number}: {failure.reason}", round=self._number, client=failure.client
                )

    def reduced(self, state: State, updates: Iterable[ClientUpdate]) -> tuple[State, Mapping[str, float]]:
        """Merge the updates of this round; what cannot be merged is an error that names the round."""
        try:
            return self._federation.algorithm.reduce(state, updates)
        except MergeError as error:
            text, lost = f"round {self._number}: {error}", len(self.failures)
            text += f" ({lost} of {self._asked} clients failed: ask more per round)" if lost else ""
            raise MergeError(text, **{**error.context, "round": self._number}) from error

    def record(self, metrics: Mapping[str, float]) -> RoundRecord:
        """Return the round's record, without what is known only after evaluation."""
        weight = loss = 0.0
        for _, one, product in self._losses:  # one after the other: sum() rounds otherwise from Python 3.12 on
            weight, loss = weight + one, loss + product
        return RoundRecord(
            round=self._number,
            accuracy=math.nan,
            loss=math.nan,
            client_loss=loss / weight if weight else math.nan,
            clients=len(self.merged),
            seconds=0.0,
            training_seconds=self._training,
            asked=self._asked,
            bytes_down=self._asked * self._load.bytes_down + self._down,
            bytes_up=self._up,
            clock=self._clock,
            failures=tuple(self.failures),
            metrics=dict(metrics),
        )
