"""Private runs end to end: what epsilon is before, during and after, and that nothing voids it quietly."""

from __future__ import annotations

import math

import dp_accounting as dp
import numpy as np
import pytest
import torch

import fedloom
from fedloom import events as log
from fedloom.config import Config
from fedloom.config.conflicts import check, conflicts
from fedloom.errors import UsageError
from fedloom.privacy import Ledger, Local, TreeNoise, plan
from fedloom.simulation.guarantee import promise, words
from fedloom.simulation.setup import prepare
from fedloom.simulation.simulate import simulate

BASE = {"data": "digits", "clients": 20, "per_round": 0.25, "sampling": "poisson", "rounds": 4}
CENTRAL = BASE | {"privacy": "central", "clip": 0.5, "noise": 2.0}
RUN = {"progress": False, "plan": "loop", "lr": 0.1}


def vector(path):
    return fedloom.load_model(path).vector()


def setup_of(**given):
    return prepare(Config.of(**given), "digits")


def run_of(place, **given):
    given = {key: value for key, value in given.items() if key != "data"}
    return simulate("digits", out=place, **(RUN | given))


def google(rate, multiplier, rounds, delta=1e-5):
    accountant = dp.rdp.RdpAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(multiplier)), rounds)
    return accountant.get_epsilon(delta)


def epsilons(run):
    return [record.metrics["epsilon"] for record in run.records]


def test_epsilon_is_googles_before_and_after_every_round(tmp_path):
    run = run_of(tmp_path / "run", **CENTRAL)
    assert epsilons(run) == pytest.approx([google(0.25, 2.0, number) for number in (1, 2, 3, 4)])
    rows = log.read(run.folder).rows
    (told,) = [row for row in rows if row["event"] == "privacy"]
    assert told["epsilon"] == pytest.approx(google(0.25, 2.0, 4))
    assert (told["mechanism"], told["unit"], told["multiplier"], told["void"]) == ("central", "client", 2.0, False)
    assert [row["event"] for row in rows[:3]] == ["privacy", "start", "plan"]
    assert any(f"epsilon {epsilons(run)[-1]:.3g} per client at delta 1e-05" in line for line in run.lines())


WAYS = {
    "central": {"privacy": "central"},
    "adaptive": {"privacy": "central", "clip_quantile": 0.5, "clients": 100},
    "pld": {"privacy": "central", "accountant": "pld"},
    "tree": {"privacy": "tree", "sampling": "cyclic", "per_round": 5, "rounds": 6},
    "restarted": {"privacy": "tree", "sampling": "cyclic", "per_round": 5, "rounds": 6, "restart": 3},
    "distributed": {"privacy": "distributed", "sampling": "uniform", "per_round": 5, "secure_aggregation": "sum"},
    "skellam": {"privacy": "skellam", "sampling": "all", "per_round": 5, "secure_aggregation": "sum"},
    "examples": {"privacy": "examples", "sampling": "all", "clients": 5},
    "local": {"privacy": "local", "sampling": "all"},
}


@pytest.mark.parametrize("given", WAYS.values(), ids=WAYS)
def test_the_epsilon_that_is_wanted_is_met_in_the_last_round_and_not_exceeded(given):
    setup = setup_of(**(BASE | {"target_epsilon": 6.0, "delta": 1e-3} | given))
    promised, accounts = promise(setup), setup.accounts()
    assert 5.9 < promised["epsilon"] <= 6.0
    found = []
    for number in range(1, setup.config.run.rounds + 1):
        cohort = [int(client) for client in setup.sampler().cohort(number)]
        found.append(accounts.spend(number, cohort)["epsilon"])
    assert found == sorted(found)
    assert found[0] < found[-1] <= promised["epsilon"] + 1e-9
    assert found[-1] > 5.0  # in a tree nobody is in as many nodes as the plan counts


def test_a_run_that_goes_on_has_the_same_bits_and_the_same_epsilon(tmp_path):
    given = CENTRAL | {"noise_seed": 3, "clip_quantile": 0.5, "clients": 100, "delta": 1e-3}
    whole = run_of(tmp_path / "whole", **given)
    run_of(tmp_path / "parts", **(given | {"rounds": 2}))
    parts = simulate(tmp_path / "parts", resume=True, rounds=4, progress=False)
    assert torch.equal(vector(whole.model), vector(parts.model))
    assert epsilons(whole) == epsilons(parts)
    assert any("void: the noise can be repeated" in line for line in parts.lines())


@pytest.mark.parametrize("way", ["tree", "local", "examples", "skellam"])
def test_accounts_go_on_where_they_were(way):
    setup = setup_of(**(BASE | {"noise": 3.0, "delta": 1e-3} | WAYS[way]))
    whole, first, second = (setup.accounts() for _ in range(3))
    cohorts = [[int(c) for c in setup.sampler().cohort(number)] for number in (1, 2, 3, 4)]
    for number, cohort in enumerate(cohorts, 1):
        expected = whole.spend(number, cohort)
        if number == 3:
            second.resume(first.state())
        found = (first if number < 3 else second).spend(number, cohort)
        assert found == expected


def test_buffered_updates_and_encoded_models_go_on_with_the_same_bits(tmp_path):
    given = {"clients": 10, "rounds": 4, "algorithm": "fedbuff", "options": {"buffer": 3}, "network": "lan"}
    given |= {"compress": "topk:0.1 | int8", "compress_down": "int8", "per_round": 4}
    whole = run_of(tmp_path / "whole", **given)
    run_of(tmp_path / "parts", **(given | {"rounds": 2}))
    parts = simulate(tmp_path / "parts", resume=True, rounds=4, progress=False)
    assert torch.equal(vector(whole.model), vector(parts.model))
    counted = [[(r.bytes_up, r.bytes_down, r.clock) for r in run.records] for run in (whole, parts)]
    assert counted[0] == counted[1]
    assert 0 < whole.records[0].bytes_up < 3 * 4 * len(vector(whole.model)) / 8


def test_engines_and_secure_aggregation_with_all_messages_give_the_same_run(tmp_path):
    given = CENTRAL | {"noise_seed": 1, "secure_aggregation": "sum", "dropout": 0.1, "network": "lan", "rounds": 2}
    given |= {"sampling": "all", "clients": 8}
    runs = [
        run_of(tmp_path / kind, **(given | {"secure_aggregation": kind}), **more)
        for kind, more in (("sum", {}), ("protocol", {"engine": "workers", "workers": 1}))
    ]
    assert torch.equal(vector(runs[0].model), vector(runs[1].model))
    assert [r.clients for r in runs[0].records] == [r.clients for r in runs[1].records]
    assert runs[0].records[0].bytes_up < runs[1].records[0].bytes_up
    assert epsilons(runs[0]) == epsilons(runs[1])


def test_without_noise_there_is_no_promise():
    setup = setup_of(**(CENTRAL | {"noise": 0.0}))
    assert setup.accounts() is None
    assert promise(setup)["epsilon"] is None
    assert "no guarantee without noise" in words(promise(setup))
    assert promise(setup_of(**BASE)) is None


def test_examples_pay_by_the_size_of_their_client():
    setup = setup_of(**BASE, scheme="quantity", privacy="examples", noise=1.0, batch_size=16, epochs=2)
    accounts, sizes = setup.accounts(), setup.sizes
    order = np.argsort(sizes)
    for client in (int(order[0]), int(order[-1])):
        n = int(sizes[client])
        batch = min(16, n)
        alone = setup.accounts().spend(1, [client])["epsilon"]
        assert alone == pytest.approx(google(batch / n, 1.0, 2 * math.ceil(n / batch)))
    both = accounts.spend(1, [int(c) for c in order])["epsilon"]
    assert both == max(setup.accounts().spend(1, [int(c)])["epsilon"] for c in order)
    assert accounts.spend(2, [int(order[-1])])["epsilon"] == both  # it has not paid as much as the smallest
    planned = promise(setup)["epsilon"]
    spent = setup.accounts()
    most = setup.terms()._turns()
    for number in range(1, most + 1):
        paid = spent.spend(number, range(len(sizes)))["epsilon"]
    assert paid == pytest.approx(planned)


@pytest.mark.parametrize(
    ("given", "rate", "steps"),
    [
        ({"algorithm": "fedsgd"}, 1.0, 1),
        ({"algorithm": "fedrep", "options": {"head_epochs": 3}}, 0.5, 2 * (3 + 1)),
        ({"algorithm": "ditto"}, 0.5, 2 * 2),
        ({"algorithm": "fedavg", "epochs": 3}, 0.5, 2 * 3),
    ],
)
def test_every_step_on_the_samples_is_paid_for(given, rate, steps):
    setup = setup_of(**(BASE | {"privacy": "examples", "noise": 1.0, "clients": 20, "batch_size": 36} | given))
    client = int(np.flatnonzero(setup.sizes == 72)[0])
    assert setup.accounts().spend(1, [client])["epsilon"] == pytest.approx(google(rate, 1.0, steps))


def test_local_noise_is_paid_for_by_who_took_part_and_a_tree_by_its_nodes():
    local = setup_of(**(BASE | {"privacy": "local", "noise": 4.0})).accounts()
    local.spend(1, [0, 1])
    assert local.spend(2, [1, 2])["epsilon"] == pytest.approx(plan(Local(4.0), 2, 1e-5))
    tree = setup_of(**(BASE | {"privacy": "tree", "noise": 4.0, "sampling": "cyclic", "per_round": 10})).accounts()
    ledger = Ledger()
    for number, cohort in enumerate([[0, 1], [2, 3], [0, 1]], 1):
        ledger.record(TreeNoise(1.0, 4.0).event(number), cohort)
        assert tree.spend(number, cohort)["epsilon"] == ledger.epsilon(1e-5)


def test_a_round_with_fewer_shares_of_noise_costs_more():
    setup = setup_of(**(BASE | {"privacy": "skellam", "noise": 4.0, "secure_aggregation": "sum"}))
    few, many = (setup.accounts().spend(1, range(count))["epsilon"] for count in (2, 8))
    assert few > 1.5 * many
    assert setup.accounts().spend(1, [])["epsilon"] == 0.0
    assert any("may end above what is planned" in line for line in promise(setup)["warnings"])


SECURE = BASE | {"secure_aggregation": "sum"}
BATCHNORM = {"model": "mlp"}
REFUSED = {
    "batchnorm": (CENTRAL | BATCHNORM, "statistics, such as BatchNorm's"),
    "recalibrate": (CENTRAL | BATCHNORM | {"batchnorm": "recalibrate"}, "made anew from clients' data"),
    "scaffold": (CENTRAL | {"algorithm": "scaffold"}, "scaffold does not merge by a mean"),
    "local scaffold": (CENTRAL | {"privacy": "local", "algorithm": "scaffold"}, "scaffold needs more of a client"),
    "q-fedavg": (CENTRAL | {"privacy": "local", "algorithm": "q-fedavg"}, "q-fedavg needs more of a client"),
    "fedbn": (CENTRAL | BATCHNORM | {"algorithm": "fedbn"}, r"fedbn sends more than the update \(batchnorm\)"),
    "robust": (CENTRAL | {"algorithm": "median"}, "median does not merge by a mean"),
    "fedbuff": (CENTRAL | {"algorithm": "fedbuff", "sampling": "uniform", "per_round": 5}, "fedbuff has no rounds"),
    "retry": (CENTRAL | {"policy": "retry"}, "the policy retry"),
    "over_selection": (CENTRAL | {"sampling": "uniform", "per_round": 5, "over_selection": 0.2}, "keeps the fastest"),
    "over, fixed": (CENTRAL | {"sampling": "fixed", "per_round": 5, "over_selection": 0.2}, "keeps the fastest"),
    "size": (CENTRAL | {"sampling": "size", "per_round": 5}, "how much data they have"),
    "availability": (
        CENTRAL | {"sampling": "uniform", "per_round": 5, "network": "mobile"},
        "passes over clients that cannot be reached",
    ),
    "shares in the open": (CENTRAL | {"privacy": "skellam"}, "without secure aggregation"),
    "quantile, noise": (CENTRAL | {"clip_quantile": 0.5, "clients": 20}, "noise on the count of more than that"),
    "pld": (CENTRAL | {"accountant": "pld", "sampling": "uniform", "per_round": 5}, "the accountant 'pld' knows"),
    "central": (CENTRAL | {"algorithm": "central"}, "no updates of clients to hide"),
    "late": (CENTRAL | {"privacy": "local", "network": "lan", "deadline": 9.0}, "was sent all the same"),
    "codec": (SECURE | {"compress": "topk:0.1"}, "the codec 'topk:0.1' is not linear"),
    "secure median": (SECURE | {"algorithm": "median"}, "secure aggregation: the median of each number"),
    "secure scaffold": (SECURE | {"algorithm": "scaffold"}, "scaffold needs more than the sum"),
    "secure attack": (SECURE | {"attack": "sign-flip"}, "secure aggregation hides what attackers send"),
    "secure retry": (SECURE | {"policy": "retry"}, "take another's place"),
    "secure one": (SECURE | {"sampling": "uniform", "per_round": 1}, "the sum of one client hides nothing"),
    "secure bits": (SECURE | {"secure_bits": 8, "clients": 300}, "8 bits are too few for a sum of 300 clients"),
    "secure drop-outs": (SECURE | {"secure_dropouts": 0.49}, "assume fewer of either"),
    "examples batchnorm": (BASE | BATCHNORM | {"privacy": "examples", "noise": 1.0}, "privacy for examples: "),
    "examples bfloat16": (BASE | {"privacy": "examples", "noise": 1.0, "precision": "bfloat16"}, "float32"),
    "examples plan": (BASE | {"privacy": "examples", "noise": 1.0, "plan": "vmap"}, "plan 'vmap' has not"),
    "examples loss": (BASE | {"privacy": "examples", "noise": 1.0, "algorithm": "q-fedavg"}, "each client's loss"),
    "examples twice": (BASE | {"privacy": "examples", "noise": 1.0, "samples_per_client": 30}, "more than once"),
    "examples late": (
        BASE | {"privacy": "examples", "noise": 1.0, "sampling": "fixed", "per_round": 5, "over_selection": 0.4},
        "was sent all the same",
    ),
    "examples fedbuff": (
        BASE | {"privacy": "examples", "noise": 1.0, "algorithm": "fedbuff", "sampling": "uniform", "per_round": 5},
        "how often a fast",
    ),
    "examples option i": (
        BASE | {"privacy": "examples", "noise": 1.0, "algorithm": "scaffold", "options": {"option": "i"}},
        "batches of different sizes",
    ),
    "nothing to encode": (BASE | {"algorithm": "central", "compress": "int8"}, "central sends nothing"),
    "nothing sent": (
        BASE | {"algorithm": "local-only", "holdout": 0.2, "compress": "int8"},
        "local-only sends nothing",
    ),
}


@pytest.mark.parametrize(("given", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_voids_the_guarantee_is_refused(given, reason):
    config = Config.of(**given)
    check(config)
    with pytest.raises(UsageError, match=reason) as caught:
        prepare(config, "digits")
    assert "Traceback" not in str(caught.value)


SAID = {
    "no noise": ({"privacy": "central"}, "set target_epsilon (such as 8) or noise (such as 1)"),
    "twice": ({"privacy": "central", "noise": 1.0, "target_epsilon": 8.0}, "set one of them"),
    "quantile": ({"privacy": "tree", "noise": 1.0, "clip_quantile": 0.5}, "clip_quantile goes with privacy central"),
    "restart": ({"privacy": "central", "noise": 1.0, "restart": 5}, "restart is about the noise tree"),
    "no mechanism": ({"noise": 1.0}, "need a mechanism"),
    "codec": ({"compress": "int8 | topk:0.1"}, "[compression] up: "),
    "codec down": ({"compress_down": "topkk"}, "[compression] down: "),
    "feedback": ({"error_feedback": "on"}, "error_feedback needs a codec"),
}


@pytest.mark.parametrize(("given", "reason"), SAID.values(), ids=SAID)
def test_what_contradicts_itself_is_said_before_anything_is_loaded(given, reason):
    found = list(conflicts(Config.of(**given)))
    assert len(found) == 1
    assert reason in found[0]


def test_all_of_it_is_said_at_once():
    given = CENTRAL | BATCHNORM | {"policy": "retry", "algorithm": "scaffold", "secure_aggregation": "sum"}
    given |= {"compress": "int8", "attack": "sign-flip"}
    with pytest.raises(UsageError) as caught:
        setup_of(**given)
    assert len(caught.value.context["conflicts"]) == 8
    wanted = {**given, "noise": None, "target_epsilon": 1e-6}  # for which no noise would be enough
    with pytest.raises(UsageError) as caught:
        setup_of(**wanted)
    assert len(caught.value.context["conflicts"]) == 8


def test_an_epsilon_that_no_noise_gives_is_said_in_a_line():
    with pytest.raises(UsageError, match="no noise multiplier") as caught:
        setup_of(**(CENTRAL | {"noise": None, "target_epsilon": 1e9}))
    assert "\n" not in str(caught.value)


def test_statistics_may_stay_with_the_clients():
    setup = setup_of(**(CENTRAL | BATCHNORM | {"batchnorm": "local"}))
    assert setup.algorithm.beside == {}
    sent = setup.algorithm.broadcast(setup.algorithm.init(setup.start))
    assert sent.unsent == int(setup.algorithm.stays.sum()) > 0
