"""What a convolution sees: the piece of its padded input behind chosen positions of its output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedloom.align.symmetry.trace import Step, owner
from fedloom.errors import ModelError
from fedloom.models.layers.convolution import Conv, SeparableConv

__all__ = ["patches"]

_Pair = tuple[int, int]


@dataclass(frozen=True)
class _Geometry:
    kernel: _Pair
    strides: _Pair
    dilation: _Pair
    before: _Pair


def patches(step: Step, x: Tensor, samples: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return the inputs that a convolution multiplies by its kernel at some positions of its output.

    With one group, ``patches.flatten(1) @ weight.flatten(1).T + bias`` is the layer's output at these positions. With
    g groups it holds group by group: the k-th of g equal parts of the channels belongs to the k-th part of the weight's
    rows. Of a separable convolution they are the inputs of its depthwise part.

    Args:
        step: A step that runs a convolution over one or two axes, padded with zeros.
        x: The step's input, float (B, C, H, W), or (B, C, W) over one axis.
        samples: int64 (m,): which of the B inputs.
        rows: int64 (m,): the row in the output; not looked at over one axis.
        cols: int64 (m,): the column in the output.

    Returns:
        Of the type of ``x``, (m, C, kernel rows, kernel columns), or (m, C, kernel) over one axis; 0 outside the input.

    Raises:
        ModelError: The step is no convolution, or does not pad with zeros.
    """
    flat = x.dim() == 3
    wide = x.unsqueeze(2) if flat else x
    geometry = _geometry(step, wide)
    down, inside_down = _reached(geometry, 0, torch.zeros_like(cols) if flat else rows, wide.shape[2])
    right, inside_right = _reached(geometry, 1, cols, wide.shape[3])
    # (m, kernel rows, kernel columns, C): what is outside is read anywhere, then set to 0
    seen = wide[samples[:, None, None], :, down[:, :, None], right[:, None, :]]
    seen = seen.masked_fill(~(inside_down[:, :, None] & inside_right[:, None, :]).unsqueeze(3), 0.0)
    made = seen.permute(0, 3, 1, 2)
    return made.squeeze(2) if flat else made


def _reached(geometry: _Geometry, axis: int, at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the positions (m, kernel) in the input, and which of them are inside it."""
    taps = torch.arange(geometry.kernel[axis], device=at.device) * geometry.dilation[axis]
    found = (at * geometry.strides[axis] - geometry.before[axis])[:, None] + taps
    return found.clamp(0, size - 1), (found >= 0) & (found < size)


def _geometry(step: Step, x: Tensor) -> _Geometry:
    module = owner(step.run)
    if isinstance(module, Conv | SeparableConv):
        window = module.window
        (top, _), (left, _) = window.margins(x)
        return _Geometry(_pair(window.kernel), _pair(window.strides), _pair(window.dilation), (top, left))
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.padding_mode == "zeros":
        kernel, dilation = _pair(module.kernel_size), _pair(module.dilation)
        if module.padding == "same":
            before = ((kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2)
        else:
            before = (0, 0) if isinstance(module.padding, str) else _pair(module.padding, 0)
        return _Geometry(kernel, _pair(module.stride), dilation, before)
    raise ModelError(f"layer '{step.layer}' ({step.op}) is not a convolution padded with zeros", layer=step.layer)


def _pair(numbers: tuple[int, ...], lead: int = 1) -> _Pair:
    """Give the geometry of one axis a leading one."""
    return (lead, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
