"""Compare: every member, every method, the ensemble and central training, on the same test set, and what it means."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fedloom import report
from fedloom.data import load_evaluation
from fedloom.data.dataset import Dataset
from fedloom.errors import DataError, FedloomError, UsageError
from fedloom.merging import METHODS, StartMissing, check_method, merge_vectors
from fedloom.metrics import Counts
from fedloom.models import io
from fedloom.models.model import Model, device
from fedloom.offline import findings, starts
from fedloom.offline.aligned_rows import Alignment, add_aligned
from fedloom.offline.aligning import Wish
from fedloom.offline.bench import Bench, Team, evaluate_members, note_of
from fedloom.offline.central import train_central
from fedloom.offline.collect import ModelFile, check_finite, check_same, model_files
from fedloom.offline.explain import of_global
from fedloom.offline.progress import Advance, bar
from fedloom.records import RoundRecord
from fedloom.report import words
from fedloom.report.comparison import Comparison, Row


def compare(
    models: Sequence[str | Path],
    data: str | Dataset,
    *,
    methods: Sequence[str] | None = None,
    central: str | Path | None = None,
    central_epochs: int | None = None,
    start: str | Path | None = None,
    align: str = "auto",
    unlabelled: str | Path | None = None,
    out: str | Path | None = "comparison",
    model: str | None = None,
    rounds: Sequence[RoundRecord] = (),
    title: str = "",
    data_dir: str | Path | None = None,
    device_name: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Evaluate every member, every method, the ensemble and central training on one test set.

    Args:
        models: Files or patterns. Files that are merges themselves (their sidecar says so; their name, such as
            ``global.keras``, where there is none) are evaluated and explained, not merged.
        data: The test set: ``mnist``, a path, ``x.npy,y.npy``, or a ``Dataset``.
        methods: The methods to try on the members as they are; all when left out.
        central: The folder that ``split`` made: trains the same model on all members' data together.
        central_epochs: Its number of epochs; as many as the members trained when left out.
        start: The model that the members started from, for the methods that need it; found in ``central`` or beside
            the members' files when left out.
        align: Whether the members are aligned before they are merged, too: ``"auto"`` when they do not share a start,
            ``"none"`` or ``"always"``.
        unlabelled: Inputs to align with, of which no labels are used: a name, a path, an ``.npy`` file of inputs alone.
            Synthetic ones, made from the members, when left out.
        out: The folder for ``report.html``, ``report.csv`` and ``report.json``; None writes nothing.
        model: The code of the model (``file.py:function``) for files that hold only arrays.
        rounds: Records of federated rounds, to be shown along.
        title: The headline of the report.
        data_dir: Where the data sets lie.
        device_name: ``cpu``, ``cuda``; a GPU when there is one.
        progress: Show progress bars.

    Returns:
        The comparison, with a notebook view.

    Raises:
        DataError: Labels outside the model's classes, data of another shape, files that are missing.
        ModelError: A file that cannot be read or run, or of other classes than the first one.
        UsageError: An unknown method or way to align.
    """
    chosen = [name for name in methods or METHODS if check_method(name)]
    wish = _wish(align, unlabelled, data_dir, progress)
    found = model_files(models)
    members = [f for f in found if not f.is_merge]
    if not members:
        raise UsageError("every file is a merged model already: add the members' files")
    dataset = load_evaluation(data, data_dir)
    first = io.load(members[0].path, model, dataset)
    _check_features(dataset, first, members[0].path)
    dataset = dataset.with_classes(first.n_classes or dataset.n_classes)
    bench = Bench(dataset, device(device_name), model)
    with bar("comparing", len(found) + len(chosen), progress) as advance:
        team = evaluate_members(bench, members, advance)
        for file in found:
            if file not in members:
                loaded = bench.load(file)
                bench.score(loaded, file.name, "global", note_of(file))
                if not team.difference:
                    bench.said += of_global(file, loaded, team.first, team.files, team.vectors)
                advance(1)
        before = _start(start, members, central, first, model)
        refused = _evaluate_methods(bench, team, chosen, before, advance)
    verdict = None if team.difference else team.watch.verdict(members)
    alignment = _align(bench, team, wish, verdict)
    refused |= {"aligned merge": alignment.refused} if alignment and alignment.refused else {}
    curves = {f.name: [dict(e) for e in f.sidecar.history] for f in members if f.sidecar and f.sidecar.history}
    if central is not None:
        with _kept_in(out) as folder:
            trained = train_central(central, members, folder, model, device_name, progress, central_epochs)
        bench.score(trained.model, "central", "central", trained.note, trained.seconds)
        curves["central"] = trained.history
    case = findings.Case(bench.rows, members, verdict, team.difference, central, alignment)
    comparison = Comparison(
        title=title or f"{len(members)} members on {dataset.name}",
        dataset=dataset.name,
        class_names=dataset.class_names,
        rows=bench.rows,
        findings=[*findings.explain(case), *bench.said],
        curves=curves,
        class_counts=_class_counts(members, dataset),
        rounds=list(rounds),
        refused=refused,
        made=_made(found, dataset, team.high, alignment),
        lines=alignment.lines if alignment else [],
    )
    if out is not None:
        report.write(comparison, out)
    return comparison


def _evaluate_methods(
    bench: Bench, team: Team, chosen: Sequence[str], before: torch.Tensor | None, advance: Advance
) -> dict[str, str]:
    """Score every method that makes sense; returns why the others do not."""
    refused: dict[str, str] = {}
    for method in chosen:
        if METHODS[method].family == "ensemble":
            counts = Counts.of(team.probabilities, bench.dataset.y, probabilities=True)
            note = f"runs all {len(team.files)} models"
            bench.rows.append(Row("ensemble", "ensemble", counts, 0.0, note))
        elif team.difference:
            refused[method] = team.difference
        else:
            try:
                _evaluate_method(bench, team, method, before)
            except StartMissing as error:
                refused[method] = f"{error.reason}{_no_start(team.files)}"
            except FedloomError as error:
                refused[method] = str(error)
        advance(1)
    return refused


def _no_start(members: Sequence[ModelFile]) -> str:
    """Say why the members' start is not there, and what to do."""
    if len({f.sidecar.start for f in members if f.sidecar and f.sidecar.start}) > 1:
        return ", and they started from different ones"
    return ", which does not lie beside the files: pass it as --start"


def _evaluate_method(bench: Bench, team: Team, method: str, before: torch.Tensor | None) -> None:
    began = time.perf_counter()
    weighted = method == "weighted"
    merged = merge_vectors(
        method,
        [f.entry for f in team.files],
        team.vectors,
        layout=team.first.layout,
        weights=team.accuracies if weighted else None,
        previous=before,
    )
    seconds = time.perf_counter() - began
    said = ["weights: the accuracies on this test set"] if weighted else []
    if len(team.files) > 1:
        same = (f.name for f, v in zip(team.files, team.vectors, strict=True) if torch.equal(v, merged.vector))
        said += [f"{name}'s model as it is" for name in same][:1]
    bench.score(team.model.load(merged.vector), method, "method", "; ".join([*said, *merged.notes]), seconds)


def _wish(align: str, unlabelled: str | Path | None, data_dir: str | Path | None, progress: bool) -> Wish:
    """Say how members are aligned; refuse inputs that nothing would use."""
    if align == "none" and unlabelled is not None:
        raise UsageError("unlabelled inputs are for alignment, which align 'none' leaves out: give only one of the two")
    texts = [None if value is None else str(value) for value in (unlabelled, data_dir)]
    return Wish(align, unlabelled=texts[0], data_dir=texts[1], progress=progress)


def _align(bench: Bench, team: Team, wish: Wish, verdict: starts.Verdict | None) -> Alignment | None:
    """Add what aligned members give; members that cannot be averaged as they are may differ in width alone."""
    tried = wish.align != "none" if verdict is None else wish.applies("fedavg", verdict, len(team.files))
    if not tried or len(team.files) < 2:
        return None
    alignment = add_aligned(bench, team, wish)
    bench.said += alignment.findings
    return alignment


def _start(
    start: str | Path | None,
    members: Sequence[ModelFile],
    central: str | Path | None,
    first: Model,
    reference: str | None,
) -> torch.Tensor | None:
    """Find the vector that the members started from: the file given, or one beside them whose digest fits."""
    if start is None:
        return starts.find_start(members, first, central, reference)
    loaded = io.load(start, reference)
    check_same(first, loaded, str(members[0].path), str(start))
    vector = loaded.vector()
    check_finite(vector, loaded, str(start))
    return vector


def _check_features(dataset: Dataset, first: Model, path: Path) -> None:
    """Refuse a table with other features than the members' with more help than the numbers."""
    if dataset.feature_names and first.input_shape and dataset.input_shape != first.input_shape:
        raise DataError(
            f"{dataset.name} gives {len(dataset.feature_names)} features, {path} takes {first.input_shape[0]}: name the "
            "same columns as for the split (data.csv:label=...,column=...), or give a member's test set "
            "(x_test_fed.npy,y_test_fed.npy)",
            file=str(path),
        )


@contextmanager
def _kept_in(out: str | Path | None) -> Iterator[Path]:
    """Give the folder that keeps the central model; without ``out`` one that vanishes."""
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _class_counts(members: Sequence[ModelFile], dataset: Dataset) -> dict[str, list[int]]:
    known = {f.name: list(f.sidecar.class_counts) for f in members if f.sidecar}
    return {name: counts for name, counts in known.items() if len(counts) == dataset.n_classes}


def _made(
    found: Sequence[ModelFile], dataset: Dataset, high: float | None, alignment: Alignment | None
) -> dict[str, str]:
    program = Path(sys.argv[0])
    typed = program.stem == "fedloom" or program.parts[-2:] == ("fedloom", "__main__.py")
    command = words.command("fedloom", *sys.argv[1:]) if typed else ""
    made = report.provenance(command, files=[str(f.path) for f in found])
    note = dataset.scale_note(high)
    made |= {"Inputs": note} if note else {}
    if alignment is not None and alignment.chosen is not None:
        made["Alignment"] = f"{alignment.probe}; judged by {alignment.judge}"
    return made
