"""Fisher weighting trusts the member that is sensitive to a number."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from fedloom.align.fisher import fisher, information
from fedloom.errors import MergeError
from fedloom.models import io
from fedloom.models.architecture import Architecture
from fedloom.models.model import Model

X = torch.tensor(load_digits().data[:150] / 16, dtype=torch.float32)
DENSE = [
    {"class_name": "Dense", "config": {"name": "a", "units": 8, "activation": "relu", "batch_input_shape": [None, 64]}},
    {"class_name": "BatchNormalization", "config": {"name": "n"}},
    {"class_name": "Dense", "config": {"name": "b", "units": 10}},
]


def model_of(layers=DENSE):
    return io.from_config({"class_name": "Sequential", "config": {"layers": layers}})


def members(model, count):
    rows = []
    for seed in range(count):
        io.initialize(model, seed)
        rows.append(model.vector())
    return rows


def test_identical_members_and_one_member_give_the_member_back():
    model = model_of()
    row = members(model, 1)[0]
    for rows in ([row], [row] * 3):
        torch.testing.assert_close(fisher(model, rows, X), row, rtol=1e-5, atol=1e-7)


def test_equal_information_is_the_mean():
    # the information of a softmax of x W + b does not change when all logits move by the same amount
    layer = {"class_name": "Dense", "config": {"name": "a", "units": 10, "batch_input_shape": [None, 64]}}
    model = model_of([layer])
    row = members(model, 1)[0]
    shifted = row.clone()
    model.layout.unpack(shifted)["0_dense.bias"].add_(4.0)
    torch.testing.assert_close(fisher(model, [row, shifted], X), (row + shifted) / 2, rtol=1e-4, atol=1e-5)


def test_every_number_lies_between_the_members_and_statistics_are_averaged():
    model = model_of()
    rows = members(model, 3)
    rows[1][model.layout.trainable :] += 1.0
    found, stacked = fisher(model, rows, X), torch.stack(rows)
    assert bool(((found >= stacked.amin(0) - 1e-6) & (found <= stacked.amax(0) + 1e-6)).all())
    head = model.layout.trainable
    assert torch.equal(found[head:], stacked.mean(0)[head:])
    assert float((found[:head] - stacked.mean(0)[:head]).abs().max()) > 1e-3


def test_a_unit_that_is_dead_in_one_member_is_taken_from_the_other():
    model = model_of()
    rows = members(model, 2)
    arrays = model.layout.unpack(rows[1])
    arrays["0_dense.bias"][3] = -100.0
    arrays["0_dense.weight"][3] = 7.0
    alive = model.layout.unpack(rows[0])["0_dense.weight"][3]
    found = model.layout.unpack(fisher(model, rows, X))["0_dense.weight"][3]
    seen = X.std(0) > 0.2
    torch.testing.assert_close(found[seen], alive[seen], rtol=0.0, atol=0.3)


def test_the_information_is_that_of_the_model_s_own_predictions():
    layer = {"class_name": "Dense", "config": {"name": "a", "units": 10, "batch_input_shape": [None, 64]}}
    model = model_of([layer])
    row = members(model, 1)[0] * 3
    arrays = model.layout.unpack(row)
    p = (X @ arrays["0_dense.weight"].T + arrays["0_dense.bias"]).softmax(1)
    exact = (p * (1 - p)).mean(0)  # of the biases: E_y (1[y = c] - p_c)^2
    drawn = torch.stack([information(model, row, X, seed)[-10:] for seed in range(40)])
    assert model.layout.names[-1] == "0_dense.bias"
    error = drawn.std(0) / 40**0.5
    assert bool(((drawn.mean(0) - exact).abs() < 4.5 * error).all())


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 10)

    def forward(self, x):
        return self.a(x) if bool(x.sum() > 0) else -self.a(x)


def test_a_module_that_decides_by_its_inputs_runs_one_by_one():
    torch.manual_seed(0)
    module = Deciding()
    model = Model(module, Architecture("torch"), (64,), 10)
    plain = Model(nn.Sequential(), Architecture("torch"), (64,), 10)
    plain.module.add_module("a", module.a)
    row = model.vector()
    torch.testing.assert_close(information(model, row, X), information(plain, row, X))


def test_the_same_seed_gives_the_same_and_the_model_stays():
    model = model_of()
    rows = members(model, 2)
    before = model.vector()
    assert torch.equal(fisher(model, rows, X, samples=40), fisher(model, rows, X[:40]))
    assert not torch.equal(fisher(model, rows, X, seed=1), fisher(model, rows, X))
    assert torch.equal(model.vector(), before)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_what_cannot_be_merged_is_refused():
    model = model_of()
    rows = members(model, 2)
    with pytest.raises(MergeError, match="members and inputs"):
        fisher(model, [], X)
    with pytest.raises(MergeError, match="members and inputs"):
        fisher(model, rows, X[:0])
    rows[1][0] = torch.nan
    with pytest.raises(MergeError, match="member 2"):
        fisher(model, rows, X)
