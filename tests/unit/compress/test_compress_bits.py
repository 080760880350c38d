from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.compress import indices
from fedloom.compress.base import Reader
from fedloom.compress.bits import pack, packed_length, uniforms, unpack, words
from fedloom.errors import DataError
from fedloom.rng import stream


@settings(deadline=None)
@given(st.integers(0, 64), st.integers(0, 100), st.integers(0, 9))
def test_packed_numbers_come_back(bits, count, seed):
    numbers = (
        stream(seed).integers(0, 2**bits, count, dtype=np.uint64, endpoint=False) if bits else np.zeros(count, "u8")
    )
    data = pack(numbers, bits)
    assert len(data) == packed_length(count, bits)
    assert len(data) <= math.ceil(count / 8) * bits
    assert unpack(data, count, bits).tolist() == numbers.tolist()


def test_chance_has_its_sequence_for_good():
    assert [hex(w) for w in words(7, 2)] == ["0xb3a7273fa505ecf", "0x96579c2e0219babb"]


def test_uniforms_are_even():
    found = uniforms(stream(1), (1000, 1000))
    assert found.min() == 0
    assert found.max() == 1 - 2.0**-16
    assert abs(found.mean() - (0.5 - 2.0**-17)) < 5 / math.sqrt(12 * 1e6)
    assert np.allclose(np.histogram(found, 20, (0, 1))[0], 50_000, atol=5 * math.sqrt(50_000))


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_positions_come_back_in_no_more_bytes_than_announced(n, data):
    k = data.draw(st.integers(1, n))
    chosen = np.sort(stream(data.draw(st.integers(0, 99))).permutation(n)[:k])
    raw = indices.write(chosen, n)
    assert len(raw) == indices.length(n, k)
    source = Reader(memoryview(raw))
    assert indices.read(source, n, k).tolist() == chosen.tolist()
    assert source.left == 0


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.1, 0.3])
def test_positions_cost_little_more_than_any_code_must(share):
    n = 100_000
    k = int(share * n)
    entropy = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    assert 8 * indices.length(n, k) < entropy + 0.6 * k + 64


@pytest.mark.parametrize("n", [100, 5000])
def test_positions_that_are_none_are_refused(n):
    raw = indices.write(np.array([3, 50, 99]), n)
    for i in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[i // 8] ^= 1 << i % 8
        try:
            found = indices.read(Reader(memoryview(bytes(flipped))), n, 3)
        except DataError as error:
            assert "does not name 3 of" in str(error)  # noqa: PT017 - either may happen
        else:
            assert len(set(found.tolist())) == 3
            assert 0 <= found.min() <= found.max() < n


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data())
def test_the_largest_are_the_first_of_a_stable_order(keys, data):
    k = data.draw(st.integers(1, len(keys)))
    order = sorted(range(len(keys)), key=lambda i: (-keys[i], i))
    assert indices.largest(np.array(keys), k).tolist() == sorted(order[:k])


def test_a_reader_does_not_read_past_the_end():
    source = Reader(memoryview(b"abc"))
    assert bytes(source.take(2)) == b"ab"
    with pytest.raises(DataError, match="ends 7 bytes too early"):
        source.number()
    assert source.left == 1


def test_positions_that_come_twice_are_refused():
    raw = indices.write(np.array([3, 3]), 5000)
    with pytest.raises(DataError, match="does not name 2 of 5000"):
        indices.read(Reader(memoryview(raw)), 5000, 2)
