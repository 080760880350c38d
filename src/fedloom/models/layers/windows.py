"""Sliding windows: strides, dilation and Keras' padding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedloom.models.layers.base import Shape

Margins = tuple[tuple[int, int], tuple[int, int]]


def same_margins(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return how many elements ``padding="same"`` adds before and after; the odd one goes to the end.

    The output has ``ceil(size / stride)`` elements, hence the total is
    ``max((ceil(size / stride) - 1) stride + (kernel - 1) dilation + 1 - size, 0)``.

    Example:
        >>> same_margins(28, 3, 2, 1)
        (0, 1)
    """
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class Window:
    """The geometry of a two-dimensional window; a one-dimensional one gets a leading axis of size 1.

    Args:
        kernel: The window's size, of one or two axes.
        strides: Its steps.
        dilation: The distances between its elements.
        padding: ``valid``, ``same`` or ``causal`` (one axis only: everything is added before).

    Attributes:
        tiles: Whether small windows stand side by side, without padding.
    """

    def __init__(self, kernel: Shape, strides: Shape, dilation: Shape, padding: str) -> None:
        lead = (1,) * (2 - len(kernel))
        self.kernel, self.strides, self.dilation = lead + kernel, lead + strides, lead + dilation
        self._same = padding == "same"
        self._constant: Margins | None = None
        self.tiles = padding == "valid" and self.strides == self.kernel and max(self.kernel) <= 3
        reach = [(k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)]
        if padding == "valid":
            self._constant = ((0, 0), (0, 0))
        elif padding == "causal":
            self._constant = ((0, 0), (reach[1], 0))
        elif self.strides == (1, 1):
            self._constant = ((reach[0] // 2, reach[0] - reach[0] // 2), (reach[1] // 2, reach[1] - reach[1] // 2))

    def margins(self, x: Tensor) -> Margins:
        """Return the elements to add before and after on the last two axes of ``x``."""
        if self._constant is not None:
            return self._constant
        rows, columns = (
            same_margins(x.shape[2 + i], self.kernel[i], self.strides[i], self.dilation[i]) for i in (0, 1)
        )
        return rows, columns

    def pad(self, x: Tensor, value: float) -> tuple[Tensor, tuple[int, int]]:
        """Return ``x`` (B, C, H, W) and the symmetric padding left to do; what is not symmetric is done here."""
        (top, bottom), (left, right) = self.margins(x)
        if top == bottom and left == right:
            return x, (top, left)
        return functional.pad(x, (left, right, top, bottom), value=value), (0, 0)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Convolve ``x`` (B, C, H, W) with ``weight`` (out, C / groups, kernel), padded with zeros."""
        margins = self.margins(x)
        if torch.is_grad_enabled() or all(before == after for before, after in margins):
            x, padding = self.pad(x, 0.0)
            return functional.conv2d(x, weight, bias, self.strides, padding, self.dilation, groups)
        # Padding both sides alike and cutting the result saves a copy of the input; with gradients it does not pay.
        cuts = [self._cut(axis, x.shape[2 + axis], *margins[axis]) for axis in (0, 1)]
        wider = [padding for padding, _ in cuts]
        y = functional.conv2d(x, weight, bias, self.strides, wider, self.dilation, groups)
        return y[:, :, cuts[0][1], cuts[1][1]]

    def _cut(self, axis: int, size: int, before: int, after: int) -> tuple[int, slice]:
        """Return a symmetric padding that holds the windows of the margins ``before`` and ``after``, and where."""
        stride = self.strides[axis]
        first = max(-((before - after) // stride), 0)
        reach = (self.kernel[axis] - 1) * self.dilation[axis]
        count = (size + before + after - reach - 1) // stride + 1
        return before + first * stride, slice(first, first + count)
