"""How near reconstructed pictures are to the originals, each compared with the original that it fits best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLOOR = 1e-12
"""The smallest mean squared error that is told apart from none: 120 dB."""


@dataclass(frozen=True)
class Matched:
    """Originals with their reconstructions.

    Attributes:
        originals: Which original each is, int64 (k,), ascending.
        found: The reconstructions in that order, float64 (k, *shape), within 0 to 1.
        mse: The mean squared error of each, float64 (k,).
    """

    originals: NDArray[np.int64]
    found: Array
    mse: Array

    @property
    def psnr(self) -> Array:
        """The peak signal-to-noise ratio of each in dB."""
        return psnr(self.mse)


def psnr(mse: Array) -> Array:
    """Return ``10 log10(1 / mse)`` in dB for pictures whose full scale is 1; 120 dB at most.

    Example:
        >>> psnr(np.array([0.01, 0.0])).tolist()
        [20.0, 120.0]
    """
    return -10 * np.log10(np.maximum(mse, FLOOR))


def match(originals: Array, found: Array) -> Matched:
    """Pair reconstructions with originals so that the sum of the squared errors is the least (Kuhn 1955).

    Args:
        originals: float (n, *shape), full scale 1.
        found: float (m, *shape); what lies outside 0 to 1 is cut off, what is not a number is 0.

    Returns:
        min(n, m) pairs.
    """
    from scipy.optimize import linear_sum_assignment

    shown = np.clip(np.nan_to_num(found.astype(np.float64)), 0.0, 1.0)
    truth = originals.astype(np.float64)
    a, b = truth.reshape(len(truth), -1), shown.reshape(len(shown), -1)
    errors = np.stack([np.square(b - row).mean(1) for row in a])
    rows, columns = linear_sum_assignment(errors)
    return Matched(rows.astype(np.int64), shown[columns], errors[rows, columns])
