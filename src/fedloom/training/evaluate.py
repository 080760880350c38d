"""Evaluation: a model's outputs and counts on a shard."""

from __future__ import annotations

import torch

from fedloom.metrics import Counts
from fedloom.models.model import Model
from fedloom.training.shard import Shard
from fedloom.training.threads import enough_threads


@torch.inference_mode()
def predict(model: Model, shard: Shard, batch_size: int | None = None) -> torch.Tensor:
    """Return the logits of every sample, float32 (n, n_classes), in inference mode."""
    model.module.eval()
    size = batch_size or _batch_size(shard.x.device)
    batches = range(0, len(shard), size)
    with enough_threads(model, size, backward=False):
        return torch.cat([model.logits(shard.inputs(slice(i, i + size))).float() for i in batches])


def evaluate(model: Model, shard: Shard, batch_size: int | None = None) -> Counts:
    """Evaluate a model on a shard, in inference mode.

    Returns:
        Counts that add over shards; accuracy and loss are their properties.
    """
    return Counts.of(predict(model, shard, batch_size), shard.y)


def _batch_size(device: torch.device) -> int:
    """Choose a batch whose layers stay in a core's cache; several threads and GPUs want more to share."""
    if device.type != "cpu":
        return 2048
    return 64 if torch.get_num_threads() == 1 else 256
