from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from fedloom.compress.rotation import block_of, rotate, rotated_size, unrotate
from fedloom.errors import UsageError

sizes = st.integers(0, 20_000)


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(0, 2**64 - 1), st.sampled_from([None, 1, 2, 64, 128, 8192, 2**17]))
def test_a_rotation_is_undone_and_keeps_the_norm(n, seed, block):
    x = normal(n)
    y = rotate(x, seed, block)
    assert y.shape == (rotated_size(n, block),)
    assert float(y.double().norm()) == pytest.approx(float(x.double().norm()), rel=1e-5)
    assert torch.allclose(unrotate(y, seed, n, block), x, atol=1e-5)


@given(st.integers(0, 10**9))
def test_padding_is_small(n):
    block = block_of(n)
    assert block & (block - 1) == 0
    assert rotated_size(n) - n <= max(n // 16, 8)
    assert n < 1000 or block >= n // 32 or block == 8192 or block >= 32


@pytest.mark.parametrize("block", [1, 2, 32, 64, 128, 4096])
def test_it_is_the_walsh_hadamard_matrix_with_signs(block):
    x = normal(2 * block)
    signs = rotate(torch.ones(2 * block), 5, 1)
    assert set(signs.tolist()) <= {-1.0, 1.0}
    h = torch.from_numpy(hadamard(block, dtype="float32")) / block**0.5
    assert torch.allclose(rotate(x, 5, block).view(2, block), (x * signs).view(2, block) @ h, atol=1e-5)


def test_it_is_linear_and_another_seed_is_another_rotation():
    x, y = normal(500), normal(500, 1)
    assert torch.allclose(rotate(x, 1) + 2 * rotate(y, 1), rotate(x + 2 * y, 1), atol=1e-5)
    assert not torch.allclose(rotate(x, 1), rotate(x, 2))


def test_one_number_is_spread_evenly():
    x = torch.zeros(8192)
    x[17] = 3.0
    assert torch.allclose(rotate(x, 0).abs(), torch.full((8192,), 3 / 8192**0.5))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="block = 12: a power of two"):
        rotate(torch.zeros(4), 0, 12)
    with pytest.raises(UsageError, match="of 100 numbers has 104, not 100"):
        unrotate(torch.zeros(100), 0, 100)
