"""What a mechanism needs of a run's other settings; each that is broken, in words.

A guarantee holds for what is accounted for and nothing else: a vector that leaves the client beside its clipped update,
a weight that tells how much data it has, or a client that is asked because another one failed. :func:`conflicts` takes
plain values, so that a configuration can be refused before anything runs, with everything that is wrong at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from fedloom.errors import UsageError
from fedloom.privacy.adaptive import AdaptiveClip
from fedloom.privacy.discrete import Distributed
from fedloom.privacy.mechanisms import Gaussian, LocalGaussian
from fedloom.privacy.tree import TreeNoise

Mechanism: TypeAlias = Gaussian | LocalGaussian | TreeNoise | Distributed


@dataclass(frozen=True)
class Setting:
    """What a run does beside its mechanism; the defaults break nothing.

    Attributes:
        algorithm: Its name, for messages.
        sampling: The sampling scheme: ``"poisson"``, ``"uniform"``, ``"all"``, ``"fixed"``, ``"size"``.
        equal_weights: Whether all updates count alike.
        mean: Whether updates are merged by a (weighted) mean.
        extras: Names of the vectors that clients send beside their update (control variates, models of their own).
        buffers: How many numbers of the update lie behind its trainable head and are shared (BatchNorm statistics).
        refresh: Whether the server makes such statistics anew from clients' data.
        policy: What happens when a client fails: ``"skip"``, ``"retry"``, ``"stop"``.
        over_selection: Whether more clients are asked than are waited for.
        availability: Whether clients that cannot be reached are passed over before a round is drawn.
        asynchronous: Whether updates are merged as they come, without rounds.
        secure: Whether sums are made by secure aggregation.
        codec: Name of the clients' compression, ``""`` for none.
    """

    algorithm: str = "fedavg"
    sampling: str = "poisson"
    equal_weights: bool = True
    mean: bool = True
    extras: tuple[str, ...] = ()
    buffers: int = 0
    refresh: bool = False
    policy: str = "skip"
    over_selection: bool = False
    availability: bool = False
    asynchronous: bool = False
    secure: bool = False
    codec: str = ""


def conflicts(
    mechanism: Mechanism, setting: Setting, adaptive: AdaptiveClip | None = None, cohort: float = 0.0
) -> Iterator[str]:
    """Yield every setting that voids the mechanism's guarantee, in words; nothing where all is well.

    Args:
        mechanism: The mechanism.
        setting: The run's other settings.
        adaptive: Adaptive clipping, where it is wanted.
        cohort: The expected number of clients of a round; adaptive clipping looks at it.

    Example:
        >>> list(conflicts(Gaussian(1.0, 1.0), Setting(equal_weights=False)))
        ['differential privacy: updates must count alike, since a weight tells how much data a client has: ...']
    """
    for found in (_leaks(setting), _merging(mechanism, setting), _chosen(mechanism, setting)):
        yield from (f"differential privacy: {text}" for text in found)
    for found in (_adaptive(mechanism, adaptive, cohort), _shares(mechanism, setting)):
        yield from (f"differential privacy: {text}" for text in found)


def _leaks(setting: Setting) -> Iterator[str]:
    """What leaves a client without being clipped and noised."""
    if not setting.equal_weights:
        yield "updates must count alike, since a weight tells how much data a client has: set weights to equal"
    if setting.extras:
        sent = ", ".join(setting.extras)
        yield f"{setting.algorithm} sends more than the update ({sent}), and that has no noise: take fedavg"
    if setting.buffers:
        yield (
            f"{setting.buffers} numbers of the model are statistics, such as BatchNorm's, which are shared without clipping "
            "or noise: keep them with the clients (batchnorm = local), or take a model without"
        )
    if setting.refresh:
        yield "statistics that are made anew from clients' data have no noise: leave that out"


def _merging(mechanism: Mechanism, setting: Setting) -> Iterator[str]:
    """What is done with updates before there is noise on them; a client's own noise covers all of it."""
    if isinstance(mechanism, LocalGaussian):
        return
    if not setting.mean:
        yield (
            f"{setting.algorithm} does not merge by a mean, so that one client may move the model by more than the clipping "
            "bound: take fedavg, or noise at the clients (local)"
        )
    if setting.asynchronous:
        yield (
            f"{setting.algorithm} has no rounds, so that nobody knows whose updates are in a sum: take an algorithm with "
            "rounds"
        )
    if setting.codec and (setting.secure or isinstance(mechanism, Distributed)):
        yield (
            f"'{setting.codec}' changes an update after it was clipped, and in a secure sum nobody can clip it again: leave "
            "the compression out"
        )


def _chosen(mechanism: Mechanism, setting: Setting) -> Iterator[str]:
    """Who is chosen; it matters where the accountant counts on nobody knowing, or where data decides."""
    if isinstance(mechanism, LocalGaussian):
        return
    scheme = setting.sampling
    if setting.over_selection and isinstance(mechanism, Gaussian):
        yield "over_selection keeps the fastest, so that who is in a sum depends on who else takes part: leave it out"
    if scheme == "size":
        yield "clients are chosen by how much data they have, which is theirs to know: set sampling to poisson or uniform"
    if scheme not in ("poisson", "uniform") or not isinstance(mechanism, Gaussian):
        return
    if setting.policy == "retry":
        yield f"the policy retry asks others than {scheme} sampling chose, and epsilon counts on its choice: set skip"
    if setting.availability and scheme == "uniform":
        yield (
            "uniform sampling passes over clients that cannot be reached, so that they are chosen from fewer than epsilon "
            "counts on: set sampling to poisson"
        )


def _adaptive(mechanism: Mechanism, adaptive: AdaptiveClip | None, cohort: float) -> Iterator[str]:
    if adaptive is None:
        return
    if not isinstance(mechanism, Gaussian):
        name = type(mechanism).__name__
        yield f"adaptive clipping goes with noise that the server adds round by round, not with {name}: set a fixed clip"
        return
    try:
        adaptive.split(mechanism.multiplier, cohort)
    except UsageError as error:
        yield str(error)


def _shares(mechanism: Mechanism, setting: Setting) -> Iterator[str]:
    if isinstance(mechanism, Distributed) and not setting.secure:
        yield (
            "noise in shares hides a client only in the sum, and without secure aggregation the server sees every share by "
            "itself: set secure, or take noise at the clients (local)"
        )
