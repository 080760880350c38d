"""Fusion: one model out of aligned ones that keeps what averaging loses.

The mean of aligned units varies less than each of them does, layer by layer less, until little is left. REPAIR (Jordan et al.
2022, "REnormalizing Permuted Activations for Interpolation Repair") gives every unit the mean and the variance back
that it has in the members. Least squares goes further: layer by layer, from the input to the output, each layer's
weights are chosen in closed form so that, on the given inputs, what the layer hands on is what the members hand on on
average (repaired alike), with the aligned mean as the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.align.stages import Norm, Sample, Stage, inputs_of, norm_of, stages, weight_of
from fedloom.align.symmetry.trace import Trace, owner, run
from fedloom.models.model import Model

RIDGE = 0.01
"""The weight of the prior, as a share of the mean squared input."""

_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Goal:
    """What the members hand on at one stage.

    Attributes:
        mean: float32 (m, channels): the average of the aligned members at every sampled position.
        centre: float32 (channels,): the mean of each unit, averaged over the members.
        spread: float32 (channels,): the standard deviation of each unit, averaged over the members.
    """

    mean: Tensor
    centre: Tensor
    spread: Tensor

    def repaired(self) -> Tensor:
        """Return the average with every unit's mean and standard deviation restored, float32 (m, channels)."""
        centred = self.mean - self.mean.mean(0)
        return centred * (self.spread / _deviation(centred)) + self.centre

    def towards(self, other: Goal, share: float) -> Goal:
        """Return the goal that stands between this one (share 0) and another (share 1)."""
        pairs = ((self.mean, other.mean), (self.centre, other.centre), (self.spread, other.spread))
        return Goal(*(torch.lerp(a, b, share) for a, b in pairs))


def goals(features: Sequence[dict[int, Tensor]]) -> dict[int, Goal]:
    """Summarise what aligned members hand on, by the number of the value.

    Args:
        features: Per member what :func:`fedloom.align.stages.results` returns, its channels in the common order.
    """
    made = {}
    for value in features[0]:
        rows = [f[value] for f in features]
        spread = torch.stack([_deviation(r - r.mean(0)) for r in rows]).mean(0)
        made[value] = Goal(torch.stack(rows).mean(0), torch.stack([r.mean(0) for r in rows]).mean(0), spread)
    return made


def repair(model: Model, traced: Trace, sampled: Sample, goal: dict[int, Goal]) -> None:
    """Restore the mean and the standard deviation of every unit of a merged model, in place, from input to output."""
    _walk(model, traced, sampled, goal, fit=False)


def least_squares(model: Model, traced: Trace, sampled: Sample, goal: dict[int, Goal], ridge: float = RIDGE) -> None:
    """Fit every layer of a merged model, in place, to what the members hand on, from input to output.

    With centred inputs X (m, d) of a layer and centred goals T (m, units), W minimises
    ``|X W' - T|^2 / m + ridge * mean(X^2) * |W - W0|^2``, where W0 is the repaired mean of the members.
    """
    _walk(model, traced, sampled, goal, fit=True, ridge=ridge)


def recalibrate(model: Model, traced: Trace, x: Tensor) -> None:
    """Set the running statistics of every BatchNorm to what the model itself gives for inputs ``x``, in place.

    Averaged statistics are those of no model: the mean of the variances is not the variance of the mean (Jordan et al.
    2022 call it a reset).
    """
    model.module.eval()
    norms = {i: Norm.of(step) for i, step in enumerate(traced.steps) if step.op == "BatchNormalization"}

    def ahead(i: int, taken: list[Tensor]) -> None:
        if i in norms:
            rows = taken[0].movedim(1, -1).flatten(0, -2)
            norms[i].mean.copy_(rows.mean(0))
            norms[i].variance.copy_(rows.var(0, unbiased=False))

    for _ in run(traced, x, ahead):
        pass


def _walk(
    model: Model, traced: Trace, sampled: Sample, goal: dict[int, Goal], *, fit: bool, ridge: float = RIDGE
) -> None:
    model.module.eval()
    found = {stage.step: stage for stage in stages(traced)}

    def ahead(i: int, taken: list[Tensor]) -> None:
        stage = found.get(i)
        if stage is None or stage.value not in goal or (stage.last and not fit):
            return
        layer, wanted = _Layer.of(traced, stage), goal[stage.value]
        given = sampled.take(stage.value, traced.steps[i].run(*taken), stage.axis)
        layer.rescale(given, wanted)
        inputs = inputs_of(traced, stage, sampled, taken[0]) if fit else None
        if inputs is not None:
            layer.solve(inputs, wanted.mean if stage.last else wanted.repaired(), ridge)

    for _ in run(traced, sampled.x, ahead):
        pass


@dataclass(frozen=True, eq=False)
class _Layer:
    """The arrays of a stage: a layer's weights and bias, and the BatchNorm behind it."""

    weight: Tensor
    bias: Tensor | None
    norm: Norm | None

    @classmethod
    def of(cls, traced: Trace, stage: Stage) -> _Layer:
        bias = getattr(owner(traced.steps[stage.step].run), "bias", None)
        return cls(weight_of(traced, stage), None if bias is None else bias.data, norm_of(traced, stage))

    def rescale(self, given: Tensor, goal: Goal) -> None:
        """Give the layer's results, now ``given`` (m, channels), the members' mean and spread."""
        centre = given.mean(0)
        spread = _deviation(given - centre)
        # What a unit that became constant still varies by is rounding: not to be blown up.
        wanted = torch.where(spread > 1e-6 * spread.max(), goal.spread, spread)
        if self.norm is not None:
            _normalise(self.norm, centre, spread, Goal(goal.mean, goal.centre, wanted))
            return
        factor = wanted / spread
        self.weight.mul_(_as_rows(factor, self.weight))
        if self.bias is not None:
            self.bias.copy_(factor * (self.bias - centre) + goal.centre)

    def solve(self, x: Tensor, goal: Tensor, ridge: float) -> None:
        """Fit the weights, which are the prior, to ``goal`` (m, channels), given the inputs (m, groups, d)."""
        prior = self.weight.flatten(1)
        if self.norm is not None:
            prior = prior * _scale(self.norm)[:, None]
        free = self.bias is not None or self.norm is not None
        centre, middle = (x.mean(0), goal.mean(0)) if free else (torch.zeros_like(x[0]), torch.zeros_like(goal[0]))
        blocks = zip((x - centre).unbind(1), (goal - middle).chunk(x.shape[1], 1), prior.chunk(x.shape[1]), strict=True)
        fitted = torch.cat([_ridge(inputs, wanted, before, ridge) for inputs, wanted, before in blocks])
        each = len(fitted) // x.shape[1]
        offset = (fitted * centre.repeat_interleave(each, 0)).sum(1)
        self.weight.copy_(fitted.view_as(self.weight))
        if self.norm is None:
            if self.bias is not None:
                self.bias.copy_(middle - offset)
            return
        residual = [
            ((part - c) @ w.T).square().mean(0)
            for part, c, w in zip(x.unbind(1), centre, fitted.chunk(x.shape[1]), strict=True)
        ]
        _pass_on(self.norm, offset if self.bias is None else offset + self.bias, torch.cat(residual), middle)


def _normalise(norm: Norm, centre: Tensor, spread: Tensor, goal: Goal) -> None:
    """Set a BatchNorm to its layer's own statistics, and its result to the members' mean and spread."""
    variance = spread.square()
    if norm.gamma is not None:
        sign = torch.where(norm.gamma < 0, -1.0, 1.0)
        norm.gamma.copy_(sign * goal.spread * (variance + norm.epsilon).sqrt() / spread)
        norm.variance.copy_(variance)
    else:
        norm.variance.copy_(((spread / goal.spread).square() - norm.epsilon).clamp_min(0.0))
    if norm.beta is not None:
        norm.beta.copy_(goal.centre)
    norm.mean.copy_(centre if norm.beta is not None else centre - goal.centre / _scale(norm))


def _scale(norm: Norm) -> Tensor:
    """Return what a BatchNorm multiplies every channel by."""
    deviation = (norm.variance + norm.epsilon).sqrt()
    return 1 / deviation if norm.gamma is None else norm.gamma / deviation


def _pass_on(norm: Norm, centre: Tensor, variance: Tensor, middle: Tensor) -> None:
    """Let a BatchNorm pass what has this mean and variance on with the mean ``middle``, otherwise as it is."""
    norm.mean.copy_(centre if norm.beta is not None else centre - middle)
    if norm.beta is not None:
        norm.beta.copy_(middle)
    norm.variance.copy_(variance if norm.gamma is not None else torch.full_like(variance, 1.0 - norm.epsilon))
    if norm.gamma is not None:
        norm.gamma.copy_((variance + norm.epsilon).sqrt())


def _as_rows(factors: Tensor, weight: Tensor) -> Tensor:
    return factors.reshape(-1, *(1,) * (weight.dim() - 1))


def _ridge(x: Tensor, goal: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """Return W (units, d) of least ``|x W' - goal|^2 / m + ridge * mean(x^2) * |W - prior|^2``."""
    m, d = x.shape
    penalty = ridge * float(x.square().mean()) * m + _LEAST
    rest = goal - x @ prior.T
    gram = x.T @ x if d <= m else x @ x.T
    gram.diagonal().add_(penalty)
    change: Tensor = torch.linalg.solve(gram, x.T @ rest) if d <= m else x.T @ torch.linalg.solve(gram, rest)
    return prior + change.T


def _deviation(centred: Tensor) -> Tensor:
    return centred.square().mean(0).sqrt().clamp_min(_LEAST)
