"""Fuse: one model out of members that were trained apart. Tries what applies, keeps what is best, reports all of it.

The members are matched by how their units respond to the probe inputs, then by their weights, all together; what is
averaged after that is repaired, or fitted layer by layer. The candidates are judged on inputs that no fit has seen: by
their agreement with the ensemble of the members, or by accuracy where there are labels. Two baselines stand beside them,
because they are strong: the ensemble itself, and one member whose last layer is fitted to the ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fedloom.align.attempts import Attempts, Rule, mean
from fedloom.align.candidates import Fused, merit
from fedloom.align.symmetry.graph import derive
from fedloom.errors import DataError, MergeError, unknown
from fedloom.models.model import Model

EFFORTS = ("quick", "best")

PASSES = {"quick": 6, "best": 15}
"""How often synthetic inputs are moved towards the members' BatchNorm statistics."""

LEANINGS = {"quick": (0.5,), "best": (0.25, 0.5, 0.75)}
"""How much the fit may lean on one member instead of the mean of all: narrow networks lose less that way."""


def fuse(
    model: Model,
    rows: Sequence[Tensor],
    *,
    names: Sequence[str] = (),
    x: Tensor | None = None,
    labels: Tensor | None = None,
    effort: str = "quick",
    rule: Rule | None = None,
    seed: int = 0,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Fused:
    """Align members that were trained apart, and make one model out of them.

    Args:
        model: Lends its module and says how inputs are scaled.
        rows: At least two vectors of shape (P,), from any random starts.
        names: What to call them.
        x: Inputs without labels, float32 (m, *input_shape), in the model's scale; synthetic ones when left out.
        labels: int64 (m,): their classes, if they are known: the candidates are judged by them.
        effort: ``"quick"``: what takes seconds. ``"best"``: also several starts of the matching, the other published
            methods and, with inputs of the team's own, distillation.
        rule: How aligned members (n, P) become one (P,); the mean when left out.
        seed: Of everything that is drawn.
        on_stage: Called with a few words before each stage, for progress.

    Raises:
        MergeError: Fewer than two members.
        DataError: Fewer than two inputs.
        ModelError: The model's symmetry is not known; the layer is named.
        UsageError: An unknown effort.
    """
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS)
    if len(rows) < 2:
        raise MergeError(f"alignment needs at least two models, {len(rows)} is given")
    if x is not None and len(x) < 2:
        raise DataError(f"alignment needs at least two inputs to fit and to judge by, {len(x)} is given")
    model.require_runnable("alignment")
    names = names or [f"member {i + 1}" for i in range(len(rows))]
    work = Attempts(model, list(rows), list(names), derive(model), seed, on_stage, rule or mean)
    work.prepare(x, labels, PASSES[effort])
    work.match(effort)
    work.try_merges(LEANINGS[effort])
    if effort == "best":
        work.try_others()
        if x is not None:
            work.try_distillation()
    work.try_baselines()
    chosen = max(work.eligible(), key=merit)
    assert chosen.vector is not None
    return Fused(
        chosen.vector,
        chosen.name,
        tuple(work.candidates),
        work.aligned,
        work.symmetry,
        work.objective,
        work.seconds,
        work.judge,
        work.probe,
    )
