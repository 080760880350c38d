"""What a codec is, and the three kinds of stages that one is made of.

A codec turns an update into bytes and back. It is a chain::

    transforms -> one number format -> a lossless stage
    topk:0.01  |  int8              |  zstd

A **transform** makes another vector of it, usually a shorter one, and a few bytes beside it that undo this (which values
were kept, the seed of a rotation). The **number format** writes the values that are left as bytes, the **lossless**
stage makes those bytes shorter. All arrays are float32 NumPy vectors here; tensors stay at the codec's door.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedloom.errors import DataError

Floats: TypeAlias = NDArray[np.float32]

Restore: TypeAlias = Callable[[Floats], Floats]


class Codec(Protocol):
    """Bytes for a vector, and a vector for bytes."""

    @property
    def name(self) -> str:
        """The chain as :func:`fedloom.compress.parse` reads it, with every option."""
        ...

    @property
    def unbiased(self) -> bool:
        """Whether the mean of many decoded encodings is the vector; else keep the error and send it later."""
        ...

    @property
    def linear(self) -> bool:
        """Whether the mean of the encodings stands for the mean of the vectors, as a sum under masks needs it.

        Only ``float32`` by itself. A subset or a rotation would be linear if all clients drew the same seed; here every
        client draws its own.
        """
        ...

    def encode(self, vector: Tensor, chance: np.random.Generator) -> bytes:
        """Return the bytes of a float32 vector of shape (n,); the same chance gives the same bytes."""
        ...

    def decode(self, data: bytes, size: int | None = None) -> Tensor:
        """Return the float32 vector, shape (n,), that these bytes stand for.

        Raises:
            DataError: They stand for none, or for one that has not ``size`` numbers.
        """
        ...

    def bound(self, vector: Tensor) -> float:
        """Return what the squared L2 distance between a vector and its decoded self is at most, expected over chance."""
        ...


@dataclass(frozen=True)
class Traits:
    """What the bounds of a chain need to know about a transform.

    Attributes:
        unbiased: It is undone exactly on average.
        random: Its values depend on chance, not on the vector alone.
        orthogonal: What it loses is at right angles to all that it can restore.
        gain: What the values' expected squared norm is at most, as a multiple of the vector's.
        stretch: How many times longer an error in the values can become when it is undone (squared lengths).
        flat: The length of the blocks over which it spreads the vector evenly; 0 when it does not.
    """

    unbiased: bool = False
    random: bool = False
    orthogonal: bool = False
    gain: float = 1.0
    stretch: float = 1.0
    flat: int = 0


class Transform(Protocol):
    """A vector becomes other values and a few bytes beside them."""

    @property
    def spec(self) -> str:
        """Its name and options, as they are written in a chain."""
        ...

    def traits(self, n: int) -> Traits:
        """Return what bounds need to know, for vectors of length n."""
        ...

    def most(self, n: int) -> tuple[int, int]:
        """Return how many bytes beside the values, and how many values, there are at most."""
        ...

    def forward(self, x: Floats, chance: np.random.Generator) -> tuple[Floats, bytes]:
        """Return the values and the bytes beside them."""
        ...

    def opened(self, source: Reader, n: int) -> tuple[int, Restore]:
        """Read the bytes beside the values: how many values to expect, and how to undo the transform.

        Nothing of length n is made before the second is called, when the values are known to be there.
        """
        ...

    def error(self, x: Floats) -> float:
        """Return the expected squared error of leaving out what it leaves out of ``x``, at most."""
        ...

    def share(self, n: int) -> float:
        """Return the largest :meth:`error` of any vector of length n, as a share of its squared norm."""
        ...


class Quantiser(Protocol):
    """A number format: values become bytes."""

    @property
    def spec(self) -> str:
        """Its name and options, as they are written in a chain."""
        ...

    @property
    def unbiased(self) -> bool:
        """Whether it is right on average."""
        ...

    def length(self, m: int) -> int:
        """Return the number of bytes of m values."""
        ...

    def encode(self, values: Floats, chance: np.random.Generator) -> bytes:
        """Return the bytes of the values."""
        ...

    def decode(self, data: memoryview, m: int) -> Floats:
        """Return m values; ``data`` has the length that m values need."""
        ...

    def error(self, values: Floats) -> float:
        """Return the expected squared error for these values, at most."""
        ...

    def share(self, m: int, flat: int) -> float:
        """Return the largest :meth:`error` of any m values, as a share of their squared norm.

        Where ``flat`` is not 0, the values are what a rotation in blocks of that length made.
        """
        ...


class Lossless(Protocol):
    """Bytes become fewer bytes."""

    @property
    def spec(self) -> str:
        """Its name and options, as they are written in a chain."""
        ...

    def pack(self, data: bytes) -> bytes:
        """Return fewer bytes, where it can."""
        ...

    def unpack(self, data: memoryview, most: int) -> bytes:
        """Return the bytes again.

        Raises:
            DataError: They are damaged, or would be more than ``most``.
        """
        ...


class Reader:
    """Bytes that are read from front to back, and never past their end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._data) - self._at

    def take(self, count: int) -> memoryview:
        """Read the next bytes.

        Raises:
            DataError: There are not so many.
        """
        if count > self.left:
            raise DataError(f"an encoded update ends {count - self.left} bytes too early", expected=count)
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def number(self) -> int:
        """Read an unsigned number of eight bytes."""
        return int.from_bytes(self.take(8), "little")
