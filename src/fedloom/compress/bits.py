"""Bits: numbers of a few bits written tightly, rows of a bucket each, and fast chance.

All is little-endian. Chance comes from raw words of NumPy's SFC64, whose sequence is fixed for good (NumPy's own
promise covers its bit generators, not ``Generator.choice`` or ``Generator.normal``): what a seed in the bytes stands for
is the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.compress.base import Floats

Bytes = NDArray[np.uint8]


def packed_length(count: int, bits: int) -> int:
    """Return how many bytes ``count`` numbers of some bits need."""
    return (bits // 8) * count + -(-count // 8) * (bits % 8)


def pack(numbers: NDArray[Any], bits: int) -> bytes:
    """Write unsigned numbers with ``bits`` bits each.

    Whole bytes of all numbers come first (the lowest byte of each, then the next); of the bits that are left, eight
    numbers at a time make as many bytes as a number has bits, the first number in the lowest bits.

    Args:
        numbers: Unsigned integers below 2^bits, shape (count,).
        bits: 0 to 64.

    Example:
        >>> pack(np.array([1, 2, 3, 0, 0, 0, 0, 1], np.uint8), 2).hex()
        '3940'
    """
    planes = [(numbers >> numbers.dtype.type(8 * i)).astype(np.uint8).tobytes() for i in range(bits // 8)]
    rest = bits % 8
    if rest:
        eights = np.zeros((-(-len(numbers) // 8), 8), np.uint8)
        top = (numbers >> numbers.dtype.type(8 * (bits // 8))) if bits > 8 else numbers
        eights.reshape(-1)[: len(numbers)] = top
        words = np.zeros(len(eights), "<u8")
        for i in range(8):
            words |= eights[:, i].astype("<u8") << np.uint64(rest * i)
        planes.append(words.view(np.uint8).reshape(-1, 8)[:, :rest].tobytes())
    return b"".join(planes)


def unpack(data: memoryview | bytes, count: int, bits: int) -> NDArray[Any]:
    """Read what :func:`pack` wrote: uint8 where numbers have at most eight bits, else uint64.

    Example:
        >>> unpack(bytes.fromhex("3940"), 8, 2).tolist()
        [1, 2, 3, 0, 0, 0, 0, 1]
    """
    raw = np.frombuffer(data, np.uint8)
    whole, rest = bits // 8, bits % 8
    numbers: NDArray[np.unsignedinteger[Any]] = np.zeros(count, np.uint8 if bits <= 8 else np.uint64)
    for i in range(whole):
        numbers = numbers | (raw[i * count : (i + 1) * count].astype(numbers.dtype) << numbers.dtype.type(8 * i))
    if rest:
        words = np.zeros((-(-count // 8), 8), np.uint8)
        words[:, :rest] = raw[whole * count :].reshape(-1, rest)
        top = _eights(words.view("<u8").reshape(-1), rest)[:count]
        numbers = numbers | (top.astype(numbers.dtype) << numbers.dtype.type(8 * whole)) if whole else top
    return numbers


def _eights(words: NDArray[np.uint64], bits: int) -> Bytes:
    found = np.empty((len(words), 8), np.uint8)
    mask = np.uint8((1 << bits) - 1)
    for i in range(8):
        found[:, i] = (words >> np.uint64(bits * i)).astype(np.uint8) & mask
    return found.reshape(-1)


def rows(x: Floats, bucket: int) -> list[Floats]:
    """Return the buckets of a vector as matrices, a bucket per row: the full ones, and one of what is left.

    Example:
        >>> [r.shape for r in rows(np.zeros(10, np.float32), 4)]
        [(2, 4), (1, 2)]
    """
    full = len(x) // bucket * bucket
    parts = [x[:full].reshape(-1, bucket), x[full:].reshape(1, -1)]
    return [part for part in parts if part.size]


def new_seed(chance: np.random.Generator) -> int:
    """Draw a seed of 64 bits."""
    return int.from_bytes(chance.bytes(8), "little")


def words(seed: int, count: int) -> NDArray[np.uint64]:
    """Return ``count`` random words of 64 bits, the same for a seed everywhere."""
    return np.asarray(np.random.SFC64(seed).random_raw(count), np.uint64)


def halves(seed: int, count: int) -> NDArray[np.uint32]:
    """Return ``count`` random numbers of 32 bits."""
    return words(seed, -(-count // 2)).astype("<u8", copy=False).view("<u4")[:count]


def uniforms(chance: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Return multiples of 2^-16 in [0, 1), all equally likely: enough to round up with a probability.

    The probability of rounding up is exact to 2^-16; float32 does not know the values much better.
    """
    count = int(np.prod(shape))
    raw = words(new_seed(chance), -(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]
    found: Floats = raw.astype(np.float32)
    found *= np.float32(2.0**-16)
    return found.reshape(shape)


def energy(x: NDArray[Any]) -> float:
    """Return the squared L2 norm, summed in float64."""
    flat = x.reshape(-1)
    return float(np.vdot(flat.astype(np.float64), flat))
