"""Synthetic inputs: shape, scale and chance; members with BatchNorm say which pictures they want."""

import numpy as np
import pytest
import torch
from torch import nn

from fedloom.align.probes.strokes import draw
from fedloom.align.probes.synthetic import SHARES, STYLES, inputs, mismatch, shares
from fedloom.errors import ModelError, UsageError
from fedloom.models import io, zoo
from fedloom.models.architecture import Architecture
from fedloom.models.bare import bare
from fedloom.models.layers.normalisation import BatchNorm
from fedloom.models.model import Model


def member(shape, layers, high=1.0, seed=0):
    """Return a model of Keras layers with fresh weights."""
    rows = [("InputLayer", {"batch_shape": [None, *shape]}), *layers, ("Dense", {"units": 3})]
    described = [
        {"module": "keras.layers", "class_name": op, "config": {"name": f"l{i}", "dtype": "float32", **options}}
        for i, (op, options) in enumerate(rows)
    ]
    made = io.from_config({"class_name": "Sequential", "config": {"name": "m", "layers": described}})
    io.initialize(made, seed)
    made.input_high = high
    return made


def torch_model(shape, high=1.0):
    return Model(nn.Flatten(), Architecture("torch"), shape, 10, high)


def norm(model):
    return next(layer for layer in model.module.modules() if isinstance(layer, BatchNorm))


DENSE_BN = [("Flatten", {}), ("Dense", {"units": 24}), ("BatchNormalization", {}), ("ReLU", {})]
CONV_BN = [("Conv2D", {"filters": 12, "kernel_size": [3, 3], "use_bias": False}), ("BatchNormalization", {})]


def trained_on(model, x):
    """Give the first BatchNorm the statistics of ``x``, as training on it would."""
    layer = norm(model)
    layer.keep = 0.0
    with torch.no_grad():
        model.module.train()
        model.module(x)
        model.module.eval()
    return model


def pictures(style, shape, n=600):
    x = draw(n, (16, 16, 1), STYLES[style], np.random.default_rng(5))
    return x.permute(0, 2, 3, 1).reshape(n, *shape)


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (16, 20, 1), (16, 16, 3), (3, 16, 16), (1, 28, 28), (784,), (64,)])
@pytest.mark.parametrize("high", [1.0, 255.0])
def test_pictures_have_the_models_shape_and_scale(shape, high):
    x = inputs([torch_model(shape, high)], 40)
    assert x.shape == (40, *shape)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert 0.9 * high < x.max() <= high
    dark = (x < 0.05 * high).float().mean()
    assert 0.3 < dark < 0.95
    ranked = x.reshape(40, -1)
    assert len(ranked.unique(dim=0)) == 40


def test_an_unknown_scale_means_0_to_1():
    assert torch.equal(inputs([torch_model((28, 28), None)], 20), inputs([torch_model((28, 28), 1.0)], 20))


def test_every_arrangement_shows_the_same_pictures():
    flat, first, last = (inputs([torch_model(shape)], 10) for shape in [(784,), (1, 28, 28), (28, 28, 1)])
    assert torch.equal(flat, first.reshape(10, -1))
    assert torch.equal(flat, last.reshape(10, -1))
    colour, turned = (inputs([torch_model(shape)], 10) for shape in [(3, 16, 16), (16, 16, 3)])
    assert torch.equal(colour.permute(0, 2, 3, 1), turned)


def test_the_seed_is_all_the_chance():
    members = [member((16, 16), DENSE_BN)]
    assert torch.equal(inputs(members, 50, seed=3), inputs(members, 50, seed=3))
    assert not torch.equal(inputs(members, 50, seed=3), inputs(members, 50, seed=4))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    inputs(members, 20)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("n", [1, 2, 7, 501])
def test_as_many_as_asked_for(n):
    assert len(inputs([torch_model((12, 12))], n)) == n


def test_without_batch_norm_the_shares_are_the_defaults():
    assert sum(SHARES) == pytest.approx(1.0)
    assert shares([member((16, 16), [("Flatten", {}), ("Dense", {"units": 8, "activation": "relu"})])]) == list(SHARES)
    assert shares([torch_model((16, 16))]) == list(SHARES)


@pytest.mark.parametrize(("shape", "layers"), [((16, 16), DENSE_BN), ((16, 16, 1), [*CONV_BN, ("Flatten", {})])])
@pytest.mark.parametrize("style", [1, 4, 5])
def test_members_with_batch_norm_get_what_they_were_trained_on(shape, layers, style):
    members = [trained_on(member(shape, layers, seed=s), pictures(style, shape)) for s in range(3)]
    chosen = shares(members)
    assert sum(chosen) == pytest.approx(1.0)
    assert min(chosen) >= 0
    assert chosen[style] > SHARES[style] + 0.1
    assert chosen[style] == max(chosen)
    x = inputs(members, 400)
    each = [mismatch(members[0], pictures(i, shape)) for i in range(len(STYLES))]
    assert mismatch(members[0], x) < 0.5 * max(each)
    default = torch.cat([pictures(i, shape)[: round(400 * share)] for i, share in enumerate(SHARES)])
    assert mismatch(members[0], x) < mismatch(members[0], default)


def test_mismatch_by_hand():
    model = member((4,), [("BatchNormalization", {"epsilon": 0.0})])
    layer = norm(model)
    layer.running_mean.copy_(torch.tensor([0.0, 0.0, 0.0, 2.0]))
    layer.running_var.copy_(torch.tensor([1.0, 1.0, 1.0, 4.0]))
    x = torch.tensor([[-1.0, -1.0, 1.0, 0.0], [1.0, 1.0, 3.0, 4.0]])
    # means are off by 0, 0, 2, 0 deviations; mean squares 1, 1, 5, 1 instead of 1: the 4 is cut to 3
    assert mismatch(model, x) == pytest.approx(np.sqrt((2**2 + 3**2) / 8))
    assert mismatch(member((4,), [("Dense", {"units": 2})]), x) is None


def test_a_member_with_broken_statistics_is_passed_over():
    good, bad = (trained_on(member((16, 16), DENSE_BN, seed=s), pictures(4, (16, 16))) for s in (0, 1))
    norm(bad).running_mean.fill_(torch.nan)
    assert shares([good, bad]) == pytest.approx(shares([good]))
    assert inputs([good, bad], 50).isfinite().all()
    assert shares([bad]) == list(SHARES)
    assert mismatch(bad, pictures(4, (16, 16))) is None


def test_matching_respects_the_scale():
    small = trained_on(member((16, 16), DENSE_BN), pictures(4, (16, 16)))
    large = trained_on(member((16, 16), DENSE_BN, high=255.0), 255 * pictures(4, (16, 16)))
    assert shares([large]) == pytest.approx(shares([small]), abs=0.02)
    assert inputs([large], 20).max() > 200


def test_features_follow_the_normalization():
    mean, variance = np.array([5.0, -3.0, 100.0, 0.0]), np.array([4.0, 1.0, 400.0, 1e-6])
    model = io.from_config(zoo.config("2nn", (4,), 3, (mean, variance)))
    x = inputs([model], 4000)
    assert x.shape == (4000, 4)
    np.testing.assert_allclose((x.mean(0).numpy() - mean) / np.sqrt(variance), 0, atol=0.08)
    np.testing.assert_allclose(x.std(0).numpy() / np.sqrt(variance), 1, atol=0.05)


def test_features_follow_a_normalization_that_is_a_buffer_and_a_leading_batch_norm():
    adapted = member((3,), [("Normalization", {"axis": -1})], high=None)
    layer = adapted.module.by_path["l1"]
    layer.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    layer.variance.copy_(torch.tensor([1.0, 4.0, 9.0]))
    entrance = member((3,), [("BatchNormalization", {})], high=None)
    norm(entrance).running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm(entrance).running_var.copy_(torch.tensor([1.0, 4.0, 9.0]))
    for model in (adapted, entrance):
        x = inputs([model], 4000)
        torch.testing.assert_close(x.mean(0), torch.tensor([1.0, 2.0, 3.0]), atol=0.2, rtol=0)
        torch.testing.assert_close(x.std(0), torch.tensor([1.0, 2.0, 3.0]), atol=0.2, rtol=0)


def test_features_without_statistics_are_standard_normal_or_within_the_full_scale():
    x = inputs([torch_model((13,), None)], 2000)
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05
    bounded = inputs([torch_model((13,), 2.0)], 2000)
    assert bounded.min() >= 0
    assert bounded.max() <= 2
    assert bounded.std() > 0.3


def test_pictures_behind_a_normalization_get_its_mean_and_deviation():
    options = {"axis": None, "mean": 33.0, "variance": 78.0**2}
    x = inputs([member((28, 28), [("Normalization", options), ("Flatten", {})], high=None)], 300)
    assert abs(x.mean() - 33) < 1
    assert abs(x.std() - 78) < 1


def test_sequences_and_tokens():
    conv = [("Conv1D", {"filters": 4, "kernel_size": 3}), ("Flatten", {})]
    x = inputs([member((30, 6), conv, high=None)], 200)
    assert x.shape == (200, 30, 6)
    assert x.min() < -2
    embedding = [("Embedding", {"input_dim": 50, "output_dim": 4}), ("GlobalAveragePooling1D", {})]
    model = member((12,), embedding, high=None)
    tokens = inputs([model], 100)
    assert tokens.unique().tolist() == list(range(50))
    assert model.module(tokens).isfinite().all()


def test_open_dimensions_get_a_size():
    convolutional = [("Conv2D", {"filters": 4, "kernel_size": [3, 3]}), ("GlobalAveragePooling2D", {})]
    assert inputs([member((None, None, 1), convolutional)], 5).shape == (5, 32, 32, 1)


def test_what_cannot_be_made_is_refused():
    with pytest.raises(UsageError, match=r"at least one model and n >= 1, found 0 and n = 5"):
        inputs([], 5)
    with pytest.raises(UsageError, match="n = 0"):
        inputs([torch_model((8, 8))], 0)
    with pytest.raises(ModelError, match=r"making synthetic inputs needs the model's code"):
        inputs([Model(bare({"w": torch.ones(1)}), Architecture("bare"))])
    with pytest.raises(ModelError, match=r"the shape of the model's inputs is not known"):
        inputs([torch_model(())])
