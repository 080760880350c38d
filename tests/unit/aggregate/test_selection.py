"""Krum, Multi-Krum and Bulyan."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.aggregate import bulyan, cohort, krum, krum_scores, median, multi_krum, weighted_mean
from fedloom.aggregate.gram import squared_distances
from fedloom.errors import MergeError

LINE = torch.tensor([[0.0], [1.0], [2.0], [4.0], [100.0]])


def test_scores_by_hand():
    # f = 1: the n - f - 2 = 2 nearest others. 0: 1 + 4; 1: 1 + 1; 2: 1 + 4; 4: 4 + 9; 100: 96^2 + 98^2.
    assert krum_scores(LINE, f=1).tolist() == [5.0, 2.0, 5.0, 13.0, 9216.0 + 9604.0]
    # f = 0: the 3 nearest.
    assert krum_scores(LINE, f=0).tolist() == [21.0, 11.0, 9.0, 29.0, 9216.0 + 9604.0 + 9801.0]


def test_krum_by_hand():
    assert krum(LINE, f=1).tolist() == [1.0]
    assert krum(LINE, f=0).tolist() == [2.0]


def test_f_is_the_most_that_fits_when_nothing_is_said():
    assert torch.equal(krum(LINE), krum(LINE, f=1))
    eleven = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(krum(eleven), krum(eleven, f=4))
    assert torch.equal(bulyan(eleven), bulyan(eleven, f=2))
    assert torch.equal(bulyan(eleven[:6]), weighted_mean(eleven[:6]))


def test_multi_krum_by_hand():
    assert multi_krum(LINE, f=1, m=3).tolist() == [1.0]
    assert multi_krum(LINE, f=1, m=4).tolist() == [1.75]
    assert torch.equal(multi_krum(LINE, f=1), multi_krum(LINE, f=1, m=2))


def test_multi_krum_limits():
    matrix = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(multi_krum(matrix, f=2, m=1), krum(matrix, f=2))
    assert torch.equal(multi_krum(matrix, f=2, m=9), weighted_mean(matrix))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 12))
def test_krum_picks_a_member(seed, n):
    matrix = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    assert any(torch.equal(krum(matrix), row) for row in matrix)


def test_bulyan_by_hand():
    # n = 7, f = 1. Krum's scores over 4 neighbours: 1, 2, 3, 4 are near; the selection of 5 leaves out 90 and 50,
    # and of the five chosen the 3 nearest to their median 2 are averaged.
    matrix = torch.tensor([[0.0], [1.0], [2.0], [3.0], [5.0], [50.0], [90.0]])
    assert bulyan(matrix, f=1).tolist() == [2.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(7, 1), (8, 1), (11, 2), (12, 2), (15, 3)]))
def test_bulyan_equals_a_plain_implementation(seed, case):
    n, f = case
    matrix = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(bulyan(matrix, f=f).numpy(), plain_bulyan(matrix.double().numpy(), f), atol=1e-6)


def plain_bulyan(x, f):
    left, chosen, n = list(range(len(x))), [], len(x)
    while len(chosen) < n - 2 * f:
        scores = []
        for i in left:
            near = sorted(((x[i] - x[j]) ** 2).sum() for j in left if j != i)
            scores.append((round(sum(near[: max(1, len(left) - f - 2)]), 9), sum(near)))
        chosen.append(left.pop(scores.index(min(scores))))
    x = x[sorted(chosen)]
    nearest = np.argsort(np.abs(x - np.median(x, axis=0)), axis=0)[: n - 4 * f]
    return np.take_along_axis(x, nearest, axis=0).mean(axis=0)


def test_bulyan_bears_an_attack_in_one_coordinate():
    # Every bad model is near in all coordinates but one, so that Krum may choose it.
    matrix = 0.1 * torch.randn(11, 200, generator=torch.Generator().manual_seed(3))
    matrix[0, 17] = matrix[1, 17] = 1.0
    assert abs(float(bulyan(matrix, f=2)[17])) < 0.2


def test_distances_keep_their_digits_far_from_zero():
    near = 1000.0 + 1e-3 * torch.randn(6, 500, generator=torch.Generator().manual_seed(4))
    matrix = torch.cat([near, torch.full((1, 500), 1e25)])
    exact = ((matrix.double()[:, None] - matrix.double()[None]) ** 2).sum(dim=2).numpy()
    found = squared_distances(cohort(matrix), median(matrix))
    np.testing.assert_allclose(found[:6, :6], exact[:6, :6], rtol=1e-9)
    np.testing.assert_allclose(found, found.T)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_too_few_models_are_refused_with_the_numbers(n):
    matrix = torch.ones(n, 2)
    with pytest.raises(MergeError, match=rf"krum needs at least 5 models to bear f = 1 bad ones .*, {n} given"):
        krum(matrix, f=1)
    with pytest.raises(MergeError, match=rf"multi-krum needs at least 5 models .*, {n} given"):
        multi_krum(matrix, f=1)
    with pytest.raises(MergeError, match=rf"bulyan needs at least 7 models to bear f = 1 bad ones .*, {n} given"):
        bulyan(matrix, f=1)


def test_two_models_are_too_few_whatever_f_is():
    for rule in (krum, multi_krum, bulyan):
        with pytest.raises(MergeError, match=r"needs at least 3 models .*, 2 given"):
            rule(torch.ones(2, 2))


def test_options_out_of_range_are_refused():
    with pytest.raises(MergeError, match="f = -1: a whole number"):
        krum(LINE, f=-1)
    with pytest.raises(MergeError, match="m = 0: a whole number >= 1"):
        multi_krum(LINE, m=0)
    with pytest.raises(MergeError, match="m = 6 models are to be averaged, 5 given"):
        multi_krum(LINE, m=6)
    with pytest.raises(MergeError, match="to bear f = 1"):
        krum(torch.ones(1, 2), f=1)
