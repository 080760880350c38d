import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.aggregate import StreamingMean, combination, weighted_mean
from fedloom.errors import MergeError

finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)


def test_by_hand():
    matrix = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 0.0]])
    assert weighted_mean(matrix).tolist() == [3.0, 10.0]
    assert weighted_mean(matrix, weights=[1, 1, 2]).tolist() == [3.75, 7.5]
    assert weighted_mean(matrix, weights=torch.tensor([0.0, 5.0, 0.0])).tolist() == [2.0, 20.0]


@settings(max_examples=60, deadline=None)
@given(columns=st.lists(st.tuples(finite, st.integers(1, 60000)), min_size=1, max_size=12))
def test_off_by_rounding_to_float32_only(columns):
    values, weights = zip(*columns, strict=True)
    exact = sum(Fraction(v) * w for v, w in columns) / sum(weights)
    out = float(weighted_mean(torch.tensor(values, dtype=torch.float32)[:, None], weights=weights))
    largest = max(abs(v) for v in values)
    # Half a unit in the last place of float32, and float64's share of the largest value where values cancel.
    assert abs(Fraction(out) - exact) <= Fraction(float(np.spacing(np.float32(abs(out))))) / 2 + Fraction(
        largest
    ) * Fraction(16, 2**52)


def test_many_small_numbers_are_not_lost_beside_a_large_one():
    # A float32 sum would stop at 2^24.
    vectors = [torch.tensor([2.0**24]), *[torch.tensor([1.0])] * 1000]
    assert float(weighted_mean(vectors)) == float(np.float32((2**24 + 1000) / 1001))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), size=st.integers(1, 50))
def test_streaming_gives_the_bits_of_the_matrix(seed, n, size):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, size, generator=generator)
    weights = (torch.rand(n, generator=generator) + 0.01).tolist()
    mean = StreamingMean(size)
    for row, weight in zip(matrix, weights, strict=True):
        mean.add(row, weight)
    assert torch.equal(mean.result(), weighted_mean(matrix, weights=weights))
    assert mean.count == n


def test_longer_than_a_chunk():
    matrix = torch.randn(3, 3 * 24 * 1024 + 7, generator=torch.Generator().manual_seed(1))
    expected = matrix.double().mean(dim=0).float()
    torch.testing.assert_close(weighted_mean(matrix), expected, rtol=2e-7, atol=0)


def test_result_can_be_asked_for_again_and_again():
    mean = StreamingMean(1)
    mean.add(torch.tensor([2.0]))
    assert mean.result().tolist() == [2.0]
    mean.add(torch.tensor([4.0]))
    assert mean.result().tolist() == [3.0]


PEAKS = """
import resource
import torch
from fedloom.aggregate import StreamingMean

mean = StreamingMean(1 << 22)
for i in range(12):
    mean.add(torch.full((1 << 22,), float(i)))
    if i in (1, 11):
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_peak_memory_does_not_grow_with_the_number_of_models():
    out = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    after_two, after_twelve = (int(line) * (1 if sys.platform == "darwin" else 1024) for line in out.stdout.split())
    assert after_twelve - after_two < (1 << 22) * 4 / 2  # half a vector


def test_what_is_refused_leaves_no_trace():
    mean = StreamingMean(2)
    mean.add(torch.tensor([1.0, 2.0]), name="a.keras")
    with pytest.raises(MergeError, match=r"b\.keras holds NaN"):
        mean.add(torch.tensor([1.0, math.nan]), name="b.keras")
    with pytest.raises(MergeError, match=r"weight of c\.keras is -1"):
        mean.add(torch.ones(2), -1.0, name="c.keras")
    with pytest.raises(MergeError, match=r"model 2 has the shape \(3,\)"):
        mean.add(torch.ones(3))
    assert mean.result().tolist() == [1.0, 2.0]


def test_empty_and_weightless_streams_are_refused():
    mean = StreamingMean(2)
    with pytest.raises(MergeError, match="no model was given"):
        mean.result()
    mean.add(torch.ones(2), 0.0)
    with pytest.raises(MergeError, match="weights of all 1 models are zero"):
        mean.result()


@pytest.mark.parametrize("weight", [1e-200, 1e200])
def test_weights_beyond_float64_sums_are_refused(weight):
    with pytest.raises(MergeError, match="scale the weights"):
        weighted_mean(torch.ones(2, 1), weights=[1.0, weight])


def test_largest_float32_does_not_overflow():
    top = torch.full((3, 1), torch.finfo(torch.float32).max)
    assert torch.equal(weighted_mean(top), top[0])


def test_combination_is_linear():
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, -1.0])]
    assert combination(rows, [2.0, -1.0]).tolist() == [-8.0, 5.0]
