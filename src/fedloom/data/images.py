"""Reader of a folder of images per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.data.dataset import Dataset
from fedloom.data.spec import Spec
from fedloom.errors import DataError, UsageError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read_folder(spec: Spec) -> tuple[Dataset, Dataset | None]:
    """Read ``FOLDER/CLASS/*.png``, or the same below ``FOLDER/train`` and ``FOLDER/test``.

    The files may be png, jpg, bmp, gif, tif, webp, pgm or ppm; others are left alone.

    The classes are the sorted names of the folders. The images become uint8: (N, H, W) when all of them are grey, else
    (N, H, W, 3). Options: ``size=WIDTHxHEIGHT`` to resize them (``size=64`` for squares), ``color=grey|rgb``.

    Raises:
        DataError: A damaged or 16-bit image, sizes that differ, a class without images, classes of the test images that
            are none of the others; the file is named.
    """
    spec.expect("a folder of images", ("size", "color"))
    root = Path(spec.path)
    size, color = _size(spec), spec.options.get("color")
    if color not in (None, "grey", "rgb"):
        raise UsageError(f"{root}: color={color}, grey or rgb is expected", found=color)
    if {path.name for path in _folders(root)} != {"train", "test"}:
        return _read(root, size, color, None), None
    train = _read(root / "train", size, color, None)
    grey = "grey" if len(train.input_shape) == 2 else "rgb"
    test = _read(root / "test", (train.input_shape[1], train.input_shape[0]) if size else None, grey, train.class_names)
    if test.input_shape != train.input_shape:
        raise DataError(
            f"{root / 'test'}: images of {_text(test.input_shape)}, those in train have {_text(train.input_shape)}; "
            f"resize them: {root}:size=WIDTHxHEIGHT",
            file=str(root / "test"),
            expected=train.input_shape,
            found=test.input_shape,
        )
    return train, test


def _read(root: Path, size: tuple[int, int] | None, color: str | None, classes: tuple[str, ...] | None) -> Dataset:
    """Read one folder of folders; ``classes`` are the names that are allowed, ``size`` is (width, height)."""
    names = tuple(path.name for path in _folders(root))
    if not names:
        raise DataError(f"{root}: a folder of images per class is expected, found no folders in it", file=str(root))
    strange = [name for name in names if classes is not None and name not in classes]
    if strange:
        raise DataError(f"{root / strange[0]}: '{strange[0]}' is none of the classes ({', '.join(classes or ())})")
    files, labels = [], []
    for name in names:
        found = sorted(p for p in (root / name).iterdir() if p.suffix.lower() in _SUFFIXES and p.name[0] != ".")
        if not found:
            raise DataError(
                f"{root / name}: no images ({', '.join(_SUFFIXES)}) of class '{name}'", file=str(root / name)
            )
        files += found
        labels += [name] * len(found)
    pictures, modes = [], []
    for file in files:
        picture, mode = _open(file, size, color)
        pictures.append(picture)
        modes.append(mode)
    if color is None and all(mode in _GREY for mode in modes):
        pictures = [picture[..., 0] for picture in pictures]
    _check_sizes(root, files, pictures)
    return Dataset.of(np.stack(pictures), labels, name=str(root), class_names=classes or names, high=255.0)


def _open(file: Path, size: tuple[int, int] | None, color: str | None) -> tuple[NDArray[np.uint8], str]:
    """Decode an image to uint8, (H, W) when grey is asked for, else (H, W, 3); the mode is that of the file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            mode: str = image.mode
            if mode in _DEEP:
                raise DataError(f"{file}: more than 8 bits per channel ({mode}); save it with 8 bits", file=str(file))
            upright: Any = ImageOps.exif_transpose(image).convert("L" if color == "grey" else "RGB")
            if size is not None and upright.size != size:
                upright = upright.resize(size, Image.Resampling.BILINEAR)
            return np.array(upright, dtype=np.uint8), mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: a damaged image, or none ({error})", file=str(file)) from error


def _check_sizes(root: Path, files: list[Path], pictures: list[NDArray[np.uint8]]) -> None:
    first = pictures[0].shape
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != first:
            raise DataError(
                f"{file}: {_text(picture.shape)} pixels, but {files[0]} has {_text(first)}; resize them: "
                f"{root}:size={first[1]}x{first[0]}",
                file=str(file),
                expected=first,
                found=picture.shape,
            )


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._")


def _size(spec: Spec) -> tuple[int, int] | None:
    text = spec.options.get("size")
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    height = height or width
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) <= 8192 and 0 < int(height) <= 8192):
        raise UsageError(f"{spec.path}: size={text}, WIDTHxHEIGHT in pixels is expected", found=text)
    return int(width), int(height)


def _text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
