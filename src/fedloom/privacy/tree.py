"""DP-FTRL: noise that is added up along a binary tree, so that no sampling is needed for it to stay small.

Kairouz, McMahan, Song, Thakkar, Thakurta, Xu 2021, "Practical and Private (Deep) Learning without Sampling or
Shuffling". The server never needs single rounds' sums, only the sum of all rounds so far. Rounds are the leaves of a
binary tree whose every node is a sum with noise of its own; the first t rounds are made of as many nodes as t has binary
digits 1, so that the noise of the whole grows with log t instead of t. Since a model moves by increments, what is added
in a round is the prefix noise of now minus that of the round before.

``"vanilla"`` takes a node's own noise. ``"honaker"`` also uses its children, which are another estimate of the same sum
(Honaker 2015; section 3 and Appendix B.2 of the paper): the two are averaged with weights by their variances, and the
variance of a node at level l is ``v_l = 1 / (1 / s^2 + 1 / (2 v_(l-1)))``, towards s^2 / 2.

A tree that is restarted bounds how many nodes one client can be in; the noise of finished trees stays in the model. The
state holds nodes' noise: whoever has it can take the noise off the model, so it is as secret as the clients' updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.errors import DataError, UsageError, check_known
from fedloom.privacy.clipping import Clipped, clip
from fedloom.privacy.events import TreeRun, TreeStep
from fedloom.privacy.mechanisms import check
from fedloom.privacy.randomness import Randomness

ESTIMATORS = ("honaker", "vanilla")
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class TreeNoise:
    """Noise for the sums of all rounds so far.

    Attributes:
        clip: C, the longest update's L2 norm, > 0.
        multiplier: z, the standard deviation of a node's noise / C, >= 0.
        restart: A new tree begins after so many rounds, such as when every client has had its turn; None for one tree.
        estimator: ``"honaker"`` or ``"vanilla"``.

    Example:
        >>> tree = TreeNoise(clip=1.0, multiplier=1.0)
        >>> increment, state = tree.step(tree.init(3), Randomness.of(0, "noise", 1))
        >>> increment.shape, int(state["step"])
        (torch.Size([3]), 1)
    """

    clip: float
    multiplier: float
    restart: int | None = None
    estimator: str = "honaker"

    def __post_init__(self) -> None:
        """Raise UsageError for numbers out of range or an unknown estimator."""
        check(self.clip, self.multiplier)
        check_known("estimator", [self.estimator], ESTIMATORS)
        if self.restart is not None and self.restart < 1:
            raise UsageError(f"a tree is restarted after {self.restart} rounds: a number from 1 is expected")

    @property
    def std(self) -> float:
        """The standard deviation of a node's own noise."""
        return self.multiplier * self.clip if self.multiplier else 0.0

    def clipped(self, vector: Tensor, head: int | None = None) -> Clipped:
        """Return a client's update with a head of norm at most C."""
        return clip(vector, self.clip, head)

    def init(self, size: int) -> dict[str, Tensor]:
        """Return the state before the first round, for heads of length ``size``.

        Returns:
            ``nodes``: float32 (levels, size), one for every binary digit of the step so far; ``step``: int64 ().
        """
        return {"nodes": torch.zeros(0, size), "step": torch.tensor(0)}

    def step(self, state: State, randomness: Randomness) -> tuple[Tensor, dict[str, Tensor]]:
        """Go on by one round.

        Args:
            state: What :meth:`init` or the round before returned; it is left as it is.
            randomness: Where the noise of this round's nodes comes from; another one in every round.

        Returns:
            The increment of noise, float32 (size,), for the sum of this round's clipped heads; and the next state. All
            increments since the last restart sum to the noise of the tree's prefix.

        Raises:
            DataError: The state is none of a tree.
        """
        if "nodes" not in state or "step" not in state or state["nodes"].dim() != 2:
            raise DataError("the state of the noise tree is damaged: go on from another checkpoint")
        step, nodes = int(state["step"]), state["nodes"]
        if self.restart is not None and step == self.restart:
            step, nodes = 0, nodes[:0]
        levels = (~step & (step + 1)).bit_length()  # one more than the digits 1 at the end of the step before
        placed = self._new_node(nodes, levels, randomness)
        increment = placed.double() - nodes[: levels - 1].double().sum(0)
        nodes = torch.cat([torch.zeros(levels - 1, len(placed)), placed[None], nodes[levels:]])
        return increment.float(), {"nodes": nodes, "step": torch.tensor(step + 1)}

    def _new_node(self, nodes: Tensor, levels: int, randomness: Randomness) -> Tensor:
        """Return the noise of the estimate of the node that takes the place of all nodes below its level.

        Args:
            nodes: The state's, float32 (digits, size); the ones below level ``levels - 1`` are left siblings.
            levels: How many nodes the new leaf completes.
            randomness: Where their noise comes from.

        Returns:
            float32 (size,).
        """
        size = nodes.shape[1]
        if self.estimator == "vanilla":
            return randomness.normal(size, self.std)
        node = randomness.normal64(size, self.std)
        for level in range(1, levels):
            children = nodes[level - 1].double().add_(node)
            weight = self.share(level)
            node = randomness.normal64(size, self.std).mul_(weight).add_(children, alpha=1 - weight)
        return node.float()

    def share(self, level: int) -> float:
        """Return the variance of a node's estimate at ``level`` (leaves: 0) in units of ``std^2``."""
        if self.estimator == "vanilla":
            return 1.0
        return 1 / (2 - 0.5**level)  # the fixed form of v_l = 1 / (1 + 1 / (2 v_(l-1))), v_0 = 1

    def variance(self, step: int) -> float:
        """Return the variance of the prefix noise after ``step`` rounds of a tree."""
        return self.std**2 * sum(self.share(level) for level in range(step.bit_length()) if step >> level & 1)

    def event(self, round_number: int) -> TreeStep:
        """Return what round ``round_number`` (from 1) was, for the ledger; tell it who took part."""
        step = round_number if self.restart is None else (round_number - 1) % self.restart + 1
        return TreeStep(self.multiplier, step)

    def run(self, rounds: int, participations: int = 1, gap: int = 1) -> TreeRun:
        """Return a whole run, for a plan; ``participations`` and ``gap`` are those of one tree, see :class:`TreeRun`."""
        length = min(self.restart or rounds, rounds)
        steps = [length] * (rounds // length) + ([rounds % length] if rounds % length else [])
        return TreeRun(self.multiplier, tuple(steps), participations, gap)
