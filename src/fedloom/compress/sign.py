"""One bit a value: its sign, and one size for a whole bucket.

J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: Compressed Optimisation for Non-Convex Problems",
ICML 2018: clients send signs and the server goes with the majority. The sum of the signs *is* the vote: its own sign is
what most clients said, and :func:`majority` takes it. S. P. Karimireddy et al., "Error Feedback Fixes SignSGD and other
Gradient Compression Schemes", ICML 2019, section 3: times the mean size ``||x||_1 / d`` it is the nearest such vector,
with the squared error ``||x||^2 - ||x||_1^2 / d``; with error feedback a plain mean of these converges, and no vote is
needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedloom.compress.base import Floats
from fedloom.compress.bits import energy, rows
from fedloom.compress.options import whole
from fedloom.layout import Layout


@dataclass(frozen=True)
class Sign:
    """Signs as bits (1 is negative; 0 counts as positive), the buckets' mean sizes in front as float32.

    Attributes:
        bucket: How many values share a size.
    """

    bucket: int = 1024
    unbiased: bool = False

    @property
    def spec(self) -> str:
        """Its name and options."""
        return f"sign:{self.bucket}"

    def length(self, m: int) -> int:
        """Return four bytes per bucket, and a bit per value."""
        return 4 * -(-m // self.bucket) + -(-m // 8)

    def encode(self, values: Floats, chance: np.random.Generator) -> bytes:  # noqa: ARG002
        """Return sizes and signs; there is no chance in it."""
        sizes = [self._sizes(part).astype("<f4").tobytes() for part in rows(values, self.bucket)]
        return b"".join([*sizes, np.packbits(values < 0, bitorder="little").tobytes()])

    def decode(self, data: memoryview, m: int) -> Floats:
        """Return the values."""
        count = -(-m // self.bucket)
        sizes = np.frombuffer(data, "<f4", count).astype(np.float32)
        bits = np.unpackbits(np.frombuffer(data[4 * count :], np.uint8), count=m, bitorder="little")
        values: Floats = (1 - 2 * bits.view(np.int8)).astype(np.float32)
        at = 0
        for part in rows(values, self.bucket):
            part *= sizes[at : at + len(part), None]
            at += len(part)
        return values

    def _sizes(self, part: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.asarray(np.abs(part).sum(axis=1, dtype=np.float64) / part.shape[1])

    def error(self, values: Floats) -> float:
        """Return the squared error, exactly but for float32's rounding."""
        sent = 0.0
        for part in rows(values, self.bucket):
            sent += float((self._sizes(part) ** 2).sum()) * part.shape[1]
        whole_energy = energy(values)
        return max(0.0, whole_energy - sent) + 1e-6 * whole_energy

    def share(self, m: int, flat: int) -> float:  # noqa: ARG002 - holds with and without a rotation
        """Return 1 - 1/d for buckets of d values: at worst one value is all there is."""
        return 1 - 1 / min(self.bucket, m) + 1e-6


def majority(vectors: Tensor) -> Tensor:
    """Go with the majority: per coordinate the sign that most clients sent, times the mean size of all that was sent.

    Args:
        vectors: Decoded updates, float32 (clients, n); one row may not count more than another.

    Returns:
        float32 (n,); 0 where the votes are equal.

    Source: Bernstein et al. 2018, algorithm 3, where the size is the learning rate.

    Example:
        >>> import torch
        >>> majority(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-4.0, -1.0]])).tolist()
        [1.5, -1.5]
    """
    return vectors.sign().sum(dim=0).sign() * vectors.abs().mean()


def make(values: Mapping[str, str], layout: Layout | None) -> Sign:  # noqa: ARG001 - one form for all makers
    """Read the stage's options."""
    return Sign(whole("sign", "bucket", values["bucket"], 1, 2**24))
