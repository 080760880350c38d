"""Small members of a team, trained apart on scikit-learn's digits; inputs from 0 to 1."""

from functools import lru_cache

import numpy as np
import torch
from sklearn.datasets import load_digits

from fedloom.data.dataset import Dataset
from fedloom.models import io, zoo
from fedloom.models.model import Model
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.shard import Shard

N = 4


@lru_cache
def digits() -> Dataset:
    x, y = load_digits(return_X_y=True)
    return Dataset.of((x.reshape(-1, 8, 8, 1) / 16).astype(np.float32), y)


def blank(kind: str) -> Model:
    model = io.from_config(zoo.config(kind, (8, 8, 1), 10))
    model.input_high = 1.0
    return model


def probe() -> torch.Tensor:
    """The inputs that no member was trained on."""
    return torch.from_numpy(digits().x[1400:])


def truth() -> torch.Tensor:
    return torch.from_numpy(digits().y[1400:])


@lru_cache
def trained(kind: str, start: int, part: int, factor: float = 1.0, epochs: int = 12) -> torch.Tensor:
    """Train a member on its part of the first 1400 digits, multiplied by ``factor``; return its vector."""
    data = digits().take(np.arange(part, 1400, N))
    model = blank(kind)
    io.initialize(model, start, "start")
    shard = Shard(str(part), torch.from_numpy(data.x) * factor, torch.from_numpy(data.y), 1.0)
    trainer = Trainer(model, model.vector(), shard, LocalConfig(epochs, 32, "adam", 2e-3), seed=part)
    for _ in range(epochs):
        trainer.run_epoch()
    return trainer.vector()


def team(kind: str, n: int = N) -> list[Model]:
    """Fresh copies of members that were trained from different starts."""
    return [blank(kind).load(trained(kind, part, part)) for part in range(n)]
