"""Clients hidden in the mean: clipping, noise on the sum, its fixed denominator, and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from guarded import ECHO, guarded, records_of, sent_by, visit
from hypothesis import given, settings
from hypothesis import strategies as st
from small_federation import CONFIG, Cohorts, Small, bare_model, model_after, same_bits

from fedloom import algorithms, checkpoint, rounds, server_opt
from fedloom.algorithms import private
from fedloom.algorithms.base import Algorithm
from fedloom.algorithms.fedavg import averaging
from fedloom.algorithms.protection import Protection
from fedloom.errors import UsageError
from fedloom.privacy import AdaptiveClip, Gaussian, LocalGaussian, Randomness, TreeNoise
from fedloom.schedule import Call

SIZE = 2000
NOTHING = {"mechanism": "central", "clip": 1e9, "multiplier": 0.0, "cohort": 8}


def after(algorithm, vectors, state=None, size=4):
    """Let clients send these vectors; returns the state and what is logged."""
    state = state or algorithm.init(torch.zeros(size))
    sent = algorithm.broadcast(state)
    updates = [sent_by(algorithm.settle(visit(i, sent=sent), v), f"client_{i}") for i, v in enumerate(vectors)]
    return algorithm.reduce(state, updates)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedprox"])
def test_no_bound_and_no_noise_is_the_algorithm_with_equal_weights(name):
    uneven = {"uneven": True}
    plain = Small(name, uneven=True)
    plain.side = replace(plain.side, equal_weights=True)
    plain.federation = replace(plain.federation, engine=plain.side.run)
    hidden = guarded(name, small=uneven, **NOTHING).run(2).state["model"]
    torch.testing.assert_close(hidden, plain.run(2).state["model"], atol=1e-5, rtol=0)
    assert not torch.allclose(hidden, model_after(name, rounds_to_run=2, uneven=True), atol=1e-5)


def test_updates_are_clipped_and_the_sum_is_divided_by_a_number_that_is_fixed():
    algorithm = private.central(ECHO, Gaussian(1.0, 0.0), 8.0, 4)
    one, _ = after(algorithm, [torch.tensor([3.0, 4.0, 0.0, 0.0])])
    torch.testing.assert_close(one["model"], torch.tensor([0.6, 0.8, 0.0, 0.0]) / 8)
    three, _ = after(algorithm, [torch.full((4,), 0.25)] * 3)
    torch.testing.assert_close(three["model"], torch.full((4,), 0.75 / 8))
    none, _ = after(algorithm, [])
    assert not none["model"].any()


def test_an_update_that_is_not_finite_counts_as_zeros():
    algorithm = private.central(ECHO, Gaussian(1.0, 0.0), 2.0, 4)
    sent = algorithm.settle(visit(), torch.tensor([math.nan, 1.0, 1.0, 1.0]))
    assert sent.delta.tolist() == [0.0] * 4
    assert sent.weight == 1.0


@pytest.mark.parametrize("make", [private.central, private.tree, private.local])
def test_what_lies_behind_the_head_is_not_sent(make):
    mechanism = {private.central: Gaussian, private.tree: TreeNoise, private.local: LocalGaussian}[make](9.0, 0.0)
    more = () if make is private.local else (1.0,)
    found = make(ECHO, mechanism, *more, 2).settle(visit(), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert found.delta.tolist() == [1.0, 2.0, 0.0, 0.0]


def test_the_server_clips_what_an_attacker_sends():
    for algorithm in (
        private.central(ECHO, Gaussian(1.0, 0.0), 1.0, 4),
        private.tree(ECHO, TreeNoise(1.0, 0.0), 1.0, 4),
        private.central(ECHO, Gaussian(5.0, 0.0), 1.0, 4, adaptive=AdaptiveClip(1.0)),
    ):
        state = algorithm.init(torch.zeros(4))
        honest = sent_by(algorithm.settle(visit(sent=algorithm.broadcast(state)), torch.ones(4)))
        moved, _ = algorithm.reduce(state, [replace(honest, delta=torch.full((4,), 1000.0))])
        assert float(moved["model"].norm()) == pytest.approx(1.0)


@pytest.mark.parametrize(("multiplier", "clip", "cohort"), [(1.0, 1.0, 10.0), (0.5, 4.0, 2.5), (3.0, 0.1, 100.0)])
def test_the_noise_on_the_model_is_the_multiplier_times_the_bound_over_the_cohort(multiplier, clip, cohort):
    algorithm = private.central(ECHO, Gaussian(clip, multiplier), cohort, SIZE)
    moves, state = [], algorithm.init(torch.zeros(SIZE))
    for _ in range(20):
        now, logged = after(algorithm, [torch.zeros(SIZE)] * 3, state)
        moves.append(now["model"] - state["model"])
        state = now
    std = multiplier * clip / cohort
    found = torch.stack(moves)
    assert logged["noise"] == pytest.approx(std)
    assert float(found.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * found.numel()))
    assert abs(float(found.mean())) < 4 * std / math.sqrt(found.numel())
    assert abs(float((found[1:] * found[:-1]).mean())) < 5 * std**2 / math.sqrt(found.numel())


class Nobody(Cohorts):
    def call(self, number, load):
        return Call((), (), asked=0)


class Told:
    def __init__(self):
        self.rounds = []

    def spend(self, number, clients):
        self.rounds.append((number, tuple(clients)))
        return {"epsilon": float(number)}

    def state(self):
        return {"rounds": len(self.rounds)}

    def resume(self, state):
        self.rounds = [None] * state["rounds"]


@pytest.mark.parametrize("mechanism", ["central", "tree"])
def test_a_round_that_nobody_was_chosen_for_has_noise_and_is_paid_for(mechanism):
    made = guarded(mechanism=mechanism, multiplier=1.0, clip=0.5, cohort=4.0)
    told = Told()
    made.federation = replace(made.federation, schedule=Nobody(8, 1), accounts=told)
    records, last = records_of(made, 2)
    moved = last.state["model"] - made.w0
    nodes = 2.0 if mechanism == "central" else 2 / 3  # a node that knows its children has less than one of them
    assert float(moved.std()) == pytest.approx(0.125 * math.sqrt(nodes), rel=0.02)
    assert [record.clients for record in records] == [0, 0]
    assert [record.metrics["epsilon"] for record in records] == [1.0, 2.0]
    assert told.rounds == [(1, ()), (2, ())]
    assert last.accounts == {"rounds": 2}


def test_without_noise_on_the_sum_such_a_round_changes_nothing():
    made = guarded(mechanism="local", multiplier=1.0)
    made.federation = replace(made.federation, schedule=Nobody(8, 1))
    assert torch.equal(records_of(made, 1)[1].state["model"], made.w0)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_bound_moves_to_the_quantile_of_the_norms(quantile):
    made = private.central(
        ECHO, Gaussian(1.0, 0.5), 20.0, 4, adaptive=AdaptiveClip(0.1, quantile, count_multiplier=2.0), noise_seed=1
    )
    norms = torch.linspace(1.0, 3.0, 20)
    vectors, state, bounds = [torch.tensor([norm, 0.0, 0.0, 0.0]) for norm in norms], None, []
    for _ in range(150):
        state, logged = after(made, vectors, state)
        bounds.append(logged["clip"])
    assert bounds[0] == pytest.approx(0.1)
    assert sum(bounds[60:]) / 90 == pytest.approx(float(norms.quantile(quantile)), abs=0.2)


def test_clients_clip_to_the_bound_that_they_were_sent_and_noise_follows_it():
    adaptive = AdaptiveClip(0.25, 0.5)
    made = private.central(ECHO, Gaussian(9.0, 1.0), 100.0, SIZE, adaptive=adaptive, noise_seed=0)
    state = {**made.init(torch.zeros(SIZE)), "privacy.clip": torch.tensor([2.0])}
    settled = made.settle(visit(sent=made.broadcast(state), size=SIZE), torch.full((SIZE,), 1.0))
    assert float(settled.delta.norm()) == pytest.approx(2.0)
    assert settled.extra["below"].tolist() == [0.0]
    assert made.settle(visit(sent=made.broadcast(state)), torch.zeros(SIZE)).extra["below"].tolist() == [1.0]
    now, logged = made.reduce(state, [])
    expected = adaptive.split(1.0, 100.0) * 2.0 / 100.0
    assert logged["noise"] == pytest.approx(expected)
    assert float(now["model"].std()) == pytest.approx(expected, rel=0.07)


@pytest.mark.parametrize("restart", [None, 3])
def test_the_noise_of_all_rounds_is_that_of_the_trees_prefix(restart):
    mechanism = TreeNoise(2.0, 1.5, restart)
    algorithm = private.tree(ECHO, mechanism, 5.0, 6, noise_seed=4)
    state, nodes, total = algorithm.init(torch.zeros(6)), mechanism.init(6), torch.zeros(6)
    for number in range(7):
        state, logged = after(algorithm, [torch.zeros(6)] * 2, state)
        increment, nodes = mechanism.step(nodes, Randomness.of(4, "noise", number))
        total = total + increment
        torch.testing.assert_close(state["model"] * 5, total, atol=1e-5, rtol=1e-5)
        assert logged["noise"] == pytest.approx(math.sqrt(mechanism.variance(int(nodes["step"]))) / 5)
    if restart is None:  # what is left is the nodes of the digits of 7, and nothing of those before
        torch.testing.assert_close(total, nodes["nodes"].sum(0), atol=1e-5, rtol=1e-5)


def test_a_clients_own_noise_is_on_its_update_and_another_for_each_turn():
    made = private.local(ECHO, LocalGaussian(2.0, 1.5), SIZE, noise_seed=3)
    turns = [(client, number) for client in range(4) for number in (1, 2)]
    sent = torch.stack([made.settle(visit(*turn), torch.zeros(SIZE)).delta for turn in turns])
    assert float(sent.std()) == pytest.approx(3.0, rel=0.03)
    assert float(torch.corrcoef(sent).fill_diagonal_(0).abs().max()) < 0.12
    assert torch.equal(sent[0], made.settle(visit(0, 1), torch.zeros(SIZE)).delta)
    assert made.settle(visit(), torch.zeros(SIZE)).weight == 1.0
    assert not made.always


MECHANISMS = {
    "central": {"mechanism": "central"},
    "adaptive": {"mechanism": "central", "quantile": 0.5, "cohort": 40.0},
    "tree": {"mechanism": "tree", "restart": 2},
    "local": {"mechanism": "local"},
    "distributed": {"mechanism": "distributed", "secure": "sum"},
    "skellam": {"mechanism": "skellam", "secure": "sum"},
}
PER_ROUND = {"small": {"per_round": 4}, "multiplier": 1.0, "cohort": 4.0}


@pytest.mark.parametrize("how", MECHANISMS.values(), ids=MECHANISMS)
def test_a_seed_repeats_the_noise_and_none_does_not_and_going_on_changes_nothing(how, tmp_path):
    given = PER_ROUND | how
    made = guarded(noise_seed=7, **given)
    half = made.run(1)
    whole = made.run(3, half)
    checkpoint.save(tmp_path, half, checkpoint.begin(tmp_path, keeps=False))
    again = guarded(noise_seed=7, **given).run(3, checkpoint.load(tmp_path)[0])
    assert same_bits(whole.state, again.state)
    models = [guarded(noise_seed=seed, **given).run(1).state["model"] for seed in (8, None, None)]
    assert all(not torch.equal(model, half.state["model"]) for model in models)
    assert not torch.equal(models[1], models[2])


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedprox"])
def test_the_algorithm_gets_the_noisy_mean_and_nothing_else(name):
    inner = algorithms.make(name, algorithms.Setting(bare_model(SIZE), CONFIG, 5))
    mechanism = Gaussian(1.0, 1.0)
    made = private.central(replace(inner, settle=ECHO.settle), mechanism, 4.0, SIZE, noise_seed=2)
    mine, theirs = made.init(torch.zeros(SIZE)), inner.init(torch.zeros(SIZE))
    for number in range(3):
        mine, _ = after(made, [torch.full((SIZE,), 0.001)] * 3, mine)
        noise = Randomness.of(2, "noise", number)
        mean = mechanism.mean(torch.full((SIZE,), 0.003, dtype=torch.float64), 4.0, noise)
        theirs, _ = inner.reduce(theirs, [sent_by(ECHO.settle(visit(), mean))])
    torch.testing.assert_close(mine["model"], theirs["model"], atol=1e-6, rtol=1e-4)


def test_a_server_optimiser_remembers_what_was_released():
    made = private.tree(averaging("fedavgm", server_opt.make("fedavgm")), TreeNoise(1.0, 1.0), 1.0, 4)
    state, _ = made.reduce(made.init(torch.zeros(4)), [])
    assert {key.split(".")[0] for key in state} == {"model", "privacy", "server"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4), st.floats(0.01, 10))
def test_one_client_moves_the_sum_by_no_more_than_the_bound(numbers, clip):
    algorithm = private.central(ECHO, Gaussian(clip, 0.0), 3.0, 4)
    others = [torch.ones(4), torch.tensor([-3.0, 0.0, 0.0, 1.0])]
    without, _ = after(algorithm, others)
    with_it, _ = after(algorithm, [*others, torch.tensor(numbers)])
    assert float((with_it["model"] - without["model"]).norm()) <= clip / 3 * (1 + 1e-5)


def test_codecs_inside_are_seen_by_the_clipping():
    made = guarded(up="topk:0.05 | int4", **(NOTHING | {"clip": 0.05}))
    (one,) = list(made.side.run(rounds.Order(1, (0,), (made.algorithm.broadcast(made.algorithm.init(made.w0)),))))
    assert float(one.delta.double().norm()) <= 0.05
    assert one.bytes_up < len(made.w0) / 2
    assert set(one.kept) == {"residual"}


def test_what_needs_more_than_a_mean_is_refused():
    model = Small("fedavg").model
    for mechanism, secure, name in [
        ("central", "off", "median"),
        ("tree", "off", "scaffold"),
        ("local", "off", "scaffold"),
        ("none", "sum", "krum"),
    ]:
        inner = Small(name).algorithm
        with pytest.raises(UsageError, match=f"{name} needs more"):
            Protection(mechanism=mechanism, secure=secure).around(inner, model)


def test_a_rule_that_sees_nothing_but_updates_takes_local_noise():
    made = guarded("median", mechanism="local", multiplier=0.001, clip=5.0)
    assert made.accuracy(made.run(4).state) > made.accuracy({"model": made.w0}) + 0.1


def test_the_unprotected_algorithm_is_left_as_it_is():
    plain: Algorithm = Small("fedavg").algorithm
    assert Protection().around(plain, Small("fedavg").model) is plain
    assert Protection(mechanism="examples", multiplier=1.0).around(plain, Small("fedavg").model) is plain
