from __future__ import annotations

import itertools
import tracemalloc
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from fedloom import sampling
from fedloom.errors import UsageError

MILLION = 1_000_000
SIZES = [5, 0, 1, 3, 1]
COUNTED = ["uniform", "size", "fixed", "cyclic"]


def sampler(scheme, per_round=2, clients=5, seed=0, sizes=SIZES):
    return sampling.make(scheme, per_round, clients, seed, sizes)


def large(scheme, per_round=50, clients=5000, seed=0):
    return sampling.make(scheme, per_round, clients, seed, np.arange(clients) % 7)


@pytest.mark.parametrize("scheme", sampling.SAMPLERS)
@pytest.mark.parametrize("make", [sampler, large])
def test_a_cohort_is_a_function_of_seed_and_round(scheme, make):
    one, two = ([make(scheme, seed=s).cohort(number) for s in (0, 1) for number in (1, 2)] for _ in range(2))
    for cohort, again in zip(one, two, strict=True):
        assert np.array_equal(cohort, again)
        assert np.array_equal(cohort, np.unique(cohort))
        assert np.isin(cohort, np.arange(make(scheme).clients)).all()
    different = {cohort.tobytes() for cohort in one}
    assert len(different) == {"all": 1, "fixed": 2}.get(scheme, len(different))


@pytest.mark.parametrize("scheme", ["uniform", "size", "poisson"])
def test_rounds_and_seeds_have_other_cohorts(scheme):
    cohorts = {large(scheme, seed=seed).cohort(number).tobytes() for seed in (0, 1) for number in range(1, 6)}
    assert len(cohorts) == 10


@pytest.mark.parametrize("scheme", COUNTED)
def test_a_cohort_has_as_many_as_were_asked_for(scheme):
    assert all(len(sampler(scheme).cohort(number)) == 2 for number in range(1, 20))
    assert all(len(large(scheme).cohort(number)) == 50 for number in range(1, 20))


@pytest.mark.parametrize("scheme", ["uniform", "size", "fixed", "all"])
@pytest.mark.parametrize("make", [sampler, large])
def test_an_order_has_everybody_once(scheme, make):
    made = make(scheme)
    order = np.concatenate(list(made.order(3)))
    wanted = np.arange(made.clients)
    if scheme == "size":
        wanted = wanted[np.diff(made.shares, prepend=0) > 0]
    assert np.array_equal(np.sort(order), wanted)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(COUNTED), st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 1000))
def test_a_larger_cohort_begins_with_the_smaller_one(scheme, few, many, number):
    made = large(scheme)
    few, many = sorted((few, many))
    assert np.array_equal(made.take(number, few), made.take(number, many)[:few])


def test_those_that_cannot_be_asked_are_passed_over():
    made = large("uniform")
    order = np.concatenate(list(made.order(1)))
    wanted = [c for c in order.tolist() if c % 2 and c not in order[:10].tolist()]
    assert made.take(1, 2000, lambda c: c % 2 == 1, order[:10]).tolist() == wanted[:2000]
    assert len(made.take(1, 5000, lambda c: c < 0)) == 0


def test_uniform_cohorts_are_all_equally_likely():
    made = sampler("uniform", clients=5)
    seen = [tuple(made.cohort(number)) for number in range(1, 2001)]
    counts = [seen.count(pair) for pair in itertools.combinations(range(5), 2)]
    assert sum(counts) == 2000
    assert chisquare(counts).pvalue > 0.01


def test_uniform_places_in_a_large_order_are_uniform():
    made = large("uniform")
    picked = np.concatenate([made.cohort(number) for number in range(1, 401)])
    assert chisquare(np.bincount(picked // 50, minlength=100)).pvalue > 0.01
    last = np.concatenate([np.concatenate(list(made.order(number)))[-50:] for number in range(1, 101)])
    assert kstest(last / 5000, "uniform").pvalue > 0.01


def successive(sizes, count):
    """Chances of ordered cohorts, drawn one after the other in proportion to the sizes that are left."""
    chances = {}
    for order in permutations([i for i, s in enumerate(sizes) if s], count):
        chance, left = 1.0, float(sum(sizes))
        for client in order:
            chance *= sizes[client] / left
            left -= sizes[client]
        chances[order] = chance
    return chances


def test_size_is_successive_draws_in_a_small_population():
    made = sampler("size")
    seen = [tuple(made.take(number, 2).tolist()) for number in range(1, 3001)]
    chances = successive(SIZES, 2)
    assert set(seen) <= set(chances)
    assert chisquare([seen.count(order) for order in chances], [3000 * p for p in chances.values()]).pvalue > 0.01


def test_size_is_successive_draws_in_a_large_population(monkeypatch):
    """Both ways to make an order have the law: draws with replacement first, the rest at once."""
    monkeypatch.setattr(sampling, "_SMALL", 1)
    monkeypatch.setattr(sampling, "_FIRST", 1)
    made = sampler("size")
    seen = [tuple(made.take(number, 3).tolist()) for number in range(1, 3001)]
    chances = successive(SIZES, 3)
    assert chisquare([seen.count(order) for order in chances], [3000 * p for p in chances.values()]).pvalue > 0.01


def test_size_prefers_the_large_ones_of_many():
    made = large("size", per_round=1)
    picked = np.array([made.cohort(number)[0] % 7 for number in range(1, 2101)])
    counts = np.bincount(picked, minlength=7)
    assert counts[0] == 0
    assert chisquare(counts[1:], 2100 * np.arange(1, 7) / 21).pvalue > 0.01


@pytest.mark.parametrize("scheme", ["fixed", "all"])
def test_the_same_clients_in_every_round(scheme):
    made = large(scheme)
    assert np.array_equal(made.cohort(1), made.cohort(99))
    assert len(made.cohort(1)) == (5000 if scheme == "all" else 50)
    if scheme == "fixed":
        assert not np.array_equal(made.cohort(1), large(scheme, seed=1).cohort(1))


@pytest.mark.parametrize(("clients", "per_round"), [(12, 3), (13, 3), (5, 5), (7, 4), (2000, 100)])
def test_cyclic_asks_each_client_once_per_pass_always_in_the_same_order(clients, per_round):
    made = sampling.make("cyclic", per_round, clients, 3)
    rounds = clients // per_round
    passes = [
        [made.take(number, per_round).tolist() for number in range(1 + k * rounds, 1 + (k + 1) * rounds)]
        for k in range(3)
    ]
    assert passes[0] == passes[1] == passes[2]
    asked = [client for cohort in passes[0] for client in cohort]
    assert len(set(asked)) == len(asked) == rounds * per_round
    assert all(len(cohort) == per_round for cohort in passes[0])
    assert made.scheme.insists  # who is away is not replaced: the gap between two turns stays


def test_cyclic_has_another_order_for_another_seed():
    orders = [
        np.concatenate([sampling.make("cyclic", 10, 100, seed).take(n, 10) for n in range(1, 11)]) for seed in (0, 1)
    ]
    assert not np.array_equal(*orders)
    assert not np.array_equal(orders[0], np.arange(100))


def test_how_many_a_round_has_on_average():
    assert sampling.make("uniform", 7, 50).expected == 7
    assert sampling.make("all", 7, 50).expected == 50
    assert sampling.make("poisson", 0.1, 50).expected == 5


@pytest.mark.parametrize("clients", [40, 3000])
def test_poisson_tosses_a_coin_for_each(clients):
    made = sampling.make("poisson", 0.05, clients, 0)
    cohorts = [made.cohort(number) for number in range(1, 2001)]
    lengths = np.array([len(c) for c in cohorts])
    mean, variance = 0.05 * clients, 0.05 * 0.95 * clients
    assert abs(lengths.mean() - mean) < 4 * np.sqrt(variance / 2000)
    assert 0.85 < lengths.var() / variance < 1.15
    assert (lengths.min() == 0) == (clients == 40)
    counts = np.bincount(np.concatenate(cohorts), minlength=clients)
    assert 0.8 < counts.var() / (2000 * 0.05 * 0.95) < 1.2 or clients == 40
    pairs = np.mean([np.isin([0, 1], c).all() for c in cohorts])
    assert abs(pairs - 0.05**2) < 4 * np.sqrt(0.05**2 / 2000)


def test_a_cohort_of_a_million_needs_no_million():
    made = sampling.make("uniform", 100, MILLION)
    made.cohort(1)
    tracemalloc.start()
    cohorts = [made.cohort(number) for number in range(1, 11)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000
    assert all(len(c) == 100 for c in cohorts)


def test_half_of_many_is_possible():
    for scheme in ("uniform", "size"):
        made = sampling.make(scheme, "50%", 200_000, sizes=np.arange(200_000))
        assert len(np.unique(made.cohort(1))) == 100_000


@pytest.mark.parametrize(
    ("per_round", "expected"),
    [(10, (10, 0.2)), ("10", (10, 0.2)), ("20%", (10, 0.2)), (0.2, (10, 0.2)), (1, (1, 0.02)), (1.0, (50, 1.0))],
)
def test_how_many_in_every_spelling(per_round, expected):
    assert sampling.how_many(per_round, 50) == expected


def test_a_small_share_is_one_client_at_least():
    assert sampling.how_many(0.001, 50) == (1, 0.001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("unifrom", 2, 5), "unknown sampling scheme 'unifrom': did you mean 'uniform'?"),
        (("uniform", 6, 5), "per_round is 6, but there are only 5 clients: ask for at most 5"),
        (("uniform", 0, 5), "per_round is '0': a whole number of clients"),
        (("uniform", "-3", 5), "per_round is '-3'"),
        (("uniform", 2.5, 5), "per_round is '2.5'"),
        (("uniform", "120%", 5), "per_round is '120%'"),
        (("uniform", "many", 5), "per_round is 'many'"),
        (("uniform", "%", 5), "per_round is '%'"),
        (("uniform", "nan", 5), "per_round is 'nan'"),
        (("uniform", "inf", 5), "per_round is 'inf'"),
        (("uniform", True, 5), "per_round is 'True'"),
        (("uniform", 1, 0), "no clients to sample from"),
        (("size", 2, 5), "the sizes of the clients are needed"),
        (("size", 2, 5, 0, [1, 2]), r"5 sizes, none below 0, are expected; found \(2,\)"),
        (("size", 2, 2, 0, [1, -2]), "none below 0"),
        (("size", 3, 4, 0, [1, 0, 2, 0]), "only 2 of the 4 clients have samples: ask for at most 2"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        sampling.make(*arguments)
    assert "\n" not in str(caught.value)
