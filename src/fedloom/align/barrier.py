"""Barrier: how much worse is a model on the straight line between two others?

Two models can be averaged when the loss does not rise between them: they lie in one basin. The barrier is the largest
rise over the straight line between the losses of the two ends (Frankle et al., "Linear Mode Connectivity and the Lottery
Ticket Hypothesis", 2020; Entezari et al., "The Role of Permutation Invariance in Linear Mode Connectivity of Neural
Networks", 2022, equation 1). Models from different starts are far apart until their units have been matched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedloom.align import fusion
from fedloom.align.symmetry.trace import Trace, trace
from fedloom.errors import DataError, UsageError
from fedloom.metrics import Counts
from fedloom.models.model import Model
from fedloom.training.evaluate import predict
from fedloom.training.shard import Shard

_STATISTICS = 1000  # inputs that BatchNorm statistics are taken from


@dataclass(frozen=True, eq=False)
class Line:
    """Models on the straight line between two.

    Attributes:
        alphas: float64 (points,) from 0, the first model, to 1, the second.
        losses: float64 (points,): mean cross-entropies in nats.
        accuracies: float64 (points,), 0-1: right answers; without labels, answers that are those of the two ends together.
        labelled: Whether there were labels.
    """

    alphas: NDArray[np.float64]
    losses: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    labelled: bool

    @property
    def barrier(self) -> float:
        """The largest rise of the loss over the line between its ends, in nats; at least 0."""
        return float((self.losses - self._between(self.losses)).max())

    @property
    def accuracy_barrier(self) -> float:
        """The largest fall of the accuracy below the line between its ends, 0-1; on skewed parts it misleads."""
        return float((self._between(self.accuracies) - self.accuracies).max())

    def _between(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((1.0 - self.alphas) * values[0] + self.alphas * values[-1])


def line(
    model: Model,
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor | None = None,
    points: int = 11,
    *,
    recalibrate: bool = False,
) -> Line:
    """Evaluate ``(1 - alpha) a + alpha b`` for alpha from 0 to 1.

    Args:
        model: Lends its module; its own weights are put back.
        a: One model, float32 (P,).
        b: The other, float32 (P,): as it is, or aligned to ``a``.
        x: Inputs (n, *input_shape), in the model's scale.
        y: The class of each input, int64 (n,). Left out, the mean of the two ends' probabilities stands for it.
        points: How many values of alpha, at least 3.
        recalibrate: Whether models between the ends get BatchNorm statistics of their own, from the first 1000 inputs.

    Raises:
        UsageError: Fewer than 3 points.
        DataError: No inputs, or not one label for each.
        ModelError: The model cannot be run; or, with ``recalibrate``, cannot be looked into.
    """
    if points < 3:
        raise UsageError(f"a line needs at least 3 points, found {points}")
    if not len(x) or (y is not None and len(y) != len(x)):
        raise DataError(f"a line needs inputs and a label for each, found {len(x)} and {0 if y is None else len(y)}")
    model.require_runnable("the line between two models")
    traced = trace(model) if recalibrate else None
    shard = Shard("line", x, torch.zeros(len(x), dtype=torch.int64) if y is None else y, 1.0)
    own = model.vector()
    try:
        target = _ends(model, a, b, shard) if y is None else y
        alphas = np.linspace(0.0, 1.0, points)
        scored = [_score(model, torch.lerp(a, b, float(alpha)), shard, target, traced) for alpha in alphas[1:-1]]
        scored = [_score(model, a, shard, target, None), *scored, _score(model, b, shard, target, None)]
    finally:
        model.load(own)
    losses, accuracies = zip(*scored, strict=True)
    return Line(alphas, np.array(losses), np.array(accuracies), y is not None)


def _ends(model: Model, a: Tensor, b: Tensor, shard: Shard) -> Tensor:
    """Return the mean of the two ends' probabilities, (n, C)."""
    return torch.stack([predict(model.load(end), shard).softmax(1) for end in (a, b)]).mean(0)


def _score(model: Model, vector: Tensor, shard: Shard, target: Tensor, traced: Trace | None) -> tuple[float, float]:
    """Return the loss and the accuracy of a vector."""
    model.load(vector)
    if traced is not None:
        fusion.recalibrate(model, traced, shard.inputs(slice(0, _STATISTICS)))
    logits = predict(model, shard)
    if not target.is_floating_point():
        counts = Counts.of(logits, target)
        return counts.loss, counts.accuracy
    logs = logits.double().log_softmax(1)
    hits = logits.argmax(1) == target.argmax(1)
    return float(-(target.double() * logs).sum(1).mean()), float(hits.double().mean())
