"""An update holds its samples: division and search find them, noise and crowds hide them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedloom.data import load_data
from fedloom.errors import DataError, UsageError
from fedloom.leakage.inversion import Effort, analytic, client_update, gradient_of, invert, labels_of, total_variation
from fedloom.leakage.matching import match, psnr
from fedloom.models import io
from fedloom.training.shard import Shard

QUICK = Effort(steps=200, starts=1)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def model(data):
    return io.create("2nn", data, 0)


def seen(model, data, index, lr=0.1):
    """Return what a server sees of a client with these samples: its shard, and the gradient behind its update."""
    start = model.vector()
    shard = Shard.of(data.take(index), model)
    return start, shard, gradient_of(client_update(model, start, shard, lr), lr, model.layout)


def originals(shard):
    return shard.inputs(slice(0, len(shard))).numpy()


def test_the_update_is_one_step_of_the_trainer_and_leaves_the_model_alone(model, data):
    start, shard, gradient = seen(model, data, [0, 1])
    assert torch.equal(model.vector(), start)
    loss = torch.nn.functional.cross_entropy(model.logits(shard.inputs(slice(0, 2))), shard.y)
    own = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.module.parameters()))])
    assert torch.allclose(gradient, own, atol=1e-5)


@pytest.mark.parametrize("i", [0, 5, 17])
def test_division_gives_one_picture_exactly(model, data, i):
    _, shard, gradient = seen(model, data, [i])
    found = analytic(model.layout, gradient, model.input_shape)
    assert found is not None
    assert np.abs(found[0].numpy() - originals(shard)[0]).max() < 1e-4


def test_division_needs_a_fully_connected_first_layer(data):
    lenet = io.create("lenet", data, 0)
    gradient = torch.ones(lenet.layout.trainable)
    assert analytic(lenet.layout, gradient, lenet.input_shape) is None


def test_the_label_of_one_sample_is_always_read_and_those_of_several_mostly(model, data):
    for i in range(10):
        start, shard, gradient = seen(model, data, [i])
        assert labels_of(model, start, gradient, 1).tolist() == shard.y.tolist()
    start, shard, gradient = seen(model, data, list(range(8)))
    read = torch.bincount(labels_of(model, start, gradient, 8), minlength=10)
    assert int(torch.minimum(read, torch.bincount(shard.y, minlength=10)).sum()) >= 7


def test_search_finds_the_picture_and_clipping_changes_nothing(model, data):
    start, shard, gradient = seen(model, data, [3])
    found = [invert(model, start, g, shard.y, effort=QUICK) for g in (gradient, gradient * 1e-3)]
    for pictures in found:
        assert match(originals(shard), pictures.numpy()).psnr[0] > 20
    assert torch.equal(model.vector(), start)


def test_noise_destroys_it(model, data):
    start, shard, gradient = seen(model, data, [3])
    chance = torch.Generator().manual_seed(0)
    noisy = gradient + torch.randn(gradient.shape, generator=chance) * gradient.norm()
    searched = invert(model, start, noisy, shard.y, effort=QUICK)
    divided = analytic(model.layout, noisy, model.input_shape)
    assert match(originals(shard), searched.numpy()).psnr[0] < 12
    assert match(originals(shard), divided[:1].numpy()).psnr[0] < 12


def test_a_sum_of_many_hides_a_picture(data):
    lenet, effort = io.create("lenet", data, 0), Effort(steps=60, starts=1)
    reached = {}
    for n in (1, 60):
        start, shard, gradient = seen(lenet, data, list(range(n)))
        found = invert(lenet, start, gradient, shard.y, effort=effort)
        reached[n] = np.median(match(originals(shard), found.numpy()).psnr)
    assert reached[60] < 10
    assert reached[60] < reached[1] - 3


def test_the_same_seed_finds_the_same(model, data):
    start, shard, gradient = seen(model, data, [7])
    short = Effort(steps=16, starts=2)
    ticks: list[int] = []
    one = invert(model, start, gradient, shard.y, effort=short, seed=3, on_step=lambda: ticks.append(1))
    assert torch.equal(one, invert(model, start, gradient, shard.y, effort=short, seed=3))
    assert not torch.equal(one, invert(model, start, gradient, shard.y, effort=short, seed=4))
    assert len(ticks) == short.total


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_a_gradient_that_points_nowhere_is_refused(model, bad):
    gradient = torch.full((model.layout.trainable,), bad)
    with pytest.raises(DataError, match="points nowhere"):
        invert(model, model.vector(), gradient, torch.tensor([0]), effort=QUICK)


def test_an_effort_of_nothing_is_refused():
    with pytest.raises(UsageError, match="steps is 0"):
        Effort(steps=0)


def test_pictures_are_paired_with_what_fits_them():
    chance = np.random.default_rng(0)
    truth = chance.random((5, 4, 4))
    order = chance.permutation(5)
    made = match(truth, np.concatenate([chance.random((3, 4, 4)), truth[order]]))
    assert np.array_equal(made.found, truth)
    assert np.all(made.psnr == 120)
    assert psnr(np.array([0.1])).tolist() == pytest.approx([10.0])
    assert len(match(truth, truth[:2]).mse) == 2


def test_total_variation_of_a_flat_picture_is_zero():
    assert float(total_variation(torch.ones(2, 5, 5))) == 0
    assert float(total_variation(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]))) == 1
