"""Unlabelled samples reach a model in its shape and scale, or are refused in one line."""

import numpy as np
import pytest
import torch
from torch import nn

from fedloom.align.probes.unlabelled import read_unlabelled
from fedloom.data.sources import load_pair
from fedloom.errors import DataError, ModelError
from fedloom.models.architecture import Architecture
from fedloom.models.bare import bare
from fedloom.models.model import Model

IMAGES = load_pair("digits")[0].x  # 0 to 16
BYTES = (IMAGES * 15.9375).astype(np.uint8)
UNIT = (IMAGES / 16).astype(np.float32)


def model(shape, high=1.0):
    return Model(nn.Flatten(), Architecture("torch"), shape, 10, high)


@pytest.fixture
def saved(tmp_path):
    def save(x):
        np.save(tmp_path / "x.npy", x)
        return tmp_path / "x.npy"

    return save


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (1, 8, 8), (64,)])
@pytest.mark.parametrize("high", [1.0, 255.0, None])
def test_samples_get_the_models_shape_and_scale(shape, high):
    x = read_unlabelled("digits", model(shape, high))
    assert x.shape == (len(IMAGES), *shape)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.numpy().reshape(-1, 8, 8), UNIT * (high or 1.0), rtol=1e-6)


@pytest.mark.parametrize("x", [IMAGES, UNIT, BYTES, BYTES.astype(np.float64), UNIT.astype(np.float16)])
def test_every_usual_scale_is_brought_into_line(saved, x):
    found = read_unlabelled(saved(x), model((8, 8)))
    np.testing.assert_allclose(found.numpy(), UNIT, atol=0.005)


def test_the_limit_and_the_seed_are_passed_on():
    few, same, others = (read_unlabelled("digits", model((8, 8)), 50, seed) for seed in (1, 1, 2))
    assert few.shape == (50, 8, 8)
    assert torch.equal(few, same)
    assert not torch.equal(few, others)


def test_another_shape_is_refused_with_both():
    with pytest.raises(
        DataError, match=r"digits: samples of shape \(8, 8\) do not fit a model that takes \(28, 28, 1\)"
    ):
        read_unlabelled("digits", model((28, 28, 1)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (UNIT / 255, r"go from 0 to 0.003922, less than 10% of the full scale of 1; were they divided by 255 twice\?"),
        ((UNIT - 0.5) / 0.25, r"go from -2 to 2, not between 0 and 1; were they standardised\?"),
        (UNIT * 700.5, r"go from 0 to 700.5, not between 0 and 1; were they standardised\?"),
        (UNIT * 0.0, r"go from 0 to 0, less than 10% of the full scale of 1"),
    ],
)
def test_another_scale_is_refused_with_what_was_found(saved, x, message):
    path = saved(x)
    with pytest.raises(DataError, match=message) as error:
        read_unlabelled(path, model((8, 8)))
    assert str(path) in str(error.value)
    assert "high=NUMBER" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_scale_of_a_model_on_raw_bytes_is_checked_too(saved):
    with pytest.raises(DataError, match=r"go from 0 to 0.003922, less than 10% of the full scale of 1"):
        read_unlabelled(saved(UNIT / 255), model((8, 8), 255.0))
    with pytest.raises(DataError, match=r"go from -2 to 2, not between 0 and 255"):
        read_unlabelled(saved((UNIT - 0.5) / 0.25), model((8, 8), 255.0))


def test_a_full_scale_that_was_said_wrongly_is_refused(saved):
    path = saved(UNIT)
    with pytest.raises(DataError, match=r"go from 0 to 1, less than 10% of the full scale of 255"):
        read_unlabelled(f"{path}:high=255", model((8, 8)))
    path = saved(BYTES)
    with pytest.raises(DataError, match=r"go from 0 to 255, not between 0 and 1"):
        read_unlabelled(f"{path}:high=1", model((8, 8)))


def test_a_full_scale_that_was_said_cures_what_resizing_left(saved):
    x = UNIT.copy()
    x[0, 0, 0], x[1, 0, 0] = -0.02, 1.03
    np.testing.assert_array_equal(read_unlabelled(f"{saved(x)}:high=1", model((8, 8))), x)


def test_features_in_units_of_their_own_are_passed_as_they_are(saved):
    x = np.random.default_rng(0).normal(100, 50, (20, 13)).astype(np.float32)
    np.testing.assert_array_equal(read_unlabelled(saved(x), model((13,), None)), x)
    small = np.full((20, 13), 0.01, dtype=np.float32)
    np.testing.assert_array_equal(read_unlabelled(saved(small), model((13,), None)), small)


def test_nan_and_too_few_are_refused(saved):
    x = UNIT.copy()
    x[3, 2, 1] = np.nan
    with pytest.raises(DataError, match=r"1 value is NaN or infinite, the first in row 3, position \(2, 1\)"):
        read_unlabelled(saved(x), model((8, 8)))
    with pytest.raises(DataError, match="at least 2 are needed"):
        read_unlabelled(saved(UNIT[:1]), model((8, 8)))


def test_bare_arrays_take_no_samples():
    with pytest.raises(ModelError, match="using unlabelled samples needs the model's code"):
        read_unlabelled("digits", Model(bare({"w": torch.ones(1)}), Architecture("bare")))
