"""The chance of DP-SGD: which samples make a batch, and the noise on its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedloom.privacy.randomness import Randomness

BLOCK = 1 << 17
"""Pairs of normal numbers that are made at a time."""

COINS = 1 << 20
"""Coins that are thrown at a time."""

_FINE = 2.0**-20
"""Below this a uniform number gets more bits: the tails of the normal distribution are made there."""


def batches(chance: Randomness, n: int, rate: float, steps: int) -> Iterator[Tensor]:
    """Draw Poisson batches: in every step each sample throws its own coin.

    Args:
        chance: Where coins come from.
        n: The number of samples.
        rate: The probability q of each of them to be in a batch, in (0, 1].
        steps: The number of batches.

    Yields:
        The samples of a batch, int64 (B,) in increasing order; B is 0 now and then, and ``q n`` on average.
    """
    at_once = max(1, COINS // max(n, 1))
    for first in range(0, steps, at_once):
        count = min(at_once, steps - first)
        heads = chance.uniform(count * n).reshape(count, n) <= rate
        yield from (torch.from_numpy(np.flatnonzero(row)) for row in heads)


class Normals:
    """Normal numbers by Box and Muller 1958, ``sqrt(-2 log u) (cos, sin)(2 pi v)``, in float32 and with little new memory.

    u and v have 31 random bits each; where u is below 2^-20, 64 more: the tail goes beyond 9 standard deviations. They
    are several times as fast as ``Randomness.normal``, which works in float64.
    """

    def __init__(self) -> None:
        self._pairs, self._wave = torch.empty(0), torch.empty(0)

    def fill(self, out: Tensor, chance: Randomness, std: float) -> Tensor:
        """Fill ``out``, float32 (n,) on the CPU, with numbers of standard deviation ``std``; returns it."""
        half = (len(out) + 1) // 2
        if len(self._wave) < min(half, BLOCK):
            self._pairs, self._wave = torch.empty(2 * min(half, BLOCK)), torch.empty(min(half, BLOCK))
        for first in range(0, half, BLOCK):
            last = min(first + BLOCK, half)
            self._block(out[first:last], out[half + first : half + last], chance, std)
        return out

    def _block(self, out: Tensor, other: Tensor, chance: Randomness, std: float) -> None:
        """Fill two stretches of one length; the second may be shorter by one."""
        count = len(out)
        pairs, wave = self._pairs[: 2 * count], self._wave[:count]
        np.copyto(pairs.numpy(), chance.words(count).view(np.int32), casting="unsafe")
        radius, angle = pairs[:count], pairs[count:]
        if float(radius.mul_(2.0**-31).abs_().min()) < _FINE:
            self._refine(chance, radius)
        radius.log_().mul_(-2.0 * std * std).sqrt_()
        angle.mul_(math.pi * 2.0**-31)
        torch.mul(radius, torch.cos(angle, out=wave), out=out)
        torch.mul(radius[: len(other)], angle.sin_()[: len(other)], out=other)

    def _refine(self, chance: Randomness, unit: Tensor) -> None:
        """Give the smallest of the uniform numbers the bits below their last."""
        small = torch.nonzero(unit < _FINE).flatten()
        below = torch.from_numpy(chance.uniform(len(small)))
        unit[small] = (unit[small].double() + below * 2.0**-31).float()
