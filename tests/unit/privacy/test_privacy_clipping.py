"""Clipping: norms are bounded, on the head only, for whatever comes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedloom.errors import UsageError
from fedloom.privacy import clip

NUMBERS = st.floats(-(2.0**127), 2.0**127, width=32)


@settings(deadline=None, max_examples=200)
@given(arrays(np.float32, st.integers(0, 40), elements=NUMBERS), st.floats(1e-6, 1e6), st.data())
def test_the_head_is_never_longer_than_the_bound_and_the_rest_stays(values, bound, data):
    vector = torch.from_numpy(values)
    head = data.draw(st.integers(0, len(vector)))
    before = vector.clone()
    found = clip(vector, bound, head)
    assert math.sqrt(sum(x * x for x in found.vector[:head].double().tolist())) <= bound * (1 + 1e-12)
    assert torch.equal(found.vector[head:], before[head:])
    assert torch.equal(vector, before)
    assert found.clipped == (found.norm > bound)
    if not found.clipped:
        assert torch.equal(found.vector, before)


def test_direction_stays_and_the_bound_is_reached():
    vector = torch.from_numpy(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    found = clip(vector, 0.5)
    assert float(torch.cosine_similarity(found.vector.double(), vector.double(), dim=0)) == pytest.approx(1, abs=1e-7)
    assert float(found.vector.double().norm()) == pytest.approx(0.5, rel=1e-6)
    assert found.norm == pytest.approx(float(vector.double().norm()))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_becomes_zeros_all_of_it(broken):
    found = clip(torch.tensor([1.0, broken, 2.0]), 1.0, head=2)
    assert (found.vector.tolist(), found.finite, found.clipped) == ([0.0, 0.0, 0.0], False, True)


def test_a_float32_square_that_overflows_is_clipped_rightly():
    found = clip(torch.full((4,), 3e38), 2.0)
    assert found.finite
    assert found.vector.tolist() == pytest.approx([1.0] * 4, rel=1e-6)


def test_zero_stays_zero_and_an_infinite_bound_changes_nothing():
    assert clip(torch.zeros(3), 1.0).vector.tolist() == [0, 0, 0]
    vector = torch.tensor([1e30, -1e30])
    assert torch.equal(clip(vector, math.inf).vector, vector)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_a_bound_that_is_no_norm_is_refused(bound):
    with pytest.raises(UsageError, match="above 0"):
        clip(torch.zeros(2), bound)


def test_a_head_longer_than_the_vector_is_refused():
    with pytest.raises(UsageError, match="head of 3"):
        clip(torch.zeros(2), 1.0, 3)
