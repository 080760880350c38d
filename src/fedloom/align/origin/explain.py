"""What is this merged model, really? Its best linear combination of the members, judged, or the rule that makes it.

A mean has equal weights that sum to 1; other sums and negative weights are slips, and a single weight is a member in
disguise. Robust rules are no combination: each number lies between the members', and recomputing the rule shows which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedloom.aggregate import Cohort, cohort, combine
from fedloom.aggregate.checks import check_vector
from fedloom.align.origin.combination import (
    HALF,
    ROUNDING,
    Flags,
    Kind,
    Matrix,
    fits,
    judge,
    products,
    rests,
    shared,
    sizes,
    solve,
    spreads,
    telling,
    twins,
)
from fedloom.errors import MergeError
from fedloom.layout import Layout

_EXACT = 1e-6
_MOST = 0.5
_INSIDE = 0.999
_ENOUGH = 4
_BLOCK = 1 << 16
_SAMPLE, _SLACK = 256, 4


@dataclass(frozen=True)
class Part:
    """Some arrays of the merged model that have an origin of their own.

    Attributes:
        arrays: Their names.
        kind: What they are.
        weights: Their best combination of the members'; empty when it says nothing.
        same: Whether it is what the whole model is.
    """

    arrays: tuple[str, ...]
    kind: Kind
    weights: tuple[float, ...] = ()
    same: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a merged model is.

    Attributes:
        kind: "mean", "weighted mean", "mean of some" (plain, the others left out), "one member", "scaled mean" (equal
            weights of another sum than 1), "error" (negative weights, or another sum), "median", "trimmed mean",
            "bulyan", "between the members" (each number, though by no rule that is known here) or "something else".
        weights: The best linear combination of the n members, in their order; members that are the same model share
            theirs evenly. They are what was done only where ``kind`` is one of ``COMBINATIONS``.
        residual: What that combination leaves over, as a share of the model's size (0-1).
        apart: The same as a share of the members' distance from their mean; NaN when they are all the same.
        odd: The arrays that the verdict does not hold for, where it holds for most of the model.
        statistics: What does not follow training: BatchNorm statistics and frozen arrays. None when there are none.
        trimmed: Of a trimmed mean, how many values were left out on each side.
        twins: Groups of members that are the same model up to rounding.
    """

    kind: Kind
    weights: tuple[float, ...]
    residual: float
    apart: float
    odd: tuple[Part, ...] = ()
    statistics: Part | None = None
    trimmed: int = 0
    twins: tuple[tuple[int, ...], ...] = ()

    @property
    def total(self) -> float:
        """The sum of the weights; 1 for every kind of average."""
        return sum(self.weights)


def explain(merged: Tensor, members: Sequence[Tensor], layout: Layout, names: Sequence[str] | None = None) -> Verdict:
    """Say what a merged model is made of.

    Judged are the trainable arrays (all, where none is trainable), then the others. A rest of rounding, up to that of
    bfloat16 files, is no difference.

    Args:
        merged: The model in question, float32 (P,).
        members: n >= 2 models of the same layout, float32 (P,).
        layout: Where the arrays lie.
        names: What to call the members in messages.

    Raises:
        MergeError: Fewer than two members, a vector that does not fit, or NaN; see :func:`fedloom.aggregate.cohort`.

    Example:
        >>> import torch
        >>> layout = Layout(("w",), ((16,),), 1)
        >>> a, b = torch.arange(16.0), torch.arange(16.0) ** 2
        >>> explain((a + b) / 2, [a, b], layout).kind, explain(1.8 * a - 0.8 * b, [a, b], layout).kind
        ('mean', 'error')
    """
    models = cohort(members, names=names, layout=layout)
    if models.n < 2:
        raise MergeError("one member explains nothing: at least two are needed")
    check_vector(merged, layout.size, "the merged model", layout)
    case = _Case.of(merged, models, layout)
    weights = case.best(case.trained)
    good = _all_fitting(case.trained, weights)
    if good.all() and case.left(weights) <= _EXACT:
        return case.combination(weights, good)
    if found := case.rule(weights):
        return found
    if good.all():
        return case.combination(weights, good)
    held, good = case.consensus()
    if good.any():
        return case.combination(held, good)
    kind: Kind = "between the members" if case.inside() >= _INSIDE else "something else"
    return case.verdict(kind, case.trained, weights, statistics=case.statistics(None, ()))


@dataclass(frozen=True)
class _Case:
    """The merged model, the members, their inner products, and which members are the same model."""

    merged: Tensor
    models: Cohort
    layout: Layout
    grams: Matrix
    head: int
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, merged: Tensor, models: Cohort, layout: Layout) -> _Case:
        grams = products(merged, models.rows, layout)
        head = layout.n_trainable or len(layout.names)
        groups = tuple(tuple(group) for group in twins(grams[:head].sum(0)))
        return cls(merged, models, layout, grams, head, groups)

    @property
    def trained(self) -> Matrix:
        return self.grams[: self.head]

    def best(self, grams: Matrix) -> Matrix:
        return shared(solve(grams.sum(0)), self.groups)

    def left(self, weights: Matrix) -> float:
        whole = self.trained.sum(0)[None]
        return float(rests(whole, weights)[0] / (sizes(whole)[0] or 1.0))

    def combination(self, weights: Matrix, good: Flags) -> Verdict:
        """Judge weights that hold for the arrays ``good``, and say what the others are."""
        kind = judge(weights, self.groups)
        odd = tuple(self.part(slice(i, i + 1)) for i in np.flatnonzero(~good))
        statistics = self.statistics(kind, _nearly_fitting(self.grams[self.head :], weights))
        return self.verdict(kind, self.trained[good], weights, odd, statistics)

    def part(self, where: slice) -> Part:
        """Say what some arrays are by themselves."""
        grams, n = self.grams[where], self.models.n
        names = self.layout.names[where]
        candidates = [np.full(n, 1 / n), *np.eye(n)]
        if sum(self.layout.sizes[where]) >= _ENOUGH * n:
            candidates.append(self.best(grams))
        for weights in candidates:
            if _fitting(grams, weights).all():
                return Part(names, judge(weights, self.groups), tuple(weights.tolist()))
        return Part(names, "something else")

    def statistics(self, kind: Kind | None, good: Flags | Sequence[bool]) -> Part | None:
        """Say what the arrays are that training does not touch, where ``good`` are made as the others, of ``kind``."""
        names = self.layout.names[self.head :]
        if not names:
            return None
        if kind is not None and np.all(good):
            return Part(names, kind, same=True)
        arrays = self.layout.unpack(self.merged)
        fresh = all(bool((arrays[n] == 0).all() or (arrays[n] == 1).all()) for n in names)
        return Part(names, "fresh") if fresh else self.part(slice(self.head, None))

    def rule(self, weights: Matrix) -> Verdict | None:
        """Find the robust rule that gives the trainable arrays, better than the combination with these weights."""
        linear = rests(self.trained.sum(0)[None], weights)[0]
        for kind, method, k in _rules(self.models.n):
            options = {"k": float(k)} if k else {}
            if kind != "bulyan" and not self.sampled(method, options):
                continue
            made = combine(method, self.models, options=options)
            left = np.array([float((self.merged[s] - made[s]).double().norm()) for _, s, _ in self.layout.slices()])
            good = fits(self.grams, left)
            if good[: self.head].all() and np.linalg.norm(left[: self.head]) < linear / 2:
                found = self.verdict(kind, self.trained, weights, statistics=self.statistics(kind, good[self.head :]))
                return replace(found, trimmed=k)
        return None

    def sampled(self, method: str, options: dict[str, float]) -> bool:
        """Tell whether a rule that treats every number apart may be the one, from the first few of each array."""
        firsts = [slice(s.start, min(s.stop, s.start + _SAMPLE)) for _, s, _ in self.layout.slices()][: self.head]
        rows = [torch.cat([row[where] for where in firsts]) for row in self.models.rows]
        merged = torch.cat([self.merged[where] for where in firsts])
        size = max(float(row.norm()) for row in (merged, *rows))
        return float((merged - combine(method, rows, options=options)).norm()) <= _SLACK * ROUNDING * size

    def consensus(self) -> tuple[Matrix, Flags]:
        """Find weights (n,) that hold for most of the model, where an array or a few are off, and the arrays they fit."""
        grams, n = self.trained, self.models.n
        count = np.array(self.layout.sizes[: self.head], dtype=np.float64) * telling(grams)
        best, most = np.full(n, 1 / n), np.zeros(len(grams), dtype=bool)
        for i in np.flatnonzero(count >= _ENOUGH * n):
            candidate = self.best(grams[i : i + 1])
            good = _fitting(grams, candidate)
            if good @ count > most @ count:
                best, most = candidate, good
        if most @ count <= _MOST * count.sum():
            return best, np.zeros(len(grams), dtype=bool)
        refined = self.best(grams[most])
        good = _fitting(grams, refined)
        return (refined, good) if good @ count >= most @ count else (best, most)

    def inside(self) -> float:
        """Return the share of trainable numbers that lie between the smallest and the largest of the members'."""
        stop = self.layout.trainable or self.layout.size
        inside = 0
        for start in range(0, stop, _BLOCK):
            where = slice(start, min(start + _BLOCK, stop))
            rows = np.stack([row[where].cpu().numpy() for row in self.models.rows])
            slack = ROUNDING * np.abs(rows).max(0)
            y = self.merged[where].cpu().numpy()
            inside += int(((y >= rows.min(0) - slack) & (y <= rows.max(0) + slack)).sum())
        return inside / stop

    def verdict(
        self, kind: Kind, grams: Matrix, weights: Matrix, odd: tuple[Part, ...] = (), statistics: Part | None = None
    ) -> Verdict:
        whole = grams.sum(0)[None]
        left, size, spread = (float(f[0]) for f in (rests(whole, weights), sizes(whole), spreads(whole)))
        return Verdict(
            kind,
            tuple(weights.tolist()),
            left / (size or 1.0),
            left / spread if telling(whole)[0] else math.nan,
            odd,
            statistics,
            twins=tuple(group for group in self.groups if len(group) > 1),
        )


def _rules(n: int) -> Iterator[tuple[Kind, str, int]]:
    """Yield the rules that are no combinations, each with the numbers it leaves out on each side; 0 for its own."""
    if n > 2:
        yield "median", "median", 0
    for k in range(1, (n - 1) // 2):
        yield "trimmed mean", "trimmed-mean", k
    if n >= 7:  # with fewer it bears no bad model, and is a mean
        yield "bulyan", "bulyan", 0


def _fitting(grams: Matrix, weights: Matrix) -> Flags:
    return fits(grams, rests(grams, weights))


def _all_fitting(grams: Matrix, weights: Matrix) -> Flags:
    """The same, but where the weights fit the whole, nearly equal members may be off by rounding in an array."""
    whole = _fitting(grams.sum(0)[None], weights).all()
    return _nearly_fitting(grams, weights) if whole else _fitting(grams, weights)


def _nearly_fitting(grams: Matrix, weights: Matrix) -> Flags:
    return np.asarray(_fitting(grams, weights) | (rests(grams, weights) <= HALF * sizes(grams)))
