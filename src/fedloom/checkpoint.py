"""Checkpoints: what the next round needs, on disk. A run that was killed goes on from one with the same bits.

A checkpoint is one safetensors file, written atomically; the last two are kept. Clients' states lie beside them, see
:mod:`fedloom.store`.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedloom.algorithms.base import Broadcast
from fedloom.errors import DataError
from fedloom.files import read_tensors, storage_error, write_tensors
from fedloom.rounds import Snapshot
from fedloom.store import ClientStore

KEPT = 2
RESTS = 4 << 20
"""Tensors of so many bytes can lie on the disk between rounds."""
FORMAT = 1
CLIENTS = "clients"
_KEY = "fedloom"


def begin(folder: str | Path, keeps: bool, device: torch.device | None = None) -> ClientStore | None:
    """Begin a new run: checkpoints of an earlier one are deleted.

    Args:
        folder: Of the checkpoints.
        keeps: Whether clients keep something between their turns (``algorithm.keeps``).
        device: Where the tensors go that are read from the store.

    Returns:
        An empty store for the clients' states; None where there are none.
    """
    _delete(Path(folder), numbers(folder))
    return ClientStore(_clients_folder(folder), device) if keeps else None


def save(folder: str | Path, snapshot: Snapshot, store: ClientStore | None = None) -> Path:
    """Write a checkpoint, and delete those that are older than the one before it.

    Args:
        folder: Of the checkpoints.
        snapshot: What the next round begins with.
        store: The clients' states, of :func:`begin` or :func:`load`; None where the algorithm keeps none.

    Returns:
        The checkpoint's file.

    Raises:
        StorageError: The disk is full; the checkpoints before are as they were.
    """
    folder = Path(folder)
    about = None if store is None else store.seal(snapshot.round)
    tensors = _tensors(snapshot)
    facts = {
        "format": FORMAT,
        "round": snapshot.round,
        "empty": snapshot.empty,
        "schedule": dict(snapshot.schedule),
        "accounts": dict(snapshot.accounts),
        "clients": about,
        "crc": _crc(tensors),
    }
    path = _path(folder, snapshot.round)
    write_tensors(path, tensors, {_KEY: json.dumps(facts)})
    found = numbers(folder)
    _delete(folder, found[:-KEPT])
    if store is not None and len(found) > 1:
        store.settle(found[-KEPT])
    return path


def rest(path: Path, state: Mapping[str, Tensor]) -> None:
    """Let the large tensors of a state lie in the checkpoint that was just written of it, and no more in memory.

    Everybody who has one of these tensors has it still, with the same numbers; they are read from the disk when they are
    looked at, and take no memory of the process until they are changed. They stay in memory where a file that is looked at
    cannot be deleted (Windows), as old checkpoints are.

    Args:
        path: What :func:`save` returned.
        state: The state that was saved.
    """
    if os.name != "posix":
        return
    found, _ = read_tensors(path)
    for key, tensor in state.items():
        there = found.get(f"state/{key}")
        if there is not None and tensor.device.type == "cpu" and tensor.nbytes >= RESTS:
            tensor.data = there


def load(folder: str | Path, device: torch.device | None = None) -> tuple[Snapshot, ClientStore | None]:
    """Read the newest checkpoint, or the one before it where the newest is damaged; damaged ones are deleted.

    Args:
        folder: Of the checkpoints.
        device: Where the tensors go.

    Returns:
        The snapshot, and the clients' states as they were then; None where the algorithm keeps none.

    Raises:
        DataError: There is none, or all are damaged.
    """
    folder = Path(folder)
    found = numbers(folder)
    if not found:
        raise DataError(f"{folder}: no checkpoint is here: start the run without --resume", file=str(folder))
    problem = ""
    for number in reversed(found):
        try:
            facts, tensors = _read(_path(folder, number))
            store = _store(folder, facts, device)
        except DataError as error:
            problem = problem or str(error)
            continue
        _delete(folder, [n for n in found if n > number])
        return _snapshot(facts, tensors, device), store
    raise DataError(f"{folder}: no checkpoint can be read: start again ({problem})", file=str(folder))


def numbers(folder: str | Path) -> list[int]:
    """Return the rounds that have a checkpoint, oldest first."""
    stems = [path.stem.removeprefix("round-") for path in Path(folder).glob("round-*.safetensors")]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _clients_folder(folder: str | Path) -> Path:
    """Return where the clients' states of these checkpoints are."""
    return Path(folder) / CLIENTS


def _path(folder: Path, number: int) -> Path:
    return folder / f"round-{number:08d}.safetensors"


def _delete(folder: Path, old: list[int]) -> None:
    for number in old:
        path = _path(folder, number)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error


def _tensors(snapshot: Snapshot) -> dict[str, Tensor]:
    tensors = {f"state/{key}": value for key, value in snapshot.state.items()}
    for number, sent in snapshot.versions.items():
        tensors[f"version/{number}/vector"] = sent.vector
        tensors |= {f"version/{number}/extra/{key}": value for key, value in sent.extra.items()}
    return {key: value.detach().cpu() for key, value in tensors.items()}


def _crc(tensors: Mapping[str, Tensor]) -> int:
    crc = 0
    for key in sorted(tensors):
        flat = tensors[key].contiguous().reshape(-1).view(torch.uint8)
        crc = zlib.crc32(flat.numpy().data, zlib.crc32(key.encode(), crc))
    return crc


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors, metadata = read_tensors(path)
    try:
        facts: dict[str, Any] = json.loads(metadata[_KEY])
        written, crc = facts["format"], facts["crc"]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a checkpoint ({error})", file=str(path)) from error
    if written != FORMAT:
        raise DataError(f"{path}: written by another version of fedloom (format {written})", file=str(path))
    if crc != _crc(tensors):
        raise DataError(f"{path}: damaged (its checksum is another)", file=str(path))
    return facts, tensors


def _store(folder: Path, facts: Mapping[str, Any], device: torch.device | None) -> ClientStore | None:
    about = facts["clients"]
    return None if about is None else ClientStore.resume(_clients_folder(folder), about, facts["round"], device)


def _snapshot(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device | None) -> Snapshot:
    state: dict[str, Tensor] = {}
    vectors: dict[int, Tensor] = {}
    extras: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        value = value.to(device)
        kind, _, rest = key.partition("/")
        if kind == "state":
            state[rest] = value
            continue
        number, _, rest = rest.partition("/")
        if rest == "vector":
            vectors[int(number)] = value
        else:
            extras.setdefault(int(number), {})[rest.removeprefix("extra/")] = value
    versions = {number: Broadcast(vectors[number], extras.get(number, {})) for number in sorted(vectors)}
    return Snapshot(facts["round"], state, versions, facts["schedule"], facts["empty"], facts.get("accounts", {}))
