"""A patch times the kernel is what the convolution gives."""

import itertools

import pytest
import torch
from torch import nn

from fedloom.align.symmetry.patches import patches
from fedloom.align.symmetry.trace import Step
from fedloom.errors import ModelError
from fedloom.models.layers.convolution import Conv, SeparableConv

CONFIG = {"use_bias": True, "trainable": True, "filters": 8, "groups": 1, "depth_multiplier": 2}
SIZES = {1: (13,), 2: (11, 10)}


def keras_conv(rank, kernel, strides, dilation, padding, groups=1, kind="full"):
    geometry = {"kernel_size": kernel[:rank], "strides": (strides,) * rank, "dilation_rate": (dilation,) * rank}
    config = {**CONFIG, **geometry, "padding": padding, "groups": groups}
    return SeparableConv(config, 4) if kind == "separable" else Conv(config, 4, depthwise=kind == "depthwise")


def assert_patches(module, rank, op="Conv2D", weight="weight", groups=None):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
        x = torch.randn(3, 4, *SIZES[rank])
        y = module(x)
    m = 40
    places = [torch.randint(n, (m,)) for n in (3, *y.shape[2:])]
    at = places if rank == 2 else [places[0], torch.full((m,), 99), places[1]]
    found = patches(Step(module, (0,), 1, "c", op), x, *at)
    kernel = getattr(module, weight).detach()
    assert found.shape == (m, 4, *kernel.shape[2:])
    blocks = zip(found.chunk(groups or 1, 1), kernel.chunk(groups or 1), strict=True)
    made = torch.cat([p.flatten(1) @ k.flatten(1).T for p, k in blocks], 1)
    if weight == "depthwise":
        made = made @ module.pointwise.detach().flatten(1).T
    expected = y[places[0], :, places[1], places[2]] if rank == 2 else y[places[0], :, places[1]]
    torch.testing.assert_close(made + module.bias.detach(), expected, rtol=1e-4, atol=1e-4)


GEOMETRIES = [
    (kernel, strides, dilation)
    for kernel, strides, dilation in itertools.product([(1, 1), (3, 2), (4, 5)], [1, 2, 3], [1, 2])
    if strides == 1 or dilation == 1
]


@pytest.mark.parametrize(("rank", "padding"), [(1, "valid"), (1, "same"), (1, "causal"), (2, "valid"), (2, "same")])
def test_keras_convolutions(rank, padding):
    for geometry in [*GEOMETRIES, ((3, 3), 2, 2)]:
        assert_patches(keras_conv(rank, *geometry, padding), rank)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_groups_and_depthwise_and_separable(padding):
    for rank in (1, 2):
        assert_patches(keras_conv(rank, (3, 3), 2, 1, padding, groups=2), rank, groups=2)
        assert_patches(keras_conv(rank, (3, 4), 1, 2, padding, kind="depthwise"), rank, groups=4)
        assert_patches(keras_conv(rank, (3, 4), 2, 1, padding, kind="separable"), rank, "", "depthwise", 4)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # PyTorch's own, about a copy that it makes
@pytest.mark.parametrize("padding", [0, 1, 2, "valid", "same"])
def test_torch_convolutions(padding):
    for kernel, strides, dilation in GEOMETRIES:
        if padding == "same" and strides > 1:
            continue
        assert_patches(nn.Conv2d(4, 6, kernel, strides, padding, dilation), 2)
        assert_patches(nn.Conv1d(4, 6, kernel[0], strides, padding, dilation), 1)
    assert_patches(nn.Conv2d(4, 6, (3, 5), (1, 2), (0, 2), groups=2), 2, groups=2)


def test_memory_order_does_not_matter():
    module = nn.Conv2d(4, 6, 3, padding=1)
    x = torch.randn(2, 4, 6, 6)
    at = [torch.tensor([0, 1]), torch.tensor([0, 5]), torch.tensor([5, 2])]
    step = Step(module, (0,), 1, "c", "Conv2D")
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(patches(step, x, *at), patches(step, last, *at))


def test_what_is_outside_is_zero_even_beside_infinite_values():
    x = torch.full((1, 4, 3, 3), torch.inf)
    step = Step(nn.Conv2d(4, 1, 3, padding=1), (0,), 1, "c", "Conv2D")
    corner = patches(step, x, *torch.zeros(3, 1, dtype=torch.int64))
    assert (corner[0, :, 0] == 0).all()
    assert (corner[0, :, :, 0] == 0).all()
    assert corner[0, :, 1:, 1:].isinf().all()


@pytest.mark.parametrize("module", [nn.Linear(4, 2), nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")])
def test_others_are_refused_by_name(module):
    with pytest.raises(ModelError, match="'mine'"):
        patches(Step(module, (0,), 1, "mine", "X"), torch.zeros(1, 4, 5, 5), *torch.zeros(3, 1, dtype=torch.int64))
