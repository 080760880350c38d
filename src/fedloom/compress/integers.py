"""Values as whole numbers of 1 to 8 bits between a bucket's smallest and largest value, rounded by chance.

Of a bucket with values from ``lo`` to ``hi``, ``L = 2^bits - 1`` and ``step = (hi - lo) / L``, a value x is sent as ``q``
and read as ``lo + q step``, where ``q`` is one of the two whole numbers around ``t = (x - lo) / step``, the upper one with
the probability that makes it right on average. With one bit that is the probabilistic quantisation of J. Konečný et al.,
"Federated Learning: Strategies for Improving Communication Efficiency", 2016, section 3; with more, A. T. Suresh, F. X. Yu,
S. Kumar, H. B. McMahan, "Distributed Mean Estimation with Limited Communication", ICML 2017, section 2.2. They use one
bucket for the whole vector, or one per array.

The expected squared error is the sum of ``(t - floor(t)) (1 - t + floor(t)) step^2``: at most step^2 / 4 a value, hence
``s / (2 L^2)`` of the squared norm for buckets of s values. After a rotation every value is small beside the norm, and it
is ``2 (ln(2 s) + 1) / L^2`` (Suresh et al., theorem 3, per bucket).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedloom.compress.base import Floats
from fedloom.compress.bits import pack, packed_length, rows, uniforms, unpack
from fedloom.compress.options import whole
from fedloom.layout import Layout

TINY = np.float32(2.0**-126)
"""Steps below the smallest normal number count as none: the whole bucket is read as its smallest value."""


@dataclass(frozen=True)
class Integers:
    """Whole numbers of a few bits; a bucket's range goes in front as two float32.

    Attributes:
        bits: 1 to 8.
        bucket: How many values share a range.
    """

    bits: int
    bucket: int = 1024
    unbiased: bool = True

    @property
    def spec(self) -> str:
        """Its name and options."""
        return f"int{self.bits}:{self.bucket}"

    @property
    def _levels(self) -> int:
        return (1 << self.bits) - 1

    def length(self, m: int) -> int:
        """Return eight bytes per bucket, and the values' bits."""
        return 8 * -(-m // self.bucket) + packed_length(m, self.bits)

    def encode(self, values: Floats, chance: np.random.Generator) -> bytes:
        """Round by chance."""
        lows, highs, codes = [], [], []
        for part in rows(values, self.bucket):
            low, high = part.min(axis=1, keepdims=True), part.max(axis=1, keepdims=True)
            t = part - low
            t *= _inverse(self._step(low, high))
            t += uniforms(chance, part.shape)
            np.minimum(t, np.float32(self._levels), out=t)
            codes.append(t.astype(np.uint8).reshape(-1))
            lows.append(low.astype("<f4", copy=False).tobytes())
            highs.append(high.astype("<f4", copy=False).tobytes())
        packed = pack(np.concatenate(codes), self.bits) if codes else b""
        return b"".join([*lows, *highs, packed])

    def decode(self, data: memoryview, m: int) -> Floats:
        """Return the values."""
        count = -(-m // self.bucket)
        low = np.frombuffer(data, "<f4", count).astype(np.float32)
        high = np.frombuffer(data, "<f4", count, 4 * count).astype(np.float32)
        values = unpack(data[8 * count :], m, self.bits).astype(np.float32)
        at = 0
        for part in rows(values, self.bucket):
            here = slice(at, at := at + len(part))
            lows, highs = low[here, None], high[here, None]
            part *= _used(self._step(lows, highs))
            part += lows
        return values

    def _step(self, low: Floats, high: Floats) -> Floats:
        return np.asarray((high - low) / np.float32(self._levels))

    def error(self, values: Floats) -> float:
        """Return the expected squared error: what chance does, and float32's own rounding."""
        total = 0.0
        for part in rows(values, self.bucket):
            low, high = part.min(axis=1, keepdims=True), part.max(axis=1, keepdims=True)
            step = _used(self._step(low, high)).astype(np.float64)
            t = (part - low) / np.where(step > 0, step, 1)
            t -= np.floor(t)
            rounding = np.maximum(np.abs(low), np.abs(high)).astype(np.float64) * 2.0**-22
            # A probability that is a multiple of 2^-16 is wrong by less than that: a little more than t (1 - t).
            total += float((step**2 * (t * (1 - t) + 2.0**-15)).sum() + part.shape[1] * (rounding**2).sum())
        return total

    def share(self, m: int, flat: int) -> float:
        """Return s / (2 L^2), or 2 (ln(2 s) + 1) / L^2 after a rotation where that is less."""
        s = min(self.bucket, m)
        any_values = s / (2 * self._levels**2)
        if not flat:
            return any_values + s * 2.0**-43
        astride = 1.0 if flat % s == 0 else 1 + 2 * s / flat
        return min(any_values, astride * 2 * (math.log(2 * s) + 1) / self._levels**2) + s * 2.0**-43


def _used(step: Floats) -> Floats:
    return np.where(step >= TINY, step, np.float32(0))


def _inverse(step: Floats) -> Floats:
    return np.where(step >= TINY, np.float32(1) / np.maximum(step, TINY), np.float32(0))


def make(values: Mapping[str, str], layout: Layout | None) -> Integers:  # noqa: ARG001 - one form for all makers
    """Read the stage's options."""
    return Integers(whole("int", "bits", values["bits"], 1, 8), whole("int", "bucket", values["bucket"], 1, 2**24))
