"""Layers that act in training only; their chance comes from PyTorch's own generator, which the training step seeds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedloom.models.activations import Config, linear
from fedloom.models.layers.base import Piece, Shape, image_order


class BroadcastDropout(nn.Module):
    """Dropout with one decision for every element of ``noise_shape``, None where it is that of the input."""

    def __init__(self, rate: float, noise_shape: tuple[int | None, ...]) -> None:
        super().__init__()
        self.rate, self.noise_shape = rate, noise_shape

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with parts set to zero in training mode."""
        if not self.training or self.rate == 0.0:
            return x
        shape = [own if n is None else n for n, own in zip(self.noise_shape, x.shape, strict=True)]
        return x * functional.dropout(x.new_ones(shape), self.rate)


class Noise(nn.Module):
    """Noise of one kind and strength; the input itself in inference mode.

    Args:
        kind: ``dropout``, ``channels`` (whole channels are dropped), ``alpha`` (Klambauer et al. 2017),
            ``add`` (Gaussian of standard deviation ``strength``) or ``multiply`` (Gaussian of mean 1).
        strength: The rate or the standard deviation.
    """

    def __init__(self, kind: str, strength: float) -> None:
        super().__init__()
        self.kind, self.strength = kind, strength

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with noise in training mode."""
        if not self.training or self.strength == 0.0:
            return x
        if self.kind == "dropout":
            return functional.dropout(x, self.strength)
        if self.kind == "channels":
            return torch.feature_dropout(x, self.strength, train=True)
        if self.kind == "alpha":
            return functional.alpha_dropout(x, self.strength, training=True)
        noise = torch.randn_like(x) * self.strength
        return x + noise if self.kind == "add" else x * (1.0 + noise)


def _rate(value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"a rate of {value} is out of range")
    return value


def dropout(config: Config, _shapes: list[Shape]) -> Piece:
    """Build Dropout."""
    rate = _rate(config["rate"])
    if config["noise_shape"] is not None:
        return Piece(BroadcastDropout(rate, config["noise_shape"]), "keras", inference=linear)
    return Piece(Noise("dropout", rate), inference=linear)


def spatial_dropout(config: Config, _shapes: list[Shape]) -> Piece:
    """Build SpatialDropout1D or SpatialDropout2D."""
    return Piece(Noise("channels", _rate(config["rate"])), image_order(config), inference=linear)


def alpha_dropout(config: Config, _shapes: list[Shape]) -> Piece:
    """Build AlphaDropout."""
    return Piece(Noise("alpha", _rate(config["rate"])), inference=linear)


def gaussian_noise(config: Config, _shapes: list[Shape]) -> Piece:
    """Build GaussianNoise."""
    return Piece(Noise("add", config["stddev"]), inference=linear)


def gaussian_dropout(config: Config, _shapes: list[Shape]) -> Piece:
    """Build GaussianDropout: factors of mean 1 and variance ``rate / (1 - rate)``."""
    rate = _rate(config["rate"])
    if rate == 1.0:
        raise ValueError("a rate of 1 gives an infinite variance")
    return Piece(Noise("multiply", math.sqrt(rate / (1.0 - rate))), inference=linear)
