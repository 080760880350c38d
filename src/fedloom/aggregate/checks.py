"""The cohort: n models as checked float32 vectors, and the refusals that all rules share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import MergeError
from fedloom.layout import Layout

_LEAST, _MOST = 1e-100, 1e100
_BLOCK = 8192  # numbers: short enough for BLAS to stay on one thread, which is faster on a busy machine


@dataclass(frozen=True)
class Cohort:
    """n models that were found fit to be merged; made by :func:`cohort`.

    Attributes:
        rows: n finite float32 vectors of shape (P,).
        names: What to call them in messages, one per row; empty for "model 1", "model 2", ...
        layout: Where the arrays lie in a vector, so that messages can name them.
    """

    rows: tuple[Tensor, ...]
    names: tuple[str, ...] = ()
    layout: Layout | None = None

    @property
    def n(self) -> int:
        """The number of models."""
        return len(self.rows)

    @property
    def size(self) -> int:
        """P, the length of each vector."""
        return self.rows[0].numel()

    def name(self, i: int) -> str:
        """What to call row ``i`` in a message."""
        return label(i, self.names)


Vectors: TypeAlias = Tensor | Sequence[Tensor] | Cohort
"""n models: an (n, P) float32 matrix, n vectors of shape (P,) (memory-mapped ones are fine), or a checked cohort."""


def cohort(vectors: Vectors, *, names: Sequence[str] | None = None, layout: Layout | None = None) -> Cohort:
    """Check n models once; what comes back is accepted by every rule without another look.

    Args:
        vectors: An (n, P) float32 matrix, or n float32 vectors of shape (P,).
        names: What to call the n models in messages, usually their files.
        layout: The models' layout, so that messages can name the array.

    Raises:
        MergeError: There is no model, a shape, length or dtype does not fit, or a number is NaN or infinite.

    Example:
        >>> cohort(torch.tensor([[1.0], [float("nan")]]), names=["a.keras", "b.keras"])
        Traceback (most recent call last):
        fedloom.errors.MergeError: b.keras holds NaN (1 of 1 numbers, the first at position 0): leave this file out ...
    """
    if isinstance(vectors, Cohort):
        return vectors
    if isinstance(vectors, Tensor) and vectors.ndim != 2:
        raise MergeError(f"a matrix of shape (models, numbers) is expected, found {tuple(vectors.shape)}")
    rows = tuple(v.detach() for v in (vectors.unbind(0) if isinstance(vectors, Tensor) else vectors))
    labels = tuple(names or ())
    if not rows:
        raise MergeError("nothing to merge: no model was given")
    if labels and len(labels) != len(rows):
        raise MergeError(f"{len(labels)} names were given for {len(rows)} models")
    size = rows[0].numel() if layout is None else layout.size
    for i, row in enumerate(rows):
        check_vector(row, size, label(i, labels), layout)
    return Cohort(rows, labels, layout)


def label(i: int, names: Sequence[str]) -> str:
    """Call row ``i`` by its name, or "model i+1"."""
    return names[i] if names else f"model {i + 1}"


def check_vector(vector: Tensor, size: int, name: str, layout: Layout | None = None) -> None:
    """Refuse a vector that is not finite float32 of shape (size,).

    Raises:
        MergeError: It is not; the message starts with ``name`` and names the array where ``layout`` is given.
    """
    if vector.shape != (size,) or size == 0:
        expected = "at least one number" if size == 0 else f"the shape ({size},)"
        raise MergeError(f"{name} has the shape {tuple(vector.shape)} where {expected} is expected", file=name)
    if vector.dtype != torch.float32:
        raise MergeError(f"{name} holds {vector.dtype} where torch.float32 is expected", file=name)
    # The sum of squares shows every NaN and infinity in one fast pass; the exact look follows when it is not finite.
    host = vector.detach().cpu().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        parts = (host[start : start + _BLOCK] for start in range(0, size, _BLOCK))
        if math.isfinite(sum(float(np.dot(part, part)) for part in parts)):
            return
    bad = (~torch.isfinite(vector)).nonzero().flatten()
    if bad.numel() == 0:
        return
    first = int(bad[0])
    what = "NaN" if math.isnan(float(vector[first])) else "an infinite number"
    array = None if layout is None else next(a for a, where, _ in layout.slices() if first < where.stop)
    place = f"the first at position {first}" if array is None else f"the first in array '{array}'"
    raise MergeError(
        f"{name} holds {what} ({bad.numel()} of {size} numbers, {place}): leave this file out or train it again "
        "with a smaller learning rate",
        file=name,
        array=array,
    )


def check_weight(weight: float, name: str) -> float:
    """Return one weight of a mean as a float.

    Raises:
        MergeError: It is NaN, infinite, negative, or beyond 1e-100 .. 1e100 (0 is allowed).
    """
    value = float(weight)
    if not math.isfinite(value) or value < 0:
        raise MergeError(f"the weight of {name} is {value:g}: a finite number >= 0 is expected", file=name, found=value)
    if value and not _LEAST <= value <= _MOST:
        raise MergeError(f"the weight of {name} is {value:g}: scale the weights nearer to 1", file=name, found=value)
    return value


def check_weights(weights: Sequence[float] | Tensor | None, models: Cohort) -> Tensor:
    """Return normalised float64 weights of shape (n,) that sum to 1; equal ones for None.

    Raises:
        MergeError: Their number is not n, one of them is negative, NaN or infinite, or they sum to zero.
    """
    if weights is None:
        return torch.full((models.n,), 1.0 / models.n, dtype=torch.float64)
    values = raw_weights(weights, models)
    return torch.tensor(values, dtype=torch.float64) / sum(values)


def raw_weights(weights: Sequence[float] | Tensor, models: Cohort) -> list[float]:
    """Return the n weights as they were given, checked as in :func:`check_weights`."""
    values = weights.flatten().tolist() if isinstance(weights, Tensor) else list(weights)
    if len(values) != models.n:
        raise MergeError(
            f"{len(values)} weights were given for {models.n} models", expected=models.n, found=len(values)
        )
    values = [check_weight(value, models.name(i)) for i, value in enumerate(values)]
    if sum(values) == 0:
        raise MergeError(f"the weights of all {models.n} models are zero: at least one has to be positive")
    return values


def whole(name: str, value: float, least: int = 0) -> int:
    """Return an option as an integer.

    Raises:
        MergeError: It is not a whole number, or below ``least``.
    """
    if not math.isfinite(value) or value != int(value) or value < least:
        raise MergeError(f"{name} = {value:g}: a whole number >= {least} is expected", option=name, found=value)
    return int(value)


def positive(name: str, value: float, allow_zero: bool = False) -> float:
    """Return an option as a float.

    Raises:
        MergeError: It is NaN, infinite, or not above zero.
    """
    if not math.isfinite(value) or value < 0 or (value == 0 and not allow_zero):
        sign = ">=" if allow_zero else ">"
        raise MergeError(f"{name} = {value:g}: a finite number {sign} 0 is expected", option=name, found=value)
    return float(value)
