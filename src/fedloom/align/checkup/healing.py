"""Healing: members that expect another scale of inputs, or number the classes in another order, are brought into line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedloom.align.checkup import input_scale, labels
from fedloom.align.checkup.agreement import Agreement, agreement, together
from fedloom.align.checkup.patient import Patient, Remark
from fedloom.align.symmetry.graph import derive
from fedloom.errors import ModelError
from fedloom.models.model import Model


def heal_scales(well: Sequence[Patient], x: Tensor) -> list[Remark]:
    """Fold the scale of inputs into members that expect another one than the others."""
    factors = input_scale.judge([p.model for p in well], x, [p.answers for p in well])
    right = [p.answers for p, factor in zip(well, factors, strict=True) if factor == 1.0]
    pairs = zip(well, factors, strict=True)
    return [_rescale(p, factor, together(right), x) for p, factor in pairs if factor != 1.0 and right]


def _rescale(patient: Patient, factor: float, reference: Tensor, x: Tensor) -> Remark:
    before = agreement(patient.answers.probabilities, reference)
    title = f"{patient.name} expects inputs {_scaled(patient.model, factor)}"
    try:
        input_scale.fold_scale(patient.model, factor)
    except ModelError as error:
        patient.out = True
        return Remark("problem", title, f"The others do not, and it is left out: {error}.")
    patient.factor = factor
    patient.becomes(patient.model.vector(), x)
    after = agreement(patient.answers.probabilities, reference)
    cure = f"Its first layer multiplies by {_number(factor)} itself now."
    return Remark("warning", title, f"The others do not. {_agreed(before, after)} {cure}")


def _scaled(model: Model, factor: float) -> str:
    """Say which inputs a model expects that wants those of the others times ``factor``."""
    high = (model.input_high or 1.0) * factor
    if abs(high - round(high)) < 1e-6 and high >= 1:
        return f"from 0 to {round(high)}"
    return "divided by 255 twice" if model.input_high in (None, 1.0) else f"multiplied by {_number(factor)}"


def _number(factor: float) -> str:
    return f"{factor:g}" if factor >= 1 else f"1/{1 / factor:g}"


def _agreed(before: Agreement, after: Agreement) -> str:
    return f"It agrees with them on {before.share:.0%} of the inputs as it is, on {after.share:.0%} once that is put right."


def heal_orders(well: Sequence[Patient], x: Tensor, class_names: Sequence[Sequence[str]] | None = None) -> list[Remark]:
    """Put the classes of members into the others' order.

    Args:
        well: The members.
        x: Inputs, float32 (n, *input_shape).
        class_names: Per member its classes' names in its own order, or nothing.
    """
    by_name = _orders_by_name(class_names) if class_names and len(class_names) == len(well) else None
    orders = by_name or labels.orders([p.answers for p in well])
    remarks = [] if by_name else _of_two(well)
    for i, (patient, order) in enumerate(zip(well, orders, strict=True)):
        if bool((order != torch.arange(len(order))).any()):
            others = [p.answers for j, p in enumerate(well) if j != i]
            remarks.append(_reorder(patient, order, together(others), x))
    return remarks


def _reorder(patient: Patient, order: Tensor, reference: Tensor, x: Tensor) -> Remark:
    before = agreement(patient.answers.probabilities, reference)
    after = agreement(patient.answers.probabilities[:, order], reference)
    title = f"{patient.name} numbers its classes in another order"
    if after.kappa < before.kappa:
        text = f"So its class names say, but its answers contradict. {_agreed(before, after)} It is left as it is."
        return Remark("warning", title, text)
    try:
        healed = labels.reorder(derive(patient.model), patient.vector, order)
    except ModelError as error:
        patient.out = True
        return Remark("problem", title, f"It is left out: {error}.")
    patient.order = order
    patient.becomes(healed, x)
    text = f"{_moved(order)} {_agreed(before, after)} Its last layer has the others' order now."
    return Remark("warning", title, text)


def _orders_by_name(class_names: Sequence[Sequence[str]]) -> list[Tensor] | None:
    """Return the orders that the members' own class names tell; None when they do not tell all."""
    lists = [list(names) for names in class_names]
    if not all(lists):
        return None
    common = max(lists, key=lists.count)
    found = [order for names in lists if (order := labels.named_order(names, common)) is not None]
    return found if len(found) == len(lists) else None


def _of_two(well: Sequence[Patient]) -> list[Remark]:
    """Say that two members seem to have different orders: nobody can tell who is right."""
    if len(well) != 2:
        return []
    order = labels.order_of(well[1].answers, [well[0].answers])
    if bool((order == torch.arange(len(order))).all()):
        return []
    title = f"{well[0].name} and {well[1].name} seem to number their classes differently"
    text = f"{_moved(order)} Which of the two is right cannot be told, and their average will know neither order."
    return [Remark("warning", title, text.replace("It says", f"{well[1].name} says", 1))]


def _moved(order: Tensor) -> str:
    moved = [(int(o), c) for c, o in enumerate(order) if int(o) != c]
    shown = ", ".join(f"{own} for the others' {c}" for own, c in moved[:4])
    return f"It says {shown}{f', and {len(moved) - 4} more' if len(moved) > 4 else ''}."
