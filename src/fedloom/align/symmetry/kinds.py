"""Kinds of steps, by what they do with the elements of a value."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from fedloom.align.symmetry.trace import Step
from fedloom.models import activations
from fedloom.models.fields import AUGMENTATIONS, NOISE

__all__ = [
    "CONVOLUTIONS",
    "KEEPING",
    "MERGING",
    "MOVING",
    "SPATIAL",
    "lets_factors_pass",
    "per_channel",
    "softmax_axis",
]

_POOLS = [f"{kind}Pooling{rank}D" for kind in ("Max", "Average", "GlobalMax", "GlobalAverage") for rank in (1, 2)]

CONVOLUTIONS = ("Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D")
MOVING = ("Flatten", "Reshape", "Permute", "Turn", "Concatenate", "Cropping1D", "Cropping2D", "UpSampling1D")
SPATIAL = ("ZeroPadding1D", "ZeroPadding2D", "UpSampling2D", *_POOLS)
MERGING = ("Add", "Subtract", "Average", "Maximum", "Minimum", "Multiply")
KEEPING = ("ActivityRegularization", "Identity", *NOISE, *activations.LAYERS[1:], *AUGMENTATIONS)
"""Steps that do nothing at inference; a layer's activation is a step of its own, ``Activation``."""


def softmax_axis(step: Step) -> int | None:
    """Return the axis, counting the batch, over which a step normalises by a softmax; None when it does not."""
    function = step.run.func if isinstance(step.run, partial) else step.run
    if function not in (activations.softmax, activations.log_softmax):
        return None
    return int(step.run.keywords.get("axis", -1)) if isinstance(step.run, partial) else -1


def per_channel(step: Step) -> bool:
    """Whether a rescaling has a number per channel."""
    arguments = step.run.keywords.values() if isinstance(step.run, partial) else ()
    return any(isinstance(a, Tensor) and a.numel() > 1 for a in arguments)


def lets_factors_pass(step: Step) -> bool:
    """Whether a step that works element by element turns a positive factor of its input into one of its result."""
    function, arguments = (step.run.func, step.run.keywords) if isinstance(step.run, partial) else (step.run, {})
    if step.op == "Activation":
        plain = function is activations.relu and arguments.get("max_value") is None and not arguments.get("threshold")
        return plain or function in (activations.linear, torch.relu, functional.relu, functional.leaky_relu)
    if step.op == "Rescaling":
        offset = arguments.get("offset", 1.0)
        return isinstance(offset, int | float) and offset == 0
    return step.op in KEEPING or step.op == "PReLU"
