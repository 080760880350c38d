"""Merge: one model file out of the members' files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedloom.data import load_evaluation
from fedloom.errors import ArchitectureError, ModelError, UsageError
from fedloom.merging import METHODS, Merged, check_method
from fedloom.models import io, sidecar
from fedloom.models.ensemble import ensemble
from fedloom.models.model import Model
from fedloom.models.sidecar import Sidecar
from fedloom.offline import starts
from fedloom.offline.aligning import Aligned, Wish, align_members, recalibrated
from fedloom.offline.averaging import SCALES, Average, average, doubts, without_broken
from fedloom.offline.collect import ModelFile, check_finite, model_files, without_rounds
from fedloom.offline.server_state import write_state
from fedloom.report.candidates import candidates_html
from fedloom.report.comparison import Finding
from fedloom.report.tables import findings_html, text_html
from fedloom.training.evaluate import evaluate
from fedloom.training.shard import Shard

ROUNDING = 0.03
"""How far from 1 fractions may sum: six of them with two decimals are off by as much."""


@dataclass(frozen=True)
class MergedModel:
    """What ``merge`` made.

    Attributes:
        model: The merged model.
        method: The method's name.
        members: The files that went in.
        weights: What each counted, summing to 1; empty where the method has no weights.
        findings: What the reader should know: shared start or not, weights, ...
        out: The file written, or None.
        sidecar: What stands in the JSON beside it.
        aligned: What aligning the members brought; None where they were averaged as they are.
    """

    model: Model
    method: str
    members: tuple[str, ...]
    weights: tuple[float, ...]
    findings: tuple[Finding, ...]
    out: Path | None
    sidecar: Sidecar
    aligned: Aligned | None = None

    def _repr_html_(self) -> str:
        head = f"{self.method} of {len(self.members)} models" + (f": {self.out}" if self.out else "")
        tried = candidates_html(self.aligned.fused) if self.aligned else ""
        return text_html(head) + tried + findings_html(self.findings)


def merge(
    models: Sequence[str | Path],
    method: str = "fedavg",
    *,
    out: str | Path | None = None,
    weights: Sequence[float] | str | None = None,
    data: str | None = None,
    previous: str | Path | None = None,
    model: str | None = None,
    options: Mapping[str, float] | None = None,
    align: str = "auto",
    effort: str = "quick",
    unlabelled: str | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    progress: bool = True,
) -> MergedModel:
    """Merge model files of one architecture into one.

    Members that do not share a start are aligned before: see :func:`fedloom.align.fuse.fuse`.

    Args:
        models: Files or patterns: ``.keras``, ``.h5``, ``.safetensors``, ``.pt``.
        method: A name of ``fedloom.merging.METHODS``.
        out: The file to write; its suffix chooses the format. None writes nothing.
        weights: For ``weighted``: one per file, fractions that sum to 1 or whole numbers of any sum; or ``"accuracy"``
            for each member's accuracy on ``data``.
        data: Validation data for ``weights="accuracy"``, and to judge aligned merges by: a name or a path, as
            ``compare`` takes it.
        previous: The global model that the members started from, for the server optimisers, ``fednova`` and
            ``centered-clipping``. A server optimiser's memory is kept beside it and beside ``out``.
        model: The code of the model (``file.py:function``), where the files hold only arrays and must be run.
        options: Of the method, such as ``{"trim": 0.1}`` or ``{"lr": 0.5}``.
        align: ``"auto"``: align the members when they do not share a start; ``"always"``; ``"none"``.
        effort: How much alignment tries: ``"quick"`` or ``"best"``.
        unlabelled: Inputs without labels, to align on and to recalibrate BatchNorm with: a name or a path. Without
            them alignment makes synthetic ones.
        seed: Of what alignment draws.
        data_dir: Where the data sets lie.
        progress: Show progress bars.

    Returns:
        The merged model, with what was found on the way.

    Raises:
        ArchitectureError: The files do not fit together; the first difference is named.
        MergeError: The method cannot be applied to them.
        UsageError: Unknown names, weights that do not fit, or an ``out`` that would overwrite an input.
    """
    check_method(method)
    wish = Wish(align, effort, unlabelled, data, None if data_dir is None else str(data_dir), seed, progress)
    found = without_rounds(model_files(models))
    wish.check(method, len(found))
    path = _checked_out(out, found)
    if METHODS[method].family == "ensemble":
        if weights is not None or options:
            raise UsageError("an ensemble treats its members alike and has no options: leave weights and options out")
        return _ensemble(found, model, path)
    chosen = _weights(weights, method, found, model, data, data_dir)
    run = partial(average, method=method, reference=model, previous=previous, options=options)
    align_ = partial(align_members, wish=wish, method=method, model=model, options=dict(options or {}) or None)
    done = _outcome(found, chosen, run, align_, wish, method)
    record = _sidecar(done, method, options)
    if path is not None:
        io.save(done.model, path)
        sidecar.write(path, record)
        write_state(path, method, done.merged)
    left_out = done.aligned.left_out if done.aligned else ()
    names = tuple(str(f.path) for f in done.found if f.name not in left_out)
    return MergedModel(done.model, method, names, done.weights, tuple(done.said), path, record, done.aligned)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """One model, and how it came about."""

    model: Model
    merged: Merged
    found: list[ModelFile]
    weights: tuple[float, ...]
    said: list[Finding]
    before: torch.Tensor | None = None
    aligned: Aligned | None = None


def _outcome(
    found: list[ModelFile],
    weights: Sequence[float] | None,
    run: Callable[[list[ModelFile], Sequence[float] | None], Average],
    align: Callable[..., Aligned],
    wish: Wish,
    method: str,
) -> _Outcome:
    """Average the members as they are; align them before where they do not share a start."""
    try:
        found, weights, made, said = without_broken(run, found, weights, wish)
    except ArchitectureError as error:
        aligned = _of_other_widths(error, found, wish, method, partial(align, found, weights=weights))
        return _once_aligned(aligned, found, [starts.OTHER_WIDTHS])
    verdict = made.watch.verdict(found)
    said += doubts(found, made.before)
    if wish.applies(method, verdict, len(found)):
        tried = _aligned(partial(align, found, weights=weights), wish)
        if isinstance(tried, Aligned):
            said = [f for f in said if f.title != SCALES]  # aligned members have one scale
            return _once_aligned(tried, found, [*starts.before_alignment(found, verdict), *said])
        said.append(tried)
    model = made.first.load(made.merged.vector)
    notes = [Finding("info", "Note", f"{note[:1].upper()}{note[1:]}.") for note in made.merged.notes]
    said = [*starts.findings(found, verdict), *recalibrated(model, wish), *said, *notes]
    return _Outcome(model, made.merged, found, made.merged.weights, said, made.before)


def _once_aligned(aligned: Aligned, found: list[ModelFile], said: Sequence[Finding]) -> _Outcome:
    merged = Merged(aligned.model.vector(), aligned.weights)
    findings = [*said[:1], *aligned.findings, *said[1:]]
    return _Outcome(aligned.model, merged, found, aligned.weights, findings, aligned=aligned)


def _aligned(align: Callable[[], Aligned], wish: Wish) -> Aligned | Finding:
    """Align and merge members that do not share a start; or say why that is not possible."""
    try:
        return align()
    except ModelError as error:
        if wish.align == "always":
            raise
        return Finding("problem", "The members could not be aligned", f"{error}.")


def _of_other_widths(
    error: ArchitectureError, found: Sequence[ModelFile], wish: Wish, method: str, align: Callable[[], Aligned]
) -> Aligned:
    """Align members that cannot be averaged as they are; raise ``error`` where widths are not the reason."""
    between = error.context.get("file") in {str(f.path) for f in found}
    if not between or not wish.may(method) or len(found) < 2:
        raise error
    try:
        return align()
    except ArchitectureError:
        raise error from None
    except ModelError as reason:
        raise ArchitectureError(f"{error}; nor can they be aligned: {reason}", **error.context) from reason


def _checked_out(out: str | Path | None, found: Sequence[ModelFile]) -> Path | None:
    """Check, before any work, that ``out`` can be written and destroys no input and no input's sidecar."""
    if out is None:
        return None
    path = Path(out)
    io.check_suffix(path)
    for file in found:
        if sidecar.path_of(file.path).resolve() == sidecar.path_of(path).resolve():
            what = (
                "is one of the models"
                if file.path.resolve() == path.resolve()
                else f"would share {file.path}'s sidecar"
            )
            raise UsageError(f"--out {path} {what}: choose another name", file=str(path))
    return path


def _ensemble(found: list[ModelFile], reference: str | None, path: Path | None) -> MergedModel:
    members = []
    for file in found:
        loaded = io.load(file.path, reference)
        check_finite(loaded.vector(), loaded, str(file.path))
        members.append(loaded)
    whole = ensemble(members)
    record = Sidecar(
        model=whole.describe(),
        class_names=_class_names(found),
        merge={"method": "ensemble", "members": [f.path.name for f in found]},
    )
    if path is not None:
        io.save(whole, path)
        sidecar.write(path, record)
    note = Finding("info", "An ensemble is no merge", f"It holds all {len(found)} members and runs each of them.")
    return MergedModel(whole, "ensemble", tuple(str(f.path) for f in found), (), (note,), path, record)


def _weights(
    weights: Sequence[float] | str | None,
    method: str,
    found: list[ModelFile],
    reference: str | None,
    data: str | None,
    data_dir: str | Path | None,
) -> Sequence[float] | None:
    if weights is None:
        return None
    if not isinstance(weights, str):
        return _checked_sum([float(w) for w in weights])
    if weights != "accuracy":
        raise UsageError(f"weights '{weights}': give numbers (0.6,0.4), or 'accuracy' together with --data")
    if method != "weighted":
        raise UsageError(f"--weights accuracy belongs to the method 'weighted', not to '{method}'")
    if data is None:
        raise UsageError("--weights accuracy needs --data with validation samples")
    dataset = load_evaluation(data, data_dir)
    accuracies = []
    for file in found:
        loaded = io.load(file.path, reference)
        loaded.require_runnable(f"weighing {file.path} by its accuracy")
        accuracies.append(evaluate(loaded, Shard.of(dataset, loaded)).accuracy)
    return accuracies


def _checked_sum(weights: list[float]) -> list[float]:
    """Refuse fractions that do not sum to 1; whole numbers are counts, and any sum is theirs."""
    total = sum(weights)
    counts = all(w.is_integer() for w in weights)
    if counts or not math.isfinite(total) or min(weights) < 0 or abs(total - 1) <= ROUNDING:
        return weights
    given, shares = (",".join(f"{v:.4g}" for v in values) for values in (weights, [w / total for w in weights]))
    raise UsageError(f"the weights {given} sum to {total:.4g}, not to 1; in these proportions: {shares}")


def _sidecar(done: _Outcome, method: str, options: Mapping[str, float] | None) -> Sidecar:
    left_out = done.aligned.left_out if done.aligned else ()
    used = [f for f in done.found if f.name not in left_out]
    known = [f.sidecar for f in used if f.sidecar]
    members = [f.path.name for f in used]
    what: dict[str, Any] = {"method": method, "options": dict(options or {}), "members": members}
    what |= {"weights": list(done.weights)} | ({"align": done.aligned.record()} if done.aligned else {})
    return Sidecar(
        model=done.model.describe(),
        samples=sum(s.samples for s in known) if len(known) == len(used) else 0,
        start=sidecar.digest(done.before) if done.before is not None else "",
        round=max((s.round for s in known), default=0),
        class_names=_class_names(done.found),
        merge=what,
    )


def _class_names(found: Sequence[ModelFile]) -> tuple[str, ...]:
    return next((f.sidecar.class_names for f in found if f.sidecar), ())
