"""Layers whose per-example gradients have a norm that is known before the gradient is: linear ones and convolutions.

A layer is reduced to rows: what went in, ``a``, and the gradient of what came out, ``d``. Sample i's weight gradient is
``d_i^T a_i``, where a weight is used at T places of a sample the sum over them. See ``per_example`` for the sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedloom.models.layers.convolution import Conv
from fedloom.models.layers.weighted import Dense

ROUNDED = 2.0**-20
"""What float32 may round away of a sum of products, as a share of the sum of their sizes."""


@dataclass(frozen=True)
class Part:
    """A layer with something to train.

    Attributes:
        module: The layer.
        weight: The name of its weight in the model's layout; empty where that is not trained.
        bias: Likewise of its bias.
    """

    module: nn.Module
    weight: str
    bias: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays that it trains."""
        return tuple(name for name in (self.weight, self.bias) if name)


class Rows(Protocol):
    """What a layer knows of a batch after its backward pass.

    Attributes:
        part: The layer.
    """

    part: Part

    def square(self) -> Tensor:
        """Return the squared L2 norm of each sample's gradient, float32 (B,)."""

    def numbers(self) -> int:
        """Return how many numbers a sample takes."""

    def add(self, factors: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        """Add ``sum_i factors_i g_i`` to the weight's and the bias's gradient.

        Args:
            factors: float32 (B,).
            weight: Of the weight's shape, or None where it is not trained.
            bias: Likewise.
        """


class Single:
    """A weight that is used once per sample: a (B, i), d (B, o)."""

    def __init__(self, part: Part, a: Tensor, d: Tensor) -> None:
        self.part, self.a, self.d = part, a, d

    def square(self) -> Tensor:
        """See ``Rows``."""
        square: Tensor = torch.linalg.vecdot(self.d, self.d)
        if not self.part.weight:
            return square
        inputs: Tensor = torch.linalg.vecdot(self.a, self.a)
        return square.mul_(inputs.add_(1.0) if self.part.bias else inputs)

    def add(self, factors: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        """See ``Rows``."""
        if weight is not None:
            weight.addmm_((self.d * factors[:, None]).T, self.a)
        if bias is not None:
            bias.addmv_(self.d.T, factors)

    def numbers(self) -> int:
        """Return how many numbers a sample takes."""
        return self.a.shape[1] + self.d.shape[1]


class Shared:
    """A weight that is used at T places: a (B, groups, i, T), d (B, groups, o, T)."""

    def __init__(self, part: Part, a: Tensor, d: Tensor) -> None:
        self.part, self.a, self.d = part, a, d
        places, each = a.shape[3], a.shape[2] * d.shape[2]
        self._gram = 2 * places**2 < each
        self._each: Tensor | None = None

    def square(self) -> Tensor:
        """See ``Rows``."""
        square = self.a.new_zeros(len(self.a))
        if self.part.weight and self._gram:
            square += ((self.a.mT @ self.a) * (self.d.mT @ self.d)).sum((1, 2, 3)).clamp_(min=0.0)
            # Terms of both signs may cancel to less than was rounded away: a norm is never taken for too small.
            square += ROUNDED * (self.a.norm(dim=2) * self.d.norm(dim=2)).sum((1, 2)).square()
        elif self.part.weight:
            self._each = (self.d @ self.a.mT).flatten(1)
            square += torch.linalg.vecdot(self._each, self._each)
        if self.part.bias:
            square += self._places().square().sum(1)
        return square

    def add(self, factors: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        """See ``Rows``."""
        if weight is not None:
            if self._each is None:
                pairs = torch.einsum("bgot,bgit,b->goi", self.d, self.a, factors)
                weight.add_(pairs.reshape(weight.shape))
            else:
                weight.view(-1).addmv_(self._each.T, factors)
        if bias is not None:
            bias.addmv_(self._places().T, factors)

    def numbers(self) -> int:
        """Return how many numbers a sample takes."""
        groups, inputs, places = self.a.shape[1:]
        outputs = self.d.shape[2]
        more = 2 * places**2 if self._gram else inputs * outputs
        return groups * (inputs * places + outputs * places + more)

    def _places(self) -> Tensor:
        return self.d.sum(3).flatten(1)


def _linear(part: Part, a: Tensor, d: Tensor) -> Rows:
    if a.dim() == 2:
        return Single(part, a, d)
    return Shared(part, a.flatten(1, -2).mT[:, None], d.flatten(1, -2).mT[:, None])


def _convolution(part: Part, a: Tensor, d: Tensor) -> Rows:
    """Unfold the windows of a torch.nn.Conv1d or Conv2d."""
    module = part.module
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    flat = (1,) * (2 - len(module.kernel_size))
    assert not isinstance(module.padding, str)
    padding = ((0,) * len(flat)) + tuple(module.padding)
    a = a.unsqueeze(2) if flat else a
    columns = functional.unfold(a, flat + module.kernel_size, flat + module.dilation, padding, flat + module.stride)
    return _windows(part, columns, d, module.groups)


def _lowered(part: Part, a: Tensor, d: Tensor) -> Rows:
    """Unfold the windows of a lowered Keras convolution."""
    module = part.module
    assert isinstance(module, Conv)
    a, padding = module.window.pad(a.unsqueeze(2) if module.flat else a, 0.0)
    window = module.window
    columns = functional.unfold(a, window.kernel, window.dilation, padding, window.strides)
    return _windows(part, columns, d, module.groups)


def _windows(part: Part, columns: Tensor, d: Tensor, groups: int) -> Rows:
    count = len(d)
    return Shared(
        part, columns.view(count, groups, -1, columns.shape[2]), d.reshape(count, groups, -1, columns.shape[2])
    )


Reduce = Callable[[Part, Tensor, Tensor], Rows]

LAYERS: dict[type[nn.Module], Reduce] = {
    Dense: _linear,
    Conv: _lowered,
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
}


def parts(module: nn.Module) -> list[Part]:
    """Return the layers that train something; empty when something is trained elsewhere, or in two places."""
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    found = []
    for layer in module.modules():
        own = {key: names[id(p)] for key, p in layer.named_parameters(recurse=False) if id(p) in names}
        if not own:
            continue
        if type(layer) not in LAYERS or not own.keys() <= {"weight", "bias"} or not _plain(layer):
            return []
        found.append(Part(layer, own.get("weight", ""), own.get("bias", "")))
    covered = [name for part in found for name in part.names]
    return found if sorted(covered) == sorted(names.values()) else []


def rows(part: Part, a: Tensor, d: Tensor) -> Rows:
    """Reduce what went into a layer, and the gradient of what came out of it, to rows."""
    return LAYERS[type(part.module)](part, a, d)


def _plain(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return True
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
