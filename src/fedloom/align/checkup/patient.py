"""Patient: one member while its team is examined, and why it may be of no use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedloom.align.checkup.agreement import Answers, agreement, answers, together, usual
from fedloom.align.checkup.dead import Dead
from fedloom.errors import ModelError
from fedloom.models.model import Model

CHANCE = 0.25
"""A member is at chance level when it reaches less than this share of the agreement that its answers allow."""

CONSTANT = 0.99
"""A member whose answer is the same for this share of the inputs has no opinion."""

DEAD = 1e-6
"""A member whose probabilities vary less than this from input to input does not look at them."""

Level = Literal["good", "info", "warning", "problem"]


@dataclass(frozen=True)
class Remark:
    """Something that was noticed, in words.

    Attributes:
        level: ``"good"``, ``"info"``, ``"warning"`` or ``"problem"``.
        title: In a few words.
        text: What was seen, and what was done about it.
    """

    level: Level
    title: str
    text: str


@dataclass(eq=False)
class Patient:
    """One member while it is examined.

    Attributes:
        name: What to call it.
        model: Its weights change while it is healed.
        vector: float32 (P,), as it is by now.
        said: What it answers by now; None before it was asked.
        factor: What its first layer was multiplied by.
        order: int64 (C,): which of its own outputs stands for each class by now.
        out: Whether it is left out.
        dead: Its units that never fire.
    """

    name: str
    model: Model
    vector: Tensor
    said: Answers | None = None
    factor: float = 1.0
    order: Tensor = field(default_factory=lambda: torch.arange(0))
    out: bool = False
    dead: tuple[Dead, ...] = ()

    @property
    def answers(self) -> Answers:
        """What it answers by now."""
        if self.said is None:
            raise ModelError(f"{self.name} was not asked")
        return self.said

    def ask(self, x: Tensor) -> None:
        """Ask it again."""
        self.said = answers(self.model, x)

    def becomes(self, vector: Tensor, x: Tensor) -> None:
        """Take over healed weights."""
        self.vector = vector
        self.model.load(vector)
        self.ask(x)


def why_useless(patient: Patient, x: Tensor) -> str:
    """Return why a member cannot be computed with, or an empty text; a member that can has been asked then."""
    cure = "Train it again, with a lower learning rate."
    for array, where, _ in patient.model.layout.slices():
        bad = int((~patient.vector[where].isfinite()).sum())
        if bad:
            return f"Its array '{array}' holds {bad} numbers that are NaN or infinite: its training came apart. {cure}"
    patient.ask(x)
    if not patient.answers.finite:
        return f"It answers NaN, though its numbers are finite. {cure}"
    spread = patient.answers.probabilities.std(0).max() if len(x) > 1 else 1.0
    return f"It gives the same probabilities whatever the input is: it is dead. {cure}" if spread < DEAD else ""


def why_at_chance(patient: Patient, others: Sequence[Answers]) -> str:
    """Return why a member is of no use beside others that agree, or an empty text."""
    if len(others) < 2:
        return ""
    reference = together(others)
    agreed = agreement(patient.answers.probabilities, reference)
    counts = torch.bincount(patient.answers.classes)
    cure = "Train it again, and look at its data and its learning rate."
    theirs = torch.bincount(reference.argmax(1))
    if int(counts.max()) >= CONSTANT * int(counts.sum()) and int(theirs.max()) < 0.9 * int(theirs.sum()):
        return f"It answers class {int(counts.argmax())} to everything, whatever the input. {cure}"
    if agreed.reached < CHANCE and agreed.kappa < 0.3 * usual(others):
        return (
            f"It agrees with the others on {agreed.share:.0%} of the inputs, no more than by chance, while they agree with "
            f"each other: it learned nothing, or something else. {cure}"
        )
    return ""
