"""BatchNormalization, LayerNormalization, Normalization and Rescaling."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedloom.models.activations import Config
from fedloom.models.layers.base import Layer, Piece, Shape, Weight

_TINY = 1e-7  # Keras' backend.epsilon(), the least standard deviation that Normalization divides by


class BatchNorm(Layer):
    """Batch normalisation over axis 1 (Ioffe and Szegedy 2015), with Keras' running statistics.

    Keras' momentum m is the share of the old statistic, PyTorch's is 1 - m; Keras keeps the biased batch variance,
    PyTorch the unbiased one. A layer that is not trainable uses its statistics in training mode too.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, config: Config, size: int) -> None:
        super().__init__()
        self.epsilon, self.keep = config["epsilon"], config["momentum"]
        self.frozen = not config["trainable"]
        for role, attribute, present in (("gamma", "weight", config["scale"]), ("beta", "bias", config["center"])):
            if present:
                self.declare(role, attribute, (size,), config)
            else:
                self.register_parameter(attribute, None)
        self.declare("moving_mean", "running_mean", (size,), config, buffer=True)
        self.declare("moving_variance", "running_var", (size,), config, buffer=True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training mode by the batch's statistics, which are then folded into the running ones."""
        if self.frozen or not self.training:
            return self.inference(x)
        n = x.numel() // x.shape[1]
        if n < 2:
            return self._single(x)
        # PyTorch keeps what it is given for the backward pass: copies, since the buffers go on changing.
        mean, unbiased = self.running_mean.clone(), self.running_var.clone()
        y = functional.batch_norm(x, mean, unbiased, self.weight, self.bias, True, 1.0 - self.keep, self.epsilon)
        with torch.no_grad():  # unbiased = keep * old + (1 - keep) * var * n / (n - 1)
            self.running_mean.copy_(mean)
            self.running_var.mul_(self.keep / n).add_(unbiased, alpha=(n - 1) / n)
        return y

    def overwriting(self, x: Tensor) -> Tensor:
        """Do what ``forward`` does; at inference ``x`` is overwritten."""
        if torch.is_grad_enabled() or (self.training and not self.frozen):
            return self.forward(x)
        return self._scaled(x, x)

    def inference(self, x: Tensor) -> Tensor:
        """Normalise by the running statistics."""
        if not torch.is_grad_enabled():
            return self._scaled(x)
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.epsilon
        )

    def _scaled(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Multiply and add in one pass over ``x``: half the time of batch_norm on a CPU."""
        broadcast = [1, -1] + [1] * (x.dim() - 2)
        scale = (self.running_var + self.epsilon).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -self.running_mean * scale
        shift = shift if self.bias is None else shift + self.bias
        return torch.addcmul(shift.reshape(broadcast), x, scale.reshape(broadcast), out=out)

    def _single(self, x: Tensor) -> Tensor:
        """Treat one value per channel, which PyTorch refuses to take: its variance is 0."""
        broadcast = [1, -1] + [1] * (x.dim() - 2)
        mean = x.reshape(-1)
        with torch.no_grad():
            self.running_mean.mul_(self.keep).add_(mean, alpha=1.0 - self.keep)
            self.running_var.mul_(self.keep)
        y = (x - mean.reshape(broadcast)) / math.sqrt(self.epsilon)
        y = y if self.weight is None else y * self.weight.reshape(broadcast)
        return y if self.bias is None else y + self.bias.reshape(broadcast)


class LayerNorm(Layer):
    """Layer normalisation (Ba et al. 2016) over ``axes``, which count the batch."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__()
        rank = len(shape) + 1
        self.axes = tuple(sorted(axis % rank for axis in config["axis"]))
        self.last = tuple(range(rank - len(self.axes), rank))
        self.sizes = tuple(shape[axis - 1] for axis in self.axes)
        self.epsilon = config["epsilon"]
        for role, attribute, present in (("gamma", "weight", config["scale"]), ("beta", "bias", config["center"])):
            if present:
                self.declare(role, attribute, self.sizes, config)
            else:
                self.register_parameter(attribute, None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every sample by its own mean and biased variance."""
        if self.axes == self.last:
            return functional.layer_norm(x, self.sizes, self.weight, self.bias, self.epsilon)
        y = functional.layer_norm(x.movedim(self.axes, self.last), self.sizes, self.weight, self.bias, self.epsilon)
        return y.movedim(self.last, self.axes)


class Normalization(Layer):
    """``(x - mean) / max(sqrt(variance), 1e-7)`` with statistics that were taken from data; ``invert`` undoes it.

    Statistics that the configuration holds are constants; others are buffers, with Keras' count beside them.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__()
        rank = len(shape) + 1
        kept = sorted(axis % rank for axis in config["axis"] or ())
        self.invert = config["invert"]
        self.shape = [shape[axis - 1] if axis in kept else 1 for axis in range(1, rank)]
        self.constants: tuple[Tensor, Tensor] | None = None
        if config["mean"] is None:
            sizes = [shape[axis - 1] for axis in kept]
            self.declare("mean", "mean", sizes, config, buffer=True)
            self.declare("variance", "variance", sizes, config, buffer=True)
            self.variance.fill_(1.0)
            self.register_buffer("count", torch.zeros((), dtype=torch.int32))
            self.weights.append(Weight("count", "count", (), ()))
        else:
            self.constants = (self._constant(config["mean"], kept), self._constant(config["variance"], kept))

    def _constant(self, value: Any, kept: list[int]) -> Tensor:
        """Align an array with the kept axes from the right, and give the reduced axes size 1."""
        array = np.asarray(value, dtype=np.float32)
        if array.ndim > 0:
            wide = [1] * len(self.shape)
            for size, axis in zip(reversed(array.shape), reversed(kept), strict=False):
                wide[axis - 1] = size
            array = array.reshape(wide)
        return torch.from_numpy(np.broadcast_to(array, self.shape).copy())

    def forward(self, x: Tensor) -> Tensor:
        """Standardise, or undo it."""
        mean, variance = self.constants or (self.mean, self.variance)
        mean, variance = mean.to(x.device).reshape(self.shape), variance.to(x.device).reshape(self.shape)
        deviation = variance.sqrt().clamp_min(_TINY)
        return mean + x * deviation if self.invert else (x - mean) / deviation


def batch_norm(config: Config, shapes: list[Shape]) -> Piece:
    """Build BatchNormalization over the last axis or axis 1."""
    rank = len(shapes[0]) + 1
    axis = config["axis"] % rank
    layer = BatchNorm(config, shapes[0][axis - 1])
    if axis == 1:
        return Piece(layer, "keras", inference=layer.inference)
    if axis != rank - 1:
        raise ValueError("only the last axis or axis 1 can be lowered")
    return Piece(layer, "first", inference=layer.inference)


def layer_norm(config: Config, shapes: list[Shape]) -> Piece:
    """Build LayerNormalization."""
    return Piece(LayerNorm(config, shapes[0]), "keras")


def normalization(config: Config, shapes: list[Shape]) -> Piece:
    """Build Normalization."""
    return Piece(Normalization(config, shapes[0]), "keras")


def _rescale(x: Tensor, scale: float, offset: float) -> Tensor:
    return x * scale + offset if offset else x * scale


def _rescale_by(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    return x * scale.to(x.device) + offset.to(x.device)


def rescaling(config: Config, _shapes: list[Shape]) -> Piece:
    """Build Rescaling, by a number or per channel."""
    scale, offset = config["scale"], config["offset"] or 0.0
    if isinstance(scale, int | float) and isinstance(offset, int | float):
        return Piece(partial(_rescale, scale=float(scale), offset=float(offset)))
    return Piece(partial(_rescale_by, scale=torch.tensor(scale), offset=torch.tensor(offset)), "keras")
