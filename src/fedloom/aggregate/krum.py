"""Krum, Multi-Krum and Bulyan: trust the models that have many near neighbours.

P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries: Byzantine Tolerant
Gradient Descent", NIPS 2017 (Krum and Multi-Krum, n >= 2 f + 3).
E. M. El Mhamdi, R. Guerraoui, S. Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018
(Bulyan, n >= 4 f + 3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedloom.aggregate.checks import Cohort, Vectors, cohort, whole
from fedloom.aggregate.gram import squared_distances
from fedloom.aggregate.mean import weighted_mean
from fedloom.aggregate.order import by_order, median
from fedloom.aggregate.sortnet import Vector
from fedloom.errors import MergeError


def krum(vectors: Vectors, *, f: int | None = None) -> Tensor:
    """Return the one model whose summed squared distance to its n - f - 2 nearest others is smallest.

    Args:
        vectors: n models, see :data:`~fedloom.aggregate.checks.Vectors`.
        f: How many models may be bad; the most that n allows, (n - 3) // 2, when None.

    Returns:
        A copy of one row, float32 (P,). Two nearest neighbours often have the same score: then the one nearer to all
        others counts as better, so that the order of the models does not matter.

    Raises:
        MergeError: n < 2 f + 3 (a single model is returned as it is).
            See also :func:`~fedloom.aggregate.checks.cohort`.

    Example:
        >>> import torch
        >>> krum(torch.tensor([[0.0], [1.0], [2.0], [3.5], [1e6]]), f=1).tolist()
        [1.0]
    """
    models = cohort(vectors)
    f = _tolerated("krum", models.n, f, 2)
    return models.rows[_ranked(_distances(models), f)[0]].clone()


def multi_krum(vectors: Vectors, *, f: int | None = None, m: int | None = None) -> Tensor:
    """Average the m models with the best Krum scores.

    Args:
        vectors: n models, see :data:`~fedloom.aggregate.checks.Vectors`.
        f: As in :func:`krum`.
        m: How many to average, 1 .. n; n - f - 2 when None, the largest with a proof (G. Damaskinos et al.,
            "AggregaThor", MLSys 2019).

    Returns:
        float32 (P,); m = 1 is Krum.

    Raises:
        MergeError: As in :func:`krum`, or m is not in 1 .. n.
    """
    models = cohort(vectors)
    f = _tolerated("multi-krum", models.n, f, 2)
    m = max(1, models.n - f - 2) if m is None else whole("m", m, 1)
    if m > models.n:
        raise MergeError(f"m = {m} models are to be averaged, {models.n} given", expected=models.n, found=m)
    return weighted_mean([models.rows[i] for i in sorted(_ranked(_distances(models), f)[:m])])


def krum_scores(vectors: Vectors, *, f: int | None = None) -> NDArray[np.float64]:
    """Return every model's Krum score (a squared norm), float64 (n,); the smallest is the most trusted."""
    models = cohort(vectors)
    return _scores(_distances(models), _tolerated("krum", models.n, f, 2))


def bulyan(vectors: Vectors, *, f: int | None = None) -> Tensor:
    """Select n - 2 f models by repeated Krum, then average per coordinate the n - 4 f values nearest to their median.

    Args:
        vectors: n models, see :data:`~fedloom.aggregate.checks.Vectors`.
        f: How many models may be bad; the most that n allows, (n - 3) // 4, when None.

    Returns:
        float32 (P,); f = 0 is the mean. Late selections have fewer than f + 3 candidates left, where Krum's count of
        neighbours would reach zero: at least one neighbour is always counted.

    Raises:
        MergeError: n < 4 f + 3 (a single model is returned as it is).
            See also :func:`~fedloom.aggregate.checks.cohort`.
    """
    models = cohort(vectors)
    f = _tolerated("bulyan", models.n, f, 4)
    if f == 0:
        return weighted_mean(models)
    chosen = _select(_distances(models), f, models.n - 2 * f)
    selected = Cohort(tuple(models.rows[i] for i in chosen))
    return by_order(selected, 0, selected.n - 1, lambda wires: _nearest(wires, models.n - 4 * f))


def _tolerated(rule: str, n: int, f: int | None, factor: int) -> int:
    """Return f, checked against n >= factor * f + 3; the largest that fits when None."""
    f = max(0, (n - 3) // factor) if f is None else whole("f", f)
    needed = factor * f + 3
    if n < needed and not (n == 1 and f == 0):
        raise MergeError(
            f"{rule} needs at least {needed} models to bear f = {f} bad ones ({factor} f + 3), {n} given",
            expected=needed,
            found=n,
        )
    return f


def _distances(models: Cohort) -> NDArray[np.float64]:
    return squared_distances(models, median(models))


def _scores(distances: NDArray[np.float64], f: int) -> NDArray[np.float64]:
    """Sum each row's n - f - 2 (at least 1) smallest distances to others."""
    n = len(distances)
    others = np.sort(distances, axis=1)[:, 1:]
    return np.asarray(others[:, : max(1, n - f - 2)].sum(axis=1))


def _ranked(distances: NDArray[np.float64], f: int) -> list[int]:
    """Return the rows from the best score to the worst; of equal ones the one nearer to all others first."""
    order: list[int] = np.lexsort((distances.sum(axis=1), _scores(distances, f))).tolist()
    return order


def _select(distances: NDArray[np.float64], f: int, count: int) -> list[int]:
    left = list(range(len(distances)))
    chosen: list[int] = []
    while len(chosen) < count:
        best = left[_ranked(distances[np.ix_(left, left)], f)[0]]
        chosen.append(best)
        left.remove(best)
    return sorted(chosen)


def _nearest(wires: list[Vector], count: int) -> Vector:
    """Average per coordinate the ``count`` values nearest to the median; ``wires`` are sorted, so they are a window."""
    values = np.stack(wires).astype(np.float64)
    n = len(values)
    middle = (values[(n - 1) // 2] + values[n // 2]) / 2
    reach = np.maximum(middle - values[: n - count + 1], values[count - 1 :] - middle)
    first, columns = reach.argmin(axis=0), np.arange(values.shape[1])
    total = sum(values[first + i, columns] for i in range(count))
    return np.asarray(total / count, dtype=np.float32)
