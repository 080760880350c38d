"""The numbers of hidden units: which of them are one, and on which axes of which arrays they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["FIXED", "Event", "Numbers", "Place", "slim"]

FIXED = 0
"""The number of what never moves: inputs, outputs, positions in space."""

Role = Literal["made", "scaled", "passed", "read", "kept"]
"""What an array does with a unit: makes it, scales it anew (a normalisation's weights), passes it on (a depthwise kernel),
reads it, or none of these (statistics, slopes)."""


@dataclass(frozen=True, eq=False)
class Place:
    """One axis of one array, and the unit at each of its positions.

    Attributes:
        array: The array's name in the layout.
        axis: The axis.
        units: int64 (n,): the numbers of the units.
        layer: The layer's path.
        step: The index of the first step that uses it.
        rows: The part of axis 0 that this holds for, or None for all.
        role: What the array does with the units.
    """

    array: str
    axis: int
    units: Tensor
    layer: str
    step: int
    rows: tuple[int, int] | None = None
    role: Role = "kept"

    @property
    def makes(self) -> bool:
        """Whether the step makes these units, rather than reading or rescaling them."""
        return self.role == "made"


@dataclass(frozen=True)
class Event:
    """A step uses a place.

    Attributes:
        place: The index of the place.
        step: The index of the step.
        block: Which of how many equal parts of the step's channels stand there.
    """

    place: int
    step: int
    block: tuple[int, int] = (0, 1)


@dataclass(eq=False)
class Numbers:
    """The numbering of a model.

    Attributes:
        places: All axes that units stand on.
        events: Which step uses which place.
        made: Per value that a layer with weights made: the units of its channels.
        parents: The tree of units that were found to be one, as union-find keeps it.
    """

    places: list[Place] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    made: dict[int, Tensor] = field(default_factory=dict)
    parents: list[int] = field(default_factory=lambda: [FIXED])
    _table: Tensor | None = None

    def fresh(self, count: int) -> Tensor:
        """Make new units."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        self._table = None
        return torch.arange(first, first + count)

    def root(self, unit: int) -> int:
        """Return the number that stands for a unit and all that are one with it."""
        while self.parents[unit] != unit:
            self.parents[unit] = self.parents[self.parents[unit]]
            unit = self.parents[unit]
        return unit

    def roots(self, units: Tensor) -> Tensor:
        """Return ``root`` of every element."""
        if self._table is None:
            self._table = torch.tensor([self.root(u) for u in range(len(self.parents))])
        return self._table[units]

    def join(self, a: Tensor, b: Tensor) -> None:
        """Make the units of ``a`` and ``b``, element by element, one."""
        a, b = slim(a, b.expand_as(a))
        keys = np.unique((a * len(self.parents) + b).numpy()).tolist()
        for x, y in (divmod(key, len(self.parents)) for key in keys):
            low, high = sorted((self.root(x), self.root(y)))
            self.parents[high] = low
        self._table = None

    def fix(self, units: Tensor) -> None:
        """Let units stay where they are."""
        self.join(units, torch.zeros_like(units))

    def varies(self, units: Tensor, axis: int) -> bool:
        """Whether the units differ along an axis."""
        (thin,) = slim(units)
        lines = self.roots(thin)
        return bool((lines != lines.narrow(axis, 0, 1)).any())

    def level(self, units: Tensor, axis: int) -> None:
        """Make the units that stand one after the other along an axis one."""
        self.join(units, units.narrow(axis, 0, 1))


def slim(*tensors: Tensor) -> list[Tensor]:
    """Cut axes along which all tensors, of one shape, repeat the same memory down to one element."""
    for axis in range(tensors[0].dim()):
        if all(t.stride(axis) == 0 for t in tensors):
            tensors = tuple(t.narrow(axis, 0, 1) for t in tensors)
    return list(tensors)
