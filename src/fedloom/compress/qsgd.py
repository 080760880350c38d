"""QSGD: sign and size of every value as a share of its bucket's norm, rounded by chance.

D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnović, "QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding", NeurIPS 2017, section 3.1: ``Q_s(v_i) = ||v|| sgn(v_i) xi_i`` with xi_i one of the two multiples of 1/s around
``|v_i| / ||v||``, right on average. Lemma 3.1: the expected squared error is at most ``min(d / s^2, sqrt(d) / s) ||v||^2``
for buckets of d values. With b bits there are ``s = 2^(b-1) - 1`` sizes beside 0, and a sign.

The norm is the paper's L2 norm, or the largest value (``max``), as its experiments have it: sizes are then used evenly,
and the error is much smaller. The paper's Elias code is left to the lossless stage: with L2 norms most values are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedloom.compress.base import Floats
from fedloom.compress.bits import pack, packed_length, rows, uniforms, unpack
from fedloom.compress.options import whole
from fedloom.errors import DataError, unknown
from fedloom.layout import Layout

NORMS = ("l2", "max")


@dataclass(frozen=True)
class Qsgd:
    """Signed sizes of a few bits; the buckets' norms go in front as float32.

    Attributes:
        bits: 2 to 8, with the sign.
        bucket: How many values share a norm.
        norm: ``l2`` or ``max``.
    """

    bits: int
    bucket: int = 512
    norm: str = "l2"
    unbiased: bool = True

    @property
    def spec(self) -> str:
        """Its name and options."""
        return f"qsgd:{self.bits}:{self.bucket}:{self.norm}"

    @property
    def _levels(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def length(self, m: int) -> int:
        """Return four bytes per bucket, and the values' bits."""
        return 4 * -(-m // self.bucket) + packed_length(m, self.bits)

    def encode(self, values: Floats, chance: np.random.Generator) -> bytes:
        """Round by chance."""
        levels, norms, codes = self._levels, [], []
        for part in rows(values, self.bucket):
            norm = self._norms(part)
            scale = np.where(norm > 0, levels / np.where(norm > 0, norm, 1), 0)
            # A norm of 1e-45 has an inverse beyond float32: what is left of it is read as zeros.
            scale = np.where(scale < np.finfo(np.float32).max, scale, 0).astype(np.float32)
            t = part * scale
            size = np.abs(t)
            size += uniforms(chance, part.shape)
            np.minimum(size, np.float32(levels), out=size)
            np.floor(size, out=size)
            np.copysign(size, t, out=size)
            size += np.float32(levels)
            codes.append(size.astype(np.uint8).reshape(-1))
            norms.append(norm.astype("<f4").tobytes())
        return b"".join([*norms, pack(np.concatenate(codes), self.bits) if codes else b""])

    def decode(self, data: memoryview, m: int) -> Floats:
        """Return the values.

        Raises:
            DataError: A code is none, or a norm is negative.
        """
        count = -(-m // self.bucket)
        norms = np.frombuffer(data, "<f4", count).astype(np.float32)
        codes = unpack(data[4 * count :], m, self.bits)
        if m and (int(codes.max()) > 2 * self._levels or not bool((norms >= 0).all())):
            raise DataError("an encoded update is damaged: QSGD does not send such a value or norm")
        values = codes.astype(np.float32)
        values -= np.float32(self._levels)
        at = 0
        for part in rows(values, self.bucket):
            part *= norms[at : at + len(part), None] / np.float32(self._levels)
            at += len(part)
        return values

    def _norms(self, part: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        if self.norm == "max":
            return np.asarray(np.abs(part).max(axis=1, keepdims=True), np.float64)
        wide = part.astype(np.float64)
        return np.asarray(np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None])

    def error(self, values: Floats) -> float:
        """Return the expected squared error."""
        total = 0.0
        for part in rows(values, self.bucket):
            unit = self._norms(part) / self._levels
            t = np.abs(part) / np.where(unit > 0, unit, 1)
            t -= np.floor(t)
            rounding = part.shape[1] * (unit * self._levels * 2.0**-22) ** 2
            total += float((unit**2 * (t * (1 - t) + 2.0**-15)).sum() + rounding.sum())
        return total

    def share(self, m: int, flat: int) -> float:  # noqa: ARG002 - the lemma's bound holds with and without a rotation
        """Return the lemma's bound, with a little for float32's own rounding."""
        d, s = min(self.bucket, m), self._levels
        norm = min(d / s**2, d**0.5 / s) if self.norm == "l2" else d / (4 * s**2)
        return norm + d * 2.0**-14 / s**2


def make(values: Mapping[str, str], layout: Layout | None) -> Qsgd:  # noqa: ARG001 - one form for all makers
    """Read the stage's options."""
    if values["norm"] not in NORMS:
        raise unknown("norm of qsgd", values["norm"], NORMS)
    bits = whole("qsgd", "bits", values["bits"], 2, 8)
    return Qsgd(bits, whole("qsgd", "bucket", values["bucket"], 1, 2**24), values["norm"])
