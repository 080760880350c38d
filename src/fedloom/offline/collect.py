"""Collect the members' model files: find them, read their sidecars, read their vectors one at a time."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedloom.errors import ArchitectureError, DataError, MergeError, UsageError
from fedloom.merging import Entry
from fedloom.models import io, sidecar
from fedloom.models.model import Model
from fedloom.models.sidecar import Sidecar
from fedloom.offline import member as members

GLOBAL = {"global", "merged", "average", "fedavg", "fednova"}
"""A file without a sidecar that has one of these words in its name is a merged model, not a member's."""

SUFFIXES = (".keras", ".h5", ".hdf5", ".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class ModelFile:
    """A model file and what its sidecar says.

    Attributes:
        path: The file.
        name: What to call it: the file's stem, or as much of the path as tells it from the others.
        sidecar: None when there is none that belongs to the file.
        reason: Why there is none.
    """

    path: Path
    name: str
    sidecar: Sidecar | None
    reason: str = ""

    @property
    def entry(self) -> Entry:
        """What a merging method is told about the member."""
        known = self.sidecar or Sidecar()
        return Entry(str(self.path), known.samples, known.steps, known.local)

    @property
    def is_merge(self) -> bool:
        """Whether it is a merged model: its sidecar says so, or its name where it has none."""
        if self.sidecar:
            return bool(self.sidecar.merge)
        return not GLOBAL.isdisjoint(re.split(r"[^a-z]+", self.path.stem.lower()))


def model_files(patterns: Sequence[str | Path]) -> list[ModelFile]:
    """Find model files by path or pattern (``parts/*/*.keras``), in the order given, each once.

    A member's folder stands for the model file that the member trained. The shared starts in members' folders, which
    a pattern such as ``parts/*/*.keras`` also matches (the shell may have expanded it), are left out when other files
    are there.

    Raises:
        DataError: A pattern matches nothing, or a path is no model file.
        UsageError: A path with another suffix.
    """
    paths: dict[Path, Path] = {}
    for pattern in patterns:
        for path in _matches(str(pattern)):
            paths.setdefault(path.resolve(), path)
    found = list(paths.values())
    trained = [path for path in found if not _is_start(path)]
    if not trained and len(found) != 1:
        raise DataError("no model files are given, or only shared starts: name the files that the members trained")
    chosen = trained or found
    return [ModelFile(path, name, *sidecar.read(path)) for path, name in zip(chosen, _names(chosen), strict=True)]


def without_rounds(found: list[ModelFile]) -> list[ModelFile]:
    """Leave out the global models of earlier rounds, which ``parts/*/*.keras`` also matches, when other files are there."""
    others = [
        f for f in found if f.path.parent.name != members.ROUNDS or not (f.path.parents[1] / members.MANIFEST).is_file()
    ]
    return others or found


def read_vectors(files: Sequence[ModelFile], model: str | None = None) -> tuple[Model, Iterator[torch.Tensor]]:
    """Read the files one at a time and check that they are of one architecture.

    Args:
        files: The model files, at least one.
        model: The code of the model, where a file holds only arrays and they shall be run.

    Returns:
        The first file's model, and an iterator that reads each file's vector (P,) when it is asked for it.

    Raises:
        ArchitectureError: (While reading.) A file differs from the first one; both files and the first difference are
            named.
        MergeError: (While reading.) A vector holds NaN or infinity; file and array are named.
    """
    first = io.load(files[0].path, model)
    return first, _vectors(files, first, model)


def _vectors(files: Sequence[ModelFile], first: Model, reference: str | None) -> Iterator[torch.Tensor]:
    for file in files:
        current = first if file is files[0] else io.load(file.path, reference)
        check_same(first, current, str(files[0].path), str(file.path))
        vector = current.vector()
        check_finite(vector, current, str(file.path))
        yield vector
        del current, vector  # or they would stay while the next file is read


def check_same(expected: Model, found: Model, expected_name: str, found_name: str) -> None:
    """Raise ArchitectureError, naming the first difference, unless two models can be merged."""
    difference = io.difference(expected, found)
    if difference:
        raise ArchitectureError(f"{found_name} does not fit {expected_name}: {difference}", file=found_name)


class NotFinite(MergeError):  # noqa: N818 - what is not finite is an array
    """A model's array holds NaN or infinity."""


def check_finite(vector: torch.Tensor, model: Model, name: str) -> None:
    """Raise NotFinite when a vector (P,) holds NaN or infinity, naming file and array."""
    if torch.isfinite(vector).all():
        return
    for array, where, _ in model.layout.slices():
        bad = int((~torch.isfinite(vector[where])).sum())
        if bad:
            raise NotFinite(
                f"{name}: array '{array}' holds {bad} NaN or infinite numbers; leave the file out, or train it again",
                file=name,
                array=array,
            )


def _matches(pattern: str) -> list[Path]:
    """Return the model files that a path or pattern stands for."""
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return [_model_file(Path(pattern))]
    found = [Path(text) for text in sorted(glob.glob(pattern))]  # noqa: PTH207
    matched = [_model_file(path) for path in found if path.suffix in SUFFIXES or _of_member(path)]
    if not matched:
        what = f"nothing that is a model file ({', '.join(SUFFIXES)})" if found else "no file"
        raise DataError(f"{pattern} matches {what}")
    return matched


def _model_file(path: Path) -> Path:
    if path.is_dir():
        trained = _of_member(path)
        if trained is None:
            raise DataError(f"{path}: a folder, not a model file{_inside(path)}", file=str(path))
        path = trained
    if not path.is_file():
        raise DataError(f"{path}: no such file", file=str(path))
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: '{path.suffix}' is no model file; known: {', '.join(SUFFIXES)}")
    return path


def _inside(folder: Path) -> str:
    """Name the pattern of the model files in a folder, or in the members' folders in it; empty when there are none."""
    for below in ("*", "*/*"):
        suffixes = sorted({p.suffix for p in folder.glob(below)} & set(SUFFIXES))
        if suffixes:
            return f"; for those in it: {folder / below}{suffixes[0]}"
    return ""


def _of_member(folder: Path) -> Path | None:
    """Return the file that a member's folder stands for: what its member trained; None for any other folder."""
    if not (folder / members.DESCRIPTION).is_file():
        return None
    return members.read(folder).trained(folder)


def _is_start(path: Path) -> bool:
    """Tell whether a file is a shared start in a member's folder."""
    return path.stem.split("_")[0] == "start" and (path.parent / members.DESCRIPTION).is_file()


def _names(paths: Sequence[Path]) -> list[str]:
    stems = [p.stem for p in paths]
    if len(set(stems)) == len(stems):
        return stems
    with_parent = [f"{p.parent.name}/{p.stem}" if p.parent.name else p.stem for p in paths]
    if len(set(with_parent)) == len(with_parent):
        return with_parent
    return [str(p) for p in paths]
