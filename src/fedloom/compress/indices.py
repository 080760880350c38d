"""Which values were kept: k of n positions in as few bytes as their number allows.

Two ways, and the shorter one by n and k alone, so that it need not be said: a bitmap of n bits; or the Elias-Fano code
(P. Elias, "Efficient storage and retrieval by content and address of static files", JACM 1974): the low bits of every
position as they are, the high bits as gaps in a second bitmap. That is at most about log2(n / k) + 2 bits a position,
about half a bit more than any code for a random subset needs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.compress.base import Reader
from fedloom.compress.bits import pack, packed_length, unpack
from fedloom.errors import DataError

Positions = NDArray[np.int64]


def largest(keys: NDArray[Any], k: int) -> Positions:
    """Return the positions of the k >= 1 largest keys, in rising order; of equal ones the first are taken.

    Example:
        >>> largest(np.array([1, 5, 5, 5, 0]), 2).tolist()
        [1, 2]
    """
    n = len(keys)
    if k >= n:
        return np.arange(n)
    threshold = np.partition(keys, n - k)[n - k]
    found = np.flatnonzero(keys >= threshold)
    if len(found) == k:
        return found
    above = np.flatnonzero(keys > threshold)
    equal = found[keys[found] == threshold]
    return np.sort(np.concatenate([above, equal[: k - len(above)]]))


def length(n: int, k: int) -> int:
    """Return the number of bytes of k of n positions."""
    return min(-(-n // 8), _elias_fano(n, k)[0])


def write(positions: Positions, n: int) -> bytes:
    """Write rising positions, all below n.

    Example:
        >>> write(np.array([0, 9]), 10).hex()
        '0102'
    """
    k = len(positions)
    size, low = _elias_fano(n, k)
    if -(-n // 8) <= size:
        return _bitmap(positions, n)
    lower = pack((positions & ((1 << low) - 1)).astype(np.uint64), low)
    return lower + _bitmap((positions >> low) + np.arange(k), _high(n, k, low))


def read(source: Reader, n: int, k: int) -> Positions:
    """Read k rising positions below n.

    Raises:
        DataError: They are not there, or not k different rising ones below n.
    """
    size, low = _elias_fano(n, k)
    if -(-n // 8) <= size:
        found = _from_bitmap(source, n)
    else:
        lower = unpack(source.take(packed_length(k, low)), k, low).astype(np.int64)
        upper = _from_bitmap(source, _high(n, k, low))
        if len(upper) != k:
            raise _damaged(k, n)
        found = ((upper - np.arange(k)) << low) | lower
    if len(found) != k or (k and (found[-1] >= n or np.any(np.diff(found) <= 0))):
        raise _damaged(k, n)
    return found


def _damaged(k: int, n: int) -> DataError:
    return DataError(f"an encoded update is damaged: it does not name {k} of {n} values", expected=k)


def _elias_fano(n: int, k: int) -> tuple[int, int]:
    """Return the bytes that the code needs and its number of low bits, the best one."""
    if not k or not n:
        return 0, 0
    near = int(math.log2(n / k))
    tried = range(max(0, near - 2), near + 2)
    return min((packed_length(k, low) + -(-_high(n, k, low) // 8), low) for low in tried)


def _high(n: int, k: int, low: int) -> int:
    return k + ((n - 1) >> low) + 1


def _bitmap(positions: Positions, n: int) -> bytes:
    bits = np.zeros(n, np.uint8)
    bits[positions] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _from_bitmap(source: Reader, n: int) -> Positions:
    raw = np.frombuffer(source.take(-(-n // 8)), np.uint8)
    return np.flatnonzero(np.unpackbits(raw, count=n, bitorder="little").view(np.bool_))
