"""Greedy soup: average only the members that help.

M. Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", 2022, recipe 1. Members are visited from the best score to the worst, and each joins when the average
of the ones so far and itself scores no lower than without it.

Deviations: the score is whatever the caller measures (with labels accuracy, without them the agreement with the
ensemble); a member whose score is not a number comes last and never joins. The paper's members share a start: models
from different starts have to be aligned first, and even then the soup often ends with one member.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedloom.errors import MergeError

__all__ = ["Soup", "greedy_soup"]


@dataclass(frozen=True, eq=False)
class Soup:
    """An average of chosen members.

    Attributes:
        vector: float32 (P,): their mean.
        used: The indices of the members in it, in the order in which they joined: the best first.
        score: What the mean scores.
    """

    vector: Tensor
    used: tuple[int, ...]
    score: float


def greedy_soup(rows: Sequence[Tensor], score: Callable[[Tensor], float]) -> Soup:
    """Average members greedily; at most 2n - 1 vectors are scored.

    Args:
        rows: n vectors of shape (P,), at least one, aligned.
        score: Says how good a vector (P,) is: larger is better.

    Raises:
        MergeError: There are no members.

    Example:
        >>> import torch
        >>> near_two = lambda v: -abs(float(v) - 2.0)
        >>> greedy_soup([torch.tensor([1.0]), torch.tensor([9.0]), torch.tensor([2.5])], near_two).used
        (2, 0)
    """
    if not rows:
        raise MergeError("a greedy soup needs at least one member: none was given")
    scores = [score(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i], reverse=True)
    best = order[0]
    used, total, value = [best], rows[best].clone(), scores[best]
    for i in order[1:]:
        if math.isnan(scores[i]):
            break
        tried = total + rows[i]
        found = score(tried / (len(used) + 1))
        if found >= value:
            used, total, value = [*used, i], tried, found
    return Soup(total / len(used), tuple(used), value)
