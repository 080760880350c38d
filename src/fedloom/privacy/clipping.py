"""Clipping: no client's update is longer than a bound, so that none can be told from the sum once noise is added."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.errors import UsageError


@dataclass(frozen=True)
class Clipped:
    """An update whose trainable head has a bounded norm.

    Attributes:
        vector: float32 (P,); the entries behind the head are as they came.
        norm: The L2 norm of the head before clipping, in float64; NaN where the head held a number that is none.
        clipped: Whether the head was changed: it was too long, or not finite.
        finite: False where the head held NaN or infinity: all of the vector is zeros then, since a client that is left
            out or asked again would tell that its update was broken.
    """

    vector: Tensor
    norm: float
    clipped: bool
    finite: bool = True


def clip(vector: Tensor, bound: float, head: int | None = None) -> Clipped:
    """Scale the head of ``vector`` to a norm of at most ``bound``: ``v * min(1, bound / |v|)``.

    Args:
        vector: An update, float32 (P,).
        bound: Longest L2 norm that the head may have, > 0; infinity leaves every finite update as it is.
        head: The length of the trainable head; all of the vector when None.

    Returns:
        The clipped update; the norm of its head, summed in float64, is never above ``bound``. Zeros stay zeros.

    Raises:
        UsageError: ``bound`` is not above 0, or ``head`` does not fit the vector.

    Source: McMahan, Ramage, Talwar, Zhang 2018, "Learning Differentially Private Recurrent Language Models", section 2
    (flat clipping). What to do with updates that are not finite is ours.

    Example:
        >>> clip(torch.tensor([3.0, 4.0, 9.0]), bound=1.0, head=2).vector.round(decimals=3)
        tensor([0.6000, 0.8000, 9.0000])
    """
    if math.isnan(bound) or bound <= 0:
        raise UsageError(f"the clipping bound is {bound:g}: a norm above 0 is expected", found=bound)
    size = len(vector) if head is None else head
    if not 0 <= size <= len(vector):
        raise UsageError(f"clipping a head of {size} numbers: the vector has {len(vector)}", expected=len(vector))
    norm = _norm(vector[:size])
    if not math.isfinite(norm):
        return Clipped(torch.zeros_like(vector), norm, clipped=True, finite=False)
    if norm <= bound:
        return Clipped(vector, norm, clipped=False)
    shorter = vector.clone()
    shorter[:size] = _scaled(vector[:size], bound, norm)
    return Clipped(shorter, norm, clipped=True)


def _scaled(head: Tensor, bound: float, norm: float) -> Tensor:
    """Scale ``head`` down to ``bound``; rounding to float32 never leaves it above."""
    factor = bound / norm
    scaled = head * factor
    while (now := _norm(scaled)) > bound:
        factor *= min(bound / now, 1 - 2.0**-24)
        scaled = head * factor
    return scaled


def _norm(head: Tensor) -> float:
    """Return the L2 norm in float64: in float32 the square of a long but finite update overflows."""
    return float(torch.linalg.vector_norm(head, dtype=torch.float64))
