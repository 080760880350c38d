"""Dense, Embedding and PReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedloom.models.activations import Config
from fedloom.models.layers.base import Layer, Piece, Shape


class Dense(Layer):
    """``x W^T + b`` on the last axis; weight (units, inputs), bias (units,)."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__()
        units, inputs = config["units"], shape[-1]
        self.declare("kernel", "weight", (inputs, units), config, axes=(1, 0))
        if config["use_bias"]:
            self.declare("bias", "bias", (units,), config)
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output before its activation."""
        return functional.linear(x, self.weight, self.bias)


class Embedding(Layer):
    """Rows of a table (input_dim, output_dim) by number; the inputs may be whole numbers stored as floats."""

    weight: nn.Parameter

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.declare("embeddings", "weight", (config["input_dim"], config["output_dim"]), config)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows that ``x`` names."""
        return functional.embedding(x.long(), self.weight)


class PReLU(Layer):
    """``max(0, x) + alpha min(0, x)`` (He et al. 2015), alpha per element or shared along axes."""

    alpha: nn.Parameter

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__()
        shared = config["shared_axes"] or ()
        self.declare("alpha", "alpha", [1 if i + 1 in shared else n for i, n in enumerate(shape)], config)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation."""
        return torch.relu(x) - self.alpha * torch.relu(-x)


def dense(config: Config, shapes: list[Shape]) -> Piece:
    """Build a Dense layer."""
    return Piece(Dense(config, shapes[0]), "keras")


def embedding(config: Config, _shapes: list[Shape]) -> Piece:
    """Build an Embedding layer."""
    return Piece(Embedding(config), "keras")


def prelu(config: Config, shapes: list[Shape]) -> Piece:
    """Build a PReLU layer."""
    return Piece(PReLU(config, shapes[0]), "keras")
