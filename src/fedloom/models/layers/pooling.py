"""Pooling. One-dimensional pooling runs as two-dimensional pooling of height 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor
from torch.nn import functional

from fedloom.models.activations import Config
from fedloom.models.layers.base import Piece, Shape, image_order
from fedloom.models.layers.windows import Window


def _max(x: Tensor, window: Window, flat: bool) -> Tensor:
    x, padding = window.pad(x.unsqueeze(2) if flat else x, -torch.inf)
    if window.tiles and not torch.is_grad_enabled():
        y = _max_of_tiles(x, window.kernel)
    else:
        y = functional.max_pool2d(x, window.kernel, window.strides, padding)
    return y.squeeze(2) if flat else y


def _max_of_tiles(x: Tensor, kernel: Shape) -> Tensor:
    """Return the maximum of windows that tile the image: two to four times as fast as max_pool2d on a CPU.

    At inference only: where elements tie, its gradient would not be max_pool2d's.
    """
    rows, columns = x.shape[2] // kernel[0] * kernel[0], x.shape[3] // kernel[1] * kernel[1]
    x = reduce(torch.maximum, [x[..., i : columns : kernel[1]] for i in range(kernel[1])])
    return reduce(torch.maximum, [x[..., i : rows : kernel[0], :] for i in range(kernel[0])])


def _average(x: Tensor, window: Window, flat: bool) -> Tensor:
    """Average over the elements inside the input: the padding does not count, as TensorFlow defines ``same``.

    Keras 3.15 on PyTorch repeats the edge instead when the padding is not symmetric.
    """
    given = x.unsqueeze(2) if flat else x
    x, padding = window.pad(given, 0.0)
    y = functional.avg_pool2d(x, window.kernel, window.strides, padding, count_include_pad=False)
    if x is not given:
        inside, _ = window.pad(given.new_ones((1, 1, *given.shape[2:])), 0.0)
        y = y / functional.avg_pool2d(inside, window.kernel, window.strides)
    return y.squeeze(2) if flat else y


def _window(config: Config) -> Window:
    size = config["pool_size"]
    return Window(size, config["strides"] or size, (1,) * len(size), config["padding"])


def max_pool(config: Config, _shapes: list[Shape]) -> Piece:
    """Build MaxPooling1D or MaxPooling2D."""
    return Piece(partial(_max, window=_window(config), flat=len(config["pool_size"]) == 1), image_order(config))


def average_pool(config: Config, _shapes: list[Shape]) -> Piece:
    """Build AveragePooling1D or AveragePooling2D."""
    return Piece(partial(_average, window=_window(config), flat=len(config["pool_size"]) == 1), image_order(config))


def _global(reduction: Callable[..., Tensor], config: Config, shape: Shape) -> Piece:
    axes, keep = tuple(range(2, len(shape) + 1)), config["keepdims"]
    return Piece(partial(reduction, dim=axes, keepdim=keep), image_order(config), gives_keras=not keep)


def global_max(config: Config, shapes: list[Shape]) -> Piece:
    """Build GlobalMaxPooling1D or GlobalMaxPooling2D."""
    return _global(torch.amax, config, shapes[0])


def global_average(config: Config, shapes: list[Shape]) -> Piece:
    """Build GlobalAveragePooling1D or GlobalAveragePooling2D."""
    return _global(torch.mean, config, shapes[0])
