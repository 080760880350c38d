import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedloom.aggregate import median, order, trimmed_mean, weighted_mean
from fedloom.errors import MergeError

LARGE = order.NETWORK_LIMIT + 1
floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126)
tied = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e-40, -1e-40, 1e-45, 3e38 / 2])
matrices = hnp.arrays(
    np.float32, st.tuples(st.integers(2, 12), st.integers(1, 6)), elements=st.one_of(floats, tied.map(np.float32))
)


def bits(values):
    return np.asarray(values).view(np.uint32)


@settings(max_examples=150, deadline=None)
@given(matrices)
def test_median_has_the_bits_of_numpy(matrix):
    assert np.array_equal(bits(median(torch.from_numpy(matrix))), bits(np.median(matrix, axis=0)))


@pytest.mark.parametrize("n", [*range(2, 14), 20, 21, LARGE - 1, LARGE, LARGE + 1, 100])
def test_median_has_the_bits_of_numpy_for_any_number_of_models(n):
    matrix = np.random.default_rng(n).standard_normal((n, 3000)).astype(np.float32)
    matrix[:, :1000] = np.round(matrix[:, :1000])
    matrix[:, 1000:2000] *= np.float32(1e-40)
    matrix[:3, 2900:] *= 0
    assert np.array_equal(bits(median(torch.from_numpy(matrix))), bits(np.median(matrix, axis=0)))


@pytest.mark.parametrize("n", [2, 3, LARGE])
def test_zeros_of_either_sign(n):
    matrix = np.full((n, 4), -0.0, dtype=np.float32)
    matrix[0, 1:] = 0.0
    matrix[1:, 2] = 0.0
    assert np.array_equal(bits(median(torch.from_numpy(matrix))), bits(np.median(matrix, axis=0)))


@pytest.mark.parametrize("n", [6, LARGE])
def test_blocks_join_without_a_seam(n, monkeypatch):
    monkeypatch.setattr(order, "_NETWORK_BLOCK", 64)
    monkeypatch.setattr(order, "_SORT_BLOCK", 64 * LARGE)
    matrix = torch.randn(n, 1000, generator=torch.Generator().manual_seed(2))
    assert np.array_equal(median(matrix).numpy(), np.median(matrix.numpy(), axis=0))


@pytest.mark.parametrize("n", [4, 40])
def test_middle_of_two_huge_values_is_finite(n):
    matrix = torch.full((n, 2), 3e38)
    matrix[:, 1] = torch.tensor([-1.0, 1.0]).repeat(n // 2) * 3e38
    assert median(matrix).tolist() == [float(np.float32(3e38)), 0.0]


def test_columns_of_a_larger_matrix_are_read_in_place():
    matrix = torch.randn(5, 60, generator=torch.Generator().manual_seed(3))
    part = matrix[:, 7:51:2]
    assert np.array_equal(median(part).numpy(), np.median(part.numpy(), axis=0))
    assert np.array_equal(median(matrix.T.contiguous().T).numpy(), np.median(matrix.numpy(), axis=0))


def test_memory_mapped_vectors_are_accepted(tmp_path):
    array = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    array.tofile(tmp_path / "rows.bin")
    mapped = np.memmap(tmp_path / "rows.bin", dtype=np.float32, mode="r+", shape=(3, 50))
    assert np.array_equal(median([torch.from_numpy(row) for row in mapped]).numpy(), np.median(array, axis=0))


def test_trimmed_mean_by_hand():
    matrix = torch.tensor([[5.0], [1.0], [2.0], [100.0], [-50.0], [4.0]])
    assert trimmed_mean(matrix, k=1).tolist() == [3.0]
    assert trimmed_mean(matrix, k=2).tolist() == [3.0]
    assert trimmed_mean(matrix, k=0).tolist() == [float(np.float32(62 / 6))]


@pytest.mark.parametrize(
    ("n", "trim", "k"), [(2, 0.4, 0), (3, 0.1, 1), (6, 0.1, 1), (10, 0.1, 1), (10, 0.3, 3), (11, 0.1, 2), (20, 0.1, 2),
                         (100, 0.29, 29), (3, 0.49, 1), (5, 0.0, 0)]
)  # fmt: skip
def test_fraction_is_rounded_up_to_whole_models(n, trim, k):
    matrix = torch.randn(n, 9, generator=torch.Generator().manual_seed(n))
    assert torch.equal(trimmed_mean(matrix, trim=trim), trimmed_mean(matrix, k=k))


@pytest.mark.parametrize("n", [3, 4, 7, 12, LARGE, 50])
def test_trimmed_mean_equals_the_plain_formula(n):
    matrix = torch.randn(n, 300, generator=torch.Generator().manual_seed(n))
    for k in range((n + 1) // 2):
        expected = np.sort(matrix.numpy().astype(np.float64), axis=0)[k : n - k].mean(axis=0)
        np.testing.assert_allclose(trimmed_mean(matrix, k=k).numpy(), expected, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 6, LARGE, LARGE + 1])
def test_limits_are_mean_and_median(n):
    matrix = torch.randn(n, 30, generator=torch.Generator().manual_seed(n))
    assert torch.equal(trimmed_mean(matrix, k=0), weighted_mean(matrix))
    if n > 2:
        assert torch.equal(trimmed_mean(matrix, k=(n - 1) // 2), median(matrix))
        assert torch.equal(trimmed_mean(matrix, trim=0.499999), median(matrix))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(8)), st.integers(0, 10**6))
def test_order_of_the_models_does_not_change_a_bit(order_, seed):
    matrix = torch.randn(8, 20, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(trimmed_mean(matrix[order_], k=2), trimmed_mean(matrix, k=2))
    assert torch.equal(median(matrix[order_]), median(matrix))


def test_too_much_trimming_is_refused():
    with pytest.raises(MergeError, match="trimming 2 models on each side needs at least 5 models, 4 given"):
        trimmed_mean(torch.ones(4, 1), k=2)
    for trim in (0.5, -0.1, float("nan")):
        with pytest.raises(MergeError, match=r"a fraction in \[0, 0.5\)"):
            trimmed_mean(torch.ones(4, 1), trim=trim)
    for k in (-1, 1.5):
        with pytest.raises(MergeError, match="a whole number >= 0"):
            trimmed_mean(torch.ones(9, 1), k=k)
