"""Private updates: any algorithm that needs only a mean, with clients hidden in it (differential privacy for clients).

:func:`central` is DP-FedAvg (McMahan, Ramage, Talwar, Zhang 2018): clients clip their updates, the server puts noise on
the sum and divides it by the expected number of clients; with :class:`~fedloom.privacy.AdaptiveClip` the bound follows
a quantile of the norms. :func:`tree` is DP-FTRL (Kairouz et al. 2021): the noise of all rounds so far is that of a
binary tree. :func:`local` lets every client put noise on its own update.

The algorithm gets one update in place of the cohort's: the noisy mean. Whatever it makes of that (momentum, FedAdam) costs
no privacy. All updates count alike, and an update that is not finite counts as zeros. Algorithms whose clients send more
than their update are refused before a run begins (:mod:`fedloom.privacy.conflicts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedloom.algorithms.base import Algorithm, Broadcast, Settled, State, Visit
from fedloom.privacy import AdaptiveClip, Clipped, Gaussian, LocalGaussian, Randomness, TreeNoise
from fedloom.records import ClientUpdate
from fedloom.training.cohort import Trained

BOUND, BELOW = "clip", "below"
"""What adaptive clipping sends down, and what clients answer: whether their norm is below the bound."""

COUNT = "privacy.round"
BOUND_STATE = "privacy.clip"
TREE = "privacy.tree."

Clip = Callable[[Tensor, Visit], Clipped]


@dataclass(frozen=True)
class Sum:
    """The sum of a round's clipped updates.

    Attributes:
        total: float64 (P,).
        clients: How many there are.
        below: How many of them say that their norm is below the bound.
    """

    total: Tensor
    clients: float
    below: float


def central(
    algorithm: Algorithm,
    mechanism: Gaussian,
    cohort: float,
    head: int,
    *,
    adaptive: AdaptiveClip | None = None,
    noise_seed: int | None = None,
) -> Algorithm:
    """Hide clients in the sum by noise that the server adds.

    Args:
        algorithm: What is done with the mean (``algorithm.linear``).
        mechanism: The bound and the noise; with ``adaptive`` its multiplier is that of updates and counts together.
        cohort: How many clients a round is expected to have: the fixed denominator.
        head: The length of the trainable head.
        adaptive: How the bound follows the norms; None for a fixed one.
        noise_seed: None for the operating system's randomness; with a number noise can be repeated and protects nobody.
    """

    def init(w0: Tensor) -> State:
        bound = {} if adaptive is None else {BOUND_STATE: torch.tensor([adaptive.initial])}
        return {**algorithm.init(w0), COUNT: torch.tensor(0), **bound}

    def broadcast(state: State) -> Broadcast:
        sent = algorithm.broadcast(_inner(state))
        return sent if adaptive is None else replace(sent, extra={**sent.extra, BOUND: state[BOUND_STATE]})

    def clipped(delta: Tensor, visit: Visit) -> Clipped:
        bound = mechanism.clip if adaptive is None else float(visit.broadcast.extra[BOUND])
        return Gaussian(bound, 0.0).clipped(delta, head)

    def reduce(state: State, updates: Iterable[ClientUpdate]) -> tuple[State, Mapping[str, float]]:
        now = mechanism if adaptive is None else Gaussian(float(state[BOUND_STATE]), 0.0)
        found, number = _sum(updates, state["model"], lambda delta: now.clipped(delta, head)), int(state[COUNT])
        noise = Randomness.of(noise_seed, "noise", number)
        bound, logged = {}, {}
        if adaptive is not None:
            clip = float(state[BOUND_STATE])
            now = adaptive.mechanism(clip, mechanism.multiplier, cohort)
            below, came = round(found.below), round(found.clients)
            after = adaptive.update(clip, below, came, cohort, noise, private=mechanism.multiplier > 0)
            bound, logged = {BOUND_STATE: torch.tensor([after])}, {"clip": clip}
        released = now.mean(found.total[:head].cpu(), cohort, noise)
        state, more = _reduced(algorithm, state, released)
        return {**state, COUNT: torch.tensor(number + 1), **bound}, {**more, **logged, "noise": now.std / cohort}

    settle = _settling(algorithm, clipped, head, counts=adaptive is not None)
    beside = {**algorithm.beside, **({} if adaptive is None else {BELOW: 1})}
    return replace(algorithm, init=init, broadcast=broadcast, settle=settle, reduce=reduce, beside=beside, always=True)


def tree(
    algorithm: Algorithm, mechanism: TreeNoise, cohort: float, head: int, *, noise_seed: int | None = None
) -> Algorithm:
    """Hide clients in the sum of all rounds by the noise of a tree; see :func:`central` for the arguments."""

    def init(w0: Tensor) -> State:
        nodes = {f"{TREE}{key}": value for key, value in mechanism.init(head).items()}
        return {**algorithm.init(w0), COUNT: torch.tensor(0), **nodes}

    def reduce(state: State, updates: Iterable[ClientUpdate]) -> tuple[State, Mapping[str, float]]:
        found = _sum(updates, state["model"], lambda delta: mechanism.clipped(delta, head))
        number = int(state[COUNT])
        before = {key.removeprefix(TREE): value.cpu() for key, value in state.items() if key.startswith(TREE)}
        increment, nodes = mechanism.step(before, Randomness.of(noise_seed, "noise", number))
        released = (found.total[:head].cpu() + increment) / cohort
        state, more = _reduced(algorithm, state, released.float())
        kept = {f"{TREE}{key}": value for key, value in nodes.items()}
        std = mechanism.variance(int(nodes["step"])) ** 0.5
        return {**state, COUNT: torch.tensor(number + 1), **kept}, {**more, "noise": std / cohort}

    settle = _settling(algorithm, lambda delta, _: mechanism.clipped(delta, head), head)
    return replace(
        algorithm,
        init=init,
        broadcast=lambda s: algorithm.broadcast(_inner(s)),
        settle=settle,
        reduce=reduce,
        always=True,
    )


def local(algorithm: Algorithm, mechanism: LocalGaussian, head: int, *, noise_seed: int | None = None) -> Algorithm:
    """Let every client put noise on its own clipped update, before anybody sees it."""

    def protected(delta: Tensor, visit: Visit) -> Clipped:
        return mechanism.protect(delta.cpu(), Randomness.of(noise_seed, "noise", visit.round, visit.client), head)

    return replace(algorithm, settle=_settling(algorithm, protected, head))


def _settling(
    algorithm: Algorithm, clip: Clip, head: int, *, counts: bool = False
) -> Callable[[Visit, Trained], Settled]:
    """Let clients send the head of their update and nothing else: what lies behind it is not protected."""

    def settle(visit: Visit, trained: Trained) -> Settled:
        settled = algorithm.settle(visit, trained)
        short = clip(settled.delta, visit)
        below = {BELOW: torch.tensor([float(not short.clipped)])} if counts else {}
        sent = torch.zeros_like(settled.delta)
        sent[:head] = short.vector[:head].to(sent.device)
        return replace(settled, delta=sent, extra={**settled.extra, **below}, weight=1.0)

    return settle


def _sum(updates: Iterable[ClientUpdate], like: Tensor, clip: Callable[[Tensor], Clipped]) -> Sum:
    """Add the updates up as they pass; one that stands for several has their number as its weight.

    Single updates are clipped again: the noise is measured by the bound, whatever a client sent.
    """
    total = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
    clients = below = 0.0
    for update in updates:
        delta = clip(update.delta).vector if update.weight == 1 else update.delta
        total.add_(delta.double(), alpha=update.weight)
        clients += update.weight
        below += update.weight * float(update.extra[BELOW]) if BELOW in update.extra else 0.0
    return Sum(total, clients, below)


def _reduced(algorithm: Algorithm, state: State, released: Tensor) -> tuple[State, Mapping[str, float]]:
    """Hand the algorithm the noisy mean as the one update of the round; statistics stay as they are."""
    model = state["model"]
    delta = torch.zeros_like(model)
    delta[: len(released)] = released.to(model.device)
    return algorithm.reduce(_inner(state), [ClientUpdate("the noisy mean", delta, 1.0, 0)])


def _inner(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("privacy.")}
