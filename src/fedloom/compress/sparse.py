"""Only k of the values are sent: the largest ones, or any.

``topk`` names the positions in bytes (:mod:`fedloom.compress.indices`), ``randomk`` only the seed that drew them. Both
leave the values as they are, and so are wrong in one direction: what is not sent is sent later, by error feedback,
without which top-k of 1 % learns next to nothing.

S. U. Stich, J.-B. Cordonnier, M. Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, definition 2.1 (both are
k-contractions: the squared error is at most (1 - k/n) of the squared norm); A. F. Aji, K. Heafield, "Sparse Communication
for Distributed Gradient Descent", EMNLP 2017 (top-k). The unbiased relative of ``randomk`` is ``subsample``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedloom.compress import indices
from fedloom.compress.base import Floats, Reader, Restore, Traits
from fedloom.compress.bits import energy, halves, new_seed
from fedloom.compress.options import Portion, portion
from fedloom.layout import Layout


@dataclass(frozen=True)
class TopK:
    """The k values that are largest in size; of equal ones the first.

    Attributes:
        kept: How many.
    """

    kept: Portion

    @property
    def spec(self) -> str:
        """Its name and options."""
        return f"topk:{self.kept}"

    def traits(self, n: int) -> Traits:
        """See :class:`fedloom.compress.base.Transform`."""
        return Traits(unbiased=self.kept.of(n) == n, orthogonal=True)

    def most(self, n: int) -> tuple[int, int]:
        """Return the bytes of the positions, and k."""
        k = self.kept.of(n)
        return indices.length(n, k), k

    def forward(self, x: Floats, chance: np.random.Generator) -> tuple[Floats, bytes]:  # noqa: ARG002
        """Keep the largest; there is no chance in it."""
        positions = indices.largest(np.abs(x), self.kept.of(len(x)))
        return x[positions], indices.write(positions, len(x))

    def opened(self, source: Reader, n: int) -> tuple[int, Restore]:
        """Read the positions."""
        k = self.kept.of(n)
        held = Reader(source.take(indices.length(n, k)))
        return k, lambda values: _scattered(values, indices.read(held, n, k), n)

    def error(self, x: Floats) -> float:
        """Return the squared norm of what is left out, exactly."""
        kept = x[indices.largest(np.abs(x), self.kept.of(len(x)))]
        return max(0.0, energy(x) - energy(kept))

    def share(self, n: int) -> float:
        """Return 1 - k/n."""
        return 1 - self.kept.of(n) / n


@dataclass(frozen=True)
class RandomK:
    """Any k values, all subsets equally likely; the seed that drew them stands for their positions.

    Attributes:
        kept: How many.
    """

    kept: Portion

    @property
    def spec(self) -> str:
        """Its name and options."""
        return f"randomk:{self.kept}"

    def traits(self, n: int) -> Traits:
        """See :class:`fedloom.compress.base.Transform`."""
        return Traits(unbiased=self.kept.of(n) == n, random=True, orthogonal=True)

    def most(self, n: int) -> tuple[int, int]:
        """Return eight bytes, and k."""
        return 8, self.kept.of(n)

    def forward(self, x: Floats, chance: np.random.Generator) -> tuple[Floats, bytes]:
        """Keep those that a seed draws: every position gets a random number, and the k largest win."""
        seed = new_seed(chance)
        return x[indices.largest(halves(seed, len(x)), self.kept.of(len(x)))], seed.to_bytes(8, "little")

    def opened(self, source: Reader, n: int) -> tuple[int, Restore]:
        """Read the seed."""
        seed, k = source.number(), self.kept.of(n)
        return k, lambda values: _scattered(values, indices.largest(halves(seed, n), k), n)

    def error(self, x: Floats) -> float:
        """Return (1 - k/n) of the squared norm, which is what is left out on average."""
        return self.share(len(x)) * energy(x)

    def share(self, n: int) -> float:
        """Return 1 - k/n."""
        return 1 - self.kept.of(n) / n


def _scattered(values: Floats, positions: indices.Positions, n: int) -> Floats:
    found = np.zeros(n, np.float32)
    found[positions] = values
    return found


def make_topk(values: Mapping[str, str], layout: Layout | None) -> TopK:  # noqa: ARG001 - one form for all makers
    """Read the stage's options."""
    return TopK(portion("topk", "kept", values["kept"]))


def make_randomk(values: Mapping[str, str], layout: Layout | None) -> RandomK:  # noqa: ARG001
    """Read the stage's options."""
    return RandomK(portion("randomk", "kept", values["kept"]))
