"""Matching brings the units of permuted models back, and never makes members less alike."""

import json

import pytest
import torch
from digits_team import blank, team
from small_models import NAMES, inputs, model_of, permuted, weights

from fedloom.align import matching
from fedloom.align.matching import Matching, assign, best_of, by_activations, by_weights
from fedloom.align.stages import results, sample, standard
from fedloom.align.symmetry.graph import derive
from fedloom.models import io
from fedloom.models.keras_backend import import_keras

MODELS = ["dense", "conv", "grouped", "norm", "torch residual"]


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def placed(symmetry, rows, found):
    return [symmetry.apply(row, orders) for row, orders in zip(rows, found.orders, strict=True)]


def responses(model, symmetry, rows):
    """What the units of every group and member respond, from the stages alone."""
    seen = sample(symmetry.trace, inputs(model), 0)
    features = [results(model.load(row), symmetry.trace, seen) for row in rows]
    taps = [next((v, at[:, 0]) for v, at in group.taps if v in features[0]) for group in symmetry.groups]
    return [[standard(f[value][:, at]) for f in features] for value, at in taps]


def alike(symmetry, rows):
    """The mean inner product of two members' trainable numbers."""
    heads = [row[: symmetry.layout.trainable].double() for row in rows]
    pairs = [float(a @ b) for i, a in enumerate(heads) for b in heads[:i]]
    return sum(pairs) / len(pairs)


def test_the_assignment_is_the_best_of_all_not_the_greedy_one():
    likeness = torch.tensor([[0.9, 0.8, 0.1], [0.8, 0.1, 0.3], [0.7, 0.6, 0.5]])
    assert assign(likeness).tolist() == [1, 0, 2]  # 2.1; the greedy one is [0, 2, 1] with 1.8
    assert assign(-likeness).tolist() == [2, 1, 0]
    assert assign(torch.zeros(4, 4)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_permuted_copies_are_matched_to_a_reference_by_weights(name):
    model = model_of(name)
    symmetry, rows = permuted(model, 3)
    found = by_weights(symmetry, rows, chance(), reference=1)
    assert not torch.equal(rows[0], rows[1])
    assert all(torch.equal(row, rows[1]) for row in placed(symmetry, rows, found))
    assert all(torch.equal(a, b) for a, b in zip(found.orders[1], symmetry.identity(), strict=True))


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("name", MODELS)
def test_permuted_copies_are_matched_all_together_by_weights(name, n):
    model = model_of(name)
    symmetry, rows = permuted(model, n)
    found = by_weights(symmetry, rows, chance())
    aligned = placed(symmetry, rows, found)
    assert all(torch.equal(row, aligned[0]) for row in aligned)
    head = model.vector()[: model.layout.trainable]
    assert found.objective == pytest.approx(float(head @ head), rel=1e-4)


@pytest.mark.parametrize("reference", [None, 0, 1])
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_permuted_copies_are_matched_by_activations(name, n, reference):
    model = model_of(name)
    symmetry, rows = permuted(model, n)
    found = by_activations(responses(model, symmetry, rows), reference)
    aligned = placed(symmetry, rows, found)
    assert not torch.equal(rows[0], rows[1])
    assert all(torch.equal(row, aligned[0]) for row in aligned)
    assert found.objective == pytest.approx(len(symmetry.groups), abs=1e-3)  # a correlation of 1 per group
    if reference is not None:
        assert torch.equal(aligned[reference], rows[reference])


def test_many_wide_members_are_matched_to_the_first(monkeypatch):
    model = model_of("norm")
    symmetry, rows = permuted(model, 4)
    features = responses(model, symmetry, rows)
    for group in features:  # all together do not begin with a stranger
        group[0] = standard(torch.randn(group[0].shape, generator=chance(1)))
    together, to_the_first = by_activations(features), by_activations(features, reference=0)
    assert not torch.equal(together.orders[0][0], torch.arange(6))
    monkeypatch.setattr(matching, "WIDE", 4 * 6 - 1)  # the first group is too wide with 6 units, the second has 5
    found = by_activations(features)
    for i in range(4):
        assert torch.equal(found.orders[i][0], to_the_first.orders[i][0])
        assert torch.equal(found.orders[i][1], together.orders[i][1])
    monkeypatch.setattr(matching, "WIDE", 0)
    copies = by_activations(responses(model, symmetry, rows))
    assert all(torch.equal(row, rows[0]) for row in placed(symmetry, rows, copies))


def test_no_member_would_fit_better_to_the_mean_of_the_others():
    model, rows = blank("2nn"), [m.vector() for m in team("2nn")]
    features = responses(model, derive(model), rows)
    found = by_activations(features)
    for g, group in enumerate(features):
        aligned = [f[:, orders[g]] for f, orders in zip(group, found.orders, strict=True)]
        for i, own in enumerate(aligned):
            likeness = sum(f for j, f in enumerate(aligned) if j != i).T @ own / len(own)
            best = likeness[torch.arange(200), assign(likeness)].sum()
            assert likeness.trace() == pytest.approx(float(best), abs=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_members_that_share_a_start_stay_as_they_are(name):
    model = model_of(name)
    symmetry, start = derive(model), model.vector()
    rows = [start + 0.05 * (weights(model, seed) - start) for seed in (1, 2, 3)]
    for found in (by_weights(symmetry, rows, chance()), by_activations(responses(model, symmetry, rows))):
        for orders in found.orders:
            assert all(torch.equal(a, b) for a, b in zip(orders, symmetry.identity(), strict=True))


def test_matching_from_a_start_never_loses():
    model, members = blank("2nn"), team("2nn")
    symmetry, rows = derive(model), [m.vector() for m in members]
    generator = chance(3)
    for n in (2, 3, 4):
        start = [symmetry.random(generator) for _ in range(n)]
        kept = [[order.clone() for order in orders] for orders in start]
        before = alike(symmetry, placed(symmetry, rows[:n], Matching(start, 0.0)))
        found = by_weights(symmetry, rows[:n], generator, start)
        after = alike(symmetry, placed(symmetry, rows[:n], found))
        assert after > before
        assert found.objective == pytest.approx(after, rel=1e-4)
        again = by_weights(symmetry, rows[:n], generator, found.orders)
        assert again.objective >= found.objective * (1 - 1e-6)
        assert again.sweeps == 1
        assert all(torch.equal(a, b) for o, k in zip(start, kept, strict=True) for a, b in zip(o, k, strict=True))


def test_members_that_learnt_the_same_agree_better_when_matched():
    model, rows = blank("2nn"), [m.vector() for m in team("2nn")]
    symmetry = derive(model)
    features = responses(model, symmetry, rows)
    by_responses = by_activations(features)
    found = by_weights(symmetry, rows, chance(), by_responses.orders)
    plain, first = alike(symmetry, rows), alike(symmetry, placed(symmetry, rows, by_responses))
    assert plain < first < found.objective
    shares = torch.stack([(a.T @ b).diagonal().mean() / len(a) for a, b in (f[:2] for f in features)])
    assert by_responses.objective > 2 * float(shares.sum())


def test_only_the_chosen_arrays_count():
    model = model_of("norm")
    symmetry, rows = derive(model), [weights(model, seed) for seed in (1, 2)]
    for array in (model.layout.names[0], "running_mean"):
        name = next(n for n in model.layout.names if n.endswith(array))
        found = by_weights(symmetry, rows, chance(), arrays=frozenset({name}))
        a, b = (model.layout.unpack(row)[name].flatten() for row in placed(symmetry, rows, found))
        assert found.objective == pytest.approx(float(a @ b), rel=1e-4)
    a, b = (row.clone() for row in rows)
    model.layout.unpack(b)[name].neg_()  # the running means do not count unless they are asked for
    same = [by_weights(symmetry, pair, chance()) for pair in (rows, [a, b])]
    assert same[0].objective == pytest.approx(same[1].objective, rel=1e-6)


def test_the_generator_is_all_the_chance():
    symmetry, rows = derive(blank("2nn")), [m.vector() for m in team("2nn", 2)]
    one, same = (by_weights(symmetry, rows, chance(7)) for _ in range(2))
    for a, b in zip(placed(symmetry, rows, one), placed(symmetry, rows, same), strict=True):
        assert torch.equal(a, b)


def test_the_best_of_several_is_kept():
    tries = [Matching([], objective) for objective in (0.3, 0.9, 0.5)]
    assert best_of([lambda t=t: t for t in tries]) is tries[1]


def test_nothing_hidden_is_nothing_to_match():
    assert by_activations([]).orders == []


def test_the_estimate_of_the_time_grows():
    times = [matching.seconds(units) for units in (0, 100, 1000, 4000, 8000)]
    assert times == sorted(times)
    assert times[3] == pytest.approx(1.5)
    assert times[4] > 4 * times[3]


def test_a_layer_that_is_used_twice_does_not_go_round_in_circles():
    keras = import_keras()
    layer = keras.layers.Dense(16, activation="relu")
    x = given = keras.Input((12,))
    x = keras.layers.Dense(16, activation="relu")(x)
    model = io.from_config(json.loads(keras.Model(given, keras.layers.Dense(4)(layer(layer(x)))).to_json()))
    symmetry = derive(model)
    assert (
        len({(use.array, use.axis) for group in symmetry.groups for use in group.uses if "1_dense" in use.array}) == 3
    )
    rows = [weights(model, seed) for seed in range(5)]
    start = torch.stack([row[: model.layout.trainable] for row in rows])
    before = float(start.sum(0).square().sum() - start.square().sum()) / 20
    for seed in range(4):
        found = by_weights(symmetry, rows, torch.Generator().manual_seed(seed))
        assert found.sweeps < matching.SWEEPS
        assert found.objective >= before
        aligned = torch.stack(placed(symmetry, rows, found))[:, : model.layout.trainable]
        worth = float(aligned.sum(0).square().sum() - aligned.square().sum()) / 20
        assert found.objective == pytest.approx(worth, rel=1e-4)
