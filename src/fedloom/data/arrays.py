"""Readers of arrays: ``.npz``, a pair of ``.npy`` files, HDF5. Nothing is ever unpickled."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fedloom.data.dataset import Dataset, class_ids
from fedloom.data.spec import Spec
from fedloom.errors import DataError, UsageError

Array = NDArray[Any]
High = float | Literal["guess"] | None

_OPTIONS = ("x", "y", "x_test", "y_test", "column", "high")
_TRAIN = (
    ("x_train", "y_train"),
    ("x", "y"),
    ("train_images", "train_labels"),
    ("images", "labels"),
    ("data", "target"),
    ("features", "labels"),
    ("inputs", "targets"),
)
_TEST = (("x_test", "y_test"), ("test_images", "test_labels"))


def read_npz(spec: Spec) -> tuple[Dataset, Dataset | None]:
    """Read a NumPy archive: (its samples, its test samples or None).

    Options: ``x=NAME,y=NAME`` (else x_train/y_train, x/y and the like, else the file's two arrays),
    ``x_test=NAME,y_test=NAME``, ``column=NAME``, ``high=NUMBER|none``.

    Raises:
        DataError: The file is missing, damaged, or holds Python objects; an array is not there; the data are bad.
    """
    spec.expect("an .npz file", _OPTIONS)
    path = Path(spec.path)
    with reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path}: one array, not an .npz archive", file=str(path))
        arrays = {}
        for role, name in pick(path, archive.files, spec).items():
            with reading(path, name):
                arrays[role] = archive[name]
    return pair(arrays, str(path), spec.high())


def read_npy_pair(spec: Spec) -> tuple[Dataset, None]:
    """Read the pair ``X.npy,Y.npy``.

    Options: ``column=FILE.npy``, ``high=NUMBER|none``.

    Raises:
        DataError: A file is missing, damaged, or holds Python objects; the data are bad.
    """
    spec.expect("a pair of .npy files", ("column", "high"))
    x_path, y_path = spec.path.split(",")
    column = spec.options.get("column")
    high = cast(High, spec.high())
    return (
        Dataset.of(
            read_npy(x_path),
            read_npy(y_path),
            name=spec.path,
            high=high,
            column=None if column is None else read_npy(column),
        ),
        None,
    )


def read_npy(path: str | Path) -> Array:
    """Read one ``.npy`` file.

    Raises:
        DataError: The file is missing, damaged, an archive, or holds Python objects.
    """
    path = Path(path)
    with reading(path), path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_hdf5(spec: Spec) -> tuple[Dataset, Dataset | None]:
    """Read named arrays of an HDF5 file: (its samples, its test samples or None); the options of :func:`read_npz`.

    Raises:
        DataError: The file is missing or damaged; an array is not there; the data are bad.
    """
    import h5py

    spec.expect("an HDF5 file", _OPTIONS)
    path = Path(spec.path)
    with reading(path), h5py.File(path, "r") as file:
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        arrays = {}
        for role, name in pick(path, found, spec).items():
            with reading(path, name):
                texts = h5py.check_string_dtype(file[name].dtype)
                arrays[role] = file[name].asstr()[()].astype(str) if texts else file[name][()]
    return pair(arrays, str(path), spec.high())


def pick(path: Path, found: list[str], spec: Spec) -> dict[str, str]:
    """Choose which of the arrays ``found`` in a file plays which role (x, y, x_test, y_test, column).

    Raises:
        UsageError: One of a pair of options without the other.
        DataError: A named array is not there, or it is not clear which arrays are meant.
    """
    roles = {role: spec.options[role] for role in _OPTIONS[:5] if role in spec.options}
    for role, name in roles.items():
        if name.strip("/") not in found:
            raise DataError(
                f"{path}: no array '{name}' for {role} (found: {', '.join(found) or 'none'})", file=str(path)
            )
        roles[role] = name.strip("/")
    for x, y, usual in (("x", "y", _TRAIN), ("x_test", "y_test", _TEST)):
        if (x in roles) != (y in roles):
            raise UsageError(f"{path}: {x} and {y} are given together or not at all")
        if x not in roles:
            roles.update(_usual(found, x, y, usual))
    if "x" not in roles:
        rest = [name for name in found if name not in roles.values()]
        if len(rest) != 2:
            raise DataError(
                f"{path}: which arrays are inputs and labels? Say so: {path}:x=NAME,y=NAME "
                f"(found: {', '.join(found) or 'none'})",
                file=str(path),
            )
        roles.update(x=rest[0], y=rest[1])
    return roles


def pair(arrays: Mapping[str, Array], name: str, high: float | str | None) -> tuple[Dataset, Dataset | None]:
    """Build (samples, test samples or None) from the arrays by role, with the classes of both."""
    scale = cast(High, high)
    column = arrays.get("column")
    if "x_test" not in arrays:
        return Dataset.of(arrays["x"], arrays["y"], name=name, high=scale, column=column), None
    test_name = f"{name} (test)"
    classes = class_ids(arrays["y"], name)[1]
    test_classes = class_ids(arrays["y_test"], test_name)[1]
    if arrays["y"].dtype.kind in "US":
        classes = tuple(sorted({*classes, *test_classes}))
    else:
        classes = max(classes, test_classes, key=len)
    train = Dataset.of(arrays["x"], arrays["y"], name=name, class_names=classes, high=scale, column=column)
    test = Dataset.of(arrays["x_test"], arrays["y_test"], name=test_name, class_names=classes, high=train.high)
    if test.input_shape != train.input_shape:
        raise DataError(
            f"{name}: test inputs of shape {test.input_shape}, the others have {train.input_shape}",
            file=name,
            expected=train.input_shape,
            found=test.input_shape,
        )
    return train, test


@contextmanager
def reading(path: Path, array: str | None = None) -> Iterator[None]:
    """Turn what NumPy, csv, zipfile and h5py raise for a bad file into a DataError that names file and array."""
    where = f"{path}: array '{array}'" if array else f"{path}"
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", file=str(path)) from error
    except (OSError, ValueError, EOFError, KeyError, MemoryError, csv.Error, zipfile.BadZipFile, zlib.error) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "pickle" in text:
            text = "it holds Python objects, which are never unpickled; save numbers or texts"
        elif isinstance(error, UnicodeDecodeError):
            text = f"not UTF-8 text (byte {error.start}); save it as UTF-8"
        else:
            text = f"damaged, or not a file of this kind ({text})"
        raise DataError(f"{where}: {text}", file=str(path), array=array) from error


def _usual(found: list[str], x: str, y: str, pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    names = {name.rsplit("/", 1)[-1].lower(): name for name in reversed(found)}
    for x_name, y_name in pairs:
        if x_name in names and y_name in names:
            return {x: names[x_name], y: names[y_name]}
    return {}
