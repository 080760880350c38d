"""Distillation brings a model towards what the ensemble says, without dropout."""

import pytest
import torch
from digits_team import blank, digits, probe, team
from small_models import FLAT, build, dense, inputs, outputs, torch_model, weights
from torch import nn
from torch.nn import functional

from fedloom.align.distil import CONFIG, distil
from fedloom.errors import TrainingError
from fedloom.models.layers.noise import BroadcastDropout, Noise
from fedloom.training.local import LocalConfig


def unlabelled():
    return torch.from_numpy(digits().x[:1400])


def teacher_of(kind, x):
    return torch.stack([outputs(member, member.vector(), x) for member in team(kind, 3)]).mean(0)


def distance(kind, vector, x, teacher):
    return float(functional.cross_entropy(outputs(blank(kind), vector, x), teacher.softmax(1)))


@pytest.mark.parametrize("kind", ["2nn", "mlp"])
def test_the_distance_to_the_teacher_falls_also_on_inputs_not_seen(kind):
    x, start = unlabelled(), team(kind)[3].vector()
    teacher = teacher_of(kind, x)
    own, least = start.clone(), float(functional.cross_entropy(teacher, teacher.softmax(1)))
    found = distil(blank(kind), start, x, teacher)
    assert distance(kind, found, x, teacher) - least < 0.4 * (distance(kind, start, x, teacher) - least)
    other = teacher_of(kind, probe())
    assert distance(kind, found, probe(), other) < distance(kind, start, probe(), other)
    assert torch.equal(own, start)


def test_longer_training_comes_nearer():
    x, start = unlabelled(), team("2nn")[3].vector()
    teacher = teacher_of("2nn", x)
    short, long = (
        distil(blank("2nn"), start, x, teacher, LocalConfig(n, 64, "adam", 1e-3, schedule="cosine")) for n in (1, 6)
    )
    assert distance("2nn", long, x, teacher) < distance("2nn", short, x, teacher)


def test_the_seed_is_all_the_chance():
    x, start = unlabelled()[:300], team("mlp")[3].vector()
    teacher = teacher_of("mlp", x)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (distil(blank("mlp"), start, x, teacher, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def dropping(kind, rate):
    if kind == "torch":
        body = [nn.Flatten(), nn.Dropout(rate), nn.Linear(64, 8), nn.ReLU(), nn.Dropout1d(rate), nn.Linear(8, 10)]
        return torch_model(nn.Sequential(*body), (8, 8, 1))
    layers = {
        "keras": [FLAT, dense(8), ("Dropout", {"rate": rate})],
        "rows": [("Dropout", {"rate": rate, "noise_shape": [None, 8, 1, 1]}), FLAT, dense(8)],
        "channels": [("SpatialDropout2D", {"rate": rate}), FLAT, dense(8), ("GaussianDropout", {"rate": rate})],
    }
    return build(*layers[kind])


def rates(model):
    found = [getattr(part, "p", None) for part in model.module.modules()]
    found += [part.strength for part in model.module.modules() if isinstance(part, Noise)]
    found += [part.rate for part in model.module.modules() if isinstance(part, BroadcastDropout)]
    return [rate for rate in found if rate is not None]


@pytest.mark.parametrize("kind", ["torch", "keras", "rows", "channels"])
def test_dropout_lets_everything_pass_and_has_its_rates_back_afterwards(kind):
    model, plain = dropping(kind, 0.5), dropping(kind, 0.0)
    x, before = inputs(model), rates(model)
    start, teacher = weights(model, 0), torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    found, expected = (distil(m, start, x, teacher) for m in (model, plain))
    assert torch.equal(found, expected)
    assert rates(model) == before
    assert max(before) > 0


@pytest.mark.parametrize("kind", ["torch", "keras", "rows"])
def test_the_rates_are_back_after_an_error(kind):
    model = dropping(kind, 0.5)
    x, before = inputs(model), rates(model)
    with pytest.raises(TrainingError, match="distillation: "):
        distil(model, weights(model, 0), x, torch.zeros(300, 10), LocalConfig(1, 32, "sgd", 1e38))
    assert rates(model) == before


def test_a_model_that_says_what_the_teacher_says_stays_where_it_is():
    model = build(FLAT, dense(8))
    start, x = weights(model, 0), inputs(model)
    teacher = outputs(model, start, x)
    plain = LocalConfig(2, 64, "sgd", 0.1)
    torch.testing.assert_close(distil(model, start, x, teacher, plain), start, rtol=1e-4, atol=1e-5)
    moved = distil(model, start, x, teacher.roll(1, 1), plain)
    assert (moved - start).abs().max() > 1e-2


def test_every_batch_is_announced():
    seen, model = [], build(FLAT, dense(8))
    distil(model, weights(model, 0), inputs(model, 100), torch.zeros(100, 10), on_batch=seen.append)
    assert seen == [64, 36] * CONFIG.epochs
