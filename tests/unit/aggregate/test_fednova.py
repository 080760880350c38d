import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.aggregate import combine, fednova, fednova_norm, weighted_mean
from fedloom.errors import MergeError
from fedloom.layout import Layout


def test_by_hand():
    # w0 = 10, updates +2 in 1 step and +12 in 3; t = (1 + 3) / 2 = 2; 10 + 2 (2/1 + 12/3) / 2 = 16.
    matrix, start = torch.tensor([[12.0], [22.0]]), torch.tensor([10.0])
    assert fednova(matrix, norms=[1, 3], start=start).tolist() == [16.0]
    # Weights 3 : 1, t = 0.75 + 0.75 = 1.5; 10 + 1.5 (0.75 * 2 + 0.25 * 4) = 13.75.
    assert fednova(matrix, norms=[1, 3], start=start, weights=[30, 10]).tolist() == [13.75]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 50))
def test_equal_steps_are_the_weighted_mean_and_need_no_start(seed, n, steps):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, 6, generator=generator)
    weights = (torch.rand(n, generator=generator) + 0.1).tolist()
    expected = weighted_mean(matrix, weights=weights)
    assert torch.equal(fednova(matrix, norms=[steps] * n, weights=weights), expected)


def test_a_client_that_repeats_its_step_counts_no_more():
    # Both move one unit per step; the one with 9 steps would dominate the mean's direction.
    start = torch.zeros(2)
    matrix = torch.tensor([[1.0, 0.0], [0.0, 9.0]])
    out = fednova(matrix, norms=[1, 9], start=start)
    assert out.tolist() == [2.5, 2.5]


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("pull", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_norm_is_what_local_steps_on_a_constant_gradient_add_up_to(rho, pull, steps):
    weight, velocity, lr = 0.0, 0.0, 0.1
    for _ in range(steps):
        velocity = rho * velocity + (-1.0 + pull / lr * weight)
        weight -= lr * velocity
    expected = weight / lr
    assert math.isclose(fednova_norm(steps, momentum=rho, prox_mu=pull / lr, lr=lr), expected, rel_tol=1e-9)


def test_norms_by_hand():
    assert fednova_norm(5) == 5.0
    # a = [1 + 1/2 + 1/4, 1 + 1/2, 1].
    assert fednova_norm(3, momentum=0.5) == 1.75 + 1.5 + 1.0
    # a = [(1 - 0.5)^2, 1 - 0.5, 1].
    assert math.isclose(fednova_norm(3, prox_mu=1.0, lr=0.5), 0.25 + 0.5 + 1.0)
    assert fednova_norm(3, lr=0.5) == 3.0


def test_limits_of_the_norm():
    assert math.isclose(fednova_norm(10, momentum=1e-12), 10.0)
    assert math.isclose(fednova_norm(10, prox_mu=1e-12, lr=0.1), 10.0)
    assert all(fednova_norm(1, momentum=m) == 1.0 for m in (0.0, 0.5))


def test_buffers_follow_the_plain_mean():
    layout = Layout(("w", "mean"), ((1,), (1,)), 1)
    matrix = torch.tensor([[12.0, 2.0], [22.0, 4.0]])
    out = fednova(matrix, norms=[1, 3], start=torch.tensor([10.0, 100.0]), layout=layout)
    assert out.tolist() == [16.0, 3.0]


def test_what_is_missing_is_said():
    matrix = torch.ones(2, 1)
    with pytest.raises(MergeError, match=r"needs the model that all started from.*\(1 to 3 steps\)"):
        fednova(matrix, norms=[1, 3])
    with pytest.raises(MergeError, match="needs the local steps of every model"):
        combine("fednova", matrix)
    with pytest.raises(MergeError, match="1 norms were given for 2 models"):
        fednova(matrix, norms=[1])
    with pytest.raises(MergeError, match=r"local work of b\.keras = 0"):
        fednova(matrix, norms=[1, 0], names=["a.keras", "b.keras"])
    with pytest.raises(MergeError, match=r"the common start has the shape \(2,\)"):
        fednova(matrix, norms=[1, 2], start=torch.zeros(2))


def test_result_beyond_float32_is_refused():
    matrix = torch.tensor([[3e38], [-3e38]])
    with pytest.raises(MergeError, match="beyond float32"):
        fednova(matrix, norms=[1, 1000], start=torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum = 1: a number in \[0, 1\)"),
        ({"prox_mu": -1.0}, "prox_mu = -1"),
        ({"prox_mu": 1.0}, "lr = 0: a finite number > 0"),
        ({"prox_mu": 10.0, "lr": 0.1}, r"lr \* prox_mu = 1: a product below 1"),
    ],
)
def test_norm_refuses_what_makes_no_sense(options, message):
    with pytest.raises(MergeError, match=message):
        fednova_norm(3, **options)
    with pytest.raises(MergeError, match="local steps = 0"):
        fednova_norm(0)
