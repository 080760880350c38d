"""The journey with a model that runs through Keras itself: an LSTM, from a file that Keras wrote to one that it loads."""

from __future__ import annotations

import numpy as np
import pytest
from command_line import run

from fedloom.models import io
from fedloom.models.keras_backend import import_keras
from fedloom.models.keras_slow import KerasModule

# Keras' own conversion of a torch tensor, under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_from_keras_to_keras(suffix, empty, capsys):
    keras = import_keras()
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Bidirectional(layers.GRU(8, return_sequences=True)),
            layers.LSTM(16),
            layers.Dropout(0.1),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.save("mine.keras")
    assert run("split", "digits", "--names", "ana,luis", "--model", "mine.keras", "--format", suffix) == 0
    start = io.load(f"parts/ana/start.{suffix}")
    assert isinstance(start.module, KerasModule)
    for ours, theirs in zip(start.module.weights(), model.weights, strict=True):
        assert np.array_equal(ours, theirs.value.detach().numpy())
    for name in ("ana", "luis"):
        assert run("train", f"parts/{name}", "--epochs", 5, "--lr", "0.01") == 0
    members = [f"parts/{n}/{n}.{suffix}" for n in ("ana", "luis")]
    assert run("merge", *members, "--out", f"global.{suffix}") == 0
    capsys.readouterr()
    assert run("compare", *members, "--data", "digits", "--methods", "fedavg,median,ensemble") == 0
    assert "The members share a start" in capsys.readouterr().out
    assert run("next-round", "parts", "--models", *members) == 0

    loaded = keras.saving.load_model(f"global.{suffix}", compile=False)
    x, y = (np.load(f"parts/ana/{name}_test_fed.npy") for name in "xy")
    probabilities = loaded(x.astype(np.float32) / 16, training=False).detach().numpy()
    assert (probabilities.argmax(1) == y).mean() > 0.5
    mean = np.mean([io.load(m).vector().numpy() for m in members], 0)
    assert np.allclose(io.load(f"global.{suffix}").vector().numpy(), mean, atol=1e-6)
