"""Shamir's secret sharing of 32-byte secrets in a prime field.

A secret is the value at 0 of a random polynomial of degree threshold - 1; a share is its value at the holder's place.
Any ``threshold`` shares give the polynomial back (Lagrange), fewer say nothing about the secret at all.

Python's whole numbers take a time that depends a little on their value. The secrets live for one round only, and whoever
could time a client that finely shares its machine.

Source: Shamir 1979, "How to share a secret".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from fedloom.errors import DataError

PRIME = 2**256 + 297
"""The smallest prime above every 32-byte number."""

SECRET_SIZE = 32
SHARE_SIZE = 33
"""The bytes of a secret and of a share (257 bits)."""

_DRAWN = 48  # bytes for one coefficient: 127 bits more than the prime, so that the remainder is uniform to 2^-127


def split(secret: bytes, threshold: int, places: Sequence[int], draw: Callable[[int], bytes]) -> list[bytes]:
    """Share a secret among holders.

    Args:
        secret: 32 bytes.
        threshold: How many shares give it back, at least 1.
        places: The holders' places: different numbers from 1 on.
        draw: Returns so many random bytes.

    Returns:
        The share of 33 bytes (little-endian) for every place.
    """
    drawn = draw(_DRAWN * (threshold - 1))
    coefficients = [
        int.from_bytes(drawn[i : i + _DRAWN], "little") % PRIME for i in range(0, _DRAWN * (threshold - 1), _DRAWN)
    ]
    constant = int.from_bytes(secret, "little")
    return [_value(constant, coefficients, place).to_bytes(SHARE_SIZE, "little") for place in places]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Give a secret back.

    Args:
        shares: As many shares as the threshold says, by place. With fewer, or wrong ones, the result is random.

    Returns:
        The 32 bytes of the secret.

    Raises:
        DataError: What comes out is no secret.
    """
    weights = _weights(tuple(shares))
    values = (int.from_bytes(share, "little") for share in shares.values())
    secret = sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME
    if secret >> (8 * SECRET_SIZE):
        raise DataError("the shares of a secret do not belong together; one of the clients sent a wrong one")
    return secret.to_bytes(SECRET_SIZE, "little")


def valid(share: bytes) -> bool:
    """Say whether bytes are a number of the field."""
    return len(share) == SHARE_SIZE and int.from_bytes(share, "little") < PRIME


def _value(constant: int, coefficients: Sequence[int], place: int) -> int:
    total = 0
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * place % PRIME
    return (total + constant) % PRIME


@lru_cache(maxsize=64)  # in a complete graph all secrets come from the same holders
def _weights(places: tuple[int, ...]) -> tuple[int, ...]:
    weights = []
    for place in places:
        above, below = 1, 1
        for other in places:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
