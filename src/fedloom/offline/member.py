"""A member's folder: its data, the shared test set, the shared start, and ``member.json`` that describes them.

The folder is all that a member needs; it can be mailed. ``member.json`` is written last, so a folder with one is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedloom import files
from fedloom.data.dataset import Dataset
from fedloom.errors import DataError
from fedloom.report import words

DESCRIPTION = "member.json"
MANIFEST = "manifest.json"
ROUNDS = "rounds"


@dataclass(frozen=True)
class Member:
    """What ``member.json`` says.

    Attributes:
        client: The member's name.
        dataset: The name of the data set that was split.
        class_names: Its classes.
        high: The full scale of the stored inputs (255 for 8-bit images), None for features.
        feature_names: Of a feature table.
        start: The file of the current shared start, inside the folder.
        start_digest: The digest of its vector.
        round: The number of rounds merged so far.
        model: ``Model.describe()`` of the start.
        checksums: SHA-256 of the arrays' files.
        seed: The seed of the split.
    """

    client: str
    dataset: str
    class_names: tuple[str, ...]
    high: float | None
    start: str
    start_digest: str
    round: int = 0
    feature_names: tuple[str, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def write(self, folder: Path) -> None:
        """Write ``member.json`` into ``folder``."""
        files.write_json(folder / DESCRIPTION, asdict(self))

    def at_round(self, number: int, start: str, digest: str) -> Member:
        """Return the description with another shared start."""
        return replace(self, round=number, start=start, start_digest=digest)

    def trained(self, folder: Path) -> Path:
        """Return where ``train`` writes the member's model when nothing else is said."""
        return folder / f"{self.client}{Path(self.start).suffix}"

    def train_command(self, folder: Path) -> str:
        """Return the command that trains the member in ``folder``; it names the model's code where the files need it."""
        file, _, function = str(self.model.get("architecture", {}).get("factory", "")).partition(":")
        if not file:
            return words.command("fedloom", "train", folder)
        code = folder / Path(file).name if file.endswith(".py") else file
        return words.command("fedloom", "train", folder, "--model", f"{code}:{function}")

    def first_start(self, folder: Path) -> Path:
        """Return the start of round 0, which stays in the folder while rounds pass.

        Raises:
            DataError: It is missing.
        """
        path = folder / f"start{Path(self.start).suffix}"
        if not path.is_file():
            raise DataError(f"{path}: the initial model is missing; ask for the folder again", file=str(path))
        return path

    def load(self, folder: Path, part: str) -> Dataset:
        """Read the member's own samples (``part="train"``) or the shared test set (``"test"``).

        Raises:
            DataError: A file is missing, damaged, or not the one that was handed out.
        """
        names = (f"{self.client}_X.npy", f"{self.client}_Y.npy") if part == "train" else TEST_FILES
        x, y = (self._array(folder / name) for name in names)
        name = self.client if part == "train" else "the shared test set"
        dataset = Dataset(x, np.asarray(y, dtype=np.int64), self.class_names, self.high, name, None, self.feature_names)
        dataset.check()
        return dataset

    def _array(self, path: Path) -> np.ndarray:
        try:
            array: np.ndarray = np.load(path, allow_pickle=False)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; ask for the folder again", file=str(path)) from error
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path}: damaged, or not a .npy array ({error})", file=str(path)) from error
        expected = self.checksums.get(path.name)
        if expected and files.sha256(path) != expected:
            raise DataError(f"{path}: not the file that was handed out, its checksum differs", file=str(path))
        return array


TEST_FILES = ("x_test_fed.npy", "y_test_fed.npy")


def read(folder: str | Path) -> Member:
    """Read the description of a member's folder.

    Raises:
        DataError: The folder is none that ``fedloom split`` wrote.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; 'fedloom split' makes one per member", file=str(folder))
    if not (folder / DESCRIPTION).is_file():
        inner = [f for f in folder.iterdir() if (f / DESCRIPTION).is_file()]
        hint = f"choose one member's folder, such as {inner[0]}" if inner else "'fedloom split' makes such folders"
        raise DataError(f"{folder}: holds no {DESCRIPTION}; {hint}", file=str(folder))
    return files.from_json(Member, files.read_json(folder / DESCRIPTION), folder / DESCRIPTION)


def folders(parts: str | Path) -> list[Path]:
    """Return the members' folders below ``parts``, in the manifest's order.

    Raises:
        DataError: ``parts`` is no folder that ``fedloom split`` wrote, or a member's folder is missing.
    """
    parts = Path(parts)
    if not (parts / MANIFEST).is_file():
        raise DataError(f"{parts}: holds no {MANIFEST}; 'fedloom split --out {parts}' makes it", file=str(parts))
    names = [row["name"] for row in files.read_json(parts / MANIFEST)["members"]]
    missing = [name for name in names if not (parts / name / DESCRIPTION).is_file()]
    if missing:
        raise DataError(f"{parts}: the folder of {', '.join(missing)} is missing", file=str(parts))
    return [parts / name for name in names]
