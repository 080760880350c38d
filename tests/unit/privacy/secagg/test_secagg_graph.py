"""The sparse graph and its thresholds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.errors import DataError, UsageError
from fedloom.privacy.secagg import Config, graph, plan


@settings(deadline=None)
@given(st.integers(2, 100), st.floats(0, 0.2), st.floats(0, 0.2))
def test_few_clients_have_the_complete_graph(clients, dropped, corrupt):
    found = plan(clients, dropped, corrupt)
    bad, lost = int(corrupt * clients), int(dropped * clients)
    assert found.neighbours == clients - 1
    assert found.failure == 0
    assert found.threshold == found.minimum
    assert clients + bad < 2 * found.threshold <= 2 * (clients - lost)


def test_what_cannot_be_borne_is_refused():
    with pytest.raises(UsageError, match="assume fewer"):
        plan(10, dropped=0.5)
    with pytest.raises(UsageError, match="at least 2 clients"):
        plan(1)
    with pytest.raises(UsageError, match="shares from 0 to 1"):
        plan(10, dropped=1.5)


def test_neighbours_grow_slowly_and_failure_stays_below_what_is_asked():
    sizes = [1_000, 4_000, 16_000, 64_000]
    plans = [plan(n) for n in sizes]
    assert all(p.failure <= graph.FAILURE for p in plans)
    assert plans[-1].neighbours < 1.5 * plans[0].neighbours
    assert plan(4_000, failure=1e-3).neighbours < plans[1].neighbours


def test_the_stated_failure_is_not_below_what_chance_does():
    """With a failure that is large enough to be seen, so many random rounds fail at most."""
    n, rounds, failure = 200, 400, 0.2
    found = plan(n, dropped=0.1, corrupt=0.1, failure=failure)
    holders, bad, lost = found.neighbours + 1, n // 10, n // 10
    chance, failed = np.random.default_rng(5), 0
    for _ in range(rounds):
        kinds = np.zeros(n, dtype=int)
        order = chance.permutation(n)
        kinds[order[:bad]], kinds[order[bad : bad + lost]] = 1, 2
        around = [np.roll(kinds, d) for d in range(-found.neighbours // 2, found.neighbours // 2 + 1) if d]
        corrupt = np.sum([a == 1 for a in around], axis=0)
        dropped = np.sum([a == 2 for a in around], axis=0)
        fine = (2 * found.threshold > holders + corrupt) & (found.neighbours - dropped >= found.threshold)
        honest = {int(i) for i in np.flatnonzero(kinds == 0)}
        failed += not (fine.all() and graph.connected(range(n), found.neighbours, honest))
    assert found.neighbours < n - 1
    assert 0 < failed / rounds <= failure


def test_tails_are_those_of_scipy():
    from scipy.stats import hypergeom

    found = graph._Tails(50).above(9, 12)
    np.testing.assert_allclose(found, hypergeom(49, 9, 12).sf(np.arange(14) - 1), rtol=1e-9, atol=1e-15)


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(1, 15), st.binary(min_size=4, max_size=4))
def test_the_ring_is_regular_and_mutual(clients, half, binding):
    order = graph.ring(range(clients), binding)
    assert sorted(order) == list(range(clients))
    around = {client: graph.neighbours(order, place, 2 * half) for place, client in enumerate(order)}
    assert all(len(peers) == min(2 * half, clients - 1) for peers in around.values())
    assert all(i in around[j] and i != j for i, peers in around.items() for j in peers)


def test_the_order_follows_from_the_binding():
    assert graph.ring(range(50), b"a") == graph.ring(reversed(range(50)), b"a") != graph.ring(range(50), b"b")


def hangs_together(around, left) -> bool:
    seen, todo = set(), [min(left)]
    while todo:
        client = todo.pop()
        if client not in seen:
            seen.add(client)
            todo += [peer for peer in around[client] if peer in left]
    return seen == set(left)


@pytest.mark.parametrize("k", [2, 4, 6])
def test_connected_is_what_a_walk_finds(k):
    order = [3, 1, 4, 0, 5, 2, 7, 6, 8]
    around = {client: graph.neighbours(order, place, k) for place, client in enumerate(order)}
    for size in range(1, 10):
        for left in itertools.combinations(range(9), size):
            assert graph.connected(order, k, left) == hangs_together(around, left)


GOOD = {
    "session": bytes(16),
    "round": 3,
    "clients": 9,
    "size": 5,
    "bits": 20,
    "neighbours": 4,
    "threshold": 3,
    "minimum": 5,
}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"session": b""}, "session of 16 bytes; found 0"),
        ({"round": -1}, "round from 0"),
        ({"clients": 1}, "from 2 to"),
        ({"size": 0}, "size from 1"),
        ({"bits": 65}, "2 to 64 bits; found 65"),
        ({"neighbours": 3}, "8 neighbours, or an even number"),
        ({"neighbours": 10}, "8 neighbours, or an even number"),
        ({"threshold": 2}, "threshold above half of 5 holders; found 2"),
        ({"threshold": 6}, "threshold above half"),
        ({"minimum": 4}, "minimum above half of 9"),
        ({"identities": (b"a" * 32,) * 9}, "9 different ones"),
        ({"identities": (b"a" * 32,)}, "9 different ones"),
    ],
)
def test_a_configuration_that_is_not_safe_is_refused(change, text):
    with pytest.raises(UsageError, match=text):
        Config(**{**GOOD, **change})


def test_a_configuration_as_bytes():
    keys = tuple(bytes([i]) * 32 for i in range(9))
    for config in (Config(**GOOD), Config(**GOOD, identities=keys)):
        data = config.to_bytes()
        assert Config.from_bytes(data) == config
        for wrong in (data[:-1], data + b"\0", b"X" + data[1:], data[:6] + b"\xff" + data[7:]):
            with pytest.raises(DataError):
                Config.from_bytes(wrong)
    assert Config(**GOOD).digest != Config(**{**GOOD, "round": 4}).digest


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_random_bytes_are_no_configuration(data):
    head = Config(**GOOD).to_bytes()[:6]
    for tried in (data, head + data):
        try:
            Config.from_bytes(tried)
        except DataError:
            continue
        assert Config.from_bytes(tried).to_bytes() == tried
