"""Values as floating-point numbers: 32 bits (what a vector has anyway), or 16 in one of two ways.

IEEE 754 float16 has 11 significant bits and a small range; one power of two, sent with the values, puts the largest near
the top of it, so that nothing overflows and updates of 1e-6 lose nothing. bfloat16 (D. Kalamkar et al., "A Study of
BFLOAT16 for Deep Learning Training", 2019) has the range of float32 and 8 significant bits. Both round to the nearest,
which is wrong by 2^-11 and 2^-8 of a value at worst, and not unbiased.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fedloom.compress.base import Floats, Quantiser
from fedloom.compress.bits import energy
from fedloom.errors import DataError
from fedloom.layout import Layout


@dataclass(frozen=True)
class Float32:
    """Four bytes a value, nothing lost."""

    spec: str = "float32"
    unbiased: bool = True

    def length(self, m: int) -> int:
        """Return 4 m."""
        return 4 * m

    def encode(self, values: Floats, chance: np.random.Generator) -> bytes:  # noqa: ARG002
        """Return the values as they are."""
        return values.astype("<f4", copy=False).tobytes()

    def decode(self, data: memoryview, m: int) -> Floats:
        """Return a copy of the values."""
        return np.frombuffer(data, "<f4", m).astype(np.float32)

    def error(self, values: Floats) -> float:  # noqa: ARG002 - nothing is lost
        """Return 0."""
        return 0.0

    def share(self, m: int, flat: int) -> float:  # noqa: ARG002
        """Return 0."""
        return 0.0


@dataclass(frozen=True)
class Float16:
    """Two bytes a value, and one exponent of two for all of them (an int16 in front)."""

    spec: str = "float16"
    unbiased: bool = False

    def length(self, m: int) -> int:
        """Return 2 m + 2."""
        return 2 * m + 2

    def encode(self, values: Floats, chance: np.random.Generator) -> bytes:  # noqa: ARG002
        """Scale the largest value into [2^14, 2^15), and round to the nearest."""
        top = float(np.abs(values).max()) if len(values) else 0.0
        exponent = 15 - int(np.frexp(np.float32(top))[1]) if top else 0
        exponent = min(exponent, 126)
        scaled = torch.from_numpy(values * np.float32(2.0**exponent)).half().numpy()
        return exponent.to_bytes(2, "little", signed=True) + scaled.astype("<f2", copy=False).tobytes()

    def decode(self, data: memoryview, m: int) -> Floats:
        """Return the values, scaled back.

        Raises:
            DataError: The exponent is none that is ever sent.
        """
        exponent = int.from_bytes(data[:2], "little", signed=True)
        if abs(exponent) > 126:
            raise DataError(f"an encoded update is damaged: its float16 exponent is {exponent}", found=exponent)
        values: Floats = torch.from_numpy(np.frombuffer(data[2:], "<f2", m).astype(np.float16)).float().numpy()
        values *= np.float32(2.0**-exponent)
        return values

    def error(self, values: Floats) -> float:
        """Return what rounding costs at worst."""
        return self.share(len(values), 0) * energy(values)

    def share(self, m: int, flat: int) -> float:  # noqa: ARG002 - rounding is relative
        """Return 2^-22, and a little for values that are tiny beside the largest."""
        return 2.0**-22 + m * 2.0**-78


@dataclass(frozen=True)
class BFloat16:
    """Two bytes a value: the upper half of a float32, rounded to the nearest."""

    spec: str = "bfloat16"
    unbiased: bool = False

    def length(self, m: int) -> int:
        """Return 2 m."""
        return 2 * m

    def encode(self, values: Floats, chance: np.random.Generator) -> bytes:  # noqa: ARG002
        """Round to the nearest."""
        raw = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
        return raw.astype("<i2", copy=False).tobytes()

    def decode(self, data: memoryview, m: int) -> Floats:
        """Put the lower half back, as zeros."""
        return (np.frombuffer(data, "<u2", m).astype(np.uint32) << np.uint32(16)).view(np.float32)

    def error(self, values: Floats) -> float:
        """Return what rounding costs at worst."""
        return 2.0**-16 * energy(values)

    def share(self, m: int, flat: int) -> float:  # noqa: ARG002 - rounding is relative
        """Return 2^-16."""
        return 2.0**-16


def maker(kind: Callable[[], Quantiser]) -> Callable[[Mapping[str, str], Layout | None], Quantiser]:
    """Return what makes a number format that has no options."""
    return lambda values, layout: kind()  # noqa: ARG005 - one form for all makers
