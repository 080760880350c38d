"""Models, samples and the slow loop that DP-SGD is compared with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedloom.data import load_data
from fedloom.models import io
from fedloom.models.architecture import Architecture
from fedloom.models.model import Model
from fedloom.records import Correction
from fedloom.training.dense_chain import Chain
from fedloom.training.local import LocalConfig
from fedloom.training.per_example import Ghost, Mapped
from fedloom.training.private import ExamplePrivacy, PrivateTrainer
from fedloom.training.shard import Shard

DATA = load_data("digits").take(np.arange(70))
QUIET = ExamplePrivacy(math.inf, 0.0)


class Mixture(nn.Module):
    """A user's model with what Keras' models have not: groups, strides, one axis, sequences, dropout, a view."""

    def __init__(self, normalise: bool = False) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.b = nn.Conv2d(4, 6, 3, padding=(2, 1), dilation=(2, 1), groups=2)
        self.norm = nn.GroupNorm(2, 6) if normalise else nn.Identity()
        self.line = nn.Conv1d(6, 5, 3, padding=1)
        self.wide = nn.Linear(5, 30)  # at 16 places of a sample: its gradient is smaller than 16 x 16
        self.narrow = nn.Linear(16 * 30, 10)
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        x = torch.relu_(self.norm(self.b(torch.tanh(self.a(x[:, None])))))
        x = self.wide(functional.gelu(self.line(x.flatten(2))).mT)
        return self.narrow(self.drop(x).flatten(1))


class Few(nn.Module):
    """A linear layer at few places, where products of places are cheaper than gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 40), nn.Linear(80, 10)

    def forward(self, x):
        return self.b(torch.sigmoid(self.a(x.reshape(len(x), 2, 32))).flatten(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.out(torch.relu(self.b(torch.relu(self.a(x.flatten(1))))))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.out(torch.tanh(self.a(torch.tanh(self.a(x.flatten(1))))))


class Normed(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.a, self.norm, self.out = nn.Linear(64, 8), layer, nn.Linear(8, 10)

    def forward(self, x):
        return self.out(self.norm(self.a(x.flatten(1))))


def fresh(name: str = "2nn") -> Model:
    return io.create(name, DATA, 0)


def wrapped(module: nn.Module, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return Model(module, Architecture("torch"), (8, 8), 10, 1.0)


def sequence() -> nn.Module:
    frozen = nn.Linear(20, 20)
    frozen.requires_grad_(False)
    lead = (nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), frozen, nn.ReLU())
    return nn.Sequential(*lead, nn.Linear(20, 15, bias=False), nn.Linear(15, 10))


USERS = {
    "sequence": (sequence, Chain),
    "mixture": (Mixture, Ghost),
    "few": (Few, Ghost),
    "group-norm": (lambda: Mixture(normalise=True), Mapped),
    "tied": (Tied, Mapped),
    "twice": (Twice, Mapped),
}
ZOO = ["2nn", "cnn-small", "lenet"]


def samples(model: Model, n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    shard = Shard.of(DATA, model, "ana")
    return shard.inputs(slice(0, n)), shard.y[:n]


def single(model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The slow loop: one sample, one backward pass."""
    rows = []
    names = model.layout.names[: model.layout.n_trainable]
    for i in range(len(x)):
        model.module.zero_grad()
        functional.cross_entropy(model.logits(x[i : i + 1]), y[i : i + 1]).backward()
        own = dict(model.module.named_parameters())
        rows.append(torch.cat([own[name].grad.flatten() for name in names]))
    return torch.stack(rows)


def trained(config: LocalConfig, privacy: ExamplePrivacy, correction: Correction | None = None, model=None, seed=5):
    model = model or fresh()
    trainer = PrivateTrainer(
        model, model.vector(), Shard.of(DATA, model, "ana"), config, correction, seed, privacy=privacy
    )
    for _ in range(config.epochs):
        trainer.run_epoch()
    return trainer
