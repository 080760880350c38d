"""The gallery: one client's update is attacked again and again, each time behind another protection.

What the attacker is given is the most that the protection leaves: the model, the learning rate and the labels; of secure
aggregation the sum; of a noisy update the update with its noise. So no protection looks better here than it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedloom import rng
from fedloom.compress import parse
from fedloom.data.dataset import Dataset
from fedloom.errors import DataError, UsageError
from fedloom.leakage.inversion import Effort, analytic, client_update, gradient_of, invert, labels_of
from fedloom.leakage.matching import match, psnr
from fedloom.leakage.protections import PROTECTIONS, Protection
from fedloom.models.model import Model
from fedloom.privacy.mechanisms import Gaussian, LocalGaussian
from fedloom.privacy.randomness import Randomness
from fedloom.training.shard import Shard

Array = NDArray[np.float64]

LR = 0.1
MOST_IMAGES = 8
_WORK = 8000
"""Steps times pictures that a search may cost: with many pictures it takes fewer steps, but no fewer than _FEWEST."""
_FEWEST = 150


@dataclass(frozen=True)
class Attempt:
    """One attack on one protected update.

    Attributes:
        protection: What stood in the way.
        method: ``"search"`` (gradient inversion) or ``"division"`` (analytic).
        originals: The victim's pictures, float64 (k, *shape) in 0-1.
        found: What the attack made of them, of the same shape: for each the reconstruction that fits it.
        psnr: Of each, in dB.
        guess: What a picture drawn without the update reaches, the mean picture of the same class: dB, of each.
        pictures: How many pictures are in the sum that was seen.
        labels: The share of the sum's labels that can be read off it; NaN where that was not tried.
        best: The highest PSNR among all pictures in the sum, the victim's or another's: dB.
        seconds: How long it took.
    """

    protection: Protection
    method: str
    originals: Array
    found: Array
    psnr: Array
    guess: Array
    pictures: int
    labels: float
    best: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data, without the pictures."""
        lists = {"psnr": self.psnr.tolist(), "mse": (10 ** (-self.psnr / 10)).tolist(), "guess": self.guess.tolist()}
        known = {"protection": asdict(self.protection), "method": self.method, "verdict": self.verdict}
        counts = {"pictures": self.pictures, "labels": self.labels, "best": self.best, "seconds": self.seconds}
        return {**known, **lists, **counts}

    @property
    def verdict(self) -> str:
        """``"recovered"``, ``"traces"`` or ``"nothing"``: against what a guess without the update reaches."""
        ahead = float(np.mean(self.psnr - self.guess))
        return "recovered" if ahead >= 3 else "traces" if ahead >= 1 else "nothing"


@dataclass(frozen=True)
class Scene:
    """A victim, and the others that take part.

    Attributes:
        model: The model that is trained.
        start: The global model, float32 (P,).
        data: What the clients' samples are taken from.
        victim: The victim's samples: indices into the data.
        others: One sample of each other client.
        seed: Of everything.
        updates: The updates, computed once; the victim's first.
    """

    model: Model
    start: Tensor
    data: Dataset
    victim: NDArray[np.int64]
    others: NDArray[np.int64]
    seed: int
    updates: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, data: Dataset, images: int, seed: int) -> Scene:
        """Choose a victim with ``images`` pictures of different classes, and 99 others with one each.

        Raises:
            UsageError: Too many images, or none.
            DataError: There are too few samples.
        """
        if not 1 <= images <= MOST_IMAGES:
            raise UsageError(f"{images} images: 1 to {MOST_IMAGES} are expected; a search for more finds little")
        most = max(protection.clients for protection in PROTECTIONS)
        order = rng.stream(seed, "leak", "victim").permutation(len(data))
        if len(order) < images + most:
            raise DataError(f"{data.name}: {len(data)} samples, and at least {images + most} are needed")
        _, first = np.unique(data.y[order], return_index=True)
        chosen = order[np.sort(first)][:images]
        rest = order[~np.isin(order, chosen)]
        victim = np.concatenate([chosen, rest])[:images]
        others = rest[~np.isin(rest, victim)][: most - 1]
        return cls(model, model.vector(), data, victim, others, seed)

    def update(self, client: int) -> Tensor:
        """Return the update of a client, the victim being number 0: float32 (P,)."""
        if client not in self.updates:
            index = self.victim if client == 0 else self.others[client - 1 : client]
            shard = Shard.of(self.data.take(index, f"client {client}"), self.model)
            self.updates[client] = client_update(self.model, self.start, shard, LR, self.seed)
        return self.updates[client]

    def seen(self, protection: Protection) -> Tensor:
        """Return what is seen of the round, as a mean of updates: float32 (P,)."""
        head, n = self.model.layout.trainable, protection.clients
        updates = [self.update(i) for i in range(n)]
        if protection.clip:
            bound, source = self.bound, Randomness.of(self.seed, "leak", protection.name)
            if n == 1:
                return LocalGaussian(bound, protection.noise).protect(updates[0], source, head).vector
            central = Gaussian(bound, protection.noise)
            total = torch.stack([central.clipped(update, head).vector for update in updates]).sum(0)
            return torch.cat([central.release(total[:head], source), total[head:]]) / n
        total = torch.stack(updates).sum(0)
        if protection.codec:
            codec = parse(protection.codec)
            total = codec.decode(codec.encode(total, rng.stream(self.seed, "leak", "codec")))
        return total / n

    @property
    def bound(self) -> float:
        """The clipping bound: half of the length of the victim's update, so that it bites."""
        return float(self.update(0)[: self.model.layout.trainable].norm()) / 2

    def samples(self, clients: int) -> tuple[Array, Tensor, Tensor]:
        """Return pictures in 0-1 (n, *shape), labels int64 (n,) and their weights in the mean float32 (n,)."""
        index = np.concatenate([self.victim, self.others[: clients - 1]])
        shard = Shard.of(self.data.take(index), self.model)
        x = shard.inputs(slice(0, len(index))).double().numpy() / (self.model.input_high or 1.0)
        weights = torch.full((len(index),), 1.0 / clients)
        weights[: len(self.victim)] /= len(self.victim)
        return x, shard.y, weights

    def guesses(self, originals: Array, labels: Tensor) -> Array:
        """Return the PSNR of the mean picture of each original's class: float64 (k,)."""
        x = self.data.x.reshape(len(self.data), -1)
        high = self.data.high or 1.0
        drawn = np.stack([x[self.data.y == int(label)].mean(0, dtype=np.float64) / high for label in labels])
        return psnr(np.square(originals.reshape(len(originals), -1) - drawn).mean(1))


def searches(
    scene: Scene, effort: Effort | None = None, on_step: Callable[[int], None] | None = None
) -> Iterator[Attempt]:
    """Attack behind every protection in turn by gradient inversion.

    Args:
        scene: Who is attacked.
        effort: How hard to try on one picture.
        on_step: Called with the amount of work done, ``work(effort, images)`` in all.
    """
    effort = effort or Effort()
    for protection in PROTECTIONS:
        began = time.perf_counter()
        view = _view(scene, protection)
        n = len(view.pictures)
        found = invert(
            scene.model,
            scene.start,
            view.gradient,
            view.labels,
            weights=view.weights,
            known=view.known,
            effort=_effort(effort, n),
            seed=rng.derive(scene.seed, "leak", "search"),  # the same start everywhere: only the protection differs
            on_step=None if on_step is None else partial(on_step, n),
        )
        yield _attempt(scene, protection, "search", view, found, began)


def divisions(scene: Scene) -> Iterator[Attempt]:
    """Attack behind every protection by division; nothing where the model does not begin fully connected."""
    for protection in PROTECTIONS:
        began = time.perf_counter()
        view = _view(scene, protection)
        found = analytic(scene.model.layout, view.gradient, scene.model.input_shape)
        if found is None:
            return
        yield _attempt(scene, protection, "division", view, found[:1] if len(view.pictures) == 1 else found, began)


def work(effort: Effort, images: int) -> int:
    """Return the work of ``searches`` for a progress bar: steps times pictures."""
    counts = [images + protection.clients - 1 for protection in PROTECTIONS]
    return sum(_effort(effort, n).total * n for n in counts)


def _effort(effort: Effort, pictures: int) -> Effort:
    """Return the effort for so many pictures at once: one start and fewer steps for a crowd."""
    if pictures <= MOST_IMAGES:
        return effort
    steps = min(effort.steps, max(_FEWEST, _WORK // pictures))
    return Effort(steps, 1, effort.smooth, effort.lr)


@dataclass(frozen=True)
class _View:
    """What the attacker sees and is told, and the pictures, which it does not see."""

    gradient: Tensor
    known: Tensor | None
    labels: Tensor
    weights: Tensor
    pictures: Array


def _view(scene: Scene, protection: Protection) -> _View:
    pictures, labels, weights = scene.samples(protection.clients)
    gradient = gradient_of(scene.seen(protection), LR, scene.model.layout)
    # Who sees zeros where nothing was sent does not ask what the pictures' own gradient is there.
    known = gradient != 0 if protection.codec else None
    return _View(gradient, known, labels, weights, pictures)


def _attempt(scene: Scene, protection: Protection, method: str, view: _View, found: Tensor, began: float) -> Attempt:
    matched = match(view.pictures, found.double().numpy() / (scene.model.input_high or 1.0))
    mine = matched.originals < len(scene.victim)
    k = matched.originals[mine]
    return Attempt(
        protection,
        method,
        view.pictures[k],
        matched.found[mine],
        matched.psnr[mine],
        scene.guesses(view.pictures[k], view.labels[torch.from_numpy(k)]),
        len(view.pictures),
        _labels(scene, view.gradient, view.labels),
        float(matched.psnr.max()),
        time.perf_counter() - began,
    )


def _labels(scene: Scene, gradient: Tensor, labels: Tensor) -> float:
    """Return the share of the labels that can be read off the last bias; NaN where there is none."""
    last = scene.model.layout.shapes[scene.model.layout.n_trainable - 1]
    if last != (scene.model.n_classes,):
        return math.nan
    read = labels_of(scene.model, scene.start, gradient, len(labels), scene.seed)
    counts = [torch.bincount(these, minlength=scene.model.n_classes) for these in (read, labels)]
    return float(torch.minimum(*counts).sum()) / len(labels)
