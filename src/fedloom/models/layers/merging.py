"""Layers that merge several tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor

from fedloom.models.activations import Config
from fedloom.models.layers.base import Piece, Shape

Pair = Callable[[Tensor, Tensor], Tensor]


def _fold(*tensors: Tensor, operation: Pair) -> Tensor:
    return reduce(operation, tensors)


def _average(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors) / len(tensors)


def _widened(*tensors: Tensor, run: Callable[..., Tensor]) -> Tensor:
    """Give tensors of fewer axes new ones after the batch, as Keras' merging layers do."""
    rank = max(t.dim() for t in tensors)
    return run(*(t.reshape(t.shape[0], *(1,) * (rank - t.dim()), *t.shape[1:]) for t in tensors))


def _merged(run: Callable[..., Tensor], config: Config, shapes: list[Shape]) -> Piece:
    if len({len(shape) for shape in shapes}) == 1:
        return Piece(run)
    if config.get("operator"):
        raise ValueError("an operator on tensors with different numbers of axes mixes samples")
    return Piece(partial(_widened, run=run), "keras")


def add(config: Config, shapes: list[Shape]) -> Piece:
    """Build Add."""
    return _merged(partial(_fold, operation=torch.add), config, shapes)


def subtract(config: Config, shapes: list[Shape]) -> Piece:
    """Build Subtract."""
    return _merged(torch.sub, config, shapes)


def multiply(config: Config, shapes: list[Shape]) -> Piece:
    """Build Multiply."""
    return _merged(partial(_fold, operation=torch.mul), config, shapes)


def average(config: Config, shapes: list[Shape]) -> Piece:
    """Build Average."""
    return _merged(_average, config, shapes)


def maximum(config: Config, shapes: list[Shape]) -> Piece:
    """Build Maximum."""
    return _merged(partial(_fold, operation=torch.maximum), config, shapes)


def minimum(config: Config, shapes: list[Shape]) -> Piece:
    """Build Minimum."""
    return _merged(partial(_fold, operation=torch.minimum), config, shapes)


def _concatenate(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


def concatenate(config: Config, _shapes: list[Shape]) -> Piece:
    """Build Concatenate; the axis counts the batch."""
    return Piece(partial(_concatenate, axis=config["axis"]), "keras")
