"""Central training: the same model on all members' data together, the reference that a federation is measured by."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedloom import files
from fedloom.data.dataset import Dataset
from fedloom.models import io, sidecar
from fedloom.models.model import Model, device
from fedloom.models.sidecar import Sidecar
from fedloom.offline import member as members
from fedloom.offline.collect import ModelFile
from fedloom.offline.fit import fit, forget
from fedloom.report import words
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.shard import Shard


@dataclass(frozen=True)
class Central:
    """A centrally trained model.

    Attributes:
        model: The model.
        history: One entry per epoch, as ``fit`` returns them.
        seconds: Training time; 0 when it was found on disk.
        note: How it was trained, in words.
    """

    model: Model
    history: list[dict[str, float]]
    seconds: float
    note: str


def train_central(
    parts: str | Path,
    trained: Sequence[ModelFile],
    out: Path,
    reference: str | None = None,
    device_name: str | None = None,
    progress: bool = True,
    epochs: int | None = None,
) -> Central:
    """Train on all members' data together, from the shared start, as the members trained.

    The model is kept as ``central.*`` in ``out``; asked for the same again, it is taken from there.

    Args:
        parts: The folder that ``split`` made.
        trained: The members' files: the configuration that most of their sidecars tell is used.
        out: The folder to keep the model in.
        reference: The code of the model, for PyTorch factories.
        device_name: ``cpu``, ``cuda``; a GPU when there is one.
        progress: Show a progress bar.
        epochs: As many as the members trained in all their rounds when left out.

    Raises:
        DataError: ``parts`` was not made by ``split``, or a file is missing.
    """
    folders = members.folders(parts)
    described = [members.read(folder) for folder in folders]
    settings = _settings(trained)
    rounds = 1 + max((f.sidecar.round for f in trained if f.sidecar), default=0)
    settings["epochs"] = epochs or rounds * settings["epochs"]
    config = LocalConfig(**{f.name: settings[f.name] for f in fields(LocalConfig) if f.name in settings})
    start_file = described[0].first_start(folders[0])
    model = io.load(start_file, reference)
    if model.input_high is None:
        model = replace(model, input_high=described[0].model.get("input_high"))
    seed, start = described[0].seed, model.vector()
    identity = {**config.to_json(), "seed": seed, "start": sidecar.digest(start), "data": _checksums(described)}
    path = out / f"central{start_file.suffix}"
    note = f"all samples, {words.many(config.epochs, 'epoch')} of {config.optimizer}"
    kept = _kept(path, identity, reference)
    if kept:
        return Central(*kept, 0.0, note)
    where = device(device_name)
    model.to(where)
    union = _union([m.load(folder, "train") for m, folder in zip(described, folders, strict=True)])
    test = Shard.of(described[0].load(folders[0], "test"), model, "the shared test set", where)
    trainer = Trainer(model, start.to(where), Shard.of(union, model, "central", where), config, seed=seed)
    history, _ = fit(trainer, test, path, identity, progress)
    model.to(device("cpu"))
    io.save(model, path)
    record = Sidecar(
        model=model.describe(),
        client="central",
        samples=len(union),
        steps=trainer.steps,
        local=identity,
        seed=seed,
        start=sidecar.digest(start),
        history=tuple(history),
        class_names=union.class_names,
    )
    sidecar.write(path, record)
    forget(path)
    return Central(model, history, sum(row["seconds"] for row in history), note)


def _settings(trained: Sequence[ModelFile]) -> dict[str, Any]:
    """Return the configuration that most members trained with, or the defaults of ``train``."""
    known = [files.canonical(dict(f.sidecar.local)) for f in trained if f.sidecar and f.sidecar.local]
    usual: dict[str, Any] = json.loads(Counter(known).most_common(1)[0][0]) if known else {}
    return {"epochs": 5, "optimizer": "adam", "lr": 1e-3, "batch_size": 32, **usual}


def _checksums(described: Sequence[members.Member]) -> Mapping[str, str]:
    return {name: value for m in described for name, value in m.checksums.items()}


def _union(parts: Sequence[Dataset]) -> Dataset:
    x, y = np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts])
    first = parts[0]
    return Dataset(x, y, first.class_names, first.high, "all members", None, first.feature_names)


def _kept(
    path: Path, identity: Mapping[str, Any], reference: str | None
) -> tuple[Model, list[dict[str, float]]] | None:
    if not path.is_file():
        return None
    known, _ = sidecar.read(path)
    if known is None or files.canonical(dict(known.local)) != files.canonical(dict(identity)):
        return None
    return io.load(path, reference), [dict(row) for row in known.history]
