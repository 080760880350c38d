"""Inner products between models: all that distances, Weiszfeld's steps and clipping need to know of P numbers.

Every point that those rules visit is ``centre + sum_i c_i (x_i - centre)``. Its distances to the models follow from the
(n, n) Gram matrix of ``x_i - centre``, so their iterations cost n^2 instead of n P, and the models are read once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedloom.aggregate.checks import Cohort

_BLOCK = 8192


def centred_gram(models: Cohort, centre: Tensor) -> NDArray[np.float64]:
    """Return ``G[i, j] = <x_i - centre, x_j - centre>``, float64 (n, n); ``centre`` is float32 (P,)."""
    rows, middle = [row.cpu().numpy() for row in models.rows], centre.cpu().numpy()
    gram = np.zeros((models.n, models.n))
    block = np.empty((models.n, _BLOCK))
    for start in range(0, models.size, _BLOCK):
        where = slice(start, start + _BLOCK)
        part = block[:, : min(_BLOCK, models.size - start)]
        for row, out in zip(rows, part, strict=True):
            np.subtract(row[where], middle[where], out=out, dtype=np.float64)
        gram += part @ part.T
    return (gram + gram.T) / 2


def squared_distances(models: Cohort, centre: Tensor) -> NDArray[np.float64]:
    """Return ``|x_i - x_j|^2``, float64 (n, n); a ``centre`` among the models keeps the digits."""
    gram = centred_gram(models, centre)
    squares = np.diag(gram)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def distances_to(gram: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``|x_i - v|`` for ``v = centre + sum_j c_j (x_j - centre)``: float64 (n,)."""
    squares = np.diag(gram) - 2 * gram @ c + c @ gram @ c
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))
