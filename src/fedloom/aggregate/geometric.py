"""The geometric median: the point whose summed distance to the models is smallest.

K. Pillutla, S. Kakade, Z. Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal
Processing 2022 (arXiv 1912.13445, 2019), Algorithm 2, the smoothed Weiszfeld algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fedloom.aggregate.checks import Vectors, check_weights, cohort, positive, whole
from fedloom.aggregate.gram import centred_gram, distances_to
from fedloom.aggregate.mean import combination
from fedloom.aggregate.order import median


def geometric_median(
    vectors: Vectors,
    *,
    weights: Sequence[float] | Tensor | None = None,
    nu: float = 1e-6,
    iterations: int = 1000,
) -> Tensor:
    """Minimise ``sum_i w_i |v - x_i|`` by ``v <- sum_i b_i x_i / sum_i b_i`` with ``b_i = w_i / max(nu, |v - x_i|)``.

    Args:
        vectors: n models, see :data:`~fedloom.aggregate.checks.Vectors`.
        weights: n numbers >= 0; equal when None.
        nu: The smallest distance that counts (a norm); keeps a step that lands on a model finite.
        iterations: The most steps taken; it stops before when no share ``b_i`` changes by more than 1e-12.

    Returns:
        float32 (P,). Unlike the paper, which starts at zero and takes three steps, this starts at the coordinate median
        and goes on to convergence, because a step costs n^2 operations here (see :mod:`fedloom.aggregate.gram`).

    Raises:
        MergeError: See :func:`~fedloom.aggregate.checks.cohort`; or an option is out of range.

    Example:
        >>> import torch
        >>> [round(v) for v in geometric_median(torch.tensor([[0.0], [1.0], [1e6]])).tolist()]
        [1]
    """
    models = cohort(vectors)
    alpha = check_weights(weights, models).numpy()
    nu, iterations = positive("nu", nu), whole("iterations", iterations, 1)
    if models.n == 1:
        return models.rows[0].clone()
    gram = centred_gram(models, median(models))
    shares = np.zeros(models.n)
    for _ in range(iterations):
        pull = alpha / np.maximum(nu, distances_to(gram, shares))
        following = pull / pull.sum()
        settled = np.abs(following - shares).max() <= 1e-12
        shares = following
        if settled:
            break
    return combination(models.rows, shares.tolist())
