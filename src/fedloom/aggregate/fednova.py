"""FedNova: every client counts by direction, not by how many steps it took.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", NeurIPS 2020: its normalised update rule and the vectors a_i that weigh local gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedloom.aggregate.checks import Cohort, Vectors, check_vector, check_weights, cohort, positive, whole
from fedloom.aggregate.mean import combination, weighted_mean
from fedloom.errors import MergeError
from fedloom.layout import Layout


def fednova(
    vectors: Vectors,
    *,
    norms: Sequence[float],
    start: Tensor | None = None,
    weights: Sequence[float] | Tensor | None = None,
    names: Sequence[str] | None = None,
    layout: Layout | None = None,
) -> Tensor:
    """Normalise every update by its local work: ``w0 + t sum_i p_i (x_i - w0) / |a_i|`` with ``t = sum_i p_i |a_i|``.

    Args:
        vectors: n models, see :data:`~fedloom.aggregate.checks.Vectors`.
        norms: ``|a_i|_1`` of each, > 0, from :func:`fednova_norm`; for plain SGD the number of local steps.
        start: w0, the model they all started from, float32 (P,); not needed when all norms are equal.
        weights: p_i before normalisation, usually the samples; equal when None.
        names: As in :func:`~fedloom.aggregate.checks.cohort`.
        layout: Likewise; where it is known, only the trainable head is normalised, and the rest (BatchNorm statistics)
            follows the plain weighted mean.

    Returns:
        float32 (P,). Equal norms give the weighted mean.

    Raises:
        MergeError: The norms are not > 0, the start is missing or does not fit, the result is not finite; see also
            :func:`~fedloom.aggregate.checks.cohort` and :func:`~fedloom.aggregate.checks.check_weights`.

    Example:
        >>> fednova(torch.tensor([[1.0], [4.0]]), norms=[1, 2], start=torch.zeros(1)).tolist()
        [2.25]
    """
    models = cohort(vectors, names=names, layout=layout)
    share = check_weights(weights, models)
    if len(norms) != models.n:
        raise MergeError(f"{len(norms)} norms were given for {models.n} models", expected=models.n, found=len(norms))
    work = [positive(f"the local work of {models.name(i)}", value) for i, value in enumerate(norms)]
    if len(set(work)) == 1:
        return weighted_mean(models, weights=weights)
    if start is None:
        raise MergeError(
            f"fednova needs the model that all started from, because the local work differs "
            f"({min(work):g} to {max(work):g} steps)"
        )
    check_vector(start, models.size, "the common start", models.layout)
    effective = float(share @ torch.tensor(work, dtype=torch.float64))
    factors = [float(p) * effective / norm for p, norm in zip(share, work, strict=True)]
    return _merge(models, start.detach(), factors, share.tolist())


def fednova_norm(steps: int, *, momentum: float = 0.0, prox_mu: float = 0.0, lr: float = 0.0) -> float:
    """Return ``|a|_1``: how much gradient ``steps`` local steps add up to, in steps of plain SGD.

    Plain SGD: ``steps``. With momentum rho: ``(steps - rho (1 - rho^steps) / (1 - rho)) / (1 - rho)``. With a proximal
    term mu: ``(1 - (1 - lr mu)^steps) / (lr mu)``. With both, the recursion that the two formulas solve is run.

    Args:
        steps: Local optimiser steps, >= 1.
        momentum: rho, in [0, 1).
        prox_mu: mu, >= 0; above zero it needs ``lr``.
        lr: The local learning rate.

    Raises:
        MergeError: An option is out of range, or lr * mu is not below 1.

    Example:
        >>> fednova_norm(3), fednova_norm(2, momentum=0.5), fednova_norm(2, prox_mu=1.0, lr=0.5)
        (3.0, 2.5, 1.5)
    """
    steps = whole("local steps", steps, 1)
    if not 0 <= momentum < 1:
        raise MergeError(f"momentum = {momentum:g}: a number in [0, 1) is expected", option="momentum", found=momentum)
    pull = 0.0
    if positive("prox_mu", prox_mu, allow_zero=True):
        pull = prox_mu * positive("lr", lr)
        if pull >= 1:
            raise MergeError(f"lr * prox_mu = {pull:g}: a product below 1 is expected", option="prox_mu", found=pull)
    if pull == 0:
        return (steps - momentum * (1 - math.pow(momentum, steps)) / (1 - momentum)) / (1 - momentum)
    if momentum == 0:
        return -math.expm1(steps * math.log1p(-pull)) / pull
    moved = velocity = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0 - pull * moved
        moved += velocity
    return moved


def _merge(models: Cohort, start: Tensor, factors: list[float], share: list[float]) -> Tensor:
    head = models.size if models.layout is None else models.layout.trainable
    out = torch.empty_like(start)
    out[:head] = combination([*(row[:head] for row in models.rows), start[:head]], [*factors, 1.0 - sum(factors)])
    if head < models.size:
        out[head:] = combination([row[head:] for row in models.rows], share)
    if not math.isfinite(float(out.double().sum())):
        raise MergeError("fednova gives numbers beyond float32: the local steps differ too much for these updates")
    return out
