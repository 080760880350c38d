"""Sources of data: ``digits``, ``mnist`` and ``fashion-mnist`` by name, anything else by its path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from fedloom.data.dataset import Dataset, split_off
from fedloom.data.download import Progress
from fedloom.data.published import PUBLISHED, load_published
from fedloom.data.readers import read
from fedloom.data.spec import parse
from fedloom.errors import DataError, unknown

Split = Literal["train", "test", "all"]

NAMES = {
    "digits": "1,797 digits of 8 x 8 pixels, embedded in scikit-learn",
    "mnist": "70,000 digits of 28 x 28 pixels",
    "fashion-mnist": "70,000 pieces of clothing of 28 x 28 pixels",
}
TEST_FRACTION = 0.2


def load(
    source: str | Path | Dataset,
    split: Split = "train",
    data_dir: str | Path | None = None,
    *,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
    download: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """Load one split of a source.

    A source that sets no test samples apart (a plain file) is split by :func:`fedloom.data.dataset.split_off`,
    stratified by class, the same way for the same seed. ``all`` is train and test samples together.

    Args:
        source: A name in ``NAMES``, a path with options as in :mod:`fedloom.data.spec`, or a data set ("all" of it).
        split: "train", "test" or "all".
        data_dir: The folder where ``mnist`` and ``fashion-mnist`` are looked for first.
        test_fraction: How much is for the test, where the source does not say (``digits`` has its fixed 20 %).
        seed: The seed of that choice.
        download: Whether to download what is found nowhere.
        progress: Called while downloading; None draws a progress bar on standard error.

    Raises:
        UsageError: An unknown name or split.
        DataError: Data that are missing, damaged or bad.

    Example:
        >>> load("digits").x.shape, load("digits", "test").x.shape
        ((1438, 8, 8), (359, 8, 8))
    """
    if split not in ("train", "test", "all"):
        raise unknown("split", split, ["train", "test", "all"])
    if isinstance(source, str) and source in PUBLISHED and split != "all":
        return load_published(source, split, data_dir, download=download, progress=progress)
    train, test = _load(source, data_dir, download, progress)
    if split == "all":
        return train if test is None else join(train, test)
    if test is None:
        train, test = split_off(train, test_fraction, seed)
    return train if split == "train" else test


def load_pair(
    source: str | Path | Dataset,
    data_dir: str | Path | None = None,
    *,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
    download: bool = True,
    progress: Progress | None = None,
) -> tuple[Dataset, Dataset]:
    """Load (train, test) of a source at once; see :func:`load`.

    ``test_fraction`` and ``seed`` say what is split off where the source sets no test samples apart.
    """
    train, test = _load(source, data_dir, download, progress)
    return split_off(train, test_fraction, seed) if test is None else (train, test)


def load_evaluation(
    source: str | Path | Dataset,
    data_dir: str | Path | None = None,
    *,
    download: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """Load what a model is evaluated on: the test samples that the source sets apart, else all of it.

    So ``x_test.npy,y_test.npy`` is used whole, and ``mnist`` means its 10,000 test images.
    """
    if isinstance(source, str) and source in PUBLISHED:
        return load_published(source, "test", data_dir, download=download, progress=progress)
    train, test = _load(source, data_dir, download, progress)
    return train if test is None else test


def load_training(
    source: str | Path | Dataset,
    data_dir: str | Path | None = None,
    *,
    download: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """Load all of a source but the test samples that it sets apart; nothing is left for a test where it sets none.

    So a plain file is used whole, and ``mnist`` means its 60,000 training images.
    """
    if isinstance(source, str) and source in PUBLISHED:
        return load_published(source, "train", data_dir, download=download, progress=progress)
    return _load(source, data_dir, download, progress)[0]


def join(first: Dataset, second: Dataset) -> Dataset:
    """Return the samples of both, those of ``first`` before those of ``second``.

    Raises:
        DataError: Their inputs have different shapes, or their classes differ.
    """
    if first.input_shape != second.input_shape or first.class_names != second.class_names:
        raise DataError(
            f"{first.name} (inputs {first.input_shape}, {first.n_classes} classes) and {second.name} (inputs "
            f"{second.input_shape}, {second.n_classes} classes) cannot be joined",
        )
    column = None
    if first.column is not None and second.column is not None:
        column = np.concatenate([first.column, second.column])
    return replace(first, x=np.concatenate([first.x, second.x]), y=np.concatenate([first.y, second.y]), column=column)


def _load(
    source: str | Path | Dataset, data_dir: str | Path | None, download: bool, progress: Progress | None
) -> tuple[Dataset, Dataset | None]:
    """Return (the samples, the test samples or None when the source sets none apart)."""
    if isinstance(source, Dataset):
        return source, None
    name = str(source)
    if name == "digits":
        return split_off(_digits(), TEST_FRACTION)
    if name in PUBLISHED:
        train, test = (
            load_published(name, split, data_dir, download=download, progress=progress) for split in ("train", "test")
        )
        return train, test
    path = Path(parse(name).path)
    if path.parent == Path() and not path.suffix and not path.exists():
        raise unknown("data set", name, NAMES)
    return read(name)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    data = load_digits()
    return Dataset.of(data.images.astype(np.uint8), data.target, name="digits", high=16.0)
