"""DP-SGD: against a loop over single samples, its limits, its chance, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedloom.data import load_data
from fedloom.errors import DataError, TrainingError, UsageError
from fedloom.models import io, zoo
from fedloom.models.architecture import Architecture
from fedloom.models.model import Model
from fedloom.privacy.randomness import Randomness
from fedloom.records import Correction, Phase
from fedloom.training.cohort import Task, train_each
from fedloom.training.dense_chain import Chain
from fedloom.training.ghost_layers import Part, Shared
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.noise import Normals, batches
from fedloom.training.per_example import Ghost, Mapped
from fedloom.training.per_example_choice import gradients
from fedloom.training.private import ExamplePrivacy, PrivateTrainer, Spending, train_private
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


def trained(config: LocalConfig, privacy: ExamplePrivacy, correction: Correction | None = None, model=None, seed=5):
    model = model or fresh()
    trainer = PrivateTrainer(
        model, model.vector(), Shard.of(DATA, model, "ana"), config, correction, seed, privacy=privacy
    )
    for _ in range(config.epochs):
        trainer.run_epoch()
    return trainer


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
