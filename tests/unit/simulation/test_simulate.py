"""Simulation end to end on the embedded digits: what a run leaves, and what its switches do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_runs import CHOSEN, SMALL, vector

import fedloom
from fedloom import events as log
from fedloom.clients import Order
from fedloom.config import Config
from fedloom.errors import StorageError, TrainingError, UsageError
from fedloom.simulation.setup import prepare
from fedloom.simulation.simulate import simulate


def test_a_run_leaves_its_folder(tmp_path):
    run = simulate("digits", out=tmp_path / "run", holdout=0.2, clients_every=2, target=0.5, **CHOSEN)
    events = log.read(run.folder).rows
    assert [e["event"] for e in events[:2]] == ["start", "plan"]
    assert [e["round"] for e in events if e["event"] == "round"] == [1, 2, 3, 4]
    assert [e["round"] for e in events if e["event"] == "clients"] == [2, 4]
    assert events[-1]["event"] == "end"
    assert Config.read(run.folder / "config.toml") == run.config
    accuracies = [r.accuracy for r in run.records]
    assert run.best_accuracy == max(accuracies) == accuracies[run.best_round - 1]
    assert run.final_accuracy == accuracies[-1] > 0.5
    assert run.rounds_to_target == next(i + 1 for i, a in enumerate(accuracies) if a >= 0.5)
    test = fedloom.load_evaluation("digits")
    right = fedloom.load_model(run.model).logits(torch.from_numpy(test.x / 16.0).float()).argmax(1).numpy() == test.y
    assert right.mean() == pytest.approx(run.final_accuracy)
    assert (run.folder / "report.html").is_file()
    assert "final accuracy" in run._repr_html_()


def test_events_hold_no_nan(tmp_path):
    run = simulate("digits", out=tmp_path / "run", evaluate_every=3, **SMALL)
    text = (run.folder / "events.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [r["accuracy"] is None for r in rows if r["event"] == "round"] == [True, True, False, False]


def test_clients_that_are_drawn_by_size_count_alike():
    given = {"data": "digits", "clients": 6, "per_round": 2, "scheme": "quantity"}
    for sampling, weights in (("size", {1.0}), ("uniform", None)):
        setup = prepare(Config.of(sampling=sampling, **given), "digits")
        order = Order(1, tuple(range(6)), (setup.algorithm.broadcast({"model": setup.start}),))
        found = {update.weight for update in setup.side("loop").run(order)}
        assert found == (weights or {float(n) for n in setup.sizes})
        assert setup.recipe("loop").make(setup.population).equal_weights is (sampling == "size")


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="is not the folder of a run"):
        simulate("digits", out=tmp_path, **SMALL)
    with pytest.raises(StorageError, match="is not the folder of a run"):
        simulate("digits", out=tmp_path, resume=True, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_it_stops_at_the_target(tmp_path):
    run = simulate("digits", out=tmp_path / "run", target=0.3, stop_at_target=True, **(SMALL | {"rounds": 30}))
    assert run.stopped == "target"
    assert len(run.records) == run.rounds_to_target < 30
    again = simulate(run.folder, resume=True, progress=False)
    assert len(again.records) == len(run.records)


def test_central_and_local_only_run_in_the_same_loop(tmp_path):
    central = simulate("digits", out=tmp_path / "central", algorithm="central", **SMALL)
    assert [r.clients for r in central.records] == [1, 1, 1, 1]
    alone = simulate("digits", out=tmp_path / "alone", algorithm="local-only", holdout=0.2, **SMALL)
    assert [r.clients for r in alone.records] == [10] * 4
    assert [(row["round"], row["personal"]) for row in alone.clients] == [(4, False), (4, True)]
    assert alone.clients[1]["mean"] > alone.clients[0]["mean"] + 0.2
    assert not any("final accuracy" in line for line in alone.lines())


def test_workers_give_the_same_bits(tmp_path):
    here = simulate("digits", out=tmp_path / "here", **SMALL)
    there = simulate("digits", out=tmp_path / "there", engine="workers", workers=2, **SMALL)
    assert torch.equal(vector(here.model), vector(there.model))


def test_a_client_that_diverges_is_data_unless_the_policy_says_stop(tmp_path):
    given = SMALL | {
        "attack": "gaussian",
        "attack_strength": 1e30,
        "attack_fraction": 0.1,
        "rounds": 12,
        "per_round": 5,
    }
    with pytest.raises(TrainingError) as caught:
        simulate("digits", out=tmp_path / "run", policy="stop", **given)
    assert "round" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_round_without_updates_goes_by_and_is_told(tmp_path):
    run = simulate("digits", out=tmp_path / "run", **(SMALL | {"lr": 1e30, "rounds": 2}))
    assert [(r.clients, len(r.failures)) for r in run.records] == [(0, 3), (0, 3)]
    assert any("6 updates that were asked for did not come; the first: round 1: client_" in t for t in run.lines())
    assert torch.isfinite(vector(run.model)).all()


SWITCHED = SMALL | {"model": "mlp", "rounds": 2, "per_round": 5}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run with every switch where it stands. Not to be changed."""
    return simulate("digits", out=tmp_path_factory.mktemp("runs") / "plain", **SWITCHED)


@pytest.mark.parametrize(
    "given",
    [
        {"attack": "label-flip", "attack_fraction": 0.5},
        {"attack": "sign-flip", "attack_fraction": 0.5},
        {"batchnorm": "recalibrate"},
        {"batchnorm": "local"},
        {"lr_decay": 0.5},
        {"sampling": "size"},
        {"scheme": "shards", "per_client": 2},
    ],
)
def test_every_switch_is_wired(tmp_path, plain, given):
    other = simulate("digits", out=tmp_path / "other", **SWITCHED, **given)
    assert not torch.equal(vector(plain.model), vector(other.model))


def test_the_network_has_a_clock_and_drops_clients(tmp_path):
    given = SMALL | {"network": "mobile", "availability": 1, "dropout": 0.5, "per_round": 4}
    run = simulate("digits", out=tmp_path / "run", **given)
    clocks = [r.clock for r in run.records]
    assert clocks == sorted(clocks)
    assert clocks[0] > 0
    assert {f.kind for r in run.records for f in r.failures} == {"dropped"}
    again = simulate("digits", out=tmp_path / "again", policy="retry", **given)
    assert sum(r.clients for r in again.records) > sum(r.clients for r in run.records)


def test_all_that_does_not_fit_the_data_is_said_at_once(tmp_path):
    with pytest.raises(UsageError) as caught:
        simulate("digits", out=tmp_path / "run", model="2nn", scheme="by-column", unlabelled="mnis", progress=False)
    assert len(caught.value.context["conflicts"]) == 2
    with pytest.raises(UsageError, match=r"^unknown data set 'mnis'"):  # and not that feddf needs one
        simulate("digits", out=tmp_path / "run", algorithm="feddf", unlabelled="mnis", **SMALL)
    assert not (tmp_path / "run").exists()


def test_your_own_data_and_a_config_are_taken(tmp_path):
    random = np.random.default_rng(0)
    y = random.integers(0, 2, 200)
    data = fedloom.Dataset.of(random.normal(size=(200, 5)) + 3 * y[:, None], y, name="blobs")
    run = simulate(data, out=tmp_path / "run", **SMALL)
    assert run.final_accuracy > 0.9
    config = Config.of(data="digits", clients=4, per_round="50%", rounds=1)
    assert simulate(config, out=tmp_path / "other", progress=False).records[0].asked == 2


def test_a_plan_that_cannot_be_used_leaves_no_folder(tmp_path):
    with pytest.raises(UsageError, match="plan 'channels-last' cannot be used here"):
        simulate("digits", out=tmp_path / "run", **(SMALL | {"plan": "channels-last"}))
    assert not (tmp_path / "run" / "config.toml").exists()
    simulate("digits", out=tmp_path / "run", **(SMALL | {"rounds": 1}))
