"""Fisher-weighted averaging: each number is taken from the members that are sensitive to it.

M. Matena and C. Raffel, "Merging Models with Fisher-Weighted Averaging", 2021. A member's posterior is taken as a
normal distribution whose precision is the diagonal of its Fisher information (eq. 2 and 3)

    F_i = mean over x of E_{y ~ p_i(y | x)} [ (grad log p_i(y | x))^2 ],

where the expectation runs over the labels that the member itself predicts: inputs suffice, no labels are needed. The
product of the posteriors is largest at (eq. 4)

    theta = sum_i F_i theta_i / sum_i F_i.

Deviations: all members have the same weight (the paper's lambda is 1); one label per input is drawn instead of summing
over all classes, which leaves the mean of F as it is at a fraction of the time; every F gets the floor 1e-6 of its
mean, so that numbers which no member is sensitive to are averaged; arrays without gradients (BatchNorm statistics,
frozen parameters) are averaged: use :func:`fedloom.align.fusion.recalibrate` on the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fedloom import rng
from fedloom.errors import MergeError
from fedloom.models.model import Model

__all__ = ["fisher", "information"]

SAMPLES = 500
"""Inputs that are enough for a steady estimate; more only cost time."""

_FLOOR = 1e-6
_HELD = 2**25  # numbers that the gradients of one chunk may hold: 128 MiB

_Arrays = dict[str, Tensor]
_Gradient = Callable[[_Arrays, Tensor, Tensor], _Arrays]


def fisher(model: Model, rows: Sequence[Tensor], x: Tensor, samples: int = SAMPLES, seed: int = 0) -> Tensor:
    """Merge aligned members, each number weighted by its Fisher information.

    Args:
        model: Runs the members; its own arrays stay as they are.
        rows: The members' aligned vectors, each (P,), at least one.
        x: Inputs without labels, float32 (n, *input_shape).
        samples: At most so many of the inputs are used, the first ones.
        seed: Of the labels that are drawn.

    Returns:
        float32 (P,).

    Raises:
        MergeError: There are no members or inputs, or a member whose gradients are not finite, by its number.
    """
    if not rows or not len(x) or samples < 1:
        raise MergeError(f"Fisher weighting needs members and inputs: there are {len(rows)} and {min(len(x), samples)}")
    head = model.layout.trainable
    total, weighted = torch.zeros_like(rows[0][:head]), torch.zeros_like(rows[0][:head])
    for i, row in enumerate(rows):
        found = information(model, row, x[:samples], seed)
        if not bool(found.isfinite().all()):
            raise MergeError(
                f"member {i + 1} has gradients that are not finite, so Fisher weights are unknown: leave it out"
            )
        found += _FLOOR * found.mean() + torch.finfo(found.dtype).tiny
        total += found
        weighted += found * row[:head]
    merged = torch.stack(list(rows)).mean(0)
    merged[:head] = weighted / total
    return merged


def information(model: Model, row: Tensor, x: Tensor, seed: int = 0) -> Tensor:
    """Estimate the diagonal of a model's Fisher information, float32 (trainable,).

    Args:
        model: Runs the vector; its own arrays stay as they are.
        row: The vector (P,).
        x: Inputs, float32 (n, *input_shape), each used once.
        seed: Of the labels that are drawn from the model's predictions.
    """
    model.module.eval()
    layout = model.layout
    arrays = layout.unpack(row)
    moving = {name: arrays[name] for name in layout.names[: layout.n_trainable]}
    rest = {name: arrays[name] for name in layout.names[layout.n_trainable :]}

    def log_probabilities(moved: _Arrays, inputs: Tensor) -> Tensor:
        y: Tensor = functional_call(model.module, {**moved, **rest}, (inputs,))
        return functional.log_softmax(y if model.output == "logits" else y.clamp_min(1e-12).log(), -1)

    def loss(moved: _Arrays, one: Tensor, label: Tensor) -> Tensor:
        return -log_probabilities(moved, one.unsqueeze(0))[0].gather(0, label.unsqueeze(0))[0]

    gradient: _Gradient = grad(loss)
    chance = torch.from_numpy(rng.stream(seed, "fisher").random(len(x))).to(x.device)
    total = {name: torch.zeros_like(array) for name, array in moving.items()}
    step = max(1, min(100, _HELD // max(1, layout.trainable)))
    for first in range(0, len(x), step):
        inputs = x[first : first + step]
        with torch.no_grad():
            labels = _draw(log_probabilities(moving, inputs), chance[first : first + step])
        for name, squares in _squares(gradient, moving, inputs, labels).items():
            total[name] += squares
    return torch.cat([total[name].flatten() for name in moving]) / len(x)


def _draw(log_probabilities: Tensor, chance: Tensor) -> Tensor:
    """Draw a class per row, int64 (n,), by where ``chance`` in [0, 1) falls in its cumulative probabilities."""
    reached = log_probabilities.double().exp().cumsum(1)
    return (reached[:, :-1] <= chance[:, None] * reached[:, -1:]).sum(1)


def _squares(gradient: _Gradient, moving: _Arrays, inputs: Tensor, labels: Tensor) -> _Arrays:
    """Return the sum of the squared gradients over the samples of a chunk."""
    try:
        made = vmap(gradient, in_dims=(None, 0, 0))(moving, inputs, labels)
    except RuntimeError:  # a module that decides by its inputs' values cannot run on many at once
        return _one_by_one(gradient, moving, inputs, labels)
    return {name: g.square().sum(0) for name, g in made.items()}


def _one_by_one(gradient: _Gradient, moving: _Arrays, inputs: Tensor, labels: Tensor) -> _Arrays:
    total = {name: torch.zeros_like(array) for name, array in moving.items()}
    for one, label in zip(inputs, labels, strict=True):
        for name, g in gradient(moving, one, label).items():
            total[name] += g.square()
    return total
