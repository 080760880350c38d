"""Patience: how long a round waits, and what becomes of answers that come when it is over."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedloom.algorithms import ALGORITHMS
from fedloom.algorithms.protection import EXAMPLES, LOCAL
from fedloom.clients import Result
from fedloom.clients import name as number_name
from fedloom.config import Config, refuse
from fedloom.deploy.protocol.messages import TRAIN, Task
from fedloom.errors import UsageError, check_known
from fedloom.records import ClientFailure

if TYPE_CHECKING:
    from fedloom.deploy.serving.checks import Form

REFUSE, BUFFER = LATE = ("refuse", "buffer")


@dataclass(frozen=True)
class Patience:
    """How long a round waits.

    Attributes:
        deadline: Seconds after which a round goes on with what it has; infinite for as long as it takes.
        away: Seconds without a word after which a client counts as lost.
        quorum: The fewest updates of a round: it waits for them, whatever the deadline; all that were asked, where these
            are fewer.
        enough: A round goes on as soon as it has so many updates, and takes no more; 0 for all that were asked.
        late: What becomes of an answer to a round that is over: ``"refuse"``, or ``"buffer"``: it counts in the round that
            is open, if its client is asked there, with the number of rounds between them as ``metrics["staleness"]``.
        oldest: An answer that is more rounds late than this is refused in any case.
    """

    deadline: float = float("inf")
    away: float = 60.0
    quorum: int = 1
    enough: int = 0
    late: str = REFUSE
    oldest: int = 20

    def __post_init__(self) -> None:
        """Raise UsageError for what is none."""
        check_known("way with late answers", [self.late], LATE)
        if self.enough < 0 or self.oldest < 0:
            raise UsageError("--enough: a number of updates is expected, 0 for all")

    def served(self, config: Config) -> Patience:
        """Return what a run is served with: FedBuff asks everybody, and goes on with the first K updates, late or not.

        Raises:
            UsageError: Late answers do not go with the run; all conflicts, one per line.
        """
        name, made = config.algorithm.name, self
        if name == "fedbuff":
            usual = ALGORITHMS[name].options["buffer"].default
            made = replace(self, late=BUFFER, enough=int(config.algorithm.options.get("buffer", usual) or 1))
        if found := made.conflicts(config):
            raise refuse(found)
        return made

    def conflicts(self, config: Config) -> list[str]:
        """Say what of it does not go with a run, a line each."""
        privacy, found = config.privacy, list[str]()
        if self.late == BUFFER and privacy.secure_aggregation != "off":
            found.append("a late answer cannot join another round's secure sum: leave out --late buffer")
        elif self.late == BUFFER and privacy.mechanism not in ("none", LOCAL, EXAMPLES):
            found.append(
                f"the promise of {privacy.mechanism} is for rounds without late answers: leave out --late buffer"
            )
        if self.enough > config.data.clients:
            found.append(f"--enough {self.enough}: there are only {config.data.clients} clients")
        if self.enough and self.enough < self.quorum:
            found.append(f"--enough {self.enough} is less than --quorum {self.quorum}")
        return found


@dataclass
class Open:
    """An order on its way.

    Attributes:
        key: Its round and attempt.
        tasks: What each client is to do, by number.
        form: What answers look like.
        ends: When it is late, on the monotonic clock.
        enough: It takes so many updates; 0 for all.
        began: When it was given out, on the same.
        results: What came, by number.
        had: The numbers whose results have been taken; whether each was an update.
        given: Who has been told what to do.
    """

    key: tuple[int, int]
    tasks: Mapping[int, Task]
    form: Form
    ends: float
    enough: int = 0
    began: float = field(default_factory=time.monotonic)
    results: dict[int, Result] = field(default_factory=dict)
    had: dict[int, bool] = field(default_factory=dict)
    given: set[int] = field(default_factory=set)

    @property
    def trains(self) -> bool:
        """Whether it asks for updates."""
        return self.form.kind == TRAIN

    def answers(self) -> int:
        """Return how many updates have come."""
        return sum(self.had.values()) + sum(not isinstance(r, ClientFailure) for r in self.results.values())

    def full(self) -> bool:
        """Say whether it takes no more updates."""
        return 0 < self.enough <= self.answers()

    def waits_for(self, number: int) -> bool:
        """Say whether a client has still to answer."""
        return number in self.tasks and number not in self.results and number not in self.had and not self.full()


@dataclass
class AtWork:
    """Clients that were still at work when their round was over.

    A server that was started again knows none of them: what they send is refused, and they are asked anew.

    Attributes:
        patience: Whether late answers count, and for how long.
        tasks: What they are at, by number.
    """

    patience: Patience
    tasks: dict[int, Task] = field(default_factory=dict)

    def over(self, was: Open, counted: Mapping[int, tuple[int, int]]) -> None:
        """Take note that a round is over."""
        if self.patience.late == BUFFER and was.trains:
            late = (n for n in was.given if counted.get(n) != was.key and n not in self.tasks)
            self.tasks.update({number: was.tasks[number] for number in late})

    def busy(self, clients: Iterable[int]) -> dict[int, Result]:
        """Return those of ``clients`` that are at work: nothing else is asked of them meanwhile."""
        names = {n: number_name(n) for n in clients if n in self.tasks}
        return {n: ClientFailure(name, f"{name} is still training", "late") for n, name in names.items()}

    def task(self, number: int, now: Open) -> Task | None:
        """Return what a client is at, which is too old no more; None where it is free."""
        task = self.tasks.get(number)
        if task is not None and now.key[0] - task.round > self.patience.oldest:
            del self.tasks[number]
            return None
        return task

    def age(self, number: int, key: tuple[int, int], now: Open) -> int | None:
        """Return how many rounds late an answer is; None where it may not count in the open round."""
        task = self.task(number, now)
        if task is None or (task.round, task.attempt) != key or number not in now.tasks:
            return None
        return now.key[0] - key[0]
