"""Stages: where a model's layers with weights hand their results on, and what stands there for given inputs.

A stage is a dense or convolutional layer together with the BatchNorm that follows it directly; its result is what the
activation takes: the pre-activation. Of an image-like result a few positions are looked at, drawn once and the same
for every model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.align.symmetry.patches import patches
from fedloom.align.symmetry.trace import Step, Trace, owner, run
from fedloom.errors import ModelError
from fedloom.models.model import Model

WEIGHTED = frozenset(
    {"Dense", "Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"}
)
BATCH = 250
"""Inputs that are run at once."""


@dataclass(frozen=True)
class Stage:
    """A layer with weights, and the BatchNorm behind it.

    Attributes:
        step: The index of the layer's step.
        norm: The index of the BatchNorm's step, or None.
        value: The number of the value that is handed on.
        axis: The axis of its channels, counting the batch.
        last: Whether it gives the logits.
    """

    step: int
    norm: int | None
    value: int
    axis: int
    last: bool


def stages(traced: Trace) -> list[Stage]:
    """Return a model's stages, in order; a layer that is used twice has its first stage alone."""
    found, seen = [], set()
    for i, step in enumerate(traced.steps):
        module = owner(step.run)
        if step.op not in WEIGHTED or id(module) in seen:
            continue
        seen.add(id(module))
        readers = traced.readers(step.target)
        after = traced.steps[readers[0]] if len(readers) == 1 else None
        axis = len(traced.shapes[step.target]) if step.op == "Dense" else 1
        # A BatchNorm runs over axis 1: behind a dense layer on sequences that is not the axis of the units.
        norm = readers[0] if after is not None and after.op == "BatchNormalization" and axis == 1 else None
        value = step.target if norm is None else traced.steps[norm].target
        found.append(Stage(i, norm, value, axis, value == traced.steps[-1].target))
    return found


@dataclass(frozen=True, eq=False)
class Sample:
    """Inputs, and the positions that are looked at.

    Attributes:
        x: float32 (n, *input_shape).
        places: Per value int64 (n, k): the positions of each input's result, as flat indices; absent for vectors.
    """

    x: Tensor
    places: dict[int, Tensor]

    def take(self, value: int, result: Tensor, axis: int, first: int = 0) -> Tensor:
        """Return a result at the positions, float32 (m, channels); ``first`` is the index of its first input."""
        if value not in self.places:
            return result
        rows = result.movedim(axis, -1).flatten(1, -2)
        places = self.places[value][first : first + len(rows)]
        return rows.gather(1, places.unsqueeze(2).expand(-1, -1, rows.shape[2])).flatten(0, 1)


def sample(traced: Trace, x: Tensor, seed: int, positions: int = 32) -> Sample:
    """Draw the positions at which the results of all stages are looked at."""
    generator = torch.Generator().manual_seed(seed)
    places = {}
    for stage in stages(traced):
        for value in {stage.value, traced.steps[stage.step].target}:
            shape = traced.shapes[value]
            if len(shape) > 1:
                count = _count(shape, stage)
                drawn = torch.randint(count, (len(x), min(positions, count)), generator=generator)
                places[stage.value] = places[traced.steps[stage.step].target] = drawn
    return Sample(x, places)


def _count(shape: Sequence[int], stage: Stage) -> int:
    total = 1
    for size in shape:
        total *= size
    return total // shape[stage.axis - 1]


def results(model: Model, traced: Trace, sampled: Sample) -> dict[int, Tensor]:
    """Run a model, and return what its stages hand on: (m, channels) by the number of the value."""
    model.module.eval()
    wanted = {stage.value: stage for stage in stages(traced)}
    parts: dict[int, list[Tensor]] = {value: [] for value in wanted}
    for first in range(0, len(sampled.x), BATCH):
        for i, result in run(traced, sampled.x[first : first + BATCH]):
            stage = wanted.get(traced.steps[i].target)
            if stage is not None:
                parts[stage.value].append(sampled.take(stage.value, result, stage.axis, first).clone())
    return {value: torch.cat(rows) for value, rows in parts.items()}


def standard(features: Tensor) -> Tensor:
    """Return features (m, units) with mean 0 and mean square 1 per unit; a constant unit becomes 0.

    ``standard(a).T @ standard(b) / m`` holds the correlations of the units of a with those of b.
    """
    centred = features - features.mean(0)
    deviation = centred.square().mean(0).sqrt()
    least = 1e-6 * torch.maximum(deviation.max(), features.abs().amax(0))  # less than that is rounding
    return torch.where(deviation > least, centred / deviation.clamp_min(1e-12), 0.0)


@dataclass(frozen=True, eq=False)
class Norm:
    """The arrays of a BatchNorm, each (channels,), and what it adds to the variance."""

    mean: Tensor
    variance: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    epsilon: float

    @classmethod
    def of(cls, step: Step) -> Norm:
        """Return the arrays of the module that a step runs; fedloom's layers and PyTorch's name epsilon differently.

        Raises:
            ModelError: The module keeps no running statistics.
        """
        module = owner(step.run)
        mean, variance = (getattr(module, name, None) for name in ("running_mean", "running_var"))
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            raise ModelError(f"layer '{step.layer}' ({step.op}) keeps no running statistics", layer=step.layer)
        gamma, beta = (getattr(module, name, None) for name in ("weight", "bias"))
        epsilon = float(getattr(module, "epsilon", getattr(module, "eps", 0.0)))
        return cls(mean, variance, _data(gamma), _data(beta), epsilon)


def norm_of(traced: Trace, stage: Stage) -> Norm | None:
    """Return the BatchNorm of a stage."""
    return None if stage.norm is None else Norm.of(traced.steps[stage.norm])


def _data(array: object) -> Tensor | None:
    return array.data if isinstance(array, Tensor) else None


def inputs_of(traced: Trace, stage: Stage, sampled: Sample, x: Tensor) -> Tensor | None:
    """Return what a layer's outputs at the sampled positions are made of, (m, groups, d); None where it is not known."""
    step, shape = traced.steps[stage.step], traced.shapes[traced.steps[stage.step].target]
    if step.op == "Dense":
        return sampled.take(stage.value, x, x.dim() - 1).unsqueeze(1)
    if step.op.startswith("Separable"):
        return None
    places = sampled.places[stage.value]
    flat, width = places.flatten(), shape[-1]
    rows, columns = (flat // width, flat % width) if len(shape) == 3 else (torch.zeros_like(flat), flat)
    samples = torch.arange(len(places)).repeat_interleave(places.shape[1])
    made = patches(step, x, samples, rows, columns).flatten(2)
    weight = weight_of(traced, stage)
    return made.reshape(len(made), made.shape[1] // weight.shape[1], -1)


def weight_of(traced: Trace, stage: Stage) -> Tensor:
    """Return the array whose rows make a stage's channels."""
    module = owner(traced.steps[stage.step].run)
    weight = getattr(module, "pointwise", None)
    found = _data(getattr(module, "weight", None) if weight is None else weight)
    assert found is not None
    return found
