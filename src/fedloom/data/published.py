"""MNIST and Fashion-MNIST: where their files are found, and how they are known to be whole.

The files are gzip of IDX: two zero bytes, the type 8 (uint8), the number of axes, the axes as 32-bit big-endian,
then the pixels or labels (LeCun, Cortes, Burges; Fashion-MNIST: Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedloom.data.arrays import reading
from fedloom.data.dataset import Dataset
from fedloom.data.download import DownloadError, Progress, fetch, progress_bar
from fedloom.errors import DataError

ENVIRONMENT = "FEDLOOM_DATA"
STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_KERAS_KEYS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}


@dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
        class_names: The names of its classes.
        checksums: The SHA-256 of the raw (uncompressed) IDX files by stem.
        mirrors: Folders on the web that hold the ``.gz`` files.
        torchvision: The folder's name below torchvision's root.
    """

    class_names: tuple[str, ...]
    checksums: Mapping[str, str]
    mirrors: tuple[str, ...]
    torchvision: str


PUBLISHED: dict[str, Published] = {
    "mnist": Published(
        class_names=tuple("0123456789"),
        checksums={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        torchvision="MNIST",
    ),
    "fashion-mnist": Published(
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        checksums={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        torchvision="FashionMNIST",
    ),
}


def load_published(
    name: str,
    split: Literal["train", "test"],
    data_dir: str | Path | None = None,
    *,
    download: bool = True,
    progress: Progress | None = None,
    mirrors: Sequence[str] | None = None,
) -> Dataset:
    """Load a published data set from the first place that has it, else download it into fedloom's cache.

    Every file is verified by the SHA-256 of its raw bytes.

    Args:
        name: A name in ``PUBLISHED``.
        split: Which of its two parts.
        data_dir: A folder that is looked at first.
        download: Whether to download what is found nowhere.
        progress: Called while downloading; None draws a progress bar on standard error.
        mirrors: Folders on the web instead of the usual ones.

    Returns:
        Images (N, 28, 28) uint8 on the scale 0 to 255.

    Raises:
        DataError: A file is damaged, or the data are found nowhere; the message says where was looked.
    """
    places = list(_places(name, data_dir))
    for place in places:
        arrays = _read_place(name, split, place)
        if arrays is not None:
            x, y = arrays
            return Dataset(x, y.astype(np.int64), PUBLISHED[name].class_names, 255.0, name)
    why = "downloading is switched off"
    if download:
        try:
            with nullcontext(progress) if progress else progress_bar() as show:
                for stem in STEMS[split]:
                    urls = [mirror + f"{stem}.gz" for mirror in mirrors or PUBLISHED[name].mirrors]
                    target = cache_dir() / name / f"{stem}.gz"
                    if not target.exists():
                        fetch(urls, target, PUBLISHED[name].checksums[stem], show)
            return load_published(name, split, data_dir, download=False)
        except DownloadError as error:
            why = f"the download failed ({error})"
    looked = ", ".join(dict.fromkeys(str(place) for place in places))
    raise DataError(
        f"{name}: no files in {looked}; {why}. Put {STEMS[split][0]}.gz and {STEMS[split][1]}.gz into a folder "
        f"and name it with --data-dir or the environment variable {ENVIRONMENT}",
        dataset=name,
    )


def cache_dir() -> Path:
    """Return fedloom's own cache folder, where this platform keeps such folders; ``XDG_CACHE_HOME`` is respected."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "fedloom"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fedloom"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "fedloom" / "Cache"
    return Path.home() / ".cache" / "fedloom"


def _places(name: str, data_dir: str | Path | None) -> Iterator[Path]:
    """Yield the folders and archives where the files may be, in the order in which they are looked at."""
    torchvision = PUBLISHED[name].torchvision
    for root in (data_dir, os.environ.get(ENVIRONMENT)):
        if root:
            yield from (Path(root) / name, Path(root), Path(root) / torchvision / "raw", Path(root) / f"{name}.npz")
    keras = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "datasets"
    yield from (keras / name, keras / f"{name}.npz")
    for root in (Path("data"), Path.home() / "data"):  # torchvision has no folder of its own; its examples use these
        yield root / torchvision / "raw"
    yield Path("/usr/share/datasets") / name
    yield cache_dir() / name


def _read_place(name: str, split: str, place: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Read (images, labels) from a folder or an archive; None when they are not there."""
    if place.suffix == ".npz":
        return _read_keras_archive(name, split, place) if place.is_file() else None
    paths = [_find(place, stem) for stem in STEMS[split]]
    arrays = []
    for stem, path in zip(reversed(STEMS[split]), reversed(paths), strict=True):  # the labels are small: first
        if path is None:
            return None
        raw = _read_raw(path)
        if not _is_published(name, stem, raw, path):
            return None
        axes = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
        arrays.append(np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3]).reshape(axes))
    return arrays[1], arrays[0]


def _read_keras_archive(name: str, split: str, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    arrays = []
    for stem, key in zip(STEMS[split], _KERAS_KEYS[split], strict=True):
        with reading(path, key), np.load(path, allow_pickle=False) as archive:
            array = np.ascontiguousarray(archive[key], dtype=np.uint8)
        header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
        if not _is_published(name, stem, bytearray(header) + array.tobytes(), path):
            return None
        arrays.append(array)
    return arrays[0], arrays[1]


def _find(folder: Path, stem: str) -> Path | None:
    dotted = stem.replace("-idx", ".idx")  # as some collections name the unpacked files
    for file in (f"{stem}.gz", stem, dotted, f"{dotted}.gz"):
        if (folder / file).is_file():
            return folder / file
    return None


def _read_raw(path: Path) -> bytearray:
    """Read the raw bytes of a file, plain or gzip, into memory that NumPy may write to."""
    try:
        data = path.read_bytes()
        return bytearray(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged, or cannot be read ({error}); remove it to fetch it again") from error


def _is_published(name: str, stem: str, raw: bytes | bytearray, path: Path) -> bool:
    """Tell whether these are the published bytes; False when they are those of another published data set.

    Raises:
        DataError: They are neither: the file is damaged.
    """
    digest = hashlib.sha256(raw).hexdigest()
    if digest == PUBLISHED[name].checksums[stem]:
        return True
    if any(digest == other.checksums[stem] for other in PUBLISHED.values()):
        return False
    raise DataError(
        f"{path}: not the published {name} file {stem} (SHA-256 {digest[:12]}..., expected "
        f"{PUBLISHED[name].checksums[stem][:12]}...); remove it to fetch it again",
        file=str(path),
        expected=PUBLISHED[name].checksums[stem],
        found=digest,
    )
