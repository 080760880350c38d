"""Membership inference: sure of what a model knows by heart, blind before it learned anything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data import load_data
from fedloom.errors import DataError, ModelError
from fedloom.leakage.membership import advantage, auc, compare, found_at, membership, roc
from fedloom.models import io
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.shard import Shard


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(data):
    """A model that knows 60 digits by heart, these, others, and its start."""
    model = io.create("2nn", data, 0)
    order = np.random.default_rng(0).permutation(len(data))  # the digits are sorted by who wrote them
    start, members, others = model.vector(), data.take(order[:60]), data.take(order[60:560])
    trainer = Trainer(model, start, Shard.of(members, model), LocalConfig(40, 20, "adam", 3e-3))
    for _ in range(40):
        trainer.run_epoch()
    return model.load(trainer.vector()), start, members, others


def test_a_model_that_learned_by_heart_tells_its_members(trained):
    model, _, members, others = trained
    made = membership(model, members, others)
    assert made.member_accuracy == 1
    assert made.auc.low > 0.55
    assert made.auc.low < made.auc.value < made.auc.high


def test_an_untrained_model_tells_nothing(trained):
    model, start, members, others = trained
    before = model.vector()
    made = membership(model, members, others, vector=start)
    model.load(before)
    assert made.auc.low < 0.5 < made.auc.high


def test_a_file_and_a_member_folder_give_what_the_model_gives(trained, data, tmp_path):
    model, _, members, others = trained
    (tmp_path / "ana").mkdir()
    io.save_model(model, tmp_path / "ana" / "ana.keras")
    direct = membership(model, members, others)
    for place in (tmp_path / "ana" / "ana.keras", tmp_path / "ana"):
        assert membership(place, members, others).auc.value == pytest.approx(direct.auc.value, abs=1e-6)
    with pytest.raises(ModelError, match="no model file in this folder"):
        membership(tmp_path, members, others)


def test_hand_made_losses():
    inside, outside = np.array([0.1, 0.2, 0.3]), np.array([0.25, 0.5, 0.6, 0.7])
    assert auc(inside, outside) == pytest.approx(11 / 12)
    assert advantage(inside, outside) == pytest.approx(2 / 3)
    assert found_at(inside, outside) == pytest.approx(2 / 3)
    assert auc(inside, inside) == 0.5
    alarms, hits = roc(inside, outside)
    assert alarms.tolist() == [0, 0, 0, 0.25, 0.25, 0.5, 0.75, 1]
    assert hits.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=30),
    st.lists(st.integers(0, 9), min_size=2, max_size=30),
)
def test_the_area_under_the_curve_is_the_rank_statistic(inside, outside):
    a, b = np.array(inside, float), np.array(outside, float)
    alarms, hits = roc(a, b)
    assert auc(a, b) == pytest.approx(np.trapezoid(hits, alarms))
    assert auc(a, b) == pytest.approx(1 - auc(b, a))
    assert found_at(a, b) <= 1


def test_the_interval_covers_what_is_true():
    chance = np.random.default_rng(1)
    made = [compare(chance.normal(0, 1, 80), chance.normal(0, 1, 200), seed=i).auc for i in range(12)]
    assert sum(one.low <= 0.5 <= one.high for one in made) >= 10


def test_too_few_and_nan_are_refused():
    with pytest.raises(DataError, match="at least 2 of each"):
        compare(np.array([1.0]), np.array([1.0, 2.0]))
    with pytest.raises(DataError, match="NaN"):
        compare(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
