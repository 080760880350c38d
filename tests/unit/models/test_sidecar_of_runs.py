"""The sidecars of a simulation's models: how they came about, and what was promised."""

import dataclasses
import json
import math

import pytest

import fedloom
from fedloom.models import sidecar
from fedloom.models.sidecar import Sidecar
from fedloom.records import RoundRecord
from fedloom.simulation.keeping import kept_promise
from fedloom.simulation.simulate import simulate

SMALL = {"clients": 6, "per_round": 3, "rounds": 3, "progress": False, "plan": "loop", "model": "2nn"}


def known(path):
    found, reason = sidecar.read(path)
    assert reason == ""
    return found


def record(number, **metrics):
    values = {f.name: 0 for f in dataclasses.fields(RoundRecord)}
    return RoundRecord(**values | {"round": number, "failures": (), "metrics": metrics})


def test_a_run_says_how_its_models_came_about(tmp_path):
    run = simulate("digits", out=tmp_path / "run", seed=4, **SMALL)
    last, best = known(run.model), known(run.best_model)
    assert last.merge == {"method": "fedavg", "options": {}, "rounds": 3, "clients": 6, "per_round": 3}
    assert (last.round, best.round) == (3, run.best_round)
    assert last.metrics["test_accuracy"] == pytest.approx(run.final_accuracy)
    assert best.metrics["test_accuracy"] == pytest.approx(run.best_accuracy)
    assert last.privacy == {}
    assert last.samples == 1438
    assert last.seed == 4
    assert fedloom.load_model(run.model).n_classes == 10


def test_models_of_two_runs_share_their_start_where_they_do(tmp_path):
    seeds = {"a": 1, "b": 1, "c": 2}
    runs = [simulate("digits", out=tmp_path / n, **SMALL | {"rounds": 1, "seed": seed}) for n, seed in seeds.items()]
    one, same, other = (known(run.model).start for run in runs)
    assert one == same != other


def test_a_run_with_noise_keeps_its_promise_beside_its_models(tmp_path):
    pytest.importorskip("dp_accounting")
    wish = {"sampling": "poisson", "privacy": "central", "noise": 1.0, "clip": 0.5, "compress": "int8"}
    run = simulate("digits", out=tmp_path / "run", noise_seed=1, **SMALL | {"per_round": 0.5} | wish)
    found = known(run.model)
    assert found.privacy["epsilon"] == run.records[-1].metrics["epsilon"]
    assert found.privacy["planned"] == pytest.approx(found.privacy["epsilon"])
    assert found.privacy["void"] is True
    assert found.privacy["rounds"] == 3
    assert found.samples == 0, "how much data clients have is theirs to know"
    assert found.merge["up"] == "int8"
    assert known(run.best_model).privacy == found.privacy, "the best round is known only after the last"


@pytest.mark.parametrize("spent", [{}, {"epsilon": math.inf}])
def test_no_epsilon_is_no_guarantee(spent):
    promised = {"mechanism": "central", "epsilon": None}
    assert kept_promise(promised, [record(1, **spent)]) == {**promised, "planned": None, "rounds": 1}
    assert kept_promise(None, [record(1)]) == {}


def test_a_sidecar_from_before_there_was_privacy_is_read(tmp_path):
    run = simulate("digits", out=tmp_path / "run", **SMALL | {"rounds": 1})
    path = sidecar.path_of(run.model)
    old = json.loads(path.read_text())
    del old["privacy"]
    path.write_text(json.dumps(old))
    assert known(run.model) == dataclasses.replace(known(run.model), privacy=Sidecar().privacy)
    path.write_text(json.dumps(old | {"privacy": "strong"}))
    with pytest.raises(fedloom.errors.DataError, match="'privacy' is 'strong'"):
        sidecar.read(run.model)
