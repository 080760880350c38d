"""Reader of a member's part: ``NAME_X.npy``, ``NAME_Y.npy``, the shared test samples, ``member.json`` about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedloom.data.arrays import pair, read_npy
from fedloom.data.dataset import Dataset
from fedloom.data.spec import Spec
from fedloom.errors import DataError
from fedloom.files import read_json

X_TEST, Y_TEST, ABOUT = "x_test_fed.npy", "y_test_fed.npy", "member.json"


def is_part(folder: Path) -> bool:
    """Tell whether a folder is a member's part."""
    return any(folder.glob("*_X.npy"))


def read_part(spec: Spec) -> tuple[Dataset, Dataset | None]:
    """Read a member's folder: (its samples, the shared test samples or None).

    Without ``member.json`` the classes and the scale are taken from the numbers, as for any pair of files.

    Raises:
        DataError: A file is missing or damaged, or the folder holds several members' files.
    """
    spec.expect("a member's folder", ())
    folder = Path(spec.path)
    found = sorted(folder.glob("*_X.npy"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        raise DataError(
            f"{folder}: one file NAME_X.npy is expected, found {names or 'none'}; name one member's folder, or a pair: "
            f"{folder / 'NAME_X.npy'},{folder / 'NAME_Y.npy'}",
            file=str(folder),
        )
    arrays = {"x": read_npy(found[0]), "y": read_npy(folder / (found[0].name[: -len("_X.npy")] + "_Y.npy"))}
    if (folder / X_TEST).exists():
        arrays |= {"x_test": read_npy(folder / X_TEST), "y_test": read_npy(folder / Y_TEST)}
    if not (folder / ABOUT).exists():
        return pair(arrays, str(found[0]), "guess")
    high, classes, features = _about(folder / ABOUT)
    train = Dataset.of(
        arrays["x"], arrays["y"], name=str(found[0]), class_names=classes, high=high, feature_names=features
    )
    if "x_test" not in arrays:
        return train, None
    test = Dataset.of(
        arrays["x_test"],
        arrays["y_test"],
        name=str(folder / X_TEST),
        class_names=classes,
        high=high,
        feature_names=features,
    )
    return train, test


def _about(path: Path) -> tuple[float | None, Sequence[str], Sequence[str]]:
    about = read_json(path)
    high, classes, features = about.get("high"), about.get("class_names"), about.get("feature_names", [])
    texts = all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in (classes, features))
    if not texts or not classes or not (high is None or (isinstance(high, int | float) and high > 0)):
        raise DataError(f"{path}: class_names, high and feature_names are expected; was it edited?", file=str(path))
    return None if high is None else float(high), classes, features
