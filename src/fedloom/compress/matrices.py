"""Every weight matrix as a product of two thin ones: ``lowrank`` with a random factor, ``powersgd`` with a fitted one.

A matrix M, turned so that it is wide (d <= other side), is read as ``B C``: a basis B (d x r) and coefficients C (r x other
side), the values that go on to the next stage. Arrays of one dimension, and those too small for it, stay as they are.
Kernels of convolutions are matrices of (outputs, all the rest).

* ``lowrank``: J. Konečný et al., "Federated Learning: Strategies for Improving Communication Efficiency", 2016, section 2:
  B is random and only its seed is sent; C is what fits best, ``C = B^T M`` for an orthonormal B. There the training itself
  stays inside the product; here the finished update is projected, which keeps r/d of its squared norm on average.
* ``powersgd``: T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
  Optimization", NeurIPS 2019, algorithm 1: ``B = orthonormal(M Q)``, ``C = B^T M``, from a random Q. The paper starts from
  the Q of the last step; a codec keeps nothing, so it starts anew and takes ``steps`` power iterations instead. B goes
  beside the values as float16, and C is fitted to the rounded B by least squares, so that rounding it costs next to
  nothing.

Both are wrong in one direction and meant for error feedback.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedloom.compress.base import Floats, Reader, Restore, Traits
from fedloom.compress.bits import energy, new_seed, words
from fedloom.compress.options import whole
from fedloom.errors import DataError, UsageError
from fedloom.layout import Layout


@dataclass(frozen=True)
class Part:
    """Where an array lies in the vector, and as what it is sent.

    Attributes:
        where: Its place in the vector.
        rows: Its first dimension.
        columns: All others together.
        rank: r; 0 when it stays as it is.
    """

    where: slice
    rows: int
    columns: int
    rank: int

    @property
    def short(self) -> int:
        """The length d of a column of the basis."""
        return min(self.rows, self.columns)

    @property
    def values(self) -> int:
        """How many numbers go on to the next stage."""
        return self.rank * max(self.rows, self.columns) if self.rank else self.rows * self.columns

    def matrix(self, x: Tensor) -> Tensor:
        """Return the array as a wide matrix: a view."""
        found = x[self.where].view(self.rows, self.columns)
        return found if self.rows <= self.columns else found.T


@dataclass(frozen=True)
class Matrices:
    """Low-rank products of the arrays of one layout.

    Attributes:
        name: ``lowrank`` or ``powersgd``.
        rank: r.
        steps: Power iterations; 0 when the basis is random.
        layout: The arrays.
    """

    name: str
    rank: int
    steps: int
    layout: Layout

    @property
    def spec(self) -> str:
        """Its name and options."""
        return f"{self.name}:{self.rank}" + (f":{self.steps}" if self.steps else "")

    def _parts(self) -> list[Part]:
        found = []
        for _, where, shape in self.layout.slices():
            rows = shape[0] if len(shape) > 1 else 1
            size = where.stop - where.start
            columns = size // rows if rows else 0
            rank = self.rank if self.rank < min(rows, columns) else 0
            found.append(Part(where, rows, columns, rank))
        return found

    def _checked(self, n: int) -> None:
        if n != self.layout.size:
            message = f"{self.spec}: a vector of {n} numbers is not one of the {self.layout.size} of its model"
            raise UsageError(message, expected=self.layout.size, found=n)

    def traits(self, n: int) -> Traits:  # noqa: ARG002 - there is one length
        """See :class:`fedloom.compress.base.Transform`."""
        stretch = (1 + 2.0**-10 * math.sqrt(self.rank)) ** 2 if self.steps else 1.0
        kept = all(part.rank == 0 for part in self._parts())
        return Traits(unbiased=kept, random=True, orthogonal=True, gain=stretch, stretch=stretch)

    def most(self, n: int) -> tuple[int, int]:  # noqa: ARG002 - there is one length
        """Return the bytes of the seed or the bases, and the number of values: always the same."""
        parts = self._parts()
        return self._side(parts), sum(part.values for part in parts)

    def _side(self, parts: list[Part]) -> int:
        return 8 if not self.steps else sum(2 * part.short * part.rank for part in parts)

    def forward(self, x: Floats, chance: np.random.Generator) -> tuple[Floats, bytes]:
        """Return the coefficients, and the seed or the bases."""
        self._checked(len(x))
        vector, seed, values, sides = torch.from_numpy(x), new_seed(chance), [], []
        parts = self._parts()
        for part, basis in zip(parts, _random_bases(seed, parts), strict=True):
            if not part.rank:
                values.append(vector[part.where])
                continue
            matrix = part.matrix(vector)
            if self.steps:
                basis, side = _fitted(matrix, part.rank, self.steps, chance)
                sides.append(side)
                values.append(torch.linalg.solve(basis.T @ basis, basis.T @ matrix).reshape(-1))
            else:
                values.append((basis.T @ matrix).reshape(-1))
        side = b"".join(sides) if self.steps else seed.to_bytes(8, "little")
        return torch.cat(values).numpy(), side

    def opened(self, source: Reader, n: int) -> tuple[int, Restore]:
        """Read the seed or the bases.

        Raises:
            DataError: The vector is not one of the layout's.
        """
        if n != self.layout.size:
            message = f"an encoded update says that it has {n} numbers; the model has {self.layout.size}"
            raise DataError(message, expected=self.layout.size, found=n)
        parts = self._parts()
        side = source.take(self._side(parts))
        return sum(part.values for part in parts), lambda values: self._product(values, side, n)

    def _product(self, values: Floats, side: memoryview, n: int) -> Floats:
        parts, vector, given = self._parts(), torch.empty(n), torch.from_numpy(values)
        bases = _sent_bases(side, parts) if self.steps else _random_bases(int.from_bytes(side, "little"), parts)
        at = 0
        for part, basis in zip(parts, bases, strict=True):
            sent = given[at : at + part.values]
            at += part.values
            if part.rank:
                part.matrix(vector).copy_(basis @ sent.view(part.rank, -1))
            else:
                vector[part.where] = sent
        return vector.numpy()

    def error(self, x: Floats) -> float:
        """Return the expected squared error of a random basis; a fitted one does better."""
        self._checked(len(x))
        left = sum((1 - p.rank / p.short) * energy(x[p.where]) for p in self._parts() if p.rank)
        return left + self.rank * 2.0**-20 * energy(x)

    def share(self, n: int) -> float:  # noqa: ARG002 - there is one length
        """Return the largest 1 - r/d of any array."""
        shares = [1 - part.rank / part.short for part in self._parts() if part.rank]
        return max(shares, default=0.0) + self.rank * 2.0**-20


def _random_bases(seed: int, parts: list[Part]) -> Iterator[Tensor]:
    """Yield an orthonormal basis per array: the QR factor of independent, symmetric random numbers."""
    count = sum(part.short * part.rank for part in parts)
    raw, at = words(seed, count), 0
    for part in parts:
        size = part.short * part.rank
        numbers = (raw[at : at + size] >> np.uint64(11)).astype(np.float64) * 2.0**-52 + (2.0**-53 - 1)
        at += size
        yield _orthonormal(torch.from_numpy(numbers.reshape(part.short, part.rank)))


def _orthonormal(matrix: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(matrix.double())[0]
    return basis.float()


def _fitted(matrix: Tensor, rank: int, steps: int, chance: np.random.Generator) -> tuple[Tensor, bytes]:
    """Return a basis of the strongest directions, already rounded to float16, and its bytes."""
    largest = matrix.abs().max()
    scaled = matrix / largest if largest > 0 else matrix
    normal = np.random.Generator(np.random.SFC64(new_seed(chance))).standard_normal
    start = torch.from_numpy(normal((matrix.shape[1], rank), dtype=np.float32))
    basis = _orthonormal(scaled @ start)
    for _ in range(steps - 1):
        basis = _orthonormal(scaled @ (scaled.T @ basis))
    rounded = basis.half()
    return rounded.float(), rounded.numpy().astype("<f2", copy=False).tobytes()


def _sent_bases(side: memoryview, parts: list[Part]) -> Iterator[Tensor]:
    numbers: NDArray[Any] = np.frombuffer(side, "<f2").astype(np.float32)
    at = 0
    for part in parts:
        size = part.short * part.rank
        yield torch.from_numpy(numbers[at : at + size].reshape(part.short, part.rank))
        at += size


def make_lowrank(values: Mapping[str, str], layout: Layout | None) -> Matrices:
    """Read the stage's options."""
    return Matrices("lowrank", whole("lowrank", "rank", values["rank"], 1, 4096), 0, _known("lowrank", layout))


def make_powersgd(values: Mapping[str, str], layout: Layout | None) -> Matrices:
    """Read the stage's options."""
    rank, steps = (whole("powersgd", name, values[name], 1, most) for name, most in (("rank", 4096), ("steps", 16)))
    return Matrices("powersgd", rank, steps, _known("powersgd", layout))


def _known(name: str, layout: Layout | None) -> Layout:
    if layout is None:
        raise UsageError(f"{name} needs the shapes of the model's arrays: parse(text, layout)")
    return layout
