"""Mechanisms: the noise is as large as they say, and without noise and clipping they are the plain mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedloom.errors import DataError, UsageError
from fedloom.privacy import (
    AdaptiveClip,
    DistributedGaussian,
    Gaussian,
    LocalGaussian,
    Randomness,
    Sampling,
    Skellam,
    TreeNoise,
    clip,
)


def updates(n, size, seed=0, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=scale, size=(n, size)).astype(np.float32))


def test_no_clipping_and_no_noise_is_the_plain_mean():
    deltas, plain = updates(5, 100), Gaussian(math.inf, 0.0)
    total = torch.stack([plain.clipped(delta).vector for delta in deltas]).sum(0)
    assert torch.allclose(plain.mean(total, 5, Randomness.of(0)), deltas.mean(0), atol=1e-6)


@pytest.mark.parametrize("seed", [None, 1])
def test_central_noise_is_normal_with_multiplier_times_clip(seed):
    noise = Gaussian(clip=0.5, multiplier=3.0).release(torch.full((100_000,), 7.0), Randomness.of(seed)) - 7
    assert stats.kstest(noise.double().numpy() / 1.5, "norm").pvalue > 1e-6


def test_the_denominator_is_fixed():
    mean = Gaussian(1.0, 0.0).mean(torch.tensor([6.0]), cohort=3, randomness=Randomness.of(0))
    assert mean.tolist() == [2.0]
    with pytest.raises(UsageError, match="expected clients"):
        Gaussian(1.0, 0.0).mean(torch.tensor([6.0]), cohort=0, randomness=Randomness.of(0))


def test_local_noise_is_on_the_clipped_head_alone():
    vector = torch.cat([torch.full((50_000,), 10.0), torch.tensor([5.0])])
    sent = LocalGaussian(clip=1.0, multiplier=2.0).protect(vector, Randomness.of(0), head=50_000)
    noise = sent.vector[:-1] - clip(vector, 1.0, 50_000).vector[:-1]
    assert stats.kstest(noise.double().numpy() / 2, "norm").pvalue > 1e-6
    assert float(sent.vector[-1]) == 5.0
    assert LocalGaussian(1.0, 2.0).central(100).multiplier == 20.0


@pytest.mark.parametrize("multiplier", [-1.0, math.inf, math.nan])
def test_numbers_out_of_range_are_refused(multiplier):
    for make in (Gaussian, LocalGaussian, TreeNoise):
        with pytest.raises(UsageError):
            make(1.0, multiplier)
        with pytest.raises(UsageError):
            make(0.0, 1.0)
    with pytest.raises(UsageError, match="infinite"):
        Gaussian(math.inf, 1.0)


# Adaptive clipping.


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_bound_finds_the_quantile_of_the_norms(quantile):
    norms = np.random.default_rng(0).lognormal(1.0, 0.5, size=(400, 100))
    rule, bound, late = AdaptiveClip(0.1, quantile), 0.1, []
    for number, row in enumerate(norms):
        below = int((row <= bound).sum())
        bound = rule.update(bound, below, 100, 100, Randomness.of(0, "count", number))
        late += [bound] * (number >= 100)
    assert np.mean(late) == pytest.approx(np.quantile(norms, quantile), rel=0.08)


def test_the_noise_is_split_as_in_theorem_1():
    rule = AdaptiveClip(count_multiplier=4.0)
    delta = rule.split(1.5, cohort=80)
    # Both releases together are one Gaussian of the whole multiplier.
    assert delta**-2 + 4.0**-2 == pytest.approx(1.5**-2)
    assert AdaptiveClip().count_std(100) == 5.0
    assert rule.mechanism(2.0, 1.5, 80) == Gaussian(2.0, delta)
    assert rule.split(0.0, 80) == 0.0
    with pytest.raises(UsageError, match="more clients"):
        AdaptiveClip().split(1.0, cohort=10)


def test_one_step_of_the_bound_without_noise_by_hand():
    bound = AdaptiveClip(lr=0.2).update(2.0, below=8, clients=10, cohort=10, randomness=Randomness.of(0), private=False)
    assert bound == pytest.approx(2.0 * math.exp(-0.2 * 0.3))


# DP-FTRL.


def prefixes(tree, rounds, size, seed=0):
    state, total, out = tree.init(size), torch.zeros(size), []
    for number in range(rounds):
        increment, state = tree.step(state, Randomness.of(seed, "noise", number))
        total = total + increment
        out.append(total)
    return out


@pytest.mark.parametrize("estimator", ["vanilla", "honaker"])
def test_prefix_noise_has_the_variance_of_the_theory(estimator):
    tree, n = TreeNoise(2.0, 1.5, estimator=estimator), 30_000
    assert tree.variance(7) == pytest.approx(9.0 * (3 if estimator == "vanilla" else 1 + 2 / 3 + 4 / 7))
    for step, noise in enumerate(prefixes(tree, 18, n), start=1):
        values = noise.double().numpy() / math.sqrt(tree.variance(step))
        assert abs((values**2).sum() - n) < 5 * math.sqrt(2 * n), step


def test_nodes_are_shared_between_prefixes_as_in_a_binary_tree():
    seen = prefixes(TreeNoise(1.0, 1.0, estimator="vanilla"), 7, 50_000)
    # Steps 4 and 7 share the node of the first four leaves, steps 3 and 4 no node.
    assert float((seen[3] * seen[6]).mean()) == pytest.approx(1.0, abs=0.05)
    assert float((seen[2] * seen[3]).mean()) == pytest.approx(0.0, abs=0.05)
    assert float((seen[5] - seen[3]).var()) == pytest.approx(1.0, abs=0.05)


def test_a_restart_begins_a_new_tree_on_top_of_the_old_ones_noise():
    tree = TreeNoise(1.0, 1.0, restart=2)
    assert [tree.event(number).step for number in range(1, 6)] == [1, 2, 1, 2, 1]
    seen = prefixes(tree, 5, 40_000)
    assert float((seen[3] - seen[1]).var()) == pytest.approx(tree.variance(2), abs=0.05)
    assert float(seen[3].var()) == pytest.approx(2 * tree.variance(2), abs=0.05)
    assert tree.run(5).steps == (2, 2, 1)


def test_the_trees_state_is_all_it_needs_and_stays_as_it_is():
    tree = TreeNoise(1.0, 1.0)
    state = tree.init(4)
    for number in range(5):
        _, state = tree.step(state, Randomness.of(0, number))
    kept = {name: value.clone() for name, value in state.items()}
    first, _ = tree.step(state, Randomness.of(0, 5))
    again, after = tree.step(kept, Randomness.of(0, 5))
    assert torch.equal(first, again)
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    assert after["nodes"].shape == (3, 4)  # 6 = 110 in binary: log2 many vectors
    with pytest.raises(DataError, match="damaged"):
        tree.step({"step": torch.tensor(1)}, Randomness.of(0))


# Noise in shares.

SHARES = pytest.mark.parametrize("make", [DistributedGaussian, Skellam])


def summed(mechanism, vectors, seed=None):
    total = np.zeros(mechanism.length, mechanism.dtype)
    for number, vector in enumerate(vectors):
        total = mechanism.add(total, mechanism.encode(vector, Randomness.of(seed, "client", number), 9))
    return mechanism.decode(total, 9)


@SHARES
@pytest.mark.parametrize("bits", [20, 32, 40])
def test_the_sum_decodes_to_the_sum_of_clipped_updates_and_noise_of_the_right_variance(make, bits):
    mechanism = make(clip=2.0, multiplier=0.8, clients=10, size=5000, bits=bits)
    vectors = updates(10, 5000, scale=0.1)
    clipped = torch.stack([clip(v, 2.0).vector for v in vectors]).sum(0)
    noise = (summed(mechanism, vectors) - clipped).double().numpy()
    assert mechanism.std(10) == pytest.approx(1.6)
    assert stats.kstest(noise / 1.6, "norm").pvalue > 1e-6
    # Two clients that drop out take their shares of noise with them.
    fewer = (summed(mechanism, vectors[:8]) - torch.stack([clip(v, 2.0).vector for v in vectors[:8]]).sum(0)).double()
    assert float(fewer.square().mean()) == pytest.approx(mechanism.std(8) ** 2, rel=0.1)
    assert mechanism.std(8) == pytest.approx(1.6 * math.sqrt(0.8))


@SHARES
def test_without_noise_only_rounding_is_left(make):
    mechanism = make(clip=1.0, multiplier=0.0, clients=4, size=1000, bits=30)
    vectors = updates(4, 1000)
    exact = torch.stack([clip(v, 1.0).vector for v in vectors]).sum(0)
    assert float((summed(mechanism, vectors) - exact).abs().max()) < 20 / mechanism.scale + 1e-6


@SHARES
def test_a_rounded_update_is_never_longer_than_the_ledger_believes(make):
    mechanism = make(clip=1.0, multiplier=0.0, clients=50, size=300, bits=10)
    for number, vector in enumerate(updates(50, 300)):
        sent = mechanism.encode(vector, Randomness.of(0, number), 4).astype(np.int64)
        signed = (sent + 512) % 1024 - 512
        assert np.linalg.norm(signed) <= mechanism.l2
        assert np.abs(signed).sum() <= mechanism.l1


@SHARES
def test_what_does_not_fit_is_refused(make):
    mechanism = make(1.0, 1.0, clients=10, size=8)
    with pytest.raises(UsageError, match="8 are expected"):
        mechanism.encode(torch.zeros(9), Randomness.of(0), 1)
    with pytest.raises(DataError, match="below"):
        mechanism.decode(np.full(mechanism.length, 2**24, np.uint32), 1)
    with pytest.raises(UsageError, match="too few"):
        make(1.0, 1.0, clients=10_000, size=8, bits=8)
    broken = mechanism.encode(torch.tensor([math.nan] * 8), Randomness.of(0), 1)
    assert broken.dtype == np.uint32


def test_events_say_what_was_done():
    assert Gaussian(1.0, 1.1).event(Sampling("poisson", 0.1)).multiplier == 1.1
    shares = Skellam(1.0, 1.0, clients=10, size=100)
    assert shares.event(7).shares == 7
    assert shares.event(7).l2 == shares.l2
    with pytest.raises(UsageError, match="no clients"):
        shares.event(0)
