"""Fit: train to the last epoch with a progress bar, keeping every whole epoch on disk so that a stopped run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedloom import files
from fedloom.errors import DataError
from fedloom.metrics import Counts
from fedloom.offline.progress import bar
from fedloom.training.evaluate import evaluate
from fedloom.training.local import Trainer
from fedloom.training.shard import Shard


def fit(
    trainer: Trainer, test: Shard, path: Path, identity: Mapping[str, Any], progress: bool = True
) -> tuple[list[dict[str, float]], Counts]:
    """Train the epochs that are left.

    Args:
        trainer: A trainer at its start.
        test: Evaluated after every epoch, for the learning curves; nothing is chosen by it.
        path: The model file that this leads to; the checkpoint lies beside it, hidden, until
            ``forget`` removes it.
        identity: What must be equal for a checkpoint to be taken up: configuration, seed, start, data.
        progress: Show a progress bar.

    Returns:
        One entry per epoch (``epoch``, ``loss`` and ``val_loss`` in nats, ``accuracy`` and ``val_accuracy`` in 0-1,
        ``seconds``), and the trained model's counts on ``test``.
    """
    kept = checkpoint_path(path)
    key = json.dumps({**identity, "epochs": None}, sort_keys=True)
    history = _resume(trainer, kept, key)
    epochs, n = trainer.config.epochs, len(trainer.shard)
    counts: Counts | None = None
    with bar(f"training {trainer.shard.name}", epochs * n, progress) as advance:
        advance(trainer.epoch * n)
        while trainer.epoch < epochs:
            began = time.perf_counter()
            metrics = trainer.run_epoch(advance)
            counts = evaluate(trainer.model, test)
            row = {"epoch": trainer.epoch, **metrics, "val_loss": counts.loss, "val_accuracy": counts.accuracy}
            history.append({**row, "seconds": time.perf_counter() - began})
            if trainer.epoch < epochs:
                files.write_tensors(kept, trainer.state(), {"identity": key, "history": json.dumps(history)})
            advance(0, f"epoch {trainer.epoch}/{epochs}  test accuracy {counts.accuracy:.1%}")
    return history, counts or evaluate(trainer.model, test)


def forget(path: Path) -> None:
    """Remove the checkpoint that led to the model file ``path``, once that is written."""
    checkpoint_path(path).unlink(missing_ok=True)


def checkpoint_path(path: Path) -> Path:
    """Return where the checkpoint lies that leads to the model file ``path``."""
    return path.with_name(f".{path.stem}.checkpoint.safetensors")


def _resume(trainer: Trainer, kept: Path, key: str) -> list[dict[str, float]]:
    """Take up a checkpoint of the same run; a damaged one, or one of another run, is passed over."""
    if not kept.is_file():
        return []
    try:
        state, metadata = files.read_tensors(kept)
    except DataError:
        return []
    if metadata.get("identity") != key or int(state["progress"][0]) > trainer.config.epochs:
        return []
    trainer.resume(state)
    history: list[dict[str, float]] = json.loads(metadata["history"])
    return history
