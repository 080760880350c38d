"""Four models of the same kind, with few and with many samples, without and with DP-SGD: what do they give away?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedloom import rng
from fedloom.data.dataset import Dataset
from fedloom.errors import DataError, MissingDependency, UsageError
from fedloom.leakage.membership import Membership, membership
from fedloom.models.model import Model
from fedloom.privacy.events import Release, Sampling
from fedloom.privacy.planning import plan
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.private import ExamplePrivacy, PrivateTrainer
from fedloom.training.shard import Shard

DELTA = 1e-5
TRIED = 1000
REFERENCES = 8
"""How many models the attacker trains on samples of its own, to know which samples are hard anyway."""

_FEW, _MANY = 100, 2000


@dataclass(frozen=True)
class Lesson:
    """How one of the models is trained.

    Attributes:
        name: A word for files.
        title: What it is, for people.
        many: Whether it gets many samples.
        local: Its training.
        privacy: Clipping and noise of DP-SGD; None without.
    """

    name: str
    title: str
    many: bool
    local: LocalConfig
    privacy: ExamplePrivacy | None = None


LESSONS = (
    Lesson("few", "Few samples, learned by heart", False, LocalConfig(60, 20, "adam", 1e-3)),
    Lesson(
        "few-private",
        "Few samples, DP-SGD",
        False,
        LocalConfig(30, 25, "adam", 2e-3),
        ExamplePrivacy(1.0, 2.0),
    ),
    Lesson("many", "Many samples", True, LocalConfig(12, 32, "adam", 1e-3)),
    Lesson(
        "many-private",
        "Many samples, DP-SGD",
        True,
        LocalConfig(15, 100, "adam", 2e-3),
        ExamplePrivacy(1.0, 1.0),
    ),
)


@dataclass(frozen=True)
class Learned:
    """What came of a lesson.

    Attributes:
        lesson: Which one.
        samples: How many samples the model was trained on.
        loss: The attack by the losses alone.
        calibrated: The attack that knows from models of its own how hard each sample is.
        epsilon: What DP-SGD guarantees for each sample at a delta of 1e-5, if its noise had come from the operating
            system; None without DP-SGD or without dp-accounting.
        seconds: How long training took.
    """

    lesson: Lesson
    samples: int
    loss: Membership
    calibrated: Membership
    epsilon: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        privacy = self.lesson.privacy
        how = {"local": self.lesson.local.to_json(), "dp_sgd": None}
        if privacy is not None:
            how["dp_sgd"] = {
                "clip": privacy.clip,
                "multiplier": privacy.multiplier,
                "epsilon": self.epsilon,
                "delta": DELTA,
            }
        attacks = {"loss": self.loss.to_json(), "calibrated": self.calibrated.to_json()}
        return {"name": self.lesson.name, "samples": self.samples, **how, **attacks, "seconds": self.seconds}


@dataclass(frozen=True)
class Pools:
    """Who has which samples: indices into the data.

    Attributes:
        members: What models are trained on, the few first.
        others: What they have not seen.
        attacker: The attacker's own.
    """

    members: NDArray[np.int64]
    others: NDArray[np.int64]
    attacker: NDArray[np.int64]

    @classmethod
    def of(cls, data: Dataset, seed: int) -> Pools:
        """Divide the samples.

        Raises:
            DataError: There are fewer than 400.
        """
        n = len(data)
        if n < 4 * _FEW:
            raise DataError(f"{data.name}: {n} samples, and membership inference needs {4 * _FEW} or more")
        order = rng.stream(seed, "leak", "members").permutation(n)
        many, tried = min(_MANY, n // 2), min(TRIED, n // 4)
        return cls(order[:many], order[many : many + tried], order[many + tried :])


def lessons(
    model: Model, start: Tensor, data: Dataset, seed: int = 0, on_epoch: Callable[[], None] | None = None
) -> Iterator[Learned | str]:
    """Train the four models, and attack each.

    Args:
        model: Lends its module; it has other weights afterwards.
        start: The weights to begin with, float32 (P,).
        data: Samples for members, for others and for the attacker.
        seed: Of everything, the noise of DP-SGD too, so that the page can be made again.
        on_epoch: Called after every epoch, ``epochs()`` times in all.

    Yields:
        What came of each, or why it could not be.
    """
    pools = Pools.of(data, seed)
    tell = on_epoch or (lambda: None)
    local = LESSONS[0].local
    references = []
    for i in range(REFERENCES):
        chosen = rng.stream(seed, "leak", "reference", i).choice(pools.attacker, _FEW)
        references.append(_train(model, start, data.take(chosen, f"reference {i}"), local, None, seed, tell)[0])
    others = data.take(pools.others, "others")
    for lesson in LESSONS:
        index = pools.members if lesson.many else pools.members[:_FEW]
        began = time.perf_counter()
        try:
            members = data.take(index, lesson.name)
            vector, epsilon = _train(model, start, members, lesson.local, lesson.privacy, seed, tell)
        except UsageError as error:
            yield f"{lesson.title}: {error}"
            continue
        seconds = time.perf_counter() - began
        tried = data.take(index[:TRIED], lesson.name)
        found = [membership(model, tried, others, vector=vector, references=r, seed=seed) for r in ((), references)]
        yield Learned(lesson, len(index), found[0], found[1], epsilon, seconds)


def epochs() -> int:
    """Return how often ``lessons`` calls ``on_epoch``."""
    return REFERENCES * LESSONS[0].local.epochs + sum(lesson.local.epochs for lesson in LESSONS)


def _train(
    model: Model,
    start: Tensor,
    data: Dataset,
    local: LocalConfig,
    privacy: ExamplePrivacy | None,
    seed: int,
    tell: Callable[[], None],
) -> tuple[Tensor, float | None]:
    """Return the trained weights, float32 (P,), and the epsilon of DP-SGD where it is known."""
    shard = Shard.of(data, model)
    trainer = (
        Trainer(model, start, shard, local, seed=seed)
        if privacy is None
        else PrivateTrainer(model, start, shard, local, seed=seed, privacy=_seeded(privacy, seed))
    )
    for _ in range(local.epochs):
        trainer.run_epoch()
        tell()
    return trainer.vector(), _epsilon(trainer) if isinstance(trainer, PrivateTrainer) else None


def _seeded(privacy: ExamplePrivacy, seed: int) -> ExamplePrivacy:
    return ExamplePrivacy(privacy.clip, privacy.multiplier, rng.derive(seed, "leak", "noise"))


def _epsilon(trainer: PrivateTrainer) -> float | None:
    spent = trainer.spent
    event = Release(spent.multiplier, Sampling("poisson", spent.sampling_rate))
    try:
        return plan(event, spent.steps, DELTA, "pld")
    except MissingDependency:
        return None
