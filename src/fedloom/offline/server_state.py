"""The memory of a server optimiser, kept beside the global model that it belongs to."""

from __future__ import annotations

from pathlib import Path

import torch

from fedloom import files
from fedloom.errors import DataError
from fedloom.merging import METHODS, Merged
from fedloom.models import sidecar


def state_path(path: Path) -> Path:
    """Return where the memory of a server optimiser lies that belongs to a global model."""
    return path.with_name(f"{path.stem}.server.safetensors")


def read_state(path: Path, method: str, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    """Read the server optimiser's memory beside a global model; empty when there is none of this method.

    Raises:
        DataError: The memory belongs to another model, or is damaged.
    """
    beside = state_path(path)
    if METHODS[method].family != "server" or not beside.is_file():
        return {}
    state, metadata = files.read_tensors(beside)
    if metadata.get("method") != method:
        return {}
    if metadata.get("model") != sidecar.digest(vector):
        raise DataError(f"{beside} belongs to another model than {path.name}: remove it, or restore the model")
    return state


def write_state(path: Path, method: str, merged: Merged) -> None:
    """Write the server optimiser's memory beside a global model; drop what an earlier model of that name left."""
    if not merged.state:
        state_path(path).unlink(missing_ok=True)
    else:
        metadata = {"method": method, "model": sidecar.digest(merged.vector)}
        files.write_tensors(state_path(path), merged.state, metadata)
