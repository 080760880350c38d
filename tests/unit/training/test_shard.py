from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris

from fedloom.data.dataset import Dataset
from fedloom.errors import DataError
from fedloom.models.architecture import Architecture
from fedloom.models.bare import bare
from fedloom.models.model import Model
from fedloom.training.shard import Shard

DIGITS = load_digits()
IMAGES = Dataset.of(DIGITS.images.astype(np.uint8), DIGITS.target, name="digits")


def model(shape: tuple[int, ...], high: float | None = 1.0, classes: int = 10) -> Model:
    return Model(bare({"w": torch.ones(1)}), Architecture("bare"), shape, classes, high)


def inputs(data: Dataset, shape: tuple[int, ...], high: float | None = 1.0) -> np.ndarray:
    return Shard.of(data, model(shape, high)).inputs(slice(None)).numpy()


def test_inputs_are_rescaled_to_what_the_model_expects():
    np.testing.assert_array_equal(inputs(IMAGES, (8, 8)), (DIGITS.images / 16).astype(np.float32))
    np.testing.assert_allclose(inputs(IMAGES, (8, 8), 255.0), DIGITS.images * 255 / 16, rtol=1e-6)
    features = Dataset.of(load_iris().data, load_iris().target)
    np.testing.assert_array_equal(inputs(features, (4,)), load_iris().data.astype(np.float32))


def test_dividing_by_255_gives_the_bits_that_people_get_by_hand():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.testing.assert_array_equal(inputs(Dataset.of(x, [0]), (16, 16)), x.astype("float32") / 255.0)


def test_eight_bit_images_stay_eight_bit():
    assert Shard.of(IMAGES, model((8, 8))).x.dtype == torch.uint8


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (1, 8, 8), (64,)])
def test_shapes_that_hold_the_same_numbers_are_reshaped(shape):
    x = inputs(IMAGES, shape, 16.0)
    assert x.shape == (1797, *shape)
    np.testing.assert_array_equal(x.reshape(1797, -1), DIGITS.data)


@pytest.mark.parametrize("shape", [(4, 16), (28, 28), (63,), (2, 4, 8)])
def test_other_shapes_are_refused_with_both(shape):
    with pytest.raises(DataError) as error:
        Shard.of(IMAGES, model(shape))
    assert "(8, 8)" in str(error.value)
    assert str(shape) in str(error.value)


def test_channels_are_moved_not_mixed():
    x = np.arange(2 * 8 * 9 * 3, dtype=np.uint8).reshape(2, 8, 9, 3)
    np.testing.assert_array_equal(inputs(Dataset.of(x, [0, 1], high=1.0), (3, 8, 9)), x.transpose(0, 3, 1, 2))


def test_labels_outside_the_models_classes_are_refused():
    with pytest.raises(DataError, match="digits: label 7 in row 7 lies outside the model's 7 classes"):
        Shard.of(IMAGES, model((8, 8), classes=7))


def test_a_module_that_writes_into_its_input_does_not_change_the_data():
    data = Dataset.of(load_iris().data, load_iris().target)
    shard = Shard.of(data, model((4,), None))
    shard.inputs(slice(None)).zero_()
    np.testing.assert_array_equal(shard.x, load_iris().data.astype(np.float32))


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", "longdouble", "float16", "uint16"])
def test_every_kind_of_number_becomes_an_input(dtype):
    data = Dataset.of(DIGITS.data.astype(dtype), DIGITS.target, high=16.0)
    np.testing.assert_array_equal(Shard.of(data, model((64,), 16.0)).inputs(slice(None)), DIGITS.data)
