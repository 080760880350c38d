"""Membership inference: was this sample in the training data of that model?

A model is surer of what it has seen. The attack of Yeom et al. 2018 ("Privacy Risk in Machine Learning", adversary 1)
says "member" where the loss of a sample is small. How well that separates members from others is told by the ROC curve:
its area (0.5 is guessing), and, since an attacker who is right about a few for certain does more harm than one who is a
little right about many, the share of members found at a false alarm in 100 (Carlini et al. 2022, "Membership Inference
Attacks From First Principles", section IV).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fedloom import rng
from fedloom.data import load_data
from fedloom.data.dataset import Dataset
from fedloom.errors import DataError, ModelError
from fedloom.models import io
from fedloom.models.model import Model
from fedloom.training.evaluate import predict
from fedloom.training.shard import Shard

Array = NDArray[np.float64]

FALSE_ALARMS = 0.01
_RESAMPLES = 400
_FILES = ("best", "last", "global", "model")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: The figure.
        low: The lower end, of the bootstrap over samples.
        high: The upper end.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Membership:
    """How well a model's losses tell its members from others.

    Attributes:
        members: How many members were tried.
        others: How many others.
        auc: The area under the ROC curve, 0-1: how often a member has a smaller loss than another sample.
        advantage: True minus false alarms at the threshold of Yeom et al., the members' mean loss.
        found: The share of members found where 1 % of the others raise a false alarm.
        member_accuracy: The model's accuracy on the members, 0-1.
        accuracy: On the others.
        false_alarms: The ROC curve, float64 (k,), rising from 0 to 1.
        hits: The share of members found at each, float64 (k,).
    """

    members: int
    others: int
    auc: Estimate
    advantage: Estimate
    found: Estimate
    member_accuracy: float
    accuracy: float
    false_alarms: Array
    hits: Array

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data, without the curve."""
        figures = {name: getattr(self, name).to_json() for name in ("auc", "advantage", "found")}
        counts = {"members": self.members, "others": self.others}
        return {**counts, **figures, "member_accuracy": self.member_accuracy, "accuracy": self.accuracy}


def membership(
    model: Model | str | Path,
    members: Dataset | str,
    others: Dataset | str,
    *,
    vector: Tensor | None = None,
    references: Sequence[Tensor] = (),
    data_dir: str | Path | None = None,
    seed: int = 0,
) -> Membership:
    """Attack a model by its losses.

    Args:
        model: A model, a model file, or a folder that holds one: that of a run (its best model) or of a member.
        members: Samples that it was trained on: a data set, or a source whose training samples are meant.
        others: Samples of the same kind that it was not trained on.
        vector: Weights to give the model first, float32 (P,).
        references: Weights of models that the attacker trained without these samples, float32 (P,) each. What they find
            hard is hard, seen or not: their mean loss is taken off (Watson et al. 2022, "On the Importance of Difficulty
            Calibration in Membership Inference Attacks", equation 3).
        data_dir: Where the data sets lie.
        seed: Of the bootstrap.

    Raises:
        DataError: There are fewer than 2 members or others, or the data do not fit the model.
        ModelError: The file is missing or damaged, or holds only arrays.
    """
    loaded = model if isinstance(model, Model) else io.load_model(_file(Path(model)))
    loaded.require_runnable("membership inference")
    weights = loaded.vector() if vector is None else vector
    both = [s if isinstance(s, Dataset) else load_data(s, "train", data_dir) for s in (members, others)]
    known = [[_losses(loaded.load(reference), data)[0] for data in both] for reference in references]
    loaded.load(weights)
    (inside, right), (outside, fair) = (_losses(loaded, data) for data in both)
    if known:
        inside, outside = (a - np.mean([losses[i] for losses in known], 0) for i, a in enumerate((inside, outside)))
    return compare(inside, outside, accuracies=(right, fair), seed=seed)


def compare(
    inside: Array, outside: Array, *, accuracies: tuple[float, float] = (math.nan, math.nan), seed: int = 0
) -> Membership:
    """Compare the losses of members and of others.

    Args:
        inside: The members' losses, float64 (m,), m >= 2.
        outside: The others', float64 (n,), n >= 2.
        accuracies: The model's accuracy on both.
        seed: Of the bootstrap.

    Raises:
        DataError: There are fewer than 2 of either, or a loss is not a number.

    Example:
        >>> made = compare(np.array([0.1, 0.2, 0.3]), np.array([0.25, 0.5, 0.6]))
        >>> round(made.auc.value, 3)
        0.889
    """
    if min(len(inside), len(outside)) < 2:
        raise DataError(f"{len(inside)} members and {len(outside)} others: at least 2 of each are needed")
    if np.isnan(inside).any() or np.isnan(outside).any():
        raise DataError("a loss is not a number: the model gives NaN, so there is nothing to attack")
    chance = rng.stream(seed, "leak", "bootstrap")
    draws = [(chance.choice(inside, len(inside)), chance.choice(outside, len(outside))) for _ in range(_RESAMPLES)]

    def estimate(figure: Callable[[Array, Array], float]) -> Estimate:
        values = [figure(a, b) for a, b in draws]
        low, high = np.quantile(values, [0.025, 0.975])
        return Estimate(figure(inside, outside), float(low), float(high))

    alarms, hits = roc(inside, outside)
    figures = (estimate(auc), estimate(advantage), estimate(found_at))
    return Membership(len(inside), len(outside), *figures, *accuracies, alarms, hits)


def auc(inside: Array, outside: Array) -> float:
    """Return how often a member's loss is below another's; ties count half (Mann and Whitney 1947)."""
    ranked = np.sort(outside)
    below, upto = (np.searchsorted(ranked, inside, side) for side in ("left", "right"))
    return float(1 - (below + upto).mean() / (2 * len(outside)))


def advantage(inside: Array, outside: Array) -> float:
    """Return true minus false alarms where "member" is said of losses up to the members' mean (Yeom et al. 2018)."""
    threshold = inside.mean()
    return float((inside <= threshold).mean() - (outside <= threshold).mean())


def found_at(inside: Array, outside: Array, alarms: float = FALSE_ALARMS) -> float:
    """Return the share of members found where at most that share of the others raises a false alarm."""
    threshold = np.sort(outside)[math.floor(alarms * len(outside))]
    return float((inside < threshold).mean())


def roc(inside: Array, outside: Array) -> tuple[Array, Array]:
    """Return the ROC curve as (false alarms, hits), both rising from 0 to 1."""
    thresholds = np.unique(np.concatenate([inside, outside]))
    curves = [np.searchsorted(np.sort(losses), thresholds, "right") / len(losses) for losses in (outside, inside)]
    alarms, hits = (np.concatenate([[0.0], curve]) for curve in curves)
    return alarms, hits


def _losses(model: Model, data: Dataset) -> tuple[Array, float]:
    """Return the loss of every sample in nats, float64 (n,), and the accuracy."""
    shard = Shard.of(data, model)
    logits, y = predict(model, shard).double(), shard.y[:, None]
    rest = logits.scatter(1, y, -torch.inf).logsumexp(1)
    # log(1 + exp(gap)), which is exp(gap) where the model is sure: -log(softmax) would be 0 for all of these.
    gap = rest - logits.gather(1, y)[:, 0]
    losses = torch.where(gap < -30, gap.exp(), functional.softplus(gap))
    return losses.numpy(), float((logits.argmax(1) == shard.y).double().mean())


def _file(path: Path) -> Path:
    """Return the model file that a path means: itself, or the one in a folder of a run or a member."""
    if not path.is_dir():
        return path
    stems = (*_FILES, path.name)
    found = [path / f"{stem}{suffix}" for stem in stems for suffix in (*io.KERAS, *io.TORCH, io.SAFETENSORS)]
    for file in found:
        if file.is_file():
            return file
    raise ModelError(
        f"{path}: no model file in this folder (looked for {', '.join(stems)}); name the file", file=str(path)
    )
