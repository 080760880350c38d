"""Chance as an argument: every use of it is a named stream derived from one seed.

``stream(seed, "split", "dirichlet")`` gives the same numbers on every machine, in every process and in any order
of calls. The name is hashed with BLAKE2b (never ``hash()``, which differs from process to process).
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *path: str | int) -> int:
    """Derive a 63-bit seed from ``seed`` and a ``path`` of names and numbers.

    Example:
        >>> derive(0, "train", "ana", 1) == derive(0, "train", "ana", 1)
        True
        >>> derive(0, "a", "bc") == derive(0, "ab", "c")
        False
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def stream(seed: int, *path: str | int) -> np.random.Generator:
    """Return the NumPy generator that belongs to ``seed`` and ``path``."""
    return np.random.Generator(np.random.Philox(derive(seed, *path)))
