"""Layers that move elements around: Flatten, Reshape, Permute, padding, cropping, repetition."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn import functional

from fedloom.models.activations import Config, linear
from fedloom.models.layers.base import Piece, Shape, image_order


def _flatten(x: Tensor) -> Tensor:
    return x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)


def _flatten_moved(x: Tensor) -> Tensor:
    return x.movedim(1, -1).flatten(1)


def _reshape(x: Tensor, shape: Shape) -> Tensor:
    return x.reshape(x.shape[0], *shape)


def _permute(x: Tensor, axes: Shape) -> Tensor:
    return x.permute(axes)


def _pad(x: Tensor, margins: tuple[int, ...]) -> Tensor:
    return functional.pad(x, margins)


def _crop(x: Tensor, margins: tuple[tuple[int, int], ...]) -> Tensor:
    for i, (before, after) in enumerate(margins):
        x = x.narrow(2 + i, before, x.shape[2 + i] - before - after)
    return x


def _repeat(x: Tensor, size: int) -> Tensor:
    return x.repeat_interleave(size, dim=1)


def _enlarge(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    target = (x.shape[2] * size[0], x.shape[3] * size[1])
    return functional.interpolate(x, size=target, mode=mode, align_corners=None if mode == "nearest" else False)


def identity(_config: Config, _shapes: list[Shape]) -> Piece:
    """Build a layer that does nothing itself: activations (applied apart) and augmentation."""
    return Piece(linear)


def flatten(config: Config, shapes: list[Shape]) -> Piece:
    """Build Flatten; the channels are the fastest axis in the result, whatever the data format."""
    moved = config["data_format"] == "channels_first" and len(shapes[0]) > 1
    return Piece(_flatten_moved if moved else _flatten, "keras", gives_keras=True)


def reshape(config: Config, _shapes: list[Shape]) -> Piece:
    """Build Reshape; one dimension may be -1."""
    return Piece(partial(_reshape, shape=config["target_shape"]), "keras", gives_keras=True)


def permute(config: Config, _shapes: list[Shape]) -> Piece:
    """Build Permute; axes count from 1, the batch is axis 0."""
    return Piece(partial(_permute, axes=(0, *config["dims"])), "keras", gives_keras=True)


def zero_padding(config: Config, _shapes: list[Shape]) -> Piece:
    """Build ZeroPadding1D or ZeroPadding2D."""
    margins = tuple(n for pair in reversed(config["padding"]) for n in pair)
    return Piece(partial(_pad, margins=margins), image_order(config))


def cropping(config: Config, _shapes: list[Shape]) -> Piece:
    """Build Cropping1D or Cropping2D."""
    return Piece(partial(_crop, margins=config["cropping"]), image_order(config))


def up_sampling_1d(config: Config, _shapes: list[Shape]) -> Piece:
    """Build UpSampling1D."""
    return Piece(partial(_repeat, size=config["size"][0]), "keras")


def up_sampling_2d(config: Config, _shapes: list[Shape]) -> Piece:
    """Build UpSampling2D."""
    return Piece(partial(_enlarge, size=config["size"], mode=config["interpolation"]), image_order(config))
