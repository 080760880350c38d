"""The weighted mean, streaming: sums in float64, so the float32 result is off by rounding only.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, Algorithm 1 (FederatedAveraging): ``w = sum_k (n_k / n) w_k``.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from fedloom.aggregate.checks import Vectors, check_vector, check_weight, cohort, raw_weights
from fedloom.errors import MergeError
from fedloom.layout import Layout

_CHUNK = 24 * 1024  # numbers: stays in the cache, and below the size that PyTorch splits over threads
_LARGE = 1 << 20
"""Sums of more numbers are kept where half of their memory can be given back before the other half."""


class StreamingMean:
    """A weighted mean that takes one vector at a time and never holds two.

    Memory: one float64 vector of length P and a small temporary, whatever the number of vectors.

    Args:
        size: P, the length of the vectors.
        device: Where the sum is kept; vectors have to be there too.

    Example:
        >>> mean = StreamingMean(2)
        >>> mean.add(torch.tensor([1.0, 2.0]), weight=3.0)
        >>> mean.add(torch.tensor([5.0, 2.0]), weight=1.0)
        >>> mean.result().tolist()
        [2.0, 2.0]
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self._room: mmap.mmap | None = None
        if size > _LARGE and torch.device(device).type == "cpu" and hasattr(mmap, "MADV_DONTNEED"):
            self._room = mmap.mmap(-1, 8 * size)
            self._room.madvise(getattr(mmap, "MADV_HUGEPAGE", mmap.MADV_NORMAL))
            self._sum = torch.frombuffer(self._room, dtype=torch.float64)
        else:
            self._sum = torch.zeros(size, dtype=torch.float64, device=device)
        self._total = 0.0
        self.count = 0

    def add(
        self, vector: Tensor, weight: float = 1.0, *, name: str | None = None, layout: Layout | None = None
    ) -> None:
        """Add one float32 vector of shape (P,) with a weight >= 0; messages call it ``name``.

        Raises:
            MergeError: The vector does not fit or is not finite, or the weight is not; nothing was added then.
        """
        called = name or f"model {self.count + 1}"
        vector = vector.detach()
        check_vector(vector, self._sum.numel(), called, layout)
        self._add(vector, check_weight(weight, called))

    def _add(self, vector: Tensor, weight: float) -> None:
        accumulate(self._sum, vector, weight)
        self._total += weight
        self.count += 1

    def result(self) -> Tensor:
        """Return the mean of what was added so far: float32 (P,).

        Raises:
            MergeError: Nothing was added, or all weights are zero.
        """
        self._check()
        return _rounded(self._sum, self._total)

    def take(self) -> Tensor:
        """Return what :meth:`result` does, and give up the sum: a large mean takes its place in memory.

        Raises:
            MergeError: As :meth:`result`.
        """
        self._check()
        total, size = self._sum, self._sum.numel()
        self._sum = total[:0]
        if self._room is None:
            return _rounded(total, self._total)
        out = torch.frombuffer(self._room, dtype=torch.float32, count=size)
        for start in range(0, size, _CHUNK):  # what is written lies before all that has still to be read
            where = slice(start, start + _CHUNK)
            out[where] = total[where] / self._total
        end = -(-4 * size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._room.madvise(mmap.MADV_DONTNEED, end, len(self._room) - end)
        return out

    def _check(self) -> None:
        if self.count == 0:
            raise MergeError("nothing to merge: no model was given")
        if self._total == 0:
            raise MergeError(f"the weights of all {self.count} models are zero: at least one has to be positive")


def weighted_mean(vectors: Vectors, *, weights: Sequence[float] | Tensor | None = None) -> Tensor:
    """Average n models: ``sum_i w_i x_i / sum_i w_i``.

    Args:
        vectors: n models, see :data:`~fedloom.aggregate.checks.Vectors`.
        weights: n numbers >= 0, for example the clients' samples; equal when None.

    Returns:
        float32 (P,), bit for bit what :class:`StreamingMean` gives for the same vectors in the same order.

    Raises:
        MergeError: See :func:`~fedloom.aggregate.checks.cohort` and :func:`~fedloom.aggregate.checks.check_weights`.

    Example:
        >>> weighted_mean(torch.tensor([[0.0, 2.0], [4.0, 2.0]]), weights=[3, 1]).tolist()
        [1.0, 2.0]
    """
    models = cohort(vectors)
    mean = StreamingMean(models.size, models.rows[0].device)
    values = [1.0] * models.n if weights is None else raw_weights(weights, models)
    for row, weight in zip(models.rows, values, strict=True):
        mean._add(row, weight)
    return mean.result()


def combination(rows: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return the linear combination ``sum_i c_i x_i`` of float32 vectors (P,), summed in float64: float32 (P,)."""
    total = torch.zeros(rows[0].numel(), dtype=torch.float64, device=rows[0].device)
    for row, coefficient in zip(rows, coefficients, strict=True):
        accumulate(total, row, coefficient)
    return _rounded(total, 1.0)


def accumulate(total: Tensor, vector: Tensor, coefficient: float) -> None:
    """Add ``coefficient * vector`` to the float64 ``total`` in place, through a small temporary."""
    if coefficient == 0:
        return
    for start in range(0, total.numel(), _CHUNK):
        where = slice(start, start + _CHUNK)
        total[where].add_(vector[where].double(), alpha=coefficient)


def _rounded(total: Tensor, divisor: float) -> Tensor:
    out = torch.empty(total.numel(), dtype=torch.float32, device=total.device)
    for start in range(0, total.numel(), _CHUNK):
        where = slice(start, start + _CHUNK)
        out[where] = total[where] / divisor
    return out
