"""Health: which members of a team are broken, or speak another language than the others - and what can be healed.

Real teams have a file with NaN in it, one member that learned nothing, one that was trained on inputs from 0 to 255 where
the others took 0 to 1, and one that numbers the classes in another order. All of it is seen without labels, from what the
members say to the same inputs; see :mod:`fedloom.align.checkup.input_scale` and :mod:`fedloom.align.checkup.labels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.align.checkup.agreement import core
from fedloom.align.checkup.dead import Dead, dead_units
from fedloom.align.checkup.healing import heal_orders, heal_scales
from fedloom.align.checkup.patient import Patient, Remark, why_at_chance, why_useless
from fedloom.errors import ModelError, UsageError
from fedloom.models.model import Model

__all__ = ["Examination", "Remark", "broken", "examine"]

PROBE = 500
"""Of more inputs than this the first ones are used."""

WOKEN = 200
"""Units that fire for none of so many inputs count as dead."""

DYING = 0.5
"""A layer of which more than this share of the units never fires is worth a word."""


@dataclass(frozen=True, eq=False)
class Examination:
    """What was found in a team's members, and the healed members.

    Attributes:
        findings: In words; empty for a healthy team.
        vectors: Per member float32 (P,): healed where something was healed, as it was otherwise.
        left_out: The indices of members that cannot be used.
        factors: What each member's inputs had to be multiplied by, which its first layer does now; 1 for most.
        orders: Per member int64 (C,): which of its outputs stands for each class now.
        dead: Per member, its units that never fire; nothing for members that were left out or cannot be looked into.
    """

    findings: tuple[Remark, ...]
    vectors: tuple[Tensor, ...]
    left_out: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()
    orders: tuple[Tensor, ...] = ()
    dead: tuple[tuple[Dead, ...], ...] = ()


def broken(models: Sequence[Model], x: Tensor, names: Sequence[str]) -> list[str]:
    """Say which members learned nothing, or something else than the others.

    Args:
        models: Members of one architecture.
        x: Unlabelled or made-up inputs, float32 (n, *input_shape), in their scale.
        names: What to call them.

    Returns:
        Per member why it cannot be used; empty for most. Members are judged by the others only where a majority of at
        least two agrees; NaN and infinity are always seen.
    """
    patients, x = _admit(models, names), x[:PROBE]
    reasons = [why_useless(p, x) for p in patients]
    _leave_out(patients, reasons)
    rest = _well(patients)
    found = dict(zip(map(id, rest), _at_chance(rest), strict=True))
    return [why or found[id(p)] for p, why in zip(patients, reasons, strict=True)]


def examine(
    models: Sequence[Model],
    names: Sequence[str],
    x: Tensor,
    class_names: Sequence[Sequence[str]] | None = None,
) -> Examination:
    """Look for everything that real teams have, heal what can be healed, and say so.

    Args:
        models: Members of one architecture; they are as before afterwards.
        names: What to call them.
        x: Unlabelled or made-up inputs, float32 (n, *input_shape), in the scale that the members are said to have.
        class_names: Per member the names of its classes in its order, as its sidecar has them, or nothing.

    Raises:
        UsageError: Not one name for each member.
        ModelError: The members cannot be run.
    """
    patients, x = _admit(models, names), x[:PROBE]
    own = [p.vector.clone() for p in patients]
    try:
        remarks = [*_leave_out(patients, [why_useless(p, x) for p in patients]), *heal_scales(_well(patients), x)]
        kept = [i for i, p in enumerate(patients) if not p.out]
        known = [class_names[i] for i in kept] if class_names and len(class_names) == len(patients) else None
        remarks += heal_orders([patients[i] for i in kept], x, known)
        rest = _well(patients)
        remarks += _leave_out(rest, _at_chance(rest))
        remarks += [remark for p in _well(patients) for remark in _count_dead(p, x[:WOKEN])]
    finally:
        for model, vector in zip(models, own, strict=True):
            model.load(vector)
    return Examination(
        tuple(remarks),
        tuple(p.vector for p in patients),
        tuple(i for i, p in enumerate(patients) if p.out),
        tuple(p.factor for p in patients),
        tuple(p.order for p in patients),
        tuple(p.dead for p in patients),
    )


def _admit(models: Sequence[Model], names: Sequence[str]) -> list[Patient]:
    if len(models) != len(names):
        raise UsageError(f"{len(models)} models and {len(names)} names: one name for each is needed")
    for model in models:
        model.require_runnable("looking for broken members")
    pairs = zip(models, names, strict=True)
    return [Patient(name, model, model.vector(), order=torch.arange(model.n_classes)) for model, name in pairs]


def _well(patients: Sequence[Patient]) -> list[Patient]:
    return [p for p in patients if not p.out]


def _leave_out(patients: Sequence[Patient], reasons: Sequence[str]) -> list[Remark]:
    """Leave out the members for which there is a reason."""
    for patient, why in zip(patients, reasons, strict=True):
        patient.out = patient.out or bool(why)
    pairs = zip(patients, reasons, strict=True)
    return [Remark("problem", f"{patient.name} is left out", why) for patient, why in pairs if why]


def _at_chance(patients: Sequence[Patient]) -> list[str]:
    """Return why members, which have all been asked, are of no use beside the majority; empty for most."""
    agreeing = core([p.answers for p in patients])
    others = [[patients[j].answers for j in agreeing if j != i] for i in range(len(patients))]
    return [why_at_chance(patient, rest) for patient, rest in zip(patients, others, strict=True)]


def _count_dead(patient: Patient, x: Tensor) -> list[Remark]:
    """Count a member's dead units, and say so where they are many."""
    try:
        patient.dead = dead_units(patient.model, x)
    except ModelError:
        return []
    dying = [d for d in patient.dead if d.dead > DYING * d.units]
    where = ", ".join(f"{d.dead} of {d.units} in '{d.layer}'" for d in dying)
    text = f"{where}. They do no harm, but they carry nothing into a merge either."
    return [Remark("info", f"Many units of {patient.name} never fire", text)] if dying else []
