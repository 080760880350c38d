"""Every value is kept with the same probability, by a seed: ``mask`` as it is, ``subsample`` scaled to be right on average.

J. Konečný et al., "Federated Learning: Strategies for Improving Communication Efficiency", 2016: ``mask`` is the random
mask of its structured updates (section 2; there the training itself stays inside the mask, here the finished update is
cut to it), ``subsample`` the subsampling of its sketched updates (section 3), where the kept values are divided by the
probability so that the mean over clients is unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedloom.compress.base import Floats, Reader, Restore, Traits
from fedloom.compress.bits import energy, halves, new_seed
from fedloom.compress.options import share
from fedloom.errors import DataError
from fedloom.layout import Layout


@dataclass(frozen=True)
class Mask:
    """A random subset, each value with the same probability.

    Beside the values: the seed and their number, eight bytes each. The number has to be one that chance could have
    drawn, within twelve standard deviations, so that nobody can ask for a long vector with a few bytes.

    Attributes:
        kept: The probability, a multiple of 2^-32.
        scaled: Whether kept values are divided by it.
    """

    kept: float
    scaled: bool

    @property
    def spec(self) -> str:
        """Its name and options."""
        return f"{'subsample' if self.scaled else 'mask'}:{self.kept!r}"

    @property
    def _threshold(self) -> int:
        return max(1, round(self.kept * 2**32))

    @property
    def _probability(self) -> float:
        return self._threshold / 2**32

    def traits(self, n: int) -> Traits:  # noqa: ARG002 - the same for every length
        """See :class:`fedloom.compress.base.Transform`."""
        gain = 1 / self._probability if self.scaled else 1.0
        certain = self._probability == 1
        return Traits(unbiased=self.scaled or certain, random=True, orthogonal=not self.scaled or certain, gain=gain)

    def most(self, n: int) -> tuple[int, int]:
        """Return sixteen bytes, and n."""
        return 16, n

    def forward(self, x: Floats, chance: np.random.Generator) -> tuple[Floats, bytes]:
        """Keep those that a seed draws."""
        seed = new_seed(chance)
        values = x[self._mask(seed, len(x))]
        if self.scaled:
            values /= np.float32(self._probability)
        return values, seed.to_bytes(8, "little") + len(values).to_bytes(8, "little")

    def opened(self, source: Reader, n: int) -> tuple[int, Restore]:
        """Read the seed and the number of values."""
        seed, m = source.number(), source.number()
        p = self._probability
        if m > n or abs(m - n * p) > 12 * math.sqrt(n * p * (1 - p)) + 36:
            raise DataError(f"an encoded update is damaged: {m} of {n} values cannot be a share of {p:g}", found=m)
        return m, lambda values: self._scattered(values, seed, n)

    def _scattered(self, values: Floats, seed: int, n: int) -> Floats:
        mask = self._mask(seed, n)
        if int(np.count_nonzero(mask)) != len(values):
            raise DataError("an encoded update is damaged: its seed draws another number of values", found=len(values))
        found = np.zeros(n, np.float32)
        found[mask] = values
        return found

    def _mask(self, seed: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.asarray(halves(seed, n) <= np.uint32(self._threshold - 1))

    def error(self, x: Floats) -> float:
        """Return the expected squared error, exactly."""
        return self.share(len(x)) * energy(x)

    def share(self, n: int) -> float:  # noqa: ARG002
        """Return 1 - p for a mask, 1/p - 1 for a scaled subsample."""
        p = self._probability
        return 1 / p - 1 if self.scaled else 1 - p


def make_mask(values: Mapping[str, str], layout: Layout | None) -> Mask:  # noqa: ARG001 - one form for all makers
    """Read the stage's options."""
    return Mask(share("mask", "share", values["share"]), scaled=False)


def make_subsample(values: Mapping[str, str], layout: Layout | None) -> Mask:  # noqa: ARG001
    """Read the stage's options."""
    return Mask(share("subsample", "share", values["share"]), scaled=True)
