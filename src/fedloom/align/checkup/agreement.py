"""Agreement: do models give the same answers to the same inputs? No labels are needed to see who stands apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import torch
from torch import Tensor

from fedloom.models.model import Model
from fedloom.training.evaluate import predict
from fedloom.training.shard import Shard

FRIENDS = 0.4
"""Two models agree when they reach this share of the agreement above chance that their answers allow. Healthy members of
a team reach 0.5 and more, on made-up inputs too; a model that learned nothing, or something else, stays below 0.25."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says to n inputs.

    Attributes:
        probabilities: float32 (n, C).
        size: The standard deviation of its centred logits.
        entropy: The mean entropy of its probabilities as a share of ln C: 0 is certain, 1 is undecided.
    """

    probabilities: Tensor
    size: float
    entropy: float

    @cached_property
    def classes(self) -> Tensor:
        """The likeliest class of each input, int64 (n,)."""
        return self.probabilities.argmax(1)

    @property
    def finite(self) -> bool:
        """Whether there is no NaN among the answers."""
        return bool(self.probabilities.isfinite().all())


@dataclass(frozen=True)
class Agreement:
    """How far two models agree.

    Attributes:
        share: The share of inputs with the same answer, 0-1.
        kappa: What of the rest above chance is reached: (share - chance) / (1 - chance), Cohen 1960.
        reached: What of the agreement above chance is reached that is possible with as many answers of each class as
            the two give; 0 where nothing is possible. A model that knows two classes only can still reach 1.
    """

    share: float
    kappa: float
    reached: float


def answers(model: Model, x: Tensor) -> Answers:
    """Ask a model; ``x`` is float32 (n, *input_shape) in its scale."""
    return of_logits(predict(model, Shard("probe", x, torch.zeros(len(x), dtype=torch.int64), 1.0)))


def of_logits(logits: Tensor) -> Answers:
    """Summarise logits (n, C)."""
    probabilities = logits.softmax(1)
    entropy = -(probabilities * probabilities.clamp_min(1e-30).log()).sum(1).mean()
    size = (logits - logits.mean(1, keepdim=True)).square().mean().sqrt()
    return Answers(probabilities, float(size), float(entropy) / math.log(max(logits.shape[1], 2)))


def together(found: Sequence[Answers]) -> Tensor:
    """Return the mean of several models' probabilities, (n, C)."""
    return torch.stack([one.probabilities for one in found]).mean(0)


def agreement(a: Tensor, b: Tensor) -> Agreement:
    """Compare probabilities a and b, each (n, C), by their likeliest classes.

    Example:
        >>> agreement(torch.eye(4), torch.eye(4))
        Agreement(share=1.0, kappa=1.0, reached=1.0)
    """
    classes = a.shape[1]
    pairs = torch.bincount(a.argmax(1) * classes + b.argmax(1), minlength=classes * classes).double()
    table = (pairs / pairs.sum()).reshape(classes, classes)
    rows, columns = table.sum(1), table.sum(0)
    share, chance, most = (float(v) for v in (table.trace(), rows @ columns, torch.minimum(rows, columns).sum()))
    above, room = share - chance, most - chance
    return Agreement(share, above / max(1.0 - chance, 1e-9), above / room if room > 0.01 else 0.0)


def friends(a: Answers, b: Answers) -> bool:
    """Whether two models agree."""
    return agreement(a.probabilities, b.probabilities).reached >= FRIENDS


def core(found: Sequence[Answers], alike: Callable[[Answers, Answers], bool] = friends) -> tuple[int, ...]:
    """Return the indices of the majority that agrees: the model with the most friends, and these; else nothing."""
    n = len(found)
    circles = [{i} for i in range(n)]
    for i in range(n):
        for j in range(i):
            if alike(found[i], found[j]):
                circles[i].add(j)
                circles[j].add(i)
    best = max(circles, key=len, default=set())
    return tuple(sorted(best)) if 2 * len(best) > n else ()


def usual(found: Sequence[Answers]) -> float:
    """Return the kappa with the others together that is usual among models that agree; 1 for a single one."""
    if len(found) < 2:
        return 1.0
    rest = [[other for other in found if other is not one] for one in found]
    return median(agreement(one.probabilities, together(others)).kappa for one, others in zip(found, rest, strict=True))
