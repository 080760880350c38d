import math
from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from fedloom.align import chance, diagnose, same_index_share, shared_start
from fedloom.errors import MergeError
from fedloom.layout import Layout


def network(seed, kind="mlp"):
    torch.manual_seed(seed)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)
    )


def train(model, part, epochs):
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x[part::3] / 16, dtype=torch.float32), torch.tensor(y[part::3])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def trained(seeds, kind, epochs=5):
    models = [train(network(seed, kind), part, epochs) for part, seed in enumerate(seeds)]
    layout = Layout.of(models[0])
    return [layout.read(m) for m in models], layout


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_models_trained_from_one_start_are_recognised(kind):
    vectors, layout = trained([0, 0, 0], kind)
    verdict = shared_start(vectors, layout, ["a", "b", "c"])
    assert verdict.shared is True
    assert verdict.share > 0.9
    assert verdict.groups == ((0, 1, 2),)
    assert len(verdict.pairs) == 3
    assert verdict.evidence.startswith("the models share a start")


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_models_trained_from_different_starts_are_recognised(kind):
    vectors, layout = trained([0, 1, 2], kind)
    verdict = shared_start(vectors, layout, ["a", "b", "c"])
    assert verdict.shared is False
    assert verdict.share < 0.3
    assert verdict.groups == ((0,), (1,), (2,))
    assert "3 different starts (a | b | c)" in verdict.evidence
    assert verdict.array == layout.names[0]


def test_the_one_that_stands_apart_is_named():
    vectors, layout = trained([0, 5, 0], "mlp", epochs=2)
    verdict = shared_start(vectors, layout, ["ana", "luis", "mei"])
    assert verdict.shared is False
    assert verdict.groups == ((0, 2), (1,))
    assert "(ana, mei | luis)" in verdict.evidence


def test_share_by_hand():
    a = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    swapped = a[[1, 0, 2]]
    assert same_index_share(a, a) == 1.0
    assert same_index_share(a, 7 * a + 0.01) == 1.0
    assert same_index_share(a, swapped) == pytest.approx(1 / 3)


def test_share_of_random_layers_is_chance():
    shares = []
    for seed in range(200):
        a, b = torch.randn(2, 16, 30, generator=torch.Generator().manual_seed(seed))
        shares.append(same_index_share(a, b))
    # The mean of 200 shares with a standard deviation of about 1/16 each.
    assert abs(np.mean(shares) - chance(16)) < 4 * (1 / 16) / math.sqrt(200)
    assert sum(s > diagnose.THRESHOLD for s in shares) == 0


def test_sign_and_scale_of_a_unit():
    a = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    assert same_index_share(a, a * torch.linspace(0.1, 9, 12)[:, None]) == 1.0
    assert same_index_share(a, -a) < 0.5


def test_dead_units_are_left_out():
    a = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[3] = 0
    a[7] = 0
    assert same_index_share(a, b) == 1.0
    assert math.isnan(same_index_share(torch.zeros(12, 30), b))


@pytest.mark.parametrize("layer", [torch.ones(12, 30), torch.zeros(12, 30), torch.linspace(1, 9, 12)[:, None]])
def test_constant_and_single_input_layers_say_nothing(layer):
    assert math.isnan(same_index_share(layer, layer.clone()))


def test_one_unit_says_nothing():
    assert math.isnan(same_index_share(torch.ones(1, 5), torch.ones(1, 5)))
    assert math.isnan(chance(0))


def layout_of(*shapes, trainable=None):
    names = tuple(f"{i}_dense.weight" for i in range(len(shapes)))
    return Layout(names, shapes, len(shapes) if trainable is None else trainable)


def vectors_of(layout, n, seed=0):
    return list(torch.randn(n, layout.size, generator=torch.Generator().manual_seed(seed)))


def test_first_layer_that_tells_is_taken():
    layout = layout_of((16,), (4, 9), (16, 1), (16, 9), (32, 16))
    verdict = shared_start(vectors_of(layout, 2), layout)
    assert verdict.array == "3_dense.weight"
    assert verdict.chance == chance(16)
    assert verdict.shared is False


def test_no_layer_tells():
    for layout in (layout_of((4, 9), (16,)), layout_of((16, 9), trainable=0)):
        verdict = shared_start(vectors_of(layout, 2), layout)
        assert verdict.shared is None
        assert math.isnan(verdict.share)
        assert "cannot be seen" in verdict.evidence


def test_one_model_shares_its_start():
    layout = layout_of((16, 9))
    verdict = shared_start(vectors_of(layout, 1), layout)
    assert verdict.shared is True
    assert verdict.pairs == ()


def test_identical_models_are_reported():
    layout = layout_of((16, 9))
    a, b = vectors_of(layout, 2)
    verdict = shared_start([a, b, a.clone()], layout, ["a", "b", "c"])
    assert verdict.duplicates == ((0, 2),)
    assert "identical models: a = c" in verdict.evidence
    assert verdict.shared is False
    assert verdict.groups == ((0, 2), (1,))


def test_identical_models_share_their_start_even_where_no_layer_tells():
    layout = layout_of((2, 2))
    verdict = shared_start([torch.ones(4)] * 3, layout)
    assert verdict.shared is True
    assert verdict.duplicates == tuple(combinations(range(3), 2))


def test_groups_are_connected_through_others():
    # Drift: a and c are too far apart, b is near to both.
    pairs = [diagnose.Pair(0, 1, 0.9), diagnose.Pair(1, 2, 0.8), diagnose.Pair(4, 3, 0.7)]
    assert diagnose._groups(6, pairs) == ((0, 1, 2), (3, 4), (5,))


def test_bad_vectors_are_refused():
    layout = layout_of((16, 9))
    with pytest.raises(MergeError, match=r"b holds NaN .*'0_dense\.weight'"):
        shared_start([torch.ones(144), torch.full((144,), math.nan)], layout, ["a", "b"])
    with pytest.raises(MergeError, match="where the shape"):
        shared_start([torch.ones(3)], layout)
    with pytest.raises(MergeError, match="no model was given"):
        shared_start([], layout)


def test_all_hidden_layers_are_looked_at_and_the_last_is_not():
    layout = layout_of((16, 9), (32, 16), (10, 32))
    a, b = vectors_of(layout, 2)
    b[: 16 * 9] = a[: 16 * 9]
    shared = [p.share for p in shared_start([a, b], layout).pairs]
    assert shared[0] == pytest.approx(16 / 48, abs=5 / 48)  # the first layer alone is the same
    b[-320:] = a[-320:]
    assert [p.share for p in shared_start([a, b], layout).pairs] == shared


def test_a_new_head_on_shared_features_is_no_shared_start():
    layout = layout_of((200, 9), (16, 200), (10, 16))
    a, b = vectors_of(layout, 2)
    b[:1800] = a[:1800]
    verdict = shared_start([a, b], layout, ["a", "b"])
    assert verdict.share > 0.85
    assert verdict.shared is False
    assert verdict.array == "1_dense.weight"
    assert "of those of '1_dense.weight'" in verdict.evidence


def test_hidden_arrays():
    assert diagnose.hidden_arrays(layout_of((16, 9), (16,), (4, 16), (10, 4))) == ("0_dense.weight",)
    assert diagnose.hidden_arrays(layout_of((10, 9), (10,))) == ("0_dense.weight",)  # no hidden layer: the last
    deep = diagnose.hidden_arrays(layout_of(*[(16, 16)] * 12))
    assert deep == ("0_dense.weight", "3_dense.weight", "7_dense.weight", "10_dense.weight")
    assert diagnose.hidden_arrays(layout_of((16, 9), (16, 16), trainable=0)) == ()


def test_the_arrays_to_compare_can_be_named():
    layout = layout_of((16, 9), (16, 16), (10, 16))
    a, b = vectors_of(layout, 2)
    b[144:400] = a[144:400]
    assert shared_start([a, b], layout, arrays=["1_dense.weight"]).shared is True
    assert shared_start([a, b], layout, arrays=["0_dense.weight"]).shared is False


@pytest.mark.parametrize("seed", range(30))
def test_random_models_of_the_smallest_layers_do_not_share_a_start(seed):
    layout = layout_of((8, 9), (8, 8), (8, 8), (10, 8))
    verdict = shared_start(vectors_of(layout, 2, seed), layout)
    assert verdict.shared is False
    assert verdict.chance == pytest.approx(3 / 24)
