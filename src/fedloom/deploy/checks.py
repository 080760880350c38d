"""Checks: whether what a client sent can be what an honest client sends. Nothing that fails them reaches a merge.

What an honest client sends is known from a trial: the server makes a client's side itself, on two samples of zeros, and
looks at what it would send (names, shapes, dtypes, and how it is weighed). No sample of a client is needed for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedloom.algorithms.base import Broadcast
from fedloom.clients import Order, Population
from fedloom.deploy.messages import Upload
from fedloom.deploy.packed import Packed
from fedloom.engines.recipe import Recipe
from fedloom.errors import DataError
from fedloom.records import ClientFailure, ClientUpdate
from fedloom.training.shard import Shard

SAMPLES = 2
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
    """

    size: int
    extra: Mapping[str, Shape]
    metrics: frozenset[str]
    weighs: str
    longest: float = math.inf
    packed: Packed | None = None

    @classmethod
    def of(cls, recipe: Recipe, sent: Broadcast, lr: float, longest: float = math.inf) -> Pattern | None:
        """Find out what a client would send; None where the trial tells nothing (training on zeros failed)."""
        shape = recipe.model.input_shape
        pool = Shard("", torch.zeros((SAMPLES, *shape)), torch.zeros(SAMPLES, dtype=torch.int64), 1.0)
        side = recipe.make(Population(pool, [np.arange(SAMPLES)]))
        found = next(side.run(Order(1, (0,), (_on_cpu(sent),), lr=lr)))
        if isinstance(found, ClientFailure):
            return None
        weighs = {float(SAMPLES): "samples", 1.0: "alike"}.get(found.weight, "own")
        extra = {key: Shape.of(value) for key, value in found.extra.items()}
        packed = Packed.of(recipe.protection, side.algorithm, side.model.layout)
        return cls(found.delta.numel(), extra, frozenset(found.metrics), weighs, longest, packed)

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
        if delta is None or tuple(delta.shape) != (self.size,) or delta.dtype != torch.float32:
            found = "nothing" if delta is None else f"{tuple(delta.shape)} of {delta.dtype}"
            return f"it holds {found} where ({self.size},) of torch.float32 is expected"
        if {key: Shape.of(value) for key, value in update.extra.items()} != dict(self.extra):
            return f"what comes beside it ({', '.join(update.extra) or 'nothing'}) is not what was asked for"
        return self._wrong_numbers(update, delta, samples)

    def _wrong_numbers(self, update: Upload, delta: Tensor, samples: int) -> str:
        if not all(finite(value) for value in (delta, *update.extra.values())):
            return "it holds numbers that are not finite"
        if self.longest < math.inf and float(delta.norm()) > self.longest:
            return f"its length is {float(delta.norm()):.4g}, and {self.longest:g} is the most"
        expected = {"samples": float(samples), "alike": 1.0}.get(self.weighs, update.weight)
        if update.weight != expected or not (math.isfinite(update.weight) and update.weight >= 0):
            return f"its weight is {update.weight:g} where {expected:g} is expected"
        if not set(update.metrics) <= self.metrics or update.steps > MOST_STEPS:
            return "it reports numbers that were not asked for"
        return ""

    def update(self, client: str, upload: Upload) -> ClientUpdate:
        """Make the record of an upload that is not :meth:`wrong`."""
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


def _on_cpu(sent: Broadcast) -> Broadcast:
    extra = {key: value.cpu() for key, value in sent.extra.items()}
    return Broadcast(sent.vector.detach().cpu(), extra, sent.unsent, sent.encoded)
