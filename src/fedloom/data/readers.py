"""Your own data, whatever the file: one function that looks at the path and calls the reader for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedloom.data.arrays import read_hdf5, read_npy_pair, read_npz
from fedloom.data.dataset import Dataset
from fedloom.data.images import read_folder
from fedloom.data.parts import is_part, read_part
from fedloom.data.spec import Spec, parse
from fedloom.data.tabular import read_csv, read_parquet
from fedloom.errors import DataError, UsageError

Reader = Callable[[Spec], tuple[Dataset, Dataset | None]]

READERS: dict[str, Reader] = {
    ".npz": read_npz,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".parquet": read_parquet,
    ".pq": read_parquet,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}


def read(source: str | Path) -> tuple[Dataset, Dataset | None]:
    """Read your own data: (the samples, the test samples when the source sets some apart, else None).

    Args:
        source: ``file.npz``, ``X.npy,Y.npy``, ``file.csv``, ``file.parquet``, ``file.h5``, a folder of images per
            class, or a member's folder; options follow a colon, see :mod:`fedloom.data.spec`.

    Raises:
        DataError: The file is missing or damaged, or its data are bad.
        UsageError: A kind of file that has no reader, or unknown options.
    """
    spec = parse(source)
    files = spec.path.split(",")
    if len(files) == 2 and all(file.lower().endswith(".npy") for file in files):
        return read_npy_pair(spec)
    path = Path(spec.path)
    if path.is_dir():
        return read_part(spec) if is_part(path) else read_folder(spec)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder", file=str(path))
    if path.suffix.lower() == ".npy":
        raise UsageError(f"{path}: inputs or labels alone; give both: X.npy,Y.npy", file=str(path))
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{path}: no reader for '{path.suffix}' (known: {', '.join(READERS)}, X.npy,Y.npy, a folder)",
            file=str(path),
        )
    return reader(spec)
