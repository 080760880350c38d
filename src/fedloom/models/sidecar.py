"""Sidecar: the JSON that travels beside a model file (``ana.keras``, ``ana.json``).

It says what a merge needs and a file cannot say: samples, local steps, the optimiser, which start, which round; and how
to rebuild the model. It carries the checksum of its file, so that a sidecar left over from another file is noticed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedloom import files
from fedloom.errors import DataError, FedloomError, ModelError
from fedloom.models.architecture import Architecture

_MOST = 1 << 24  # of classes, and of any axis of a sample
_MOST_MEMBERS = 1000


@dataclass(frozen=True)
class Sidecar:
    """What is known of a model file.

    Attributes:
        model: ``Model.describe()``: architecture, input shape, classes, input scale.
        client: The member that trained it; empty for a merged model.
        samples: Training samples; 0 when unknown.
        steps: Local optimiser steps since the start; 0 when unknown.
        local: The local configuration: ``LocalConfig.to_json()`` and ``prox_mu``.
        seed: Of batch orders and dropout.
        start: Digest of the vector that training started from; empty when unknown.
        round: The round that the start belongs to, from 0.
        metrics: Final ``loss``, ``accuracy`` and, on the shared test set, ``test_loss``, ``test_accuracy``.
        history: One entry per epoch: ``epoch, loss, accuracy, val_loss, val_accuracy, seconds``.
        class_names: Of the data.
        class_counts: Training samples per class.
        merge: For a merged model: ``method``, ``options``, ``members``, ``weights``; for the model of a simulation
            ``rounds``, ``clients`` and ``per_round`` instead of the last two.
        privacy: For a model whose clients, or their samples, are hidden by noise: what was promised, and ``epsilon``,
            what it came to; empty for all others.
        file_sha256: Checksum of the model file.
        version: The fedloom that wrote it.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    client: str = ""
    samples: int = 0
    steps: int = 0
    local: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    start: str = ""
    round: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: tuple[Mapping[str, float], ...] = ()
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    merge: Mapping[str, Any] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=dict)
    file_sha256: str = ""
    version: str = ""


def path_of(model_path: str | Path) -> Path:
    """Return where the sidecar of a model file lies.

    Example:
        >>> path_of("parts/ana/ana.keras").as_posix()
        'parts/ana/ana.json'
    """
    return Path(model_path).with_suffix(".json")


def write(model_path: str | Path, sidecar: Sidecar) -> Path:
    """Write the sidecar of a model file that exists, with its checksum; returns the sidecar's path."""
    from fedloom import __version__

    value = asdict(sidecar) | {"file_sha256": files.sha256(model_path), "version": __version__}
    files.write_json(path_of(model_path), value)
    return path_of(model_path)


def read(model_path: str | Path) -> tuple[Sidecar | None, str]:
    """Read the sidecar of a model file.

    Returns:
        The sidecar, or None when there is none that belongs to the file; and then the reason, in words.

    Raises:
        DataError: The sidecar is damaged.
    """
    path = path_of(model_path)
    if not path.is_file():
        return None, f"no sidecar {path.name}"
    value = files.read_json(path)
    if "file_sha256" not in value or "model" not in value:
        return None, f"{path.name} is not a sidecar of fedloom"
    if value["file_sha256"] != files.sha256(model_path):
        return None, f"{path.name} belongs to another version of {Path(model_path).name}: its checksum differs"
    found = files.from_json(Sidecar, value, path)
    for name, default in vars(Sidecar()).items():
        if not isinstance(getattr(found, name), type(default)):
            raise DataError(f"{path}: damaged: '{name}' is {getattr(found, name)!r:.40}", file=str(path))
    return found, ""


def description(path: str | Path, value: object) -> dict[str, Any]:
    """Check what a sidecar or a file's metadata says of its model: somebody else may have written it.

    Args:
        path: The model file, for the message.
        value: What ``Model.describe()`` gave, or an empty mapping.

    Returns:
        A copy; every field that is there has its type and a sane size.

    Raises:
        ModelError: A field is damaged; it is named.
    """
    known = dict(value) if isinstance(value, Mapping) else {}
    architecture = known.get("architecture", {"kind": "bare"})
    wrong = "" if isinstance(value, Mapping) and isinstance(architecture, Mapping) else "no JSON object"
    if not wrong:
        try:
            arguments = Architecture.from_json(architecture).arguments
        except FedloomError as error:
            wrong = str(error)
        else:
            high = known.get("input_high")
            rules = {
                "input_high": high is None or (isinstance(high, int | float) and 0 < high < math.inf),
                "input_shape": all(_is_shape(a.get("input_shape", ())) for a in (known, arguments)),
                "n_classes": all(_is_count(a.get("n_classes", 0), _MOST) for a in (known, arguments)),
                "members": _is_count(arguments.get("members", 0), _MOST_MEMBERS),
            }
            wrong = next((name for name, fine in rules.items() if not fine), "")
    if wrong:
        raise ModelError(f"{path}: what its sidecar or metadata says of the model is damaged ({wrong})", file=str(path))
    return known


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and 0 <= value <= most


def _is_shape(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(n, int) and -1 <= n <= _MOST for n in value)


def digest(vector: torch.Tensor) -> str:
    """Return a short hash of a vector (P,): equal for the same numbers, whatever file they came in.

    Example:
        >>> digest(torch.zeros(3)) == digest(torch.zeros(3)), digest(torch.zeros(3)) == digest(torch.ones(3))
        (True, False)
    """
    return hashlib.sha256(vector.detach().cpu().float().contiguous().numpy().data).hexdigest()[:16]
