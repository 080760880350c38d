"""Whole numbers for vectors: exact sums, a stated error, and no sum that wraps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedloom.errors import MergeError, UsageError
from fedloom.privacy.secagg import FixedPoint, plain_sum


@settings(deadline=None)
@given(
    bits=st.integers(12, 64),
    clients=st.integers(1, 40),
    bound=st.floats(1e-6, 1e6),
    heaviest=st.floats(0.01, 1e4),
    seed=st.integers(0, 2**32),
    whole=st.booleans(),
)
def test_the_mean_is_within_the_stated_error(bits, clients, bound, heaviest, seed, whole):
    code, chance = FixedPoint(clients, bound, heaviest, bits), np.random.default_rng(seed)
    weights = chance.uniform(heaviest / 2, heaviest, clients)
    if whole:
        assume(heaviest >= 2)
        weights = np.floor(weights)
    largest = (bound / weights)[:, None] * chance.choice([-1, 1, 0.3], (clients, 7))
    vectors = (largest * (1 - 1e-6)).astype(np.float32)
    found = code.decode(plain_sum([code.encode(v, w) for v, w in zip(vectors, weights, strict=True)], bits))
    error = code.error(found.weight, whole=whole)
    assume(np.isfinite(error))
    exact = (weights[:, None] * vectors.astype(np.float64)).sum(0) / weights.sum()
    assert abs(found.weight - weights.sum()) <= 0.5 * clients / code.weight_scale * (1 + 1e-6)
    assert np.abs(found.total / found.weight - exact).max() <= error
    assert np.abs(found.mean - exact).max() <= error + np.abs(exact).max() * 2**-23


@settings(deadline=None)
@given(st.integers(2, 64), st.integers(1, 1000), st.floats(1e-30, 1e30))
def test_the_sum_of_all_at_the_bound_does_not_wrap(bits, clients, bound):
    assume(2 ** (bits - 1) - 1 >= clients)
    code = FixedPoint(clients, bound, 1.0, bits)
    most = round(bound * code.scale)
    assert clients * most <= 2 ** (bits - 1) - 1
    assert (
        round(2 * bound * code.scale) > code.limit or code.scale * bound >= 2**43
    )  # the next power would be too large


def test_all_clients_at_the_bound_by_hand():
    code = FixedPoint(clients=3, bound=1.0, bits=8)  # limit 42, so 32 steps per unit
    assert (code.limit, code.scale) == (42, 32.0)
    ones = [code.encode(np.array([-1.0, 0.5], dtype=np.float32)) for _ in range(3)]
    np.testing.assert_array_equal(ones[0], np.array([256 - 32, 16, 32], dtype=np.uint32))
    mean = code.decode(plain_sum(ones, 8))
    np.testing.assert_array_equal(mean.mean, np.array([-1, 0.5], dtype=np.float32))
    assert mean.weight == 3.0


def test_rounding_is_to_the_nearest_and_the_same_every_time():
    code = FixedPoint(clients=1, bound=1.0, bits=4)
    assert code.scale == 4
    values = np.array([0.12, 0.13, -0.12, -0.13, 0.125, 0.375], dtype=np.float32)
    found = code.encode(values)
    np.testing.assert_array_equal(found[:-1], [0, 1, 0, 15, 0, 2])
    np.testing.assert_array_equal(found, code.encode(values))


def test_whole_weights_are_exact():
    code = FixedPoint(clients=100, bound=600.0, heaviest=600)
    assert code.weight_scale >= 1
    encoded = [code.encode(np.zeros(1, dtype=np.float32), weight) for weight in (599, 1, 37)]
    assert code.decode(plain_sum(encoded, 32)).weight == 637.0


@pytest.mark.parametrize("value", [1.01, -1.01, np.nan, np.inf, -np.inf])
def test_a_value_out_of_range_is_an_error_with_client_and_range(value):
    vector = np.array([0, value, 0.5], dtype=np.float32)
    with pytest.raises(UsageError, match=r"client ana: a value of .* outside the range -1 to 1") as caught:
        FixedPoint(clients=4, bound=1.0).encode(vector, client="ana")
    assert caught.value.context["client"] == "ana"


@pytest.mark.parametrize("weight", [-1.0, 2.5, np.nan])
def test_a_weight_out_of_range_is_an_error(weight):
    with pytest.raises(UsageError, match="client bo: the weight"):
        FixedPoint(clients=4, bound=1.0, heaviest=2.0).encode(np.zeros(2, dtype=np.float32), weight, client="bo")


def test_noise_in_steps_is_added_and_checked():
    code = FixedPoint(clients=2, bound=1.0, bits=16)
    vector, noise = np.zeros(2, dtype=np.float32), np.array([5, -7])
    np.testing.assert_array_equal(code.encode(vector, noise=noise)[:-1], [5, 2**16 - 7])
    with pytest.raises(UsageError, match="with its noise"):
        code.encode(vector, noise=np.array([0, code.limit + 1]))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="too few"):
        FixedPoint(clients=1000, bound=1.0, bits=8)
    with pytest.raises(UsageError, match="bound"):
        FixedPoint(clients=2, bound=0.0)
    with pytest.raises(UsageError, match="2-64 bits"):
        FixedPoint(clients=2, bound=1.0, bits=65)
    with pytest.raises(MergeError, match="total weight of zero"):
        FixedPoint(clients=2, bound=1.0).decode(np.zeros(3, dtype=np.uint32))
    with pytest.raises(MergeError, match="no vector"):
        plain_sum([], 32)


def test_the_vector_is_not_changed():
    vector = np.array([0.5, -0.25], dtype=np.float32)
    kept = vector.copy()
    FixedPoint(clients=2, bound=10.0, heaviest=3.0).encode(vector, 3.0)
    np.testing.assert_array_equal(vector, kept)
