"""Noise in shares: every client adds a little integer noise, and only the sum has enough of it.

Under secure aggregation the server learns the sum alone, so no single share needs to hide anybody. A client's update is

    clipped to C -> rotated at random -> scaled to a grid -> rounded at random -> + its share of noise -> modulo 2^bits

and the server takes the sum of all back to where it came from. Both mechanisms are this, with other noise:

* P. Kairouz, Z. Liu, T. Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
  Aggregation", ICML 2021, Algorithms 1 and 2;
* N. Agarwal, P. Kairouz, Z. Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021,
  Algorithm 1: sums of Skellam numbers are Skellam numbers.

Rounding makes an update longer. It is repeated until the rounded vector is at most (Theorem 1; s the scale, d the size)

    l2^2 = min( s^2 C^2 + d / 4 + sqrt(2 log(1 / beta)) (s C + sqrt(d) / 2),   (s C + sqrt(d))^2 )

which holds with a chance of 1 - beta at least, so that the bound always holds and the rounding is biased but a little.

The noise of a client that drops out is missing. :meth:`Distributed.event` takes how many really contributed, so that the
ledger counts the noise that really was there; a client that colludes with the server takes its own share away, too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedloom.errors import DataError, TrainingError, UsageError
from fedloom.privacy.clipping import clip
from fedloom.privacy.events import Discrete
from fedloom.privacy.integer_noise import MAX_STD
from fedloom.privacy.mechanisms import check
from fedloom.privacy.randomness import Integers, Randomness

Residues: TypeAlias = NDArray[np.unsignedinteger[Any]]
_TRIES = 1000


@dataclass(frozen=True)
class Distributed(ABC):
    """What :class:`DistributedGaussian` and :class:`Skellam` share; make one of these.

    Attributes:
        clip: C, the longest update's L2 norm, > 0 and finite.
        multiplier: z: the noise on the sum has a standard deviation of about z C when all ``clients`` contribute.
        clients: How many shares make the whole noise: the expected number of clients, >= 1.
        size: The length T of the trainable head.
        bits: The sum is taken modulo 2^bits, 2 to 62.
        beta: How likely one try of rounding may be too long, in [0, 1); the papers take e^(-1/2).
        reach: So many standard deviations of a number of the sum fit into half of the range; beyond it, sums would wrap.
            The papers take 3 or 4; 6 makes it one number in a billion where all updates point the same way.
    """

    clip: float
    multiplier: float
    clients: int
    size: int
    bits: int = 24
    beta: float = math.exp(-0.5)
    reach: float = 6.0
    noise: ClassVar[str]

    def __post_init__(self) -> None:
        """Raise UsageError for numbers out of range, or too few bits for that many clients."""
        check(self.clip, self.multiplier)
        if not (math.isfinite(self.clip) and self.clients >= 1 and self.size >= 1):
            raise UsageError(
                "noise in shares needs a finite clipping bound, at least one client and one number to send"
            )
        if not 0 <= self.beta < 1 or not 2 <= self.bits <= 62 or self.reach <= 0:
            raise UsageError("noise in shares: beta must be in [0, 1), bits in 2 .. 62 and reach above 0")
        if 4.0**self.bits <= self.clients * self.reach**2:
            raise UsageError(f"{self.bits} bits are too few for the sum of {self.clients} clients: take more bits")

    @property
    def length(self) -> int:
        """d, how many numbers are sent: those of the update, padded for its rotation."""
        from fedloom.compress.rotation import rotated_size

        return rotated_size(self.size)

    @property
    def scale(self) -> float:
        """s, steps of the grid per unit, so that ``reach`` standard deviations of the sum fit into 2^bits.

        ``2^bits = 2 reach sqrt(s^2 (n C)^2 / b + s^2 (z C)^2 + n / 4)``, b the block that the rotation spreads an update
        over (Kairouz et al. 2021, section 4, rotate all d numbers as one block). But no finer than is worth while: where
        rounding adds a thousandth to the square of an update's length, and a share of noise spans 64 steps.
        """
        from fedloom.compress.rotation import block_of

        n, room = self.clients, math.sqrt(4.0**self.bits - self.clients * self.reach**2)
        spread = self.clip * math.hypot(n / math.sqrt(block_of(self.size)), self.multiplier)
        fits = room / (2 * self.reach * spread)
        share = self.multiplier * self.clip / math.sqrt(n)
        enough = math.sqrt(250 * self.length) / self.clip
        if not share:
            return min(fits, enough)
        return min(fits, max(enough, 64 / share), MAX_STD * (1 - 2**-20) / share)

    @property
    def variance(self) -> float:
        """The variance of a client's share of noise, in steps of the grid squared."""
        return (self.multiplier * self.clip * self.scale) ** 2 / self.clients

    @property
    def l2(self) -> float:
        """The longest rounded update in L2 norm, in steps of the grid."""
        length, d = self.clip * self.scale, self.length
        always = length + math.sqrt(d)
        if self.beta == 0:
            return always
        more = math.sqrt(2 * math.log(1 / self.beta)) * (length + math.sqrt(d) / 2)
        return min(always, math.sqrt(length**2 + d / 4 + more))

    @property
    def l1(self) -> float:
        """The longest rounded update in L1 norm: ``min(sqrt(d) l2, l2^2)``, since its numbers are whole."""
        return self.l2 * min(math.sqrt(self.length), self.l2)

    @property
    def dtype(self) -> type[np.uint32] | type[np.uint64]:
        """The type of what clients send."""
        return np.uint32 if self.bits <= 32 else np.uint64

    def encode(self, vector: Tensor, randomness: Randomness, seed: int) -> Residues:
        """Make what a client sends of its update.

        Args:
            vector: The head of its update, float32 (T,); clipped here, zeros where it is not finite.
            randomness: The client's own.
            seed: Of the round's rotation, which is no secret and the same for every client, 0 <= seed < 2^64.

        Returns:
            Numbers modulo 2^bits, uint32 (d,) for up to 32 bits, uint64 (d,) otherwise; d is :attr:`length`.

        Raises:
            UsageError: The vector has another length.
            TrainingError: No rounding was short enough in 1000 tries, which is not chance.
        """
        from fedloom.compress.rotation import rotate

        if vector.shape != (self.size,):
            raise UsageError(
                f"an update of {tuple(vector.shape)} numbers: {self.size} are expected", expected=self.size
            )
        turned = rotate(clip(vector, self.clip).vector, seed)
        # A rotation keeps the norm but for rounding; what it adds is taken off again.
        grid = clip(turned, self.clip).vector.double() * self.scale
        whole = self._rounded(grid.numpy(), randomness) + self._share(len(grid), randomness)
        return (whole & ((1 << self.bits) - 1)).astype(self.dtype)

    def decode(self, total: Residues, seed: int) -> Tensor:
        """Make the noisy sum of updates of the sum of what clients sent.

        Args:
            total: The sum modulo 2^bits, uint32 or uint64 (d,).
            seed: Of the round's rotation.

        Returns:
            float32 (T,): the sum of clipped updates, with noise. Divide it by the expected number of clients.

        Raises:
            DataError: A number is not below 2^bits, or there are too few or too many of them.
        """
        from fedloom.compress.rotation import unrotate

        numbers = np.asarray(total).astype(np.uint64)
        if numbers.shape != (self.length,) or int(numbers.max()) >> self.bits:
            raise DataError(
                f"a secure sum of {self.length} numbers below 2^{self.bits} is expected, not {numbers.shape}"
            )
        half = 1 << (self.bits - 1)
        signed = (numbers.astype(np.int64) + half & (1 << self.bits) - 1) - half
        return unrotate(torch.from_numpy(signed / self.scale).float(), seed, self.size)

    def add(self, total: Residues, sent: Residues) -> Residues:
        """Return the sum of two vectors modulo 2^bits: what secure aggregation computes without seeing either."""
        mask = self.dtype((1 << self.bits) - 1)
        return np.asarray((total + sent) & mask, dtype=self.dtype)

    def event(self, contributed: int) -> Discrete:
        """Return what the sum of ``contributed`` clients' updates was, for the ledger.

        Raises:
            UsageError: Nobody contributed: there is no sum.
        """
        return Discrete(self.noise, self.l2, self.l1, self.variance, contributed, self.length)

    def std(self, contributed: int) -> float:
        """Return the standard deviation of the noise on the sum when so many clients contributed."""
        return math.sqrt(self.variance * contributed) / self.scale

    @abstractmethod
    def _share(self, n: int, randomness: Randomness) -> Integers:
        """Return a client's share of the noise, int64 (n,)."""

    def _rounded(self, grid: NDArray[np.float64], randomness: Randomness) -> Integers:
        """Round up or down at random, without bias, until the vector is short enough."""
        below = np.floor(grid)
        chance, limit = grid - below, self.l2**2 * (1 - 1e-9)
        for _ in range(_TRIES):
            whole = below + (randomness.uniform(len(grid)) <= chance)
            if float(whole @ whole) <= limit:
                return whole.astype(np.int64)
        raise TrainingError(f"an update could not be rounded to a norm of at most {self.l2:.6g}: take more bits")


@dataclass(frozen=True)
class DistributedGaussian(Distributed):
    """Shares of discrete Gaussian noise (Kairouz, Liu, Steinke 2021)."""

    noise: ClassVar[str] = "discrete-gaussian"

    def _share(self, n: int, randomness: Randomness) -> Integers:
        return randomness.discrete_gaussian(n, math.sqrt(self.variance))


@dataclass(frozen=True)
class Skellam(Distributed):
    """Shares of Skellam noise (Agarwal, Kairouz, Liu 2021)."""

    noise: ClassVar[str] = "skellam"

    def _share(self, n: int, randomness: Randomness) -> Integers:
        return randomness.skellam(n, self.variance)
