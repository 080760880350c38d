"""Optimal-transport fusion: a model of other widths in the units of a reference, softly or one to one.

S. P. Singh and M. Jaggi, "Model Fusion via Optimal Transport", NeurIPS 2020, Algorithm 1. Layer by layer from the
input, a plan T (units of the reference, units of the member) of least total cost says how much of each of the member's
units goes to each of the reference's. With marginals a = T 1 and b = T' 1, a layer's weights become

    W' = diag(1/a) T_out W diag(1/b) T_in'.

The cost comes from what the units give for the same inputs, or from their incoming weights, which the plans before
have carried over to the reference's units already. ``softness`` is the weight of the entropy (Cuturi, "Sinkhorn
distances", 2013); at 0 every unit goes to one unit as a whole.

Deviations: the paper divides by the reference's marginals on both sides, which for other widths changes the size of
every sum; here what a unit hands on is shared out between its copies, so that a sum over units stays what it was.
Costs are 1 - correlation (activations) or 1 - cosine (weights) instead of Euclidean distances, so that a unit's scale
does not count. Without softness units go as a whole, and with fewer of them than the reference has some places stay
empty (their weights are 0): the function stays the same. With more of them each place gets its best unit, and the rest
join where they fit and are averaged. With softness both marginals are uniform, which changes the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.align import stages as st
from fedloom.align.symmetry.graph import Symmetry, Use, derive
from fedloom.align.symmetry.widths import same_but_widths
from fedloom.errors import ArchitectureError, UsageError
from fedloom.models.model import Model

__all__ = ["Plan", "plan", "same_but_widths", "transport"]

_ROUNDS = 2000
_CLOSE = 1e-4  # the largest relative error of a marginal


@dataclass(frozen=True, eq=False)
class Plan:
    """How a member's units become the reference's.

    Attributes:
        made: float32 (a, b): what each of the reference's a units is made of; rows add up to 1, or to 0 where it stays
            empty.
        shared: float32 (a, b): where each of the member's b units is read again; columns add up to 1.
    """

    made: Tensor
    shared: Tensor

    @classmethod
    def of(cls, mass: Tensor) -> Plan:
        """Scale a transport plan (a, b); a row may be empty, a column may not."""
        rows = mass.sum(1, keepdim=True)
        return cls(mass / torch.where(rows > 0, rows, 1.0), mass / mass.sum(0))


def plan(cost: Tensor, softness: float = 0.0) -> Plan:
    """Find the plan of least cost.

    Args:
        cost: float (a, b): what it costs to take the member's unit b for the reference's unit a.
        softness: The weight of the entropy in units of the mean cost; at 0 units go as a whole.

    Raises:
        UsageError: ``softness`` is negative.

    Example:
        >>> plan(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])).made.tolist()
        [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    """
    if softness < 0:
        raise UsageError(f"the softness of a transport is {softness}: it must not be negative")
    if softness > 0:
        return Plan.of(_sinkhorn(cost.double(), softness).float())
    return Plan.of(_whole(cost))


def _whole(cost: Tensor) -> Tensor:
    """Pair rows and columns off at the least cost; columns left over join their best row, rows left over stay empty."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = (torch.from_numpy(found) for found in linear_sum_assignment(cost.cpu().numpy()))
    chosen = cost.argmin(0).cpu()
    chosen[columns] = rows
    return torch.eye(len(cost))[:, chosen]


def _sinkhorn(cost: Tensor, softness: float) -> Tensor:
    """Return the plan with uniform marginals, by Sinkhorn's iteration on logarithms."""
    a, b = cost.shape
    kernel = -cost / (softness * cost.abs().mean()).clamp_min(1e-12)
    left, right = cost.new_zeros(a), cost.new_zeros(b)
    for _ in range(_ROUNDS):
        left = -(kernel + right).logsumexp(1)
        right = -(kernel + left[:, None]).logsumexp(0) + torch.tensor(a / b).log()
        rows = (kernel + left[:, None] + right).exp().sum(1)
        if float((rows - 1.0).abs().max()) < _CLOSE:
            break
    mass = (kernel + left[:, None] + right).exp()
    return mass.clamp_min(torch.finfo(torch.float32).tiny)


def transport(reference: Model, member: Model, x: Tensor | None = None, softness: float = 0.0, seed: int = 0) -> Tensor:
    """Express a member in the units of a reference, which may be wider or narrower.

    With ``softness`` 0 and a reference that is nowhere narrower, the result computes what the member computes, up to
    rounding and to LayerNormalization, which looks at all units at once.

    Args:
        reference: The model whose layout is wanted, best the widest one; it stays as it is.
        member: The model to express; it stays as it is.
        x: Inputs float32 (n, *input_shape) without labels, for costs from activations; from weights when left out.
        softness: See :func:`plan`.
        seed: Of the positions of images that are looked at.

    Returns:
        float32 (P of the reference,).

    Raises:
        ArchitectureError: The models differ in more than their widths; the message names the layer.
        ModelError: A model whose layers are not known.
    """
    problem = same_but_widths(reference, member)
    if problem is not None:
        raise ArchitectureError(f"the models differ in more than their widths: {problem}")
    pair = _Pair.of(reference, member)
    costs = _activation_costs(pair, reference, member, x, seed) if x is not None else {}
    for g in range(len(pair.ours.groups)):
        pair.plans[g] = plan(costs[g] if g in costs else pair.weight_cost(g), softness)
    names = pair.ours.layout.names
    return pair.ours.layout.pack({name: pair.carried(name, (0, 1, 2, 3, 4)) for name in names})


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two models that differ in widths, and the plans between their groups as far as they are known."""

    ours: Symmetry
    theirs: Symmetry
    mine: dict[str, Tensor]
    others: dict[str, Tensor]
    kernels: frozenset[str]
    plans: dict[int, Plan]

    @classmethod
    def of(cls, reference: Model, member: Model) -> _Pair:
        ours, theirs = derive(reference), derive(member)
        arrays = (ours.layout.unpack(reference.vector()), theirs.layout.unpack(member.vector()))
        steps = [s for s in ours.trace.steps if s.op in st.WEIGHTED]
        kernels = {ours.trace.array(s, "pointwise" if s.op.startswith("Separable") else "weight") for s in steps}
        return cls(ours, theirs, *arrays, frozenset(kernels), {})

    def uses(self, name: str) -> list[tuple[int, Use, Use]]:
        """Return (group, use in the reference, use in the member) of everything that stands on an array."""
        groups = zip(self.ours.groups, self.theirs.groups, strict=True)
        return [
            (g, use, other)
            for g, (ours, theirs) in enumerate(groups)
            for use, other in zip(ours.uses, theirs.uses, strict=True)
            if use.array == name
        ]

    def reads(self, use: Use) -> bool:
        """Whether units are inputs there, rather than made or rescaled."""
        return use.array in self.kernels and use.axis == 1

    def carried(self, name: str, axes: Sequence[int]) -> Tensor:
        """Return a member's array with some axes in the reference's units."""
        array, uses = self.others[name], [u for u in self.uses(name) if u[1].axis in axes]
        if not any(use.rows for _, use, _ in uses):
            return self._moved(array, uses, self.mine[name].shape)
        shape = list(array.shape)  # a convolution in groups: block by block of its rows
        for _, use, _ in uses:
            shape[use.axis] = self.mine[name].shape[use.axis]
        made = array.new_zeros(shape)
        pairs = [(use.rows, other.rows) for _, use, other in uses if use.rows is not None and other.rows is not None]
        for rows, other in dict.fromkeys(pairs):
            block = [u for u in uses if u[1].rows == rows]
            first, last = rows if 0 in axes else other
            size = torch.Size((last - first, *self.mine[name].shape[1:]))
            made[first:last] = self._moved(array[slice(*other)], block, size)
        return made

    def _moved(self, array: Tensor, uses: Sequence[tuple[int, Use, Use]], shape: Sequence[int]) -> Tensor:
        for axis in dict.fromkeys(use.axis for _, use, _ in uses):
            source = array.movedim(axis, 0)
            made = source.new_zeros(shape[axis], *source.shape[1:])
            free = (torch.ones(shape[axis], dtype=torch.bool), torch.ones(len(source), dtype=torch.bool))
            for g, use, other in uses:
                if use.axis != axis:
                    continue
                matrix = self.plans[g].shared if self.reads(use) else self.plans[g].made
                made[use.positions] = torch.tensordot(matrix.to(source), source[other.positions], 1)
                free[0][use.positions], free[1][other.positions] = False, False
            made[free[0]] = source[free[1]]
            array = made.movedim(0, axis)
        return array

    def weight_cost(self, g: int) -> Tensor:
        """Compare a group's units by the kernels that make them, as far as their inputs are carried over."""
        group, other = self.ours.groups[g], self.theirs.groups[g]
        cost, count = torch.zeros(group.size, other.size), 0
        for use, theirs in zip(group.uses, other.uses, strict=True):
            known = all(h in self.plans for h, u, _ in self.uses(use.array) if self.reads(u))
            if use.array not in self.kernels or self.reads(use) or not known:
                continue
            here, there = use.of(self.mine[use.array]), theirs.of(self.carried(use.array, (1,)))
            cost += 1.0 - (_unit(here) @ _unit(there).T).cpu()
            count += 1
        return cost / max(count, 1)


def _activation_costs(pair: _Pair, reference: Model, member: Model, x: Tensor, seed: int) -> dict[int, Tensor]:
    """Compare all groups' units by what stands in their stages for the same inputs; groups without stages are left out."""
    found = []
    for model, symmetry in ((reference, pair.ours), (member, pair.theirs)):
        sampled = st.sample(symmetry.trace, x, seed)
        found.append(st.results(model, symmetry.trace, sampled))
    here, there = found
    costs = {}
    for g, (ours, theirs) in enumerate(zip(pair.ours.groups, pair.theirs.groups, strict=True)):
        likeness = [
            st.standard(here[value][:, a[:, k]]).T @ st.standard(there[value][:, b[:, k]]) / len(here[value])
            for (value, a), (_, b) in zip(ours.taps, theirs.taps, strict=True)
            if value in here
            for k in range(a.shape[1])
        ]
        if likeness:
            costs[g] = 1.0 - torch.stack(likeness).mean(0).cpu()
    return costs


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
