"""Matching: which hidden unit of one model is which of the others.

By weights (Ainsworth et al., "Git Re-Basin: Merging Models modulo Permutation Symmetries", 2022, section 3.2): units
are assigned so that the weights that go in and out agree, group by group, until nothing moves; no data are needed. By
activations (Li et al., "Convergent Learning", 2015): units are assigned that respond alike to the same inputs. Both
either to one model, the reference, or all together: each model in turn to the mean of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.align.symmetry.graph import Group, Symmetry

SWEEPS = 100
"""More passes over all models and groups than this are never needed; a pass that gains nothing is the last."""

WIDE = 8000
"""More units than this of all models together are not correlated each with each."""

Orders = list[list[Tensor]]


@dataclass(frozen=True, eq=False)
class Matching:
    """A permutation of every group of every model.

    Attributes:
        orders: Per model and group, int64 (units,): the unit of the model that takes the place of each unit.
        objective: The mean agreement of two models (or of a model and the reference): the inner product of what was
            matched, larger is better.
        sweeps: The passes it took.
    """

    orders: Orders
    objective: float
    sweeps: int = 1


def assign(likeness: Tensor) -> Tensor:
    """Return the assignment of largest total likeness.

    Args:
        likeness: float (units, units): row u says how much each unit of the other model is like unit u.

    Returns:
        int64 (units,): the unit for each row.

    Example:
        >>> assign(torch.tensor([[0.1, 0.9], [0.8, 0.7]])).tolist()
        [1, 0]
    """
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(likeness.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns)


def by_weights(
    symmetry: Symmetry,
    rows: Sequence[Tensor],
    generator: torch.Generator,
    start: Orders | None = None,
    reference: int | None = None,
    arrays: frozenset[str] | None = None,
) -> Matching:
    """Match models by their weights.

    Args:
        symmetry: Of all of them.
        rows: n vectors of shape (P,), whose inner products count.
        generator: For the order in which models and groups are visited.
        start: Where to begin; as they are when left out.
        reference: The index of the model that the others are matched to; all together when left out.
        arrays: The names of the arrays that count; the trainable ones when left out.
    """
    layout = symmetry.layout
    counted = arrays if arrays is not None else frozenset(layout.names[: layout.n_trainable])
    orders = [list(o) for o in start] if start is not None else [symmetry.identity() for _ in rows]
    placed = [symmetry.apply(row, order) for row, order in zip(rows, orders, strict=True)]
    best, value, sweeps = [list(o) for o in orders], _agreement(symmetry, placed, counted, reference), 0
    while sweeps < SWEEPS:
        sweeps += 1
        _sweep(symmetry, placed, orders, generator, counted, reference)
        now = _agreement(symmetry, placed, counted, reference)
        if now <= value:  # nothing moved; or arrays that hold a group twice, whose moves may cost more than they gain
            break
        best, value = [list(o) for o in orders], now
    return Matching(best, value, sweeps)


def _sweep(
    symmetry: Symmetry,
    placed: list[Tensor],
    orders: Orders,
    generator: torch.Generator,
    counted: frozenset[str],
    reference: int | None,
) -> None:
    """Visit every model and group once, in random order, and move what can be bettered, in place."""
    layout = symmetry.layout
    total = torch.stack(placed).sum(0) if reference is None else placed[reference]
    movable = [i for i in range(len(placed)) if i != reference]
    for i in (movable[k] for k in torch.randperm(len(movable), generator=generator).tolist()):
        others = total - placed[i] if reference is None else total
        views, goal = layout.unpack(placed[i]), layout.unpack(others)
        for g in torch.randperm(len(symmetry.groups), generator=generator).tolist():
            group = symmetry.groups[g]
            order = _step(group, views, goal, counted)
            if order is not None:
                for use in group.uses:
                    use.permute(views[use.array], order)
                orders[i][g] = orders[i][g][order]
        if reference is None:
            total = others + placed[i]


def _step(group: Group, views: dict[str, Tensor], goal: dict[str, Tensor], counted: frozenset[str]) -> Tensor | None:
    """Return the best permutation of one group, the rest held fixed; None when what is there cannot be bettered."""
    likeness = torch.zeros(group.size, group.size)
    for use in group.uses:
        if use.array in counted:
            likeness += (use.of(goal[use.array]) @ use.of(views[use.array]).T).cpu()
    order = assign(likeness)
    gain = likeness[torch.arange(group.size), order].sum() - likeness.trace()
    return order if gain > 1e-6 * likeness.abs().sum() / group.size else None


def _agreement(symmetry: Symmetry, placed: Sequence[Tensor], counted: frozenset[str], reference: int | None) -> float:
    """Return the mean inner product of two models, or of a model and the reference."""
    n, total = len(placed), torch.zeros((), dtype=torch.float64)
    for name, where, _ in symmetry.layout.slices():
        if name not in counted:
            continue
        parts = torch.stack([row[where] for row in placed]).double()
        own = parts.square().sum(1)
        if reference is None:
            total += (parts.sum(0).square().sum() - own.sum()) / max(n * (n - 1), 1)
        else:
            total += ((parts @ parts[reference]).sum() - own[reference]) / max(n - 1, 1)
    return float(total)


def by_activations(features: Sequence[Sequence[Tensor]], reference: int | None = None) -> Matching:
    """Match models by how alike their units respond.

    Args:
        features: Per group and model float32 (m, units): what every unit gives for the same inputs, standardised
            (:func:`fedloom.align.stages.standard`).
        reference: The index of the model that the others are matched to; all together when left out. Groups so wide
            that all correlations do not fit into memory are matched to the first model.
    """
    found = [_match_group(models, reference) for models in features]
    n = len(features[0]) if features else 0
    orders = [[order[i] for order, _, _ in found] for i in range(n)]
    return Matching(orders, sum(value for _, value, _ in found), max((s for _, _, s in found), default=1))


def _match_group(models: Sequence[Tensor], reference: int | None) -> tuple[list[Tensor], float, int]:
    """Match one group of all models; returns the orders, the mean correlation of matched units and the passes."""
    n, (m, units) = len(models), models[0].shape
    if reference is None and n * units > WIDE:
        reference = 0
    if reference is not None:
        likenesses = [models[reference].T @ f / m for f in models]
        orders = [torch.arange(units) if i == reference else assign(a) for i, a in enumerate(likenesses)]
        picked = [a[torch.arange(units), order] for a, order in zip(likenesses, orders, strict=True)]
        return orders, float(torch.stack(picked).mean()), 1
    columns = torch.cat(list(models), 1)
    return _together((columns.T @ columns / m).reshape(n, units, n, units))


def _together(blocks: Tensor) -> tuple[list[Tensor], float, int]:
    """Match each model to the mean of the others until nothing moves; correlations (n, units, n, units)."""
    n, units = blocks.shape[:2]
    # Begin with the model whose units find the best counterparts in the others.
    first = int(blocks.amax(3).sum((1, 2)).argmax())
    orders = [torch.arange(units) if i == first else assign(blocks[first, :, i]) for i in range(n)]
    pairs, sweeps, moved = torch.arange(units), 1, n > 2
    while moved and sweeps < SWEEPS:
        moved, sweeps = False, sweeps + 1
        for i in range(n):
            likeness = torch.stack([blocks[j, orders[j]][:, i] for j in range(n) if j != i]).sum(0)
            order = assign(likeness)
            if likeness[pairs, order].sum() > likeness[pairs, orders[i]].sum() + 1e-4:
                orders[i], moved = order, True
    values = [blocks[i, orders[i], j, orders[j]].mean() for i in range(n) for j in range(i)]
    return orders, float(torch.stack(values).mean()) if values else 1.0, sweeps


def best_of(tries: Sequence[Callable[[], Matching]]) -> Matching:
    """Run several matchings and keep the one of the largest objective."""
    return max((attempt() for attempt in tries), key=lambda matching: matching.objective)


def seconds(units: int) -> float:
    """Estimate how long one assignment takes, in seconds: 1.5 for 4,000 units on one core, growing as units^2.4."""
    return float(1.5 * (units / 4000) ** 2.4)
