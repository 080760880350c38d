"""Label orders: does one member call class 3 what the others call class 5? Seen without labels, and healed.

Two ways to see it. From answers: a member's outputs are assigned to the classes that the others together name for the same
inputs. From weights alone, once hidden units are aligned: the last layer's rows are assigned to the mean of the others'. The
cure is exact: the last layer's rows change places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedloom.align.checkup.agreement import Answers, agreement, answers, core, friends, together, usual
from fedloom.align.matching import assign
from fedloom.align.symmetry.graph import Group, Symmetry
from fedloom.errors import ModelError
from fedloom.models.model import Model

CLEAR = 0.4
"""Classes have changed places when their outputs fit so much better in the other order, as a share of how well the
others' outputs fit theirs."""

FITTING = 0.6
"""And when they fit so well in the other order, as the same share."""

_ENOUGH = 0.7  # of the usual agreement, which a member has to reach in its new order


def label_orders(models: Sequence[Model], x: Tensor) -> list[Tensor]:
    """Find each model's order of the classes from what they say to unlabelled or made-up inputs.

    Args:
        models: At least three; of fewer nobody can tell who is right.
        x: Inputs, float32 (n, *input_shape), in the models' scale.

    Returns:
        Per model int64 (C,): the output of the model that stands for each class of the majority.
    """
    return orders([answers(model, x) for model in models])


def orders(found: Sequence[Answers]) -> list[Tensor]:
    """Do what :func:`label_orders` does, given what the models say."""
    same = torch.arange(found[0].probabilities.shape[1]) if found else torch.arange(0)
    alike = core(found, _alike) if len(found) > 2 else ()
    others = [found[j] for j in alike]
    return [order_of(one, others) if others and i not in alike else same.clone() for i, one in enumerate(found)]


def _alike(a: Answers, b: Answers) -> bool:
    """Whether two models that agree have the same order: no other one fits clearly better."""
    fits = _fits(a.probabilities, b.probabilities)
    order = assign(fits.T)
    gain = fits[order, torch.arange(len(order))].sum() - fits.trace()
    return bool(gain < CLEAR / 2) and friends(a, b)


def order_of(own: Answers, others: Sequence[Answers]) -> Tensor:
    """Return one model's order beside that of others who agree, int64 (C,)."""
    reference = together(others)
    fits = _fits(own.probabilities, reference)
    same = torch.arange(len(fits))
    likely = assign(fits.T)
    if torch.equal(likely, same):
        return same
    order = _clear(likely, fits, _typical(others))
    before, after = (agreement(own.probabilities[:, o], reference).kappa for o in (same, order))
    return order if after > before and after >= _ENOUGH * usual(others) else same


def _fits(a: Tensor, b: Tensor) -> Tensor:
    """Return how well each output of ``a`` fits each class of ``b``, (C, C) in 0-1: shared probability, normalised."""
    joint = a.double().T @ b.double()
    sizes = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (joint / sizes.sqrt().clamp_min(1e-9)).float()


def _typical(others: Sequence[Answers]) -> Tensor:
    """Return how well the others' outputs fit their own class, the median of them, (C,)."""
    if len(others) == 1:
        return _fits(others[0].probabilities, others[0].probabilities).diagonal()
    rest = [[other for other in others if other is not one] for one in others]
    pairs = zip(others, rest, strict=True)
    return torch.stack([_fits(one.probabilities, together(r)).diagonal() for one, r in pairs]).median(0).values


def _clear(order: Tensor, fits: Tensor, typical: Tensor) -> Tensor:
    """Keep the exchanges of a permutation, cycle by cycle, that are clear."""
    kept, classes = torch.arange(len(order)), torch.arange(len(order))
    new, present = fits[order, classes], fits.diagonal()
    for cycle in _cycles(order):
        there, here, usually = (float(v[cycle].sum()) for v in (new, present, typical))
        if there - here >= CLEAR * usually and there >= FITTING * usually:
            kept[cycle] = order[cycle]
    return kept


def _cycles(order: Tensor) -> list[list[int]]:
    """Return the cycles of a permutation, without those of length 1."""
    found, seen = [], set()
    for start in range(len(order)):
        cycle, at = [], start
        while at not in seen:
            seen.add(at)
            cycle.append(at)
            at = int(order[at])
        if len(cycle) > 1:
            found.append(cycle)
    return found


def orders_by_weights(symmetry: Symmetry, rows: Sequence[Tensor]) -> list[Tensor]:
    """Find each model's order of the classes from the weights of the last layer; no inputs are needed.

    Args:
        symmetry: Of all of them.
        rows: At least three vectors (P,) whose hidden units are aligned, without the help of the last layer's weights.

    Returns:
        Per model int64 (C,): the output that stands for each class of the others. The order that is there is kept
        unless another one fits twice as well.
    """
    group = symmetry.outputs
    if group is None or len(rows) < 3:
        return [torch.arange(group.size if group else 0) for _ in rows]
    lasts = torch.stack([_last(symmetry, group, row) for row in rows])
    found = []
    for last in lasts:
        others = (lasts.sum(0) - last) / (len(rows) - 1)
        likeness = torch.nn.functional.cosine_similarity(others[:, None], last[None], dim=2)
        order = assign(likeness)
        classes = torch.arange(len(order))
        moved = order != classes
        better = likeness[classes, order][moved].sum() > 2 * likeness.diagonal()[moved].sum().clamp_min(0.0)
        found.append(order if bool(moved.any()) and bool(better) else classes)
    return found


def _last(symmetry: Symmetry, group: Group, row: Tensor) -> Tensor:
    """Return a model's outputs as centred rows, (C, numbers); a number that all classes share counts nothing."""
    views = symmetry.layout.unpack(row)
    matrix = torch.cat([use.of(views[use.array]) for use in group.uses], 1)
    return matrix - matrix.mean(0)


def named_order(names: Sequence[str], wanted: Sequence[str]) -> Tensor | None:
    """Return where each wanted class stands among a model's own, by their names; None when they are not the same.

    Example:
        >>> named_order(["dog", "cat"], ["cat", "dog"])
        tensor([1, 0])
    """
    if len(set(names)) < len(names) or sorted(names) != sorted(wanted):
        return None
    return torch.tensor([list(names).index(name) for name in wanted], dtype=torch.int64)


def outputs(symmetry: Symmetry) -> Group:
    """Return where the classes stand in the last layer.

    Raises:
        ModelError: The last layer is not one whose rows are the classes.
    """
    if symmetry.outputs is None:
        raise ModelError(
            "the classes cannot be put in another order: the last layer is not one whose rows are the classes"
        )
    return symmetry.outputs


def reorder(symmetry: Symmetry, vector: Tensor, order: Tensor) -> Tensor:
    """Let the output ``order[c]`` take the place of class c: returns a new vector (P,).

    Raises:
        ModelError: See :func:`outputs`.
    """
    made = vector.clone()
    views = symmetry.layout.unpack(made)
    for use in outputs(symmetry).uses:
        use.permute(views[use.array], order)
    return made
