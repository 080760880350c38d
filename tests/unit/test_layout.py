from __future__ import annotations

import pytest
import torch
from torch import nn

from fedloom.errors import ArchitectureError
from fedloom.layout import Layout


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_trainable_comes_first_and_integers_stay_out():
    layout = Layout.of(net())
    assert layout.n_trainable == 6
    assert layout.names[6:] == ("1.running_mean", "1.running_var")
    assert layout.trainable == layout.size - 8


def test_read_and_write_are_inverse():
    a, b = net(), net()
    layout = Layout.of(a)
    vector = torch.randn(layout.size)
    layout.write(a, vector)
    assert torch.equal(layout.read(a), vector)
    layout.write(b, layout.read(a))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_unpack_gives_views():
    layout = Layout(("w", "b"), ((2, 3), (3,)), 2)
    vector = torch.zeros(9)
    layout.unpack(vector)["b"].fill_(1)
    assert vector.tolist() == [0] * 6 + [1] * 3


def test_frozen_parameters_are_state():
    module = net()
    module[0].weight.requires_grad_(False)
    layout = Layout.of(module)
    assert layout.names[layout.n_trainable] == "0.weight"


def test_tied_parameters_count_once():
    module = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    module["b"].weight = module["a"].weight
    assert Layout.of(module).size == 9 + 3 + 3


def test_digest_tells_shapes_names_and_kinds_apart():
    base = Layout(("w", "b"), ((2, 3), (3,)), 2)
    others = [
        Layout(("w", "c"), ((2, 3), (3,)), 2),
        Layout(("w", "b"), ((3, 2), (3,)), 2),
        Layout(("w", "b"), ((2, 3), (3,)), 1),
    ]
    assert all(base.digest != o.digest and base.difference(o) for o in others)
    assert base.difference(Layout(("w", "b"), ((2, 3), (3,)), 2)) is None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"w": torch.zeros(2, 3)}, "'b'.*missing"),
        ({"w": torch.zeros(3, 2), "b": torch.zeros(3)}, r"'w'.*\(3, 2\).*\(2, 3\)"),
    ],
)
def test_pack_names_the_array(arrays, words):
    with pytest.raises(ArchitectureError, match=words):
        Layout(("w", "b"), ((2, 3), (3,)), 2).pack(arrays)


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ArchitectureError, match="9 numbers"):
        Layout(("w", "b"), ((2, 3), (3,)), 2).unpack(torch.zeros(8))


def test_a_longer_model_has_no_counterpart():
    short, long = Layout(("w",), ((2,),), 1), Layout(("w", "b"), ((2,), (1,)), 2)
    assert "no counterpart" in (short.difference(long) or "")
    assert "no counterpart" in (long.difference(short) or "")
