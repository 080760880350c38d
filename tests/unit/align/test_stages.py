"""A stage's results are what the layers give, at the same positions for every model."""

import numpy as np
import pytest
import torch
from small_models import DIGITS, NAMES, Residual, build, conv, inputs, model_of, norm, torch_model, weights
from torch import nn

from fedloom.align.stages import Norm, inputs_of, norm_of, results, sample, stages, standard, weight_of
from fedloom.align.symmetry.trace import Step, owner, run, trace
from fedloom.errors import ModelError

N = 300  # more than one batch


def values(traced, x):
    """Every value of a model, whole."""
    return {0: x} | {traced.steps[i].target: result.clone() for i, result in run(traced, x)}


def picked(whole, places):
    """The rows of an image-like result (n, channels, ...) at flat positions, one by one."""
    flat = whole.flatten(2)
    return torch.stack([flat[i, :, p] for i, row in enumerate(places) for p in row])


@pytest.mark.parametrize("make", [nn.BatchNorm2d, lambda n: nn.BatchNorm2d(n, affine=False)])
def test_results_are_what_a_forward_hook_sees(make):
    body = [nn.Conv2d(1, 4, 3), make(4), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.Flatten(), nn.Linear(20, 10)]
    model = torch_model(nn.Sequential(*body), (1, 8, 8))
    model.load(weights(model, 0)).module.eval()
    seen = {}
    for i in (1, 3, 5):
        body[i].register_forward_hook(lambda _, __, out, i=i: seen.setdefault(i, []).append(out))
    traced, x = trace(model), inputs(model, N)
    sampled = sample(traced, x, 0, 7)
    seen.clear()
    with torch.no_grad():
        model.module(x)
    hooked = {i: outs[0] for i, outs in seen.items()}
    for hook in body:
        hook._forward_hooks.clear()
    found, (a, b, c) = results(model, traced, sampled), stages(traced)
    assert list(found) == [a.value, b.value, c.value]
    torch.testing.assert_close(found[a.value], picked(hooked[1], sampled.places[a.value]))
    torch.testing.assert_close(found[b.value], picked(hooked[3], sampled.places[b.value]))
    torch.testing.assert_close(found[c.value], hooked[5])
    assert found[b.value].shape == (N * 4, 5)  # of 4 positions all 4 are drawn, of 36 only 7
    assert found[a.value].shape == (N * 7, 4)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_the_values_at_the_places(name):
    model = model_of(name)
    traced, x = trace(model), inputs(model, N)
    sampled = sample(traced, x, 0, 5)
    whole, found = values(traced, x), results(model, traced, sampled)
    assert set(found) == {stage.value for stage in stages(traced)}
    for stage in stages(traced):
        expected = whole[stage.value]
        if expected.dim() > 2:
            expected = picked(expected.movedim(stage.axis, 1), sampled.places[stage.value])
        torch.testing.assert_close(found[stage.value], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_layers_outputs_are_its_inputs_times_its_weights(name):
    model = model_of(name)
    traced, x = trace(model), inputs(model, 40)
    sampled, whole, looked = sample(traced, x, 0, 9), values(traced, x), 0
    for stage in stages(traced):
        step = traced.steps[stage.step]
        made, weight = inputs_of(traced, stage, sampled, whole[step.sources[0]]), weight_of(traced, stage)
        assert (made is None) == step.op.startswith("Separable")
        if made is None:
            continue
        blocks = zip(made.unbind(1), weight.flatten(1).chunk(made.shape[1]), strict=True)
        bias = owner(step.run).bias
        found = torch.cat([part @ w.T for part, w in blocks], 1) + (0.0 if bias is None else bias.detach())
        expected = sampled.take(stage.value, whole[step.target], stage.axis)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        looked += 1
    assert looked >= 1


def test_grouped_and_depthwise_layers_have_their_inputs_in_groups():
    for name, at, shape in [("grouped", 1, (2, 36)), ("depthwise", 1, (4, 9)), ("depthwise", 2, (8, 9))]:
        traced = trace(model_of(name))
        x = inputs(model_of(name), 3)
        sampled, stage = sample(traced, x, 0, 2), stages(traced)[at]
        source = traced.steps[stage.step].sources[0]
        assert inputs_of(traced, stage, sampled, values(traced, x)[source]).shape[1:] == shape


def test_the_positions_are_the_same_for_every_model_and_the_seed_is_all_the_chance():
    one, other = model_of("norm"), model_of("norm")
    other.load(weights(other, 5))
    a, b, c = (sample(trace(m), inputs(m, 50), seed, 6) for m, seed in ((one, 1), (other, 1), (one, 2)))
    assert a.places.keys() == b.places.keys()
    assert all(torch.equal(a.places[value], b.places[value]) for value in a.places)
    assert not all(torch.equal(a.places[value], c.places[value]) for value in a.places)
    before = torch.get_rng_state()
    sample(trace(one), inputs(one, 50), 3)
    assert torch.equal(before, torch.get_rng_state())


def test_a_layer_and_its_norm_are_looked_at_in_the_same_places():
    traced = trace(model_of("norm"))
    sampled = sample(traced, inputs(model_of("norm"), 20), 0)
    first, second, last = stages(traced)
    for stage, count in ((first, 36), (second, 16)):
        target = traced.steps[stage.step].target
        assert target != stage.value
        assert torch.equal(sampled.places[target], sampled.places[stage.value])
        assert sampled.places[target].shape == (20, min(count, 32))
        assert 0 <= sampled.places[target].min() < sampled.places[target].max() < count
    assert last.value not in sampled.places


def test_stages_are_the_layers_with_weights_in_order():
    traced = trace(model_of("norm"))
    found = stages(traced)
    assert [(traced.steps[s.step].op, s.norm is not None, s.axis, s.last) for s in found] == [
        ("Conv2D", True, 1, False),
        ("Conv2D", True, 1, False),
        ("Dense", False, 1, True),
    ]
    assert [norm_of(traced, s) is None for s in found] == [False, False, True]
    line = stages(trace(model_of("dense on a line")))
    assert [(s.axis, s.last) for s in line] == [(2, False), (2, False), (1, True)]


def test_a_layer_that_is_used_twice_has_its_first_stage_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

        def forward(self, x):
            return self.c(self.b(self.b(self.a(x).relu()).relu()))

    traced = trace(torch_model(Twice(), (64,)))
    assert [traced.steps[s.step].layer for s in stages(traced)] == ["a", "b", "c"]


def test_a_norm_belongs_to_a_layer_only_where_nothing_else_reads_it_and_the_axis_is_the_same():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

        def forward(self, x):
            x = self.a(x)
            return self.head((x + self.norm(x)).mean((2, 3)))

    assert stages(trace(torch_model(Read(), (1, 8, 8))))[0].norm is None
    assert stages(trace(torch_model(Residual(), (1, 8, 8))))[1].norm is not None
    over_time = trace(model_of("torch norm over time"))
    assert any(step.op == "BatchNormalization" for step in over_time.steps)
    assert [(s.norm, s.axis) for s in stages(over_time)] == [(None, 2), (None, 1)]


def test_standardised_features_give_the_correlations():
    generator = np.random.default_rng(0)
    a, b = generator.normal(3, 5, (200, 4)), generator.normal(-1, 0.1, (200, 3))
    x, y = (standard(torch.from_numpy(f)) for f in (a, b))
    expected = np.corrcoef(a.T, b.T)[:4, 4:]
    np.testing.assert_allclose((x.T @ y / 200).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(x.square().mean(0), 1.0)


def test_constant_units_become_zero():
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    features[:, 1] = 0.1
    found = standard(features)
    assert (found[:, 1] == 0).all()
    assert found[:, [0, 2]].square().mean(0).sub(1).abs().max() < 1e-5
    assert (standard(torch.full((20, 4), 7.3)) == 0).all()


def test_the_arrays_of_a_norm():
    keras = build(conv(4, activation="linear"), norm(epsilon=0.25, scale=False), ("Flatten", {}))
    found = norm_of(trace(keras), stages(trace(keras))[0])
    assert found.epsilon == 0.25
    assert found.gamma is None
    assert found.beta.shape == found.mean.shape == found.variance.shape == (4,)
    module = nn.BatchNorm2d(3, eps=0.5)
    own = Norm.of(Step(module, (0,), 1, "n", "BatchNormalization"))
    assert own.epsilon == 0.5
    own.mean.fill_(2.0)
    own.gamma.fill_(3.0)
    assert (module.running_mean == 2).all()
    assert (module.weight == 3).all()
    module = nn.BatchNorm2d(3, track_running_stats=False)
    with pytest.raises(ModelError, match=r"layer 'mine' \(BatchNormalization\) keeps no running statistics"):
        Norm.of(Step(module, (0,), 1, "mine", "BatchNormalization"))


def test_training_mode_is_left_before_a_model_is_looked_at():
    model = model_of("dense norm")
    traced, x = trace(model), DIGITS[:N].reshape(N, 8, 8, 1)
    sampled, before = sample(traced, x, 0), model.vector()
    expected = results(model, traced, sampled)
    model.module.train()
    again = results(model, traced, sampled)
    assert all(torch.equal(expected[value], again[value]) for value in expected)
    assert torch.equal(model.vector(), before)
