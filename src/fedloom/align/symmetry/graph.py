"""Permutation symmetry: which axes of which arrays move together when a model's hidden units change places.

Every element of every value that flows through the model carries the number of the hidden unit that it belongs to.
Layers that only move elements (Flatten, Reshape, Concatenate) are run on these numbers themselves; layers with weights
tie the numbers to the axes of their arrays; merging layers (residual additions) and weights that are used twice make
two units one. What is left are units that always move together; those that stand in the same places of the same arrays
can be exchanged, and form a group (R. Hecht-Nielsen, "On the algebraic structure of feedforward network weight
spaces", 1990; Ainsworth et al., "Git Re-Basin", 2022, where such specifications are written by hand).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedloom.align.symmetry.check import Check
from fedloom.align.symmetry.factors import powers
from fedloom.align.symmetry.rules import number
from fedloom.align.symmetry.trace import Trace, trace
from fedloom.align.symmetry.units import FIXED, Numbers, Place
from fedloom.errors import ModelError
from fedloom.layout import Layout
from fedloom.models.model import Model

__all__ = ["Group", "Symmetry", "Use", "derive"]


@dataclass(frozen=True, eq=False)
class Use:
    """Where a group's units stand along one axis of one array.

    Attributes:
        array: The array's name in the layout.
        axis: The axis.
        positions: int64 (units, r): unit u stands at ``positions[u]``; r > 1 where it owns a block, as a channel
            does after Flatten.
        rows: The part of axis 0 that this holds for, as (first, last + 1): a grouped convolution's block; None for all.
        power: What becomes of it when the unit's values are multiplied by a positive factor: 1 when it makes the unit
            and is multiplied too, -1 when it reads the unit and is divided, 0 when it stays.
    """

    array: str
    axis: int
    positions: Tensor
    rows: tuple[int, int] | None = None
    power: int = 0

    def of(self, array: Tensor) -> Tensor:
        """Return what belongs to each unit, as a matrix (units, r * rest)."""
        block = array if self.rows is None else array[self.rows[0] : self.rows[1]]
        picked = block.movedim(self.axis, 0)[self.positions.to(array.device)]
        return picked.reshape(len(self.positions), -1)

    def permute(self, array: Tensor, order: Tensor) -> None:
        """Let the unit ``order[u]`` take the place of unit u, in place."""
        block = array if self.rows is None else array[self.rows[0] : self.rows[1]]
        index = torch.arange(block.shape[self.axis])
        index[self.positions.flatten()] = self.positions[order].flatten()
        block.copy_(block.index_select(self.axis, index.to(array.device)))

    def scale(self, array: Tensor, factors: Tensor) -> None:
        """Multiply what belongs to unit u by ``factors[u]``, float (units,), in place."""
        block = array if self.rows is None else array[self.rows[0] : self.rows[1]]
        full = torch.ones(block.shape[self.axis], dtype=array.dtype)
        full[self.positions.flatten()] = factors.to(full).repeat_interleave(self.positions.shape[1])
        block.mul_(full.to(array.device).reshape([-1 if a == self.axis else 1 for a in range(block.dim())]))


@dataclass(frozen=True, eq=False)
class Group:
    """Hidden units that can be exchanged.

    Attributes:
        name: The layers that make them, for messages.
        size: How many there are.
        uses: Where they stand.
        taps: The values in which they stand right after they are made: (number of the value, int64 (units, r) channels).
        homogeneous: Whether each unit's weights can be rescaled by a positive factor: only operations that let it pass
            (ReLU, pooling, adding up) stand between what makes the unit's values and what reads them.
    """

    name: str
    size: int
    uses: tuple[Use, ...]
    taps: tuple[tuple[int, Tensor], ...] = ()
    homogeneous: bool = False


@dataclass(frozen=True, eq=False)
class Symmetry:
    """A model's groups of exchangeable units.

    Attributes:
        groups: The groups of at least two units.
        layout: Of the model.
        trace: How the model runs, step by step.
        outputs: Where the classes stand in the last layer's arrays; None when they cannot be told apart from others.
    """

    groups: tuple[Group, ...]
    layout: Layout
    trace: Trace
    outputs: Group | None = None

    def identity(self) -> list[Tensor]:
        """Return the permutations that change nothing, one int64 (units,) per group."""
        return [torch.arange(group.size) for group in self.groups]

    def random(self, generator: torch.Generator) -> list[Tensor]:
        """Draw a permutation of each group."""
        return [torch.randperm(group.size, generator=generator) for group in self.groups]

    def apply(self, vector: Tensor, orders: Sequence[Tensor]) -> Tensor:
        """Permute a model's units: the unit ``orders[g][u]`` of group g takes the place of unit u.

        Args:
            vector: float32 (P,).
            orders: One int64 (units,) per group.

        Returns:
            The vector (P,) of a model that computes the same function.
        """
        made = vector.clone()
        views = self.layout.unpack(made)
        for group, order in zip(self.groups, orders, strict=True):
            if not torch.equal(order, torch.arange(group.size)):
                for use in group.uses:
                    use.permute(views[use.array], order)
        return made

    def rescale(self, vector: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """Multiply the values of units by positive factors, and divide the weights that read them.

        Args:
            vector: float32 (P,).
            factors: Per group float (units,), > 0; those of groups that are not homogeneous are not looked at.

        Returns:
            The vector (P,) of a model that computes the same function.
        """
        made = vector.clone()
        views = self.layout.unpack(made)
        for group, own in zip(self.groups, factors, strict=True):
            for use in group.uses if group.homogeneous else ():
                if use.power:
                    use.scale(views[use.array], own if use.power > 0 else 1.0 / own)
        return made


def derive(model: Model) -> Symmetry:
    """Work out which hidden units of a model can be exchanged.

    The result is tried out: units are exchanged at random in a model with random weights, whose outputs must stay.

    Raises:
        ModelError: A layer whose symmetry is not known; the message names it.

    Example:
        >>> from fedloom.models import io, zoo
        >>> [(group.name, group.size) for group in derive(io.from_config(zoo.config("2nn", (28, 28), 10))).groups]
        [('dense', 200), ('dense_1', 200)]
    """
    traced = trace(model)
    numbers = number(traced)
    groups = _groups(numbers, powers(traced, numbers))
    symmetry = Symmetry(tuple(groups), model.layout, traced, _outputs(traced, numbers))
    _try_out(model, symmetry)
    return symmetry


def _groups(numbers: Numbers, scaling: Sequence[Tensor]) -> list[Group]:
    """Collect the units that stand in the same places of the same arrays, in the same pattern."""
    standing: dict[int, list[tuple[int, Tensor]]] = {}
    for at, place in enumerate(numbers.places):
        for unit, found in _positions(numbers, place.units).items():
            standing.setdefault(unit, []).append((at, found))
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for unit, owned in standing.items():
        alike.setdefault((tuple(at for at, _ in owned), *_pattern(numbers, owned)), []).append(unit)
    values = {value: _positions(numbers, channels) for value, channels in numbers.made.items()}
    groups = []
    for (places, *_), units in alike.items():
        if len(units) < 2:
            continue
        uses, even = [], True
        for k, at in enumerate(places):
            place, positions = numbers.places[at], torch.stack([standing[unit][k][1] for unit in units])
            factors = scaling[at][positions]
            even = even and bool((factors == factors[0, 0]).all())
            uses.append(Use(place.array, place.axis, positions, place.rows, int(factors[0, 0])))
        homogeneous = even and any(use.power > 0 for use in uses)
        name, taps = _name([numbers.places[at] for at in places]), _taps(values, units)
        groups.append(Group(name, len(units), tuple(uses), taps, homogeneous))
    return groups


def _positions(numbers: Numbers, units: Tensor) -> dict[int, Tensor]:
    """Return where each unit stands, those that are fixed left out."""
    roots = numbers.roots(units).numpy()
    distinct, first = np.unique(np.sort(roots), return_index=True)
    parts = np.split(roots.argsort(kind="stable"), first[1:])
    return {int(unit): torch.from_numpy(found) for unit, found in zip(distinct, parts, strict=True) if unit != FIXED}


def _pattern(numbers: Numbers, places: Sequence[tuple[int, Tensor]]) -> tuple[tuple[int, ...], ...]:
    """Tell the order in which the parts of a unit come, place by place.

    A unit of several parts (a block, a sum) can take another's place only when its parts stand in the same order
    wherever they stand; the parts are numbered as they come.
    """
    order: dict[int, int] = {}
    pattern = []
    for at, found in places:
        parts = numbers.places[at].units[found].tolist()
        pattern.append(tuple(order.setdefault(part, len(order)) for part in parts))
    return tuple(pattern)


def _name(places: Sequence[Place]) -> str:
    """Name a group after the layers that make its units."""
    makers = [place.layer for place in places if place.makes]
    return " + ".join(dict.fromkeys(makers or [places[0].layer]))


def _taps(values: Mapping[int, dict[int, Tensor]], units: Sequence[int]) -> tuple[tuple[int, Tensor], ...]:
    """Return the values that were made of these units, and where in their channels the units stand."""
    taps = []
    for value, standing in values.items():
        found = [standing[unit] for unit in units if unit in standing]
        if len(found) == len(units) and len({len(f) for f in found}) == 1:
            taps.append((value, torch.stack(found)))
    return tuple(taps)


def _outputs(traced: Trace, numbers: Numbers) -> Group | None:
    """Return where the classes stand in the arrays that make the logits."""
    last = traced.steps[-1] if traced.steps else None
    if last is None or last.op != "Dense":
        return None
    places = [p for p in numbers.places if p.step == len(traced.steps) - 1 and p.makes]
    if any(p.array == q.array for p in places for q in numbers.places if q.step != p.step):
        return None
    size = len(places[0].units) if places else 0
    every = torch.arange(size).unsqueeze(1)
    return Group("the classes", size, tuple(Use(p.array, p.axis, every) for p in places)) if size > 1 else None


def _try_out(model: Model, symmetry: Symmetry) -> None:
    """Raise ModelError when a model's outputs change as its units change places."""
    if not symmetry.groups:
        return
    check = Check.of(model, symmetry.trace)
    generator = torch.Generator().manual_seed(0)
    every = [symmetry.random(generator) for _ in range(2)]
    every.append([order.roll(1) for order in symmetry.identity()])
    if all(check.same(symmetry.apply(check.vector, orders)) for orders in every):
        return
    still = symmetry.identity()
    wrong = [
        group.name
        for g, group in enumerate(symmetry.groups)
        for orders in every
        if not check.same(symmetry.apply(check.vector, [*still[:g], orders[g], *still[g + 1 :]]))
    ]
    names = ", ".join(dict.fromkeys(wrong or [group.name for group in symmetry.groups]))
    raise ModelError(
        f"the hidden units of {names} cannot be told apart as alignment needs it: what they are combined with depends "
        "on their order; members with such layers can only be averaged as they are",
        layer=names,
    )
