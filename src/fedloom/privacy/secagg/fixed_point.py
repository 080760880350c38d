"""Vectors as whole numbers modulo 2^bits, so that their sum is exact and can be masked.

A client's entry x of weight times vector becomes the whole number nearest to ``scale * x``; negative ones wrap around.
The scale is the largest power of two with which the sum of all clients cannot leave the range -2^(bits-1) ..
2^(bits-1) - 1. The weight travels as one more entry, so that the server divides by a total weight that it learns, and
learns no single one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedloom.errors import MergeError, UsageError
from fedloom.privacy.secagg.packing import Integers, dtype, lowest

_EXACT = 44  # bits of the largest number: far below float64's 53, so that the product's own rounding does not count


@dataclass(frozen=True)
class Mean:
    """What the server learns.

    Attributes:
        mean: The weighted mean, (P,) float32.
        total: The weighted sum, (P,) float64.
        weight: The total weight.
    """

    mean: NDArray[np.float32]
    total: NDArray[np.float64]
    weight: float


@dataclass(frozen=True)
class FixedPoint:
    """How vectors become whole numbers.

    Attributes:
        clients: The largest number of clients in a sum.
        bound: The largest absolute value of an entry of weight times vector, in the vector's unit; noise that is added
            in shares counts.
        heaviest: The largest weight of a client.
        bits: Sums are modulo 2^bits, 2-64.

    Raises:
        UsageError: A value is out of its range, or the bits are too few for so many clients.

    Example:
        >>> code = FixedPoint(clients=10, bound=1.0)
        >>> a, b = (code.encode(np.array([x, -0.5], dtype=np.float32)) for x in (0.25, 0.75))
        >>> code.decode(plain_sum([a, b], code.bits)).mean
        array([ 0.5, -0.5], dtype=float32)
    """

    clients: int
    bound: float
    heaviest: float = 1.0
    bits: int = 32

    def __post_init__(self) -> None:
        if self.clients < 1 or not 2 <= self.bits <= 64:
            raise UsageError(f"fixed point needs 1 client or more and 2-64 bits; found {self.clients} and {self.bits}")
        for name, value in (("bound", self.bound), ("heaviest weight", self.heaviest)):
            if not 2.0**-126 <= value <= 2.0**126:
                raise UsageError(f"fixed point: the {name} is {value:g}; it has to be from 2^-126 to 2^126")
        if self.limit < 1:
            raise UsageError(f"fixed point: {self.bits} bits are too few for a sum of {self.clients} clients")

    @property
    def limit(self) -> int:
        """The largest absolute value of one client's whole number."""
        return ((1 << (self.bits - 1)) - 1) // self.clients

    @cached_property
    def scale(self) -> float:
        """The whole numbers per unit of the vector, a power of two."""
        return _scale(self.bound, self.limit)

    @cached_property
    def weight_scale(self) -> float:
        """The whole numbers per unit of weight, a power of two; whole weights are exact where it is 1 or more."""
        return _scale(self.heaviest, self.limit)

    def error(self, weight: float, clients: int | None = None, *, whole: bool = False) -> float:
        """Bound the error of an entry of the mean.

        Each client rounds its entry by at most half a step of 1 / scale, and its weight by half a step of
        1 / weight_scale; entries of the mean are at most ``clients * bound / weight``.

        Args:
            weight: The total weight, as decoded.
            clients: How many are in the sum; the largest number by default.
            whole: All weights are whole numbers; then they are exact where ``weight_scale`` is 1 or more.

        Returns:
            The largest error, in the vector's unit; float32's own rounding of the mean (2^-24 of it) comes on top.
        """
        n = self.clients if clients is None else clients
        half = 0.5 * n * (1 + 2.0**-8)
        weight_error = 0.0 if whole and self.weight_scale >= 1 else half / self.weight_scale
        least = weight - weight_error
        if least <= 0:
            return math.inf
        return half / self.scale / least + n * self.bound / weight * weight_error / least

    def encode(
        self,
        vector: NDArray[np.float32],
        weight: float = 1.0,
        *,
        client: str = "",
        noise: NDArray[np.int64] | None = None,
    ) -> Integers:
        """Turn a client's vector and weight into whole numbers.

        Args:
            vector: (P,) float32.
            weight: Above 0, up to the heaviest.
            client: Its name, for errors.
            noise: Whole numbers (P,) that are added after rounding, in units of 1 / scale.

        Returns:
            (P + 1,) numbers below 2^bits, uint32 or uint64; the last one is the weight.

        Raises:
            UsageError: A value is not finite or out of range; nothing is ever cut off or wrapped.
        """
        who = f"client {client}: " if client else ""
        if not 0 <= weight <= self.heaviest:
            raise UsageError(f"{who}the weight {weight:g} is outside 0 to {self.heaviest:g}", client=client)
        values = np.multiply(vector, weight, dtype=np.float64)
        self._check(values, self.bound, who, client)
        values *= self.scale
        np.rint(values, out=values)
        whole = np.empty(values.size + 1, dtype=np.int64)
        whole[:-1] = values
        if noise is not None:
            whole[:-1] += noise
            self._check(whole[:-1], self.limit, who + "with its noise, in steps: ", client)
        whole[-1] = round(weight * self.weight_scale)
        numbers = whole.view(np.uint64) & np.uint64((1 << self.bits) - 1)
        return numbers.astype(dtype(self.bits), copy=False)

    def decode(self, numbers: Integers) -> Mean:
        """Turn the sum of encoded vectors into their mean.

        Args:
            numbers: The sum modulo 2^bits, (P + 1,), uint32 or uint64.

        Raises:
            MergeError: The total weight is zero.
        """
        spare = 64 - self.bits
        whole = (numbers.astype(np.uint64) << np.uint64(spare)).view(np.int64) >> np.int64(spare)
        weight = float(whole[-1]) / self.weight_scale
        if weight <= 0:
            raise MergeError("the clients in the secure sum have a total weight of zero; give them weights above 0")
        total = whole[:-1] / self.scale
        return Mean((total / weight).astype(np.float32), total, weight)

    def _check(self, values: NDArray[np.float64] | NDArray[np.int64], most: float, who: str, client: str) -> None:
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if -most <= low and high <= most:  # NaN fails too
            return
        worst = next(v for v in (low, high) if not -most <= v <= most)
        raise UsageError(
            f"{who}a value of {worst:g} is outside the range -{most:g} to {most:g} of the fixed-point numbers; "
            f"clip the updates, or raise the bound",
            client=client,
            found=worst,
            expected=most,
        )


def plain_sum(vectors: Iterable[Integers], bits: int) -> Integers:
    """Return the sum modulo 2^bits that secure aggregation gives, without it.

    Args:
        vectors: uint32 arrays (up to 32 bits) or uint64 arrays of one length.
        bits: Of the modulus.

    Raises:
        MergeError: There is no vector.
    """
    total: Integers | None = None
    for vector in vectors:
        if total is None:
            total = np.zeros(vector.size, dtype=dtype(bits))
        np.add(total, vector, out=total)
    if total is None:
        raise MergeError("there is no vector to sum")
    return lowest(total, bits)


def _scale(bound: float, limit: int) -> float:
    most = min(limit, 1 << _EXACT)
    exponent = math.floor(math.log2(most) - math.log2(bound)) + 1
    while round(bound * 2.0**exponent) > most:
        exponent -= 1
    return 2.0**exponent
