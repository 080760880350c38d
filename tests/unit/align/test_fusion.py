"""What fusing must not change, what it restores, and what it solves."""

import pytest
import torch
from small_models import (
    FLAT,
    NAMES,
    NORMED,
    assert_same_function,
    build,
    inputs,
    model_of,
    outputs,
    permuted,
    weights,
)

from fedloom.align.fusion import RIDGE, Goal, goals, least_squares, recalibrate, repair
from fedloom.align.matching import by_activations, by_weights
from fedloom.align.stages import inputs_of, norm_of, results, sample, stages, standard, weight_of
from fedloom.align.symmetry.trace import owner, run, trace

WAYS = [repair, least_squares]
HUGE = 1e9


class Case:
    """A model, what is looked at of it, and some members."""

    def __init__(self, name, rows=None, n=300, model=None):
        self.model = model or model_of(name)
        self.traced, self.x = trace(self.model), inputs(self.model, n)
        self.sampled = sample(self.traced, self.x, 0, 9)
        self.rows = rows or [weights(self.model, seed) for seed in (1, 2, 3)]
        self.stages = stages(self.traced)

    def results(self, vector):
        return results(self.model.load(vector), self.traced, self.sampled)

    def goals(self):
        return goals([self.results(row) for row in self.rows])

    def fused(self, how, start=None, goal=None, **options):
        goal = goal or self.goals()
        self.model.load(torch.stack(self.rows).mean(0) if start is None else start)
        how(self.model, self.traced, self.sampled, goal, **options)
        return self.model.vector()

    def parts(self, vector, stage):
        """A layer's weights as rows, with the BatchNorm's factors multiplied in, in double precision."""
        self.model.load(vector)
        rows, norm = weight_of(self.traced, stage).flatten(1).double(), norm_of(self.traced, stage)
        if norm is None:
            return rows.clone()
        gamma = 1.0 if norm.gamma is None else norm.gamma.double()
        return rows * (gamma / (norm.variance.double() + norm.epsilon).sqrt()).unsqueeze(1)


def deviation(rows):
    return rows.std(0, unbiased=False)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_identical_members_keep_their_function(name, how):
    row = model_of(name).vector()
    case = Case(name, [row] * 3)
    expected = outputs(case.model, row, case.x)
    assert_same_function(outputs(case.model, case.fused(how), case.x), expected)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ["conv", "grouped", "depthwise", "norm", "layer norm", "torch residual"])
def test_permuted_copies_are_fused_into_the_function_that_they_share(name, how):
    model = model_of(name)
    symmetry, rows = permuted(model, 3)
    case = Case(name, rows, model=model)
    expected = outputs(model, rows[0], case.x)
    naive = outputs(model, torch.stack(rows).mean(0), case.x)
    features = [case.results(row) for row in rows]
    taps = [next((v, at[:, 0]) for v, at in group.taps if v in features[0]) for group in symmetry.groups]
    alike = by_activations([[standard(f[value][:, at]) for f in features] for value, at in taps])
    found = by_weights(symmetry, rows, torch.Generator().manual_seed(0), alike.orders)
    case.rows = [symmetry.apply(row, orders) for row, orders in zip(rows, found.orders, strict=True)]
    assert_same_function(outputs(model, case.fused(how), case.x), expected)
    assert (naive - expected).abs().max() > 0.05 * (expected.max() - expected.min())


@pytest.mark.parametrize("name", NAMES)
def test_repair_restores_every_units_mean_and_deviation(name):
    case = Case(name)
    goal, before = case.goals(), torch.stack(case.rows).mean(0)
    fused = case.fused(repair)
    found, plain = case.results(fused), case.results(before)
    for stage in case.stages:
        rows, wanted = found[stage.value], goal[stage.value]
        if stage.last:
            continue
        alive = deviation(rows) > 1e-6  # nothing reaches the others: no unit behind them ever leaves 0
        assert alive.float().mean() > 0.5
        torch.testing.assert_close(deviation(rows)[alive], wanted.spread[alive], rtol=1e-3, atol=1e-5)
        assert not torch.allclose(deviation(plain[stage.value]), wanted.spread, rtol=0.02) or stage is case.stages[0]
        if owner(case.traced.steps[stage.step].run).bias is not None or stage.norm is not None:
            torch.testing.assert_close(rows.mean(0), wanted.centre, rtol=1e-3, atol=1e-3)
    last = case.traced.array(case.traced.steps[case.stages[-1].step], "weight")
    arrays = [case.model.layout.unpack(vector)[last] for vector in (fused, before)]
    assert torch.equal(*arrays)


@pytest.mark.parametrize("name", NAMES)
def test_a_huge_ridge_gives_the_repaired_mean(name):
    case = Case(name)
    goal = case.goals()
    repaired, fitted = case.results(case.fused(repair)), case.results(case.fused(least_squares, ridge=HUGE))
    for stage in case.stages:
        if stage.last:
            torch.testing.assert_close(deviation(fitted[stage.value]), goal[stage.value].spread, rtol=1e-3, atol=1e-5)
        else:
            torch.testing.assert_close(fitted[stage.value], repaired[stage.value], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("ridge", [RIDGE, 1.0])
@pytest.mark.parametrize("n", [300, 6])
@pytest.mark.parametrize(
    "name",
    [
        "dense",
        "conv",
        "strided",
        "grouped",
        "line",
        "dense on a line",
        "norm",
        "norm without scale",
        "norm without both",
    ],
)
def test_the_first_layer_is_where_the_gradient_is_zero(name, n, ridge):
    case = Case(name, n=n)
    stage, goal = case.stages[0], case.goals()
    start = weights(
        case.model, 7
    )  # the repaired mean of a first layer is the members' mean: nothing would be left to fit
    before, fused = case.parts(case.fused(repair, start), stage), case.fused(least_squares, start, ridge=ridge)
    after = case.parts(fused, stage)
    source = case.traced.steps[stage.step].sources[0]
    taken = (
        case.x if source == 0 else next(y for i, y in run(case.traced, case.x) if case.traced.steps[i].target == source)
    )
    made = inputs_of(case.traced, stage, case.sampled, taken)
    x, wanted = (made - made.mean(0)).double(), goal[stage.value].repaired().double()
    assert _gradient(x, wanted, after, before, ridge) < 1e-4 * _gradient(x, wanted, before, before, ridge)
    torch.testing.assert_close(case.results(fused)[stage.value].mean(0), goal[stage.value].centre, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [300, 40])
def test_the_last_layer_fits_the_average_scores(n):
    case = Case("", model=build(FLAT), n=n)
    case.rows = [weights(case.model, seed) for seed in (1, 2)]
    (stage,), goal = case.stages, case.goals()
    goal[stage.value] = Goal(torch.randn(n, 10).cumsum(0) / 9, *(2 + torch.rand(2, 10)))
    start = weights(case.model, 7)
    fused = case.fused(least_squares, start, goal)
    given = case.results(start)[stage.value]
    prior = case.parts(start, stage) * (goal[stage.value].spread / deviation(given)).double().unsqueeze(1)
    x = case.x.flatten(1).double().unsqueeze(1)
    x, wanted = x - x.mean(0), goal[stage.value].mean.double()
    assert _gradient(x, wanted, case.parts(fused, stage), prior, RIDGE) < 1e-4 * _gradient(
        x, wanted, prior, prior, RIDGE
    )
    torch.testing.assert_close(case.results(fused)[stage.value].mean(0), wanted.mean(0).float(), rtol=1e-3, atol=1e-4)


def _gradient(x, wanted, rows, prior, ridge):
    """The size of the gradient of the documented objective at some weights, in double precision."""
    rows = rows.clone().requires_grad_()
    centred, total = wanted - wanted.mean(0), 0.0
    parts = zip(x.unbind(1), *(part.chunk(x.shape[1]) for part in (centred.T, rows, prior)), strict=True)
    for block, goal, own, before in parts:
        total = total + (block @ own.T - goal.T).square().sum() / len(x)
        total = total + ridge * block.square().mean() * (own - before).square().sum()
    return float(torch.autograd.grad(total, rows)[0].norm())


@pytest.mark.parametrize("name", ["dense", "conv", "norm", "norm without both", "grouped norm", "torch norm"])
def test_without_a_ridge_any_start_reaches_a_function_that_can_be_reached(name):
    row = model_of(name).vector()
    case = Case(name, [row] * 2)
    goal, expected = case.goals(), outputs(case.model, row, case.x)
    start = weights(case.model, 8)
    gap = (outputs(case.model, start, case.x) - expected).abs().mean()
    fused = outputs(case.model, case.fused(least_squares, start, goal, ridge=1e-6), case.x)
    assert (fused - expected).abs().mean() < 0.05 * gap


@pytest.mark.parametrize("name", ["dense", "conv", "norm", "depthwise", "torch residual"])
def test_least_squares_comes_nearer_to_the_members_scores_than_repair(name):
    case = Case(name)
    end = case.stages[-1].value
    wanted = case.goals()[end].mean
    plain, repaired, fitted = (
        (case.results(vector)[end] - wanted).square().mean()
        for vector in (torch.stack(case.rows).mean(0), case.fused(repair), case.fused(least_squares))
    )
    assert fitted < 0.5 * repaired
    assert fitted < 0.5 * plain


def test_separable_layers_are_repaired_where_they_are_not_fitted():
    case = Case("separable")
    goal, found = case.goals(), case.results(case.fused(least_squares))
    for stage in case.stages[:2]:
        torch.testing.assert_close(deviation(found[stage.value]), goal[stage.value].spread, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ["dense", "norm", "norm without both"])
def test_a_unit_that_averages_to_a_constant_stays_finite(name, how):
    case = Case(name)
    array = next(n for n in case.model.layout.names if n.endswith("weight"))
    a, b = case.rows[0].clone(), case.rows[0].clone()
    case.model.layout.unpack(b)[array][2].neg_()
    case.rows = [a, b]
    fused = case.fused(how)
    assert fused.isfinite().all()
    assert fused.abs().max() < 100 * a.abs().max()
    dead = a.clone()
    case.model.layout.unpack(dead)[array][2].zero_()
    case.rows = [dead] * 2
    assert_same_function(outputs(case.model, case.fused(how), case.x), outputs(case.model, dead, case.x))


@pytest.mark.parametrize("name", NORMED)
def test_recalibrated_statistics_are_what_the_layers_take(name):
    case = Case(name)
    before, x = case.model.vector(), case.x
    recalibrate(case.model, case.traced, x)
    after = case.model.vector()
    values = {0: x} | {case.traced.steps[i].target: y.clone() for i, y in run(case.traced, x)}
    for step in case.traced.steps:
        if step.op == "BatchNormalization":
            taken, module = values[step.sources[0]].movedim(1, -1).flatten(0, -2), owner(step.run)
            torch.testing.assert_close(module.running_mean, taken.mean(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(module.running_var, taken.var(0, unbiased=False), rtol=1e-4, atol=1e-5)
    head = case.model.layout.trainable
    assert torch.equal(before[:head], after[:head])
    assert not torch.allclose(before[head:], after[head:])
    recalibrate(case.model, case.traced, x)
    torch.testing.assert_close(case.model.vector(), after, rtol=1e-4, atol=1e-5)
    assert_same_function(outputs(case.model, case.model.vector(), x), outputs(case.model, after, x))


@pytest.mark.parametrize("name", ["norm", "norm without both", "grouped norm", "torch norm", "torch residual"])
def test_a_recalibrated_model_gives_what_training_mode_gives(name):
    case = Case(name)
    case.model.module.train()
    with torch.no_grad():
        expected = case.model.module(case.x)
    case.model.load(model_of(name).vector())
    recalibrate(case.model, case.traced, case.x)
    assert not case.model.module.training
    assert_same_function(outputs(case.model, case.model.vector(), case.x), expected)


def test_without_a_norm_there_is_nothing_to_recalibrate():
    case = Case("conv")
    before = case.model.vector()
    recalibrate(case.model, case.traced, case.x)
    assert torch.equal(before, case.model.vector())


def test_goals_by_hand():
    a, b = torch.tensor([[0.0, 1.0], [2.0, 5.0]]), torch.tensor([[4.0, 1.0], [4.0, 1.0]])
    goal = goals([{3: a}, {3: b}])[3]
    assert goal.mean.tolist() == [[2.0, 1.0], [3.0, 3.0]]
    assert goal.centre.tolist() == [2.5, 2.0]
    torch.testing.assert_close(goal.spread, torch.tensor([0.5, 1.0]))  # the means of 1 and 0, of 2 and 0


def test_a_repaired_goal_has_the_members_spread_and_centre():
    generator = torch.Generator().manual_seed(0)
    rows = [{0: 3 * torch.randn(400, 5, generator=generator) + torch.arange(5)} for _ in range(4)]
    goal = goals(rows)[0]
    assert (deviation(goal.mean) < 0.6 * goal.spread).all()
    torch.testing.assert_close(deviation(goal.repaired()), goal.spread, rtol=1e-4, atol=0)
    torch.testing.assert_close(goal.repaired().mean(0), goal.centre, rtol=1e-4, atol=1e-4)
    correlation = (standard(goal.repaired()) * standard(goal.mean)).mean(0)
    torch.testing.assert_close(correlation, torch.ones(5))


def test_a_goal_leans_from_one_to_the_other():
    one, other = (goals([{0: torch.randn(20, 3, generator=torch.Generator().manual_seed(s))}])[0] for s in (0, 1))
    for share, expected in ((0.0, one), (1.0, other)):
        found = one.towards(other, share)
        for name in ("mean", "centre", "spread"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    torch.testing.assert_close(one.towards(other, 0.25).mean, 0.75 * one.mean + 0.25 * other.mean)
    torch.testing.assert_close(one.towards(other, 0.25).spread, 0.75 * one.spread + 0.25 * other.spread)


@pytest.mark.parametrize("how", WAYS)
def test_stages_without_a_goal_stay_as_they_are(how):
    case = Case("dense")
    goal = case.goals()
    before, last = torch.stack(case.rows).mean(0), case.stages[-1]
    fused = case.fused(how, goal={last.value: goal[last.value]})
    changed = {name for name, where, _ in case.model.layout.slices() if not torch.equal(fused[where], before[where])}
    step = case.traced.steps[last.step]
    expected = {case.traced.array(step, "weight"), case.traced.array(step, "bias")}
    assert changed == (expected if how is least_squares else set())
    assert not case.model.module.training
