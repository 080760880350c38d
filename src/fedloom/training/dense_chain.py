"""Chains of linear layers with ReLU between them, such as McMahan's 2NN: forward and backward by hand.

With small batches the bookkeeping of automatic differentiation is a good part of a step; such chains do not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedloom.models.layers.weighted import Dense
from fedloom.models.lower import LoweredModel
from fedloom.models.model import Model
from fedloom.training.ghost_layers import Part, Rows, Single
from fedloom.training.per_example import MEMORY, Ghost

_RELU = (torch.relu, torch.relu_, functional.relu)


@dataclass
class Link:
    """A linear layer of a chain.

    Attributes:
        layer: The layer.
        relu: Whether a ReLU follows.
        part: What it trains; None where it is frozen.
    """

    layer: Dense | nn.Linear
    relu: bool = False
    part: Part | None = None


class Chain(Ghost):
    """``Ghost`` without autograd, for models that :func:`links` can read."""

    def __init__(self, model: Model, memory: int = MEMORY) -> None:
        super().__init__(model, memory)
        self._lead, self._links = links(model)
        own = {id(part.module): part for part in self._parts}
        for link in self._links:
            link.part = own.get(id(link.layer))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Nothing has to be heard: the layers are run by hand."""
        yield

    def follows(self, _x: Tensor) -> bool:
        """Whether the model is such a chain, and trains something."""
        return bool(self._links and self._parts)

    def _rows(self, x: Tensor, y: Tensor) -> list[Rows]:
        with torch.no_grad():
            for function in self._lead:
                x = function(x)
            inputs = []
            for link in self._links:
                inputs.append(x)
                x = functional.linear(x, link.layer.weight, link.layer.bias)
                if link.relu:
                    x.relu_()
            slope = torch.softmax(x, 1)
            if y.dim() == 1:
                slope.scatter_add_(1, y[:, None], slope.new_full((len(y), 1), -1.0))
            else:
                slope = slope * y.sum(1, keepdim=True) - y
            found: list[Rows] = []
            for number in reversed(range(len(inputs))):
                link, a = self._links[number], inputs[number]
                if link.part is not None:
                    found.append(Single(link.part, a, slope))
                if number:
                    slope = slope @ link.layer.weight
                    if self._links[number - 1].relu:
                        slope = torch.ops.aten.threshold_backward(slope, a, 0.0)
        return found


def links(model: Model) -> tuple[list[Callable[..., Tensor]], list[Link]]:
    """Read a model as functions without anything to train, then linear layers; no layers when it is none such."""
    lead: list[Callable[..., Tensor]] = []
    found: list[Link] = []
    for run in _sequence(model):
        if isinstance(run, Dense | nn.Linear) and type(run) in (Dense, nn.Linear):
            found.append(Link(run))
        elif not found and not (isinstance(run, nn.Module) and any(p.requires_grad for p in run.parameters())):
            lead.append(run)
        elif found and (run in _RELU or type(run) is nn.ReLU):
            found[-1].relu = True
        else:
            return [], []
    return (lead, found) if found and not found[-1].relu else ([], [])


def _sequence(model: Model) -> list[Callable[..., Tensor]]:
    """Return what a model does, one function after the other; nothing where it is no sequence."""
    module = model.module
    if model.output != "logits":
        return []
    if isinstance(module, LoweredModel):
        targets = [0, *(step.target for step in module.steps)]
        one_by_one = all(step.sources == (before,) for step, before in zip(module.steps, targets, strict=False))
        return [step.run for step in module.steps] if one_by_one else []
    return list(module) if type(module) is nn.Sequential else []
