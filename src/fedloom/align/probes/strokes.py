"""Pictures of nothing: smooth random strokes and blobs, drawn without looking at anybody's data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_DOTS = 64  # points per curve, close enough not to show
_CHUNK = 500  # pictures drawn at once
_LARGEST = 64  # pixels along the longer side; larger pictures are enlarged from it
_THINNEST = 1.5  # pixels

Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """What the pictures of one kind look like; ranges are drawn from uniformly, lengths are shares of the shorter side.

    Attributes:
        name: For people.
        parts: The least and the largest number of strokes or blobs; later ones are painted over earlier ones.
        size: The extent of the whole drawing.
        ink: How bright a part is, 0-1.
        pen: The width of the pen that draws strokes; None for blobs.
        bend: From straight strokes (0) to curves whose control points lie anywhere in the box (1).
        joined: The probability that a stroke goes on where the one before ended.
        texture: How much a smooth random pattern takes away from the brightness, 0-1.
        ground: The brightness of the background, which has a pattern of its own; black at 0.
    """

    name: str
    parts: tuple[int, int]
    size: Range
    ink: Range
    pen: Range | None = None
    bend: Range = (0.0, 1.0)
    joined: float = 0.5
    texture: Range = (0.0, 0.0)
    ground: Range = (0.0, 0.0)


def draw(n: int, size: tuple[int, int, int], style: Style, rng: np.random.Generator) -> Tensor:
    """Draw ``n`` pictures.

    Args:
        n: How many.
        size: Height, width and channels.
        style: What they look like.
        rng: Where the chance comes from.

    Returns:
        float32 (n, channels, height, width), from 0 to 1.

    Example:
        >>> pen = Style("pen", (1, 2), size=(0.7, 0.7), ink=(1.0, 1.0), pen=(0.1, 0.1))
        >>> draw(3, (8, 8, 1), pen, np.random.default_rng(0)).shape
        torch.Size([3, 1, 8, 8])
    """
    height, width, channels = size
    shrink = min(1.0, _LARGEST / max(height, width))
    small = (max(round(height * shrink), 1), max(round(width * shrink), 1), channels)
    parts = [_draw(min(_CHUNK, n - start), small, style, rng) for start in range(0, n, _CHUNK)]
    pictures = torch.cat(parts) if parts else torch.zeros(0, channels, *small[:2])
    if small == size or n == 0:
        return (
            pictures.reshape(n, channels, height, width) if small == size else torch.zeros(0, channels, height, width)
        )
    return functional.interpolate(pictures, (height, width), mode="bilinear", align_corners=False)


def _draw(n: int, size: tuple[int, int, int], style: Style, rng: np.random.Generator) -> Tensor:
    height, width, channels = size
    most = style.parts[1]
    drawn = torch.from_numpy(rng.integers(style.parts[0], most, (n, 1), endpoint=True)) > torch.arange(most)
    ink = _lerp(_uniform(rng, style.ink, n, most, 1), _uniform(rng, style.ink, n, most, channels), 0.5)
    canvas = _uniform(rng, style.ground, n, 1, 1, 1) * (0.5 + 0.5 * _pattern(n, size, 4, rng))
    covers = (
        _blobs(drawn, (height, width), style, rng)
        if style.pen is None
        else _strokes(drawn, (height, width), style, rng)
    )
    for part, cover in enumerate(covers):
        cover = cover * drawn[:, part, None, None]
        canvas = canvas + cover[:, None] * (ink[:, part, :, None, None] - canvas)
    return _textured(canvas, size, style, rng).clamp_(0.0, 1.0)


def _textured(canvas: Tensor, size: tuple[int, int, int], style: Style, rng: np.random.Generator) -> Tensor:
    if style.texture[1] <= 0:
        return canvas
    n = len(canvas)
    fine = _uniform(rng, (0.0, 1.0), n, 1, 1, 1)
    pattern = _lerp(_pattern(n, size, 4, rng), _pattern(n, size, max(size[0] // 2, 4), rng), fine)
    return canvas * (1.0 - _uniform(rng, style.texture, n, 1, 1, 1) * pattern)


def _strokes(drawn: Tensor, size: tuple[int, int], style: Style, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield for each stroke how much it covers of each pixel, (n, height, width) in 0-1; ``drawn`` (n, strokes).

    A stroke is the line integral of a Gaussian of deviation s: near the curve exp(-d^2 / 2 s^2) at the distance d. That
    is 1/2 at d = 1.18 s and falls there by 0.59 / s per pixel, so that a gain of 1.2 s gives edges of about 1.4 pixels.
    A Gaussian is a product over the axes, and a stroke hence one product of matrices.
    """
    pen = (_uniform(rng, style.pen or (0.0, 0.0), len(drawn), 1, 1, 1) * min(size)).clamp_min(_THINNEST)
    points = _fitted(_curves(len(drawn), drawn.shape[1], style, rng), drawn, size, pen, style, rng)
    steps = (points[:, :, 1:] - points[:, :, :-1]).norm(dim=-1)
    lengths = 0.5 * (torch.cat([steps, steps[..., -1:]], -1) + torch.cat([steps[..., :1], steps], -1))
    spread = pen / 2.36
    rows = torch.exp(-0.5 * ((torch.arange(size[0]) + 0.5 - points[..., :1]) / spread) ** 2)
    columns = torch.exp(-0.5 * ((torch.arange(size[1]) + 0.5 - points[..., 1:]) / spread) ** 2)
    rows = rows * (lengths / (spread[..., 0] * 2.5066))[..., None]
    for stroke in range(points.shape[1]):
        line = rows[:, stroke].transpose(1, 2) @ columns[:, stroke]
        line = line / line.amax((1, 2), keepdim=True).clamp(1e-6, 1.0)
        yield (0.5 + (line - 0.5) * (1.2 * spread[:, 0]).clamp_min(1.2)).clamp_(0.0, 1.0)


def _curves(n: int, most: int, style: Style, rng: np.random.Generator) -> Tensor:
    """Return points along cubic Bezier curves, (n, curves, dots, 2) as (row, column), about 0."""
    ends = _uniform(rng, (-0.5, 0.5), n, most, 2, 2)
    for curve in range(1, most):
        goes_on = torch.from_numpy(rng.random((n, 1)) < style.joined)
        ends[:, curve, 0] = torch.where(goes_on, ends[:, curve - 1, 1], ends[:, curve, 0])
    first, last = ends[:, :, :1], ends[:, :, 1:]
    straight = torch.cat([_lerp(first, last, 1 / 3), _lerp(first, last, 2 / 3)], 2)
    inner = _lerp(straight, _uniform(rng, (-0.7, 0.7), n, most, 2, 2), _uniform(rng, style.bend, n, most, 1, 1))
    t = torch.linspace(0.0, 1.0, _DOTS)
    basis = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
    return basis @ torch.cat([first, inner, last], 2)


def _fitted(
    points: Tensor, drawn: Tensor, size: tuple[int, int], pen: Tensor, style: Style, rng: np.random.Generator
) -> Tensor:
    """Move and scale the points of what is drawn into a box around the middle, in pixels."""
    points = torch.where(drawn[:, :, None, None], points, points[:, :1])
    low, high = points.amin((1, 2), keepdim=True), points.amax((1, 2), keepdim=True)
    box = (_uniform(rng, style.size, len(points), 1, 1, 1) * min(size) - pen).clamp_min(1.0)
    scale = box / (high - low).amax(-1, keepdim=True).clamp_min(1e-3)
    shift = 0.03 * min(size) * torch.from_numpy(rng.standard_normal((len(points), 1, 1, 2), dtype=np.float32))
    return (points - (low + high) / 2) * scale + 0.5 * torch.tensor(size) + shift


def _blobs(drawn: Tensor, size: tuple[int, int], style: Style, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield for each blob how much it covers of each pixel, as ``_strokes`` does.

    A blob is |u / a|^p + |v / b|^p < 1: between an ellipse (p = 2) and a box (p = 6), turned, and wider at one end than at
    the other. The first is the largest and stands in the middle.
    """
    n, side = len(drawn), min(size)
    whole = 0.5 * _uniform(rng, style.size, n, 1, 1) * side
    v0 = torch.arange(size[0])[:, None] + 0.5 - size[0] / 2
    u0 = torch.arange(size[1])[None, :] + 0.5 - size[1] / 2
    for blob in range(drawn.shape[1]):
        long = whole if blob == 0 else whole * _uniform(rng, (0.2, 0.9), n, 1, 1)
        wide = (long * _uniform(rng, (0.25, 1.0), n, 1, 1)).clamp_min(1.0)
        away = whole * _uniform(rng, (0.0, 0.1 if blob == 0 else 0.8), n, 1, 1)
        where, angle = (_uniform(rng, (0.0, 6.2832), n, 1, 1) for _ in range(2))
        angle = torch.where(_uniform(rng, (0.0, 1.0), n, 1, 1) < 0.7, (angle / 1.5708).round() * 1.5708, angle)
        v, u = v0 - away * where.sin(), u0 - away * where.cos()
        v, u = v * angle.cos() - u * angle.sin(), v * angle.sin() + u * angle.cos()
        wide_here = wide * (1.0 + _uniform(rng, (-0.5, 0.5), n, 1, 1) * (v / long).clamp(-1.0, 1.0))
        power = _uniform(rng, (2.0, 6.0), n, 1, 1)
        reach = ((u / wide_here).abs() ** power + (v / long).abs() ** power) ** (1.0 / power)
        yield (0.5 + (1.0 - reach) * torch.minimum(wide, long)).clamp_(0.0, 1.0)


def _pattern(n: int, size: tuple[int, int, int], cells: int, rng: np.random.Generator) -> Tensor:
    """Return smooth random patterns, (n, channels, height, width) in 0-1, with ``cells`` cells along each side."""
    grid = _uniform(rng, (0.0, 1.0), n, size[2], cells, cells)
    return functional.interpolate(grid, size[:2], mode="bilinear", align_corners=True)


def _uniform(rng: np.random.Generator, bounds: Range, *shape: int) -> Tensor:
    drawn: NDArray[np.float32] = rng.random(shape, dtype=np.float32)
    return torch.from_numpy(drawn).mul_(bounds[1] - bounds[0]).add_(bounds[0])


def _lerp(a: Tensor, b: Tensor, share: Tensor | float) -> Tensor:
    return a + share * (b - a)
