"""Explain: what is a merged model that was made elsewhere? A mean, one member in disguise, a rule, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedloom.align.origin import explain as maths
from fedloom.align.origin.combination import COMBINATIONS
from fedloom.align.origin.explain import Verdict
from fedloom.errors import DataError
from fedloom.models import io
from fedloom.models.model import Model
from fedloom.offline import explained
from fedloom.offline.collect import ModelFile, check_finite, check_same, model_files, without_rounds
from fedloom.report import words
from fedloom.report.comparison import Finding
from fedloom.report.tables import findings_html, text_html


@dataclass(frozen=True)
class Explanation:
    """What a merged model turned out to be.

    Attributes:
        model: Its name.
        members: The members' names.
        verdict: What it is, in numbers.
        findings: The same in words: first the model, then layers, BatchNorm statistics and equal members.
    """

    model: str
    members: tuple[str, ...]
    verdict: Verdict
    findings: tuple[Finding, ...]

    @property
    def sentence(self) -> str:
        """What it is, in one sentence."""
        return self.findings[0].title

    @property
    def exact(self) -> bool:
        """Whether the weights are how the model was made, not only the nearest combination."""
        return self.verdict.kind in COMBINATIONS

    @property
    def weights(self) -> dict[str, float]:
        """What each member counts, by name."""
        return dict(zip(self.members, self.verdict.weights, strict=True))

    def _repr_html_(self) -> str:
        width = max(map(len, self.members))
        rows = [f"{name:{width}}  {weight:7.3f}" for name, weight in self.weights.items()]
        head = "weights" if self.exact else "the nearest combination"
        return findings_html(self.findings) + text_html("\n".join([head, *rows]))


def explain(
    model: str | Path, members: Sequence[str | Path] | str | Path, *, model_code: str | None = None
) -> Explanation:
    """Say what a merged model really is: its best linear combination of the members, judged.

    Args:
        model: The merged model's file.
        members: The members' files or patterns. The merged model itself, shared starts, and other merged
            models are left out.
        model_code: The code of the model (``file.py:function``), where the files hold only arrays.

    Returns:
        The verdict, the weights by member, and what they mean.

    Raises:
        ArchitectureError: A file is of another architecture; the first difference is named.
        DataError: Fewer than two members, or files that are missing.
        MergeError: A file holds NaN or infinite numbers.
    """
    path = Path(model)
    merged = io.load(path, model_code)
    vector = merged.vector()
    check_finite(vector, merged, str(path))
    found = _members(path, [members] if isinstance(members, str | Path) else members)
    vectors = []
    for file in found:
        loaded = io.load(file.path, model_code)
        check_same(merged, loaded, str(path), str(file.path))
        vectors.append(loaded.vector())
        check_finite(vectors[-1], loaded, str(file.path))
    again = words.command("fedloom", "merge", *(f.path for f in found), "--out", f"mean{path.suffix}")
    return of_vectors(path.stem, merged, vector, found, vectors, again)


def of_vectors(
    name: str,
    model: Model,
    vector: torch.Tensor,
    files: Sequence[ModelFile],
    vectors: Sequence[torch.Tensor],
    again: str = "",
) -> Explanation:
    """Explain a merged model that is in memory.

    Args:
        name: What to call it.
        model: A model of its architecture, for the names of its layers.
        vector: Its numbers, float32 (P,).
        files: The members' files, at least two.
        vectors: Their numbers, each float32 (P,).
        again: The command that makes a plain mean, for those that are none by mistake.
    """
    names = tuple(f.name for f in files)
    verdict = maths.explain(vector, vectors, model.layout, names)
    layers = {inner: path for path, inner in getattr(model.module, "names", {}).items()}
    samples = [f.sidecar.samples if f.sidecar else 0 for f in files]
    return Explanation(name, names, verdict, tuple(explained.findings(name, verdict, names, layers, samples, again)))


def of_global(
    file: ModelFile, model: Model, first: Model, files: Sequence[ModelFile], vectors: Sequence[torch.Tensor]
) -> list[Finding]:
    """Say in one finding what a global model among a team's files is; nothing where its members cannot tell.

    Args:
        file: The global model's file.
        model: The global model.
        first: One member's model.
        files: The members' files.
        vectors: The members' numbers, each float32 (P,).
    """
    vector = model.vector()
    if len(files) < 2 or io.difference(first, model) or not torch.isfinite(vector).all():
        return []
    return list(of_vectors(file.name, model, vector, files, vectors).findings[:1])


def _members(model: Path, patterns: Sequence[str | Path]) -> list[ModelFile]:
    """Find the members' files: without the merged model itself, and without other merges where members are there."""
    if not patterns:
        raise DataError(f"{model}: name the members' files, too: at least two")
    found = [f for f in without_rounds(model_files(patterns)) if f.path.resolve() != model.resolve()]
    members = [f for f in found if not f.is_merge]
    if len(members) >= 2:
        return members
    if len(found) < 2:
        named = f"only {found[0].path}" if found else "none"
        raise DataError(
            f"{model} is explained by the members that went in: at least two files are needed, found {named}"
        )
    return found
