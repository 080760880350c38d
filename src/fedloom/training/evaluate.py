"""Evaluation: a model's outputs and counts on a shard."""

from __future__ import annotations

import torch

from fedloom.metrics import Counts
from fedloom.models.model import Model
from fedloom.training.shard import Shard

BATCH, BATCH_CPU = 2048, 64
"""On a CPU the outputs of a convolution of 64 images still fit into the cache; a GPU wants much more to do."""


@torch.inference_mode()
def predict(model: Model, shard: Shard, batch_size: int | None = None) -> torch.Tensor:
    """Return the logits of every sample, float32 (n, n_classes), in inference mode."""
    model.module.eval()
    size = batch_size or (BATCH_CPU if shard.x.device.type == "cpu" else BATCH)
    batches = range(0, len(shard), size)
    return torch.cat([model.logits(shard.inputs(slice(i, i + size))).float() for i in batches])


def evaluate(model: Model, shard: Shard, batch_size: int | None = None) -> Counts:
    """Evaluate a model on a shard, in inference mode.

    Returns:
        Counts that add over shards; accuracy and loss are their properties.
    """
    return Counts.of(predict(model, shard, batch_size), shard.y)
