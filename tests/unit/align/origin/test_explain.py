from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from fedloom.aggregate import combine
from fedloom.align.origin.combination import away, judge, products, solve
from fedloom.align.origin.explain import explain
from fedloom.errors import ArchitectureError, MergeError
from fedloom.layout import Layout

NAMES = ("ana", "luis", "carmen", "diego", "elena")
NOVA = (1.8, -0.2, -0.2, -0.2, -0.2)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def train(model, part, epochs=2):
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x[part::5] / 16, dtype=torch.float32), torch.tensor(y[part::5])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def team(seeds):
    models = [train(network(seed), part) for part, seed in enumerate(seeds)]
    layout = Layout.of(models[0])
    return torch.stack([layout.read(m) for m in models]), layout


@pytest.fixture(scope="module")
def shared():
    return team([0] * 5)


@pytest.fixture(scope="module")
def different():
    return team(range(5))


@pytest.fixture(scope="module", params=["shared", "different"])
def either(request):
    return request.getfixturevalue(request.param)


def weighted(vectors, weights):
    return (torch.tensor(weights, dtype=torch.float64) @ vectors.double()).float()


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        ((0.2,) * 5, "mean"),
        ((0.4, 0.15, 0.15, 0.1, 0.2), "weighted mean"),
        ((0.5, 0, 0, 0.5, 0), "mean of some"),
        ((0, 0, 1, 0, 0), "one member"),
        ((1,) * 5, "scaled mean"),
        ((0.1,) * 5, "scaled mean"),
        (NOVA, "error"),
        ((0.5, 0.3, 0.2, 0.1, 0.1), "error"),
    ],
)
def test_a_combination_is_found_and_judged(either, weights, kind):
    vectors, layout = either
    verdict = explain(weighted(vectors, weights), vectors, layout, NAMES)
    assert verdict.kind == kind
    assert verdict.weights == pytest.approx(weights, abs=1e-4)
    assert verdict.total == pytest.approx(sum(weights), abs=1e-4)
    assert verdict.residual < 1e-6
    assert verdict.odd == ()
    assert verdict.statistics.same


def test_a_fednova_with_a_wrong_sign_is_the_first_member_moved_away_from_the_average(shared):
    vectors, layout = shared
    slipped = vectors[0] - (vectors - vectors[0]).mean(0)
    verdict = explain(slipped, vectors, layout)
    assert verdict.kind == "error"
    assert verdict.weights == pytest.approx(NOVA, abs=1e-4)
    assert away(verdict.weights) == (0, pytest.approx(1, abs=1e-3))


@pytest.mark.parametrize("spread", [1e-1, 1e-3])
@pytest.mark.parametrize("weights", [(0.2,) * 5, NOVA, (0, 1, 0, 0, 0)])
def test_members_that_are_nearly_parallel_are_told_apart(shared, spread, weights):
    vectors, layout = shared
    start = vectors.mean(0)
    near = start + spread * (vectors - start)
    verdict = explain(weighted(near, weights), near, layout)
    assert verdict.kind == judge(weights)
    assert verdict.weights == pytest.approx(weights, abs=2e-3)


def test_a_robust_rule_on_nearly_parallel_members_is_not_taken_for_a_mean(shared):
    vectors, layout = shared
    near = vectors.mean(0) + 1e-3 * (vectors - vectors.mean(0))
    assert explain(combine("trimmed-mean", near, options={"k": 1}), near, layout).kind == "trimmed mean"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [(0.2,) * 5, NOVA, (0, 0, 1, 0, 0)])
def test_rounding_of_the_file_changes_no_verdict(either, weights, dtype):
    vectors, layout = either
    stored = weighted(vectors, weights).to(dtype).float()
    verdict = explain(stored, vectors, layout)
    assert verdict.kind == judge(weights)
    assert verdict.weights == pytest.approx(weights, abs=5e-3)
    assert 1e-5 < verdict.residual < 3e-3
    assert explain(weighted(vectors, weights), vectors.to(dtype).float(), layout).kind == judge(weights)


@pytest.mark.parametrize(
    ("method", "options", "kind", "k"),
    [("median", {}, "median", 0), ("trimmed-mean", {"k": 1}, "trimmed mean", 1), ("krum", {}, "one member", 0)],
)
def test_a_rule_is_recognised(either, method, options, kind, k):
    vectors, layout = either
    verdict = explain(combine(method, vectors, options=options), vectors, layout)
    assert (verdict.kind, verdict.trimmed) == (kind, k)
    assert verdict.statistics.same
    assert (verdict.residual > 0.01) == (kind != "one member")


def test_a_rule_that_is_not_known_lies_between_the_members(different):
    vectors, layout = different
    ordered = vectors.sort(0).values
    verdict = explain(0.5 * ordered[1] + 0.5 * ordered[2], vectors, layout)
    assert verdict.kind == "between the members"


def test_a_mean_that_was_trained_further_is_something_else(shared):
    vectors, layout = shared
    model = network(0)
    layout.write(model, vectors.mean(0))
    verdict = explain(layout.read(train(model, 0, 2)), vectors, layout)
    assert verdict.kind == "something else"
    assert verdict.apart > 0.25
    assert verdict.statistics.kind == "something else"


def test_a_model_of_another_team_is_something_else(different):
    vectors, layout = different
    verdict = explain(layout.read(train(network(9), 0)), vectors, layout)
    assert verdict.kind == "something else"
    assert verdict.residual > 0.5


def test_permuted_units_are_something_else(different):
    vectors, layout = different
    model = network(0)
    layout.write(model, vectors[0])
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.flip(0))
        model[3].weight.copy_(model[3].weight.flip(1))
    assert explain(layout.read(model), vectors, layout).kind == "something else"


def test_one_layer_that_is_off_is_named(either):
    vectors, layout = either
    arrays = {name: where for name, where, _ in layout.slices()}
    merged = vectors.mean(0)
    merged[arrays["3.weight"]] = vectors[1][arrays["3.weight"]]
    merged[arrays["3.bias"]] = 5.0
    verdict = explain(merged, vectors, layout)
    assert verdict.kind == "mean"
    assert verdict.weights == pytest.approx([0.2] * 5, abs=1e-4)
    assert verdict.residual < 1e-6
    assert [(p.arrays, p.kind) for p in verdict.odd] == [
        (("3.weight",), "one member"),
        (("3.bias",), "something else"),
    ]
    assert verdict.odd[0].weights == pytest.approx([0, 1, 0, 0, 0], abs=1e-4)


@pytest.mark.parametrize("kind", ["one member", "something else", "fresh"])
def test_batch_norm_statistics_are_judged_apart(different, kind):
    vectors, layout = different
    merged, statistics = vectors.mean(0), slice(layout.trainable, layout.size)
    if kind == "one member":
        merged[statistics] = vectors[2][statistics]
    elif kind == "something else":
        merged[statistics] *= 1.5 - torch.rand(layout.size - layout.trainable)
    else:
        merged[statistics] = layout.read(network(1))[statistics]
    verdict = explain(merged, vectors, layout)
    assert verdict.kind == "mean"
    assert (verdict.statistics.kind, verdict.statistics.same) == (kind, False)
    assert verdict.statistics.arrays == layout.names[layout.n_trainable :]


def test_equal_members_share_their_weight(different):
    vectors, layout = different
    copies = torch.stack([*vectors[:3], vectors[0].half().float(), vectors[1]])
    verdict = explain(vectors[0], copies, layout)
    assert verdict.kind == "one member"
    assert verdict.weights == pytest.approx([0.5, 0, 0, 0.5, 0], abs=1e-3)
    assert verdict.twins == ((0, 3), (1, 4))
    assert explain(copies.mean(0), copies, layout).kind == "mean"


def test_members_that_are_all_equal_are_their_own_mean(different):
    vectors, layout = different
    verdict = explain(vectors[0], [vectors[0]] * 3, layout)
    assert verdict.kind == "mean"
    assert np.isnan(verdict.apart)
    assert explain(vectors[1], [vectors[0]] * 3, layout).kind == "something else"


def test_the_weights_are_the_least_squares_solution(different):
    vectors, layout = different
    merged = layout.read(network(9))
    weights = solve(products(merged, list(vectors), layout).sum(0))
    expected = np.linalg.lstsq(vectors.double().numpy().T, merged.double().numpy(), rcond=None)[0]
    assert weights == pytest.approx(expected, abs=1e-9)


def test_only_what_is_trained_decides(different):
    vectors, layout = different
    frozen = Layout(layout.names, layout.shapes, 0)
    assert explain(vectors.mean(0), vectors, frozen).kind == "mean"
    assert explain(vectors.mean(0), vectors, frozen).statistics is None


@pytest.mark.parametrize(
    ("weights", "expected"), [([1.8, -0.8], (0, 1.6)), ([-0.5, 2.0, -0.5], (1, 1.5)), ([1.5, -0.4, -0.1], None)]
)
def test_a_step_away_is_told_from_other_errors(weights, expected):
    found = away(weights)
    assert found is None if expected is None else found == (expected[0], pytest.approx(expected[1]))


def test_bad_input_is_refused(different):
    vectors, layout = different
    with pytest.raises(MergeError, match="at least two"):
        explain(vectors[0], vectors[:1], layout)
    with pytest.raises(MergeError, match="the merged model holds NaN"):
        explain(vectors[0] * torch.nan, vectors, layout)
    with pytest.raises((MergeError, ArchitectureError), match="shape"):
        explain(vectors[0][:-1], vectors, layout)
