"""RegMean fits every layer to what the members do to their own inputs."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from fedloom.align import stages
from fedloom.align.regmean import regmean
from fedloom.align.symmetry.graph import derive
from fedloom.errors import MergeError, UsageError
from fedloom.models import io
from fedloom.models.architecture import Architecture
from fedloom.models.model import Model

IMAGES = torch.tensor(load_digits().data.reshape(-1, 8, 8, 1)[:200] / 16, dtype=torch.float32)
LABELS = torch.tensor(load_digits().target[:200])


def build(*layers, shape=(8, 8, 1)):
    specs = [("InputLayer", {"batch_input_shape": [None, *shape]}), *layers, ("Dense", {"units": 10})]
    named = [{"class_name": kind, "config": {"name": f"l{i}", **config}} for i, (kind, config) in enumerate(specs)]
    return io.from_config({"class_name": "Sequential", "config": {"layers": named}})


def mlp():
    return build(("Flatten", {}), ("Dense", {"units": 12, "activation": "relu"}))


def cnn():
    conv = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    return build(
        ("Conv2D", {"filters": 4, **conv}),
        ("Conv2D", {"filters": 4, **conv, "groups": 2}),
        ("DepthwiseConv2D", {"kernel_size": 3}),
        ("BatchNormalization", {}),
        ("SeparableConv2D", {"filters": 5, "kernel_size": 2}),
        ("Flatten", {}),
    )


def members(model, count):
    rows = []
    for seed in range(count):
        io.initialize(model, seed)
        rows.append(
            model.vector() + 0.05 * torch.randn(model.layout.size, generator=torch.Generator().manual_seed(seed)).abs()
        )
    return rows


def merge(model, rows, **options):
    symmetry = derive(model)
    return regmean(model, symmetry, rows, stages.sample(symmetry.trace, IMAGES, 0), **options)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_identical_members_give_the_member_back(make, alpha):
    model = make()
    row = members(model, 1)[0]
    for rows in ([row], [row] * 3):
        torch.testing.assert_close(merge(model, rows, alpha=alpha), row, rtol=1e-5, atol=1e-6)


def test_alpha_0_is_a_mean_per_input_weighted_by_its_mean_square():
    model = mlp()
    rows = members(model, 3)
    found = model.layout.unpack(merge(model, rows, alpha=0.0))
    name = "1_dense.weight"
    squares, kernels = [], []
    for row in rows:
        arrays = model.layout.unpack(row)
        hidden = (IMAGES.flatten(1) @ arrays["0_dense.weight"].T + arrays["0_dense.bias"]).relu()
        squares.append(hidden.square().sum(0))
        kernels.append(arrays[name])
    squares = torch.stack(squares)
    expected = (torch.stack(kernels) * squares[:, None]).sum(0) / squares.sum(0)
    torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)
    # all members see the same images: their first layer is averaged, whatever the weights
    first = torch.stack([model.layout.unpack(row)["0_dense.weight"] for row in rows]).mean(0)
    torch.testing.assert_close(found["0_dense.weight"], first)


def objective(model, rows, weight, name="1_dense.weight"):
    total = 0.0
    for row in rows:
        arrays = model.layout.unpack(row)
        hidden = (IMAGES.flatten(1) @ arrays["0_dense.weight"].T + arrays["0_dense.bias"]).relu()
        total += float((hidden @ (weight - arrays[name]).T).square().sum())
    return total


def test_alpha_1_is_the_least_squares_solution():
    model = mlp()
    rows = members(model, 3)
    name = "1_dense.weight"
    best = model.layout.unpack(merge(model, rows, alpha=1.0))[name]
    least = objective(model, rows, best)
    assert least < 0.9 * objective(model, rows, torch.stack([model.layout.unpack(r)[name] for r in rows]).mean(0))
    chance = torch.Generator().manual_seed(0)
    for _ in range(20):
        nearby = best + 0.01 * torch.randn(best.shape, generator=chance)
        assert objective(model, rows, nearby) > least


def test_biases_and_statistics_are_averaged_and_every_kernel_of_a_stage_is_fitted():
    model = cnn()
    rows = members(model, 2)
    found, mean = merge(model, rows), torch.stack(rows).mean(0)
    same = {n for n, where, _ in model.layout.slices() if torch.equal(found[where], mean[where])}
    fitted = {"1_conv2d.weight", "2_depthwiseconv2d.weight", "5_dense.weight"}
    assert set(model.layout.names) - same - {"0_conv2d.weight"} == fitted


def test_the_raw_size_of_a_kernel_in_front_of_a_batch_norm_does_not_matter():
    conv = {"filters": 4, "kernel_size": 3, "use_bias": False}
    model = build(("Conv2D", conv), ("BatchNormalization", {"epsilon": 1e-8}), ("ReLU", {}), ("Flatten", {}))
    rows = members(model, 3)
    symmetry = derive(model)
    sampled = stages.sample(symmetry.trace, IMAGES, 0)
    grown = [row.clone() for row in rows]
    for row, factor in zip(grown, (0.5, 2.0, 8.0), strict=True):  # the same function: the BatchNorm takes it out
        arrays = model.layout.unpack(row)
        arrays["0_conv2d.weight"].mul_(factor)
        arrays["1_batchnormalization.running_mean"].mul_(factor)
        arrays["1_batchnormalization.running_var"].mul_(factor**2)
    made = [model.layout.unpack(regmean(model, symmetry, r, sampled)) for r in (rows, grown)]
    kernels = [arrays["0_conv2d.weight"].flatten(1) for arrays in made]
    torch.testing.assert_close(*[k / k.norm(dim=1, keepdim=True) for k in kernels], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made[0]["2_dense.weight"], made[1]["2_dense.weight"], rtol=1e-4, atol=1e-5)


def test_inputs_that_are_always_0_keep_the_mean():
    model = mlp()
    rows = members(model, 2)
    symmetry = derive(model)
    blank = IMAGES.clone()
    blank[:, :, 0] = 0.0
    found = regmean(model, symmetry, rows, stages.sample(symmetry.trace, blank, 0), alpha=1.0)
    name = "0_dense.weight"
    mean = torch.stack([model.layout.unpack(row)[name] for row in rows]).mean(0)
    torch.testing.assert_close(
        model.layout.unpack(found)[name].reshape(12, 8, 8)[:, :, 0], mean.reshape(12, 8, 8)[:, :, 0]
    )


def test_the_number_of_inputs_run_at_once_does_not_matter(monkeypatch):
    model = cnn()
    rows = members(model, 2)
    whole = merge(model, rows)
    monkeypatch.setattr(stages, "BATCH", 37)
    torch.testing.assert_close(merge(model, rows), whole, rtol=1e-3, atol=1e-4)


def test_the_model_gets_its_own_arrays_back():
    model = mlp()
    rows = members(model, 2)
    before = model.vector()
    merge(model, rows)
    assert torch.equal(model.vector(), before)


def test_what_cannot_be_merged_is_refused():
    model = mlp()
    rows = members(model, 2)
    with pytest.raises(MergeError, match="at least one member"):
        merge(model, [])
    with pytest.raises(UsageError, match="between 0 and 1"):
        merge(model, rows, alpha=1.5)
    rows[1][3] = np.nan
    with pytest.raises(MergeError, match="member 2"):
        merge(model, rows)


def test_torch_modules_are_merged_too():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)]
    model = Model(nn.Sequential(*layers), Architecture("torch"), (1, 8, 8), 10)
    row = model.vector()
    symmetry = derive(model)
    sampled = stages.sample(symmetry.trace, IMAGES.permute(0, 3, 1, 2), 0)
    torch.testing.assert_close(regmean(model, symmetry, [row, row], sampled), row, rtol=1e-5, atol=1e-6)
    other = row.clone()
    model.layout.unpack(other)["4.weight"].neg_()
    assert not torch.allclose(regmean(model, symmetry, [row, other], sampled), row, atol=1e-3)
