"""Careful access to an HDF5 file that somebody else made: no links out of it, no claims that its size cannot back."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedloom.errors import ModelError

_FLOOR = 1 << 26
_EXPANSION = 100


@contextmanager
def reading(data: bytes) -> Iterator[Any]:
    """Open the bytes of an HDF5 file; whatever is wrong inside becomes a ModelError without the file's name.

    Yields:
        The open ``h5py.File``.

    Raises:
        ModelError: Truncated, damaged, or not an HDF5 file.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            yield file
    except ModelError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
        raise ModelError(f"its weights are truncated or damaged ({_first_line(error)})") from error


def child(group: Any, name: str) -> Any:
    """Return the group or data set ``name`` below ``group``, None when there is none; ``name`` may hold slashes.

    Raises:
        ModelError: It is a link to somewhere else.
    """
    import h5py

    for part in name.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ModelError(f"its entry '{part}' is a link to another place or file, which is not followed")
        group = group[part]
    return group


def texts(group: Any, name: str) -> list[str]:
    """Read an attribute that is a list of texts, in one piece or in the numbered pieces of a long one."""
    found = []
    if name in group.attrs:
        found = list(group.attrs[name])
    else:
        while f"{name}{len(found)}" in group.attrs:
            found.append(group.attrs[f"{name}{len(found)}"])
        found = [item for piece in found for item in piece]
    return [text(item) for item in found]


def text(value: Any) -> str:
    """Decode an attribute that is a text."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def load(found: Mapping[str, list[Any]], size: int) -> dict[str, list[np.ndarray]]:
    """Read data sets into arrays.

    Args:
        found: The data sets of each layer.
        size: Bytes of the file that they are in.

    Returns:
        The arrays of each layer that has some; bfloat16 becomes float32, every other dtype stays.

    Raises:
        ModelError: Numbers outside the file, no numbers at all, or far more of them than the file can hold.
    """
    total = stored = 0
    for path, datasets in found.items():
        for dataset in datasets:
            if dataset.external or dataset.is_virtual:
                raise ModelError(f"the weights of layer '{path}' are kept in another file", array=path)
            if dataset.dtype.kind not in "fiub" and not _is_bfloat16(dataset):
                raise ModelError(f"the weights of layer '{path}' are no numbers ({dataset.dtype})", array=path)
            total += math.prod(dataset.shape) * dataset.dtype.itemsize
            stored += dataset.id.get_storage_size()
    if total > _FLOOR + _EXPANSION * min(stored, size):
        raise ModelError(f"it claims {total:,} bytes of weights in a file of {size:,}: damaged, or made to harm")
    return {path: [_array(dataset) for dataset in datasets] for path, datasets in found.items() if datasets}


def _is_bfloat16(dataset: Any) -> bool:
    return dataset.dtype.itemsize == 2 and text(dataset.attrs.get("dtype", "")) == "bfloat16"


def _array(dataset: Any) -> np.ndarray:
    array = np.asarray(dataset[()])
    if not _is_bfloat16(dataset):
        return array
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
