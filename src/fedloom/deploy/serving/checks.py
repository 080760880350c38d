"""Checks: whether what a client sent can be what an honest client sends. Nothing that fails them reaches a merge.

What an honest client sends is known from a trial: the server plays a client with two samples of zeros that trains nothing,
and looks at what it would send (names, shapes, dtypes, and how it is weighed). No sample of a client is needed for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fedloom.algorithms.base import Broadcast
from fedloom.algorithms.protection import Protection
from fedloom.clients import ClientSide, Order, Population
from fedloom.deploy.protocol.messages import TRAIN, Upload
from fedloom.deploy.protocol.packed import Packed
from fedloom.deploy.sealing.begun import placeholder
from fedloom.deploy.sealing.legs import READY
from fedloom.errors import DataError, TrainingError
from fedloom.records import ClientFailure, ClientUpdate
from fedloom.simulation.population import held_count
from fedloom.training.cohort import Task, Trained
from fedloom.training.local import LocalConfig
from fedloom.training.shard import Shard

SAMPLES = 2
LOSS = 0.7
WORDS = 16 << 20
MOST_STEPS = 1 << 40


@dataclass(frozen=True)
class Shape:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Shape:
        """Take it down."""
        return cls(tuple(tensor.shape), tensor.dtype)


class Form(Protocol):
    """What answers of one kind look like.

    Attributes:
        kind: Of the task.
        answer: What people call one.
    """

    kind: ClassVar[str]
    answer: ClassVar[str]

    def opened(self, update: Upload) -> Upload:
        """Return an upload with its numbers; raises DataError where it has none."""
        ...

    def wrong(self, update: Upload, samples: int) -> str:
        """Say why an upload of a client that has registered so many ``samples`` is refused; nothing where all is well."""
        ...

    def update(self, client: str, upload: Upload) -> ClientUpdate:
        """Make the record of an upload that is not wrong."""
        ...


@dataclass(frozen=True)
class Pattern:
    """What updates look like.

    Attributes:
        size: P.
        extra: What is sent beside the update.
        metrics: The names of the numbers to log.
        weighs: ``"samples"`` where an update's weight is the number of samples, ``"alike"`` where it is 1, ``"own"``
            where the algorithm gives it another.
        longest: The largest L2 norm of an update; infinite for any.
        packed: How updates travel; None where that is as they are.
        sealed: Whether updates stay with their clients, who say only that they are ready for a secure sum.
        holdout: The share of its samples that a client keeps apart, and does not train on.
    """

    kind: ClassVar[str] = TRAIN
    answer: ClassVar[str] = "update"
    size: int
    extra: Mapping[str, Shape]
    metrics: frozenset[str]
    weighs: str
    longest: float = math.inf
    packed: Packed | None = None
    sealed: bool = False
    holdout: float = 0.0

    @classmethod
    def of(
        cls,
        side: ClientSide,
        protection: Protection,
        sent: Broadcast,
        lr: float,
        longest: float = math.inf,
        holdout: float = 0.0,
    ) -> Pattern:
        """Find out what a client would send, from what the server's own side makes of no training at all.

        Args:
            side: The run's, on the server: its model and its algorithm.
            protection: What is done with updates on their way.
            sent: What clients are sent.
            lr: The learning rate.
            longest: The largest L2 norm of an update.
            holdout: The share of its samples that a client keeps apart.

        Raises:
            TrainingError: Not even that can be sent.
        """
        where = sent.vector.device
        zeros = torch.zeros((SAMPLES, *side.model.input_shape), device=where)
        pool = Shard("", zeros, torch.zeros(SAMPLES, dtype=torch.int64, device=where), 1.0)
        trial = _Untrained(**{**vars(side), "population": Population(pool, [np.arange(SAMPLES)])})
        found = next(trial.run(Order(1, (0,), (sent,), lr=lr)))
        if isinstance(found, ClientFailure):
            raise TrainingError(f"the server cannot tell what updates will look like: {found.reason}")
        weighs = {float(SAMPLES): "samples", 1.0: "alike"}.get(found.weight, "own")
        extra = {key: Shape.of(value) for key, value in found.extra.items()}
        packed = Packed.of(protection, side.algorithm, side.model.layout)
        sealed = protection.secure != "off"
        return cls(found.delta.numel(), extra, frozenset(found.metrics), weighs, longest, packed, sealed, holdout)

    @property
    def largest(self) -> int:
        """How long an upload may be, in bytes: twice its numbers (those of secure sums may be wider), and some words."""
        beside = sum(math.prod(one.shape) * one.dtype.itemsize for one in self.extra.values())
        return 2 * (4 * self.size + beside) + WORDS

    def opened(self, update: Upload) -> Upload:
        """Return an upload with its update as numbers.

        Raises:
            DataError: It came as bytes that stand for none.
        """
        if not update.encoded or self.packed is None:
            return update
        if update.delta is not None:
            raise DataError("it is there twice, packed and as it is")
        return replace(update, delta=self.packed.update(update.encoded))

    def wrong(self, update: Upload, samples: int) -> str:
        """Say why an update is refused; nothing where all is well.

        Args:
            update: What was sent; its ``delta`` is there.
            samples: How many samples the client has registered.
        """
        delta = update.delta
        if self.sealed:
            return self._wrong_ready(update)
        if delta is None or tuple(delta.shape) != (self.size,) or delta.dtype != torch.float32:
            found = "nothing" if delta is None else f"{tuple(delta.shape)} of {delta.dtype}"
            return f"it holds {found} where ({self.size},) of torch.float32 is expected"
        if {key: Shape.of(value) for key, value in update.extra.items()} != dict(self.extra):
            return f"what comes beside it ({', '.join(update.extra) or 'nothing'}) is not what was asked for"
        return self._wrong_numbers(update, delta, samples - held_count(samples, self.holdout))

    def _wrong_ready(self, update: Upload) -> str:
        if update.delta is not None or update.extra or update.facts != {READY: True}:
            return "it should say that it is ready for the secure sum, and nothing of its update"
        if update.weight != 1:
            return f"its weight is {update.weight:g} where 1 is expected: the secure sum has the other"
        return self._wrong_reports(update)

    def _wrong_numbers(self, update: Upload, delta: Tensor, samples: int) -> str:
        if not all(finite(value) for value in (delta, *update.extra.values())):
            return "it holds numbers that are not finite"
        if self.longest < math.inf and float(delta.norm()) > self.longest:
            return f"its length is {float(delta.norm()):.4g}, and {self.longest:g} is the most"
        expected = {"samples": float(samples), "alike": 1.0}.get(self.weighs, update.weight)
        if update.weight != expected or not (math.isfinite(update.weight) and update.weight >= 0):
            return f"its weight is {update.weight:g} where {expected:g} is expected"
        return self._wrong_reports(update)

    def _wrong_reports(self, update: Upload) -> str:
        if not set(update.metrics) <= self.metrics or update.steps > MOST_STEPS:
            return "it reports numbers that were not asked for"
        if not all(math.isfinite(update.metrics.get(key, 0.0)) for key in ("loss", "accuracy")):
            return "it reports a loss or an accuracy that is not finite"
        return ""

    def update(self, client: str, upload: Upload) -> ClientUpdate:
        """Make the record of an upload that is not :meth:`wrong`."""
        if self.sealed:
            return placeholder(client, self.size, upload.steps, upload.metrics)
        assert upload.delta is not None
        most = sum(t.numel() * t.element_size() for t in (upload.delta, *upload.extra.values()))
        return ClientUpdate(
            client,
            upload.delta,
            upload.weight,
            upload.steps,
            dict(upload.metrics),
            dict(upload.extra),
            min(upload.bytes, most),
        )


def finite(vector: Tensor) -> bool:
    """Say whether all numbers are finite."""
    return not vector.is_floating_point() or bool(torch.isfinite(vector.sum())) or bool(torch.isfinite(vector).all())


class _Untrained(ClientSide):
    """A side whose clients send back what they got: the shapes are those of an update, and no memory is needed."""

    def _trained(self, tasks: list[Task], config: LocalConfig, seed: int) -> Iterator[Trained]:  # noqa: ARG002
        for task in tasks:
            start = task.phases[0].start
            count = len(task.phases)
            yield Trained(task.shard.name, (_given(start),) * count, (1,) * count, loss=LOSS, accuracy=0.5)


def _given(start: Tensor | None) -> Tensor:
    assert start is not None  # of the first phase
    return start
