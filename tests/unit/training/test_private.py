"""DP-SGD: its limits, its noise, its batches, and what a turn leaves behind."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from private_models import DATA, QUIET, fresh, single, trained

from fedloom.errors import TrainingError
from fedloom.models import io, zoo
from fedloom.models.model import Model
from fedloom.privacy.randomness import Randomness
from fedloom.records import Correction, Phase
from fedloom.training.cohort import Task, train_each
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.noise import Normals, batches
from fedloom.training.private import ExamplePrivacy, PrivateTrainer, Spending, train_private
from fedloom.training.shard import Shard


@pytest.mark.parametrize(
    "config",
    [
        LocalConfig(3, 0, "sgd", 0.1),
        LocalConfig(3, 100, "sgd", 0.05, momentum=0.9, weight_decay=1e-3, schedule="cosine"),
        LocalConfig(3, 0, "adamw", 1e-3, weight_decay=0.1),
    ],
    ids=["sgd", "momentum", "adamw"],
)
def test_no_clip_no_noise_and_all_samples_is_plain_training(config):
    head = fresh().layout.trainable
    mask = torch.ones(fresh().layout.size, dtype=torch.bool)
    mask[: head // 2] = False
    for correction in (None, Correction(0.7, torch.full((head,), 0.01), torch.zeros(head)), Correction(mask=mask)):
        model = fresh()
        plain = Trainer(model, model.vector(), Shard.of(DATA, model, "ana"), config, correction, seed=5)
        for _ in range(3):
            plain.run_epoch()
        torch.testing.assert_close(trained(config, QUIET, correction).vector(), plain.vector(), rtol=2e-4, atol=2e-6)


def test_penalties_of_a_configuration_come_after_the_noise():
    described = zoo.config("2nn", (8, 8), 10)
    described["config"]["layers"][2]["config"]["kernel_regularizer"] = {
        "module": "keras.regularizers",
        "class_name": "L2",
        "config": {"l2": 0.5},
        "registered_name": None,
    }

    def create() -> Model:
        model = io.from_config(described)
        io.initialize(model, 1)
        return model

    model = create()
    local = LocalConfig(1, 0, "sgd", 0.1)
    plain = Trainer(model, model.vector(), Shard.of(DATA, model, "ana"), local)
    plain.run_epoch()
    torch.testing.assert_close(trained(local, QUIET, model=create()).vector(), plain.vector(), rtol=2e-4, atol=2e-6)


def test_the_denominator_is_the_expected_size():
    """By hand, on the batches that were drawn: clip every sample, add up, divide by B."""
    config, privacy, model = LocalConfig(1, 7, "sgd", 0.1), ExamplePrivacy(0.8, 0.0, noise_seed=3), fresh()
    shard, weights, sizes = Shard.of(DATA, model, "ana"), model.vector(), []
    chance = Randomness.of(3, "examples", 5, "ana", 1)
    for index in batches(chance, 70, 0.1, 10):
        sizes.append(len(index))
        if len(index):
            each = single(model.load(weights), shard.inputs(index), shard.y[index])
            clipped = each * (0.8 / each.norm(dim=1)).clamp(max=1.0)[:, None]
            weights = weights - 0.1 * clipped.sum(0) / 7
    torch.testing.assert_close(trained(config, privacy).vector(), weights, rtol=1e-4, atol=1e-6)
    assert len(set(sizes)) > 1


@pytest.mark.parametrize("name", ["2nn", "lenet"])
def test_noise_has_the_stated_deviation_and_none_is_used_twice(name):
    """A learning rate of 1 and a clip so small that the samples' part is nothing: what is left is the noise."""
    config, privacy, model = LocalConfig(1, 7, "sgd", 1.0), ExamplePrivacy(1e-3, 2.0), fresh(name)
    start, shard = model.vector(), Shard.of(DATA, model, "ana")
    steps = []
    trainer = PrivateTrainer(model, start, shard, replace(config, lr=1e-20), privacy=privacy)
    move = trainer._move
    trainer._move = lambda grad: (steps.append(grad.clone()), move(grad))
    trainer.run_epoch()
    noise = torch.stack(steps).double() / (2e-3 / 7)
    assert noise.shape == (10, model.layout.trainable)
    n = noise.numel()
    assert abs(noise.mean()) < 5 / math.sqrt(n) + 2e-3
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / n) + 2e-3
    corr = torch.corrcoef(noise) - torch.eye(10)
    assert corr.abs().max() < 6 / math.sqrt(noise.shape[1]) + 5e-3


def test_normals_are_normal_far_into_the_tail():
    from scipy import stats

    out = torch.empty(1_500_001)
    Normals().fill(out, Randomness.of(7, "normals"), 3.0)
    x = (out / 3.0).double().numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert stats.kstest(x[1:] * x[:-1] / np.abs(x[:-1]), "norm").pvalue > 1e-3
    for bound in (3.0, 4.0, 4.5):
        expected = len(x) * 2 * stats.norm.sf(bound)
        assert abs((np.abs(x) > bound).sum() - expected) < 5 * math.sqrt(expected) + 1
    half = len(x) // 2 + 1
    assert abs(np.corrcoef(x[: half - 1], x[half:])[0, 1]) < 5 / math.sqrt(half)
    for size in (0, 1, 2, 5):
        assert torch.isfinite(Normals().fill(torch.full((size,), math.nan), Randomness.of(None), 1.0)).all()


def test_the_smallest_uniform_numbers_get_more_bits():
    unit = torch.zeros(20_000)
    Normals()._refine(Randomness.of(1, "tail"), unit)
    assert 0 < unit.min() < 2.0**-43
    assert 2.0**-31 * 0.999 < unit.max() <= 2.0**-31
    assert abs(unit.double().mean() * 2**31 - 0.5) < 0.02


@pytest.mark.parametrize(("n", "rate"), [(600, 0.1), (5, 0.05), (50, 1.0)])
def test_batches_are_poisson_samples(n, rate):
    steps, counts = 4000, np.zeros(n)
    sizes = []
    for index in batches(Randomness.of(2, "coins"), n, rate, steps):
        counts[index.numpy()] += 1
        sizes.append(len(index))
        assert bool((index.diff() > 0).all())
    assert len(sizes) == steps
    slack = 5 * math.sqrt(n * rate * (1 - rate) / steps) + 1e-12
    assert abs(np.mean(sizes) - n * rate) <= slack
    variance = n * rate * (1 - rate)
    assert abs(np.var(sizes) - variance) <= 0.15 * variance
    assert np.abs(counts / steps - rate).max() <= 5 * math.sqrt(rate * (1 - rate) / steps)
    assert (min(sizes) == 0) == (n == 5)


def test_empty_batches_are_noise_and_nothing_else():
    config, model = LocalConfig(1, 1, "sgd", 0.1), fresh()
    shard = Shard("ana", torch.zeros(2, 8, 8), torch.zeros(2, dtype=torch.int64), 1.0)
    moved = 0
    for seed in range(6):
        trainer = PrivateTrainer(model, model.vector(), shard, config, privacy=ExamplePrivacy(1.0, 1.0, seed))
        before = trainer.vector()
        trainer.run_epoch()
        assert trainer.steps == 2
        moved += not torch.equal(before, trainer.vector())
    assert moved == 6


def test_a_noise_seed_repeats_and_the_operating_system_does_not():
    config, privacy = LocalConfig(2, 16, "sgd", 0.1, momentum=0.9), ExamplePrivacy(1.0, 1.0, noise_seed=4)
    first, again = trained(config, privacy).vector(), trained(config, privacy).vector()
    assert torch.equal(first, again)
    for other in (replace(privacy, noise_seed=5), replace(privacy, noise_seed=None)):
        assert not torch.equal(first, trained(config, other).vector())
    assert not torch.equal(first, trained(config, privacy, seed=6).vector())
    free = replace(privacy, noise_seed=None)
    assert not torch.equal(trained(config, free).vector(), trained(config, free).vector())
    assert [p.void for p in (privacy, free, QUIET)] == [True, False, True]


def test_resuming_with_momentum_gives_the_same_bits():
    config, privacy = LocalConfig(2, 16, "sgd", 0.05, momentum=0.9), ExamplePrivacy(1.0, 0.5, noise_seed=4)
    whole = trained(config, privacy)
    model = fresh()
    shard = Shard.of(DATA, model, "ana")
    first = PrivateTrainer(model, model.vector(), shard, config, seed=5, privacy=privacy)
    first.run_epoch()
    state = {k: v.clone() for k, v in first.state().items()}
    other = fresh()
    second = PrivateTrainer(other, other.vector(), shard, config, seed=5, privacy=privacy)
    second.resume(state)
    second.run_epoch()
    assert torch.equal(second.vector(), whole.vector())
    assert second.spent == whole.spent == Spending(16 / 70, 0.5, 10)


def test_momentum_remembers_the_noised_gradients():
    config, privacy = LocalConfig(1, 16, "sgd", 0.05, momentum=0.9), ExamplePrivacy(1.0, 1.0, noise_seed=4)
    model = fresh()
    trainer = PrivateTrainer(model, model.vector(), Shard.of(DATA, model, "ana"), config, seed=5, privacy=privacy)
    start, kept, move = model.vector(), [], trainer._move
    trainer._move = lambda grad: (kept.append(grad.clone()), move(grad))
    trainer.run_epoch()
    memory, weights = torch.zeros_like(start), start.clone()
    for grad in kept:
        memory = 0.9 * memory + grad
        weights -= 0.05 * memory
    assert len(kept) == 5
    torch.testing.assert_close(trainer.vector(), weights, rtol=1e-5, atol=1e-6)


def test_a_cohort_is_trained_and_says_what_it_spent():
    model, config = fresh(), LocalConfig(2, 16, "sgd", 0.1)
    start, shard = model.vector(), Shard.of(DATA, model, "ana")
    few = Shard("bob", shard.x[:10], shard.y[:10], shard.divisor)
    phases = (Phase(start), Phase(epochs=1, batch_size=0))
    privacy = ExamplePrivacy(1.0, 1.0, noise_seed=3)
    tasks = [Task(shard, phases), Task(few, phases[:1])]
    found = list(train_private(model, tasks, config, 5, privacy))
    plain = list(train_each(model, tasks, config, 5, partial(PrivateTrainer, privacy=privacy)))
    for (result, _), other in zip(found, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(result.ends, other.ends, strict=True))
        assert result.steps == other.steps
        assert np.isnan([result.loss, result.accuracy]).all()
    assert found[0][1] == (Spending(16 / 70, 1.0, 10), Spending(1.0, 1.0, 1))
    assert found[1][1] == (Spending(1.0, 1.0, 2),)
    assert found[0][1][0] == privacy.spending(70, config)
    assert privacy.spending(10, config) == found[1][1][0]


def test_a_client_that_diverges_has_spent_what_it_took():
    model, config = fresh(), LocalConfig(3, 10, "sgd", 1e38, momentum=0.9)
    task = Task(Shard.of(DATA, model, "ana"), (Phase(model.vector()),))
    ((result, spent),) = train_private(model, [task], config, 0, ExamplePrivacy(1.0, 1e3))
    assert "ana: the weights grew beyond float32 in epoch 1: use a lower --lr" in result.failure
    assert spent == (Spending(1 / 7, 1e3, 7),)
    trainer = PrivateTrainer(model, fresh().vector(), task.shard, config, privacy=ExamplePrivacy(1.0, 1e3))
    with pytest.raises(TrainingError, match="beyond float32"):
        trainer.run_epoch()
