"""Randomness for noise: the operating system's, or a seed's where a run must be repeatable and nothing is at stake.

Noise that can be guessed hides nothing. ``Randomness.of(None)`` takes 48 bytes of the operating system for every draw
and stretches them by AES-256 in counter mode; ``Randomness.of(seed, ...)`` gives the same numbers again, and says so:
``void`` is True, and a guarantee of privacy that rests on it is none.

**What floating point gives away.** A normal number of float64 cannot take every value, and which values a noisy sum can
take depends on the sum: its last bits may tell it apart (Mironov 2012, "On Significance of the Least Significant Bits
for Differential Privacy"). :func:`coarse` rounds a noisy sum to a grid that is far coarser than float64 and far finer
than the noise: the last bits are gone, and rounding what is already private costs no privacy. That stops the known
attacks; it is no proof. (Holohan and Braghin 2021, "Secure Random Sampling in Differential Privacy", sum several
normals instead, for as many times the cost.) The integers of :meth:`Randomness.discrete_gaussian` and
:meth:`Randomness.skellam` have no last bits to give away.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedloom.errors import MissingDependency, UsageError
from fedloom.privacy import integer_noise
from fedloom.rng import stream

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]
_CHUNK = 1 << 17
GRID_BITS = 16


@dataclass(frozen=True)
class Randomness:
    """A source of random numbers for noise; make it with :meth:`of`.

    Attributes:
        generator: What a seeded source draws from; None for the operating system's.
    """

    generator: np.random.Generator | None

    @classmethod
    def of(cls, seed: int | None = None, *path: str | int) -> Randomness:
        """Return the operating system's randomness, or, with a seed, the stream of :func:`fedloom.rng.stream`.

        Args:
            seed: None, or a number for a run that is to be repeated bit by bit: its noise protects nobody.
            path: What the numbers are for, such as ``"noise", round``; only a seed looks at it.

        Raises:
            MissingDependency: The operating system's randomness needs the package cryptography.
        """
        if seed is None:
            _aes_counter()
            return cls(None)
        return cls(stream(seed, *path))

    @property
    def void(self) -> bool:
        """Whether a guarantee that rests on this noise is void, since it was drawn from a seed."""
        return self.generator is not None

    def words(self, n: int) -> Words:
        """Return n uniform 64-bit words, uint64 (n,)."""
        if self.generator is not None:
            return self.generator.integers(0, 1 << 64, size=n, dtype=np.uint64)
        return np.frombuffer(_stretched(8 * n), dtype=np.uint64)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Return n numbers in (0, 1], float64 (n,): 64 random bits each, rounded to the nearest."""
        return _unit(self.words(n))

    def integers(self, n: int, high: int) -> Integers:
        """Return n whole numbers in [0, high), each as likely as any other, int64 (n,).

        Raises:
            UsageError: ``high`` is not in 1 .. 2^63.
        """
        if not 1 <= high <= 1 << 63:
            raise UsageError(f"integers below {high}: a number from 1 to 2^63 is expected", found=high)
        limit = (1 << 64) - (1 << 64) % high
        words = self.words(n)
        # Words of the last, incomplete block of `high` would make small numbers likelier: they are drawn again.
        while limit < 1 << 64 and (again := np.flatnonzero(words >= np.uint64(limit))).size:
            words = words.copy()
            words[again] = self.words(again.size)
        return (words % np.uint64(high)).astype(np.int64)

    def normal64(self, n: int, std: float) -> Tensor:
        """Return n normal numbers of mean 0, float64 (n,): for a sum that is rounded by :func:`coarse` afterwards.

        Box and Muller 1958: ``sqrt(-2 log u) (cos, sin)(2 pi v)``; with 64 bits in u, the longest is 9.5 std.
        """
        if self.generator is not None:
            return torch.from_numpy(self.generator.standard_normal(n)) * std
        out = torch.empty(n + n % 2, dtype=torch.float64)
        half = len(out) // 2
        for start in range(0, half, _CHUNK):  # pieces that stay in the cache
            stop = min(start + _CHUNK, half)
            u, v = torch.from_numpy(self.uniform(2 * (stop - start))).chunk(2)
            radius = u.log_().mul_(-2).sqrt_().mul_(std)
            angle = v.mul_(2 * math.pi)
            torch.mul(radius, angle.cos(), out=out[start:stop])
            torch.mul(radius, angle.sin_(), out=out[half + start : half + stop])
        return out[:n]

    def normal(self, n: int, std: float) -> Tensor:
        """Return n normal numbers of mean 0 and standard deviation ``std``, float32 (n,); see :meth:`normal64`."""
        return self.normal64(n, std).float()

    def discrete_gaussian(self, n: int, std: float) -> Integers:
        """Return n integers with ``P(x) ~ exp(-x^2 / (2 std^2))``, int64 (n,).

        Exact to 2^-120 in total variation; see :mod:`fedloom.privacy.integer_noise`.

        Raises:
            UsageError: ``std`` is not in 0 .. 2^14.
        """
        return integer_noise.sample(integer_noise.gaussian_table(std), n, self.words)

    def skellam(self, n: int, variance: float) -> Integers:
        """Return n integers that are the difference of two Poisson numbers of mean ``variance / 2`` each, int64 (n,).

        Exact as :meth:`discrete_gaussian` is.

        Raises:
            UsageError: The standard deviation is not in 0 .. 2^14.
        """
        return integer_noise.sample(integer_noise.skellam_table(variance), n, self.words)


def coarse(noisy: Tensor, std: float) -> Tensor:
    """Round ``noisy`` to multiples of a power of two near ``std / 2^16``, so that its last bits say nothing.

    Args:
        noisy: A sum with noise, float64 of any shape.
        std: The noise's standard deviation; 0 leaves the sum as it is.

    Returns:
        float64, the same shape.

    Example:
        >>> coarse(torch.tensor([0.1, 0.25], dtype=torch.float64), std=2.0**15).tolist()
        [0.0, 0.0]
    """
    if not 0 < std < math.inf:
        return noisy
    grid = 2.0 ** (math.floor(math.log2(std)) - GRID_BITS)
    return torch.round(noisy / grid).mul_(grid)


def _unit(words: Words) -> NDArray[np.float64]:
    unit = words.astype(np.float64)
    unit += 0.5
    unit *= 2.0**-64
    return unit


def _stretched(size: int) -> bytes:
    """Return ``size`` bytes: AES-256 in counter mode under a fresh key and counter of the operating system."""
    return _aes_counter()(os.urandom(32), os.urandom(16), size)


def _aes_counter() -> Callable[[bytes, bytes, int], bytes]:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError:
        raise MissingDependency.of("cryptography", "privacy", "noise from the operating system") from None
    return lambda key, counter, size: Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(size))
