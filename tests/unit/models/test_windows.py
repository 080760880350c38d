"""A window's convolution: the way without gradients gives what explicit padding gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from fedloom.models.layers.windows import Window

CASES = list(itertools.product((1, 2, 5), (1, 2, 3), (1, 2), ("same", "valid")))


@pytest.mark.parametrize(("kernel", "stride", "dilation", "padding"), CASES)
def test_convolution_without_gradients_equals_explicit_padding(kernel, stride, dilation, padding):
    generator = torch.Generator().manual_seed(0)
    window = Window((kernel, 3), (stride, 1), (dilation, 1), padding)
    weight, bias = torch.randn(4, 3, kernel, 3, generator=generator), torch.randn(4, generator=generator)
    for size in (11, 12):
        x = torch.randn(2, 3, size, 9, generator=generator)
        (top, bottom), (left, right) = window.margins(x)
        padded = functional.pad(x, (left, right, top, bottom))
        expected = functional.conv2d(padded, weight, bias, window.strides, 0, window.dilation)
        with torch.no_grad():
            found = window.convolve(x, weight, bias, 1)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dilation", [1, 3])
def test_causal_convolution_without_gradients_sees_nothing_of_the_future(dilation):
    window = Window((3,), (1,), (dilation,), "causal")
    weight = torch.randn(2, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(1, 1, 1, 10)
    x[..., 2] = 1.0
    with torch.no_grad():
        y = window.convolve(x, weight, None, 1)
    assert y.shape == (1, 2, 1, 10)
    assert torch.count_nonzero(y[..., :2]) == 0
    torch.testing.assert_close(y[0, :, 0, 2 : 3 + 2 * dilation : dilation], weight[:, 0, 0].flip(1))
