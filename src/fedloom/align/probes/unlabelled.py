"""Unlabelled samples on the way into a model: its shape, its scale, and a refusal when they cannot be meant for it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fedloom.data.dataset import Dataset
from fedloom.data.download import Progress
from fedloom.data.unlabelled import load_unlabelled
from fedloom.errors import DataError
from fedloom.models.model import Model
from fedloom.training.shard import Shard

DARKEST = 0.1
"""Pictures of which none reaches this share of the full scale were divided once too often."""

MARGIN = 0.05
"""How far, in shares of the full scale, values may lie outside of it: what resizing a picture leaves."""


def read_unlabelled(
    source: str | Path | Dataset,
    model: Model,
    limit: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    *,
    download: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """Read unlabelled samples as a model takes them.

    Args:
        source: See :func:`fedloom.data.unlabelled.load_unlabelled`.
        model: What they are for: ``input_shape`` and ``input_high`` are followed.
        limit: The largest number of samples.
        seed: Of the choice among more.
        data_dir: The folder where ``mnist`` and ``fashion-mnist`` are looked for first.
        download: Whether to download what is found nowhere.
        progress: Called while downloading; None draws a progress bar on standard error.

    Returns:
        float32 (n, *input_shape), in the model's scale.

    Raises:
        DataError: Samples of another shape (both are named), in another scale (what was found is named), with NaN, or
            fewer than two.
        ModelError: The file holds only arrays, so that the shape of its inputs is not known.
    """
    model.require_runnable("using unlabelled samples")
    data = load_unlabelled(source, data_dir, limit=limit, seed=seed, download=download, progress=progress)
    shard = Shard.of(data, model, data.name, torch.device("cpu"))
    x = shard.inputs(slice(None))
    _check_scale(data, model, x)
    return x


def _check_scale(data: Dataset, model: Model, x: Tensor) -> None:
    """Refuse values that leave the scale that the model expects, or do not fill it; ``x`` are the model's inputs."""
    if model.input_high is None and (data.high is None or len(model.input_shape) == 1):
        return  # features in units of their own
    high = model.input_high or 1.0
    low, top = float(x.min()) / high, float(x.max()) / high
    if low >= -MARGIN and DARKEST <= top <= 1.0 + MARGIN:
        return
    scale = data.high or high
    problem = f"less than {DARKEST:.0%} of the full scale of {scale:g}; were they divided by 255 twice?"
    if low < -MARGIN or top > 1.0 + MARGIN or (low < 0 and data.high is None):
        problem = f"not between 0 and {scale:g}; were they standardised?"
    raise DataError(
        f"{data.name}: the unlabelled values go from {low * scale:.4g} to {top * scale:.4g}, {problem} Give 8-bit images or "
        "values from 0 to 1, or name their full scale (PATH:high=NUMBER)",
        file=data.name,
        expected=scale,
        found=(low * scale, top * scale),
    )
