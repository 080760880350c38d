"""Rules by order, one coordinate at a time: the median and the trimmed mean.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018, Definitions 1 (coordinate-wise median) and 2 (coordinate-wise trimmed mean).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fedloom.aggregate import sortnet
from fedloom.aggregate.checks import Cohort, Vectors, cohort, whole
from fedloom.aggregate.mean import weighted_mean
from fedloom.aggregate.sortnet import Vector
from fedloom.errors import MergeError

# Up to this many models a network on one thread beats NumPy's sort on two (benchmarks/aggregate_median.py).
NETWORK_LIMIT = 32
# Numbers per operation of a network. One thread works on blocks that fit the cache, which is best for few models. Several
# threads, each with a part of the coordinates, need longer operations: only in the course of one does Python let another
# thread go on.
_NETWORK_BLOCK = 1 << 14
_THREADED_BLOCK = 1 << 17
_FEW = 8
_SORT_BLOCK = 1 << 18


def median(vectors: Vectors) -> Tensor:
    """Take the median of every coordinate; for an even n the mean of the two middle values.

    Args:
        vectors: n models, see :data:`~fedloom.aggregate.checks.Vectors`.

    Returns:
        float32 (P,), bit for bit ``numpy.median(matrix, axis=0)`` for n > 1, with one exception: where the sum of the
        two middle values overflows, NumPy gives infinity, and this their mean.

    Raises:
        MergeError: See :func:`~fedloom.aggregate.checks.cohort`.

    Example:
        >>> median(torch.tensor([[1.0, 9.0], [2.0, -5.0], [300.0, 0.0]])).tolist()
        [2.0, 0.0]
    """
    models = cohort(vectors)
    n = models.n
    if n == 1:
        return models.rows[0].clone()
    return by_order(models, (n - 1) // 2, n // 2, _middle)


def trimmed_mean(vectors: Vectors, *, trim: float = 0.1, k: int | None = None) -> Tensor:
    """Average every coordinate without its k smallest and its k largest values.

    Args:
        vectors: n models, see :data:`~fedloom.aggregate.checks.Vectors`.
        trim: The fraction to leave out on each side (beta in the paper), in [0, 0.5); at least the fraction of bad
            models. It becomes ``k = ceil(trim * n)``, at most ``(n - 1) // 2``: any trim > 0 has an effect from n = 3.
        k: The count to leave out on each side, instead of ``trim``.

    Returns:
        float32 (P,), summed in float64 in ascending order. k = 0 is the mean, the largest k the median.

    Raises:
        MergeError: ``trim`` is outside [0, 0.5), or 2 k >= n; and see :func:`~fedloom.aggregate.checks.cohort`.

    Example:
        >>> trimmed_mean(torch.tensor([[1.0], [2.0], [4.0], [900.0]]), k=1).tolist()
        [3.0]
    """
    models = cohort(vectors)
    n = models.n
    if k is None:
        if not 0 <= trim < 0.5:
            raise MergeError(f"trim = {trim:g}: a fraction in [0, 0.5) is expected", option="trim", found=trim)
        k = min(math.ceil(trim * n - 1e-9), (n - 1) // 2)
    k = whole("k", k)
    if 2 * k >= n:
        raise MergeError(
            f"trimming {k} models on each side needs at least {2 * k + 1} models, {n} given",
            expected=2 * k + 1,
            found=n,
        )
    if k == 0:
        return weighted_mean(models)
    if k == (n - 1) // 2:
        return median(models)
    return by_order(models, k, n - 1 - k, _mean)


def by_order(models: Cohort, first: int, last: int, join: Callable[[list[Vector]], Vector]) -> Tensor:
    """Sort every coordinate's n values and join the ones at ``first`` .. ``last``.

    Args:
        models: The models.
        first: The position of the smallest value wanted, from 0.
        last: The position of the largest.
        join: Takes ``last - first + 1`` vectors of a part of the coordinates, in ascending order, and returns the one
            that stands in the result. It may not change them.

    Returns:
        float32 (P,).
    """
    rows = [row.cpu().numpy() for row in models.rows]
    out = torch.empty(models.size, dtype=torch.float32)
    by = _by_network if models.n <= NETWORK_LIMIT else _by_sorting
    by(rows, first, last, join, out.numpy())
    return out.to(models.rows[0].device)


def _by_network(rows: list[Vector], first: int, last: int, join: Callable[[list[Vector]], Vector], out: Vector) -> None:
    n, size = len(rows), len(out)
    comparators = sortnet.network(n, first, last)
    threads = max(1, min(torch.get_num_threads(), size // _THREADED_BLOCK)) if n > _FEW else 1
    block = _NETWORK_BLOCK if threads == 1 else _THREADED_BLOCK
    part = -(-size // threads)

    def work(begin: int) -> None:
        end = min(begin + part, size)
        scratch = np.empty((n + 1, min(block, end - begin)), dtype=np.float32)
        for start in range(begin, end, block):
            width = min(block, end - start)
            wires = [row[start : start + width] for row in rows]
            wires = sortnet.run(comparators, wires, [s[:width] for s in scratch])
            out[start : start + width] = join(wires[first : last + 1])

    if threads == 1:
        work(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, size, part)))


def _by_sorting(rows: list[Vector], first: int, last: int, join: Callable[[list[Vector]], Vector], out: Vector) -> None:
    n, size = len(rows), len(out)
    width = max(1, _SORT_BLOCK // n)

    def work(start: int) -> None:
        columns = np.ascontiguousarray(np.stack([row[start : start + width] for row in rows]).T)
        columns.sort(axis=1)
        out[start : start + width] = join(list(np.ascontiguousarray(columns[:, first : last + 1].T)))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(work, range(0, size, width)))


def _middle(wires: list[Vector]) -> Vector:
    """Return the one middle value, or the mean of both in float32; adding 0 makes -0 a 0, as NumPy has it."""
    zero, half = np.float32(0), np.float32(0.5)
    if len(wires) == 1:
        return wires[0] + zero
    low, high = wires
    with np.errstate(over="ignore", invalid="ignore"):
        value = low + high
        value += zero
        value *= half
        overflown = not math.isfinite(float(value.sum()))
    return np.where(np.isinf(value), low * half + high * half, value) if overflown else value


def _mean(wires: list[Vector]) -> Vector:
    total = wires[0].astype(np.float64)
    for wire in wires[1:]:
        total += wire
    return (total / len(wires)).astype(np.float32)
