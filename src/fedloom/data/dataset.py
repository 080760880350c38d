"""Dataset: inputs, class ids and what is known about them (class names, full scale, where they come from)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedloom.errors import DataError
from fedloom.rng import stream

Array = NDArray[Any]

_MOST_CLASSES = 100_000  # labels above this are identifiers of something, not classes


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Samples with one class each. Build it with :meth:`of`, which accepts what people have and checks it.

    Attributes:
        x: The inputs, shape (N, ...), dtype as stored (8-bit images stay uint8).
        y: The class ids, int64 (N,), each in [0, C).
        class_names: The C names.
        high: The full scale of the inputs (255.0, 16.0 or 1.0 for images, whose smallest value is 0);
            None for features without one.
        name: Where the data come from; it stands at the head of every message about them.
        column: Values for the split by column, shape (N,), or None.
        feature_names: The names of the columns of a feature table, or ().
    """

    x: Array
    y: NDArray[np.int64]
    class_names: tuple[str, ...]
    high: float | None
    name: str
    column: Array | None = None
    feature_names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        *,
        name: str = "data",
        class_names: Sequence[str] | None = None,
        high: float | Literal["guess"] | None = "guess",
        column: ArrayLike | None = None,
        feature_names: Sequence[str] = (),
    ) -> Dataset:
        """Build a checked data set from plain arrays.

        Args:
            x: Numbers of shape (N, ...).
            y: Labels: integers (N,) or (N, 1), whole floats, one-hot rows (N, C), or texts.
            name: Where the data come from.
            class_names: The names of the classes; by default the sorted texts, or the numbers 0 to max.
            high: The full scale of the inputs; guessed by :func:`guess_high` unless given.
            column: Values for the split by column, shape (N,).
            feature_names: The names of the columns of x.

        Raises:
            DataError: What :meth:`check` raises, and labels that are no classes.

        Example:
            >>> Dataset.of(np.zeros((3, 2)), ["b", "a", "b"]).y
            array([1, 0, 1])
        """
        x = _numbers(np.asarray(x), name)
        ids, names = class_ids(np.asarray(y), name, class_names)
        scale = guess_high(x) if high == "guess" else high
        values = None if column is None else np.asarray(column)
        return cls(x, ids, names, scale, name, values, tuple(feature_names)).check()

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        scale = "features" if self.high is None else f"0 to {self.high:g}"
        return (
            f"<Dataset {self.name}: {len(self)} x {self.input_shape} {self.x.dtype}, {scale}, {self.n_classes} classes>"
        )

    @property
    def n_classes(self) -> int:
        """C, the number of classes, whether or not all of them occur."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.x.shape[1:])

    def check(self) -> Dataset:
        """Return self, or say what is wrong.

        Raises:
            DataError: Empty data, lengths that differ, NaN or infinite numbers (how many, the first row and column),
                or class ids outside [0, C).
        """
        if len(self.x) == 0 or math.prod(self.input_shape) == 0:
            raise DataError(f"{self.name}: no samples (x has shape {self.x.shape})", file=self.name, found=self.x.shape)
        parts = {"labels": self.y} | ({} if self.column is None else {"values of the column": self.column})
        for what, values in parts.items():
            if values.shape != (len(self.x),):
                found = f"of shape {values.shape}" if values.ndim != 1 else str(len(values))
                raise DataError(
                    f"{self.name}: {len(self.x)} inputs but {found} {what}", expected=len(self.x), found=values.shape
                )
        if len(self.feature_names) not in (0, self.x.shape[-1]):
            raise DataError(
                f"{self.name}: {len(self.feature_names)} feature names for {self.x.shape[-1]} columns", file=self.name
            )
        self._check_finite()
        wrong = np.flatnonzero((self.y < 0) | (self.y >= self.n_classes))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{self.name}: {len(wrong)} labels outside 0 to {self.n_classes - 1}, "
                f"the first is {self.y[row]} in row {row}",
                file=self.name,
                row=row,
                found=int(self.y[row]),
            )
        return self

    def _check_finite(self) -> None:
        if self.x.dtype.kind != "f":
            return
        flat = self.x.reshape(len(self.x), -1)
        limit = np.finfo(np.float32).max
        count, first = 0, (0, 0)
        for start in range(0, len(flat), 4096):
            rows, columns = np.nonzero(~(np.abs(flat[start : start + 4096]) <= limit))
            if len(rows) and count == 0:
                first = (start + int(rows[0]), int(columns[0]))
            count += len(rows)
        if count:
            row, column = first
            where = self._place(column)
            raise DataError(
                f"{self.name}: {count} {'value is' if count == 1 else 'values are'} NaN or infinite, "
                f"the first in row {row}, {where}",
                file=self.name,
                row=row,
                column=where,
            )

    def _place(self, column: int) -> str:
        if self.feature_names:
            return f"column '{self.feature_names[column]}'"
        if len(self.input_shape) <= 1:
            return f"column {column}"
        return f"position {tuple(int(i) for i in np.unravel_index(column, self.input_shape))}"

    def take(self, indices: ArrayLike, name: str | None = None) -> Dataset:
        """Return the samples at ``indices`` (integers or a mask), a copy, under a new ``name`` if one is given."""
        chosen = np.asarray(indices)
        column = None if self.column is None else self.column[chosen]
        return replace(self, x=self.x[chosen], y=self.y[chosen], column=column, name=name or self.name)

    def counts(self) -> NDArray[np.int64]:
        """Count the samples of each class, int64 (C,)."""
        return np.bincount(self.y, minlength=self.n_classes).astype(np.int64)

    def with_classes(self, n_classes: int) -> Dataset:
        """Return the same data seen as ``n_classes`` classes, as a model with that many outputs needs them.

        A part may lack the last classes: they are added, with their numbers as names.

        Raises:
            DataError: A label lies outside the model's classes.
        """
        names = self.class_names[:n_classes]
        names += tuple(str(i) for i in range(len(names), n_classes))
        if self.y.max() >= n_classes:
            row = int(np.argmax(self.y >= n_classes))
            raise DataError(
                f"{self.name}: label {self.y[row]} in row {row} lies outside the model's {n_classes} classes "
                f"(0 to {n_classes - 1})",
                file=self.name,
                row=row,
                expected=n_classes,
                found=int(self.y[row]),
            )
        return replace(self, class_names=names)

    def scale_note(self, input_high: float | None) -> str | None:
        """Say how the scale of the data differs from what a model expects; None when it does not, or is not known."""
        if self.high is None or input_high is None or self.high == input_high:
            return None
        return (
            f"{self.name} is on the scale 0 to {self.high:g}, the model expects 0 to {input_high:g}: "
            f"the inputs are rescaled"
        )


def guess_high(x: Array) -> float | None:
    """Guess the full scale of plain numbers; the one place where this is guessed.

    ============================================  =======================================================
    numbers                                       full scale
    ============================================  =======================================================
    any below 0                                   None
    bool, or all within 0 to 1                    1.0
    images, whole numbers up to 16                16.0 (the digits of scikit-learn)
    images, above 16 and up to 255                255.0
    images, unsigned 16-bit, above 255            65535.0
    anything else                                 None: features in units of their own
    ============================================  =======================================================

    Images are arrays of three or more axes, 8-bit unsigned tables, and tables of whole numbers whose width is that of
    square pictures of one or three channels and at least 8 x 8 (64, 192, 784, 3072, ... columns).

    Args:
        x: Numbers of shape (N, ...).

    Returns:
        The full scale, or None when there is none.

    Example:
        >>> guess_high(np.array([[[0, 200], [3, 4]]], dtype=np.uint8))
        255.0
        >>> guess_high(np.array([[5.1, 3.5], [4.9, 3.0]])) is None
        True
    """
    if x.size == 0:
        return None
    low, top = float(x.min()), float(x.max())
    if not 0 <= low <= top < math.inf:
        return None
    if top <= 1:
        return 1.0
    whole = x.dtype.kind in "bui" or bool((x[:1000] % 1 == 0).all())
    pictures = x.ndim >= 3 or x.dtype == np.uint8 or (whole and _width_of_pictures(x.shape[-1]))
    if not pictures:
        return None
    if top <= 16:
        return 16.0 if whole else None
    if top <= 255:
        return 255.0
    return 65535.0 if x.dtype == np.uint16 else None


def class_ids(
    labels: Array, name: str, class_names: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Turn labels of any usual kind into class ids.

    Args:
        labels: Integers (N,) or (N, 1), whole floats, one-hot rows (N, C), booleans, or texts.
        name: Where the labels come from, for messages.
        class_names: The names of the classes, when they are known.

    Returns:
        The ids, int64 (N,), and the names: those given, else the sorted texts, else "0" to "max".

    Raises:
        DataError: Labels that are no classes (fractions, NaN, objects, other shapes, a text that is not a class name).
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "US":
        return _text_ids(labels.astype(str), name, class_names)
    labels = _numbers(labels, name, "labels")
    if labels.ndim == 2:
        labels, width = _one_hot(labels, name), labels.shape[1]
    elif labels.ndim == 1:
        width = 0
    else:
        raise DataError(
            f"{name}: labels of shape {labels.shape}, expected (N,) or one-hot (N, C)", file=name, found=labels.shape
        )
    ids = _whole(labels, name)
    if class_names is None:
        top = int(ids.max(initial=-1))
        if top >= _MOST_CLASSES:
            raise DataError(f"{name}: labels up to {top} are no class numbers (0 to C - 1)", file=name, found=top)
        class_names = [str(i) for i in range(max(width, top + 1))]
    return ids, tuple(class_names)


def split_off(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split a data set into (the rest, ``fraction`` of it), stratified by class, the same on every machine.

    Each class gives ``fraction`` of its samples, rounded down, and the classes with the largest remainders one more, so
    that the sizes add up.

    Args:
        dataset: What to split.
        fraction: How much to split off, 0 < fraction < 1.
        seed: The seed of the choice.

    Raises:
        DataError: One of the two sides would be empty.
    """
    if not 0 < fraction < 1:
        raise DataError(f"a fraction between 0 and 1 is expected, found {fraction:g}", found=fraction)
    total = round(len(dataset) * fraction)
    if not 0 < total < len(dataset):
        raise DataError(
            f"{dataset.name}: {len(dataset)} samples are too few to split off {fraction:.0%}", file=dataset.name
        )
    exact = dataset.counts() * (total / len(dataset))
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(-(exact - sizes), kind="stable")
    sizes[order[: total - sizes.sum()]] += 1
    rng = stream(seed, "split_off")
    chosen = np.zeros(len(dataset), dtype=bool)
    for label, size in enumerate(sizes):
        chosen[rng.permutation(np.flatnonzero(dataset.y == label))[:size]] = True
    return dataset.take(~chosen), dataset.take(chosen)


def _numbers(values: Array, name: str, what: str = "x") -> Array:
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind not in "uif":
        kind = "Python objects" if values.dtype.kind == "O" else f"values of type {values.dtype}"
        raise DataError(f"{name}: {what} holds {kind}, numbers are expected", file=name, found=str(values.dtype))
    if values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    elif not values.dtype.isnative:  # PyTorch takes neither the other byte order nor long doubles
        values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim == 0 or (what == "x" and values.ndim == 1):
        raise DataError(
            f"{name}: {what} has shape {values.shape}, one row per sample is expected", file=name, found=values.shape
        )
    return values


def _text_ids(
    labels: NDArray[np.str_], name: str, class_names: Sequence[str] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    found, ids = np.unique(labels, return_inverse=True)
    if class_names is None:
        return ids.reshape(-1).astype(np.int64), tuple(str(text) for text in found)
    place = {text: i for i, text in enumerate(class_names)}
    strange = [str(text) for text in found if text not in place]
    if strange:
        raise DataError(
            f"{name}: label '{strange[0]}' is none of the classes ({', '.join(class_names)})",
            file=name,
            found=strange[0],
        )
    lookup = np.array([place[str(text)] for text in found], dtype=np.int64)
    return lookup[ids.reshape(-1)], tuple(class_names)


def _one_hot(labels: Array, name: str) -> Array:
    bad = np.flatnonzero(((labels != 0) & (labels != 1)).any(axis=1) | (labels.sum(axis=1) != 1))
    if len(bad):
        raise DataError(
            f"{name}: labels of shape {labels.shape} are not one-hot: row {bad[0]} has not exactly one 1",
            file=name,
            row=int(bad[0]),
        )
    return np.asarray(labels.argmax(axis=1))


def _whole(labels: Array, name: str) -> NDArray[np.int64]:
    if labels.dtype.kind == "f":
        bad = np.flatnonzero(~(np.abs(labels) < np.float64(2**53)) | (labels % 1 != 0))
        if len(bad):
            raise DataError(
                f"{name}: label {labels[bad[0]]:g} in row {bad[0]} is not a whole number: classes are expected",
                file=name,
                row=int(bad[0]),
            )
    return labels.astype(np.int64)


def _width_of_pictures(width: int) -> bool:
    sides = [math.isqrt(width // channels) for channels in (1, 3) if width % channels == 0]
    return any(side >= 8 and width in (side * side, 3 * side * side) for side in sides)
