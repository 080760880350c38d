"""The best linear combination of n models that makes another one, array by array, from inner products alone.

With the members' mean ``m``, their deviations ``d_i = x_i - m`` and the rest ``r = y - m`` of a model ``y``, every
combination is ``y = s m + sum_i c_i d_i`` with the weights ``w_i = s / n + c_i``, ``sum_i c_i = 0``. Solving for the
deviations, and for ``s`` along the part of ``m`` that they do not hold, tells members apart that share a start: those are
nearly parallel, and the Gram matrix of the models themselves could not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedloom.layout import Layout

ROUNDING = 3e-3
"""A rest of at most this share of the models' size is rounding: bfloat16, the coarsest format, leaves about 0.0023."""

HALF = 5e-4
"""The same of float16."""

CLOSE = 0.25
"""... if it is also at most this share of the distance between the members. One more step of training leaves more."""

Kind: TypeAlias = Literal[
    "mean",
    "weighted mean",
    "mean of some",
    "one member",
    "scaled mean",
    "error",
    "median",
    "trimmed mean",
    "bulyan",
    "between the members",
    "something else",
    "fresh",
]

COMBINATIONS = ("mean", "weighted mean", "mean of some", "one member", "scaled mean", "error")
"""The kinds that are linear combinations of the members; their weights are meant as they stand."""

EVEN = 0.02
"""Weights that differ by no more than this share count as equal: parts of 9,999 and 10,001 samples are a plain mean."""

NOTHING = 0.01
"""A weight of at most this size counts as zero, and a sum that near to 1 as 1; of many members, 5 % of an equal share."""

Matrix: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

_BLOCK = 8192
_RANK = 1e-11
_ALIKE = 1e-6
_EQUAL = 1e-9


def products(merged: Tensor, members: Sequence[Tensor], layout: Layout) -> Matrix:
    """Return the inner products of each array's ``d_1 .. d_n, m, r``, float64 (arrays, n + 2, n + 2).

    Args:
        merged: ``y``, float32 (P,).
        members: n vectors ``x_i``, float32 (P,).
        layout: Where the arrays lie.
    """
    rows, target = [x.detach().cpu().numpy() for x in members], merged.detach().cpu().numpy()
    n = len(rows)
    out = np.zeros((len(layout.names), n + 2, n + 2))
    block = np.empty((n + 2, _BLOCK))
    for array, (_, where, _) in enumerate(layout.slices()):
        for start in range(where.start, where.stop, _BLOCK):
            stop = min(start + _BLOCK, where.stop)
            part = block[:, : stop - start]
            for i, row in enumerate(rows):
                part[i] = row[start:stop]
            part[n] = part[:n].mean(0)
            part[:n] -= part[n]
            np.subtract(target[start:stop], part[n], out=part[n + 1])
            out[array] += part @ part.T
    return out


def solve(gram: Matrix) -> Matrix:
    """Return the weights (n,) whose combination is nearest to ``y`` in a Gram matrix of :func:`products`.

    Where several do equally well (equal members), the ones nearest to the plain mean.

    Args:
        gram: float64 (n + 2, n + 2): one array's, or the sum of several.
    """
    n = len(gram) - 2
    values, vectors = np.linalg.eigh(gram[:n, :n])
    kept = values > max(values[-1] * _RANK, 0.0)
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    with_mean, with_rest = gram[:n, n], gram[:n, n + 1]
    apart = gram[n, n] - with_mean @ inverse @ with_mean
    more = 0.0
    if apart > _RANK * gram[n, n]:
        more = float((gram[n, n + 1] - with_mean @ inverse @ with_rest) / apart)
    c = inverse @ (with_rest - more * with_mean)
    return np.asarray((1 + more) / n + c - c.mean())


def rests(grams: Matrix, weights: Matrix) -> Matrix:
    """Return ``|y - sum_i w_i x_i|`` of every array, float64 (arrays,)."""
    n = len(weights)
    total = weights.sum()
    v = np.concatenate([total / n - weights, [1 - total, 1.0]])
    return np.asarray(np.sqrt(np.maximum(np.einsum("i,aij,j->a", v, grams, v), 0.0)))


def sizes(grams: Matrix) -> Matrix:
    """Return every array's size, float64 (arrays,): the norm of ``y`` or the members' mean square norm, the larger."""
    n = grams.shape[1] - 2
    merged = grams[:, n, n] + 2 * grams[:, n, n + 1] + grams[:, n + 1, n + 1]
    return np.asarray(np.sqrt(np.maximum(merged, grams[:, n, n] + spreads(grams) ** 2)))


def spreads(grams: Matrix) -> Matrix:
    """Return the root mean square distance of the members to their mean in every array, float64 (arrays,)."""
    n = grams.shape[1] - 2
    return np.asarray(np.sqrt(np.einsum("aii->a", grams[:, :n, :n]) / n))


def telling(grams: Matrix) -> Flags:
    """Return in which arrays the members differ at all, bool (arrays,)."""
    return np.asarray(spreads(grams) > _ALIKE * sizes(grams))


def fits(grams: Matrix, left: Matrix) -> Flags:
    """Return in which arrays a rest of norm ``left`` (arrays,) is rounding, bool (arrays,)."""
    near = np.where(telling(grams), left <= CLOSE * spreads(grams), True)
    return np.asarray(near & (left <= ROUNDING * sizes(grams)))


def twins(gram: Matrix) -> list[list[int]]:
    """Return the members in groups of those that are the same model up to rounding, in ascending order."""
    n = len(gram) - 2
    squares = np.diag(gram)[:n]
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * gram[:n, :n], 0.0))
    whole = gram[None]
    limit = max(min(ROUNDING * sizes(whole)[0], CLOSE / 2 * spreads(whole)[0]), _EQUAL * sizes(whole)[0])
    groups: list[list[int]] = []
    for i in range(n):
        home = next((group for group in groups if distances[group[0], i] <= limit), None)
        if home is None:
            groups.append([i])
        else:
            home.append(i)
    return groups


def shared(weights: Matrix, groups: Sequence[Sequence[int]]) -> Matrix:
    """Let members that are the same model share their weight evenly: how it splits between them means nothing."""
    even = weights.copy()
    for group in groups:
        even[list(group)] = weights[list(group)].mean()
    return even


def judge(weights: Sequence[float] | Matrix, groups: Sequence[Sequence[int]] = ()) -> Kind:
    """Say what a combination with these n weights is.

    Args:
        weights: One per member.
        groups: Members that are the same model, see :func:`twins`.

    Example:
        >>> judge([1 / 3] * 3), judge([0.5, 0.3, 0.2]), judge([0.0, 1.0, 0.0]), judge([1.0, 1.0]), judge([1.8, -0.8])
        ('mean', 'weighted mean', 'one member', 'scaled mean', 'error')
    """
    w = np.asarray(weights, dtype=np.float64)
    total, nothing = w.sum(), min(NOTHING, 0.05 / len(w))
    whole = abs(total - 1) <= NOTHING
    if total > nothing and np.ptp(w) <= EVEN * total / len(w):
        return "mean" if whole else "scaled mean"
    if w.min() < -nothing or not whole:
        return "error"
    if any(abs(w[list(group)].sum() - 1) <= NOTHING for group in groups or [[i] for i in range(len(w))]):
        return "one member"
    some = w[np.abs(w) > nothing]
    return "mean of some" if len(some) < len(w) and np.ptp(some) <= EVEN * some.mean() else "weighted mean"


def away(weights: Sequence[float]) -> tuple[int, float] | None:
    """Recognise ``x_k + t (x_k - mean)``, a step away from the average where one towards it was meant.

    Returns:
        ``(k, t)`` with t > 0; None for other weights.

    Example:
        >>> k, t = away([1.8, -0.2, -0.2, -0.2, -0.2])
        >>> k, round(t, 6)
        (0, 1.0)
    """
    w = np.asarray(weights, dtype=np.float64)
    k = int(w.argmax())
    others = np.delete(w, k)
    if judge(w) != "error" or abs(w.sum() - 1) > NOTHING or np.ptp(others) > -EVEN * others.mean():
        return None
    return k, float(-others.mean() * len(w))
