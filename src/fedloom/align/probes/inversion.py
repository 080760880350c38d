"""Synthetic inputs are moved until every BatchNorm sees in them what it saw in training.

After Yin et al. 2020, "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion" (equation 4): the gap between
the statistics of a batch and the running ones, summed over layers, is followed down to the inputs. Here one member
after the other takes a step, so that no member's taste wins, the variances are compared by their logarithms, and a term
asks the batch to hold all classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedloom import rng
from fedloom.align.stages import Norm
from fedloom.align.symmetry.trace import Trace
from fedloom.models.model import Model

BATCH = 250
RATE = 0.04
"""The step size, as a share of the inputs' range."""

DIVERSITY = 0.1
"""What the entropy of the mean prediction counts beside the statistics."""


def towards_statistics(
    model: Model, traced: Trace, rows: Sequence[Tensor], x: Tensor, passes: int = 6, seed: int = 0
) -> Tensor:
    """Move inputs until they fit the members' running statistics; without any BatchNorm they stay as they are.

    Args:
        model: Lends its module.
        traced: Its steps.
        rows: The members, each float32 (P,).
        x: The inputs to begin with, float32 (n, *input_shape); they stay within their range.
        passes: How many steps every input takes part in, on average.
        seed: Of the batches.
    """
    if not any(step.op == "BatchNormalization" for step in traced.steps):
        return x
    low, high = float(x.min()), float(x.max())
    moved = nn.Parameter(x.clone())
    optimizer = torch.optim.Adam([moved], lr=RATE * (high - low))
    chance = rng.stream(seed, "inversion")
    model.module.eval()
    trained = [p for p in model.module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        for k in range(passes * max(len(x) // BATCH, 1)):
            model.load(rows[k % len(rows)])
            index = torch.from_numpy(chance.integers(0, len(x), min(BATCH, len(x))))
            (moved.grad,) = torch.autograd.grad(_gap(traced, moved[index]), [moved])
            optimizer.step()
            with torch.no_grad():
                moved.clamp_(low, high)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return moved.detach()


def _gap(traced: Trace, x: Tensor) -> Tensor:
    """Return how far a batch is from a model's running statistics, less the diversity of its answers: a scalar."""
    values, gaps = {0: x}, []
    for step in traced.steps:
        taken = [values[source] for source in step.sources]
        if step.op == "BatchNormalization":
            norm, z = Norm.of(step), taken[0].movedim(1, -1).flatten(0, -2)
            variance = norm.variance + norm.epsilon
            away = (z.mean(0) - norm.mean).square() / variance
            spread = ((z.var(0, unbiased=False) + norm.epsilon) / variance).log().square()
            gaps.append(away.mean() + spread.mean())
        values[step.target] = step.run(*taken)
    said = values[traced.steps[-1].target].softmax(1).mean(0)
    return torch.stack(gaps).mean() + DIVERSITY * (said * said.clamp_min(1e-9).log()).sum()
