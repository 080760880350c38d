"""DP-SGD inside a client: every sample's gradient is clipped before any two are added, and noise is put on the sum.

M. Abadi, A. Chu, I. Goodfellow, H. B. McMahan, I. Mironov, K. Talwar, L. Zhang, "Deep Learning with Differential
Privacy", CCS 2016, arXiv 1607.00133, Algorithm 1. With n samples and batches of B expected ones, q = B / n::

    in each of epochs * ceil(n / B) steps:
        batch   every sample by its own coin, with probability q       (Poisson: what the accountant assumes)
        g <- (sum over the batch of g_i min(1, C / |g_i|) + N(0, (z C)^2 I)) / (q n)
        the optimiser's step on g

The denominator is the expected size, never the real one, and an empty batch gives noise alone: both would tell how many
samples there were. Norms are those of the whole vector of trainable numbers.

**What comes after the noise costs nothing**, as long as it looks at no sample: momentum, Adam, weight decay, the
penalties of a Keras configuration, the proximal pull, masks, the schedule. A drift is added as it is: it is free if it
was made of weights that went through such noise themselves, as SCAFFOLD's variates and FedDyn's vectors are when all of
a client's turns are private; made of plain gradients it would carry them past the noise, which cannot be seen from here.

**What would get past the noise is kept back or refused.** The training loss and accuracy are NaN: they are taken from
samples. A layer that looks at the whole batch or keeps statistics (BatchNorm) is refused, and so is bfloat16, whose
products are rounded after the norms were taken. The number of samples n counts as known to everybody.

The noise is float32: see ``fedloom.privacy.randomness`` for what floating point may give away (Mironov 2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fedloom.errors import TrainingError, UsageError
from fedloom.models.model import Model
from fedloom.privacy.randomness import Randomness
from fedloom.records import Correction
from fedloom.training.cohort import Task, Trained, train_each
from fedloom.training.local import LocalConfig, Trainer, dropout_seed
from fedloom.training.noise import Normals, batches
from fedloom.training.per_example import MEMORY
from fedloom.training.per_example_choice import gradients
from fedloom.training.shard import Shard
from fedloom.training.threads import enough_threads

SEVERAL = 1 << 16
"""Normal numbers that are worth a call: small models draw the noise of several steps at once."""


@dataclass(frozen=True)
class ExamplePrivacy:
    """How a client protects each of its samples.

    Attributes:
        clip: C, the largest L2 norm of a sample's gradient, > 0; infinite only without noise.
        multiplier: z, the noise's standard deviation in units of ``clip``, >= 0; 0 protects nobody.
        noise_seed: None for the operating system's randomness. A number makes coins and noise repeatable: whoever knows
            it can take the noise off again, so that the guarantee is void.
        memory: Bytes that per-example gradients may take at a time, roughly.
    """

    clip: float
    multiplier: float
    noise_seed: int | None = None
    memory: int = MEMORY

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UsageError: A value outside its range; the message names it.
        """
        if not self.clip > 0:
            raise UsageError(f"clip is {self.clip}; it must be above 0")
        if not 0 <= self.multiplier < math.inf:
            raise UsageError(f"multiplier is {self.multiplier}; it must be 0 or more")
        if math.isinf(self.clip) and self.multiplier:
            raise UsageError("noise is measured in clips: without a finite clip no noise would be enough")
        if self.memory < 1:
            raise UsageError(f"memory is {self.memory}; it must be at least 1 byte")

    @property
    def void(self) -> bool:
        """Whether this protects nobody: the noise can be drawn again, or there is none."""
        return self.noise_seed is not None or not self.multiplier

    def spending(self, samples: int, config: LocalConfig) -> Spending:
        """Return what the whole training of a client with so many samples will spend.

        Example:
            >>> ExamplePrivacy(clip=1.0, multiplier=1.1).spending(600, LocalConfig(epochs=2, batch_size=60))
            Spending(sampling_rate=0.1, multiplier=1.1, steps=20)
        """
        expected = _expected(samples, config)
        return Spending(expected / samples, self.multiplier, config.epochs * math.ceil(samples / expected))


@dataclass(frozen=True)
class Spending:
    """What an accountant needs: that many Gaussian mechanisms, each on a Poisson sample.

    Attributes:
        sampling_rate: q, the probability of each sample to be in a batch.
        multiplier: The noise's standard deviation in units of the clipping norm.
        steps: How many noised gradients were computed.
    """

    sampling_rate: float
    multiplier: float
    steps: int


class PrivateTrainer(Trainer):
    """One client's training by DP-SGD; it stands where ``Trainer`` stands.

    With a noise seed, batches and noise of an epoch come from ``(noise seed, seed, shard.name, epoch)``, so that
    resuming gives the same bits as going on.

    Args:
        model: As of ``Trainer``; likewise the following.
        start: Likewise.
        shard: Likewise.
        config: Likewise; the batch size is the expected one.
        correction: Likewise; see the module's text for what a drift must be.
        seed: Of dropout, and part of the path to the noise of a noise seed.
        privacy: Clipping and noise.

    Raises:
        UsageError: The model or the configuration would void the guarantee; the message says why.
    """

    def __init__(
        self,
        model: Model,
        start: torch.Tensor,
        shard: Shard,
        config: LocalConfig,
        correction: Correction | None = None,
        seed: int = 0,
        *,
        privacy: ExamplePrivacy,
    ) -> None:
        if config.half:
            raise UsageError("per-example privacy needs float32: bfloat16 rounds gradients after they were measured")
        model.to(shard.x.device)
        self._gradients = gradients(model, privacy.memory)
        super().__init__(model, start, shard, config, correction, seed)
        self.privacy = privacy
        self._expected = _expected(len(shard), config)
        per_epoch = math.ceil(len(shard) / self._expected)
        head = model.layout.trainable
        self._at_once = max(1, min(per_epoch, SEVERAL // max(1, head)))
        self._normals, self._drawn = Normals(), torch.empty(self._at_once * head)

    @property
    def spent(self) -> Spending:
        """What has been spent until now, by the steps that were taken."""
        return Spending(self._expected / len(self.shard), self.privacy.multiplier, self.steps)

    def run_epoch(self, on_batch: Callable[[int], None] | None = None) -> dict[str, float]:
        """Take the steps of one epoch, ``ceil(n / B)``.

        Args:
            on_batch: Called with the size of each batch, which is the client's secret: for its own progress bar.

        Returns:
            ``loss`` and ``accuracy``, NaN: they would be computed from samples without noise.

        Raises:
            TrainingError: The weights are not finite.
        """
        self.epoch += 1
        n, rate = len(self.shard), self._expected / len(self.shard)
        steps, device = math.ceil(n / self._expected), self.shard.x.device
        chance = Randomness.of(self.privacy.noise_seed, "examples", self.seed, self.shard.name, self.epoch)
        self.model.module.train()
        dropout = dropout_seed(self.seed, self.shard.name, self.epoch, device)
        with dropout, enough_threads(self.model, self._expected, backward=True), self._gradients.listening():
            for number, index in enumerate(batches(chance, n, rate, steps)):
                self._draw(chance, number)
                self._private(index.to(device))
                if on_batch is not None:
                    on_batch(len(index))
        if not bool(torch.isfinite(self._flat).all()):
            raise TrainingError(
                f"{self.shard.name}: the weights grew beyond float32 in epoch {self.epoch}: "
                f"use a lower --lr (now {self.config.lr})",
                client=self.shard.name,
                epoch=self.epoch,
            )
        return {"loss": math.nan, "accuracy": math.nan}

    def _draw(self, chance: Randomness, number: int) -> None:
        """Begin the gradient of an epoch's step with its noise, already divided by the batch's expected size."""
        grad, place = self._flat.grad, number % self._at_once
        assert grad is not None
        if not self.privacy.multiplier:
            grad.zero_()
            return
        std = self.privacy.multiplier * self.privacy.clip / self._expected
        if self._at_once == 1 and grad.device.type == "cpu":
            self._normals.fill(grad, chance, std)
        else:
            if not place:
                self._normals.fill(self._drawn, chance, std)
            grad.copy_(self._drawn[place * len(grad) : (place + 1) * len(grad)])

    def _private(self, index: torch.Tensor) -> None:
        """Add a batch's clipped gradients to the noise and take the optimiser's step."""
        grad = self._flat.grad
        assert grad is not None
        if len(index):
            x, y = self.shard.inputs(index), self.shard.y[index]
            self._gradients.add(x, y, self.privacy.clip, 1.0 / self._expected, grad)
        penalty = getattr(self.model.module, "regularization", lambda: None)()
        if penalty is not None:
            penalty.backward()
        self._move(grad)


def train_private(
    model: Model, tasks: Sequence[Task], config: LocalConfig, seed: int, privacy: ExamplePrivacy
) -> Iterator[tuple[Trained, tuple[Spending, ...]]]:
    """Train one client after another by DP-SGD; see ``cohort.train_loop``.

    Yields:
        Of each client its result, and what each of its phases really spent: those of a client that diverged too.
    """
    for task in tasks:
        made: list[PrivateTrainer] = []

        def make(
            model: Model,
            start: torch.Tensor,
            shard: Shard,
            config: LocalConfig,
            correction: Correction,
            seed: int,
            made: list[PrivateTrainer] = made,
        ) -> PrivateTrainer:
            made.append(PrivateTrainer(model, start, shard, config, correction, seed, privacy=privacy))
            return made[-1]

        trained = next(train_each(model, [task], config, seed, make))
        yield trained, tuple(trainer.spent for trainer in made)


def _expected(samples: int, config: LocalConfig) -> int:
    """Return the expected number of samples in a batch: 0 stands for all of them."""
    return min(config.batch_size or samples, samples)
