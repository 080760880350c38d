"""A random rotation that spreads a vector evenly, so that few bits per number are enough.

``rotate = H D``: D changes signs at random, H is the Walsh-Hadamard matrix divided by the root of its size, in blocks of
a power of two. Lengths and inner products stay; after it no number is much larger than the others of its block.

J. Konečný, H. B. McMahan, F. X. Yu, P. Richtárik, A. T. Suresh, D. Bacon, "Federated Learning: Strategies for Improving
Communication Efficiency", 2016, section 3 ("structured random rotations"); A. T. Suresh, F. X. Yu, S. Kumar,
H. B. McMahan, "Distributed Mean Estimation with Limited Communication", ICML 2017, section 3. They rotate the whole
vector; blocks need less padding, and no number travels further than its block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fedloom.compress.base import Floats, Reader, Restore, Traits
from fedloom.compress.bits import new_seed, words
from fedloom.errors import UsageError
from fedloom.layout import Layout

BLOCK = 8192
"""The longest block that is chosen when none is asked for."""


def block_of(n: int, longest: int = BLOCK) -> int:
    """Return the longest block, a power of two, for which a vector of length n is padded by little.

    At most a sixteenth of it is padding, or eight numbers.

    Example:
        >>> block_of(1_663_370), block_of(2049), block_of(1)
        (8192, 128, 1)
    """
    block = 1
    while block < longest and -n % (2 * block) <= max(n // 16, 8) and block < n:
        block *= 2
    return block


def rotated_size(n: int, block: int | None = None) -> int:
    """Return the length of a rotated vector of length n: n and its padding."""
    block = block_of(n) if block is None else block
    return n + -n % block


def rotate(vector: Tensor, seed: int, block: int | None = None) -> Tensor:
    """Rotate a vector: random signs, then a fast Walsh-Hadamard transform of every block.

    Args:
        vector: float32 (n,).
        seed: 0 <= seed < 2^64; the same one undoes it.
        block: Length of the blocks, a power of two; :func:`block_of` when None.

    Returns:
        float32 (:func:`rotated_size`,), of the same L2 norm; the padding is rotated with the rest.

    Raises:
        UsageError: The block is no power of two.

    Example:
        >>> bool((rotate(torch.tensor([4.0, 0, 0, 0]), seed=1).abs() == 2).all())
        True
    """
    block = _checked(vector.numel(), block)
    padded = torch.zeros(rotated_size(vector.numel(), block), dtype=torch.float32, device=vector.device)
    padded[: vector.numel()] = vector
    padded *= _signs(seed, len(padded)).to(vector.device)
    return _hadamard(padded, block)


def unrotate(rotated: Tensor, seed: int, size: int, block: int | None = None) -> Tensor:
    """Undo :func:`rotate`.

    Args:
        rotated: float32 (:func:`rotated_size` of ``size``,).
        seed: The seed it was rotated with.
        size: n, the length of the vector before.
        block: As in :func:`rotate`.

    Returns:
        float32 (n,).

    Raises:
        UsageError: The length is not that of a rotated vector of this size.

    Example:
        >>> x = torch.arange(5.0)
        >>> bool(torch.allclose(unrotate(rotate(x, seed=3), seed=3, size=5), x, atol=1e-6))
        True
    """
    block = _checked(size, block)
    expected = rotated_size(size, block)
    if rotated.numel() != expected:
        raise UsageError(f"a rotated vector of {size} numbers has {expected}, not {rotated.numel()}")
    signs = _signs(seed, expected).to(rotated.device)
    return (_hadamard(rotated, block) * signs)[:size].contiguous()


def _checked(n: int, block: int | None) -> int:
    if block is not None and (block < 1 or block & (block - 1)):
        raise UsageError(f"block = {block}: a power of two is expected")
    return block_of(n) if block is None else block


def _signs(seed: int, n: int) -> Tensor:
    raw = words(seed, -(-n // 64)).astype("<u8", copy=False).view(np.uint8)
    bits = np.unpackbits(raw, count=n, bitorder="little")
    return torch.from_numpy(1 - 2 * bits.view(np.int8)).to(torch.float32)


def _hadamard(x: Tensor, block: int) -> Tensor:
    """Multiply every block by H / sqrt(block).

    H of 2^(a+b) is the Kronecker product of those of 2^a and 2^b: a few products with matrices of at most 64 x 64 do it.
    """
    left = int(math.log2(block))
    stride = 1
    while left:
        bits = min(left, 6)
        x = x.reshape(-1, 2**bits, stride)
        h = _matrix(bits).to(x.device)
        x = (x.squeeze(2) @ h) if stride == 1 else torch.matmul(h, x)
        stride *= 2**bits
        left -= bits
    return x.reshape(-1)


@cache
def _matrix(bits: int) -> Tensor:
    h = torch.ones(1, 1)
    for _ in range(bits):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / math.sqrt(2**bits)


@dataclass(frozen=True)
class Rotate:
    """The rotation as a stage of a chain: a seed of eight bytes beside the values.

    Attributes:
        longest: The longest block.
    """

    longest: int = BLOCK

    @property
    def spec(self) -> str:
        """Its name and options."""
        return f"rotate:{self.longest}"

    def _block(self, n: int) -> int:
        return block_of(n, self.longest)

    def traits(self, n: int) -> Traits:
        """See :class:`fedloom.compress.base.Transform`."""
        return Traits(unbiased=True, random=True, orthogonal=True, flat=self._block(n))

    def most(self, n: int) -> tuple[int, int]:
        """Return eight bytes, and the values with their padding."""
        return 8, rotated_size(n, self._block(n))

    def forward(self, x: Floats, chance: np.random.Generator) -> tuple[Floats, bytes]:
        """Rotate by a seed that is drawn now."""
        seed = new_seed(chance)
        return rotate(torch.from_numpy(x), seed, self._block(len(x))).numpy(), seed.to_bytes(8, "little")

    def opened(self, source: Reader, n: int) -> tuple[int, Restore]:
        """Read the seed."""
        seed, block = source.number(), self._block(n)
        return rotated_size(n, block), lambda v: unrotate(torch.from_numpy(v), seed, n, block).numpy()

    def error(self, x: Floats) -> float:  # noqa: ARG002 - a rotation loses nothing
        """Return 0: nothing is lost."""
        return 0.0

    def share(self, n: int) -> float:  # noqa: ARG002
        """Return 0: nothing is lost."""
        return 0.0


def make(values: Mapping[str, str], layout: Layout | None) -> Rotate:  # noqa: ARG001 - one form for all makers
    """Read the stage's options."""
    text = values["block"]
    if not text.isdecimal() or not 2 <= int(text) <= 2**20 or int(text) & (int(text) - 1):
        raise UsageError(f"rotate: block = {text}; a power of two from 2 to {2**20} is expected")
    return Rotate(int(text))
