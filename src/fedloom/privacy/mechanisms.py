"""Mechanisms: what hides a client in the sum, as frozen data that own their arithmetic and what they promise.

Each clips, adds noise, and says which event (:mod:`fedloom.privacy.events`) that was; the ledger makes epsilon of it.
What a mechanism needs of a run's other settings is in :mod:`fedloom.privacy.conflicts`. All work on the trainable head
of a vector, and all divide by the *expected* number of clients: dividing by the actual number would tell how many came.

Trust: :class:`Gaussian`, :class:`~fedloom.privacy.adaptive.AdaptiveClip` and :class:`~fedloom.privacy.tree.TreeNoise`
ask the server to add the noise and to forget what it saw; :class:`~fedloom.privacy.discrete.DistributedGaussian` and
:class:`~fedloom.privacy.discrete.Skellam` let the clients add it in shares, so that under secure aggregation the server
never sees a sum without noise; :class:`LocalGaussian` asks for no trust at all, and takes the most noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fedloom.errors import UsageError
from fedloom.privacy.clipping import Clipped, clip
from fedloom.privacy.events import Local, Release, Sampling
from fedloom.privacy.randomness import Randomness, coarse


@dataclass(frozen=True)
class _Normal:
    """Normal noise as long as the clipping bound asks for."""

    clip: float
    multiplier: float

    def __post_init__(self) -> None:
        """Raise UsageError for numbers out of range."""
        check(self.clip, self.multiplier)

    @property
    def std(self) -> float:
        """The standard deviation of the noise on every number."""
        return self.multiplier * self.clip if self.multiplier else 0.0


@dataclass(frozen=True)
class Gaussian(_Normal):
    """DP-FedAvg: clip every update to ``clip``, put noise of ``multiplier * clip`` on the sum, divide by a fixed number.

    McMahan, Ramage, Talwar, Zhang 2018, "Learning Differentially Private Recurrent Language Models", Algorithm 1, the
    estimator with a fixed denominator.

    Attributes:
        clip: C, the longest update's L2 norm, > 0; infinity only without noise.
        multiplier: z, the noise's standard deviation / C, >= 0.

    Example:
        >>> import torch
        >>> plain = Gaussian(clip=1.0, multiplier=0.0)
        >>> plain.mean(torch.tensor([2.0, 4.0]), cohort=2, randomness=Randomness.of(0)).tolist()
        [1.0, 2.0]
    """

    def clipped(self, vector: Tensor, head: int | None = None) -> Clipped:
        """Return a client's update with a head of norm at most C."""
        return clip(vector, self.clip, head)

    def release(self, total: Tensor, randomness: Randomness) -> Tensor:
        """Put noise on the sum of clipped heads.

        The noise is added in float64, and the noisy sum rounded to a coarse grid (:func:`coarse`).

        Args:
            total: Sum of clipped heads, float32 or float64 (T,).
            randomness: Where the noise comes from.

        Returns:
            float32 (T,).
        """
        return noisy(total, self.std, randomness)

    def mean(self, total: Tensor, cohort: float, randomness: Randomness) -> Tensor:
        """Return the noisy sum divided by ``cohort``, the expected number of clients, float32 (T,)."""
        return self.release(total, randomness) / expected(cohort)

    def event(self, sampling: Sampling) -> Release:
        """Return what a round was, for the ledger."""
        return Release(self.multiplier, sampling)


@dataclass(frozen=True)
class LocalGaussian(_Normal):
    """Every client puts noise on its own clipped update before it sends it (local DP).

    A turn is a Gaussian mechanism of multiplier z / 2: any two updates of norm C are at most 2 C apart. Whoever collects
    n such updates has a sum with noise of ``sqrt(n) z C``: to those who see only the sum, it is :meth:`central`.

    Attributes:
        clip: C, the longest update's L2 norm, > 0.
        multiplier: z, the standard deviation of each client's noise / C, >= 0.
    """

    def protect(self, vector: Tensor, randomness: Randomness, head: int | None = None) -> Clipped:
        """Clip the head of a client's update and put noise on it.

        Args:
            vector: float32 (P,).
            randomness: The client's own.
            head: The length of the trainable head; all of the vector when None. The rest is **not** protected: what is
                left of it must not be sent.

        Returns:
            The update with noise; ``norm`` and ``clipped`` are the client's secret.
        """
        size = len(vector) if head is None else head
        short = clip(vector, self.clip, size)
        sent = short.vector.clone()
        sent[:size] = noisy(short.vector[:size], self.std, randomness)
        return Clipped(sent, short.norm, short.clipped, short.finite)

    def event(self) -> Local:
        """Return what a client's turn was, for the ledger."""
        return Local(self.multiplier)

    def central(self, clients: int) -> Release:
        """Return what the sum of ``clients`` such updates was to those who see nothing but the sum."""
        return Release(self.multiplier * math.sqrt(clients))


def noisy(total: Tensor, std: float, randomness: Randomness) -> Tensor:
    """Return ``total`` with normal noise, added in float64 and rounded to a coarse grid, float32 of the same shape."""
    if std == 0:
        return total.float()
    noise = randomness.normal64(total.numel(), std).view(total.shape)
    return coarse(noise.add_(total), std).float()


def expected(cohort: float) -> float:
    """Return the fixed denominator.

    Raises:
        UsageError: It is not above 0.
    """
    if not 0 < cohort < math.inf:
        raise UsageError(f"a mean over {cohort:g} expected clients: a number above 0 is expected", found=cohort)
    return cohort


def check(bound: float, multiplier: float) -> None:
    """Check a clipping bound and a noise multiplier.

    Raises:
        UsageError: One is out of range, or the bound is infinite and noise is wanted.
    """
    if math.isnan(bound) or bound <= 0:
        raise UsageError(f"the clipping bound is {bound:g}: a norm above 0 is expected", found=bound)
    if not 0 <= multiplier < math.inf:
        raise UsageError(f"the noise multiplier is {multiplier:g}: a number from 0 is expected", found=multiplier)
    if multiplier and math.isinf(bound):
        raise UsageError("noise is measured by the clipping bound: an infinite bound needs a noise multiplier of 0")
