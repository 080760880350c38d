"""Which inputs a model expects, measured: the digits are stored from 0 to 16."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedloom.data import load_evaluation
from fedloom.models import io, zoo
from fedloom.offline import scale

DATA = load_evaluation("digits")


def expecting(path, high):
    """A model that works on inputs from 0 to ``high``: the first layer's weights are divided by it."""
    model = replace(io.load(path), input_high=None)
    arrays = dict(model.module.named_parameters())
    with torch.no_grad():
        arrays["0_dense.weight"] /= high
    return model


def test_a_model_on_the_usual_scale_is_left_alone(trained):
    for high in (None, 1.0):
        model, said = scale.settle(replace(io.load(trained.shared[0]), input_high=high), DATA, "ana")
        assert (model.input_high, said) == (1.0, [])


def test_another_scale_is_found_and_said(trained):
    model, (finding,) = scale.settle(expecting(trained.shared[0], 255.0), DATA, "ana")
    assert model.input_high == 255.0
    assert finding.level == "warning"
    assert finding.title == "ana expects inputs from 0 to 255"
    assert "nothing on record says otherwise" in finding.text


def test_the_words_of_a_scale():
    assert [scale._words(h) for h in (1.0, 255.0, 1 / 255)] == ["from 0 to 1", "from 0 to 255", "divided by 255 twice"]


def test_raw_pixels_of_a_data_set_with_a_scale_of_its_own(trained):
    model = expecting(trained.shared[0], 16.0)
    with torch.no_grad():  # far enough from 0-1 that it shows
        dict(model.module.named_parameters())["0_dense.bias"].add_(0.3)
        dict(model.module.named_parameters())["1_dense.bias"].add_(0.1)
    hit = {high: scale._accuracy(model, DATA, high) for high in (1.0, 16.0)}
    assert hit[16.0] > hit[1.0] + scale.MARGIN
    settled, said = scale.settle(model, DATA, "ana")
    assert settled.input_high == max((1.0, 16.0, 255.0), key=lambda h: scale._accuracy(model, DATA, h))
    assert len(said) == 1


def test_a_wrong_record_is_contradicted(trained):
    model, (finding,) = scale.settle(replace(expecting(trained.shared[0], 255.0), input_high=1.0), DATA, "ana")
    assert model.input_high == 255.0
    assert "its sidecar or its first layer says" in finding.text


def test_a_model_that_knows_nothing_has_no_scale():
    for seed in range(8):
        model = io.from_config(zoo.config("2nn", (8, 8), 10))
        io.initialize(model, seed)
        assert scale.settle(model, DATA, "new")[1] == []


def test_features_have_no_scale(trained):
    model = io.load(trained.shared[0])
    assert scale.settle(model, replace(DATA, high=None), "ana") == (model, [])
