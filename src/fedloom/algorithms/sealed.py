"""Sealed updates: any algorithm that needs only a sum, where the server sees nothing but that sum.

A client's update becomes whole numbers modulo 2^bits, which secure aggregation adds up under masks
(:mod:`fedloom.privacy.secagg`); the algorithm gets one update in place of the cohort's. Two ways to such numbers:

- :class:`Exact`: fixed point, with the weight inside the sum; what an algorithm sends beside the update (such as
  reported BatchNorm statistics) is summed with it.
- :class:`Noised`: clipped, rotated, rounded, with a share of noise (:mod:`fedloom.privacy.discrete`).

The sum is exact, so a simulation need not send the messages to have its bits: :class:`SecureSum` adds the numbers up, or
runs the whole protocol where that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedloom.algorithms.base import Algorithm, Settled, Visit
from fedloom.errors import MergeError, QuorumError, UsageError
from fedloom.privacy import Distributed, Randomness
from fedloom.privacy.secagg import Config, FixedPoint, Step, graph, simulate
from fedloom.privacy.secagg.packing import Integers, packed_size
from fedloom.records import ClientFailure, ClientUpdate, Gathered
from fedloom.rng import derive
from fedloom.training.cohort import Trained

SEALED = "sealed"
GONE = ("dropped", "late", "diverged", "refused")
"""Failures of clients that had begun the round."""


class Seal(Protocol):
    """Turns what a client would send into whole numbers, and their sum into one update."""

    @property
    def bits(self) -> int:
        """The numbers are modulo 2^bits."""
        ...

    @property
    def length(self) -> int:
        """How many numbers a client sends."""
        ...

    def close(self, settled: Settled, visit: Visit) -> Integers:
        """Return a client's numbers."""
        ...

    def open(self, total: Integers, number: int) -> ClientUpdate:
        """Return the update that stands for all that are in the sum of round ``number``."""
        ...


@dataclass(frozen=True)
class Exact:
    """The update, what is sent beside it, and the weight, in fixed point.

    Attributes:
        code: The fixed point.
        size: The length of the model.
        beside: Names and lengths of what is sent beside the update.
        shared: int64 (k,), where the update's numbers are that leave a client; None for all.
        equal: Whether updates count alike, whatever the number of samples.
        shorten: Whether the update's numbers are rounded towards zero, so that none is longer than it was clipped to.
    """

    code: FixedPoint
    size: int
    beside: tuple[tuple[str, int], ...] = ()
    shared: Tensor | None = None
    equal: bool = False
    shorten: bool = False

    @property
    def bits(self) -> int:
        """The numbers are modulo 2^bits."""
        return self.code.bits

    @property
    def length(self) -> int:
        """How many numbers a client sends."""
        update = self.size if self.shared is None else len(self.shared)
        return update + sum(count for _, count in self.beside) + 1

    def close(self, settled: Settled, visit: Visit) -> Integers:
        """Return a client's numbers.

        Raises:
            MergeError: A number is out of the range of the fixed point.
        """
        delta = settled.delta.cpu()
        if self.shorten:  # the scale is a power of two, so that this is exact
            delta = torch.trunc(delta * self.code.scale) / self.code.scale
        parts = [delta if self.shared is None else delta[self.shared]]
        parts += [settled.extra[name].reshape(-1).float().cpu() for name, _ in self.beside]
        usual = 1.0 if self.equal else float(visit.samples)
        weight = usual if settled.weight is None else settled.weight
        try:
            return self.code.encode(torch.cat(parts).numpy(), weight)
        except UsageError as error:
            raise MergeError(str(error), **error.context) from error

    def open(self, total: Integers, number: int) -> ClientUpdate:  # noqa: ARG002 - the same in every round
        """Return the weighted mean."""
        found = self.code.decode(total)
        mean = torch.from_numpy(found.mean)
        sizes = [count for _, count in self.beside]
        head, *rest = torch.split(mean, [len(mean) - sum(sizes), *sizes])
        delta = head if self.shared is None else torch.zeros(self.size).index_copy(0, self.shared, head)
        extra = {name: part for (name, _), part in zip(self.beside, rest, strict=True)}
        return ClientUpdate("the secure sum", delta, found.weight, 0, extra=extra)


@dataclass(frozen=True)
class Noised:
    """The clipped head of an update with a client's share of the noise.

    Attributes:
        mechanism: The noise.
        cohort: How many clients a round is expected to have: the fixed denominator.
        size: The length of the model.
        seed: Of the rounds' rotations, which everybody knows.
        noise_seed: None for the operating system's randomness.
    """

    mechanism: Distributed
    cohort: float
    size: int
    seed: int = 0
    noise_seed: int | None = None

    @property
    def bits(self) -> int:
        """The numbers are modulo 2^bits."""
        return self.mechanism.bits

    @property
    def length(self) -> int:
        """How many numbers a client sends."""
        return self.mechanism.length

    def close(self, settled: Settled, visit: Visit) -> Integers:
        """Return a client's numbers."""
        chance = Randomness.of(self.noise_seed, "share", visit.round, visit.client)
        head = settled.delta[: self.mechanism.size].cpu()
        return self.mechanism.encode(head, chance, derive(self.seed, "rotation", visit.round))

    def open(self, total: Integers, number: int) -> ClientUpdate:
        """Return the noisy mean over the expected number of clients."""
        delta = torch.zeros(self.size)
        released = self.mechanism.decode(total, derive(self.seed, "rotation", number))
        delta[: self.mechanism.size] = released / self.cohort
        return ClientUpdate("the noisy secure sum", delta, 1.0, 0)


def sealed(algorithm: Algorithm, seal: Seal) -> Algorithm:
    """Let clients send nothing but sealed numbers; a :class:`SecureSum` opens their sum."""

    def settle(visit: Visit, trained: Trained) -> Settled:
        settled = algorithm.settle(visit, trained)
        numbers = seal.close(settled, visit)
        nothing = settled.delta.new_zeros(1).expand(settled.delta.numel())
        signed = torch.from_numpy(numbers.view(np.int32 if numbers.itemsize == 4 else np.int64))
        packed = packed_size(len(numbers), seal.bits)
        beside = signed.numel() * signed.element_size()
        return replace(settled, delta=nothing, extra={SEALED: signed}, weight=1.0, encoded=packed - beside)

    return replace(algorithm, settle=settle, upload=lambda _: packed_size(seal.length, seal.bits))


@dataclass(frozen=True)
class SecureSum:
    """What the server does with sealed updates; ``Federation.gather``.

    Attributes:
        seal: Opens the sum.
        session: 16 bytes that name the run.
        protocol: Whether to run the whole protocol, keys, masks, drop-outs and all, instead of adding the numbers up:
            the same bits, and all of its messages are counted.
        dropped: The share of drop-outs that a round survives.
    """

    seal: Seal
    session: bytes
    protocol: bool = False
    dropped: float = 0.2

    def __call__(self, number: int, updates: Iterator[ClientUpdate], failures: Sequence[ClientFailure]) -> Gathered:
        """Return the update that stands for all.

        Raises:
            QuorumError: Too few clients are left.
        """
        arrays: list[Integers] = []
        total, count, where = None, 0, torch.device("cpu")
        for update in updates:
            found, where, count = numbers(update.extra[SEALED]), update.delta.device, count + 1
            if self.protocol:
                arrays.append(found)
            else:
                total = found.copy() if total is None else np.add(total, found, out=total)
        if not count:
            return Gathered(())
        asked = count + sum(failure.kind in GONE for failure in failures)
        self.check(number, asked, count)
        if total is not None:
            total &= total.dtype.type((1 << self.seal.bits) - 1)
            return Gathered((_on(self.seal.open(total, number), where),))
        return self._protocol(number, arrays, asked, where)

    def check(self, number: int, asked: int, count: int) -> None:
        """Check that so many of those that were ``asked`` are enough.

        Raises:
            QuorumError: They are not.
        """
        if asked < 2:
            raise QuorumError(f"round {number}: the sum of one client hides nothing: ask for two or more", round=number)
        try:
            least = graph.plan(asked, self.dropped).minimum
        except UsageError as error:
            raise QuorumError(f"round {number}: {error}", round=number) from error
        if count < least:
            raise QuorumError(
                f"round {number}: {count} of {asked} clients are left, and secure aggregation opens no sum of fewer than "
                f"{least}",
                round=number,
            )

    def _protocol(self, number: int, arrays: list[Integers], asked: int, where: torch.device) -> Gathered:
        size, bits = len(arrays[0]), self.seal.bits
        config = Config.of(self.session, number, asked, size, bits=bits, dropped=self.dropped)
        nothing = np.zeros(0, arrays[0].dtype)
        drops = dict.fromkeys(range(len(arrays), asked), Step.MASK)
        outcome = simulate([*arrays, *[nothing] * len(drops)], drops, config)
        up = sum(outcome.bytes_up) - len(arrays) * packed_size(size, bits)
        opened = _on(self.seal.open(outcome.sum, number), where)
        return Gathered((opened,), bytes_up=up, bytes_down=sum(outcome.bytes_down))


def numbers(signed: Tensor) -> Integers:
    """Return a client's numbers, as the protocol wants them."""
    array = signed.cpu().numpy()
    return array.view(np.uint32 if array.itemsize == 4 else np.uint64)


def _on(update: ClientUpdate, where: torch.device) -> ClientUpdate:
    return replace(
        update, delta=update.delta.to(where), extra={name: part.to(where) for name, part in update.extra.items()}
    )
