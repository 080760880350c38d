"""Merge: one model file out of the members' files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedloom import files
from fedloom.data import load_evaluation
from fedloom.errors import DataError, MergeError, UsageError
from fedloom.merging import METHODS, Merged, StartMissing, check_method, merge_vectors
from fedloom.models import io, sidecar
from fedloom.models.ensemble import ensemble
from fedloom.models.model import Model
from fedloom.models.sidecar import Sidecar
from fedloom.offline import starts
from fedloom.offline.collect import ModelFile, check_finite, check_same, model_files, read_vectors, without_rounds
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
    """

    model: Model
    method: str
    members: tuple[str, ...]
    weights: tuple[float, ...]
    findings: tuple[Finding, ...]
    out: Path | None
    sidecar: Sidecar

    def _repr_html_(self) -> str:
        head = f"{self.method} of {len(self.members)} models" + (f": {self.out}" if self.out else "")
        return text_html(head) + findings_html(self.findings)


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
    data_dir: str | Path | None = None,
) -> MergedModel:
    """Merge model files of one architecture into one.

    Args:
        models: Files or patterns: ``.keras``, ``.h5``, ``.safetensors``, ``.pt``.
        method: A name of ``fedloom.merging.METHODS``.
        out: The file to write; its suffix chooses the format. None writes nothing.
        weights: For ``weighted``: one per file, fractions that sum to 1 or whole numbers of any sum; or ``"accuracy"``
            for each member's accuracy on ``data``.
        data: Validation data for ``weights="accuracy"``: a name or a path, as ``compare`` takes it.
        previous: The global model that the members started from, for the server optimisers, ``fednova`` and
            ``centered-clipping``. A server optimiser's memory is kept beside it and beside ``out``.
        model: The code of the model (``file.py:function``), where the files hold only arrays and must be run.
        options: Of the method, such as ``{"trim": 0.1}`` or ``{"lr": 0.5}``.
        data_dir: Where the data sets lie.

    Returns:
        The merged model, with what was found on the way.

    Raises:
        ArchitectureError: The files do not fit together; the first difference is named.
        MergeError: The method cannot be applied to them.
        UsageError: Unknown names, weights that do not fit, or an ``out`` that would overwrite an input.
    """
    check_method(method)
    found = without_rounds(model_files(models))
    path = _checked_out(out, found)
    if METHODS[method].family == "ensemble":
        if weights is not None or options:
            raise UsageError("an ensemble treats its members alike and has no options: leave weights and options out")
        return _ensemble(found, model, path)
    chosen = _weights(weights, method, found, model, data, data_dir)
    first, vectors = read_vectors(found, model)
    before, state = _previous(previous, method, model, first, found)
    watch = starts.Watch(first.layout)
    try:
        merged = merge_vectors(
            method,
            [f.entry for f in found],
            map(watch.see, vectors),
            layout=first.layout,
            weights=chosen,
            previous=before,
            state=state,
            options=options,
        )
    except StartMissing as error:
        hint = "pass --previous with it (the shared start for the first merge, the last global model later)"
        raise MergeError(f"{error}: {hint}") from error
    said = [*starts.findings(found, watch.verdict(found)), *_doubts(found, before)]
    said += [Finding("info", "Note", f"{note[:1].upper()}{note[1:]}.") for note in merged.notes]
    record = _sidecar(first.load(merged.vector), found, method, merged, options, before)
    if path is not None:
        io.save(first, path)
        sidecar.write(path, record)
        write_state(path, method, merged)
    names = tuple(str(f.path) for f in found)
    return MergedModel(first, method, names, merged.weights, tuple(said), path, record)


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


def _previous(
    previous: str | Path | None, method: str, reference: str | None, first: Model, found: Sequence[ModelFile]
) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
    """Load the previous global model and the server optimiser's memory that lies beside it."""
    if previous is None:
        return None, {}
    path = Path(previous)
    before = io.load(path, reference)
    check_same(first, before, str(found[0].path), str(path))
    vector = before.vector()
    check_finite(vector, before, str(path))
    return vector, read_state(path, method, vector)


def _doubts(found: Sequence[ModelFile], before: torch.Tensor | None) -> list[Finding]:
    """Say what the sidecars speak against: sidecars of other files, other input scales, another start."""
    said = []
    for file in found:
        if file.sidecar is None and sidecar.path_of(file.path).is_file():
            text = f"{file.path}: {file.reason}. Send file and sidecar together, as 'fedloom train' wrote them."
            said.append(Finding("warning", "A sidecar is passed over", text))
    known = [(f, f.sidecar) for f in found if f.sidecar]
    highs = {s.model.get("input_high"): f.path for f, s in known if s.model.get("input_high")}
    if len(highs) > 1:
        text = "; ".join(f"{path} takes 0 to {high:g}" for high, path in highs.items())
        text = f"{text}. Models of different scales cannot be averaged: train them again on inputs of one scale."
        said.append(Finding("problem", "The members take inputs of different scales", text))
    if before is not None:
        digest = sidecar.digest(before)
        others = [f for f, s in known if s.start and s.start != digest]
        if others:
            text = f"{others[0].path} says so; {len(others)} of {len(found)} members began from another model."
            said.append(Finding("warning", "The members did not start from --previous", text))
    return said


def state_path(path: Path) -> Path:
    """Return where the memory of a server optimiser lies that belongs to a global model."""
    return path.with_name(f"{path.stem}.server.safetensors")


def read_state(path: Path, method: str, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    """Read the server optimiser's memory beside a global model; empty when there is none of this method.

    Raises:
        DataError: The memory belongs to another model, or is damaged.
    """
    beside = state_path(path)
    if METHODS[method].family != "server" or not beside.is_file():
        return {}
    state, metadata = files.read_tensors(beside)
    if metadata.get("method") != method:
        return {}
    if metadata.get("model") != sidecar.digest(vector):
        raise DataError(f"{beside} belongs to another model than {path.name}: remove it, or restore the model")
    return state


def write_state(path: Path, method: str, merged: Merged) -> None:
    """Write the server optimiser's memory beside a global model; drop what an earlier model of that name left."""
    if not merged.state:
        state_path(path).unlink(missing_ok=True)
    else:
        metadata = {"method": method, "model": sidecar.digest(merged.vector)}
        files.write_tensors(state_path(path), merged.state, metadata)


def _sidecar(
    model: Model,
    found: list[ModelFile],
    method: str,
    merged: Merged,
    options: Mapping[str, float] | None,
    before: torch.Tensor | None,
) -> Sidecar:
    known = [f.sidecar for f in found if f.sidecar]
    what: dict[str, Any] = {"method": method, "options": dict(options or {}), "members": [f.path.name for f in found]}
    return Sidecar(
        model=model.describe(),
        samples=sum(s.samples for s in known) if len(known) == len(found) else 0,
        start=sidecar.digest(before) if before is not None else "",
        round=max((s.round for s in known), default=0),
        class_names=_class_names(found),
        merge=what | {"weights": list(merged.weights)},
    )


def _class_names(found: Sequence[ModelFile]) -> tuple[str, ...]:
    return next((f.sidecar.class_names for f in found if f.sidecar), ())
