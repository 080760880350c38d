"""Inputs without labels: any source of data with its labels left aside, or a file that has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedloom.data.arrays import High, read_npy, reading
from fedloom.data.dataset import Dataset
from fedloom.data.download import Progress
from fedloom.data.sources import load_training
from fedloom.data.spec import Spec, parse
from fedloom.errors import DataError, UsageError
from fedloom.rng import stream

_NAMES = ("unlabelled",)

LEAST = 2
"""A single sample has no variance to repair or fit anything with."""


def load_unlabelled(
    source: str | Path | Dataset,
    data_dir: str | Path | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    download: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """Load inputs whose labels, if there are any, are not used.

    Args:
        source: What :func:`fedloom.data.load_data` takes (of ``mnist`` and of files with test samples: the training
            samples; else all of them), one ``.npy`` file of inputs, or an ``.npz`` file with one array. ``high=`` and,
            in an archive, ``x=`` may follow as options, see :mod:`fedloom.data.spec`.
        data_dir: The folder where ``mnist`` and ``fashion-mnist`` are looked for first.
        limit: The largest number of samples; more are drawn from, and stay in their order.
        seed: Of that draw.
        download: Whether to download what is found nowhere.
        progress: Called while downloading; None draws a progress bar on standard error.

    Returns:
        The samples; all of them have class 0 of the single class "unlabelled".

    Raises:
        DataError: Data that are missing, damaged or bad (NaN and infinite numbers too), or fewer than two samples.
        UsageError: An unknown name, kind of file or option, or a limit below two.

    Example:
        >>> load_unlabelled("digits", limit=100)
        <Dataset digits: 100 x (8, 8) uint8, 0 to 16, 1 classes>
    """
    if limit is not None and limit < LEAST:
        raise UsageError(f"a limit of {limit} unlabelled samples: at least {LEAST} are needed", found=limit)
    found = _bare(source)
    if found is None:
        labelled = load_training(source, data_dir, download=download, progress=progress)
        found = replace(labelled, y=np.zeros(len(labelled), dtype=np.int64), class_names=_NAMES, column=None)
    if len(found) < LEAST:
        raise DataError(
            f"{found.name}: {len(found)} unlabelled sample is too few, at least {LEAST} are needed (a few hundred are good)",
            file=found.name,
            expected=LEAST,
            found=len(found),
        )
    if limit is None or limit >= len(found):
        return found
    return found.take(np.sort(stream(seed, "unlabelled").permutation(len(found))[:limit]))


def _bare(source: str | Path | Dataset) -> Dataset | None:
    """Read a file that holds inputs alone; None when the source is of another kind."""
    if isinstance(source, Dataset):
        return None
    spec = parse(source)
    if "," in spec.path:
        return None
    suffix = Path(spec.path).suffix.lower()
    if suffix == ".npy":
        spec.expect("an .npy file", ("high",))
        return _dataset(read_npy(spec.path), spec)
    return _npz(spec) if suffix == ".npz" else None


def _npz(spec: Spec) -> Dataset | None:
    path = Path(spec.path)
    with reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path}: one array, not an .npz archive", file=str(path))
        alone = "x" in spec.options and "y" not in spec.options
        name = spec.options["x"] if alone else archive.files[0] if len(archive.files) == 1 else None
        if name is None:
            return None
        spec.expect("an .npz file of inputs alone", ("x", "high"))
        if name not in archive.files:
            raise DataError(
                f"{path}: no array '{name}' for x (found: {', '.join(archive.files) or 'none'})", file=str(path)
            )
        with reading(path, name):
            x = archive[name]
    return _dataset(x, spec)


def _dataset(x: NDArray[Any], spec: Spec) -> Dataset:
    labels = np.zeros(len(x) if x.ndim else 0, dtype=np.int64)
    return Dataset.of(x, labels, name=spec.path, class_names=_NAMES, high=cast(High, spec.high()))
