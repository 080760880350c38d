"""Dead units: those that never fire."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.align.stages import WEIGHTED, Stage, stages
from fedloom.align.symmetry.trace import Trace, owner, run, trace
from fedloom.models.model import Model

_BATCH = 250


@dataclass(frozen=True)
class Dead:
    """How many of a layer's units never fire.

    Attributes:
        layer: The layer's path.
        dead: How many of them.
        units: How many there are.
    """

    layer: str
    dead: int
    units: int


@torch.no_grad()
def dead_units(model: Model, x: Tensor) -> tuple[Dead, ...]:
    """Count the units of each hidden layer that do nothing: ReLU never lets them through, or they have no weights.

    Args:
        model: A model that can be looked into.
        x: Inputs, float32 (n, *input_shape), in its scale.

    Returns:
        One entry per layer with weights, without the last one, in order.

    Raises:
        ModelError: The model cannot be looked into.
    """
    traced = trace(model)
    model.module.eval()
    hidden = [stage for stage in stages(traced) if not stage.last]
    silent = {s.value: torch.full((_units(traced, s),), fill_value=True) for s in hidden if _is_cut(traced, s.value)}
    axes = {stage.value: stage.axis for stage in hidden}
    for first in range(0, len(x), _BATCH):
        for i, result in run(traced, x[first : first + _BATCH].clone()):
            value = traced.steps[i].target
            if value in silent:
                fires = (result > 0).movedim(axes[value], 0).flatten(1).any(1)
                silent[value] &= ~fires.cpu()
    return tuple(_count(traced, stage, silent.get(stage.value)) for stage in hidden)


def _count(traced: Trace, stage: Stage, silent: Tensor | None) -> Dead:
    """Add the units without weights to those that are silent."""
    step, units = traced.steps[stage.step], _units(traced, stage)
    weight = getattr(owner(step.run), "pointwise", None)
    weight = getattr(owner(step.run), "weight", None) if weight is None else weight
    empty = torch.zeros(units, dtype=torch.bool)
    if step.op in WEIGHTED and isinstance(weight, Tensor) and len(weight) == units:
        empty = ~weight.detach().cpu().flatten(1).any(1)
    dead = empty if silent is None else empty | silent
    return Dead(step.layer, int(dead.sum()), units)


def _units(traced: Trace, stage: Stage) -> int:
    return traced.shapes[stage.value][stage.axis - 1]


def _is_cut(traced: Trace, value: int) -> bool:
    """Whether all that reads a value is an activation that lets nothing below zero through."""
    steps = [traced.steps[i] for i in traced.readers(value)]
    below = torch.tensor([[-0.5, -8.0]])
    return bool(steps) and all(s.op in ("Activation", "ReLU") and not bool(s.run(below.clone()).any()) for s in steps)
