"""Bench: models evaluated on one test set, row by row, and the team of members that were read on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import torch

from fedloom.data.dataset import Dataset
from fedloom.errors import ModelError
from fedloom.metrics import Counts
from fedloom.models import io
from fedloom.models.model import Model
from fedloom.offline import scale, starts
from fedloom.offline.collect import ModelFile, check_finite
from fedloom.offline.progress import Advance
from fedloom.report import words
from fedloom.report.comparison import Finding, Row
from fedloom.training.evaluate import predict
from fedloom.training.shard import Shard


@dataclass
class Bench:
    """Evaluates models on one test set and collects the rows of the table."""

    dataset: Dataset
    device: torch.device
    reference: str | None
    rows: list[Row] = field(default_factory=list)
    said: list[Finding] = field(default_factory=list)

    def load(self, file: ModelFile) -> Model:
        """Load a model that can be evaluated; find the scale of its inputs, and say when it is not the one on record."""
        model = io.load(file.path, self.reference, self.dataset)
        model.require_runnable(f"evaluating {file.path}")
        if model.n_classes != self.dataset.n_classes:
            raise ModelError(
                f"{file.path} has {model.n_classes} classes where the first model has {self.dataset.n_classes}: "
                "compare models of the same classes",
                file=str(file.path),
            )
        settled, said = scale.settle(model, self.dataset, file.name)
        self.said += said
        return settled

    def score(self, model: Model, name: str, kind: str, note: str = "", seconds: float = 0.0) -> torch.Tensor:
        """Add a row; returns the probabilities (n, C), on the CPU."""
        model.to(self.device)
        shard = Shard.of(self.dataset, model, name, self.device)
        logits = predict(model, shard)
        model.to(torch.device("cpu"))
        self.rows.append(Row(name, kind, Counts.of(logits, self.dataset.y), seconds, note))
        return logits.softmax(1).cpu()


@dataclass
class Team:
    """The members that were read.

    Attributes:
        files: Their files.
        first: The first one's model; its module is a workplace for the merged ones.
        vectors: Their vectors, each (P,).
        probabilities: The mean of their probabilities, (n, C).
        accuracies: Theirs, on the test set.
        difference: Why they cannot be merged; empty when they can.
        watch: What tells whether they share a start.
        high: The input scale of most of them.
    """

    files: list[ModelFile]
    first: Model
    vectors: list[torch.Tensor]
    probabilities: torch.Tensor
    accuracies: list[float]
    difference: str
    watch: starts.Watch
    high: float | None

    @property
    def model(self) -> Model:
        """The first one's model with the input scale of most of them: lends its module to merged vectors."""
        return replace(self.first, input_high=self.high)


def evaluate_members(bench: Bench, members: list[ModelFile], advance: Advance) -> Team:
    """Read every member once: a row for each, and what merging them needs."""
    first = bench.load(members[0])
    total = torch.zeros(len(bench.dataset), first.n_classes)
    vectors, highs, difference = [], [], ""
    for file in members:
        loaded = first if file is members[0] else bench.load(file)
        vector = loaded.vector()
        check_finite(vector, loaded, str(file.path))
        total += bench.score(loaded, file.name, "member", note_of(file))
        apart = io.difference(first, loaded)
        if apart and not difference:
            difference = f"{file.path} does not fit {members[0].path}: {apart}"
        vectors.append(vector)
        highs.append(loaded.input_high)
        advance(1)
    watch = starts.Watch(first.layout)
    if not difference:
        for vector in vectors:
            watch.see(vector)
    accuracies = [row.counts.accuracy for row in bench.rows]
    usual = Counter(highs).most_common(1)[0][0]
    return Team(members, first, vectors, total / len(members), accuracies, difference, watch, usual)


def note_of(file: ModelFile) -> str:
    """Say in a few words how a model was made."""
    known = file.sidecar
    if known is None:
        return file.reason
    if known.merge:
        return f"{known.merge.get('method', 'merged')} of {len(known.merge.get('members', ()))} models, says its file"
    epochs = known.local.get("epochs")
    samples = words.many(known.samples, "sample")
    return f"{samples}, {words.many(epochs, 'epoch')}" if epochs else samples
