"""What the server expects of updates, which it finds out without training, is what a client that trains sends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedloom.clients import Order, Population
from fedloom.config import Config
from fedloom.data import load_pair
from fedloom.deploy.serving.checks import SAMPLES, Pattern, Shape
from fedloom.models import io
from fedloom.simulation.setup import prepare_remote
from fedloom.training.shard import Shard

GIVEN = [
    *(
        {"algorithm": name}
        for name in ("fedavg", "fednova", "scaffold", "feddyn", "q-fedavg", "fedrep", "ditto", "krum")
    ),
    {"algorithm": "fedbn", "model": "mlp"},
    {"compress": "topk:0.1 | int8"},
    {"privacy": "local", "noise": 1.0},
    {"privacy": "examples", "noise": 1.0},
    {"secure_aggregation": "sum"},
]


@pytest.mark.parametrize("given", GIVEN, ids=["-".join(map(str, one.values())) for one in GIVEN])
def test_a_trial_without_training_has_the_pattern_of_training(tools, given):
    config = Config.of(**(tools.small | given))
    train, test = load_pair("digits")
    setup = prepare_remote(config, io.create(config.model.name, train, 0), train, test, [5, 6, 7])
    side, sent = setup.side("loop"), setup.algorithm.broadcast(setup.algorithm.init(setup.start))
    pattern = Pattern.of(side, setup.protection, sent, setup.lr(1))
    zeros = torch.zeros((SAMPLES, *side.model.input_shape))
    pool = Shard("", zeros, torch.zeros(SAMPLES, dtype=torch.int64), 1.0)
    trained = replace(side, population=Population(pool, [np.arange(SAMPLES)]))
    found = next(trained.run(Order(1, (0,), (sent,), lr=0.1)))
    weighs = {float(SAMPLES): "samples", 1.0: "alike"}.get(found.weight, "own")
    expected = (found.delta.numel(), {key: Shape.of(value) for key, value in found.extra.items()}, weighs)
    assert (pattern.size, dict(pattern.extra), pattern.weighs) == expected
    assert pattern.metrics == set(found.metrics)
