"""Alignment inside a comparison: what members without a shared start give when they are aligned before they are merged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from torch import Tensor

from fedloom import rng
from fedloom.align.barrier import line
from fedloom.align.candidates import Candidate, Fused
from fedloom.errors import MergeError, ModelError
from fedloom.models.model import Model
from fedloom.offline import verdicts
from fedloom.offline.aligning import Aligned, Wish, align_members
from fedloom.offline.bench import Bench, Team
from fedloom.offline.collect import ModelFile
from fedloom.report import words
from fedloom.report.comparison import Finding, Row
from fedloom.report.interpolation import Interpolation
from fedloom.training.evaluate import evaluate
from fedloom.training.shard import Shard

SAMPLES, GLANCE, WATCHED = 1000, 200, 6
"""Test samples along a line; so many to choose the two members by, among the first members."""

TAKEN = "what 'fedloom merge' takes"
"""The note beside the chosen merge."""

_KINDS = {"merge": "aligned", "baseline": "baseline"}


@dataclass(frozen=True)
class Alignment:
    """What became of aligning the members.

    Attributes:
        chosen: The row of the merge that was chosen without looking at the test set; None when none could be made.
        refused: Why none could be made.
        seconds: All that it took, from the files on.
        probe: The inputs that it was made with, in words.
        judge: By what it was chosen, in words.
        own: Whether the inputs were the team's own.
        lines: What lies between two of the members, before and after.
        command: The command that makes the file.
        findings: What was found out about single members on the way.
    """

    chosen: Row | None
    refused: str = ""
    seconds: float = 0.0
    probe: str = ""
    judge: str = ""
    own: bool = False
    lines: list[Interpolation] = field(default_factory=list)
    command: str = ""
    findings: tuple[Finding, ...] = ()


def add_aligned(bench: Bench, team: Team, wish: Wish) -> Alignment:
    """Align the members as ``merge`` does, and add a row for every merge and baseline that comes out of it.

    Args:
        bench: Evaluates them; its test set plays no part in making or choosing a merge.
        team: The members.
        wish: How they are aligned.

    Raises:
        DataError: Unlabelled inputs that are missing or do not fit the model.
    """
    began = time.perf_counter()
    try:
        made = align_members(team.files, wish, model=bench.reference)
    except (MergeError, ModelError) as error:
        return Alignment(None, str(error))
    seconds = time.perf_counter() - began
    fused, own = made.fused, wish.unlabelled is not None
    usual = verdicts.about(fused)
    return Alignment(
        _rows(bench, replace(made.model, input_high=team.high), fused, seconds),
        "",
        seconds,
        fused.probe,
        fused.judge,
        own,
        [] if team.difference else _lines(bench, team, made),
        merge_command(team.files, bench.reference, wish),
        tuple(f for f in made.findings if f not in usual),
    )


def merge_command(members: Sequence[ModelFile], reference: str | None, wish: Wish) -> str:
    """Return the command that aligns the members, merges them and writes the file."""
    given: list[str] = ["--align", "auto" if wish.align == "auto" else "always"]
    given += ["--unlabelled", wish.unlabelled] if wish.unlabelled is not None else []
    given += ["--model", reference] if reference is not None else []
    out = f"global{members[0].path.suffix}"
    return words.command("fedloom", "merge", *(f.path for f in members), *given, "--out", out)


def _rows(bench: Bench, model: Model, fused: Fused, seconds: float) -> Row:
    """Add a row for every candidate that no other row shows; returns that of the chosen one.

    A merge's time is what making it alone would take: all that the candidates have in common, and its own.
    """
    common = seconds - sum(made.seconds for made in fused.candidates)
    rows = {}
    for made in fused.candidates:
        if made.kind in _KINDS and made.vector is not None:
            took = made.seconds + (common if made.kind == "merge" else 0.0)
            note = _note(made, fused)
            bench.score(model.load(made.vector), made.name, _KINDS[made.kind], note, took)
            rows[made.name] = bench.rows[-1]
    return rows[fused.chosen]


def _note(made: Candidate, fused: Fused) -> str:
    said = [TAKEN] if made.name == fused.chosen else []
    said += [f"{words.percent(made.score)} agreement with the ensemble", made.note]
    return "; ".join(part for part in said if part)


def _lines(bench: Bench, team: Team, made: Aligned) -> list[Interpolation]:
    """Measure what lies between two members: as they are, aligned, and with BatchNorm statistics of its own."""
    kept = [i for i, file in enumerate(team.files) if file.name not in made.left_out]
    before = [team.vectors[i] for i in kept]
    drawn = rng.stream(0, "line").permutation(len(bench.dataset))[:SAMPLES]
    shard = Shard.of(bench.dataset.take(np.sort(drawn)), team.model)
    x, y = shard.inputs(slice(None)), shard.y
    i, j = _farthest(team.model, before[:WATCHED], Shard("glance", x[:GLANCE], y[:GLANCE], 1.0))
    first, second = team.files[kept[i]].name, team.files[kept[j]].name

    def measured(name: str, rows: Sequence[Tensor] | Tensor, recalibrate: bool = False) -> Interpolation:
        found = line(team.model, rows[i], rows[j], x, y, recalibrate=recalibrate)
        alphas, losses, accuracies = (tuple(map(float, v)) for v in (found.alphas, found.losses, found.accuracies))
        rise, fall = found.barrier, found.accuracy_barrier
        return Interpolation(name, first, second, len(y), alphas, losses, accuracies, rise, fall)

    lines = [measured("as they are", before), measured("aligned", made.fused.aligned)]
    if any(step.op == "BatchNormalization" for step in made.fused.symmetry.trace.steps):
        lines.append(measured("aligned, BatchNorm recalibrated", made.fused.aligned, recalibrate=True))
    return lines


def _farthest(model: Model, vectors: Sequence[Tensor], shard: Shard) -> tuple[int, int]:
    """Return the two members whose average loses most accuracy; the first two of equals."""

    def accuracy(vector: Tensor) -> float:
        return evaluate(model.load(vector), shard).accuracy

    ends = [accuracy(vector) for vector in vectors]
    falls = {
        (i, j): (ends[i] + ends[j]) / 2 - accuracy(vectors[i].lerp(vectors[j], 0.5))
        for i, j in combinations(range(len(vectors)), 2)
    }
    return max(falls, key=lambda pair: falls[pair])
