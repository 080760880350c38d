"""Noise has the distribution that is promised, from the operating system and from a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedloom.errors import UsageError
from fedloom.privacy import Randomness, coarse, integer_noise

# The operating system's tests fail by chance once in 10^6 runs of each.
RARE = 1e-6
SOURCES = pytest.mark.parametrize("seed", [None, 5])


@SOURCES
@pytest.mark.parametrize("n", [1, 2, 300_001])
def test_normals_pass_kolmogorov_smirnov(seed, n):
    drawn = Randomness.of(seed, "noise").normal(n, 2.5)
    assert (drawn.dtype, drawn.shape) == (torch.float32, (n,))
    if n > 2:
        values = drawn.double().numpy() / 2.5
        assert stats.kstest(values, "norm").pvalue > RARE
        # The variance of n normals' squares is 2 n.
        assert abs((values**2).sum() - n) < 5 * math.sqrt(2 * n)
        half = n // 2  # the two numbers of a pair have nothing to do with each other
        assert abs(np.corrcoef(values[:half], values[half : 2 * half])[0, 1]) < 5 / math.sqrt(half)


def test_seeds_repeat_and_are_void_and_the_system_does_neither():
    a, b = (Randomness.of(3, "noise", 1) for _ in range(2))
    assert torch.equal(a.normal(5, 1.0), b.normal(5, 1.0))
    assert a.void
    system = Randomness.of(None)
    assert not system.void
    assert not torch.equal(system.normal(5, 1.0), system.normal(5, 1.0))
    assert not torch.equal(Randomness.of(3, "noise", 2).normal(5, 1.0), b.normal(5, 1.0))


@SOURCES
@pytest.mark.parametrize("high", [1, 2, 10, 3 * 2**61])
def test_integers_are_uniform(seed, high):
    drawn = Randomness.of(seed).integers(20_000, high)
    assert drawn.min() >= 0
    assert int(drawn.max()) < high
    bins = min(high, 10)
    counts = np.bincount((drawn.astype(np.float64) * (bins / high)).astype(int), minlength=bins)
    assert high == 1 or stats.chisquare(counts).pvalue > RARE


def pmf(kind, std, reach):
    k = np.arange(-reach, reach + 1)
    if kind == "skellam":
        return stats.skellam.pmf(k, std**2 / 2, std**2 / 2)
    weights = np.exp(-(k**2) / (2 * std**2))
    return weights / weights.sum()


@SOURCES
@pytest.mark.parametrize("kind", ["discrete-gaussian", "skellam"])
@pytest.mark.parametrize("std", [0.3, 1.0, 7.3, 150.0])
def test_integer_noise_passes_chi_square_against_its_pmf(seed, kind, std):
    source, n = Randomness.of(seed, kind, "test"), 200_000
    drawn = source.discrete_gaussian(n, std) if kind == "discrete-gaussian" else source.skellam(n, std**2)
    reach = max(3, math.ceil(6 * std))
    expected = pmf(kind, std, reach) * n
    counts = np.bincount(np.clip(drawn, -reach, reach) + reach, minlength=2 * reach + 1)
    keep = expected > 10
    seen, want = np.append(counts[keep], counts[~keep].sum()), np.append(expected[keep], n - expected[keep].sum())
    if want[-1] < 5:  # too few for a bin of their own
        seen, want = np.append(seen[:-2], seen[-2:].sum()), np.append(want[:-2], want[-2:].sum())
    assert stats.chisquare(seen, want * (n / want.sum())).pvalue > RARE


@pytest.mark.parametrize("std", [0.05, 1.0, 33.3])
def test_tables_hold_the_chances_to_the_last_bit_of_a_float(std):
    for kind, table in (
        ("discrete-gaussian", integer_noise.gaussian_table(std)),
        ("skellam", integer_noise.skellam_table(std**2)),
    ):
        exact = [(int(u) << 64) + int(v) for u, v in zip(table.upper, table.lower, strict=True)]
        assert exact == sorted(exact)
        chances = np.diff([0, *exact]).astype(np.float64) / 2.0**128
        reach = max(40, math.ceil(14 * std))
        want = pmf(kind, std, reach)[reach:] * np.where(np.arange(reach + 1) > 0, 2, 1)
        m = min(len(want), len(chances))
        np.testing.assert_allclose(chances[:m], want[:m], rtol=1e-9, atol=1e-30)
        assert exact[-1] == 2**128 - 1


def test_a_tie_in_the_upper_half_is_decided_by_the_lower():
    table = integer_noise.Table(np.array([5, 5, 9], np.uint64), np.array([10, 20, 0], np.uint64))

    def drawn(lower):
        words = iter([np.array([5], np.uint64), np.array([lower], np.uint64), np.array([0], np.uint64)])
        return int(integer_noise.sample(table, 1, lambda n: next(words))[0])

    assert [drawn(low) for low in (9, 10, 19, 20)] == [0, 1, 1, 2]


def test_no_variance_is_no_noise_and_too_much_is_refused():
    assert not Randomness.of(0).discrete_gaussian(9, 0.0).any()
    assert not Randomness.of(0).skellam(9, 0.0).any()
    for call in (lambda r: r.discrete_gaussian(1, 1e6), lambda r: r.skellam(1, -1.0), lambda r: r.integers(1, 0)):
        with pytest.raises(UsageError):
            call(Randomness.of(0))


def test_coarse_leaves_no_last_bits_and_hardly_moves():
    noisy = Randomness.of(1).normal64(1000, 3.0)
    rounded = coarse(noisy, 3.0)
    assert float((rounded - noisy).abs().max()) <= 2.0**-16
    assert torch.equal(rounded * 2.0**15, torch.round(rounded * 2.0**15))
    assert torch.equal(coarse(noisy, 0.0), noisy)
