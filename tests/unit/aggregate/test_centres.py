"""The geometric median, norm bounding and centered clipping."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.aggregate import centered_clipping, geometric_median, median, norm_bounding, weighted_mean
from fedloom.errors import MergeError


def cost(matrix, point, weights=None):
    distances = (matrix.double() - point.double()).norm(dim=1)
    return float(distances.mean() if weights is None else (distances * weights / weights.sum()).sum())


def test_geometric_median_of_a_triangle():
    # Fermat's point of an equilateral triangle is its middle.
    corners = torch.tensor([[1.0, 0.0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]])
    torch.testing.assert_close(geometric_median(corners), torch.zeros(2), atol=1e-6, rtol=0)


def test_geometric_median_of_a_square_and_a_point_inside():
    # Inside a convex quadrilateral the diagonals' crossing is the minimum (Fagnano).
    square = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]])
    torch.testing.assert_close(geometric_median(square), torch.full((2,), 2.0), atol=1e-5, rtol=0)


def test_geometric_median_on_a_line_is_the_median():
    out = geometric_median(torch.tensor([[0.0], [1.0], [3.0], [50.0], [1e6]]))
    assert abs(float(out) - 3.0) < 1e-4


def test_geometric_median_goes_to_the_heavier_half():
    out = geometric_median(torch.tensor([[0.0, 0.0], [10.0, 0.0]]), weights=[3, 1])
    torch.testing.assert_close(out, torch.zeros(2), atol=1e-3, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 9))
def test_geometric_median_is_a_minimum(seed, n):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, 5, generator=generator)
    weights = torch.rand(n, generator=generator).double() + 0.1
    point = geometric_median(matrix, weights=weights)
    here = cost(matrix, point, weights)
    for _ in range(20):
        step = torch.randn(5, generator=generator)
        assert here <= cost(matrix, point + 0.01 * step, weights) + 1e-9
    assert here <= cost(matrix, weighted_mean(matrix, weights=weights), weights) + 1e-9


def test_geometric_median_steps_are_weiszfelds():
    matrix = torch.randn(5, 4, generator=torch.Generator().manual_seed(5))
    v = median(matrix).double()
    for _ in range(3):
        b = 1 / (matrix.double() - v).norm(dim=1)
        v = (b[:, None] * matrix.double()).sum(dim=0) / b.sum()
    torch.testing.assert_close(geometric_median(matrix, iterations=3), v.float())


def test_geometric_median_bears_nearly_half():
    good = torch.randn(6, 20, generator=torch.Generator().manual_seed(6))
    bad = torch.full((5, 20), 1e4)
    assert geometric_median(torch.cat([good, bad])).abs().max() < 10


def test_norm_bounding_by_hand():
    # From (0, 0): (3, 4) has norm 5 and is halved by the bound 2.5, (0, 1) counts in full.
    matrix = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    out = norm_bounding(matrix, centre=torch.zeros(2), bound=2.5)
    torch.testing.assert_close(out, torch.tensor([0.75, 1.5]))
    out = norm_bounding(matrix, centre=torch.zeros(2), bound=2.5, weights=[3, 1])
    torch.testing.assert_close(out, torch.tensor([1.125, 1.75]))


def test_norm_bounding_from_elsewhere():
    out = norm_bounding(torch.tensor([[11.0]]), centre=torch.tensor([1.0]), bound=4.0)
    assert out.tolist() == [5.0]


@pytest.mark.parametrize("centre", [None, torch.ones(8)])
def test_large_bounds_give_the_mean(centre):
    matrix = torch.randn(6, 8, generator=torch.Generator().manual_seed(7))
    mean = weighted_mean(matrix)
    torch.testing.assert_close(norm_bounding(matrix, centre=centre, bound=1e9), mean)
    torch.testing.assert_close(centered_clipping(matrix, centre=centre, tau=1e9, iterations=1), mean)
    torch.testing.assert_close(centered_clipping(matrix, centre=centre, tau=1e9, iterations=40), mean)


def test_centered_clipping_by_hand():
    # v = 0, tau = 2: (10 -> 2, 1 -> 1) gives 1.5; then (8.5 -> 2, -0.5) gives 1.5 + 0.75 = 2.25.
    matrix = torch.tensor([[10.0], [1.0]])
    one = centered_clipping(matrix, centre=torch.zeros(1), tau=2.0, iterations=1)
    two = centered_clipping(matrix, centre=torch.zeros(1), tau=2.0, iterations=2)
    assert one.tolist() == [1.5]
    torch.testing.assert_close(two, torch.tensor([2.25]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 6))
def test_centered_clipping_equals_the_plain_loop(seed, n, iterations):
    generator = torch.Generator().manual_seed(seed)
    matrix, centre = torch.randn(n, 5, generator=generator), torch.randn(5, generator=generator)
    v = centre.double()
    tau = float(np.median((matrix.double() - v).norm(dim=1).numpy()))
    for _ in range(iterations):
        difference = matrix.double() - v
        factor = (tau / difference.norm(dim=1)).clamp(max=1.0)
        v = v + (factor[:, None] * difference).mean(dim=0)
    out = centered_clipping(matrix, centre=centre, iterations=iterations)
    torch.testing.assert_close(out, v.float(), atol=1e-6, rtol=1e-6)


def test_one_step_of_centered_clipping_is_norm_bounding():
    matrix = torch.randn(6, 8, generator=torch.Generator().manual_seed(8))
    centre = torch.ones(8)
    one = centered_clipping(matrix, centre=centre, iterations=1)
    torch.testing.assert_close(one, norm_bounding(matrix, centre=centre))


def test_a_majority_at_the_centre_leaves_no_room_for_others():
    matrix = torch.tensor([[1.0], [1.0], [1.0], [9.0]])
    assert centered_clipping(matrix).tolist() == [1.0]
    assert norm_bounding(matrix).tolist() == [1.0]


def test_options_out_of_range_are_refused():
    matrix = torch.ones(3, 2)
    for call in (
        lambda: geometric_median(matrix, nu=0.0),
        lambda: norm_bounding(matrix, bound=-1.0),
        lambda: centered_clipping(matrix, tau=math.inf),
    ):
        with pytest.raises(MergeError, match="a finite number > 0 is expected"):
            call()
    for call in (lambda: geometric_median(matrix, iterations=0), lambda: centered_clipping(matrix, iterations=0)):
        with pytest.raises(MergeError, match="iterations = 0: a whole number >= 1"):
            call()
    with pytest.raises(MergeError, match=r"the centre has the shape \(3,\)"):
        centered_clipping(matrix, centre=torch.ones(3))
    with pytest.raises(MergeError, match="the centre holds NaN"):
        norm_bounding(matrix, centre=torch.tensor([0.0, math.nan]))
