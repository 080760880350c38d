"""Rules that bound how far one model can pull: norm bounding and centered clipping.

Z. Sun, P. Kairouz, A. T. Suresh, H. B. McMahan, "Can You Really Backdoor Federated Learning?", 2019, arXiv 1911.07963
(norm thresholding).
S. P. Karimireddy, L. He, M. Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021
(centered clipping).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedloom.aggregate.checks import Cohort, Vectors, check_vector, check_weights, cohort, positive, whole
from fedloom.aggregate.gram import centred_gram, distances_to
from fedloom.aggregate.mean import combination
from fedloom.aggregate.order import median


def norm_bounding(
    vectors: Vectors,
    *,
    weights: Sequence[float] | Tensor | None = None,
    centre: Tensor | None = None,
    bound: float | None = None,
) -> Tensor:
    """Average the updates after shortening the long ones: ``c + sum_i w_i (x_i - c) min(1, bound / |x_i - c|)``.

    Args:
        vectors: n models, see :data:`~fedloom.aggregate.checks.Vectors`.
        weights: n numbers >= 0; equal when None.
        centre: Where the updates start, float32 (P,): the previous model; the coordinate median when None.
        bound: The longest update that counts in full (a norm); the median of their norms when None.

    Returns:
        float32 (P,). With a bound that no update reaches it is the weighted mean.

    Raises:
        MergeError: See :func:`~fedloom.aggregate.checks.cohort`; the centre does not fit, or the bound is not > 0.
    """
    models = cohort(vectors)
    alpha = check_weights(weights, models).numpy()
    middle = _centre(models, centre)
    norms = np.sqrt(np.diag(centred_gram(models, middle)))
    limit = float(np.median(norms)) if bound is None else positive("bound", bound)
    return _from_centre(models, middle, alpha * _factors(norms, limit))


def centered_clipping(
    vectors: Vectors, *, centre: Tensor | None = None, tau: float | None = None, iterations: int = 5
) -> Tensor:
    """Repeat ``v <- v + (1/n) sum_i (x_i - v) min(1, tau / |x_i - v|)`` from the centre.

    Args:
        vectors: n models, see :data:`~fedloom.aggregate.checks.Vectors`.
        centre: The first v, float32 (P,): the previous model; the coordinate median when None.
        tau: The clipping radius (a norm); the median of the first ``|x_i - v|`` when None.
        iterations: How many times. The paper takes one per round of a long training; a single merge wants a few.

    Returns:
        float32 (P,).

    Raises:
        MergeError: See :func:`~fedloom.aggregate.checks.cohort`; the centre does not fit, or an option is out of range.
    """
    models = cohort(vectors)
    iterations = whole("iterations", iterations, 1)
    middle = _centre(models, centre)
    gram = centred_gram(models, middle)
    shares = np.zeros(models.n)
    limit = float(np.median(distances_to(gram, shares))) if tau is None else positive("tau", tau)
    for _ in range(iterations):
        factors = _factors(distances_to(gram, shares), limit)
        shares = shares + (factors - factors.sum() * shares) / models.n
    return _from_centre(models, middle, shares)


def _centre(models: Cohort, centre: Tensor | None) -> Tensor:
    if centre is None:
        return median(models)
    check_vector(centre, models.size, "the centre", models.layout)
    return centre.detach()


def _factors(norms: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Return ``min(1, limit / norm)``, 1 for a norm of zero."""
    return np.where(norms > limit, limit / np.where(norms > 0, norms, 1.0), 1.0)


def _from_centre(models: Cohort, centre: Tensor, shares: NDArray[np.float64]) -> Tensor:
    """Return ``centre + sum_i shares_i (x_i - centre)``."""
    rest = 1.0 - float(shares.sum())
    # Shares that sum to one but for rounding leave nothing of the centre.
    rest = 0.0 if abs(rest) < 1e-14 * models.n else rest
    return combination([*models.rows, centre], [*shares.tolist(), rest])
