"""Convolutions.

One-dimensional ones run as two-dimensional ones of height 1, which leaves channels-last memory as it is.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from fedloom.models.activations import Config
from fedloom.models.layers.base import Layer, Piece, Shape, channels, image_order
from fedloom.models.layers.windows import Window


class Conv(Layer):
    """A convolution or depthwise convolution; weight (out, in / groups, *kernel), bias (out,)."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, config: Config, inputs: int, depthwise: bool = False) -> None:
        super().__init__()
        kernel = config["kernel_size"]
        spatial = tuple(range(len(kernel)))
        n = len(kernel)
        self.flat = n == 1
        self.window = Window(kernel, config["strides"], config["dilation_rate"], config["padding"])
        if depthwise:
            multiplier = config["depth_multiplier"]
            self.groups, outputs = inputs, inputs * multiplier
            keras_shape, torch_shape = (*kernel, inputs, multiplier), (outputs, 1, *kernel)
            axes = (n, n + 1, *spatial)
            self.declare("depthwise_kernel", "weight", keras_shape, config, axes=axes, torch_shape=torch_shape)
        else:
            self.groups, outputs = config["groups"], config["filters"]
            keras_shape = (*kernel, inputs // self.groups, outputs)
            self.declare("kernel", "weight", keras_shape, config, axes=(n + 1, n, *spatial))
        if config["use_bias"]:
            self.declare("bias", "bias", (outputs,), config)
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output before its activation; channels stand on axis 1."""
        weight: Tensor = self.weight
        if self.flat:
            x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        y = self.window.convolve(x, weight, self.bias, self.groups)
        return y.squeeze(2) if self.flat else y


class SeparableConv(Layer):
    """A depthwise convolution, then one of size 1: depthwise (in * m, 1, *kernel), pointwise (out, in * m, *ones)."""

    depthwise: nn.Parameter
    pointwise: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, config: Config, inputs: int) -> None:
        super().__init__()
        kernel, multiplier, filters = config["kernel_size"], config["depth_multiplier"], config["filters"]
        n = len(kernel)
        self.flat, self.groups = n == 1, inputs
        self.window = Window(kernel, config["strides"], config["dilation_rate"], config["padding"])
        middle, spatial = inputs * multiplier, tuple(range(n))
        keras_shape, torch_shape = (*kernel, inputs, multiplier), (middle, 1, *kernel)
        axes = (n, n + 1, *spatial)
        self.declare("depthwise_kernel", "depthwise", keras_shape, config, axes=axes, torch_shape=torch_shape)
        self.declare("pointwise_kernel", "pointwise", (*(1,) * n, middle, filters), config, axes=(n + 1, n, *spatial))
        if config["use_bias"]:
            self.declare("bias", "bias", (filters,), config)
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output before its activation; channels stand on axis 1."""
        depthwise: Tensor = self.depthwise
        pointwise: Tensor = self.pointwise
        if self.flat:
            x, depthwise, pointwise = x.unsqueeze(2), depthwise.unsqueeze(2), pointwise.unsqueeze(2)
        x = self.window.convolve(x, depthwise, None, self.groups)
        y = functional.conv2d(x, pointwise, self.bias)
        return y.squeeze(2) if self.flat else y


def _check(shape: Shape, config: Config) -> int:
    inputs = channels(config, shape)
    groups = config.get("groups", 1)
    if math.gcd(inputs, groups) != groups:
        raise ValueError(f"{inputs} input channels cannot be divided into {groups} groups")
    if len(shape) != len(config["kernel_size"]) + 1:
        raise ValueError(f"{len(config['kernel_size']) + 1} axes are expected")
    return inputs


def conv(config: Config, shapes: list[Shape]) -> Piece:
    """Build Conv1D or Conv2D."""
    return Piece(Conv(config, _check(shapes[0], config)), image_order(config))


def depthwise(config: Config, shapes: list[Shape]) -> Piece:
    """Build DepthwiseConv1D or DepthwiseConv2D."""
    return Piece(Conv(config, _check(shapes[0], config), depthwise=True), image_order(config))


def separable(config: Config, shapes: list[Shape]) -> Piece:
    """Build SeparableConv1D or SeparableConv2D."""
    return Piece(SeparableConv(config, _check(shapes[0], config)), image_order(config))
