"""Do these models share a start? Their hidden layers tell.

Training from one start leaves unit i of every model recognisable as unit i. From different random starts the same
feature sits in another unit of each model (R. Hecht-Nielsen, "On the algebraic structure of feedforward network weight
spaces", 1990), and the best match of a unit has its own index only by chance: averaging then blends unrelated units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
number of such units is about Poisson(1) per layer, whatever its size; more than 4 of 8 come up in about 1 pair of 270.
Measured (benchmarks/shared_start.md): 0.83 and more after a shared start, 0.05 and less after different ones."""

LEAST_OF_A_LAYER = 0.25
"""No layer may have less: a new head on features that were trained before does not share its start with another one."""

MOST_LAYERS = 4
"""More hidden layers than this are not looked at."""

Matrix: TypeAlias = NDArray[np.float64]

_MOST_UNITS = 256
_TIE = 1e-6


@dataclass(frozen=True)
class Pair:
    """Two models compared.

    Attributes:
        first: The index of one model, from 0.
        second: The index of the other.
        share: The share of units whose best match has their own index, 0-1.
        lowest: The same in the layer in which it is lowest.
        array: This layer's array.
    """

    first: int
    second: int
    share: float
    lowest: float = 1.0
    array: str = ""

    @property
    def shared(self) -> bool:
        """Whether the two share a start."""
        return self.share > THRESHOLD and self.lowest > LEAST_OF_A_LAYER


@dataclass(frozen=True)
class Verdict:
    """Whether n models share a start.

    Attributes:
        shared: True, False, or None when the models give no evidence (too few units, dead or constant ones).
        share: The lowest share of all pairs, 0-1; NaN when there is none.
        evidence: The finding in one line of words.
        array: The array in which the weakest pair is weakest; empty when none tells.
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


def hidden_arrays(layout: Layout) -> tuple[str, ...]:
    """Return the names of the arrays that are compared: at most 4, from the first hidden layer to the last.

    These are trainable arrays of at least two dimensions and 8 units. The last layer is none of them, since its units
    are the classes, which have an order of their own; unless there is no other layer.

    Example:
        >>> hidden_arrays(Layout(("0.weight", "0.bias", "1.weight"), ((16, 4), (16,), (10, 16)), 3))
        ('0.weight',)
    """
    weights = [(name, shape) for name, _, shape in list(layout.slices())[: layout.n_trainable] if len(shape) >= 2]
    hidden = [name for name, shape in (weights[:-1] or weights) if shape[0] >= LEAST_UNITS]
    if len(hidden) <= MOST_LAYERS:
        return tuple(hidden)
    return tuple(hidden[round(k * (len(hidden) - 1) / (MOST_LAYERS - 1))] for k in range(MOST_LAYERS))


def shared_start(
    vectors: Sequence[Tensor],
    layout: Layout,
    names: Sequence[str] | None = None,
    arrays: Sequence[str] | None = None,
) -> Verdict:
    """Say whether n models were trained from one start.

    Looked at are the first 256 units of each array in which every pair has at least 8 telling ones. A pair shares a start
    when more than half of all these units match their own index, and more than a quarter in each array.

    Args:
        vectors: n float32 vectors of shape (P,), or an (n, P) matrix.
        layout: Where the arrays lie; weights have the units first, as PyTorch has them.
        names: What to call the models in the evidence.
        arrays: The arrays to compare; ``hidden_arrays(layout)`` when left out.

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
    found = _compare(models.rows, layout, hidden_arrays(layout) if arrays is None else arrays)
    if not found:
        if len(duplicates) == len(indices):
            everyone = tuple(range(models.n))
            return Verdict(True, 1.0, f"all models are identical{twins}", groups=(everyone,), duplicates=duplicates)
        evidence = f"no layer has {LEAST_UNITS} units that tell the models apart: a shared start cannot be seen{twins}"
        return Verdict(None, math.nan, evidence, duplicates=duplicates)
    pairs = tuple(_pair(found, i, j) for i, j in indices)
    groups = _groups(models.n, [p for p in pairs if p.shared])
    weakest = min(pairs, key=lambda p: (p.shared, p.share))
    units, layers = sum(layer.units for layer in found), len(found)
    where = f"'{found[0].name}'" if layers == 1 else f"{layers} layers"
    named = f"{models.name(weakest.first)} and {models.name(weakest.second)}"
    evidence = (
        f"{_start(models.name, groups)}: {100 * weakest.share:.0f} % of the {units} units of {where} match their own index "
        f"in {named} ({100 * layers / units:.0f} % would by chance)"
    )
    if weakest.share > THRESHOLD and not weakest.shared:
        evidence += f", but only {100 * weakest.lowest:.0f} % of those of '{weakest.array}'"
    return Verdict(
        len(groups) == 1,
        weakest.share,
        evidence + twins,
        weakest.array,
        layers / units,
        pairs,
        groups,
        duplicates,
    )


def _start(name: Callable[[int], str], groups: tuple[tuple[int, ...], ...]) -> str:
    if len(groups) == 1:
        return "the models share a start"
    parts = " | ".join(", ".join(name(i) for i in group) for group in groups)
    return f"the models come from {len(groups)} different starts ({parts})"


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a[:1024], b[:1024]) and torch.equal(a, b)


@dataclass(frozen=True)
class _Compared:
    """One array of all models: of each pair, how many units match their own index, and how many tell anything."""

    name: str
    units: int
    counts: dict[tuple[int, int], tuple[int, int]]


def _compare(rows: Sequence[Tensor], layout: Layout, arrays: Sequence[str]) -> list[_Compared]:
    """Compare all pairs in the arrays that tell."""
    found = []
    for name, where, shape in layout.slices():
        if name in arrays:
            layers = [_directions(row[where].reshape(shape[0], -1)[:_MOST_UNITS]) for row in rows]
            counts = _all_matches(layers)
            if min(counted for _, counted in counts.values()) >= LEAST_UNITS:
                found.append(_Compared(name, len(layers[0]), counts))
    return found


def _pair(found: Sequence[_Compared], i: int, j: int) -> Pair:
    counts = [layer.counts[i, j] for layer in found]
    shares = [matched / counted for matched, counted in counts]
    lowest = min(range(len(found)), key=shares.__getitem__)
    share = sum(matched for matched, _ in counts) / sum(counted for _, counted in counts)
    return Pair(i, j, share, shares[lowest], found[lowest].name)


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
