"""Evaluation: a model's outputs and counts on a shard."""

from __future__ import annotations

import torch

from fedloom.metrics import Counts
from fedloom.models.model import Model
from fedloom.training.shard import Shard

BATCH = 512


@torch.inference_mode()
def predict(model: Model, shard: Shard, batch_size: int = BATCH) -> torch.Tensor:
    """Return the logits of every sample, float32 (n, n_classes), in inference mode."""
    model.module.eval()
    batches = range(0, len(shard), batch_size)
    return torch.cat([model.logits(shard.inputs(slice(i, i + batch_size))).float() for i in batches])


def evaluate(model: Model, shard: Shard, batch_size: int = BATCH) -> Counts:
    """Evaluate a model on a shard, in inference mode.

    Returns:
        Counts that add over shards; accuracy and loss are their properties.
    """
    return Counts.of(predict(model, shard, batch_size), shard.y)
