"""Batcher's odd-even merge sorting network on whole vectors: a comparator is one element-wise minimum and maximum.

A network compares the same pairs whatever the data, so P columns are sorted at once with two vector operations per
comparator, over blocks that stay in the cache. What cannot reach a wanted output is left out beforehand.

K. E. Batcher, "Sorting networks and their applications", AFIPS 1968; the form for any n is Algorithm M in
D. E. Knuth, The Art of Computer Programming, volume 3, section 5.2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float32]


class Comparator(NamedTuple):
    """Put the smaller of two wires on ``low``, the larger on ``high``; an output nobody reads is not computed."""

    low: int
    high: int
    keep_low: bool
    keep_high: bool


def batcher(n: int) -> list[tuple[int, int]]:
    """Return the pairs of the network that sorts n wires in ascending order.

    Example:
        >>> batcher(4)
        [(0, 2), (1, 3), (0, 1), (2, 3), (1, 2)]
    """
    pairs = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top if n > 1 else 0
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs


@lru_cache(maxsize=256)
def network(n: int, first: int, last: int) -> tuple[Comparator, ...]:
    """Return what is needed of the network for the sorted wires ``first`` .. ``last`` (inclusive) out of n.

    Example:
        >>> len(batcher(6)), sum(c.keep_low + c.keep_high for c in network(6, 2, 3))
        (12, 20)
    """
    read = set(range(first, last + 1))
    kept = []
    for low, high in reversed(batcher(n)):
        if low in read or high in read:
            kept.append(Comparator(low, high, low in read, high in read))
            read |= {low, high}
    return tuple(reversed(kept))


def run(comparators: Sequence[Comparator], wires: Sequence[Vector], scratch: Sequence[Vector]) -> list[Vector]:
    """Send n wires through a network.

    Args:
        comparators: From :func:`network`.
        wires: n float32 vectors of one length; they are only read.
        scratch: n + 1 vectors of that length for the results; what they held is lost.

    Returns:
        n vectors, each an input or one of ``scratch``; only the wanted outputs hold their sorted value.
    """
    out = list(wires)
    own = [False] * len(out)
    spare = list(scratch)
    for low, high, keep_low, keep_high in comparators:
        x, y = out[low], out[high]
        if keep_low:
            out[low] = np.minimum(x, y, out=spare.pop())
        if keep_high:
            out[high] = np.maximum(x, y, out=y if own[high] else spare.pop())
            own[high] = True
        if keep_low:
            if own[low]:
                spare.append(x)
            own[low] = True
    return out
