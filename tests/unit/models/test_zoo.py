from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fedloom.errors import ModelError, UsageError
from fedloom.models import io, zoo
from fedloom.models.keras_backend import import_keras

PUBLISHED = {"2nn": 199_210, "cnn": 1_663_370, "cnn-small": 333_526}


@pytest.mark.parametrize("name", zoo.TITLES)
@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (32, 32, 3)], ids=str)
def test_every_model_takes_every_image(name, shape):
    model = io.from_config(zoo.config(name, shape, 7))
    io.initialize(model, 0)
    assert model.logits(torch.zeros(2, *model.input_shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["2nn", "mlp"])
def test_dense_models_take_features(name):
    model = io.from_config(zoo.config(name, (13,), 3))
    assert model.input_shape == (13,)


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_sizes_are_the_published_ones(name, count):
    assert io.from_config(zoo.config(name, (28, 28), 10)).layout.trainable == count


@pytest.mark.parametrize("name", zoo.TITLES)
def test_keras_builds_the_same_model(name, tmp_path):
    keras = import_keras()
    model = io.from_config(zoo.config(name, (28, 28), 10))
    io.initialize(model, 1)
    io.save(model, tmp_path / "m.keras")
    theirs = keras.saving.load_model(tmp_path / "m.keras")
    x = np.random.default_rng(0).random((5, *model.input_shape), dtype=np.float32)
    with torch.no_grad():
        mine = model.logits(torch.from_numpy(x)).softmax(1).numpy()
        np.testing.assert_allclose(mine, theirs(x, training=False).detach().numpy(), atol=1e-5)


def test_standardisation_travels_with_the_model():
    rng = np.random.default_rng(0)
    x = rng.normal(100, 30, (50, 4)).astype(np.float32)
    config = zoo.config("2nn", (4,), 3, (x.mean(0), x.var(0)))
    assert json.loads(json.dumps(config)) == config
    model, plain = io.from_config(config), io.from_config(zoo.config("2nn", (4,), 3))
    for m in (model, plain):
        io.initialize(m, 3)
    scaled = torch.from_numpy((x - x.mean(0)) / x.std(0))
    plain.load(model.vector())
    torch.testing.assert_close(model.logits(torch.from_numpy(x)), plain.logits(scaled), rtol=1e-4, atol=1e-4)


def test_unknown_and_unfitting_models_are_named():
    with pytest.raises(UsageError, match="did you mean 'lenet'"):
        zoo.config("lenett", (28, 28), 10)
    with pytest.raises(ModelError, match=r"at least 8 x 8.*\(6, 6\)"):
        zoo.config("cnn", (6, 6), 10)
