"""Inputs out of nothing, for members whose data nobody may see: they wake the units that real ones wake.

Pictures are smooth random strokes and blobs (:mod:`fedloom.align.probes.strokes`). How many there are of each style is
a default, unless the members have BatchNorm: its running statistics tell what the members saw, and the shares are
chosen so that what arrives at the first BatchNorm has the same mean and variance. Feature tables are normal draws,
brought to the scale that a Normalization layer at the entrance has on record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedloom import rng
from fedloom.align.probes.strokes import Style, draw
from fedloom.align.symmetry.trace import owner, run, trace
from fedloom.errors import ModelError, UsageError
from fedloom.models.arguments import image_size
from fedloom.models.layers.normalisation import BatchNorm, Normalization
from fedloom.models.layers.weighted import Embedding
from fedloom.models.lower import LoweredModel
from fedloom.models.model import Model
from fedloom.models.plan import Step

STYLES = (
    Style("fine pen", (1, 3), size=(0.6, 0.9), ink=(0.6, 1.0), pen=(0.04, 0.09), bend=(0.4, 1.0), joined=0.8),
    Style("pen", (1, 3), size=(0.6, 0.85), ink=(0.8, 1.0), pen=(0.07, 0.16), bend=(0.5, 1.0), joined=0.8),
    Style("brush", (1, 3), size=(0.6, 1.0), ink=(0.3, 1.0), pen=(0.15, 0.35), bend=(0.2, 1.0), texture=(0.0, 0.6)),
    Style("dim blobs", (1, 5), size=(0.6, 1.0), ink=(0.1, 0.6), texture=(0.1, 0.8)),
    Style("blobs", (1, 5), size=(0.7, 1.1), ink=(0.3, 1.0), texture=(0.0, 0.6)),
    Style("scene", (1, 5), size=(0.5, 1.2), ink=(0.0, 1.0), texture=(0.0, 0.5), ground=(0.1, 0.9)),
)
SHARES = (0.05, 0.40, 0.10, 0.10, 0.35, 0.0)
"""The share of each style where the members say nothing."""

_PILOT = 64  # pictures per style that the shares are chosen from
_PRIOR = 0.1  # how much the default shares count beside the statistics
_WILDEST = 3.0  # a channel's misfit counts up to this many running deviations
_OPEN = 32  # the size that an open dimension gets
_FLAT_PICTURES = (784, 1024, 3072)


def inputs(members: Sequence[Model], n: int = 1000, seed: int = 0) -> Tensor:
    """Make inputs for models from their shape, their scale and their own statistics; no data are looked at.

    Args:
        members: Models of one architecture; the first one's scale is used.
        n: How many inputs.
        seed: The same seed gives the same inputs.

    Returns:
        float32 (n, *input_shape), in the scale that the models expect; open dimensions of the shape become 32.

    Raises:
        UsageError: No members, or n below 1.
        ModelError: The models' input shape is not known.
    """
    if not members or n < 1:
        raise UsageError(f"synthetic inputs need at least one model and n >= 1, found {len(members)} and n = {n}")
    first = members[0]
    if not first.input_shape:
        first.require_runnable("making synthetic inputs")
        raise ModelError("synthetic inputs cannot be made: the shape of the model's inputs is not known")
    shape = _shape(first)
    table = _first_layer(first)
    if isinstance(table, Embedding):
        chance = rng.stream(seed, "synthetic", "tokens")
        return torch.from_numpy(chance.integers(0, len(table.weight), (n, *shape)).astype(np.float32))
    size = _picture_size(first, shape)
    if size is None:
        return _features(members, shape, n, seed)
    chosen = shares(members, seed)
    pictures = _mixture(size, [math.ceil(n * share) for share in chosen], rng.stream(seed, "synthetic", "pictures"))
    return _scaled(members, _arranged(pictures[:n], shape))


def shares(members: Sequence[Model], seed: int = 0) -> list[float]:
    """Choose the share of each style in ``STYLES``, such that the members' first BatchNorm sees what it saw in training.

    With z the values that arrive at a channel, m and v its running mean and variance, and w the shares, the sum of
    (E[z] - m)^2 / v + (E[(z - m)^2] / v - 1)^2 over channels and members is least; both expectations are linear in w.
    Members without BatchNorm, and models that are not pictures', give ``SHARES``.

    Returns:
        As many numbers as there are styles, each at least 0; their sum is 1.
    """
    shape = _shape(members[0])
    size = _picture_size(members[0], shape)
    if size is None or not any(_first_norm(member) for member in members):
        return list(SHARES)
    chance = rng.stream(seed, "synthetic", "pilot")
    pilots = _arranged(torch.cat([draw(_PILOT, size, style, chance) for style in STYLES]), shape)
    found = [_moments(member, _scaled([member], pilots), _PILOT) for member in members]
    return _fit(np.concatenate([misfit for misfit in found if misfit is not None], axis=0))


def mismatch(member: Model, x: Tensor) -> float | None:
    """Return how far inputs are from those that a member was trained on, as its first BatchNorm tells.

    Args:
        member: A model.
        x: Inputs (n, *input_shape), in the model's scale.

    Returns:
        The root mean square over channels of (E[z] - m) / sqrt(v) and E[(z - m)^2] / v - 1, each cut at 3; 0 is a
        perfect match. None when there is no BatchNorm, or none with usable statistics.
    """
    moments = _moments(member, x, len(x))
    return None if moments is None or not moments.size else float(np.sqrt(np.mean(np.square(moments))))


def _fit(misfit: NDArray[np.float64]) -> list[float]:
    """Return the shares w >= 0 of sum 1 with the least mean((misfit w)^2) + prior |w - SHARES|^2; misfit (rows, styles)."""
    from scipy.optimize import nnls

    if len(misfit) == 0:
        return list(SHARES)
    default, prior, heavy = np.array(SHARES), math.sqrt(_PRIOR), 1e3
    rows = [misfit / math.sqrt(len(misfit)), prior * np.eye(len(SHARES)), np.full((1, len(SHARES)), heavy)]
    found = nnls(np.concatenate(rows), np.concatenate([np.zeros(len(misfit)), prior * default, [heavy]]))[0]
    return [float(share) for share in found / found.sum()]


def _moments(member: Model, x: Tensor, group: int) -> NDArray[np.float64] | None:
    """Return (E[z] - m) / sqrt(v) and E[(z - m)^2] / v - 1 per channel, for each ``group`` inputs: (2 channels, groups)."""
    norm = _first_norm(member)
    if norm is None:
        return None
    values = _arriving(member, norm, x)
    layer = owner(norm.run)
    if not isinstance(layer, BatchNorm):
        return None
    z = values.movedim(1, -1).reshape(len(x) // group, -1, values.shape[1]).double()
    deviation = (layer.running_var.double() + layer.epsilon).sqrt()
    away = (z - layer.running_mean.double()) / deviation
    moments = torch.cat([away.mean(1), away.square().mean(1) - 1.0], 1).clamp(-_WILDEST, _WILDEST)
    return moments[:, moments.isfinite().all(0)].T.numpy()


@torch.no_grad()
def _arriving(member: Model, norm: Step, x: Tensor) -> Tensor:
    """Return the values that a BatchNorm takes, its channels on axis 1."""
    value = norm.sources[0]
    member.module.eval()
    traced = trace(member)
    return x if value == 0 else next(y for i, y in run(traced, x) if traced.steps[i].target == value)


def _first_norm(member: Model) -> Step | None:
    return next((step for step in _steps(member) if isinstance(owner(step.run), BatchNorm)), None)


def _steps(member: Model) -> Sequence[Step]:
    """Return a model's steps; none where they are not known."""
    return member.module.steps if isinstance(member.module, LoweredModel) else ()


def _first_layer(member: Model) -> nn.Module | None:
    """Return the module that takes the inputs; None when a plain function does, or it is not known."""
    return next((owner(step.run) for step in _steps(member) if step.op != "Turn"), None)


def _shape(member: Model) -> tuple[int, ...]:
    return tuple(_OPEN if size < 1 else size for size in member.input_shape)


def _picture_size(model: Model, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Return (height, width, channels) when a model takes pictures, also flattened ones; else None."""
    first = next((step.op for step in _steps(model) if step.op != "Turn"), "")
    if first.endswith("1D"):
        return None
    if len(shape) == 1:
        flat = shape[0] in _FLAT_PICTURES or model.input_high is not None
        channels = next((c for c in (1, 3) if shape[0] % c == 0 and math.isqrt(shape[0] // c) ** 2 * c == shape[0]), 0)
        side = math.isqrt(shape[0] // channels) if channels else 0
        return (side, side, channels) if flat and side >= 8 and first != "Normalization" else None
    size = image_size(shape)
    return size if size is not None and min(size[:2]) >= 4 and size[2] <= 4 else None


def _mixture(size: tuple[int, int, int], counts: Sequence[int], chance: np.random.Generator) -> Tensor:
    """Draw so many pictures of each style, in a random order: (sum of counts, channels, height, width)."""
    drawn = torch.cat([draw(count, size, style, chance) for count, style in zip(counts, STYLES, strict=True)])
    return drawn[torch.from_numpy(chance.permutation(len(drawn)))]


def _arranged(pictures: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bring pictures (n, channels, height, width) into the models' shape; flat ones have their channels last."""
    first = len(shape) == 3 and shape == tuple(pictures.shape[1:])
    turned = pictures if first else pictures.permute(0, 2, 3, 1)
    return turned.reshape(len(pictures), *shape).contiguous()


def _scaled(members: Sequence[Model], x: Tensor) -> Tensor:
    """Bring pictures in 0-1 to the scale of the models."""
    high, statistics = members[0].input_high, _statistics(members)
    if high is None and statistics is not None:
        return _placed((x - x.mean()) / x.std().clamp_min(1e-6), statistics)
    return x * (high or 1.0)


def _features(members: Sequence[Model], shape: tuple[int, ...], n: int, seed: int) -> Tensor:
    """Draw from a normal distribution, placed where the models' own statistics say; else within the full scale."""
    z = torch.from_numpy(rng.stream(seed, "synthetic", "features").standard_normal((n, *shape), dtype=np.float32))
    statistics = _statistics(members)
    if statistics is not None:
        return _placed(z, statistics)
    high = members[0].input_high
    return z if high is None else (high * (0.5 + 0.25 * z)).clamp_(0.0, high)


def _placed(z: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
    mean, deviation = statistics
    return (mean + z * deviation).float()


def _statistics(members: Sequence[Model]) -> tuple[Tensor, Tensor] | None:
    """Return the inputs' mean and deviation, averaged over the members whose first layer has them on record."""
    known = [one for one in map(_own_statistics, members) if one is not None]
    found = [one for one in known if torch.stack(one).isfinite().all()]
    if not found:
        return None
    return torch.stack([mean for mean, _ in found]).mean(0), torch.stack([std for _, std in found]).mean(0)


def _own_statistics(member: Model) -> tuple[Tensor, Tensor] | None:
    layer = _first_layer(member)
    if isinstance(layer, Normalization) and not layer.invert:
        mean, variance = layer.constants or (layer.mean, layer.variance)
        return mean.reshape(layer.shape).cpu(), variance.reshape(layer.shape).sqrt().cpu()
    if isinstance(layer, BatchNorm) and layer.running_mean.shape == member.input_shape[-1:]:
        return layer.running_mean.cpu(), layer.running_var.sqrt().cpu()
    return None
