"""Initialisers have Keras' spread and range, and draw from a named stream."""

import math

import numpy as np
import pytest

from fedloom import rng
from fedloom.errors import ModelError
from fedloom.models.initialisers import draw, fans

SHAPE = (3, 3, 40, 60)
FAN_IN, FAN_OUT = 360, 540


def drawn(name, shape=SHAPE, **arguments):
    return draw({"name": name, **arguments}, shape, rng.stream(0, name), "layer")


def test_fans_of_kernels():
    assert fans(SHAPE) == (FAN_IN, FAN_OUT)
    assert fans((7, 5)) == (7, 5)
    assert fans((4,)) == (4, 4)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("glorot_uniform", 2 / (FAN_IN + FAN_OUT)),
        ("glorot_normal", 2 / (FAN_IN + FAN_OUT)),
        ("he_uniform", 2 / FAN_IN),
        ("he_normal", 2 / FAN_IN),
        ("lecun_uniform", 1 / FAN_IN),
        ("lecun_normal", 1 / FAN_IN),
    ],
)
def test_variance_scaling_family(name, variance):
    array = drawn(name)
    assert array.shape == SHAPE
    assert array.dtype == np.float32
    assert abs(array.mean()) < 4 * math.sqrt(variance / array.size)
    assert array.var() == pytest.approx(variance, rel=0.05)
    limit = math.sqrt(3 * variance) if "uniform" in name else 2 * math.sqrt(variance) / 0.8796
    assert 0.99 * limit < np.abs(array).max() <= limit


@pytest.mark.parametrize("distribution", ["uniform", "truncated_normal", "untruncated_normal"])
def test_variance_scaling(distribution):
    array = drawn("variance_scaling", scale=3.0, mode="fan_out", distribution=distribution)
    assert array.var() == pytest.approx(3 / FAN_OUT, rel=0.05)


def test_plain_distributions():
    assert drawn("random_uniform", minval=1.0, maxval=2.0).mean() == pytest.approx(1.5, abs=0.01)
    assert np.abs(drawn("uniform")).max() <= 0.05
    assert drawn("random_normal", mean=1.0, stddev=0.1).std() == pytest.approx(0.1, rel=0.05)
    cut = drawn("truncated_normal", stddev=0.5)
    assert 0.95 < np.abs(cut).max() <= 1.0
    assert not drawn("zeros").any()
    assert (drawn("one") == 1).all()
    assert (drawn("constant", value=0.3) == np.float32(0.3)).all()


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (3, 3, 4, 20)])
def test_orthogonal(shape):
    matrix = drawn("orthogonal", shape, gain=2.0).reshape(-1, shape[-1])
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)


def test_identity():
    np.testing.assert_array_equal(drawn("identity", (3, 5), gain=2.0), 2 * np.eye(3, 5))
    with pytest.raises(ModelError, match=r"'layer'.*'identity'"):
        drawn("identity")


def test_unknown_is_named():
    with pytest.raises(ModelError, match="my_own"):
        drawn("my_own")
