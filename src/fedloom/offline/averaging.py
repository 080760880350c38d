"""Averaging: files merged one at a time, as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedloom.errors import MergeError
from fedloom.merging import Merged, StartMissing, merge_vectors
from fedloom.models import io, sidecar
from fedloom.models.model import Model
from fedloom.offline import starts
from fedloom.offline.aligning import Wish
from fedloom.offline.collect import ModelFile, NotFinite, check_finite, check_same, read_vectors
from fedloom.offline.server_state import read_state
from fedloom.report.comparison import Finding


@dataclass(frozen=True, eq=False)
class Average:
    """The members averaged as they are: the first one's model as a workplace, and what was seen on the way."""

    first: Model
    merged: Merged
    before: torch.Tensor | None
    watch: starts.Watch


def average(
    found: list[ModelFile],
    weights: Sequence[float] | None,
    *,
    method: str,
    reference: str | None,
    previous: str | Path | None,
    options: Mapping[str, float] | None,
) -> Average:
    """Merge the files one at a time."""
    first, vectors = read_vectors(found, reference)
    before, state = _previous(previous, method, reference, first, found)
    watch = starts.Watch(first.layout)
    try:
        merged = merge_vectors(
            method,
            [f.entry for f in found],
            map(watch.see, vectors),
            layout=first.layout,
            weights=weights,
            previous=before,
            state=state,
            options=options,
        )
    except StartMissing as error:
        hint = "pass --previous with it (the shared start for the first merge, the last global model later)"
        raise MergeError(f"{error}: {hint}") from error
    return Average(first, merged, before, watch)


def without_broken(
    run: Callable[[list[ModelFile], Sequence[float] | None], Average],
    found: list[ModelFile],
    weights: Sequence[float] | None,
    wish: Wish,
) -> tuple[list[ModelFile], Sequence[float] | None, Average, list[Finding]]:
    """Average the files; one that holds NaN is left out, and said so, as long as two others remain."""
    said: list[Finding] = []
    while True:
        try:
            return found, weights, run(found, weights), said
        except NotFinite as error:
            broken = [i for i, f in enumerate(found) if str(f.path) == error.context.get("file")]
            if wish.align == "none" or len(found) < 3 or not broken:
                raise
            said.append(Finding("problem", f"{found[broken[0]].name} is left out", f"{error}."))
            weights = None if weights is None else [w for i, w in enumerate(weights) if i != broken[0]]
            found = [f for i, f in enumerate(found) if i != broken[0]]


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


SCALES = "The members take inputs of different scales"


def doubts(found: Sequence[ModelFile], before: torch.Tensor | None) -> list[Finding]:
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
        said.append(Finding("problem", SCALES, text))
    if before is not None:
        digest = sidecar.digest(before)
        others = [f for f, s in known if s.start and s.start != digest]
        if others:
            text = f"{others[0].path} says so; {len(others)} of {len(found)} members began from another model."
            said.append(Finding("warning", "The members did not start from --previous", text))
    return said
