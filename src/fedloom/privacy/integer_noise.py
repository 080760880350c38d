"""Integers with an exact distribution: the discrete Gaussian and the Skellam distribution, by inversion in integers.

A table holds, for every magnitude k, the chance that the number is at most k in magnitude, as a whole number of
2^-128. 64 random bits choose the magnitude by binary search in the upper halves; where they equal an upper half (about
once in 2^64 / table length), 64 more decide. Another bit is the sign. No float is compared with a float anywhere. What
is neglected, the tail and the rounding of the table, is less than 2^-120 in total variation; the chances themselves
come from recurrences with 60 to 90 decimal digits.

Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy", Algorithm 3, samples by rejection with
rational coins, without any error; inversion is as good but for 2^-120, and draws a million numbers in a fraction of
a second. The Skellam distribution (the difference of two Poisson numbers) is Agarwal, Kairouz, Liu 2021, "The Skellam
Mechanism for Differentially Private Federated Learning".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from fedloom.errors import UsageError

MAX_STD = 2.0**14
"""A grid finer than the noise by this factor gains nothing, and tables stay small."""
_WORD = 64
_GUIDE = 16
_DIGITS = 90
_FIXED = 256


@dataclass(frozen=True)
class Table:
    """The distribution of a magnitude.

    Attributes:
        upper: The upper 64 bits of P(at most k), uint64 (K,), k = 0 .. K - 1, in whole 2^-128.
        lower: The lower 64 bits, uint64 (K,).
    """

    upper: NDArray[np.uint64]
    lower: NDArray[np.uint64]

    @cached_property
    def guide(self) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """What the first 16 bits tell: how many entries lie below all that begins so, and whether others begin so, too."""
        begin = np.arange(1 << _GUIDE, dtype=np.uint64) << np.uint64(_WORD - _GUIDE)
        end = begin + np.uint64((1 << (_WORD - _GUIDE)) - 1)
        below = np.searchsorted(self.upper, begin, side="left").astype(np.int32)
        return below, np.searchsorted(self.upper, end, side="right") > below


def sample(table: Table, n: int, words: Callable[[int], NDArray[np.uint64]]) -> NDArray[np.int64]:
    """Draw n integers, int64 (n,), with the random 64-bit words of ``words(count)``."""
    drawn = words(n)
    below, divided = table.guide
    begin = (drawn >> np.uint64(_WORD - _GUIDE)).astype(np.int32)
    magnitude = below[begin].astype(np.int64)
    open_places = np.flatnonzero(divided[begin])
    left = drawn[open_places]
    # A number of magnitude k is drawn where k of the table's entries are at most the random ones.
    found = np.searchsorted(table.upper, left, side="right")
    for place in np.flatnonzero((found > 0) & (table.upper[np.maximum(found - 1, 0)] == left)).tolist():
        found[place] = _decided(table, left[place], words(1)[0])
    magnitude[open_places] = found
    signs = np.unpackbits(np.ascontiguousarray(words((n + 63) // 64)).view(np.uint8), count=n)
    return np.where(signs, -magnitude, magnitude)


def _decided(table: Table, upper: np.uint64, lower: np.uint64) -> int:
    first = int(np.searchsorted(table.upper, upper, side="left"))
    last = int(np.searchsorted(table.upper, upper, side="right"))
    return min(first + int(np.searchsorted(table.lower[first:last], lower, side="right")), len(table.upper) - 1)


@lru_cache(maxsize=4)
def gaussian_table(std: float) -> Table:
    """Return the table of the discrete Gaussian with parameter ``std``; its cost is about 1 microsecond * 13 std.

    Raises:
        UsageError: ``std`` is not in 0 .. 2^14.
    """
    _check(std)
    if std == 0:
        return _table([1 << _FIXED])
    one = 1 << _FIXED
    with localcontext(Context(prec=_DIGITS)):
        inverse = 1 / (Decimal(std) * Decimal(std))
        ratio = int((-inverse / 2).exp() * one)  # weight(1) / weight(0)
        step = int((-inverse).exp() * one)  # of the ratio, from one k to the next
    weights = [one]
    while weights[-1] * ratio >> _FIXED > one >> 140:
        weights.append(weights[-1] * ratio >> _FIXED)
        ratio = ratio * step >> _FIXED
    return _table(weights)


@lru_cache(maxsize=4)
def skellam_table(variance: float) -> Table:
    """Return the table of the symmetric Skellam distribution: ``P(k) = exp(-variance) I_|k|(variance)``.

    The Bessel functions come from their backward recurrence ``I_(k-1) = I_(k+1) + 2k / variance I_k`` (Miller), which
    is stable, since all its terms are positive; their common factor falls out when the chances are made to sum to one.

    Raises:
        UsageError: The standard deviation is not in 0 .. 2^14.
    """
    if math.isnan(variance) or variance < 0:
        raise UsageError(f"the variance of Skellam noise is {variance:g}: a number from 0 is expected", found=variance)
    _check(math.sqrt(variance))
    if variance == 0:
        return _table([1 << _FIXED])
    last = _reach(variance)
    with localcontext(Context(prec=60)):
        factor, above, here = 2 / Decimal(variance), Decimal(0), Decimal(1)
        bessel = [here]
        for k in range(last, 0, -1):
            above, here = here, above + factor * k * here
            bessel.append(here)
        scale = (1 << _FIXED) / here
        weights = [int(value * scale) for value in reversed(bessel)]
    return _table(weights)


def _reach(variance: float) -> int:
    """Return a magnitude that is passed with a chance below e^-100 (Chernoff's bound)."""
    last = 32
    while last * math.asinh(last / variance) - (math.hypot(last, variance) - variance) < 100:
        last += max(8, last // 8)
    return last


def _table(weights: list[int]) -> Table:
    """Make the table from the weights of 0, 1, 2, ...; those above 0 count twice, for both signs."""
    total = 2 * sum(weights) - weights[0]
    sums = np.cumsum(np.array([weights[0], *(2 * weight for weight in weights[1:])], dtype=object))
    limit = (1 << 128) - 1  # the last entry is 1 itself, which 128 bits do not reach; nothing is drawn beyond it
    chances = [min((int(value) << 128) // total, limit) for value in sums]
    upper = np.array([chance >> _WORD for chance in chances], dtype=np.uint64)
    lower = np.array([chance & ((1 << _WORD) - 1) for chance in chances], dtype=np.uint64)
    return Table(upper, lower)


def _check(std: float) -> None:
    if not 0 <= std <= MAX_STD:
        raise UsageError(
            f"integer noise with a standard deviation of {std:g}: 0 to {MAX_STD:.0f} is expected; choose a coarser scale",
            found=std,
        )
