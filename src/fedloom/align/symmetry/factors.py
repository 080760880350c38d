"""Rescaling: where a hidden unit's values can be multiplied by a positive factor and be divided by it again.

ReLU and its kin, pooling, adding up and moving around all let a positive factor pass, so that the weights that make a
unit may be multiplied by it when those that read the unit are divided by it (B. Neyshabur et al., "Path-SGD", 2015).
A BatchNorm takes no factor in, its statistics being fixed, but makes a new one: its own weights are multiplied. What
lets no factor pass (ELU, softmax, LayerNorm) leaves the values that reach it as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedloom.align.symmetry.kinds import CONVOLUTIONS, MERGING, MOVING, SPATIAL, lets_factors_pass
from fedloom.align.symmetry.rules import spread, widened
from fedloom.align.symmetry.trace import Step, Trace, owner
from fedloom.align.symmetry.units import FIXED, Numbers

__all__ = ["powers"]

_NO = FIXED
"""The number of a factor that cannot be: the value stays as it is."""

_WEIGHTED = ("Dense", "Embedding", "SeparableConv1D", "SeparableConv2D", *CONVOLUTIONS)


def powers(traced: Trace, numbers: Numbers) -> list[Tensor]:
    """Return for every place the power, -1, 0 or 1, of its units' factors that their weights are multiplied by.

    Args:
        traced: The model.
        numbers: Its units.

    Returns:
        Per element of ``numbers.places`` int64 (n,), one power per position.
    """
    walker = _Walker(traced, numbers)
    values = {0: torch.full((1, *traced.shapes[0]), _NO)}
    for i, step in enumerate(traced.steps):
        values[step.target] = walker.follow(i, step, [values[s] for s in step.sources])
    if traced.steps:
        walker.factors.fix(values[traced.steps[-1].target])
    return walker.collect()


@dataclass(eq=False)
class _Walker:
    """Gives every value of every unit the number of its factor, as ``rules`` gives them the number of the unit.

    Attributes:
        traced: The model.
        numbers: Its units.
        factors: The factors.
        taken: Per step with weights: the factors of the channels that it takes.
        given: Per step that may make new factors: those of the channels that it gives.
    """

    traced: Trace
    numbers: Numbers
    factors: Numbers = field(default_factory=Numbers)
    taken: dict[int, Tensor] = field(default_factory=dict)
    given: dict[int, Tensor] = field(default_factory=dict)

    def follow(self, i: int, step: Step, values: list[Tensor]) -> Tensor:
        """Return the factors of a step's result, (1, *shape)."""
        first, shape = values[0], self.traced.shapes[step.target]
        if step.op in _WEIGHTED:
            last = step.op == "Dense"
            self.taken[i] = self.along(first, first.dim() - 1 if last else 1)
            return self.made(i, step, len(shape) if last or step.op == "Embedding" else 1)
        if step.op == "BatchNormalization":
            self.factors.fix(first)
            scalable = getattr(owner(step.run), "weight", None) is not None and step.target in self.numbers.made
            return self.made(i, step, 1) if scalable else torch.full_like(first, _NO)
        if step.op in MOVING:
            return step.run(*values)
        if step.op in SPATIAL:
            return spread(self.along(first, 1), shape, 1)
        if step.op in MERGING:
            return self.merged(step, values)
        if not lets_factors_pass(step):
            self.factors.fix(first)
        return first.expand(1, *shape)

    def along(self, values: Tensor, axis: int) -> Tensor:
        """Return the factors along an axis, all that stand at one position of it made one."""
        for other in range(1, values.dim()):
            if other != axis:
                self.factors.level(values, other)
        return values.movedim(axis, 0).flatten(1)[:, 0]

    def made(self, i: int, step: Step, axis: int) -> Tensor:
        """Make new factors; units that cannot move have none."""
        units = self.numbers.roots(self.numbers.made[step.target])
        self.given[i] = torch.where(units == FIXED, _NO, self.factors.fresh(len(units)))
        return spread(self.given[i], self.traced.shapes[step.target], axis)

    def merged(self, step: Step, values: list[Tensor]) -> Tensor:
        """Give what is added up the same factors; of what is multiplied, only one may have any."""
        shape = (1, *self.traced.shapes[step.target])
        wide = [v.expand(shape) for v in widened(values)]
        if step.op == "Multiply":
            carrying = [v for v in wide if bool((self.factors.roots(v) != _NO).any())]
            for v in carrying if len(carrying) > 1 else ():
                self.factors.fix(v)
            return carrying[0] if carrying else wide[0]
        for other in wide[1:]:
            self.factors.join(wide[0], other)
        return wide[0]

    def collect(self) -> list[Tensor]:
        """Work out the powers, after all uses of one array have agreed on its factors."""
        plus: dict[int, Tensor] = {}
        minus: dict[int, Tensor] = {}
        for event in self.numbers.events:
            place = self.numbers.places[event.place]
            for table, values, roles in (
                (plus, self.given, ("made", "scaled", "passed")),
                (minus, self.taken, ("read", "passed")),
            ):
                if place.role in roles:
                    part = _part(values.get(event.step), event.block, len(place.units))
                    self.factors.join(part, table.setdefault(event.place, part))
        found = []
        for k, place in enumerate(self.numbers.places):
            none = torch.full_like(place.units, _NO)
            up, down = (self.factors.roots(table.get(k, none)) != _NO for table in (plus, minus))
            found.append(up.long() - down.long())
        return found


def _part(values: Tensor | None, block: tuple[int, int], count: int) -> Tensor:
    """Return the factors at a place; a step that makes none has none."""
    if values is None:
        return torch.full((count,), _NO)
    part = values.chunk(block[1])[block[0]]
    return part.repeat_interleave(count // len(part))
