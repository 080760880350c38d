"""Scales: was one member trained on inputs from 0 to 255 where the others took 0 to 1? Seen without labels, and healed.

Three signs are looked at. A BatchNorm behind the first layer remembers the variance of what it saw: of inputs 255 times too
small, 1/65025 of it arrives. Logits grow with the inputs: those of a wrong scale are far too small and undecided, or far too
large and certain. And a member agrees with the others only in its own scale. The cure is exact: the first layer
with weights multiplies by the factor itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

from fedloom.align.checkup.agreement import FRIENDS, Agreement, Answers, agreement, answers, core, together, usual
from fedloom.align.symmetry.trace import Step, Trace, owner, run, trace
from fedloom.errors import ModelError
from fedloom.models.model import Model

SCALES = (255.0, 1.0, 1 / 255)
"""What inputs may have to be multiplied by."""

GAIN = 0.25
"""A scale is better when a member agrees with the others by so much more in it (in kappa)."""

SIZE = 3.0
"""Logits stand apart when their size does, by this in natural logarithms: 20 times."""

VARIANCE = 0.6 * 2 * math.log(255)
"""The variance at a BatchNorm stands apart when its logarithm does by this: more than half of the way to a factor of 255."""

_NOISE = 0.03  # in kappa: agreement is not worse
_NEAR = 0.35 * 2 * math.log(255)
_CERTAIN, _UNDECIDED = 0.05, 0.9  # mean entropies, as shares of ln C
_LOOK = 250  # inputs that the variance is taken from

_LINEAR = frozenset({"Flatten", "Reshape", "Permute", "Turn", "Concatenate", "Add", "Subtract", "Average", "Maximum"})
_LINEAR |= {
    "Minimum",
    "Identity",
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "GaussianDropout",
    "GaussianNoise",
}
_LINEAR |= {f"{kind}{rank}D" for kind in ("ZeroPadding", "Cropping", "UpSampling") for rank in (1, 2)}
_LINEAR |= {f"{kind}Pooling{rank}D" for kind in ("Max", "Average", "GlobalMax", "GlobalAverage") for rank in (1, 2)}
_KERNELS = {"Dense": "weight", "Conv1D": "weight", "Conv2D": "weight", "DepthwiseConv1D": "weight"}
_KERNELS |= {"DepthwiseConv2D": "weight", "SeparableConv1D": "depthwise", "SeparableConv2D": "depthwise"}


def input_scales(models: Sequence[Model], x: Tensor) -> list[float]:
    """Say which inputs each model expects.

    Args:
        models: Models of one architecture.
        x: Unlabelled or made-up inputs, float32 (n, *input_shape), in the scale that the models are said to have.

    Returns:
        For each model what ``x`` has to be multiplied by: 255, 1 or 1/255. Another number than 1 only where a majority of
        the others agree (of two models: the other one) and the signs are strong.
    """
    return judge(models, x, [answers(model, x) for model in models])


def judge(models: Sequence[Model], x: Tensor, found: Sequence[Answers]) -> list[float]:
    """Do what :func:`input_scales` does, given what the models say to ``x``."""
    if len(models) == 2:
        agreeing: tuple[int, ...] = (0, 1)
    else:
        agreeing = core(found)
    ratios = [variance_ratio(model, x) for model in models]
    return [_of(i, model, x, found, ratios, [j for j in agreeing if j != i]) for i, model in enumerate(models)]


def _of(
    i: int,
    model: Model,
    x: Tensor,
    found: Sequence[Answers],
    ratios: Sequence[float | None],
    others: Sequence[int],
) -> float:
    """Return the scale of one model beside others that agree."""
    if not others:
        return 1.0
    case = _Case.of(found[i], [found[j] for j in others])
    known = [r for j in others if (r := ratios[j]) is not None]
    own = ratios[i]
    shift = own - median(known) if own is not None and known else None
    if shift is not None and own is not None and len(others) == 1 and abs(own) < abs(known[0]):
        return 1.0  # of two, the one whose BatchNorm knows such inputs is right
    if not case.suspicious and (shift is None or abs(shift) < VARIANCE):
        return 1.0
    best, scale = -1.0, 1.0
    for factor in SCALES:
        if factor != 1.0:
            there = answers(model, x * factor)
            agreed = agreement(there.probabilities, case.reference)
            if case.speaks_for(factor, there, agreed, shift) and agreed.kappa > best:
                best, scale = agreed.kappa, factor
    return scale


class _Case:
    """One model beside the others: what is usual, and what it does."""

    def __init__(self, own: Answers, reference: Tensor, level: float, usual_kappa: float) -> None:
        self.own, self.reference, self.level, self.usual = own, reference, level, usual_kappa
        self.here = agreement(own.probabilities, reference)
        self.off = math.log(max(own.size, 1e-9)) - level

    @classmethod
    def of(cls, own: Answers, others: Sequence[Answers]) -> _Case:
        level = median(math.log(max(one.size, 1e-9)) for one in others)
        return cls(own, together(others), level, usual(others))

    @property
    def suspicious(self) -> bool:
        """Whether other scales need to be tried at all."""
        return self.here.kappa < self.usual - 0.2 or abs(self.off) > SIZE

    def speaks_for(self, factor: float, there: Answers, agreed: Agreement, shift: float | None) -> bool:
        """Whether the signs are strong that inputs times ``factor`` are what the model expects."""
        loss = self.here.kappa - agreed.kappa
        if agreed.reached < FRIENDS or loss > 5 * _NOISE:
            return False
        if shift is not None:
            return abs(shift) > VARIANCE and abs(shift + 2 * math.log(factor)) < _NEAR
        if loss > _NOISE:
            return False
        far = abs(math.log(max(there.size, 1e-9)) - self.level)
        gained = agreed.kappa >= max(self.here.kappa + GAIN, 0.6 * self.usual)
        if self.here.kappa < self.usual - 0.2 and gained and far < SIZE:
            return True
        lost = self.own.entropy > _UNDECIDED if factor > 1 else self.own.entropy < _CERTAIN
        return lost and abs(self.off) > SIZE and far < abs(self.off) - 0.5


@torch.no_grad()
def variance_ratio(model: Model, x: Tensor) -> float | None:
    """Return the logarithm of actual over running variance at the first BatchNorm, the median of its channels.

    Returns:
        About 0 for inputs like those of the training, about -11.1 for inputs that are 255 times too small; None without
        a BatchNorm that the first layer with weights, or none, stands before.
    """
    try:
        traced = trace(model)
    except ModelError:
        return None
    first = _first_norm(traced)
    if first is None:
        return None
    step = traced.steps[first]
    layer, source = owner(step.run), step.sources[0]
    model.module.eval()
    looked = x[:_LOOK].clone()
    values = looked if source == 0 else next(y for i, y in run(traced, looked) if traced.steps[i].target == source)
    rows = values.movedim(1, -1).flatten(0, -2)
    running: Tensor = getattr(layer, "running_var", torch.ones(rows.shape[1]))
    logs = (rows.var(0, unbiased=False).clamp_min(1e-12) / running.clamp_min(1e-12)).log()
    return float(logs.median())


def _first_norm(traced: Trace) -> int | None:
    """Return the first step that is a BatchNorm, if at most one layer with weights stands before it."""
    weighted = 0
    for i, step in enumerate(traced.steps):
        if step.op == "BatchNormalization":
            return i
        weighted += step.op in _KERNELS
        if weighted > 1 or not (step.op in _KERNELS or step.op in _LINEAR or step.op == "Rescaling"):
            return None
    return None


def fold_scale(model: Model, factor: float) -> None:
    """Let a model take inputs x as it took ``factor * x`` before, in place: its first weights are multiplied.

    A bias stays as it is. In a BatchNorm that stands before the first layer with weights, the mean is divided and gamma
    multiplied.

    Args:
        model: A model that can be looked into.
        factor: Above 0.

    Raises:
        ModelError: A layer in front of the first weights is not linear, or keeps its scale in the configuration: it is
            named, and nothing is changed.
    """
    traced = trace(model)
    changes, scaled = [], {0}
    for step in traced.steps:
        touched = [source in scaled for source in step.sources]
        if not any(touched):
            continue
        if step.op in _KERNELS:
            changes.append(_kernel(step))
        elif step.op == "BatchNormalization":
            changes.append(_norm(step))
        elif (step.op in _LINEAR or _plain_rescaling(step)) and all(touched):
            scaled.add(step.target)
        else:
            raise _refused(step)
    _check_once(traced, [step for step, _ in changes], scaled)
    with torch.no_grad():
        for _, arrays in changes:
            for array, divided in arrays:
                array.div_(factor) if divided else array.mul_(factor)


_Change = tuple[Step, list[tuple[Tensor, bool]]]


def _kernel(step: Step) -> _Change:
    kernel = getattr(owner(step.run), _KERNELS[step.op], None)
    if not isinstance(kernel, Tensor):
        raise _refused(step)
    return step, [(kernel.data, False)]


def _norm(step: Step) -> _Change:
    layer = owner(step.run)
    gamma, mean = getattr(layer, "weight", None), getattr(layer, "running_mean", None)
    if not isinstance(gamma, Tensor) or not isinstance(mean, Tensor):
        raise _refused(step)
    return step, [(mean, True), (gamma.data, False)]


def _plain_rescaling(step: Step) -> bool:
    """Whether a step multiplies by a number and adds nothing."""
    return step.op == "Rescaling" and getattr(step.run, "keywords", {}).get("offset", 1.0) == 0.0


def _check_once(traced: Trace, changed: Sequence[Step], scaled: set[int]) -> None:
    """Refuse weights that are also used on something else than the inputs."""
    owners: dict[int, nn.Module | None] = {id(owner(step.run)): owner(step.run) for step in changed}
    if len(owners) < len(changed):
        raise _refused(changed[0])
    for step in traced.steps:
        if id(owner(step.run)) in owners and not scaled.issuperset(step.sources):
            raise _refused(step)


def _refused(step: Step) -> ModelError:
    return ModelError(
        f"layer '{step.layer}' ({step.op}) stands between the inputs and the first weights, and cannot pass a factor on: "
        "train the member again with the others' inputs",
        layer=step.layer,
    )
