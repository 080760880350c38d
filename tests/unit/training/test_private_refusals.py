"""DP-SGD: what it refuses, by name."""

from __future__ import annotations

import math

import pytest
import torch
from private_models import Normed, fresh, trained, wrapped
from torch import nn

from fedloom.errors import DataError, UsageError
from fedloom.training.local import LocalConfig
from fedloom.training.per_example_choice import gradients
from fedloom.training.private import ExamplePrivacy, PrivateTrainer
from fedloom.training.shard import Shard


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0, 1.0), "clip is 0.0"),
        ((math.nan, 1.0), "clip is nan"),
        ((1.0, -1.0), "multiplier is -1"),
        ((1.0, math.inf), "multiplier is inf"),
        ((1.0, math.nan), "multiplier is nan"),
        ((math.inf, 1.0), "finite clip"),
        ((1.0, 1.0, None, 0), "memory is 0"),
    ],
)
def test_values_out_of_range_are_named(values, message):
    with pytest.raises(UsageError, match=message):
        ExamplePrivacy(*values)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: fresh("mlp"), "BatchNorm"),
        (lambda: wrapped(Normed(nn.BatchNorm1d(8))), r"'norm' \(BatchNorm1d\)"),
        (lambda: wrapped(Normed(nn.BatchNorm1d(8, track_running_stats=False))), r"'norm' \(BatchNorm1d\)"),
    ],
)
def test_layers_that_mix_samples_are_refused_by_name(make, named):
    model = make()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(UsageError, match=named):
        trained(LocalConfig(1, 16, "sgd", 0.1), ExamplePrivacy(1.0, 1.0), model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_layers_that_keep_something_of_samples_are_refused():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))

        def forward(self, x):
            with torch.no_grad():
                self.mean.lerp_(x.mean(0), 0.1)
            return x

    with pytest.raises(UsageError, match=r"'norm' \(Counting\)"):
        gradients(wrapped(Normed(Counting())))


def test_bfloat16_no_samples_and_what_vmap_cannot_follow_are_refused():
    privacy = ExamplePrivacy(1.0, 1.0)
    with pytest.raises(UsageError, match="float32"):
        trained(LocalConfig(1, 16, "sgd", 0.1, precision="bfloat16"), privacy)
    model = fresh()
    empty = Shard("ana", torch.zeros(0, 8, 8), torch.zeros(0, dtype=torch.int64), 1.0)
    with pytest.raises(DataError, match="not one sample"):
        PrivateTrainer(model, model.vector(), empty, LocalConfig(), privacy=privacy)

    class Branching(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.detach().sum()) > 0 else x

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.branch = nn.Parameter(torch.ones(8)), Branching()

        def forward(self, x):
            return torch.stack([self.branch(row * self.scale) for row in x])

    with pytest.raises(UsageError, match="vmap"):
        gradients(wrapped(Normed(Scaled())))
