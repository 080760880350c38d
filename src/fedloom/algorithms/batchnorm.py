"""BatchNorm statistics of the global model: the three choices of a run.

``average``: statistics are numbers like others, and the mean is taken of them. Simple, and wrong to a degree: the mean of
the clients' variances is not the variance over all clients.

``local``: they stay with the clients, :func:`local_statistics` (M. Andreux, J. Ogier du Terrail, C. Beguier, E. W.
Tramel, "Siloed Federated Learning for Multi-Centric Histopathology Datasets", DART 2020, arXiv 2008.07424).

``recalibrate``: after each merge they are computed for the merged weights, layer by layer from the input on, over samples
of clients drawn for it, :func:`recalibration`. Over a network each of these clients would send, for one BatchNorm layer
after another, the count, the sum and the sum of squares of every channel: sums over clients are all that the server needs,
so secure aggregation can hide each one's. That traffic is not part of a simulation's bytes.

Without BatchNorm the three are the same, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedloom import rng
from fedloom.algorithms.base import Algorithm
from fedloom.algorithms.local_parts import keep_local
from fedloom.clients import Population
from fedloom.errors import UsageError
from fedloom.models.keras_slow import KerasModule
from fedloom.models.lower import LoweredModel
from fedloom.models.model import Model
from fedloom.models.roles import statistics_mask

CHOICES = ("average", "recalibrate", "local")

SAMPLES = 1024
"""Statistics of so many samples are off by about 3 % of a standard deviation."""


def local_statistics(algorithm: Algorithm, model: Model, *, share: bool = True) -> Algorithm:
    """Let BatchNorm's running statistics stay with the clients; the algorithm itself where there are none.

    They are reported for the global model's sake, unless ``share`` is False.
    """
    return keep_local(algorithm, statistics_mask(model), "statistics", share=share)


@dataclass(frozen=True)
class Recalibration:
    """Computes the statistics of a merged model; made by :func:`recalibration`."""

    model: Model
    population: Population
    clients: int
    samples: int
    seed: int

    def __call__(self, number: int, vector: Tensor) -> Tensor:
        """Return the model (P,) of round ``number`` with its statistics computed anew."""
        x = self.inputs(number).to(vector.device)
        self.model.to(vector.device).load(vector)
        set_statistics(self.model, x)
        return self.model.vector()

    def inputs(self, number: int) -> Tensor:
        """Return the inputs of round ``number``: of clients drawn uniformly, of each the same number where it has it."""
        chance = rng.stream(self.seed, "batchnorm", number)
        clients = chance.choice(len(self.population), min(self.clients, len(self.population)), replace=False)
        most = max(self.samples // len(clients), 1)
        parts = [np.asarray(self.population.parts[int(c)]) for c in clients]
        drawn = [part if len(part) <= most else chance.choice(part, most, replace=False) for part in parts]
        index = torch.from_numpy(np.concatenate(drawn).astype(np.int64))
        return self.population.pool.inputs(index.to(self.population.pool.x.device))


def recalibration(
    model: Model, population: Population, clients: int, seed: int, samples: int = SAMPLES
) -> Callable[[int, Tensor], Tensor] | None:
    """Make what a federation calls after each merge.

    Args:
        model: Lends its module.
        population: Whose samples the statistics are taken of.
        clients: How many clients take part in that, such as a round's.
        seed: Of who they are and which of their samples.
        samples: How many in all, at most.

    Returns:
        ``(round, model) -> model``; None for a model without BatchNorm statistics.

    Raises:
        UsageError: The model runs through Keras itself, which does not show its layers' inputs.
    """
    if not bool(statistics_mask(model).any()):
        return None
    if isinstance(model.module, KerasModule):
        raise UsageError("batchnorm = recalibrate cannot see inside this Keras model: use average or local")
    return Recalibration(model, population, clients, samples, seed)


def set_statistics(model: Model, x: Tensor) -> None:
    """Set every BatchNorm's running statistics to those of its inputs, in place, in one pass from input to output.

    Mean and biased variance over all samples and positions, with the layers before already at their new statistics.

    Args:
        model: Lowered or plain PyTorch, on the device of ``x``.
        x: Inputs, float32 (n, *input_shape), in the model's scale.
    """
    if isinstance(model.module, LoweredModel):
        from fedloom.align.fusion import recalibrate
        from fedloom.align.symmetry.trace import trace

        recalibrate(model, trace(model), x)
        return
    model.module.eval()
    with torch.no_grad(), _watched(model.module):
        model.logits(x)


@contextmanager
def _watched(module: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, _BatchNorm) and part.running_mean is not None:
                hook = part.register_forward_pre_hook(_set)
                stack.callback(hook.remove)
        yield


def _set(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    rows = inputs[0].movedim(1, -1).flatten(0, -2)
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    mean.copy_(rows.mean(0))
    variance.copy_(rows.var(0, unbiased=False))
