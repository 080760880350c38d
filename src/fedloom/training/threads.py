"""Threads: no more of them than a batch can feed.

Threads wait for each other after every operation, actively: with small models that wait is most of the work, and on a
busy machine it is many times the work. The number depends on model and batch alone, never on a measurement, so that
the same command gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedloom.models.model import Model

PER_THREAD = 100e6
"""Multiplications of a batch that are worth one more thread: some milliseconds of them."""

BACKWARD = 2.0
"""A backward pass does about twice the work of the forward pass."""


@contextmanager
def enough_threads(model: Model, batch_size: int, backward: bool) -> Iterator[None]:
    """Give PyTorch at most as many threads as a batch can feed while the block runs."""
    before = torch.get_num_threads()
    work = multiplications(model) * batch_size * (1 + BACKWARD * backward)
    torch.set_num_threads(max(1, min(before, math.ceil(work / PER_THREAD))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def multiplications(model: Model) -> float:
    """Estimate the multiplications of one sample's forward pass.

    A kernel is used once for every place of its input; one quarter of the model's input stands for that, which is where
    most networks do most of their work.
    """
    places = max(1.0, math.prod(n for n in model.input_shape if n > 0) / 4)
    shapes = model.layout.shapes[: model.layout.n_trainable]
    return sum(math.prod(s) * (places if len(s) > 2 else 1.0) for s in shapes if len(s) > 1)
