"""Aligning: merge members that were trained apart, from files - examined, healed, matched and fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.align.attempts import MATCHED
from fedloom.align.candidates import Fused
from fedloom.align.checkup.health import examine
from fedloom.align.checkup.input_scale import fold_scale
from fedloom.align.fuse import EFFORTS, fuse
from fedloom.align.fusion import recalibrate
from fedloom.align.probes import synthetic
from fedloom.align.probes.unlabelled import read_unlabelled
from fedloom.align.symmetry.graph import derive
from fedloom.align.symmetry.trace import trace
from fedloom.align.symmetry.widths import same_but_widths
from fedloom.align.transport import transport
from fedloom.data import load_evaluation
from fedloom.errors import ArchitectureError, MergeError, ModelError, UsageError, unknown
from fedloom.merging import METHODS, merge_vectors
from fedloom.models import io
from fedloom.models.model import Model
from fedloom.offline import starts, verdicts
from fedloom.offline.collect import ModelFile
from fedloom.offline.progress import bar
from fedloom.report.comparison import Finding
from fedloom.training.shard import Shard

CHOICES = ("auto", "always", "none")

FAMILIES = frozenset({"mean", "robust"})
"""The families of methods that aligned members can be merged by: the others need the model that all began with."""

LIMIT = 5000
"""More unlabelled inputs than this are drawn from, not all used."""

RECALIBRATED = 1000
"""More inputs than this do not make BatchNorm statistics better."""

EXAMINED = 200
"""So many synthetic inputs are enough to find broken members."""


@dataclass(frozen=True)
class Wish:
    """How members that were trained apart shall be merged.

    Attributes:
        align: ``"auto"``: when they do not share a start; ``"always"``; ``"none"``.
        effort: ``"quick"`` or ``"best"``, see :func:`fedloom.align.fuse.fuse`.
        unlabelled: Inputs without labels that the members' models are for: a name or a path.
        data: Validation data with labels: instead of ``unlabelled``, and to judge the candidates by.
        data_dir: Where the data sets lie.
        seed: Of everything that is drawn.
        progress: Show progress bars.
    """

    align: str = "auto"
    effort: str = "quick"
    unlabelled: str | None = None
    data: str | None = None
    data_dir: str | None = None
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        """Check the words.

        Raises:
            UsageError: An unknown one.
        """
        for name, value, known in (("align", self.align, CHOICES), ("effort", self.effort, EFFORTS)):
            if value not in known:
                raise unknown(name, value, known)

    def applies(self, method: str, verdict: starts.Verdict, n: int) -> bool:
        """Whether members with this verdict are to be aligned."""
        return n > 1 and self.may(method) and (self.align == "always" or verdict.shared is False)

    def check(self, method: str, n: int) -> None:
        """Check that what always shall be aligned can be.

        Raises:
            UsageError: The method cannot merge aligned members.
            MergeError: Fewer than two members.
        """
        if self.align == "always" and not self.may(method):
            raise UsageError(
                f"'{method}' starts from the model that all members began with: it cannot merge aligned ones"
            )
        if self.align == "always" and n < 2:
            raise MergeError(f"alignment needs at least two models, {n} is given")

    def may(self, method: str) -> bool:
        """Whether members may be aligned before this method merges them."""
        return self.align != "none" and METHODS[method].family in FAMILIES


@dataclass(frozen=True, eq=False)
class Aligned:
    """What came out.

    Attributes:
        model: The merged model.
        weights: What each member that was used counted; empty where the method has no weights.
        fused: Everything that was tried.
        findings: In words.
        left_out: The names of the members that were not used.
    """

    model: Model
    weights: tuple[float, ...]
    fused: Fused
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return what the sidecar says of it."""
        return {
            "chosen": self.fused.chosen,
            "probe": self.fused.probe,
            "judge": self.fused.judge,
            "candidates": {c.name: round(c.score, 4) for c in self.fused.candidates},
            "left_out": list(self.left_out),
        }


def align_members(
    found: Sequence[ModelFile],
    wish: Wish,
    method: str = "fedavg",
    *,
    model: str | None = None,
    weights: Sequence[float] | None = None,
    options: dict[str, float] | None = None,
) -> Aligned:
    """Merge the models of files that do not share a start.

    Args:
        found: The members' files.
        wish: How.
        method: A mean or a robust rule: how aligned members are averaged.
        model: The models' code, where the files hold only arrays.
        weights: Per file; those that the method chooses when left out.
        options: Of the method.

    Raises:
        ArchitectureError: Files of another architecture.
        ModelError: A model that cannot be looked into; the layer is named.
        DataError: Unlabelled inputs of another shape or scale.
        MergeError: Fewer than two members are left.
    """
    members = _load(found, model)
    derive(members[0])  # refuse what cannot be aligned before any work
    members, said = _one_scale(members, [f.name for f in found])
    x, labels = _inputs(wish, members[0])
    members, about = _one_width(members, x, wish.seed)
    said += about
    probe = synthetic.inputs(members, EXAMINED, wish.seed) if x is None else x
    known = [f.sidecar.class_names if f.sidecar else () for f in found]
    names = [f.name for f in found]
    health = examine(members, names, probe, known if all(known) else None)
    said += [Finding(r.level, r.title, r.text) for r in health.findings]
    kept = [i for i in range(len(found)) if i not in health.left_out]
    if len(kept) < 2:
        raise MergeError(f"{len(kept)} of {len(found)} models can be used: alignment needs at least two")
    chosen = [weights[i] for i in kept] if weights is not None else None
    rule = _rule(method, [found[i] for i in kept], members[0], chosen, options)
    with bar("aligning", 12 if wish.effort == "best" else 7, wish.progress) as advance:
        fused = fuse(
            members[0],
            [health.vectors[i] for i in kept],
            names=[names[i] for i in kept],
            x=x,
            labels=labels,
            effort=wish.effort,
            rule=rule.vector,
            seed=wish.seed,
            on_stage=lambda text: advance(1, text),
        )
    model_ = replace(members[0]).load(fused.vector)
    left_out = tuple(names[i] for i in health.left_out)
    return Aligned(model_, rule.weights, fused, (*said, *verdicts.about(fused)), left_out)


def _load(found: Sequence[ModelFile], reference: str | None) -> list[Model]:
    """Load the files' models, which may differ in the widths of their hidden layers."""
    members: list[Model] = []
    for file in found:
        loaded = io.load(file.path, reference)
        loaded.require_runnable(f"aligning {file.path}")
        members.append(loaded)
        apart = io.difference(members[0], loaded) and same_but_widths(members[0], loaded)
        if apart:
            raise ArchitectureError(f"{file.path} does not fit {found[0].path}: {apart}", file=str(file.path))
    return members


def _one_width(members: list[Model], x: Tensor | None, seed: int) -> tuple[list[Model], list[Finding]]:
    """Express members of other widths in the units of the widest."""
    widest = max(members, key=lambda m: m.layout.size)
    if all(m.layout.shapes == widest.layout.shapes for m in members):
        return members, []
    inputs = synthetic.inputs([widest], MATCHED, seed) if x is None else x[:MATCHED]
    rows = [m.vector() if m is widest else transport(widest, m, inputs) for m in members]
    same = [replace(widest, module=deepcopy(widest.module)).load(row) for row in rows]
    text = f"Optimal transport expressed them in the units of the widest, of {widest.layout.size:,} numbers."
    return same, [Finding("info", "The members have different widths", text)]


def _one_scale(members: list[Model], names: Sequence[str]) -> tuple[list[Model], list[Finding]]:
    """Fold the scale on record into the members that are said to take another one than most."""
    highs = [m.input_high for m in members if m.input_high]
    if not highs:
        return members, []
    usual = max(set(highs), key=highs.count)
    settled, said = [], []
    for member, name in zip(members, names, strict=True):
        own = member.input_high or usual
        if own != usual:
            fold_scale(member, own / usual)
            text = f"The others take 0 to {usual:g}. Its first layer multiplies by {own / usual:g} itself now."
            said.append(Finding("info", f"{name} takes inputs from 0 to {own:g}", text))
        settled.append(replace(member, input_high=usual))
    return settled, said


def _inputs(wish: Wish, model: Model) -> tuple[Tensor | None, Tensor | None]:
    """Read the inputs to align on, and their labels where they are known."""
    if wish.data is not None:
        shard = Shard.of(load_evaluation(wish.data, wish.data_dir), model, device=torch.device("cpu"))
        return shard.inputs(slice(None)), shard.y
    if wish.unlabelled is None:
        return None, None
    return read_unlabelled(wish.unlabelled, model, LIMIT, wish.seed, wish.data_dir), None


@dataclass(frozen=True)
class _Rule:
    vector: Callable[[Tensor], Tensor]
    weights: tuple[float, ...]


def _rule(
    method: str,
    found: Sequence[ModelFile],
    model: Model,
    weights: Sequence[float] | None,
    options: dict[str, float] | None,
) -> _Rule:
    """Bind a method to the members' entries: aligned rows (n, P) in, one vector (P,) out."""
    entries, layout = [f.entry for f in found], model.layout

    def merged(rows: Tensor) -> Any:
        return merge_vectors(method, entries, list(rows), layout=layout, weights=weights, options=options)

    counted = merged(torch.zeros(len(found), layout.size)).weights if METHODS[method].family == "mean" else ()
    return _Rule(lambda rows: merged(rows).vector, counted)


def recalibrated(model: Model, wish: Wish) -> list[Finding]:
    """Set the BatchNorm statistics of an averaged model anew where inputs are at hand, in place; otherwise say so."""
    try:
        traced = trace(model)
    except ModelError:
        return []
    if not any(step.op == "BatchNormalization" for step in traced.steps):
        return []
    if wish.unlabelled is None and wish.data is None:
        text = "They are those of no model. Pass --unlabelled with a few hundred inputs, and they are set anew."
        return [Finding("info", "The BatchNorm statistics were averaged", text)]
    x, _ = _inputs(wish, model)
    assert x is not None
    recalibrate(model, traced, x[:RECALIBRATED])
    text = f"Averaged ones are those of no model; these are what the merged model gives for {len(x[:RECALIBRATED]):,} inputs."
    return [Finding("good", "The BatchNorm statistics were set anew", text)]
