"""Sums of clipped gradients: against a loop over single samples."""

from __future__ import annotations

import math

import pytest
import torch
from private_models import USERS, ZOO, Mixture, Tied, fresh, samples, sequence, single, wrapped
from torch import nn

from fedloom.models import io, zoo
from fedloom.models.model import Model
from fedloom.training.dense_chain import Chain
from fedloom.training.ghost_layers import Part, Shared
from fedloom.training.per_example import Ghost, Mapped
from fedloom.training.per_example_choice import gradients


def check_sum(model: Model, x: torch.Tensor, y: torch.Tensor, memory: int = 2**28) -> None:
    way, each = gradients(model, memory), single(model, x, y)
    model.module.train()
    norms = each.norm(dim=1)
    clip, out = float(norms.median()), torch.ones(each.shape[1])
    with way.listening():
        torch.testing.assert_close(way.norms(x, y), norms, rtol=1e-4, atol=1e-5)
        way.add(x, y, clip, 0.5, out)
    expected = 1 + 0.5 * sum(g * min(1.0, clip / float(g.norm())) for g in each)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-5)
    assert norms.min() < clip < norms.max()


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("memory", [1, 2**28], ids=["one at a time", "together"])
def test_the_zoos_sums_are_those_of_a_loop(name, memory):
    model = fresh(name)
    assert type(gradients(model)) is (Chain if name == "2nn" else Ghost)
    check_sum(model, *samples(model), memory)


@pytest.mark.parametrize("name", USERS)
@pytest.mark.parametrize("memory", [1, 2**28], ids=["one at a time", "together"])
def test_users_models_sums_are_those_of_a_loop(name, memory):
    make, way = USERS[name]
    model = wrapped(make())
    assert type(gradients(model)) is way
    check_sum(model, *samples(model), memory)


def test_mcmahans_cnn():
    model = io.from_config(zoo.config("cnn", (28, 28), 10))
    io.initialize(model, 1)
    check_sum(model, torch.rand(3, 28, 28, 1), torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("make", [Mixture, sequence])
def test_both_ways_agree_and_soft_labels_count(make):
    model = wrapped(make())
    x, _ = samples(model)
    y = torch.rand(len(x), 10)
    sums = []
    for way in (gradients(model), Mapped(model)):
        sums.append(torch.zeros(model.layout.trainable))
        with way.listening():
            way.add(x, y, 0.5, 1.0, sums[-1])
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-5)


def test_frozen_arrays_have_no_part_in_the_norm():
    module = Mixture()
    module.b.weight.requires_grad_(False)
    module.narrow.bias.requires_grad_(False)
    module.wide.requires_grad_(False)
    model = wrapped(module)
    assert isinstance(gradients(model), Ghost)
    check_sum(model, *samples(model))


@pytest.mark.parametrize("make", [sequence, Mixture, Tied], ids=["chain", "ghost", "mapped"])
def test_a_sample_without_a_finite_gradient_counts_as_zero(make):
    model = wrapped(make())
    x, y = samples(model)
    way, expected, found = gradients(model), torch.zeros(model.layout.trainable), torch.zeros(model.layout.trainable)
    with way.listening():
        way.add(x[[0, 2, 4]], y[[0, 2, 4]], 0.5, 1.0, expected)
        x[1], x[3] = math.nan, math.inf
        way.add(x[:5], y[:5], 0.5, 1.0, found)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        way.add(x[[1, 3]], y[[1, 3]], 0.5, 1.0, found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_dropout_gives_each_sample_its_own_mask():
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.out, self.scale = nn.Dropout(0.5), nn.Linear(64, 10), nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.out(self.drop(x.flatten(1))) * self.scale

    model = wrapped(Dropping())
    way = gradients(model)
    assert isinstance(way, Mapped)
    x, y = samples(model, 1)
    each = way.each(x.expand(6, 8, 8), y.expand(6))
    assert len({tuple((row != 0).tolist()) for row in each}) == 6


def test_the_model_is_left_as_it_was_by_the_trial():
    model = wrapped(Mixture())
    before, state = model.vector(), torch.random.get_rng_state()
    gradients(model)
    assert torch.equal(before, model.vector())
    assert torch.equal(state, torch.random.get_rng_state())


def test_norms_whose_terms_cancel_are_not_taken_for_too_small():
    """Two places of a sample with nearly opposite gradients: what is left of the sum is rounding."""
    part = Part(nn.Linear(50, 40), "w", "")
    a, d = torch.randn(64, 1, 50, 1), torch.randn(64, 1, 40, 1)
    small = 1e-5 * torch.randn(64, 1, 40, 1)
    rows = Shared(part, a.expand(64, 1, 50, 2), torch.cat([d, small - d], 3))
    exact = (rows.d.double() @ rows.a.double().mT).square().sum((1, 2, 3))
    assert (rows.square() >= exact).all()
    assert (rows.square() <= 2e-6 * 4 * (a.norm(dim=2) * d.norm(dim=2)).square().flatten() + exact).all()
