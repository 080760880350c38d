"""Layout: the names, shapes and kinds of a model's arrays inside one flat float32 vector.

Inside fedloom a model is one contiguous float32 vector of length P. Trainable parameters come first, then
floating-point state (BatchNorm statistics, frozen parameters), so ``vector[:layout.trainable]`` is what is optimised,
clipped and noised. Integer buffers never enter the vector.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fedloom.errors import ArchitectureError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Layout:
    """Where each named array lives in the flat vector.

    Attributes:
        names: The arrays' names, trainable ones first.
        shapes: Their shapes, in the same order.
        n_trainable: How many of the arrays are trainable.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    n_trainable: int

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """Read the layout of a PyTorch module; shared (tied) parameters count once."""
        rows = [(name, tuple(p.shape), p.requires_grad) for name, p in _arrays(module)]
        ordered = [r for r in rows if r[2]] + [r for r in rows if not r[2]]
        return cls(tuple(r[0] for r in ordered), tuple(r[1] for r in ordered), sum(r[2] for r in rows))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of elements of each array."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """P, the length of the vector."""
        return sum(self.sizes)

    @cached_property
    def trainable(self) -> int:
        """The length of the trainable head of the vector."""
        return sum(self.sizes[: self.n_trainable])

    @cached_property
    def digest(self) -> str:
        """A hash of names, shapes and kinds: two models are mergeable when theirs are equal."""
        rows = [list(self.names), [list(s) for s in self.shapes], self.n_trainable]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def slices(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """Yield ``(name, slice of the vector, shape)`` of each array, in the vector's order."""
        start = 0
        for name, shape, size in zip(self.names, self.shapes, self.sizes, strict=True):
            yield name, slice(start, start + size), shape
            start += size

    def pack(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Copy named arrays into one vector.

        Args:
            arrays: The arrays by name; others than the layout's are ignored.

        Returns:
            A float32 tensor of shape (P,), on the device of the first array.

        Raises:
            ArchitectureError: An array is missing or has another shape; the message names it.

        Example:
            >>> import torch
            >>> layout = Layout(("w", "b"), ((2, 2), (2,)), 2)
            >>> layout.pack({"w": torch.eye(2), "b": torch.zeros(2)}).tolist()
            [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
        """
        import torch

        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in arrays:
                raise ArchitectureError(f"array '{name}' of shape {shape} is missing", array=name, expected=shape)
            if tuple(arrays[name].shape) != shape:
                found = tuple(arrays[name].shape)
                message = f"array '{name}' has shape {found} where {shape} is expected"
                raise ArchitectureError(message, array=name, expected=shape, found=found)
        device = arrays[self.names[0]].device if self.names else None
        vector = torch.empty(self.size, dtype=torch.float32, device=device)
        for name, where, _ in self.slices():
            vector[where] = arrays[name].detach().reshape(-1)
        return vector

    def unpack(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the named arrays as views into ``vector`` of shape (P,): no copy is made."""
        self.check(vector)
        return {name: vector[where].view(shape) for name, where, shape in self.slices()}

    def check(self, vector: torch.Tensor) -> None:
        """Raise ArchitectureError unless ``vector`` has the shape (P,)."""
        if tuple(vector.shape) != (self.size,):
            raise ArchitectureError(
                f"a vector of shape {tuple(vector.shape)} does not fit a model of {self.size} numbers",
                expected=(self.size,),
                found=tuple(vector.shape),
            )

    def read(self, module: nn.Module) -> torch.Tensor:
        """Copy the module's arrays into a new vector of shape (P,)."""
        return self.pack(dict(_arrays(module)))

    def write(self, module: nn.Module, vector: torch.Tensor) -> None:
        """Copy ``vector`` of shape (P,) into the module's arrays, in place."""
        import torch

        views = self.unpack(vector)
        with torch.no_grad():
            for name, array in _arrays(module):
                array.copy_(views[name])

    def lend(self, module: nn.Module, vector: torch.Tensor) -> None:
        """Make the module's arrays views of ``vector``, of shape (P,): no copy is made."""
        views = self.unpack(vector)
        for name, array in _arrays(module):
            array.data = views[name]

    def difference(self, other: Layout) -> str | None:
        """Name the first array that differs from ``other``, with both shapes; None when the layouts are equal.

        Example:
            >>> Layout(("w",), ((2, 3),), 1).difference(Layout(("w",), ((2, 4),), 1))
            "array 'w' has shape (2, 3) against (2, 4)"
        """
        mine = list(zip(self.names, self.shapes, strict=True))
        theirs = list(zip(other.names, other.shapes, strict=True))
        for i in range(max(len(mine), len(theirs))):
            if i >= len(theirs):
                return f"array '{mine[i][0]}' of shape {mine[i][1]} has no counterpart"
            if i >= len(mine):
                return f"array '{theirs[i][0]}' of shape {theirs[i][1]} has no counterpart"
            if mine[i][0] != theirs[i][0]:
                return f"array '{mine[i][0]}' {mine[i][1]} stands against '{theirs[i][0]}' {theirs[i][1]}"
            if mine[i][1] != theirs[i][1]:
                return f"array '{mine[i][0]}' has shape {mine[i][1]} against {theirs[i][1]}"
        if self.n_trainable != other.n_trainable:
            i = min(self.n_trainable, other.n_trainable)
            return f"array '{self.names[i]}' is trainable in one model and frozen in the other"
        return None


def _arrays(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the module's parameters and floating-point buffers by name, each once."""
    yield from module.named_parameters()
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            yield name, buffer
