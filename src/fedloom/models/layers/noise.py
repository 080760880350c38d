"""Layers that act in training only; their chance comes from PyTorch's own generator, which the training step seeds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedloom.models.activations import Config, linear
from fedloom.models.layers.base import Order, Piece, Shape, image_order


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


def _piece(kind: str, strength: float, order: Order = "any") -> Piece:
    if not (strength >= 0.0 and (kind == "add" or strength < math.inf)):
        raise ValueError(f"a strength of {strength} is out of range")
    if kind in ("dropout", "channels", "alpha") and strength > 1.0:
        raise ValueError(f"a rate of {strength} is out of range")
    return Piece(Noise(kind, strength), order, inference=linear)


def dropout(config: Config, _shapes: list[Shape]) -> Piece:
    """Build Dropout."""
    return _piece("dropout", config["rate"])


def spatial_dropout(config: Config, _shapes: list[Shape]) -> Piece:
    """Build SpatialDropout1D or SpatialDropout2D."""
    return _piece("channels", config["rate"], image_order(config))


def alpha_dropout(config: Config, _shapes: list[Shape]) -> Piece:
    """Build AlphaDropout."""
    return _piece("alpha", config["rate"])


def gaussian_noise(config: Config, _shapes: list[Shape]) -> Piece:
    """Build GaussianNoise."""
    return _piece("add", config["stddev"])


def gaussian_dropout(config: Config, _shapes: list[Shape]) -> Piece:
    """Build GaussianDropout: factors of mean 1 and variance ``rate / (1 - rate)``."""
    rate = config["rate"]
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"a rate of {rate} is out of range")
    return _piece("multiply", math.sqrt(rate / (1.0 - rate)))
