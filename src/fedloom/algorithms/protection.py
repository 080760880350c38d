"""Protection: what is done with updates on their way, as data that a worker can rebuild an algorithm from.

Any algorithm can be wrapped, from the inside to the outside::

    the algorithm -> statistics that stay -> compression -> clipping and noise -> seals
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from fedloom.algorithms import robust
from fedloom.algorithms.base import Algorithm
from fedloom.algorithms.batchnorm import local_statistics
from fedloom.errors import UsageError
from fedloom.layout import Layout
from fedloom.models.model import Model
from fedloom.rng import derive

if TYPE_CHECKING:
    from fedloom.algorithms.sealed import Seal, SecureSum
    from fedloom.privacy import Distributed
    from fedloom.training.private import ExamplePrivacy

CENTRAL, LOCAL, TREE, DISTRIBUTED, SKELLAM, EXAMPLES = MECHANISMS = (
    "central",
    "local",
    "tree",
    "distributed",
    "skellam",
    "examples",
)
SHARES = (DISTRIBUTED, SKELLAM)

LONGEST = 10.0
"""No normal number that a client draws is so many standard deviations long."""


@dataclass(frozen=True)
class Protection:
    """What is done with updates on their way.

    Attributes:
        local_statistics: Whether BatchNorm statistics stay with the clients.
        up: The codec of updates; empty for none.
        down: The codec of the model; empty for none.
        feedback: Whether clients keep what the codec lost; None where it needs that.
        mechanism: What hides clients: one of :data:`MECHANISMS`, or ``"none"``; ``"examples"`` is about local training
            and changes no update.
        clip: The longest update in L2 norm.
        multiplier: The noise multiplier.
        quantile: Of the norms, which the bound follows; None for a fixed bound.
        restart: Rounds per tree of ``"tree"``; 0 for one tree.
        cohort: How many clients a round is expected to have.
        most: How many it has at most.
        heaviest: The largest weight of an update.
        equal: Whether updates count alike, whatever the number of samples.
        noise_seed: None for the operating system's randomness.
        secure: ``"off"``, ``"sum"`` or ``"protocol"``.
        bits: Of a number in a secure sum.
        range: The largest number of an update in a secure sum, where updates are not clipped.
        dropouts: The share of drop-outs that a secure sum survives.
        seed: The run's.
    """

    local_statistics: bool = False
    up: str = ""
    down: str = ""
    feedback: bool | None = None
    mechanism: str = "none"
    clip: float = 1.0
    multiplier: float = 0.0
    quantile: float | None = None
    restart: int = 0
    cohort: float = 1.0
    most: int = 1
    heaviest: float = 1.0
    equal: bool = False
    noise_seed: int | None = None
    secure: str = "off"
    bits: int = 32
    range: float = 4.0
    dropouts: float = 0.2
    seed: int = 0

    @property
    def private(self) -> bool:
        """Whether clients are hidden."""
        return self.mechanism not in ("none", EXAMPLES)

    @property
    def own_noise(self) -> bool:
        """Whether clients hide themselves, from the server too: what else they could tell of their data has no noise."""
        return self.mechanism in (LOCAL, EXAMPLES, *SHARES)

    def examples(self) -> ExamplePrivacy | None:
        """Return how clients protect their samples; None where they do not."""
        if self.mechanism != EXAMPLES:
            return None
        from fedloom.training.private import ExamplePrivacy

        return ExamplePrivacy(self.clip, self.multiplier, self.noise_seed)

    def around(self, algorithm: Algorithm, model: Model) -> Algorithm:
        """Wrap an algorithm.

        Raises:
            UsageError: A codec that cannot be read, numbers out of range, or an algorithm that needs more than a mean.
        """
        made = local_statistics(algorithm, model, share=not self.private) if self.local_statistics else algorithm
        if self.mechanism == LOCAL:
            made = self._compressed(self._hidden(made, model), model)
        else:
            made = self._hidden(self._compressed(made, model), model)
        return self._sealed(made, model)

    def _compressed(self, algorithm: Algorithm, model: Model) -> Algorithm:
        if not self.up and not self.down:
            return algorithm
        from fedloom import compress
        from fedloom.algorithms.compressed import compressed

        up = compress.parse(self.up, leaving(model.layout, algorithm.stays)) if self.up else None
        down = compress.parse(self.down, model.layout) if self.down else None
        return compressed(algorithm, up, down, feedback=self.feedback, seed=self.seed)

    def _hidden(self, algorithm: Algorithm, model: Model) -> Algorithm:
        if not self.private or self.mechanism in SHARES:
            return algorithm
        from fedloom.algorithms import private
        from fedloom.privacy import AdaptiveClip, Gaussian, LocalGaussian, TreeNoise

        head = model.layout.trainable
        if self.mechanism != LOCAL:
            self._needs_mean(algorithm, "noise on the sum")
        elif not bare(algorithm):
            raise UsageError(f"{algorithm.name} needs more of a client than its update, and only that gets local noise")
        if self.mechanism == LOCAL:
            return private.local(algorithm, LocalGaussian(self.clip, self.multiplier), head, noise_seed=self.noise_seed)
        if self.mechanism == TREE:
            tree = TreeNoise(self.clip, self.multiplier, self.restart or None)
            return private.tree(algorithm, tree, self.cohort, head, noise_seed=self.noise_seed)
        adaptive = None if self.quantile is None else AdaptiveClip(self.clip, self.quantile)
        noise = Gaussian(self.clip, self.multiplier)
        return private.central(algorithm, noise, self.cohort, head, adaptive=adaptive, noise_seed=self.noise_seed)

    def _sealed(self, algorithm: Algorithm, model: Model) -> Algorithm:
        if self.secure == "off":
            return algorithm
        from fedloom.algorithms.sealed import sealed

        self._needs_mean(algorithm, "secure aggregation")
        return sealed(algorithm, self.seal(algorithm, model))

    def _needs_mean(self, algorithm: Algorithm, what: str) -> None:
        if not algorithm.linear:
            raise UsageError(
                f"{algorithm.name} needs more than the mean of the updates, which is all that {what} leaves"
            )

    def shares(self, size: int) -> Distributed:
        """Return the mechanism whose noise comes in shares, for heads of ``size`` numbers."""
        from fedloom.privacy import DistributedGaussian, Skellam

        kind = Skellam if self.mechanism == SKELLAM else DistributedGaussian
        return kind(self.clip, self.multiplier, max(1, round(self.cohort)), size, self.bits)

    def seal(self, algorithm: Algorithm, model: Model) -> Seal:
        """Return what makes whole numbers of an update, and an update of their sum."""
        from fedloom.algorithms.sealed import Exact, Noised
        from fedloom.privacy.secagg import FixedPoint

        layout = model.layout
        if self.mechanism in SHARES:
            return Noised(self.shares(layout.trainable), self.cohort, layout.size, self.seed, self.noise_seed)
        widest = max(1.0, self.clip) if self.private and self.quantile is None else self.range
        if self.mechanism == LOCAL:
            widest *= 1 + LONGEST * self.multiplier
        heaviest = 1.0 if self.private else self.heaviest
        code = FixedPoint(self.most, widest * heaviest, heaviest, self.bits)
        stays = None if algorithm.stays is None else (~algorithm.stays).nonzero().flatten()
        beside = tuple(sorted(algorithm.beside.items()))
        return Exact(code, layout.size, beside, stays, self.equal, shorten=self.private and self.mechanism != LOCAL)

    def gather(self, algorithm: Algorithm, model: Model) -> SecureSum | None:
        """Return what the server does with sealed updates; None where it sees them as they are.

        The algorithm is the one that :meth:`around` returned.
        """
        if self.secure == "off":
            return None
        from fedloom.algorithms.sealed import SecureSum

        session = derive(self.seed, "secure aggregation").to_bytes(16, "little")
        return SecureSum(self.seal(algorithm, model), session, self.secure == "protocol", self.dropouts)


def bare(algorithm: Algorithm) -> bool:
    """Say whether clients send nothing that counts but their update: noise on that hides all there is."""
    return algorithm.linear or algorithm.name in robust.METHODS


def leaving(layout: Layout, stays: Tensor | None) -> Layout:
    """Return the layout of the arrays that leave a client; those of which every number stays are left out."""
    if stays is None:
        return layout
    left = [i for i, (_, where, _) in enumerate(layout.slices()) if not bool(stays[where].all())]
    names, shapes = tuple(layout.names[i] for i in left), tuple(layout.shapes[i] for i in left)
    return Layout(names, shapes, sum(i < layout.n_trainable for i in left))
