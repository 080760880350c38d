"""Trying out a symmetry: a model of random weights whose outputs must not change."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedloom.align.symmetry.trace import Trace, owner
from fedloom.layout import Layout
from fedloom.models.model import Model

__all__ = ["Check"]

_SAMPLES = 4
_TOLERANCE = 1e-3
"""A larger change than this share of the outputs' range is no rounding."""


@dataclass(frozen=True, eq=False)
class Check:
    """A copy of a model with random weights.

    Attributes:
        module: The copy, in inference mode.
        layout: Of the model.
        vector: float32 (P,): the weights.
        x: Random inputs.
        expected: What it gives for them.
    """

    module: nn.Module
    layout: Layout
    vector: Tensor
    x: Tensor
    expected: Tensor

    @classmethod
    def of(cls, model: Model, traced: Trace) -> Check:
        """Copy a model and draw its weights."""
        generator = torch.Generator().manual_seed(0)
        module, vector = copy.deepcopy(model.module).cpu().eval(), draw(model.layout, generator)
        x = _inputs(traced, generator)
        model.layout.write(module, vector)
        with torch.no_grad():
            return cls(module, model.layout, vector, x, module(x))

    def same(self, vector: Tensor) -> bool:
        """Whether other weights (P,) give the same outputs, for most of the inputs: a step may jump for one."""
        self.layout.write(self.module, vector)
        with torch.no_grad():
            found = self.module(self.x)
        known = self.expected.flatten(1)
        span = known.max() - known.min()
        if not bool(torch.isfinite(span)):
            return True  # numbers that overflow tell nothing
        change = (found.flatten(1) - known).abs().amax(1)
        return float(change.median()) <= _TOLERANCE * float(span)


def draw(layout: Layout, generator: torch.Generator) -> Tensor:
    """Draw weights (P,) that keep the values' scale through the layers, biases and statistics that are not trivial."""
    vector = torch.empty(layout.size)
    views = layout.unpack(vector)
    for name, array in views.items():
        drawn = torch.randn(array.shape, generator=generator)
        last = name.rpartition(".")[2]
        if last in ("running_var", "variance"):
            array.copy_(drawn.abs() + 0.5)
        elif array.dim() > 1:
            array.copy_(drawn * (2.0 * array.shape[0] / max(array.numel(), 1)) ** 0.5)
        else:
            array.copy_(0.3 * drawn + (1.0 if last == "weight" else 0.0))
    return vector


def _inputs(traced: Trace, generator: torch.Generator) -> Tensor:
    shape = (_SAMPLES, *traced.shapes[0])
    tables = [owner(step.run) for step in traced.steps if step.op == "Embedding"]
    rows = [len(module.weight) for module in tables if module is not None and isinstance(module.weight, Tensor)]
    if rows:
        return torch.randint(min(rows), shape, generator=generator).float()
    return torch.randn(shape, generator=generator)
