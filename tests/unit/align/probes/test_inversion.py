"""Inputs move until a BatchNorm sees in them what it saw in training."""

import pytest
import torch
from digits_team import blank, team
from small_models import FLAT, NORMED, assert_same_function, build, inputs, model_of, norm, outputs, weights

from fedloom.align.fusion import recalibrate
from fedloom.align.probes.inversion import _gap, towards_statistics
from fedloom.align.stages import Norm
from fedloom.align.symmetry.trace import run, trace


def misfit(model, rows, x):
    """How far the statistics of a batch are from the running ones: the mean over members, layers and channels."""
    traced, gaps = trace(model), []
    for row in rows:
        model.load(row).module.eval()
        values = {0: x} | {traced.steps[i].target: y.clone() for i, y in run(traced, x)}
        for step in traced.steps:
            if step.op == "BatchNormalization":
                own, z = Norm.of(step), values[step.sources[0]].movedim(1, -1).flatten(0, -2)
                gaps.append(((z.mean(0) - own.mean).square() / own.variance).mean())
                gaps.append((z.var(0, unbiased=False) / own.variance).clamp_min(1e-6).log().square().mean())
    return float(torch.stack(gaps).mean())


def noise(model, n=300):
    return torch.rand(n, *model.input_shape, generator=torch.Generator().manual_seed(0))


def recalibrated(name, n):
    """Members whose running statistics are those of the digits."""
    model, made = model_of(name), []
    for seed in range(n):
        model.load(weights(model, seed))
        recalibrate(model, trace(model), inputs(model))
        made.append(model.vector())
    return model, made


@pytest.mark.parametrize("name", ["conv", "layer norm"])
def test_without_a_batch_norm_inputs_come_back(name):
    model = model_of(name)
    x, before = noise(model), model.vector()
    assert torch.equal(towards_statistics(model, trace(model), [weights(model, 1)], x), noise(model))
    assert torch.equal(model.vector(), before)


@pytest.mark.parametrize(
    "name", ["norm", "norm without both", "dense norm", "separable", "torch norm", "torch residual"]
)
def test_the_gap_to_the_statistics_falls_and_the_inputs_stay_in_their_range(name):
    model, rows = recalibrated(name, 2)
    x = noise(model) * 0.8 + 0.1
    moved = towards_statistics(model, trace(model), rows, x, passes=30)
    assert misfit(model, rows, moved) < 0.6 * misfit(model, rows, x)
    assert misfit(model, rows, inputs(model)) < 0.01  # the digits themselves have no gap
    assert moved.shape == x.shape
    assert moved.min() >= x.min()
    assert moved.max() <= x.max()
    assert torch.equal(x, noise(model) * 0.8 + 0.1)
    assert not moved.requires_grad


def test_members_that_were_trained_are_met_too():
    model, rows = blank("mlp"), [member.vector() for member in team("mlp")]
    x = noise(model, 500)
    moved = towards_statistics(model, trace(model), rows, x)
    assert misfit(model, rows, moved) < 0.5 * misfit(model, rows, x)
    more = towards_statistics(model, trace(model), rows, x, passes=20)
    assert misfit(model, rows, more) < misfit(model, rows, moved)


def test_no_passes_move_nothing():
    model, rows = recalibrated("norm", 1)
    assert torch.equal(towards_statistics(model, trace(model), rows, noise(model), passes=0), noise(model))


def test_every_member_has_its_turn():
    model, (a, b) = recalibrated("norm", 2)
    x = noise(model, 200)
    both, alone = (towards_statistics(model, trace(model), rows, x, passes=2) for rows in ([a, b], [a]))
    once = towards_statistics(model, trace(model), [a, b], x, passes=1)
    assert torch.equal(once, towards_statistics(model, trace(model), [a], x, passes=1))
    assert not torch.equal(both, alone)


def test_the_seed_is_all_the_chance():
    model, rows = recalibrated("norm", 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (towards_statistics(model, trace(model), rows, noise(model), seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_module_lends_itself_and_nothing_of_it_is_trained():
    model, rows = recalibrated("torch norm", 2)
    kept = [row.clone() for row in rows]
    frozen = model.module.get_submodule("0").weight.requires_grad_(False)
    model.module.train()
    towards_statistics(model, trace(model), rows, noise(model), passes=3)
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in model.module.parameters() if p is not frozen)
    assert all(p.grad is None for p in model.module.parameters())
    assert not model.module.training
    assert any(torch.equal(model.vector(), row) for row in rows)  # the one whose turn was the last
    assert all(torch.equal(a, b) for a, b in zip(rows, kept, strict=True))
    expected = outputs(model, rows[0], inputs(model))
    assert_same_function(outputs(model_of("torch norm"), rows[0], inputs(model)), expected)


def test_the_gap_by_hand():
    model = build(norm(epsilon=0.0), FLAT, shape=(2,), classes=2)
    module = next(part for part in model.module.modules() if hasattr(part, "running_var"))
    module.running_mean.copy_(torch.tensor([0.0, 1.0]))
    module.running_var.copy_(torch.tensor([1.0, 4.0]))
    x = torch.tensor([[-2.0, 1.0], [2.0, 9.0]])
    away = ((0 - 0) ** 2 / 1 + (5 - 1) ** 2 / 4) / 2
    spread = (torch.tensor([4.0 / 1, 16.0 / 4]).log() ** 2).mean()
    vector = model.vector()
    for name, array in model.layout.unpack(vector).items():
        if "dense" in name:
            array.zero_()
    model.load(vector).module.eval()
    found = _gap(trace(model), x)
    entropy = 0.1 * torch.tensor(0.5).log()  # both classes alike: the most diverse answer, and the least gap
    torch.testing.assert_close(found.detach(), away + spread + entropy)


@pytest.mark.parametrize("name", NORMED)
def test_every_norm_can_be_followed(name):
    model, rows = recalibrated(name, 1)
    moved = towards_statistics(model, trace(model), rows, noise(model, 60), passes=5)
    assert moved.isfinite().all()
    assert not torch.equal(moved, noise(model, 60))


def test_inputs_that_are_all_the_same_stay_finite():
    model, rows = recalibrated("norm", 1)
    x = torch.full((20, *model.input_shape), 0.5)
    assert torch.equal(towards_statistics(model, trace(model), rows, x), x)
