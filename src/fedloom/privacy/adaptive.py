"""Adaptive clipping: the bound follows a quantile of the clients' norms, and what that tells is paid for.

Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially Private Learning with Adaptive Clipping", Algorithm 1. Every
client adds one bit to its update: whether its norm is below the bound. The noisy share b of such clients moves the
bound geometrically::

    C <- C exp(-lr (b - quantile))

The bits, taken as -1/2 and +1/2, have a sensitivity of 1/2, and noise of standard deviation s_b. Together with the
update they are one Gaussian release of multiplier z when the update's own multiplier is (Theorem 1)::

    z_delta = (z^-2 - (2 s_b)^-2)^(-1/2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedloom.errors import UsageError
from fedloom.privacy.mechanisms import Gaussian, check, expected
from fedloom.privacy.randomness import Randomness


@dataclass(frozen=True)
class AdaptiveClip:
    """A bound that follows a quantile.

    Attributes:
        initial: The bound of the first round, > 0; the paper's 0.1.
        quantile: The share of clients whose updates stay as they are, in (0, 1).
        lr: How fast the bound moves, > 0: by a factor of e^(lr / 2) at most when the quantile is 1/2.
        count_multiplier: Noise on the count of bits as a multiple of its sensitivity 1/2; the paper's choice when None:
            a standard deviation of a twentieth of the expected cohort, so a tenth of the cohort here.
    """

    initial: float = 0.1
    quantile: float = 0.5
    lr: float = 0.2
    count_multiplier: float | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for numbers out of range."""
        check(self.initial, 0.0)
        if not math.isfinite(self.initial):
            raise UsageError("an adaptive clipping bound must start from a finite norm: the paper takes 0.1")
        if not 0 < self.quantile < 1:
            raise UsageError(f"the quantile is {self.quantile:g}: a share between 0 and 1 is expected")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"the learning rate of the clipping bound is {self.lr:g}: a number above 0 is expected")
        if self.count_multiplier is not None and not 0 < self.count_multiplier < math.inf:
            raise UsageError(f"the noise multiplier of the count is {self.count_multiplier:g}: it must be above 0")

    def count_std(self, cohort: float) -> float:
        """Return s_b, the standard deviation of the noise on the count, in clients, for an expected cohort."""
        return expected(cohort) / 20 if self.count_multiplier is None else self.count_multiplier / 2

    def split(self, multiplier: float, cohort: float) -> float:
        """Return z_delta, the noise multiplier for updates when bits and updates together have ``multiplier``.

        Raises:
            UsageError: The count's noise alone is too small for that.

        Example:
            >>> round(AdaptiveClip(count_multiplier=10.0).split(1.0, cohort=100), 4)
            1.005
        """
        whole = 2 * self.count_std(cohort)
        if multiplier >= whole:
            raise UsageError(
                f"adaptive clipping: a noise multiplier of {multiplier:g} needs noise on the count of more than that; it is "
                f"{whole:g}: set count_multiplier higher, or take more clients a round",
                expected=multiplier,
                found=whole,
            )
        return multiplier if multiplier == 0 else (multiplier**-2 - whole**-2) ** -0.5

    def mechanism(self, bound: float, multiplier: float, cohort: float) -> Gaussian:
        """Return a round's mechanism for updates: clipped to ``bound``, with noise of ``z_delta * bound``.

        Its event for the ledger is that of ``multiplier``, the release of bits and updates together.
        """
        return Gaussian(bound, self.split(multiplier, cohort))

    def update(
        self, bound: float, below: int, clients: int, cohort: float, randomness: Randomness, *, private: bool = True
    ) -> float:
        """Return the next round's bound.

        Args:
            bound: This round's.
            below: How many clients' norms were at most ``bound``.
            clients: How many clients there were.
            cohort: How many were expected: the fixed denominator.
            randomness: Where the count's noise comes from.
            private: Whether the count gets noise; a run without noise needs none.

        Returns:
            ``bound * exp(-lr (b - quantile))``, b the noisy share.
        """
        noise = float(randomness.normal64(1, self.count_std(cohort))) if private else 0.0
        share = 0.5 + (below - clients / 2 + noise) / expected(cohort)
        return bound * math.exp(-self.lr * (share - self.quantile))
