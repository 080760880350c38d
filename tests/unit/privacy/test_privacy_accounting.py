"""Accounting: what dp_accounting says of the same events, what papers published, and what really can be told apart."""

from __future__ import annotations

import json
import math
import time

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from fedloom.errors import DataError, UsageError
from fedloom.privacy import (
    Discrete,
    DistributedGaussian,
    Ledger,
    Local,
    Release,
    Sampling,
    Skellam,
    TreeNoise,
    TreeRun,
    TreeStep,
    delta_warnings,
    google,
    noise_for,
    plan,
)

NEIGHBOURS = dp.NeighboringRelation
POISSON = Sampling("poisson", rate=0.02)
UNIFORM = Sampling("uniform", count=20, population=1000)


def test_poisson_is_dp_accountings_sampled_gaussian():
    ledger = Ledger()
    ledger.record(Release(0.9, POISSON), times=300)
    ledger.record(Release(1.4, POISSON), times=20)
    theirs = rdp.RdpAccountant()
    theirs.compose(dp.PoissonSampledDpEvent(0.02, dp.GaussianDpEvent(0.9)), 300)
    theirs.compose(dp.PoissonSampledDpEvent(0.02, dp.GaussianDpEvent(1.4)), 20)
    for delta in (1e-3, 1e-5, 1e-9):
        assert ledger.epsilon(delta) == pytest.approx(theirs.get_epsilon(delta), rel=1e-12)


def test_without_sampling_it_is_dp_accountings_gaussian():
    theirs = rdp.RdpAccountant().compose(dp.GaussianDpEvent(5.0), 40)
    assert plan(Release(5.0), 40, 1e-6) == pytest.approx(theirs.get_epsilon(1e-6), rel=1e-12)
    # A rate of one, and all of the population, are no sampling.
    assert plan(Release(5.0, Sampling("poisson", rate=1.0)), 40, 1e-6) == plan(Release(5.0), 40, 1e-6)
    all_of_them = Release(10.0, Sampling("uniform", count=7, population=7))
    assert plan(all_of_them, 40, 1e-6) == plan(Release(5.0), 40, 1e-6)


def test_uniform_sampling_has_twice_the_sensitivity_of_the_sum():
    theirs = rdp.RdpAccountant(neighboring_relation=NEIGHBOURS.REPLACE_ONE)
    theirs.compose(dp.SampledWithoutReplacementDpEvent(1000, 20, dp.GaussianDpEvent(1.5)), 100)
    assert plan(Release(3.0, UNIFORM), 100, 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-12)


def test_pld_is_dp_accountings_and_tighter():
    ledger = Ledger("pld")
    ledger.record(Release(0.9, POISSON), times=100)
    ledger.record(Release(20.0))
    theirs = pld.PLDAccountant(value_discretization_interval=ledger.interval)
    theirs.compose(dp.PoissonSampledDpEvent(0.02, dp.GaussianDpEvent(0.9)), 100).compose(dp.GaussianDpEvent(20.0))
    assert ledger.epsilon(1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-9)
    fine = pld.PLDAccountant().compose(dp.PoissonSampledDpEvent(0.02, dp.GaussianDpEvent(0.9)), 100)
    assert fine.get_epsilon(1e-5) <= plan(Release(0.9, POISSON), 100, 1e-5, "pld") < fine.get_epsilon(1e-5) + 1e-3
    assert plan(Release(0.9, POISSON), 100, 1e-5, "pld") < plan(Release(0.9, POISSON), 100, 1e-5)


# Published with the first conversion from Renyi DP, min(rdp + log(1 / delta) / (order - 1)) (Mironov 2017, Proposition
# 3); dp_accounting's newer one gives less. delta is 1e-5.
PUBLISHED = [
    # TensorFlow Privacy, tutorials/README.md, MNIST: batches of 256, epochs of 60,000 examples.
    (1.12, 256, 60, 2.92),
    (0.6, 256, 30, 9.74),
    (1.2, 256, 10, 1.20),
    # Bu, Dong, Long, Su 2020, "Deep Learning with Gaussian Differential Privacy", Figure 4, moments accountant.
    (1.3, 256, 20, 1.34),
    (0.7, 256, 70, 8.68),
]


@pytest.mark.parametrize(("multiplier", "batch", "epochs", "epsilon"), PUBLISHED)
def test_published_epsilons_of_dp_sgd_on_mnist(multiplier, batch, epochs, epsilon):
    event, steps = Release(multiplier, Sampling("poisson", rate=batch / 60_000)), epochs * 60_000 // batch
    orders = np.array(google.orders())
    old = (event.curve(google.orders()) * steps + math.log(1e5) / (orders - 1)).min()
    assert old == pytest.approx(epsilon, rel=0.01)
    assert 0.75 * epsilon < plan(event, steps, 1e-5) < epsilon


# Kairouz et al. 2021, StackOverflow: one tree of 1,600 rounds, every client once, delta 1e-6.
@pytest.mark.parametrize(("multiplier", "epsilon"), [(1.13, 19.74), (8.83, 2.04)])
def test_published_epsilons_of_dp_ftrl(multiplier, epsilon):
    found = plan(TreeNoise(1.0, multiplier).run(1600), 1, 1e-6)
    assert 0.8 * epsilon < found < epsilon


# Incremental composition, state.


def events_of(seed):
    chance = np.random.default_rng(seed)
    return [Release(float(z), POISSON) for z in chance.choice([0.8, 1.0, 1.3], size=12)] + [Release(9.0)]


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_round_by_round_is_all_at_once_and_epsilon_only_grows(accountant):
    events, ledger, seen = events_of(0), Ledger(accountant), []
    for event in events:
        ledger.record(event)
        seen.append(ledger.epsilon(1e-5))
    assert seen == sorted(seen)
    whole = Ledger(accountant)
    for event in set(events):
        whole.record(event, times=events.count(event))
    assert whole.epsilon(1e-5) == pytest.approx(seen[-1], rel=1e-5)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_a_ledger_that_was_written_down_goes_on(accountant):
    ledger, events = Ledger(accountant), events_of(1)
    for event in events[:7]:
        ledger.record(event)
    resumed = Ledger.restore(json.loads(json.dumps(ledger.state(), allow_nan=False)))
    for event in events[7:]:
        ledger.record(event)
        resumed.record(event)
    assert resumed.epsilon(1e-5) == pytest.approx(ledger.epsilon(1e-5), rel=1e-6)
    assert resumed.state() == ledger.state()


def test_clients_and_trees_survive_being_written_down():
    tree, local = Ledger(), Ledger()
    for number in range(1, 8):
        tree.record(TreeStep(2.0, number), [number % 3, 9])
        local.record(Local(4.0), [number % 2])
        tree = Ledger.restore(json.loads(json.dumps(tree.state(), allow_nan=False)))
        local = Ledger.restore(json.loads(json.dumps(local.state(), allow_nan=False)))
    assert local.epsilon(1e-5) == plan(Local(4.0), 4, 1e-5)
    assert tree.epsilon(1e-5) == pytest.approx(plan(TreeRun(2.0, (7,), participations=7), 1, 1e-5), rel=0.3)
    with pytest.raises(DataError, match="damaged"):
        Ledger.restore({"accountant": "rdp"})
    with pytest.raises(DataError, match="damaged"):
        Ledger.restore({**local.state(), "events": [[{"kind": "nothing"}, 1]]})
    free = Ledger()
    free.record(Local(0.0), [1])
    assert Ledger.restore(json.loads(json.dumps(free.state(), allow_nan=False))).epsilon(1e-5) == math.inf


def test_a_thousand_rounds_are_accounted_in_seconds():
    ledger, began = Ledger(), time.perf_counter()
    for _ in range(1000):
        ledger.record(Release(1.0, POISSON))
        ledger.epsilon(1e-5)
    assert time.perf_counter() - began < 10


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert Ledger().epsilon(1e-5) == 0.0
    for event in (Release(0.0), Release(0.0, POISSON), Release(0.0, UNIFORM)):
        assert plan(event, 1, 1e-5) == math.inf
    assert plan(DistributedGaussian(1.0, 0.0, 10, 100).event(10), 1, 1e-5) == math.inf


# Local noise: every client pays for itself, and any two inputs are told apart.


def test_local_noise_costs_a_client_its_own_turns_and_twice_the_clip():
    ledger = Ledger()
    for clients in ([1, 2], [2, 3], [2]):
        ledger.record(Local(6.0), clients)
    theirs = rdp.RdpAccountant().compose(dp.GaussianDpEvent(3.0), 3)
    assert ledger.epsilon(1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-12)


# Trees.


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 100])
def test_a_tree_with_one_turn_each_is_dp_accountings_single_epoch_tree(steps):
    theirs = rdp.RdpAccountant(neighboring_relation=NEIGHBOURS.REPLACE_SPECIAL)
    theirs.compose(dp.SingleEpochTreeAggregationDpEvent(3.0, steps))
    ledger = Ledger()
    for number in range(1, steps + 1):
        ledger.record(TreeStep(3.0, number), [number])
    assert ledger.epsilon(1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-12)
    assert plan(TreeNoise(1.0, 3.0).run(steps), 1, 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-12)


def squared_sensitivity(steps, turns):
    """By brute force: all nodes that are complete after ``steps``, and how often the turns are in each."""
    total = 0
    for level in range(steps.bit_length()):
        width = 1 << level
        for start in range(0, steps - width + 1, width):
            total += sum(start < turn <= start + width for turn in turns) ** 2
    return total


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_several_turns_in_a_tree_cost_what_its_nodes_tell_and_never_more_than_planned(steps, gap, data):
    turns = [t for t in range(1, steps + 1) if data.draw(st.booleans())]
    kept: list[int] = []
    for turn in turns:
        if not kept or turn - kept[-1] >= gap:
            kept.append(turn)
    ledger = Ledger()
    for number in range(1, steps + 1):
        ledger.record(TreeStep(5.0, number), [7] if number in kept else [])
    want = squared_sensitivity(steps, kept) * 0.5 / 25
    assert ledger._clients.get(7, 0.0) == pytest.approx(want)
    if kept:
        assert TreeRun(5.0, (steps,), len(kept), gap).rho >= want - 1e-12


def test_restarts_add_up_and_steps_may_not_be_left_out():
    tree, ledger = TreeNoise(1.0, 2.0, restart=4), Ledger()
    for number in range(1, 11):
        ledger.record(tree.event(number), [number % 4])
    assert ledger.epsilon(1e-5) <= plan(tree.run(10), 1, 1e-5)
    with pytest.raises(UsageError, match="empty ones too"):
        ledger.record(TreeStep(2.0, 5), [1])
    with pytest.raises(UsageError, match="which clients"):
        ledger.record(TreeStep(2.0, 3))


# Integer noise, against the divergence between the two distributions that it really makes.


def renyi(p, q, order):
    keep = (p > 1e-200) & (q > 1e-200)
    return float(special.logsumexp(order * np.log(p[keep]) + (1 - order) * np.log(q[keep]))) / (order - 1)


@pytest.mark.parametrize("order", [2.0, 5.0, 16.0])
@pytest.mark.parametrize(("noise", "std", "shares"), [("discrete-gaussian", 0.8, 4), ("skellam", 2.0, 5)])
@pytest.mark.parametrize("shift", [1, 3])
def test_the_curve_of_integer_noise_bounds_the_true_divergence_closely(noise, std, shares, shift, order):
    k = np.arange(-60, 61)
    if noise == "skellam":
        one = stats.skellam.pmf(k, std**2 / 2, std**2 / 2)
    else:
        one = np.exp(-(k**2) / (2 * std**2))
        one /= one.sum()
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    true = max(renyi(total[shift:], total[:-shift], order), renyi(total[:-shift], total[shift:], order))
    bound = float(Discrete(noise, shift, shift, std**2, shares, 1).curve((order,))[0])
    assert true <= bound * (1 + 1e-9)
    assert bound < 1.6 * true


def test_fewer_shares_cost_more():
    shares = Skellam(1.0, 1.0, clients=100, size=10_000)
    costs = [plan(shares.event(n), 10, 1e-5) for n in (100, 90, 50)]
    assert costs == sorted(costs)
    assert costs[0] < costs[1]


@pytest.mark.parametrize("make", [DistributedGaussian, Skellam])
def test_a_fine_grid_costs_what_normal_noise_costs(make):
    fine = plan(make(1.0, 1.0, clients=100, size=10_000, bits=24).event(100), 1, 1e-5)
    assert plan(Release(1.0), 1, 1e-5) < fine < 1.01 * plan(Release(1.0), 1, 1e-5)
    assert plan(make(1.0, 1.0, clients=100, size=10_000, bits=12).event(100), 1, 1e-5) > fine


# Plans.


@pytest.mark.parametrize(
    ("make", "accountant"),
    [
        (lambda z: Release(z, POISSON), "rdp"),
        (lambda z: Release(z, POISSON), "pld"),
        (lambda z: Skellam(1.0, z, clients=100, size=1000).event(100), "rdp"),
        (Local, "rdp"),
    ],
    ids=["poisson", "poisson-pld", "skellam", "local"],
)
def test_the_noise_for_a_target_is_just_enough(make, accountant):
    z = noise_for(4.0, 1e-5, make, rounds=20, accountant=accountant)
    assert plan(make(z), 20, 1e-5, accountant) <= 4.0
    assert plan(make(z * 0.995), 20, 1e-5, accountant) > 4.0


def test_what_cannot_be_accounted_for_is_refused_in_words():
    with pytest.raises(UsageError, match="take 'rdp'"):
        plan(Release(1.0, UNIFORM), 1, 1e-5, "pld")
    both = Ledger()
    both.record(Release(1.0, POISSON))
    with pytest.raises(UsageError, match="keep two"):
        both.record(Release(1.0, UNIFORM))
    with pytest.raises(UsageError, match="did you mean 'rdp'"):
        Ledger("rpd")
    with pytest.raises(UsageError, match="between 0 and 1"):
        Ledger().epsilon(0.0)
    with pytest.raises(UsageError, match="promises nothing"):
        noise_for(1e5, 1e-5, Release)
    with pytest.raises(UsageError, match="above 0"):
        noise_for(-1.0, 1e-5, Release)
    with pytest.raises(UsageError, match=r"TreeNoise\.run"):
        plan(TreeStep(1.0, 1), 1, 1e-5)


def test_a_delta_that_allows_to_publish_a_client_is_named():
    assert not list(delta_warnings(1e-5, 10_000))
    assert "1 / 100 clients" in next(delta_warnings(0.01, 100))
