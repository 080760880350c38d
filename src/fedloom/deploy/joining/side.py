"""Side: a client's own side of a run: its model and its data stay loaded, and tasks become answers."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fedloom.algorithms.base import Broadcast, Kept
from fedloom.algorithms.sealed import SEALED
from fedloom.clients import ClientSide, Order, Population
from fedloom.clients import name as number_name
from fedloom.data.dataset import Dataset
from fedloom.deploy.beside import Beside
from fedloom.deploy.experiment import Experiment
from fedloom.deploy.joining.evaluation import evaluated
from fedloom.deploy.joining.memory import Memory, Turn, digest
from fedloom.deploy.protocol.facts import TURN
from fedloom.deploy.protocol.messages import CHECK, EVALUATE, TRAIN, Task, Upload
from fedloom.deploy.protocol.packed import Packed
from fedloom.deploy.protocol.wire import ALIGN
from fedloom.deploy.sealing.legs import READY
from fedloom.engines.messages import Index
from fedloom.errors import DataError, FedloomError
from fedloom.models.model import device
from fedloom.records import ClientFailure, ClientUpdate
from fedloom.simulation.population import apart
from fedloom.training.shard import Shard

SECONDS, BATCH, LOSS = "seconds", "batch", "loss"
"""What a client tells of a trial."""


@dataclass(frozen=True)
class Side:
    """A client's side of a run.

    Attributes:
        number: The client's number.
        trained: Turns an order into an update.
        memory: What it has on its disk.
        say: Told what people should know.
        packed: How vectors travel.
        noisy: Whether answers are protected by noise of the client's own: it says nothing else of its training then.
        once: Whether a round is answered once, since the server is to learn no more of it than was agreed.
    """

    number: int
    trained: ClientSide
    memory: Memory
    say: Callable[[str], None]
    packed: Packed
    noisy: bool = False
    once: bool = False

    @classmethod
    def make(
        cls,
        experiment: Experiment,
        number: int,
        data: Dataset,
        memory: Memory,
        say: Callable[[str], None],
        where: str | None = "cpu",
        holdout: float = 0.0,
    ) -> Side:
        """Build the model, and get the data ready; a share of them, ``holdout``, is kept apart and never trained on.

        Raises:
            DataError: The samples do not fit.
            ModelError: The model cannot be built here, or is another one here.
        """
        made = experiment.recipe.make(Population(_nothing(), ()))
        place = device(where)
        pool = Shard.of(experiment.samples.fit(data), made.model, number_name(number), place)
        made.model.to(place)
        index, held = (Index(experiment.recipe.n_clients) for _ in range(2))
        index.known[number], held.known[number] = apart(np.arange(len(pool)), holdout, experiment.recipe.seed, number)
        packed = Packed.of(experiment.recipe.protection, made.algorithm, made.model.layout)
        noisy, sealed = experiment.recipe.protection.own_noise, experiment.recipe.protection.secure != "off"
        trained = replace(made, population=Population(pool, index, held if holdout else ()))
        return cls(number, trained, memory, say, packed, noisy, noisy or sealed)

    def check(self, *, trial: bool) -> Upload:
        """Say that all is ready; with ``trial`` after training one batch, of which nothing but the time and loss is told."""
        if not trial:
            return Upload(0, task=CHECK)
        algorithm, one = self.trained.algorithm, self._first_batch()
        sent = algorithm.broadcast(algorithm.init(self.trained.model.vector()))
        began = time.perf_counter()
        found = one._turn(Task(CHECK, vector=sent.vector, extra=dict(sent.extra), lr=self.trained.config.lr), None)
        if isinstance(found, ClientFailure):
            return Upload(0, task=CHECK, failure="dropped", reason=found.reason)
        told: dict[str, float] = {SECONDS: time.perf_counter() - began, BATCH: len(one.trained.population.pool)}
        if not self.once and math.isfinite(found.metrics["loss"]):
            told[LOSS] = found.metrics["loss"]
        return Upload(0, task=CHECK, facts=told)

    def _first_batch(self) -> Side:
        """Return a side that trains on one batch, once."""
        pool = self.trained.population.shard(self.number)
        size = self.trained.config.batch_size or len(pool)
        few = replace(pool, x=pool.x[:size], y=pool.y[:size])
        index = Index(1)
        index.known[self.number] = np.arange(len(few))
        config = replace(self.trained.config, epochs=1)
        return replace(self, trained=replace(self.trained, population=Population(few, index), config=config))

    def answer(self, task: Task) -> Upload:
        """Train; whatever goes wrong is the answer."""
        turn = task.round, task.attempt
        try:
            found: ClientUpdate | ClientFailure | None = self.memory.answer(task)
            if found is None:
                self._once(task)
                self.memory.forget(counting(task))
                before = self._kept(task)
                with Beside(lambda: digest(task)) as digested:
                    found = self._turn(task, before)
                    if isinstance(found, ClientUpdate):
                        found = _slim(found)
                        kept = found if found.kept is not None else replace(found, kept=before)
                        self.memory.save(task, kept, digested.result())
        except Exception as error:  # the server has no other way to know: it shows it with client, round and line
            known = isinstance(error, FedloomError)
            return Upload(*turn, failure="dropped", reason=self._told(explained(error), known=known))
        if isinstance(found, ClientFailure):
            return Upload(*turn, failure=found.kind, reason=self._told(found.reason))
        metrics = {} if self.noisy else dict(found.metrics)
        if SEALED in found.extra:
            return Upload(*turn, TRAIN, weight=found.weight, steps=found.steps, metrics=metrics, facts={READY: True})
        packed = self.packed.stands_for(found.data, found.delta)
        return Upload(
            *turn,
            TRAIN,
            None if packed else found.delta,
            found.data if packed else b"",
            extra=dict(found.extra),
            weight=found.weight,
            steps=found.steps,
            metrics=metrics,
            bytes=found.bytes_up,
        )

    def evaluate(self, task: Task) -> Upload:
        """Evaluate on what is kept apart; whatever goes wrong is the answer."""
        turn = task.round, task.attempt
        try:
            return Upload(*turn, EVALUATE, facts=self._counts(task))
        except Exception as error:  # the server has no other way to know here either
            return Upload(*turn, EVALUATE, failure="dropped", reason=explained(error))

    def _counts(self, task: Task) -> dict[str, int]:
        if self.once and not self.memory.begin_evaluation(task):
            raise DataError(f"after round {task.round} other models were evaluated before")
        return evaluated(self.trained, self.number, self._sent(task), self._placed(self._kept(task)))

    def _told(self, reason: str, *, known: bool = False) -> str:
        """Return what the server hears of a failure: where own noise hides the data, no words that depend on them."""
        if not self.noisy or known:
            return reason
        self.say(reason)
        return "training failed; the client's own screen says why"

    def _turn(self, task: Task, kept: Kept | None) -> ClientUpdate | ClientFailure:
        mine = self._placed(kept)
        state = {} if mine is None else {self.number: mine}
        stale = (task.stale,) if task.stale else ()
        order = Order(task.round, (self.number,), (self._sent(task),), state, task.lr, task.attempt, stale)
        return next(self.trained.run(order))

    def _sent(self, task: Task) -> Broadcast:
        """Return what the server sent, ready for this machine.

        Raises:
            DataError: It is none of this run.
        """
        where = self.trained.population.pool.x.device
        vector = self.packed.model(task.encoded) if task.encoded else task.vector
        if vector is None or vector.shape != (self.trained.model.layout.size,):
            raise DataError("the model that the server sent is of another size than this run's")
        extra = {key: _aligned(value).to(where) for key, value in task.extra.items()}
        return Broadcast(_aligned(vector).to(where), extra, task.unsent)

    def _placed(self, kept: Kept | None) -> Kept | None:
        where = self.trained.population.pool.x.device
        return None if kept is None else {key: value.to(where) for key, value in kept.items()}

    def _once(self, task: Task) -> None:
        """Refuse to answer a round twice where every answer costs privacy, and be it that training failed.

        The same answer again costs nothing.
        """
        if self.once and not self.memory.begin(task):
            raise DataError(
                f"round {task.round} was answered before, to another question: that would cost privacy a second time"
            )

    def _kept(self, task: Task) -> Kept | None:
        counts = counting(task)
        if counts is None:
            return None
        found = self.memory.kept(counts)
        if found is None:
            self.say(f"round {task.round}: what was kept after round {counts[0]} is gone: going on without it")
        return found


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that lies where PyTorch would put it: bits may depend on that."""
    return tensor.clone() if tensor.data_ptr() % ALIGN else tensor


def _slim(found: ClientUpdate) -> ClientUpdate:
    """Leave out what a sealed update has no use for: numbers that are all zero."""
    return replace(found, delta=torch.zeros(0)) if SEALED in found.extra else found


def counting(task: Task) -> Turn | None:
    """Return the turn whose state counts; None where none does.

    Raises:
        DataError: The server said something else.
    """
    said = task.facts.get(TURN)
    if said is None:
        return None
    if not isinstance(said, list) or len(said) != 2 or not all(type(n) is int and n >= 0 for n in said):
        raise DataError("the server does not say which state counts")
    return said[0], said[1]


def _nothing() -> Shard:
    return Shard("", torch.zeros(0), torch.zeros(0, dtype=torch.int64), 1.0)


def explained(error: Exception) -> str:
    """Say in one line what went wrong, with the file and the line where it was no error on purpose."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FedloomError):
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}: {type(error).__name__}: {text}"
