"""Numbers of so many bits each as bytes, with no bit between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.errors import DataError

Integers = NDArray[np.unsignedinteger[Any]]
"""uint32 or uint64, see :func:`dtype`."""

_GROUP = 8  # so many numbers fill whole bytes, whatever the bits


def dtype(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the type of an array of numbers modulo 2^bits: uint32 up to 32 bits, else uint64."""
    return np.dtype(np.uint32 if bits <= 32 else np.uint64)


def packed_size(size: int, bits: int) -> int:
    """Return the bytes of so many numbers."""
    return (size * bits + 7) // 8


def pack(values: Integers, bits: int) -> bytes:
    """Pack the lowest ``bits`` of every number, lowest bit first (little-endian).

    Example:
        >>> pack(np.array([1, 2, 3], dtype=np.uint32), 4).hex()
        '2103'
    """
    if bits == 8 * values.itemsize:
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    n = values.size
    padded = np.zeros((-(-n // _GROUP), _GROUP), dtype=values.dtype)
    np.bitwise_and(values, values.dtype.type((1 << bits) - 1), out=padded.reshape(-1)[:n])
    out = np.zeros((len(padded), bits), dtype=np.uint8)
    for i, byte, shift in _places(bits):
        column = padded[:, i]
        out[:, byte] |= (column >> shift if shift >= 0 else column << -shift).astype(np.uint8)
    return out.tobytes()[: packed_size(n, bits)]


def unpack(data: bytes, size: int, bits: int) -> Integers:
    """Undo :func:`pack`.

    Returns:
        ``size`` numbers below 2^bits, uint32 or uint64; read-only where nothing had to be unpacked.

    Raises:
        DataError: The bytes are not as many as that needs.
    """
    if len(data) != packed_size(size, bits):
        needed = packed_size(size, bits)
        raise DataError(f"{size} numbers of {bits} bits need {needed} bytes, found {len(data)}", expected=needed)
    kind = dtype(bits)
    if bits == 8 * kind.itemsize:
        return np.frombuffer(data, dtype=kind.newbyteorder("<")).astype(kind, copy=False)
    groups = -(-size // _GROUP)
    found = np.zeros(groups * bits, dtype=np.uint8)
    found[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    columns, out = found.reshape(groups, bits), np.zeros((groups, _GROUP), dtype=kind)
    for i, byte, shift in _places(bits):
        column = columns[:, byte].astype(kind)
        out[:, i] |= column << shift if shift >= 0 else column >> -shift
    return lowest(out.reshape(-1)[:size], bits)


def lowest(values: Integers, bits: int) -> Integers:
    """Keep the lowest ``bits`` of every number, in place; returns ``values``."""
    if bits < 8 * values.itemsize:
        np.bitwise_and(values, values.dtype.type((1 << bits) - 1), out=values)
    return values


def _places(bits: int) -> list[tuple[int, int, int]]:
    """Return which number of a group meets which byte, and how far that byte's first bit is above the number's."""
    return [
        (i, byte, 8 * byte - i * bits)
        for i in range(_GROUP)
        for byte in range(i * bits // 8, (i * bits + bits - 1) // 8 + 1)
    ]
