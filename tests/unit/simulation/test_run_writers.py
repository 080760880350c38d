"""A run's figures in TensorBoard and MLflow, read back with their own libraries."""

import importlib.util

import pytest

from fedloom import checkpoint, events
from fedloom.config.tables import LOGS
from fedloom.errors import UsageError
from fedloom.simulation import writers
from fedloom.simulation.simulate import simulate

SMALL = {
    **{"data": "digits", "clients": 6, "per_round": 2, "model": "2nn", "plan": "loop", "threads": 1, "device": "cpu"},
    **{"checkpoint_every": 1, "progress": False},
}


def in_tensorboard(run):
    """Return all figures by name: lists of (round, value), exactly as they stand in the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"), purge_orphaned_data=False)
    read.Reload()
    return {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}


def in_mlflow(run):
    """Return the same from a tracking server, and how the run stands there."""
    import json

    from mlflow.tracking import MlflowClient

    said = json.loads((run / "mlflow.json").read_text())
    client = MlflowClient(said["tracking_uri"])
    found = client.get_run(said["run_id"])
    history = {name: client.get_metric_history(said["run_id"], name) for name in found.data.metrics}
    return {name: [(one.step, one.value) for one in rows] for name, rows in history.items()}, found


READ = {"tensorboard": in_tensorboard, "mlflow": lambda run: in_mlflow(run)[0]}


@pytest.fixture(params=sorted(READ))
def log(request, tmp_path, monkeypatch):
    pytest.importorskip(request.param, reason=f"the package {request.param} is not installed")
    if request.param == "mlflow":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "tracking").as_uri())
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return request.param


def told(run):
    """Return accuracy and bytes by round, as the run's own log has them."""
    records = list(events.rounds(events.read(run).rows))
    return [(r.round, r.accuracy) for r in records], [(r.round, r.bytes_up) for r in records]


def same(found, run):
    accuracy, up = told(run)
    assert found["test/accuracy"] == [(n, pytest.approx(value)) for n, value in accuracy]
    assert found["sent/up"] == [(n, pytest.approx(value)) for n, value in up]


def test_every_round_is_written_once(log, tmp_path):
    run = simulate(out=tmp_path / "run", rounds=3, log=log, holdout=0.2, clients_every=2, **SMALL).folder
    found = READ[log](run)
    same(found, run)
    assert [n for n, _ in found["clients/mean"]] == [2, 3]
    assert {"training/loss", "round/seconds", "round/failed", "round/clients"} <= set(found)


def test_a_run_that_goes_on_has_no_round_twice(log, tmp_path):
    simulate(out=tmp_path / "run", rounds=4, log=log, **SMALL)
    kept = tmp_path / "run" / "checkpoints"
    (kept / "round-00000004.safetensors").unlink()  # as a kill would leave it: the log is ahead of the checkpoint
    assert checkpoint.numbers(kept) == [3]
    run = simulate(out=tmp_path / "run", rounds=6, log=log, resume=True, **SMALL).folder
    same(READ[log](run), run)
    assert len(told(run)[0]) == 6


def test_a_run_that_takes_a_writer_later_has_all_rounds_there(log, tmp_path):
    simulate(out=tmp_path / "run", rounds=2, **SMALL)
    run = simulate(out=tmp_path / "run", rounds=3, log=log, resume=True, **SMALL).folder
    same(READ[log](run), run)


def test_mlflow_knows_the_settings_and_that_a_run_is_over(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "tracking").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = simulate(out=tmp_path / "run", rounds=1, log="mlflow", lr=0.25, **SMALL).folder
    _, found = in_mlflow(run)
    assert found.data.params["training.lr"] == "0.25"
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"


def test_a_server_that_does_not_take_the_run_stops_it_before_it_begins(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(UsageError, match="nonsense://nowhere does not take this run: set MLFLOW_TRACKING_URI"):
        simulate(out=tmp_path / "run", rounds=1, log="mlflow", **SMALL)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_a_writer_that_breaks_on_the_way_does_not_stop_the_run(log, tmp_path, monkeypatch, capsys):
    made = writers.of(log)

    def broken(figures):
        raise OSError("the disk is gone")

    monkeypatch.setattr(made, "write", broken)
    monkeypatch.setattr(writers, "of", lambda name: made)
    run = simulate(out=tmp_path / "run", rounds=3, log=log, **SMALL)
    assert len(run.records) == 3
    said = capsys.readouterr().err
    assert said.count("the disk is gone; the run goes on without it") == 1


def test_a_name_that_is_none_and_a_package_that_is_missing_are_said_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="unknown log 'tensorbord': did you mean 'tensorboard'"):
        simulate(out=tmp_path / "run", log="tensorbord", **SMALL)
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "fedloom.config.conflicts.find_spec", lambda name: None if name in writers.WRITERS else there(name)
    )
    for name, package in (("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny")):
        with pytest.raises(UsageError, match=rf"needs {package}: pip install 'fedloom\[{name}\]'"):
            simulate(out=tmp_path / "run", log=name, **SMALL)
    assert not (tmp_path / "run").exists()


def test_every_name_has_a_writer():
    assert set(writers.WRITERS) == set(LOGS)
