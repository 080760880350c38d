"""A run over the seam: the bits of its simulation, and what goes wrong on the way."""

from __future__ import annotations

import pytest
import torch

from fedloom import events as log
from fedloom.simulation.simulate import simulate


def simulated(folder, small, **given):
    given = {key: value for key, value in (small | given).items() if key != "data"}
    return simulate("digits", out=folder, progress=False, **given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"algorithm": "scaffold", "rounds": 3, "sampling": "uniform", "per_round": 2, "clients": 4},
        {"algorithm": "fedadam", "scheme": "dirichlet", "alpha": 0.5, "min_size": 20},
        {"compress": "topk:0.1 | int8", "compress_down": "float16", "rounds": 3},
        {"algorithm": "ditto"},
        {"privacy": "central", "noise": 0.5, "noise_seed": 1},
        {"algorithm": "feddf", "unlabelled": "digits"},
    ],
    ids=["fedavg", "scaffold", "fedadam", "compressed", "ditto", "private", "feddf"],
)
def test_a_network_run_has_the_bits_of_its_simulation(world, tools, tmp_path, given):
    there = simulated(tmp_path / "there", tools.small, **given)
    made = world(**given)
    for number in range(made.config.data.clients):
        made.start(made.client(number), f"c{number}")
    here = made.serve()
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert [r.accuracy for r in here.records] == [r.accuracy for r in there.records]
    assert [r.client_loss for r in here.records] == [r.client_loss for r in there.records]
    assert [(r.bytes_up, r.bytes_down) for r in here.records] == [(r.bytes_up, r.bytes_down) for r in there.records]
    assert made.ends == {f"c{n}": "the run is over" for n in range(made.config.data.clients)}
    assert log.read(here.folder).rows[-1]["event"] == "end"


def test_updates_and_models_travel_as_the_bytes_of_their_codecs(world):
    made = world(clients=1, rounds=1, compress="topk:0.01 | int8", compress_down="int8")
    client = made.client(0)
    size, sent, got = 55_210, [], []
    upload, next_task = client._channel.upload, client._channel.next_task
    client._channel.upload = lambda update: (sent.append(update), upload(update))[1]
    client._channel.next_task = lambda wait: (got.append(next_task(wait)), got[-1])[1]
    made.start(client, "c0")
    record = made.serve().records[0]
    (update,) = (one for one in sent if one.task == "train")
    (task,) = (one for one in got if one is not None and one.kind == "train")
    assert update.delta is None
    assert 0 < len(update.encoded) == record.bytes_up < 0.1 * size
    assert task.vector is None
    assert size <= len(task.encoded) == record.bytes_down < 1.1 * size


@pytest.mark.parametrize("kind", ["local", "examples"])
def test_a_client_that_adds_noise_of_its_own_tells_nothing_else_of_its_training(world, tools, tmp_path, kind):
    private = {"privacy": kind, "clip": 1.0, "noise": 0.5, "noise_seed": 1}
    there = simulated(tmp_path / "there", tools.small, **private)
    made = world(**private)
    sent, agreed = [], []
    for number in range(3):
        client = made.client(number, agree=lambda found: bool(agreed.append(found)) or True)
        upload = client._channel.upload
        client._channel.upload = lambda update, upload=upload: (sent.append(update), upload(update))[1]
        made.start(client, f"c{number}")
    here = made.serve()
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    trained = [update for update in sent if update.task == "train"]
    assert len(trained) == 6
    assert all(not update.metrics and not update.extra for update in trained)
    leaves = next(line for line in agreed[0].lines() if line.startswith("leaves"))
    assert "loss" not in leaves
    assert "accuracy" not in leaves
