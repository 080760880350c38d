"""The sum is the plain sum over the survivors, whoever drops out and when; or there is none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.errors import TrainingError
from fedloom.privacy.secagg import Config, FixedPoint, Step, identity, plain_sum, simulate
from fedloom.privacy.secagg.packing import dtype

NEVER = 6
WHEN = st.sampled_from([*Step, NEVER])


def numbers(n: int, size: int, bits: int, seed: int = 0) -> list[np.ndarray]:
    data = np.random.default_rng(seed).integers(0, 2**64, (n, size), dtype=np.uint64)
    return [(row >> np.uint64(64 - bits)).astype(dtype(bits)) for row in data]


def left_after(pattern, step: Step) -> list[int]:
    return [i for i, when in enumerate(pattern) if when > step]


def check_pattern(config: Config, pattern, seed: int = 0, **options) -> bool:
    """Run a pattern in the complete graph; returns whether there was a sum."""
    vectors = numbers(config.clients, config.size, config.bits, seed)
    drops = {i: when for i, when in enumerate(pattern) if when != NEVER}
    chance = np.random.default_rng(seed)
    if len(left_after(pattern, Step.REVEAL)) < config.threshold:
        with pytest.raises(TrainingError, match=r"secure aggregation, round 4: .* repeat the round"):
            simulate(vectors, drops, config, chance=chance, **options)
        return False
    outcome = simulate(vectors, drops, config, chance=chance, **options)
    survivors = left_after(pattern, Step.MASK)
    assert outcome.survivors == tuple(survivors)
    expected = plain_sum([vectors[i] for i in survivors], config.bits)
    assert outcome.sum.dtype == expected.dtype
    np.testing.assert_array_equal(outcome.sum, expected)
    return True


@pytest.mark.parametrize(("n", "sums"), [(2, 1), (3, 16)])
def test_every_pattern_of_few_clients(n, sums):
    config = Config.of(b"s" * 16, 4, clients=n, size=3)
    found = [check_pattern(config, pattern) for pattern in itertools.product([*Step, NEVER], repeat=n)]
    assert sum(found) == sums  # 3 clients: all stay, or one of them goes in one of 5 steps


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_pattern_of_up_to_eight_clients(data):
    n = data.draw(st.integers(3, 8))
    pattern = data.draw(st.lists(WHEN, min_size=n, max_size=n))
    bits = data.draw(st.sampled_from([2, 7, 16, 31, 32, 33, 64]))
    size = data.draw(st.sampled_from([1, 8, 21]))
    check_pattern(Config.of(b"s" * 16, 4, clients=n, size=size, bits=bits), pattern, data.draw(st.integers(0, 99)))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_pattern_above_the_threshold_with_signatures(data):
    n = data.draw(st.integers(3, 8))
    config = Config.of(b"s" * 16, 4, clients=n, size=5, dropped=0)
    stays = data.draw(st.sets(st.integers(0, n - 1), min_size=config.threshold))
    pattern = [NEVER if i in stays else data.draw(WHEN) for i in range(n)]
    pairs = [identity(np.random.default_rng(i).bytes) for i in range(n)]
    signed = Config.of(b"s" * 16, 4, clients=n, size=5, dropped=0, identities=[public for _, public in pairs])
    assert check_pattern(signed, pattern, identities=[private for private, _ in pairs])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_sparse_graph_gives_the_plain_sum_or_says_why_not(data):
    n, k = 16, data.draw(st.sampled_from([4, 6, 8]))
    config = Config(b"s" * 16, 4, n, 5, 32, k, threshold=k // 2 + 1, minimum=9)
    gone = data.draw(st.dictionaries(st.integers(0, n - 1), st.sampled_from(list(Step)), max_size=5))
    vectors = numbers(n, 5, 32)
    try:
        outcome = simulate(vectors, gone, config, chance=np.random.default_rng(data.draw(st.integers(0, 9))))
    except TrainingError as error:
        assert "fall apart" in str(error) or "that hold a share of client" in str(error)  # noqa: PT017
        assert len(gone) > 1
        return
    alive = [i for i in range(n) if gone.get(i, NEVER) > Step.MASK]
    np.testing.assert_array_equal(outcome.sum, plain_sum([vectors[i] for i in alive], 32))


def test_a_sparse_graph_costs_each_client_fewer_bytes():
    vectors = numbers(16, 5, 32)
    sparse = simulate(vectors, {}, Config(b"s" * 16, 4, 16, 5, 32, 4, 3, 9))
    complete = simulate(vectors, {}, Config(b"s" * 16, 4, 16, 5, 32, 15, 9, 9))
    assert max(sparse.bytes_up) < min(complete.bytes_up)
    assert max(sparse.bytes_down) < min(complete.bytes_down)
    np.testing.assert_array_equal(sparse.sum, complete.sum)


def test_bytes_are_those_of_the_messages_by_hand():
    """Three clients, one number: head and seal (96) five times, and what is in them."""
    outcome = simulate(numbers(3, 1, 32), {}, Config.of(bytes(16), 4, clients=3, size=1))
    up = 5 * 96 + 64 + (32 + 2 * 86) + 4 + 4 * 4 + (4 + 3 * 37)
    down = 4 * 96 + 3 * 132 + 2 * 86 + 4 * 4 + 3 * 68
    assert outcome.bytes_up == (up,) * 3
    assert outcome.bytes_down == (down,) * 3


def test_nobody_is_named_when_too_few_are_left():
    config = Config.of(bytes(16), 2, clients=5, size=1)
    with pytest.raises(
        TrainingError, match=r"round 2: 2 of 5 clients are left after step 'mask', at least 3"
    ) as caught:
        simulate(numbers(5, 1, 32), dict.fromkeys(range(3), Step.MASK), config)
    assert (caught.value.context["found"], caught.value.context["expected"]) == (2, 3)


def test_two_rounds_differ_and_a_fixed_chance_repeats():
    config, vectors = Config.of(bytes(16), 4, clients=3, size=4), numbers(3, 4, 32)
    np.testing.assert_array_equal(simulate(vectors, {}, config).sum, simulate(vectors, {}, config).sum)
    chance = [simulate(vectors, {}, config, chance=np.random.default_rng(1)) for _ in range(2)]
    assert chance[0].bytes_up == chance[1].bytes_up


def test_weighted_means_through_the_protocol_have_the_bits_of_the_plain_ones():
    n, chance = 6, np.random.default_rng(8)
    vectors = chance.normal(0, 0.1, (n, 50)).astype(np.float32)
    weights = chance.integers(1, 600, n)
    code = FixedPoint(clients=n, bound=600.0, heaviest=600)
    encoded = [code.encode(v, float(w)) for v, w in zip(vectors, weights, strict=True)]
    outcome = simulate(encoded, {2: Step.MASK, 5: Step.REVEAL}, Config.of(bytes(16), 1, clients=n, size=51))
    alive = [0, 1, 3, 4, 5]
    plain = code.decode(plain_sum([encoded[i] for i in alive], 32))
    secure = code.decode(outcome.sum)
    assert secure.mean.tobytes() == plain.mean.tobytes()
    assert secure.weight == weights[alive].sum()
    exact = np.average(vectors[alive].astype(np.float64), axis=0, weights=weights[alive])
    assert np.abs(secure.mean - exact).max() <= code.error(secure.weight, 5, whole=True) + 1e-8
