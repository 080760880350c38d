"""The codec: a chain of stages, and the header in front of its bytes.

=====  ========================================================================
bytes  what stands there (little-endian)
=====  ========================================================================
4      ``FLC`` and the version of the format, 1
4      BLAKE2b of the chain's name: what was not written by this chain is refused
8      n, the length of the vector
rest   the body, through the lossless stage if there is one: what the transforms
       send beside the values, in their order, then the values; empty for n = 0
=====  ========================================================================

A decoder knows from n how long the body may be before it makes anything, and checks every length before it makes a vector.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedloom.compress.base import Floats, Lossless, Quantiser, Reader, Restore, Transform
from fedloom.compress.bits import energy
from fedloom.compress.floats import Float32
from fedloom.errors import DataError, MergeError, UsageError

MAGIC = b"FLC\x01"
HEADER = 16

LARGEST = float(np.float32(1e30))
"""Numbers beyond this are refused: sums and squares of them leave float32, and no training that works has them."""

MOST = 2**27
"""The longest vector that is decoded when the caller does not say how long it should be: half a gigabyte."""


@dataclass(frozen=True)
class Chain:
    """Transforms, one number format, perhaps a lossless stage: a :class:`fedloom.compress.Codec`.

    Attributes:
        transforms: What is done to the vector, in this order.
        quantiser: How values are written.
        lossless: What makes the bytes shorter, or None.
    """

    transforms: tuple[Transform, ...]
    quantiser: Quantiser
    lossless: Lossless | None

    @property
    def name(self) -> str:
        """The chain with every option, as :func:`fedloom.compress.parse` reads it."""
        last = () if self.lossless is None else (self.lossless,)
        return " | ".join(stage.spec for stage in (*self.transforms, self.quantiser, *last))

    @property
    def unbiased(self) -> bool:
        """Whether every stage is right on average, for vectors of any length."""
        return self.quantiser.unbiased and all(stage.traits(MOST).unbiased for stage in self.transforms)

    @property
    def linear(self) -> bool:
        """Whether encodings can be added instead of vectors: only where nothing is done to them."""
        return not self.transforms and self.lossless is None and isinstance(self.quantiser, Float32)

    def encode(self, vector: Tensor, chance: np.random.Generator) -> bytes:
        """Return the bytes of a float32 vector of shape (n,); the same chance gives the same bytes.

        Raises:
            UsageError: It is not a float32 vector, or not one of the model that the chain was made for.
            MergeError: It holds NaN, infinity or numbers beyond 1e30; the message says where.
        """
        x = _checked(vector)
        header = MAGIC + self._digest() + len(x).to_bytes(8, "little")
        if not len(x):
            return header
        sides = []
        for stage in self.transforms:
            x, side = stage.forward(x, chance)
            sides.append(side)
        body = b"".join([*sides, self.quantiser.encode(x, chance)])
        return header + (body if self.lossless is None else self.lossless.pack(body))

    def decode(self, data: bytes, size: int | None = None) -> Tensor:
        """Return the float32 vector, shape (n,), that these bytes stand for.

        Args:
            data: What :meth:`encode` of the same chain returned.
            size: The n that is expected; anything else is refused.

        Raises:
            DataError: These bytes stand for no such vector.
        """
        n, body = self._opened(data, size)
        if not n:
            return torch.empty(0)
        if self.lossless is not None:
            body = memoryview(self.lossless.unpack(body, self._most(n)))
        source, m = Reader(body), n
        undo: list[Restore] = []
        for stage in self.transforms:
            m, restore = stage.opened(source, m)
            undo.append(restore)
        expected = self.quantiser.length(m)
        if source.left != expected:
            raise DataError(f"an encoded update has {source.left} bytes of values where {expected} are right")
        with np.errstate(all="ignore"):
            x = self.quantiser.decode(source.take(expected), m)
            for restore in reversed(undo):
                x = restore(x)
        if not _finite(x):
            raise DataError("an encoded update is damaged: it holds numbers that are not finite")
        return torch.from_numpy(x)

    def bound(self, vector: Tensor) -> float:
        """Return what the squared L2 error of this vector is at most, expected over chance.

        Errors of stages add up where the later one is right on average, or where what the earlier one loses is at right
        angles to all that it can restore; else their roots do. Behind a random transform only the norm of the values
        is known, and the bound that holds for every vector of that norm is taken.

        Raises:
            UsageError: As :meth:`encode`.
            MergeError: As :meth:`encode`.
        """
        x = _checked(vector)
        if not len(x):
            return 0.0
        known: Floats | None = x
        n, norm, total, stretch, flat, apart = len(x), energy(x), 0.0, 1.0, 0, True
        slack = norm * 1e-11 + n * 1e-70
        for stage in self.transforms:
            traits = stage.traits(n)
            error = stage.error(known) if known is not None else stage.share(n) * norm
            total = _sum(total, stretch * error, additive=traits.unbiased or apart)
            apart = apart and traits.orthogonal and stretch == 1
            known = None if known is None or traits.random else stage.forward(known, np.random.default_rng(0))[0]
            norm = norm * traits.gain if known is None else energy(known)
            n, stretch, flat = stage.most(n)[1], stretch * traits.stretch, traits.flat
        if not n:
            return total + slack
        error = self.quantiser.error(known) if known is not None else self.quantiser.share(n, flat) * norm
        return _sum(total, stretch * error, additive=self.quantiser.unbiased or apart) + slack

    def _digest(self) -> bytes:
        return hashlib.blake2b(self.name.encode(), digest_size=4).digest()

    def _opened(self, data: bytes, size: int | None) -> tuple[int, memoryview]:
        whole = memoryview(data)
        if len(whole) < HEADER or whole[:3] != MAGIC[:3]:
            raise DataError("these bytes are not an encoded update")
        if whole[3] != MAGIC[3]:
            raise DataError(f"an encoded update of version {whole[3]}: this fedloom reads {MAGIC[3]}", found=whole[3])
        if whole[4:8] != self._digest():
            raise DataError(f"an encoded update of another codec than '{self.name}'", expected=self.name)
        n = int.from_bytes(whole[8:HEADER], "little")
        if n != size and (size is not None or n > MOST):
            right = f"{size} are expected" if size is not None else f"more than {MOST} need decode(data, size=...)"
            raise DataError(f"an encoded update says that it has {n} numbers; {right}", expected=size, found=n)
        if not n and len(whole) > HEADER:
            raise DataError("an encoded update of no numbers has a body", found=len(whole) - HEADER)
        return n, whole[HEADER:]

    def _most(self, n: int) -> int:
        beside = 0
        for stage in self.transforms:
            side, n = stage.most(n)
            beside += side
        return beside + self.quantiser.length(n)


def _sum(total: float, error: float, additive: bool) -> float:
    return total + error if additive else (math.sqrt(total) + math.sqrt(error)) ** 2


def _finite(x: Floats) -> bool:
    return not len(x) or bool(np.isfinite(x.min()) and np.isfinite(x.max()))


def _checked(vector: Tensor) -> Floats:
    if vector.dim() != 1 or vector.dtype != torch.float32:
        found = f"{vector.dtype} of shape {tuple(vector.shape)}"
        raise UsageError(f"a codec takes a float32 vector, not {found}", found=found)
    x: Floats = vector.detach().cpu().contiguous().numpy()
    if len(x) and not (float(x.min()) >= -LARGEST and float(x.max()) <= LARGEST):
        bad = ~(np.abs(x) <= LARGEST)
        first = int(np.argmax(bad))
        message = f"an update with {int(bad.sum())} numbers that are NaN, infinite or beyond {LARGEST:g} is not encoded"
        raise MergeError(f"{message}: number {first} is {x[first]:g}; has the training diverged?", found=first)
    return x
