"""Candidates: the models that alignment tried, and what each is worth."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedloom.align.symmetry.graph import Symmetry


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that was tried.

    Attributes:
        name: In a few words.
        kind: ``"plain"`` (averaged as they are), ``"merge"``, ``"baseline"`` or ``"member"``.
        score: The share of the judged inputs on which it agrees with the ensemble; with labels, its accuracy. 0-1.
        distance: Its cross-entropy with the ensemble's answer, or with the labels, in nats: settles ties.
        seconds: What it took, its alignment not included.
        vector: float32 (P,); None for the ensemble.
        note: What else is to be said of it.
    """

    name: str
    kind: str
    score: float
    distance: float
    seconds: float
    vector: Tensor | None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Fused:
    """What came out.

    Attributes:
        vector: The best merge, float32 (P,).
        chosen: Its name.
        candidates: Everything that was tried, in order.
        aligned: The members with their units in a common order, (n, P).
        symmetry: Of the model.
        objective: The mean inner product of two aligned members' weights.
        seconds: What matching took.
        judge: By what the candidates were judged, in words.
        probe: What the inputs were, in words.
    """

    vector: Tensor
    chosen: str
    candidates: tuple[Candidate, ...]
    aligned: Tensor
    symmetry: Symmetry
    objective: float
    seconds: float
    judge: str
    probe: str

    def best(self, *kinds: str) -> Candidate | None:
        """Return the best candidate of the given kinds."""
        found = [c for c in self.candidates if c.kind in kinds]
        return max(found, key=merit) if found else None


def merit(candidate: Candidate) -> tuple[float, float]:
    """Return what candidates are compared by: the score, then the distance."""
    return candidate.score, -candidate.distance
