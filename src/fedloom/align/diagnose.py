"""Do these models share a start? Their first layer tells.

Training from one start leaves unit i of every model recognisable as unit i. From different random starts the same
feature sits in another unit of each model (R. Hecht-Nielsen, "On the algebraic structure of feedforward network weight
spaces", 1990), and the best match of a unit has its own index only by chance: averaging then blends unrelated units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedloom.aggregate import cohort
from fedloom.layout import Layout

LEAST_UNITS = 8
"""Fewer units than this are no evidence."""

THRESHOLD = 0.5
"""A pair of models shares a start when more than this share of units match their own index. From different starts, the
number of such units is about Poisson(1), whatever their number; more than 4 of 8 come up in about 1 pair of 270."""

Matrix: TypeAlias = NDArray[np.float64]

_MOST_UNITS = 256
_TIE = 1e-6


@dataclass(frozen=True)
class Pair:
    """Two models compared.

    Attributes:
        first: The index of one model, from 0.
        second: The index of the other.
        share: The share of units whose best match has their own index, 0-1; NaN when no unit says anything.
    """

    first: int
    second: int
    share: float


@dataclass(frozen=True)
class Verdict:
    """Whether n models share a start.

    Attributes:
        shared: True, False, or None when the models give no evidence (too few units, dead or constant ones).
        share: The lowest share of all pairs, 0-1; NaN when there is none.
        evidence: The finding in one line of words.
        array: The array that was looked at; empty when none fits.
        chance: The share that different starts are expected to give.
        pairs: All pairs of models.
        groups: The indices of models that are connected by shared starts; one group when all share.
        duplicates: Pairs of models that are identical, number for number.
    """

    shared: bool | None
    share: float
    evidence: str
    array: str = ""
    chance: float = math.nan
    pairs: tuple[Pair, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    duplicates: tuple[tuple[int, int], ...] = ()


def chance(units: int) -> float:
    """Return the share of units that match their own index when the order of the units is random.

    Example:
        >>> chance(32)
        0.03125
    """
    return 1.0 / units if units > 0 else math.nan


def same_index_share(a: Tensor, b: Tensor) -> float:
    """Return the share of units of ``a`` whose best cosine match among the units of ``b`` has the same index.

    Args:
        a: A layer's weights, float (units, ...): one row of incoming weights per unit.
        b: The same layer of another model.

    Returns:
        A number in 0-1. Units that say nothing are left out: those without any weight in either model (dead), and
        those with several equally good matches (constant layers, a single input). NaN when none is left.

    Example:
        >>> same_index_share(torch.eye(4), torch.eye(4)), same_index_share(torch.eye(4), torch.eye(4).flip(0))
        (1.0, 0.0)
    """
    x, y = _directions(a), _directions(b)
    matched, counted = _matches(x @ y.T, _alive(x) & _alive(y))
    return matched / counted if counted else math.nan


def shared_start(vectors: Sequence[Tensor], layout: Layout, names: Sequence[str] | None = None) -> Verdict:
    """Say whether n models were trained from one start.

    The first trainable array of at least two dimensions in which every pair has at least 8 telling units is looked at
    (of its first 256 units); a pair shares a start when more than half of them match their own index.

    Args:
        vectors: n float32 vectors of shape (P,), or an (n, P) matrix.
        layout: Where the arrays lie; weights have the units first, as PyTorch has them.
        names: What to call the models in the evidence.

    Raises:
        MergeError: See :func:`fedloom.aggregate.cohort`.
    """
    models = cohort(vectors, names=names, layout=layout)
    if models.n == 1:
        return Verdict(True, 1.0, "one model: there is nothing to compare", groups=((0,),))
    indices = list(combinations(range(models.n), 2))
    duplicates = tuple((i, j) for i, j in indices if _equal(models.rows[i], models.rows[j]))
    twins = ", ".join(f"{models.name(i)} = {models.name(j)}" for i, j in duplicates)
    twins = f"; identical models: {twins}" if twins else ""
    found = _compare(models.rows, layout)
    if found is None:
        if len(duplicates) == len(indices):
            everyone = tuple(range(models.n))
            return Verdict(True, 1.0, f"all models are identical{twins}", groups=(everyone,), duplicates=duplicates)
        evidence = f"no layer has {LEAST_UNITS} units that tell the models apart: a shared start cannot be seen{twins}"
        return Verdict(None, math.nan, evidence, duplicates=duplicates)
    array, units, pairs = found
    groups = _groups(models.n, [p for p in pairs if p.share > THRESHOLD])
    weakest = min(pairs, key=lambda p: p.share)
    start = "the models share a start"
    if len(groups) > 1:
        parts = " | ".join(", ".join(models.name(i) for i in group) for group in groups)
        start = f"the models come from {len(groups)} different starts ({parts})"
    evidence = (
        f"{start}: {100 * weakest.share:.0f} % of the {units} units of '{array}' match their own index in "
        f"{models.name(weakest.first)} and {models.name(weakest.second)} ({100 * chance(units):.0f} % would by chance){twins}"
    )
    return Verdict(len(groups) == 1, weakest.share, evidence, array, chance(units), pairs, groups, duplicates)


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a[:1024], b[:1024]) and torch.equal(a, b)


def _compare(rows: Sequence[Tensor], layout: Layout) -> tuple[str, int, tuple[Pair, ...]] | None:
    """Compare all pairs in the first array that tells; return its name, its units and the pairs."""
    for k, (name, where, shape) in enumerate(layout.slices()):
        if k >= layout.n_trainable:
            break
        if len(shape) < 2 or shape[0] < LEAST_UNITS:
            continue
        layers = [_directions(row[where].reshape(shape[0], -1)[:_MOST_UNITS]) for row in rows]
        counts = _all_matches(layers)
        if min(counted for _, counted in counts.values()) >= LEAST_UNITS:
            return name, len(layers[0]), tuple(Pair(i, j, m / n) for (i, j), (m, n) in counts.items())
    return None


def _all_matches(layers: list[Matrix]) -> dict[tuple[int, int], tuple[int, int]]:
    alive = [_alive(layer) for layer in layers]
    counts = {}
    for i in range(len(layers) - 1):
        # One large product per model is much faster than one small product per pair.
        cosines = np.split(layers[i] @ np.concatenate(layers[i + 1 :]).T, len(layers) - 1 - i, axis=1)
        for j, block in enumerate(cosines, start=i + 1):
            counts[i, j] = _matches(block, alive[i] & alive[j])
    return counts


def _directions(layer: Tensor) -> Matrix:
    """Return the units' weights as rows of length 1, float64 (units, inputs); a dead unit's row is zero."""
    rows = layer.detach().reshape(len(layer), -1).cpu().numpy().astype(np.float64)
    norms = np.sqrt(np.einsum("ui,ui->u", rows, rows))[:, None]
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0))


def _alive(directions: Matrix) -> NDArray[np.bool_]:
    return np.asarray(directions.any(axis=1))


def _matches(cosines: Matrix, alive: NDArray[np.bool_]) -> tuple[int, int]:
    """Return how many units match their own index, and how many tell anything at all."""
    if alive.sum() < 2:
        return 0, 0
    cosines = cosines[np.ix_(alive, alive)]
    best = np.partition(cosines, -2, axis=1)[:, -2:]
    telling = best[:, 1] - best[:, 0] > _TIE
    matched = telling & (cosines.argmax(axis=1) == np.arange(len(cosines)))
    return int(matched.sum()), int(telling.sum())


def _groups(n: int, links: Sequence[Pair]) -> tuple[tuple[int, ...], ...]:
    """Return the connected groups of n models, each in ascending order."""
    group = list(range(n))
    for pair in links:
        keep, drop = sorted((group[pair.first], group[pair.second]))
        group = [keep if g == drop else g for g in group]
    return tuple(tuple(i for i in range(n) if group[i] == g) for g in sorted(set(group)))
