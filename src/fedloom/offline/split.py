"""Split: cut a data set into one folder per member, each with the same initial model."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedloom import files, partition
from fedloom.data import load_pair
from fedloom.data.dataset import Dataset
from fedloom.errors import StorageError, UsageError, unknown
from fedloom.models import io, sidecar
from fedloom.models.model import Model
from fedloom.offline.member import MANIFEST, TEST_FILES, Member
from fedloom.offline.member import read as read_member
from fedloom.report import class_distribution, save_png
from fedloom.report.tables import class_counts_html

FORMATS = ("keras", "h5", "safetensors", "pt")
START = "start"


@dataclass(frozen=True)
class Split:
    """What ``split`` made.

    Attributes:
        out: The folder that holds one folder per member.
        members: Their names.
        class_names: The classes.
        class_counts: Samples per class of each member.
        picture: The plot of the class distribution.
        model: What the shared initial model is, in words.
        command: The command that trains the first member.
    """

    out: Path
    members: tuple[str, ...]
    class_names: tuple[str, ...]
    class_counts: Mapping[str, list[int]]
    picture: Path
    model: str
    command: str

    def _repr_html_(self) -> str:
        return class_counts_html(self.class_counts, self.class_names)


def split(
    data: str | Dataset,
    clients: int | None = None,
    *,
    names: Sequence[str] | None = None,
    scheme: str = "stratified",
    out: str | Path = "parts",
    seed: int = 0,
    model: str | None = None,
    model_format: str | None = None,
    test_fraction: float = 0.2,
    data_dir: str | Path | None = None,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Split:
    """Split a data set into one folder per member.

    Every sample goes to exactly one member. All members get the same initial model: without it, models trained apart
    cannot be averaged.

    Args:
        data: ``digits``, ``mnist``, ``fashion-mnist``, the path of your own data, or a ``Dataset``.
        clients: The number of members; may be left out when ``names`` are given or the scheme knows it.
        names: The members' names; ``client-1`` and so on when left out.
        scheme: One of ``fedloom.partition.SCHEMES``.
        out: The folder to make.
        seed: Of the split and of the initial weights.
        model: A zoo name, ``file.py:function``, ``module:name`` or a Keras file; ``cnn-small`` for images and ``2nn``
            for other data when left out.
        model_format: ``keras``, ``h5``, ``safetensors`` or ``pt``; ``keras``, or ``pt`` for a PyTorch factory, when left out.
        test_fraction: The share that is held out (stratified) as the common test set when the data bring none.
        data_dir: Where the data sets lie.
        overwrite: Replace ``out`` when it exists and was made by ``split``.
        options: Of the scheme: ``alpha``, ``labels``, ``shards``, ...

    Returns:
        What was made, with a notebook view.

    Raises:
        UsageError: Unknown names, or options that contradict each other.
        DataError: Data that cannot be split that way; the numbers are named.
        StorageError: ``out`` exists, or cannot be written.
    """
    if model_format not in (None, *FORMATS):
        raise unknown("format", model_format, FORMATS)
    out = Path(out)
    _check_out(out, overwrite)
    train, test = load_pair(data, data_dir, test_fraction=test_fraction, seed=seed)
    n_clients = _n_clients(clients, names, scheme)
    parts = partition.partition(scheme, train.y, n_clients, seed, column=train.column, options=options)
    members = _names(names, len(parts), scheme, train)
    reference = model or default_model(train)
    start = io.create(reference, train, seed=seed)
    form = model_format or ("pt" if start.architecture.kind == "torch" else "keras")
    job = _Job(train, test, start, reference, form, scheme, dict(options or {}), seed)
    counts = {
        name: np.bincount(train.y[p], minlength=len(train.class_names)).tolist()
        for name, p in zip(members, parts, strict=True)
    }
    temporary = _temporary(out)
    try:
        for name, index in zip(members, parts, strict=True):
            _write_member(temporary / name, name, train.take(index), job)
        figure = class_distribution(counts, train.class_names)
        save_png(figure, temporary / "class_distribution.png")
        files.write_json(temporary / MANIFEST, _manifest(job, counts, temporary))
        _publish(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    command = read_member(out / members[0]).train_command(out / members[0])
    picture = out / "class_distribution.png"
    return Split(out, members, train.class_names, counts, picture, _describe(reference, start), command)


def default_model(data: Dataset) -> str:
    """Choose the zoo model for data without a choice: a small CNN for images, two dense layers for everything else."""
    shape = data.x.shape[1:]
    return "cnn-small" if len(shape) in (2, 3) and min(shape[:2]) >= 8 else "2nn"


def _n_clients(clients: int | None, names: Sequence[str] | None, scheme: str) -> int | None:
    if names and clients and len(names) != clients:
        raise UsageError(f"{len(names)} names are given for {clients} clients")
    count = clients or (len(names) if names else None)
    if clients is not None and clients < 1:
        raise UsageError(f"clients is {clients}; it must be at least 1")
    if count is None and scheme in partition.SCHEMES and scheme != "by-column":
        raise UsageError("the number of clients is needed: pass --clients 6, or --names ana,luis,...")
    return count


def _names(names: Sequence[str] | None, count: int, scheme: str, data: Dataset) -> tuple[str, ...]:
    if not names and scheme == "by-column" and data.column is not None:
        found = tuple(_folder_name(str(v)) for v in np.unique(data.column))
        names = found if len(set(found)) == len(found) else None
    if not names:
        width = len(str(count))
        return tuple(f"client-{i + 1:0{width}d}" for i in range(count))
    if len(names) != count:
        raise UsageError(f"{len(names)} names are given, the scheme '{scheme}' makes {count} parts")
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UsageError(f"the name '{name}' cannot be a folder, take '{_folder_name(name)}'")
    twice = sorted({n for n in names if [m.lower() for m in names].count(n.lower()) > 1})
    if twice:
        raise UsageError(f"the name {twice[0]} is given twice")
    return tuple(names)


def _folder_name(text: str) -> str:
    """Return the name of a member's folder: letters, digits, '-', '_' and '.', the first a letter or a digit."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._-") or "empty"


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise StorageError(f"{out} exists and was not made by 'fedloom split': choose another --out", file=str(out))
    if not overwrite:
        raise StorageError(f"{out} exists: choose another --out, or pass --overwrite to replace it", file=str(out))


def _temporary(out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise files.storage_error(out, error) from error


def _publish(temporary: Path, out: Path) -> None:
    try:
        temporary.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    except OSError as error:
        raise files.storage_error(out, error) from error


@dataclass(frozen=True)
class _Job:
    """What all members of one split have in common."""

    train: Dataset
    test: Dataset
    start: Model
    reference: str
    model_format: str
    scheme: str
    options: Mapping[str, Any]
    seed: int


def _write_member(folder: Path, name: str, own: Dataset, job: _Job) -> None:
    arrays = {f"{name}_X.npy": own.x, f"{name}_Y.npy": own.y, TEST_FILES[0]: job.test.x, TEST_FILES[1]: job.test.y}
    for file, array in arrays.items():
        with files.atomic(folder / file) as temporary, temporary.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
    start_file = f"{START}.{job.model_format}"
    io.save(job.start, folder / start_file)
    code = job.start.architecture.factory.partition(":")[0]
    if code.endswith(".py"):
        files.copy((job.start.architecture.base or Path()) / code, folder / Path(code).name)
    described = Member(
        client=name,
        dataset=own.name,
        class_names=own.class_names,
        high=own.high,
        feature_names=own.feature_names,
        start=start_file,
        start_digest=sidecar.digest(job.start.vector()),
        model=job.start.describe(),
        checksums={file: files.sha256(folder / file) for file in arrays},
        seed=job.seed,
    )
    described.write(folder)
    files.write_text(folder / "README.md", _readme(described, own, job.model_format))


def _readme(described: Member, own: Dataset, form: str) -> str:
    name = described.client
    return (
        f"{name}: {len(own)} samples of {own.name}; start.{form} is the initial model that every member shares.\n"
        f"Beside this folder, run `{described.train_command(Path(name))}`; or go on from start.{form} in a program of "
        "your own.\n"
        f"Send back {name}.{form} and {name}.json; the data stay with you.\n"
    )


def _manifest(job: _Job, counts: Mapping[str, list[int]], folder: Path) -> dict[str, Any]:
    from fedloom import __version__

    rows = [
        {
            "name": name,
            "samples": sum(count),
            "class_counts": count,
            "sha256": {f.name: files.sha256(f) for f in sorted((folder / name).iterdir())},
        }
        for name, count in counts.items()
    ]
    return {
        "fedloom": __version__,
        "dataset": job.train.name,
        "samples": len(job.train),
        "test_samples": len(job.test),
        "class_names": list(job.train.class_names),
        "scheme": job.scheme,
        "options": dict(job.options),
        "seed": job.seed,
        "model": job.reference,
        "format": job.model_format,
        "parameters": job.start.layout.trainable,
        "start_digest": sidecar.digest(job.start.vector()),
        "round": 0,
        "members": rows,
    }


def _describe(reference: str, start: Model) -> str:
    return f"{reference}, {start.layout.trainable:,} parameters"
