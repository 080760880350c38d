"""Distillation from the ensemble of the members, on inputs without labels.

Lin et al. 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning" (FedDF, algorithm 1, line 9): the
server's model learns the softmax of the mean of the members' logits. Cross-entropy against these probabilities has the
gradient of their Kullback-Leibler divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from fedloom.models.layers.noise import BroadcastDropout, Noise
from fedloom.models.model import Model
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.shard import Shard

CONFIG = LocalConfig(epochs=3, batch_size=64, optimizer="adam", lr=1e-3, schedule="cosine")

_RATES = {nn.modules.dropout._DropoutNd: "p", Noise: "strength", BroadcastDropout: "rate"}


def distil(
    model: Model,
    start: Tensor,
    x: Tensor,
    teacher: Tensor,
    config: LocalConfig = CONFIG,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Train a model to say what the ensemble says.

    Args:
        model: Lends its module.
        start: The fused model to begin with, float32 (P,).
        x: Inputs (n, *input_shape), in the model's scale.
        teacher: The mean of the members' logits, float32 (n, n_classes).
        config: How long and how fast.
        seed: Of the batches.
        on_batch: Called with the number of inputs of each batch, for progress bars.

    Returns:
        The trained vector, (P,).
    """
    trainer = Trainer(model, start, Shard("distillation", x, teacher.softmax(1), 1.0), config, seed=seed)
    with _without_dropout(model.module):
        for _ in range(config.epochs):
            trainer.run_epoch(on_batch)
    return trainer.vector()


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Let dropout pass everything: the ensemble's answers are worth following to the letter."""
    parts = [(part, name) for part in module.modules() for kind, name in _RATES.items() if isinstance(part, kind)]
    rates = [getattr(part, name) for part, name in parts]
    for part, name in parts:
        setattr(part, name, 0.0)
    try:
        yield
    finally:
        for (part, name), rate in zip(parts, rates, strict=True):
            setattr(part, name, rate)
