from itertools import product

import numpy as np
import pytest

from fedloom.aggregate import sortnet


def send(n, first, last, columns):
    scratch = list(np.full((n + 1, columns.shape[1]), np.nan, dtype=np.float32))
    before = columns.copy()
    out = sortnet.run(sortnet.network(n, first, last), list(columns), scratch)
    assert np.array_equal(columns, before)
    return np.stack(out[first : last + 1])


@pytest.mark.parametrize("n", range(1, 13))
def test_sorts_every_zero_one_input(n):
    # The 0-1 principle: a network that sorts these sorts everything.
    columns = np.array(list(product([0, 1], repeat=n)), dtype=np.float32).T
    assert np.array_equal(send(n, 0, n - 1, columns), np.sort(columns, axis=0))


@pytest.mark.parametrize("n", range(1, 13))
def test_pruned_network_gives_the_wanted_outputs(n):
    columns = np.array(list(product([0, 1], repeat=n)), dtype=np.float32).T
    for first in range((n + 1) // 2):
        last = n - 1 - first
        assert np.array_equal(send(n, first, last, columns), np.sort(columns, axis=0)[first : last + 1])


@pytest.mark.parametrize("n", [20, 32, 33, 64])
def test_random_inputs(n):
    columns = np.random.default_rng(n).standard_normal((n, 200)).astype(np.float32)
    assert np.array_equal(send(n, n // 2, n // 2, columns)[0], np.sort(columns, axis=0)[n // 2])


@pytest.mark.parametrize(("n", "size"), [(1, 0), (2, 1), (3, 3), (4, 5), (8, 19), (16, 63)])
def test_number_of_comparators_is_batchers(n, size):
    # Knuth, volume 3, section 5.2.2, gives 1, 5, 19, 63 for 2, 4, 8, 16 wires.
    assert len(sortnet.batcher(n)) == size


def test_pruning_leaves_out_what_nobody_reads():
    whole = sum(c.keep_low + c.keep_high for c in sortnet.network(20, 0, 19))
    middle = sum(c.keep_low + c.keep_high for c in sortnet.network(20, 9, 10))
    assert whole == 2 * len(sortnet.batcher(20))
    assert middle < 0.8 * whole
    assert len(sortnet.network(4, 0, 0)) == 3
